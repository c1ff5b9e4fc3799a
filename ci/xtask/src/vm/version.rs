//! Debian's order of versions, and which package names match a pattern.

use std::cmp::Ordering;

/// Compare two upstream versions as dpkg does: letters before other signs,
/// `~` before everything, runs of digits as numbers.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        while a.first().is_some_and(|c| !c.is_ascii_digit()) || b.first().is_some_and(|c| !c.is_ascii_digit())
        {
            let order = weight(a).cmp(&weight(b));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (a.get(1..).unwrap_or(&[]), b.get(1..).unwrap_or(&[]));
        }
        let order = take_number(&mut a).cmp(&take_number(&mut b));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

fn weight(text: &[u8]) -> i32 {
    match text.first() {
        None => 0,
        Some(c) if c.is_ascii_digit() => 0,
        Some(b'~') => -1,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

fn take_number(text: &mut &[u8]) -> u64 {
    let digits = text.iter().take_while(|c| c.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    *text = rest;
    number.iter().fold(0, |n: u64, c| n.saturating_mul(10).saturating_add(u64::from(c - b'0')))
}

/// What stands for `*` in `pattern` when `name` matches it and that part looks
/// like a version (begins with a digit).
pub fn matched<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    let (before, after) = pattern.split_once('*')?;
    let version = name.strip_prefix(before)?.strip_suffix(after)?;
    version.starts_with(|c: char| c.is_ascii_digit()).then_some(version)
}

/// A range of versions: the first belongs to it, the second does not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Range(pub String, pub String);

impl Range {
    /// Whether `version` lies in it.
    pub fn contains(&self, version: &str) -> bool {
        compare(&self.0, version) != Ordering::Greater && compare(version, &self.1) == Ordering::Less
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let ordered = [
            "6.1.0-9",
            "6.1.0-47",
            "6.1.0-50",
            "6.12.94+deb13",
            "6.12.107+deb13",
            "6.19.14+deb13",
            "7.2.9+deb14",
            "7.2.12+deb14",
            "7.3~rc6",
            "7.3~rc7",
            "7.3",
            "7.3.1",
            "10.0",
        ];
        for pair in ordered.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("7.2", "7.2"), Ordering::Equal);
        assert_eq!(compare("7.02", "7.2"), Ordering::Equal);
    }

    #[test]
    fn the_star_matches_a_version_only() {
        let pattern = "linux-image-*-cloud-amd64";
        assert_eq!(matched(pattern, "linux-image-6.1.0-50-cloud-amd64"), Some("6.1.0-50"));
        assert_eq!(matched(pattern, "linux-image-6.1.0-50-cloud-amd64-dbg"), None);
        assert_eq!(matched(pattern, "linux-image-cloud-amd64"), None);
        assert_eq!(matched("linux-binary-*-amd64", "linux-binary-unsigned-7.2-amd64"), None);
        assert_eq!(matched("no-star", "no-star"), None);
    }

    #[test]
    fn a_range_has_its_beginning_and_not_its_end() {
        let range = Range("6.16".into(), "6.20".into());
        for inside in ["6.16", "6.16.3+deb13", "6.19.14+deb13"] {
            assert!(range.contains(inside), "{inside}");
        }
        for outside in ["6.12.94+deb13", "6.20", "6.20.1", "7.0.4+deb13"] {
            assert!(!range.contains(outside), "{outside}");
        }
        assert!(Range("7.3~".into(), "7.4~".into()).contains("7.3~rc7"));
    }
}
