//! What a person types: specs (`type:arg,key=value,…`), sizes, and the file of `up`.
//!
//! Everything here is total: any text gives a value or an error that says what is wrong with it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

pub mod changes;
pub mod entrance;
pub mod file;
mod keys;
pub mod limits;
pub mod nearest;
mod section;

/// Longest spec that is looked at.
const MAX_SPEC_LEN: usize = 16 << 10;

/// A backend as a person names it: a type, its argument, and keys with values.
///
/// Written `type:arg,key=value,…`. A comma inside the argument or a value is written twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    kind: String,
    arg: String,
    options: Vec<(String, String)>,
    noun: Noun,
}

/// What a text names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noun {
    Spec,
    Filter,
}

impl Noun {
    fn named(self, text: impl fmt::Display) -> String {
        match self {
            Noun::Spec => format!("bad spec {text}"),
            Noun::Filter => format!("bad filter {text}"),
        }
    }
}

impl Spec {
    /// A filter, written `name,key=value,…`.
    pub fn filter(text: &str) -> Result<Spec> {
        Spec::parse(text, Noun::Filter)
    }

    /// The spec type, `ram` of `ram:1G`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What follows the colon, up to the first key. Empty where there is nothing.
    pub fn arg(&self) -> &str {
        &self.arg
    }

    /// The keys that were given, in the order they were given.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.options.iter().map(|(key, _)| key.as_str())
    }

    /// The value of a key, where it was given.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The argument, which must be there; `example` is a whole spec that has one.
    pub fn required_arg(&self, what: &str, example: &str) -> Result<&str> {
        if self.arg.is_empty() {
            let why = format!("{} needs {what}", self.kind);
            return Err(Error::invalid(self.named(), why).cure(format!("write, for example, {example}")));
        }
        Ok(&self.arg)
    }

    /// The argument as a size, which must be there.
    pub fn size_arg(&self, example: &str) -> Result<u64> {
        let text = self.required_arg("a size", example)?;
        parse_size(text).map_err(|why| Error::invalid(self.named(), why).cure(SIZE_CURE))
    }

    /// The value of `key` as a size, where it was given.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match parse_size(text) {
            Ok(size) => Ok(Some(size)),
            Err(why) => Err(Error::invalid(self.named(), format!("{key}={text}: {why}")).cure(SIZE_CURE)),
        }
    }

    /// The value of `key` as a whole number, where it was given.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => {
                let why = format!("{key}={text} is not a whole number from 0 to {}", u64::MAX);
                Err(Error::invalid(self.named(), why).cure(format!("write, for example, {key}=100")))
            }
        }
    }

    /// The value of `key` as a probability, from 0 to 1, where it was given.
    pub fn probability(&self, key: &str) -> Result<Option<f64>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) if (0.0..=1.0).contains(&number) => Ok(Some(number)),
            _ => {
                let why = format!("{key}={text} is not a number from 0 to 1");
                Err(Error::invalid(self.named(), why).cure(format!("write, for example, {key}=0.01")))
            }
        }
    }

    /// The value of `key` as yes or no, where it was given.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.choice(key, &[("yes", true), ("no", false)])
    }

    /// The value of `key` out of a few, where it was given.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(Some(*value));
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let why = format!("{key}={text} is not one of {}", names.join(", "));
        Err(Error::invalid(self.named(), why))
    }

    /// How an error names this spec.
    pub fn named(&self) -> String {
        self.noun.named(self)
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Spec> {
        Spec::parse(text, Noun::Spec)
    }
}

impl Spec {
    fn parse(text: &str, noun: Noun) -> Result<Spec> {
        let bad = |why: &str| Error::invalid(noun.named(format_args!("{text:?}")), why);
        if text.is_empty() {
            let example = if noun == Noun::Spec { "ram:1G" } else { "throttle,iops=1000" };
            return Err(bad("it is empty").cure(format!("write, for example, {example}")));
        }
        if text.len() > MAX_SPEC_LEN {
            let why = format!("it is longer than {MAX_SPEC_LEN} bytes");
            return Err(Error::invalid(noun.named("").trim_end(), why));
        }
        if text.contains('\0') {
            return Err(bad("it contains a NUL byte"));
        }
        let mut parts = split_commas(text);
        let head = parts.remove(0);
        let (kind, arg) = match head.split_once(':') {
            Some((kind, arg)) => (kind.to_owned(), arg.to_owned()),
            None => (head, String::new()),
        };
        if !is_name(&kind) && noun == Noun::Filter {
            let cure = "write name,key=value, for example throttle,iops=1000";
            return Err(bad("it does not begin with the name of a filter").cure(cure));
        }
        if !is_name(&kind) {
            return Err(guess_type(text, &kind));
        }
        let mut options: Vec<(String, String)> = Vec::with_capacity(parts.len());
        for part in parts {
            let cure = "keys are written key=value, a comma inside an argument or a value ,,";
            let Some((key, value)) = part.split_once('=') else {
                return Err(bad(&format!("{part:?} is not key=value")).cure(cure));
            };
            if !is_name(key) {
                return Err(bad(&format!("{key:?} is not the name of a key")).cure(cure));
            }
            if options.iter().any(|(name, _)| name == key) {
                return Err(bad(&format!("the key {key} is there twice")).cure("give it once"));
            }
            options.push((key.to_owned(), value.to_owned()));
        }
        Ok(Spec { kind, arg, options, noun })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.arg.is_empty() {
            write!(f, ":{}", self.arg.replace(',', ",,"))?;
        }
        for (key, value) in &self.options {
            write!(f, ",{key}={}", value.replace(',', ",,"))?;
        }
        Ok(())
    }
}

