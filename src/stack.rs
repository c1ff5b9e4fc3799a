//! From a [`Spec`] to a backend: the table of spec types, ours and those an outside crate
//! registers. The help texts and the documentation print this same table.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::config::Spec;
use crate::config::nearest::suggestion;
use crate::error::{Error, Result};
use crate::filter::blocksize::Blocksize;
use crate::io::Capabilities;
use crate::queue::Stack;

mod builtin;
mod filters;
mod read_only;

pub use filters::{FilterType, Wrap};
pub use read_only::ReadOnly;

/// What the command line says about the disk besides the spec. A type may make use of it, by opening a
/// file for reading only, say. What the opened disk does not do by itself, the table does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Nothing may be written. A disk that takes writes all the same gets [`ReadOnly`] on it.
    pub read_only: bool,
    /// The logical block size that was asked for, a power of two from 512 up. A disk in other blocks
    /// gets the blocksize filter on it.
    pub block_size: Option<u32>,
    /// The smallest unit that the engine's clients may address without asking, where that can be
    /// smaller than a block of the disk.
    pub engine_unit: Option<u32>,
    /// The disk was open in a server that was killed, and is to be as it was: nothing may be made in the place of what
    /// is not there any more.
    pub again: bool,
}

/// The same disk for an engine whose clients ask for any bytes: what is smaller than a block is read, changed and
/// written.
pub fn in_bytes(stack: Arc<dyn Stack>) -> Result<Arc<dyn Stack>> {
    match stack.geometry().logical_block_size {
        1 => Ok(stack),
        _ => Ok(Arc::new(Blocksize::new(stack.into_backend(), 1)?)),
    }
}

/// Opens a backend.
pub type Open = Box<dyn Fn(&Spec, &OpenOptions) -> Result<Arc<dyn Stack>> + Send + Sync>;

/// A key that a spec type understands.
#[derive(Clone, Debug)]
pub struct Key {
    /// What stands before the `=`.
    pub name: &'static str,
    /// What may stand behind it: `SIZE`, `yes|no`.
    pub values: &'static str,
    /// What it does, a sentence.
    pub about: &'static str,
}

/// One spec type: how it is written, what it is, and how it is opened.
pub struct SpecType {
    /// What stands before the colon.
    pub name: &'static str,
    /// What stands behind it: `SIZE`, `PATH`.
    pub argument: &'static str,
    /// What it is, a sentence or two.
    pub about: &'static str,
    /// The keys it takes.
    pub keys: Vec<Key>,
    /// Opens it. The table has checked the type and the keys by then, not the values; and it sees to
    /// those of the [`OpenOptions`] that this leaves aside.
    pub open: Open,
}

impl SpecType {
    /// How it is written: `file:PATH[,size=SIZE]`.
    pub fn usage(&self) -> String {
        usage(&format!("{}:{}", self.name, self.argument), &self.keys)
    }
}

fn usage(head: &str, keys: &[Key]) -> String {
    let mut usage = head.to_owned();
    for key in keys {
        let _ = write!(usage, "[,{}={}]", key.name, key.values);
    }
    usage
}

impl fmt::Debug for SpecType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SpecType").field(&self.usage()).finish()
    }
}

/// The spec types and the filters that there are.
#[derive(Debug, Default)]
pub struct SpecTable {
    types: Vec<SpecType>,
    filters: Vec<FilterType>,
}

impl SpecTable {
    /// The types that blockhaus has itself.
    pub fn builtin() -> SpecTable {
        let table = builtin::types().into_iter().fold(SpecTable::default(), SpecTable::register);
        filters::builtin().into_iter().fold(table, SpecTable::register_filter)
    }

    /// Adds a type. One of the same name is replaced.
    #[must_use]
    pub fn register(mut self, new: SpecType) -> SpecTable {
        self.types.retain(|old| old.name != new.name);
        self.types.push(new);
        self
    }

    /// Adds a filter. One of the same name is replaced.
    #[must_use]
    pub fn register_filter(mut self, new: FilterType) -> SpecTable {
        self.filters.retain(|old| old.name != new.name);
        self.filters.push(new);
        self
    }

    /// Every filter, in the order of registration.
    pub fn filters(&self) -> &[FilterType] {
        &self.filters
    }

    /// Every type, in the order of registration.
    pub fn types(&self) -> &[SpecType] {
        &self.types
    }

    /// Opens what `spec` names.
    pub fn open(&self, spec: &Spec, options: &OpenOptions) -> Result<Arc<dyn Stack>> {
        self.open_with(spec, &[], options)
    }

