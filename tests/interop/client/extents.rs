//! Holes through a chain: what takes space at its source takes space at its end, and nothing else.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::{Foreign, spec};
use crate::server::{Server, folder};
use crate::tools::tool;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

/// Runs as tools print them: offset, length, and what they are; 0 is data, 1 a hole, 2 zeros, 3 a hole of zeros.
type Map = Vec<(u64, u64, u64)>;

/// As libnbd has it.
fn map(uri: &str, folder: &Path) -> Map {
    let json = tool("libnbd-bin", "nbdinfo", &["--map", "--json", uri], folder);
    let extents: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().unwrap();
    let mut map: Map = Vec::new();
    for one in extents.as_array().unwrap() {
        let (offset, len, kind) = (number(one, "offset"), number(one, "length"), number(one, "type"));
        match map.last_mut() {
            Some(last) if last.2 == kind => last.1 += len,
            _ => map.push((offset, len, kind)),
        }
    }
    map
}

/// As QEMU has it.
fn qemu_map(uri: &str, folder: &Path) -> serde_json::Value {
    let json = tool("qemu-utils", "qemu-img", &["map", "--output=json", "-f", "raw", uri], folder);
    let mut extents: serde_json::Value = serde_json::from_str(&json).unwrap();
    // What only a server of QEMU's says beside it.
    for extent in extents.as_array_mut().unwrap() {
        extent
            .as_object_mut()
            .unwrap()
            .retain(|key, _| ["start", "length", "zero", "data"].contains(&key.as_str()));
    }
    extents
}

fn source(folder: &Path) -> String {
    format!("nbd+unix:///?socket={}", folder.join("s").display())
}

/// The map of a source, which is also that of a chain of one and of two behind it.
fn same_through_a_chain(folder: &Path) -> Map {
    let source = source(folder);
    let (expected, by_qemu) = (map(&source, folder), qemu_map(&source, folder));
    let first = Server::start(&[&spec(folder, "")]);
    assert_eq!(map(first.uri(), folder), expected);
    assert_eq!(qemu_map(first.uri(), folder), by_qemu);
    let second = Server::start(&["--queues", "2", first.uri()]);
    assert_eq!(map(second.uri(), folder), expected);
    expected
}

/// A file with data in its second MiB, and in every other block of its fourth.
fn sparse_file(path: &Path) {
    let file = fs::File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&vec![7; MIB as usize], MIB).unwrap();
    for block in (0..MIB).step_by(16 << 10) {
        file.write_all_at(&[7; 8 << 10], 3 * MIB + block).unwrap();
    }
}

#[test]
fn nbdkits_map_is_seen_through_a_chain() {
    let home = folder();
    sparse_file(&home.path().join("disk.img"));
    {
        let _server = Foreign::nbdkit(home.path(), &["file", "disk.img"]);
        let map = same_through_a_chain(home.path());
        assert_eq!(map[..3], [(0, MIB, 3), (MIB, MIB, 0), (2 * MIB, MIB, 3)]);
        assert_eq!(map.len(), 3 + 2 * 64);
    }
    // Every kind of run, with borders inside of blocks; and more of them than one answer has.
    let kinds = ["hole", "zero", "hole,zero", ""];
    for (name, lens) in [("odd", &[1, 999, 4096, 5000, 70_000, 1 << 20][..]), ("many", &[4096; 3000])] {
        let mut offset = 0;
        let list: Vec<String> = lens
            .iter()
            .zip(kinds.iter().cycle())
            .map(|(len, kind)| {
                let line = format!("{offset} {len} {kind}\n");
                offset += len;
                line
            })
            .collect();
        fs::write(home.path().join("list"), list.concat()).unwrap();
        let arguments = ["--filter=extentlist", "null", "32M", "extentlist=list"];
        let _server = Foreign::nbdkit(home.path(), &arguments);
        let map = same_through_a_chain(home.path());
        assert!(map.len() >= lens.len(), "{name}: {map:?}");
    }
}

#[test]
fn qemus_map_is_seen_through_a_chain() {
    let home = folder();
    sparse_file(&home.path().join("disk.img"));
    {
        let _server = Foreign::qemu_nbd(home.path(), &["--discard=unmap", "disk.img"]);
        let map = same_through_a_chain(home.path());
        assert_eq!(map[..3], [(0, MIB, 3), (MIB, MIB, 0), (2 * MIB, MIB, 3)]);
    }
    let qcow2 = ["convert", "-f", "raw", "-O", "qcow2", "disk.img", "disk.qcow2"];
    tool("qemu-utils", "qemu-img", &qcow2, home.path());
    let _server = Foreign::qemu_nbd(home.path(), &["-f", "qcow2", "disk.qcow2"]);
    let map = same_through_a_chain(home.path());
    assert!(map.contains(&(MIB, MIB, 0)), "{map:?}");
}

/// With extended headers, which no other server that is packaged here has.
#[test]
fn our_own_map_is_seen_through_a_chain() {
    let home = folder();
    let image = home.path().join("disk.img");
    sparse_file(&image);
    let file = format!("file:{}", image.display());
    // Longer than 32 bits can say.
    for (source, expected) in [
        (file.as_str(), vec![(0, MIB, 3), (MIB, MIB, 0), (2 * MIB, MIB, 3)]),
        ("null:16T", vec![(0, 16 << 40, 1)]),
    ] {
        let first = Server::start(&[source]);
        let second = Server::start(&[first.uri()]);
        let third = Server::start(&[second.uri()]);
        let expected_map = map(first.uri(), home.path());
        assert_eq!(expected_map[..expected.len()], expected);
        assert_eq!(map(second.uri(), home.path()), expected_map);
        assert_eq!(map(third.uri(), home.path()), expected_map);
        assert_eq!(qemu_map(third.uri(), home.path()), qemu_map(first.uri(), home.path()));
    }
    // What a write through the chain fills, and a copy out of it leaves empty.
    let first = Server::start(&["ram:32M"]);
    let second = Server::start(&[first.uri()]);
    let copy = |from: &str, to: &str| tool("libnbd-bin", "nbdcopy", &[from, to], home.path());
    copy("disk.img", second.uri());
    let of_file = Server::start(&[&file]);
    assert_eq!(map(second.uri(), home.path()), map(of_file.uri(), home.path()));
    copy(second.uri(), "out.img");
    assert!(fs::read(home.path().join("out.img")).unwrap() == fs::read(&image).unwrap());
    let took = fs::metadata(home.path().join("out.img")).unwrap().blocks() * 512;
    assert!(took < 2 * MIB, "the copy takes {took} bytes");
}

#[test]
fn where_nobody_knows_all_is_data() {
    let home = folder();
    sparse_file(&home.path().join("disk.img"));
    let data = vec![(0, SIZE, 0)];
    for arguments in [&["--no-sr", "file", "disk.img"][..], &["--filter=noextents", "file", "disk.img"]] {
        let _server = Foreign::nbdkit(home.path(), arguments);
        let chain = Server::start(&[&spec(home.path(), "")]);
        assert_eq!(map(chain.uri(), home.path()), data);
    }
    // It was known, until the server came back as another.
    let mut server = Foreign::nbdkit(home.path(), &["file", "disk.img"]);
    let chain = Server::start(&[&spec(home.path(), "")]);
    assert_eq!(map(chain.uri(), home.path())[0], (0, MIB, 3));
    server.kill();
    let _server = Foreign::nbdkit(home.path(), &["--no-sr", "file", "disk.img"]);
    assert_eq!(map(chain.uri(), home.path()), data);
    let read = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "read -P 7 1M 1M", chain.uri()])
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(read.status.success(), "{read:?}");
}