/// Parts between single commas, with every double comma made single. Never empty.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

fn is_name(text: &str) -> bool {
    // Capitals are in no name we know, and let the table say which one was probably meant.
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// The error for text that does not begin with the name of a type, with what was probably meant.
fn guess_type(text: &str, kind: &str) -> Error {
    let error = Error::invalid(format!("bad spec {text:?}"), "it does not begin with a type and a colon");
    if parse_size(kind).is_ok() {
        return error.cure(format!("did you mean ram:{text}?"));
    }
    if kind.contains(['/', '.']) {
        return error.cure(format!("did you mean file:{text}?"));
    }
    error.cure("write type:argument, for example ram:1G or file:/path/to/disk.img")
}

/// What an error about a size advises.
const SIZE_CURE: &str =
    "write a number of bytes, or one with K, M, G or T (powers of 1024): 4096, 64K, 10M, 1G";

/// Bytes of `4096`, `64K`, `10MiB`, `1G`: powers of 1024. The error says what is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("{text:?} is not a size"));
    }
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        "P" | "PIB" => 50,
        "KB" | "MB" | "GB" | "TB" => {
            return Err(format!("{unit} may mean powers of 1000 or of 1024"));
        }
        _ if unit.starts_with('.') => return Err(format!("{text:?} is not a whole number")),
        _ => return Err(format!("{unit:?} is not a unit of size")),
    };
    let too_large = || format!("{text} is larger than any device");
    let number: u64 = number.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).filter(|size| *size <= i64::MAX as u64).ok_or_else(too_large)
}

/// A size for people: in the largest unit that keeps it exact, or with one decimal.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift == 0 {
            continue;
        }
        if bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
        return format!("{:.1}{unit}", bytes as f64 / (1u64 << shift) as f64);
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(text: &str) -> Spec {
        text.parse().unwrap()
    }

    fn error(text: &str) -> String {
        text.parse::<Spec>().unwrap_err().to_string()
    }

    #[test]
    fn the_parts_of_a_spec() {
        let s = spec("file:/a,,b:c=d,size=1G,direct=no");
        assert_eq!((s.kind(), s.arg()), ("file", "/a,b:c=d"));
        assert_eq!(s.get("size"), Some("1G"));
        assert_eq!(s.size("size").unwrap(), Some(1 << 30));
        assert_eq!(s.flag("direct").unwrap(), Some(false));
        assert_eq!(s.get("nothing"), None);
        assert_eq!(spec("null").arg(), "");
        assert_eq!(spec("file:a,,,k=v").arg(), "a,");
    }

    #[test]
    fn errors_say_what_was_probably_meant() {
        assert!(error("/tmp/disk.img").contains("did you mean file:/tmp/disk.img?"));
        assert!(error("1G").contains("did you mean ram:1G?"));
        assert!(error("ram:1G,size").contains("\"size\" is not key=value"));
        assert!(error("ram:1G,").contains("is not key=value"));
        assert!(error("ram:1G,a=1,a=2").contains("twice"));
        assert!(error("").contains("empty"));
        assert!(error(&"a".repeat(100_000)).len() < 200);
        assert!(spec("ram").size_arg("ram:1G").unwrap_err().to_string().contains("ram needs a size"));
        assert!(spec("ram:1G,x=1").flag("x").unwrap_err().to_string().contains("yes, no"));
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 64 << 10),
            ("10m", 10 << 20),
            ("1GiB", 1 << 30),
            ("2T", 2 << 40),
            ("512B", 512),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1GB", "1X", "99999999999999999999", "9000P", "1 G", "１G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(human_size(1 << 30), "1G");
        assert_eq!(human_size(1536 << 20), "1.5G");
        assert_eq!(human_size(512), "512B");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            if let Ok(spec) = text.parse::<Spec>() {
                prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
            }
            let _ = parse_size(&text);
        }

        #[test]
        fn text_that_is_nearly_a_spec_round_trips(text in "[a-z]{1,4}:[a-z,=:/]{0,12}(,[a-z]{1,3}=[a-z,=]{0,6}){0,3}") {
            if let Ok(spec) = text.parse::<Spec>() {
                prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
            }
        }

        #[test]
        fn every_spec_can_be_written_and_read_back(
            kind in "[a-z][a-z0-9-]{0,8}",
            arg in "[^\u{0}]{0,20}",
            options in proptest::collection::btree_map("[a-z][a-z0-9_-]{0,6}", "[^\u{0}]{0,12}", 0..4),
        ) {
            let spec = Spec { kind, arg, options: options.into_iter().collect(), noun: Noun::Spec };
            prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
        }

        #[test]
        fn a_size_for_people_of_a_whole_unit_is_exact(number in 1u64..1023, shift in 0u32..5) {
            let size = number << (shift * 10);
            prop_assert_eq!(parse_size(&human_size(size)).unwrap(), size);
        }
    }
}
