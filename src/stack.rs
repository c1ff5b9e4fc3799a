//! From a [`Spec`] to a backend: the table of spec types, ours and those an outside crate
//! registers. The help texts and the documentation print this same table.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::config::Spec;
use crate::config::nearest::suggestion;
use crate::error::{Error, Result};
use crate::queue::Stack;

mod builtin;
mod read_only;

pub use read_only::ReadOnly;

/// What the command line says about the disk besides the spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Nothing may be written.
    pub read_only: bool,
    /// The logical block size that was asked for, a power of two from 512 up.
    pub block_size: Option<u32>,
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
    /// Opens it. The table has checked the type and the keys by then, not the values.
    pub open: Open,
}

impl SpecType {
    /// How it is written: `file:PATH[,size=SIZE]`.
    pub fn usage(&self) -> String {
        let mut usage = format!("{}:{}", self.name, self.argument);
        for key in &self.keys {
            let _ = write!(usage, "[,{}={}]", key.name, key.values);
        }
        usage
    }
}

impl fmt::Debug for SpecType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SpecType").field(&self.usage()).finish()
    }
}

/// The spec types that there are.
#[derive(Debug, Default)]
pub struct SpecTable {
    types: Vec<SpecType>,
}

impl SpecTable {
    /// The types that blockhaus has itself.
    pub fn builtin() -> SpecTable {
        builtin::types().into_iter().fold(SpecTable::default(), SpecTable::register)
    }

    /// Adds a type. One of the same name is replaced.
    #[must_use]
    pub fn register(mut self, new: SpecType) -> SpecTable {
        self.types.retain(|old| old.name != new.name);
        self.types.push(new);
        self
    }

    /// Every type, in the order of registration.
    pub fn types(&self) -> &[SpecType] {
        &self.types
    }

    /// Opens what `spec` names.
    pub fn open(&self, spec: &Spec, options: &OpenOptions) -> Result<Arc<dyn Stack>> {
        let found = self.check(spec)?;
        (found.open)(spec, options)
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
        let names: Vec<&str> = found.keys.iter().map(|key| key.name).collect();
        for key in spec.keys() {
            if names.contains(&key) {
                continue;
            }
            let why = format!("{} has no key {key:?}", found.name);
            let cure = match names.is_empty() {
                true => format!("{} takes no keys", found.name),
                false => suggestion("its keys are", key, &names),
            };
            return Err(Error::invalid(spec.named(), why).cure(cure));
        }
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
        text.push_str(
            "\nA SIZE is a number of bytes, or one with K, M, G or T (powers of 1024): 4096, 64K, 10M, 1G.\n\
             A comma inside an argument or a value is written twice (,,).",
        );
        text
    }

    /// The table as Markdown, for the documentation.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| spec | what it is |\n|---|---|\n");
        for kind in &self.types {
            let _ = writeln!(text, "| `{}` | {} |", kind.usage().replace('|', "\\|"), kind.about);
            for key in &kind.keys {
                let values = key.values.replace('|', "\\|");
                let _ = writeln!(text, "| `…,{}={values}` | {} |", key.name, key.about);
            }
        }
        text
    }
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
        assert!(error("null:1G,size=1").contains("null takes no keys"));
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
}
