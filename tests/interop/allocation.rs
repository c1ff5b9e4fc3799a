//! Where a disk has data and where holes, as the tools of Debian's packages see it and keep it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::server::{Server, folder, specs};
use crate::tools::{libnbd, refused, tool};

const MIB: u64 = 1 << 20;

/// Offset, length and type of each extent that `nbdinfo --map` prints: 0 is data, 3 a hole of zeros.
fn map(server: &Server, arguments: &[&str]) -> Vec<(u64, u64, u64)> {
    let json = tool("libnbd-bin", "nbdinfo", &[&["--map", "--json"], arguments].concat(), server.folder());
    let extents: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().unwrap();
    let extents = extents.as_array().unwrap().iter();
    extents.map(|one| (number(one, "offset"), number(one, "length"), number(one, "type"))).collect()
}

/// A file of 64 MiB with data from 4 to 6 MiB and from 40 to 44 MiB.
fn sparse_file(path: &Path) -> Vec<u8> {
    let file = fs::File::create(path).unwrap();
    file.set_len(64 * MIB).unwrap();
    let mut all = vec![0; 64 << 20];
    for (start, end) in [(4, 6), (40, 44)] {
        let range = (start << 20) as usize..(end << 20) as usize;
        all[range.clone()].iter_mut().zip(1u64..).for_each(|(byte, n)| *byte = (n % 251) as u8 | 1);
        file.write_all_at(&all[range], start << 20).unwrap();
    }
    all
}

const SPARSE: [(u64, u64, u64); 5] = [
    (0, 4 * MIB, 3),
    (4 * MIB, 2 * MIB, 0),
    (6 * MIB, 34 * MIB, 3),
    (40 * MIB, 4 * MIB, 0),
    (44 * MIB, 20 * MIB, 3),
];

#[test]
fn nbdinfo_says_what_can_be_done_and_what_cannot() {
    let server = Server::start(&["disk=ram:16M", "null=null:16M"]);
    let ask = |what: &str, uri: &str| {
        let run = |program, arguments: &[&str]| {
            let status =
                std::process::Command::new(program).args(arguments).current_dir(server.folder()).status();
            status.expect("nbdinfo is there: apt-get install libnbd-bin").code()
        };
        let [verb, noun] = what.split(' ').collect::<Vec<_>>()[..] else { panic!("{what}") };
        run("nbdinfo", &[verb, noun, uri])
    };
    for what in [
        "--can df",
        "--can structured-reply",
        "--can flush",
        "--can fua",
        "--can trim",
        "--can zero",
        "--can fast-zero",
        "--can cache",
        "--can multi-conn",
        "--can write",
        "--can connect",
    ] {
        assert_eq!(ask(what, server.uri()), Some(0), "{what}");
    }
    for what in ["--is read-only", "--is rotational", "--is tls"] {
        assert_eq!(ask(what, server.uri()), Some(2), "{what}");
    }
    // A disk without contents takes no space, and what it reads as nobody knows.
    let null = server.uri().replace("/disk?", "/null?");
    assert_eq!(map(&server, &[&null]), [(0, 16 * MIB, 1)]);
    let json = tool("libnbd-bin", "nbdinfo", &["--json", "--list", server.uri()], server.folder());
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list["exports"].as_array().unwrap().len(), 2);
    for export in list["exports"].as_array().unwrap() {
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]), "{export}");
        assert_eq!(export["can_df"], true);
    }
    let read_only = Server::start(&["--read-only", "disk=ram:16M"]);
    let status = |what: &[&str]| {
        let arguments = [what, &[read_only.uri()]].concat();
        std::process::Command::new("nbdinfo")
            .args(arguments)
            .current_dir(read_only.folder())
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(status(&["--is", "read-only"]), Some(0));
    assert_eq!((status(&["--can", "write"]), status(&["--can", "zero"])), (Some(2), Some(2)));
}

#[test]
fn nbdinfo_maps_what_is_there() {
    let home = folder();
    let all = sparse_file(&home.path().join("sparse.img"));
    let server =
        Server::start(&[&format!("file=file:{}", home.path().join("sparse.img").display()), "ram=ram:64M"]);
    let [file, ram] = &server.uris[..] else { panic!("{:?}", server.uris) };
    assert_eq!(map(&server, &[file]), SPARSE);
    assert_eq!(map(&server, &[ram]), [(0, 64 * MIB, 3)]);
    let totals = tool("libnbd-bin", "nbdinfo", &["--map", "--totals", file], server.folder());
    assert!(totals.contains("6291456") && totals.contains("60817408"), "{totals}");
    let read = fs::read(home.path().join("sparse.img")).unwrap();
    assert!(read == all, "to ask changes nothing");
}

