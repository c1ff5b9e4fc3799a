//! Names of addresses, of the kernel's code or of a program's.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::run;

/// Names of addresses.
#[derive(Debug, Default)]
pub struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// `ADDRESS NAME` lines, the address in hexadecimal digits; what else stands in a line belongs to the name.
    pub fn add(&mut self, line: &str) {
        let mut words = line.splitn(2, ' ');
        if let (Some(address), Some(name)) = (words.next(), words.next())
            && let Ok(address) = u64::from_str_radix(address, 16)
        {
            self.0.entry(address).or_insert_with(|| name.to_owned());
        }
    }

    /// The name of the code at this address.
    pub fn of(&self, address: u64) -> Option<&str> {
        self.0.range(..=address).next_back().map(|(_, name)| name.as_str())
    }

    /// Whether the address lies among those that have names.
    pub fn covers(&self, address: u64) -> bool {
        let (Some((first, _)), Some((last, _))) = (self.0.first_key_value(), self.0.last_key_value()) else {
            return false;
        };
        (*first..=*last).contains(&address)
    }

    /// Those of a program's code.
    pub fn of_program(binary: &Path) -> Result<Symbols> {
        let mut symbols = Symbols::default();
        for line in run::output(run::command("nm").args(["-C", "--defined-only"]).arg(binary))?.lines() {
            let mut words = line.splitn(3, ' ');
            if let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) =
                (words.next(), words.next(), words.next())
            {
                symbols.add(&format!("{address} {name}"));
            }
        }
        Ok(symbols)
    }
}