    /// Opens what `spec` names with filters on it, the first of them nearest to the client; and where
    /// blocks smaller than the disk's were asked for, or the engine needs them, the blocksize filter
    /// above all.
    pub fn open_with(&self, spec: &Spec, filters: &[Spec], options: &OpenOptions) -> Result<Arc<dyn Stack>> {
        for filter in filters {
            self.check_filter(filter)?;
        }
        let mut stack = self.open_disk(spec, options)?;
        for filter in filters.iter().rev() {
            let found = self.check_filter(filter)?;
            stack = (found.wrap)(stack.into_backend(), filter, options, self)?;
        }
        match options.block_size.or(options.engine_unit) {
            Some(unit) if unit < stack.geometry().logical_block_size => {
                Ok(Arc::new(Blocksize::new(stack.into_backend(), unit)?))
            }
            _ => Ok(stack),
        }
    }

    /// The backend alone, and what was asked for that its type does not do.
    fn open_disk(&self, spec: &Spec, options: &OpenOptions) -> Result<Arc<dyn Stack>> {
        let found = self.check(spec)?;
        let mut disk = (found.open)(spec, options)?;
        // Smaller blocks than its own come last, above the filters.
        if let Some(wanted) = options.block_size
            && disk.geometry().logical_block_size < wanted
        {
            disk = Arc::new(Blocksize::new(disk.into_backend(), wanted)?);
        }
        if options.read_only && disk.capabilities().contains(Capabilities::WRITE) {
            disk = Arc::new(ReadOnly(disk.into_backend()));
        }
        Ok(disk)
    }

    /// The type of `spec`, whose keys are all known to it.
    pub fn check(&self, spec: &Spec) -> Result<&SpecType> {
        let Some(found) = self.types.iter().find(|known| known.name == spec.kind()) else {
            let names: Vec<&str> = self.types.iter().map(|known| known.name).collect();
            let why = format!("there is no spec type {:?}", spec.kind());
            return Err(Error::invalid(spec.named(), why).cure(suggestion(
                "the types are",
                spec.kind(),
                &names,
            )));
        };
        check_keys(spec, found.name, &found.keys)?;
        Ok(found)
    }

    /// The filter that `spec` names, whose keys are all known to it.
    pub fn check_filter(&self, spec: &Spec) -> Result<&FilterType> {
        let Some(found) = self.filters.iter().find(|known| known.name == spec.kind()) else {
            let names: Vec<&str> = self.filters.iter().map(|known| known.name).collect();
            let why = format!("there is no filter {:?}", spec.kind());
            return Err(Error::invalid(spec.named(), why).cure(suggestion(
                "the filters are",
                spec.kind(),
                &names,
            )));
        };
        if !spec.arg().is_empty() {
            let why = format!("a filter has no argument, and {:?} is one", spec.arg());
            return Err(Error::invalid(spec.named(), why).cure(format!("write {}", found.usage())));
        }
        check_keys(spec, found.name, &found.keys)?;
        Ok(found)
    }

    /// The table for the help text of `attach`.
    pub fn help(&self) -> String {
        let mut text = String::from("Specs:\n");
        for kind in &self.types {
            let _ = writeln!(text, "  {}\n      {}", kind.usage(), kind.about);
            for key in &kind.keys {
                let _ = writeln!(text, "      {}={}: {}", key.name, key.values, key.about);
            }
        }
        text.push_str("\nFilters, for --filter; the first that is given is nearest to the client:\n");
        for filter in &self.filters {
            let _ = writeln!(text, "  {}\n      {}", filter.usage(), filter.about);
            for key in &filter.keys {
                let _ = writeln!(text, "      {}={}: {}", key.name, key.values, key.about);
            }
        }
        text.push_str(
            "\nA SIZE is a number of bytes, or one with K, M, G or T (powers of 1024): 4096, 64K, 10M, 1G.\n\
             A comma inside an argument or a value is written twice (,,).",
        );
        text
    }

    /// The table as Markdown, for the documentation.
    pub fn markdown(&self) -> String {
        let rows = self.types.iter().map(|kind| (kind.usage(), kind.about, kind.keys.as_slice()));
        markdown("spec", rows)
    }

    /// The filters as Markdown, for the documentation.
    pub fn filters_markdown(&self) -> String {
        let rows = self.filters.iter().map(|filter| (filter.usage(), filter.about, filter.keys.as_slice()));
        markdown("filter", rows)
    }
}

