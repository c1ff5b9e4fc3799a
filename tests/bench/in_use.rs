//! What somebody uses is read and not written.

use super::*;

/// A loop device over a file; let go when dropped.
struct Loop(String);

impl Loop {
    fn new(path: &Path) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(path).output().ok()?;
        output.status.success().then(|| Loop(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A loop device over the file; where there are none, or this is not root, that nothing was tested is said.
fn loop_device(image: &Path) -> Option<Loop> {
    let device = Loop::new(image);
    if device.is_none() {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        // Past the harness, which keeps what a test that passes says.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no loop device (losetup, as root)");
    }
    device
}

fn works(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_device_is_read_while_it_is_mounted_and_not_written() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 16);
    let Some(device) = loop_device(&image) else { return };
    let report = json(0, &[&device.0]);
    assert!(remarks(&report).contains("loop device on"), "{report}");
    assert!(!remarks(&report).contains("mounted"), "{report}");
    let at = folder.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();
    assert!(works("mkfs.ext4", &["-q", "-F", &device.0]) && works("mount", &["-r", &device.0, at]));
    let before = std::fs::read(&image).unwrap();
    let mounted = std::panic::catch_unwind(|| {
        let report = json(0, &[&device.0]);
        assert!(remarks(&report).contains(&format!("in use (mounted at {at}")), "{report}");
        refused(&[&device.0, "--write"], &["in use", &format!("run umount {at} first"), "leave --write out"]);
    });
    assert!(works("umount", &[at]));
    mounted.unwrap();
    assert!(std::fs::read(&image).unwrap() == before, "what is on the disk was changed");
    let report = json(0, &[&device.0, "--write", "--op", "randwrite", "--depth", "4"]);
    assert_eq!(report["loads"][0]["errors"], 0);
    assert!(std::fs::read(&image).unwrap() != before, "nothing was written");
}

/// A program that has the device open is no reason for the kernel to keep a writer out, and is one for us.
#[test]
fn a_device_that_somebody_has_open_is_not_written() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 4);
    let Some(device) = loop_device(&image) else { return };
    let untouched = || std::fs::read(&image).unwrap().iter().all(|&byte| byte == 7);
    let held = std::fs::File::open(&device.0).unwrap();
    refused(&[&device.0, "--write"], &["in use", &own_name(), "leave --write out"]);
    // Nor by another way to the same bytes: as one of several, or as the file below the device.
    let stripe = format!("stripe,with=file:{}", device.0);
    refused(&["ram:4M", "--filter", &stripe, "--write"], &[&device.0, "in use"]);
    drop(held);
    let name = device.0.trim_start_matches("/dev/");
    refused(&[&file_spec(&image), "--write"], &["in use", &format!("held by {name}")]);
    assert!(untouched());
    ends(0, &[&device.0, "--write", "--op", "write", "--seconds", "0.2"]);
    assert!(!untouched());
}

#[test]
fn a_file_that_is_swapped_to_is_not_written() {
    let folder = Folder::new();
    let image = folder.image("swap.img", 1);
    if !works("mkswap", &[image.to_str().unwrap()]) || !works("swapon", &[image.to_str().unwrap()]) {
        let _ = writeln!(std::io::stderr(), "SKIPPED a_file_that_is_swapped_to_is_not_written: no swapon");
        return;
    }
    let refused = std::panic::catch_unwind(|| refused(&[&file_spec(&image), "--write"], &["is swap space"]));
    assert!(works("swapoff", &[image.to_str().unwrap()]));
    refused.unwrap();
}