/// From a sparse file into a disk and out of it into another file: over four connections, the same bytes, and holes
/// stay holes.
#[test]
fn nbdcopy_keeps_holes_both_ways() {
    let home = folder();
    let all = sparse_file(&home.path().join("in.img"));
    for spec in specs(home.path(), "64M") {
        let server = Server::start(&["--queues", "2", &spec]);
        let copy = |from: &str, to: &str| {
            tool("libnbd-bin", "nbdcopy", &["-C", "4", "-R", "64", from, to], server.folder());
        };
        let input = home.path().join("in.img").display().to_string();
        let output = server.folder().join("out.img");
        copy(&input, server.uri());
        assert_eq!(map(&server, &[server.uri()]), SPARSE, "{spec}");
        copy(server.uri(), "out.img");
        assert!(fs::read(&output).unwrap() == all, "{spec}");
        let took = fs::metadata(&output).unwrap().blocks() * 512;
        assert!((6 * MIB..8 * MIB).contains(&took), "the copy takes {took} bytes");
        // From one server to another, without a file between.
        let other = Server::start(&["ram:64M"]);
        let socket = other.socket().display().to_string();
        copy(server.uri(), &format!("nbd+unix:///?socket={socket}"));
        assert_eq!(map(&other, &[other.uri()]), SPARSE);
    }
}

#[test]
fn qemu_img_maps_converts_and_compares_what_is_sparse() {
    let home = folder();
    let all = sparse_file(&home.path().join("in.img"));
    for spec in specs(home.path(), "64M") {
        let server = Server::start(&[&spec]);
        let qemu = |arguments: &[&str]| tool("qemu-utils", "qemu-img", arguments, server.folder());
        let input = home.path().join("in.img").display().to_string();
        qemu(&["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", &input, server.uri()]);
        let json = qemu(&["map", "--output=json", "-f", "raw", server.uri()]);
        let extents: serde_json::Value = serde_json::from_str(&json).unwrap();
        let found: Vec<(u64, u64, u64)> = extents
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                let is_hole = one["zero"].as_bool().unwrap() && !one["data"].as_bool().unwrap();
                (one["start"].as_u64().unwrap(), one["length"].as_u64().unwrap(), u64::from(is_hole) * 3)
            })
            .collect();
        assert_eq!(found, SPARSE, "{spec}");
        assert!(qemu(&["compare", "-f", "raw", "-F", "raw", &input, server.uri()]).contains("identical"));
        qemu(&["convert", "-f", "raw", "-O", "raw", server.uri(), "out.img"]);
        let output = server.folder().join("out.img");
        assert!(fs::read(&output).unwrap() == all);
        assert!(fs::metadata(&output).unwrap().blocks() * 512 < 8 * MIB);
        for more in [&["-w"][..], &["-w", "--flush-interval=100"], &[]] {
            let bench =
                [&["bench", "-f", "raw", "-c", "2000", "-d", "64", "-s", "4096"], more, &[server.uri()]];
            assert!(qemu(&bench.concat()).contains("Run completed"));
        }
    }
}