/// What is wrong with the keys of `spec`, given those that `name` has.
fn check_keys(spec: &Spec, name: &str, keys: &[Key]) -> Result<()> {
    let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
    for key in spec.keys() {
        if names.contains(&key) {
            continue;
        }
        let why = format!("{name} has no key {key:?}");
        let cure = match names.is_empty() {
            true => format!("{name} takes no keys"),
            false => suggestion("its keys are", key, &names),
        };
        return Err(Error::invalid(spec.named(), why).cure(cure));
    }
    Ok(())
}

fn markdown<'a>(what: &str, rows: impl Iterator<Item = (String, &'static str, &'a [Key])>) -> String {
    let mut text = format!("| {what} | what it is |\n|---|---|\n");
    for (usage, about, keys) in rows {
        let _ = writeln!(text, "| `{}` | {about} |", usage.replace('|', "\\|"));
        for key in keys {
            let values = key.values.replace('|', "\\|");
            let _ = writeln!(text, "| `…,{}={values}` | {} |", key.name, key.about);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let spec: Spec = text.parse().unwrap();
        match SpecTable::builtin().open(&spec, &OpenOptions::default()) {
            Ok(_) => panic!("{text} was opened"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_near_miss_gets_a_suggestion_and_the_list() {
        let text = error("rma:1G");
        assert!(text.contains("did you mean ram?") && text.contains("null, ram, file"), "{text}");
        let text = error("file:/x,szie=1G");
        assert!(text.contains("did you mean size?") && text.contains("direct"), "{text}");
        assert!(error("RAM:1G").contains("did you mean ram?"));
        let text = error("quantum:1G");
        assert!(!text.contains("did you mean") && text.contains("null, ram, file"), "{text}");
        assert!(error("null:1G,size=1").contains("its keys are zero-copy"));
    }

    #[test]
    fn values_are_checked_before_anything_is_opened() {
        for text in ["ram", "ram:0", "ram:513", "ram:x", "null:0", "file", "ram:1G,hugepages=maybe"] {
            assert!(error(text).starts_with("bad spec"), "{text}");
        }
        assert!(error("file:/x,size=1000").contains("not a multiple"));
        assert!(error("file:/x,direct=perhaps").contains("auto, yes, no"));
        assert!(error("ram:1000").contains("not a multiple"));
    }

    #[test]
    fn an_outside_type_is_registered_and_replaces_one_of_its_name() {
        let ours = || SpecType {
            name: "ram",
            argument: "NOTHING",
            about: "Refuses.",
            keys: Vec::new(),
            open: Box::new(|_, _| Err(Error::invalid("ours", "refused"))),
        };
        let table = SpecTable::builtin().register(ours());
        assert_eq!(table.types().len(), SpecTable::builtin().types().len());
        let opened = table.open(&"ram:1G".parse().unwrap(), &OpenOptions::default());
        assert_eq!(opened.err().unwrap().to_string(), "ours: refused");
        assert!(table.help().contains("ram:NOTHING"));
    }

    #[test]
    fn what_a_type_does_not_heed_is_done_all_the_same() {
        let heedless = SpecType {
            name: "heedless",
            argument: "SIZE",
            about: "Opens what it always opens.",
            keys: Vec::new(),
            open: Box::new(|spec, _| {
                Ok(Arc::new(crate::backend::ram::Ram::new(spec.size_arg("heedless:1G")?, 1024, false)?))
            }),
        };
        let table = SpecTable::builtin().register(heedless);
        let open = |filters: &[&str], read_only, block_size| {
            let filters: Vec<Spec> = filters.iter().map(|filter| filter.parse().unwrap()).collect();
            let options = OpenOptions { read_only, block_size, ..OpenOptions::default() };
            table.open_with(&"heedless:1M".parse().unwrap(), &filters, &options).unwrap()
        };
        for filters in [&[][..], &["throttle,iops=9"], &["stripe,with=heedless:1M"]] {
            assert!(open(filters, false, None).capabilities().contains(Capabilities::WRITE));
            let read_only = open(filters, true, None);
            assert!(!read_only.capabilities().intersects(Capabilities::WRITE | Capabilities::DISCARD));
            assert_eq!(read_only.geometry().discard_granularity, 0);
            for block_size in [512, 1024, 4096] {
                let asked = open(filters, false, Some(block_size));
                assert_eq!(asked.geometry().logical_block_size, block_size, "{filters:?}");
            }
        }
    }
}
