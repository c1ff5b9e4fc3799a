//! The texts in which the kernel says who uses what, and how they are read.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{BlockDevice, Holder};
use crate::port::process;

/// Mounts of the device in a /proc/PID/mountinfo: proc_pid_mountinfo(5).
pub(super) fn mounts(text: &str, device: &BlockDevice) -> Vec<Holder> {
    text.lines().filter_map(|line| mount(line, device)).collect()
}

fn mount(line: &str, device: &BlockDevice) -> Option<Holder> {
    let mut fields = line.split(' ');
    let number = fields.nth(2)?;
    let at = unescape(fields.nth(1)?);
    let at = at.to_string_lossy().into_owned();
    if let Some(index) = device.parts.iter().position(|(_, known)| known == number) {
        let partition = (index > 0).then(|| device.parts[index].0.clone());
        return Some(Holder::Mount { at, partition });
    }
    // Some file systems (btrfs) mount under a number of their own; the source tells then.
    let (_, rest) = line.split_once(" - ")?;
    let source = unescape(rest.split(' ').nth(1)?);
    device.is_at(&source).then_some(Holder::Mount { at, partition: None })
}

/// Swap spaces on the device in /proc/swaps.
pub(super) fn swaps(text: &str, device: &BlockDevice) -> Vec<Holder> {
    swaps_where(text, |path| device.is_at(path))
}

/// Swap spaces in /proc/swaps that lie where `is_it` says.
pub(super) fn swaps_where(text: &str, is_it: impl Fn(&Path) -> bool) -> Vec<Holder> {
    let paths = text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    let ours = paths.map(unescape).filter(|path| is_it(path));
    ours.map(|path| Holder::Swap { path: path.display().to_string() }).collect()
}

/// Loop devices over the device.
pub(super) fn loops(device: &BlockDevice) -> Vec<Holder> {
    loops_where(|path| device.is_at(path))
}

/// Loop devices over what `is_it` says.
pub(super) fn loops_where(is_it: impl Fn(&Path) -> bool) -> Vec<Holder> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        // The newline is the kernel's; other blanks may be the name's.
        if is_it(Path::new(backing.strip_suffix('\n').unwrap_or(&backing))) {
            found.push(Holder::Device { name: entry.file_name().to_string_lossy().into_owned() });
        }
    }
    found
}

/// Processes that have the device open, without those for which `skip` holds. Those of other
/// users are seen by root only.
pub(super) fn openers(device: &BlockDevice, skip: impl Fn(i32) -> bool) -> Vec<Holder> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if !skip(pid) && has_open(pid, device) {
            let name = process::name(pid).unwrap_or_else(|| "?".into());
            found.push(Holder::Process { pid, name });
        }
    }
    found
}

fn has_open(pid: i32, device: &BlockDevice) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    // The link's text only: to follow it could wait for a file system that does not answer.
    descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| device.has_path(&target))
}

/// Undoes `\040` and its kin.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> BlockDevice {
        BlockDevice {
            parts: vec![("ublkb0".into(), "259:1".into()), ("ublkb0p1".into(), "259:2".into())],
            paths: vec!["/dev/ublkb0".into(), "/dev/ublkb0p1".into()],
        }
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source() {
        let text = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 259:1 / /mnt/with\\040space rw shared:1 - ext4 /dev/ublkb0 rw
31 22 259:2 / /mnt/p1 rw - xfs /dev/ublkb0p1 rw
32 22 0:44 /sub /mnt/btrfs rw - btrfs /dev/ublkb0 rw
33 22 259:11 / /other rw - ext4 /dev/ublkb00 rw
34 broken
";
        let found = mounts(text, &device());
        let at = |at: &str, partition: Option<&str>| Holder::Mount {
            at: at.into(),
            partition: partition.map(str::to_owned),
        };
        assert_eq!(
            found,
            [at("/mnt/with space", None), at("/mnt/p1", Some("ublkb0p1")), at("/mnt/btrfs", None)]
        );
    }

    #[test]
    fn swap_is_found() {
        let text = "Filename\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/ublkb0p1  partition\t1048572\t0\t-2\n/swap file 1 0 -3\n";
        assert_eq!(swaps(text, &device()), [Holder::Swap { path: "/dev/ublkb0p1".into() }]);
        assert_eq!(
            swaps_where(text, |path| path == Path::new("/swap")),
            [Holder::Swap { path: "/swap".into() }]
        );
        assert_eq!(swaps_where("", |_| true), []);
    }

    #[test]
    fn octal_escapes() {
        for (escaped, plain) in [
            ("a\\040b", "a b"),
            ("\\134", "\\"),
            ("\\", "\\"),
            ("\\04", "\\04"),
            ("\\999", "\\999"),
            ("é\\011", "é\t"),
        ] {
            assert_eq!(unescape(escaped), Path::new(plain), "{escaped}");
        }
    }
}