/// libnbd's own calls for what no tool does: chunks, DF, one extent, the flags of zeroing.
#[test]
fn libnbd_hears_chunks_and_extents() {
    let home = folder();
    for spec in specs(home.path(), "16M") {
        let server = Server::start(&[&spec]);
        let program = r#"
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(given)
assert h.get_structured_replies_negotiated() and h.can_df() and h.can_fast_zero() and h.can_cache()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
M = 1 << 20
h.zero(16 * M, 0)
h.pwrite(b"x" * M, 4 * M)
def chunks(count, offset, flags=0):
    heard = []
    def chunk(data, at, status, error):
        assert error.value == 0
        heard.append((at, len(data), status))
    got = h.pread_structured(count, offset, chunk, flags)
    return bytes(got), sorted(heard)
got, heard = chunks(8 * M, 0)
assert got == bytes(4 * M) + b"x" * M + bytes(3 * M)
holes = sum(length for _, length, status in heard if status == nbd.READ_HOLE)
assert holes == 7 * M, heard
got, heard = chunks(8 * M, 0, nbd.CMD_FLAG_DF)
assert got == bytes(4 * M) + b"x" * M + bytes(3 * M) and heard == [(0, 8 * M, nbd.READ_DATA)], heard
def extents(count, offset, flags=0):
    heard = []
    def extent(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and error.value == 0
        heard.extend(entries)
    h.block_status(count, offset, extent, flags)
    return heard
assert extents(16 * M, 0) == [4 * M, 3, M, 0, 11 * M, 3], extents(16 * M, 0)
assert extents(16 * M, 0, nbd.CMD_FLAG_REQ_ONE) == [4 * M, 3]
h.zero(M, 4 * M, nbd.CMD_FLAG_FAST_ZERO)
assert extents(16 * M, 0) == [16 * M, 3]
h.zero(M, 4 * M, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.cache(16 * M, 0)
assert h.pread(16 * M, 0) == bytes(16 * M)
h.set_strict_mode(0)
fails(errno.EINVAL, h.cache, M, 16 * M)
fails(errno.EINVAL, extents, M, 16 * M)
fails(errno.EINVAL, extents, 0, 0)
fails(errno.EINVAL, chunks, 0, 0)
fails(errno.EINVAL, h.zero, M, 0, 1 << 9)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
assert extents(2 * M, 0) == [2 * M, 3]
h.shutdown()
"#;
        libnbd(program, server.uri(), server.folder());
    }
}

/// Who asks for options in a way of his own: every one before a choice, none of it agreed on twice.
#[test]
fn libnbd_negotiates_step_by_step() {
    let server = Server::start(&["--description", "for tests", "disk=ram:1M", "other=ram:2M"]);
    let program = r#"
h.set_opt_mode(True)
h.connect_unix(given)
names = []
h.opt_list(lambda name, description: names.append((name, description)) and 0)
assert names == [("disk", "for tests"), ("other", "for tests")], names
contexts = []
h.set_export_name("other")
assert h.opt_list_meta_context(lambda name: contexts.append(name) and 0) == 1
assert contexts == ["base:allocation"], contexts
h.set_full_info(True)
h.opt_info()
assert (h.get_size(), h.get_canonical_export_name(), h.get_export_description()) == (2 << 20, "other", "for tests")
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
h.set_export_name("nowhere")
fails(errno.ENOENT, h.opt_go)
h.set_export_name("disk")
h.add_meta_context("base:allocation")
h.add_meta_context("other:context")
h.opt_go()
assert h.get_size() == 1 << 20 and h.can_meta_context("base:allocation") and not h.can_meta_context("other:context")
h.shutdown()
"#;
    libnbd(program, server.socket().to_str().unwrap(), server.folder());
}

/// nbdkit between us and who writes: its filter lets no write through, and fails one of data that are not there already.
#[test]
fn nbdkit_finds_there_what_is_written_again() {
    let home = folder();
    let mut all = sparse_file(&home.path().join("in.img"));
    all[(41 << 20) + 5] ^= 1;
    fs::write(home.path().join("wrong.img"), &all).unwrap();
    for spec in specs(home.path(), "64M") {
        let server = Server::start(&[&spec]);
        let path = |name: &str| home.path().join(name).display().to_string();
        tool("libnbd-bin", "nbdcopy", &[&path("in.img"), server.uri()], server.folder());
        let through = format!("uri={}", server.uri());
        let check = |image: &str| format!("nbdcopy -C 4 '{}' \"$uri\"", path(image));
        let nbdkit = |run: &str| {
            let arguments = ["-U", "-", "--filter=checkwrite", "nbd", &through, "--run", run];
            arguments.map(str::to_string)
        };
        let right = nbdkit(&check("in.img"));
        tool("nbdkit", "nbdkit", &right.each_ref().map(String::as_str), server.folder());
        let wrong = nbdkit(&check("wrong.img"));
        refused("nbdkit", "nbdkit", &wrong.each_ref().map(String::as_str), server.folder());
        // And what it passes on of our holes is what we say.
        let run = "nbdinfo --map \"$uri\" > map.txt";
        tool("nbdkit", "nbdkit", &["-U", "-", "nbd", &through, "--run", run], server.folder());
        let told = fs::read_to_string(server.folder().join("map.txt")).unwrap();
        assert_eq!(told.lines().count(), SPARSE.len(), "{told}");
    }
}

#[test]
fn qemu_io_writes_zeroes_and_discards_in_every_way() {
    let home = folder();
    for spec in specs(home.path(), "64M") {
        let server = Server::start(&[&spec]);
        let steps = [
            "write -P 7 0 16M",
            "write -z 1M 1M",
            "write -z -u 3M 1M",
            "write -z -n 5M 1M",
            "write -z -f 7M 1M",
            "discard 9M 1M",
            "read -P 0 1M 1M",
            "read -P 0 3M 1M",
            "read -P 0 5M 1M",
            "read -P 0 7M 1M",
            "read -P 0 9M 1M",
            "read -P 7 0 1M",
            "read -P 7 2M 1M",
            "read -P 7 4M 1M",
            "read -P 7 6M 1M",
            "read -P 7 8M 1M",
            "read -P 7 10M 6M",
            "aio_write -P 3 1M 8M",
            "aio_flush",
            "read -P 3 1M 8M",
            "map",
        ];
        let arguments: Vec<&str> = ["-f", "raw"]
            .into_iter()
            .chain(steps.iter().flat_map(|step| ["-c", step]))
            .chain([server.uri()])
            .collect();
        let said = tool("qemu-utils", "qemu-io", &arguments, server.folder());
        assert!(!said.contains("failed") && said.contains("wrote 16777216"), "{spec}: {said}");
    }
}
