//! Which suites there are, and which of them a run is to do.

use anyhow::{Result, bail};

use crate::vm::recipe;

/// The suites that run on this machine, in their order.
pub const HOST: &[(&str, &str)] = &[
    ("fmt", "every file is as rustfmt writes it"),
    ("clippy", "no lint has anything to say"),
    ("host", "the tests that need no other kernel"),
    ("sim", "thousands of seeds of a simulated world, and planted bugs that they must find"),
    ("fuzz", "a fuzzer's minute with each decoder"),
    ("doc", "the documentation builds without a warning"),
    ("licenses", "every dependency's licence is on the list"),
];

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Suites of [`HOST`].
    pub host: Vec<&'static str>,
    /// Kernels to boot.
    pub kernels: Vec<String>,
}

impl Plan {
    /// All, or those that `only` names. A filter of test names leaves out the
    /// checks, which have no tests to choose from.
    pub fn new(only: &[String], filtered: bool) -> Result<Self> {
        Self::among(&recipe::kernel_names()?, only, filtered)
    }

    /// Whether anything is to be run on this kernel.
    pub fn has_kernel(&self, name: &str) -> bool {
        self.kernels.iter().any(|kernel| kernel == name)
    }

    fn among(kernels: &[String], only: &[String], filtered: bool) -> Result<Self> {
        let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
        let known = |name: &String| {
            name == "vm"
                || HOST.iter().any(|(host, _)| host == name)
                || kernels.iter().any(|k| suite(k) == *name)
        };
        if let Some(unknown) = only.iter().find(|name| !known(name)) {
            let all = HOST.iter().map(|(name, _)| (*name).to_string()).chain(["vm".to_string()]);
            let all: Vec<_> = all.chain(kernels.iter().map(|kernel| suite(kernel))).collect();
            bail!("there is no suite {unknown}; there are: {}", all.join(", "));
        }
        let host = HOST.iter().map(|(name, _)| *name);
        let host = host.filter(|name| wanted(name) && (!filtered || ["host", "sim"].contains(name)));
        let kernels = kernels.iter().filter(|kernel| wanted("vm") || wanted(&suite(kernel)));
        Ok(Self { host: host.collect(), kernels: kernels.cloned().collect() })
    }
}

/// The name of a kernel's suite.
pub fn suite(kernel: &str) -> String {
    format!("vm:{kernel}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(only: &[&str], filtered: bool) -> Result<Plan> {
        let kernels = ["6.1", "7.2"].map(str::to_string);
        let only: Vec<String> = only.iter().map(ToString::to_string).collect();
        Plan::among(&kernels, &only, filtered)
    }

    #[test]
    fn all_is_all() {
        let all = plan(&[], false).unwrap();
        assert_eq!((all.host.len(), all.kernels.len()), (HOST.len(), 2));
    }

    #[test]
    fn only_takes_suites_and_single_kernels() {
        assert_eq!(
            plan(&["host", "vm:7.2"], false).unwrap(),
            Plan { host: vec!["host"], kernels: vec!["7.2".into()] }
        );
        assert_eq!(plan(&["vm"], false).unwrap().kernels.len(), 2);
        let error = plan(&["vm:2.4"], false).unwrap_err().to_string();
        assert!(error.contains("vm:2.4") && error.contains("vm:7.2") && error.contains("clippy"), "{error}");
    }

    #[test]
    fn a_filter_leaves_out_what_has_no_tests() {
        assert_eq!(plan(&[], true).unwrap().host, ["host", "sim"]);
    }
}
