//! A table of the file, read key by key: every error names the file, the line and the cure.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::limits::Outside;
use super::nearest::suggestion;
use crate::error::{Error, Result};

/// The whole file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'t> {
    /// Its name, for errors.
    pub(super) name: &'t str,
    /// What is in it.
    pub(super) text: &'t str,
}

/// A value and where it stands: bytes from the start of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// One `[table]` or `[[table]]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'t> {
    pub(super) document: Document<'t>,
    /// As a person writes it: `[[device]]`.
    pub(super) title: &'static str,
    pub(super) at: usize,
    pub(super) table: &'t DeTable<'t>,
}

impl Document<'_> {
    /// The line of a place, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// The error for something at a place.
    pub(super) fn error(&self, at: usize, why: impl Into<String>) -> Error {
        Error::invalid(format!("{}, line {}", self.name, self.line(at)), why)
    }
}

impl<'t> Section<'t> {
    /// Passes a table all of whose keys are in `known`; the first that is not is an error.
    pub(super) fn only(&self, known: &[&str]) -> Result<()> {
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
        let name: String = key.get_ref().chars().take(100).collect();
        let why = match self.title {
            "" => format!("there is no table {name:?}"),
            title => format!("{title} has no key {name:?}"),
        };
        let list = if self.title.is_empty() { "the tables are" } else { "its keys are" };
        Err(self.document.error(key.span().start, why).cure(suggestion(list, &name, known)))
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str, example: &str) -> Error {
        let why = format!("{key} is a {} and not {wanted}", value.get_ref().type_str());
        self.document.error(value.span().start, why).cure(format!("write {key} = {example}"))
    }

    /// A text.
    pub(super) fn text(&self, key: &str, example: &str) -> Result<Option<Placed<&'t str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.get_ref().as_str();
        let text = text.ok_or_else(|| self.wrong(key, value, "text in quotes", example))?;
        Ok(Some(Placed { value: text, at: value.span().start }))
    }

    /// A text that must be there.
    pub(super) fn required_text(&self, key: &str, example: &str) -> Result<Placed<&'t str>> {
        self.text(key, example)?.ok_or_else(|| {
            let why = format!("this {} has no {key}", self.title);
            self.document.error(self.at, why).cure(format!("add {key} = {example}"))
        })
    }

    /// A list of texts; none where the key is not there.
    pub(super) fn texts(&self, key: &str, example: &str) -> Result<Vec<Placed<&'t str>>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let wrong = |value| self.wrong(key, value, "a list of texts", example);
        let list = value.get_ref().as_array().ok_or_else(|| wrong(value))?;
        let text = |value: &'t Spanned<DeValue<'t>>| {
            let text = value.get_ref().as_str().ok_or_else(|| wrong(value))?;
            Ok(Placed { value: text, at: value.span().start })
        };
        list.iter().map(text).collect()
    }

    /// A number from 0 up.
    pub(super) fn number(&self, key: &str, example: &str) -> Result<Option<Placed<u64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.get_ref().as_integer();
        let number = number.ok_or_else(|| self.wrong(key, value, "a whole number", example))?;
        let at = value.span().start;
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(Some(Placed { value: number, at })),
            Err(_) => {
                let number: String = number.as_str().chars().take(40).collect();
                let why = format!("{key} cannot be {number}");
                Err(self.document.error(at, why).cure(format!("write, for example, {key} = {example}")))
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let flag = value.get_ref().as_bool();
        flag.map(Some).ok_or_else(|| self.wrong(key, value, "true or false", "true"))
    }

    /// The error for a value that no disk can have.
    pub(super) fn outside(&self, key: &str, at: usize, outside: Outside) -> Error {
        let why = format!("{}: {}", outside.what, outside.why);
        let cure = match outside.instead.is_empty() {
            true => format!("leave {key} out, or write another"),
            false => {
                let values = outside.instead.iter().map(|value| format!("{key} = {value}"));
                format!("write {}", values.collect::<Vec<_>>().join(" or "))
            }
        };
        self.document.error(at, why).cure(cure)
    }
}
