//! The clients that people use.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::server::{Server, folder, specs};

/// Runs a tool of a package; it must succeed, and what it prints is returned.
pub fn tool(package: &str, program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new("timeout").arg("120").arg(program).args(arguments).current_dir(folder).output();
    let output = output.expect("timeout(1) is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(127), "there is no {program}: apt-get install {package}");
    assert!(output.status.success(), "{program} {arguments:?}: {}: {text}{said}", output.status);
    text
}

/// As [`tool`], for one that must fail; returns what it says.
pub fn refused(package: &str, program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new("timeout").arg("120").arg(program).args(arguments).current_dir(folder).output();
    let output = output.expect("timeout(1) is there");
    assert_ne!(output.status.code(), Some(127), "there is no {program}: apt-get install {package}");
    assert!(!output.status.success(), "{program} {arguments:?} worked");
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// What programs by libnbd begin with.
const LIBNBD: &str = r#"
import errno, nbd, sys
given = sys.argv[1]
h = nbd.NBD()
def fails(number, call, *arguments, **more):
    try:
        call(*arguments, **more)
    except nbd.Error as error:
        assert error.errnum == number, (error, number)
    else:
        raise SystemExit("it worked: %r" % (arguments,))
"#;

/// Runs a program in Python by libnbd, which is `given` a text; returns what it prints.
pub fn libnbd(program: &str, given: &str, folder: &Path) -> String {
    // Debian's module belongs to Debian's interpreter.
    tool("python3-libnbd", "/usr/bin/python3", &["-c", &[LIBNBD, program].concat(), given], folder)
}

fn nbdinfo(server: &Server, arguments: &[&str]) -> String {
    tool("libnbd-bin", "nbdinfo", arguments, server.folder())
}

#[test]
fn nbdinfo_reads_what_we_say() {
    for spec in specs(Path::new("."), "64M") {
        let mut server = Server::start(&[&format!("disk={spec}"), "other=ram:1M"]);
        let info: serde_json::Value =
            serde_json::from_str(&nbdinfo(&server, &["--json", server.uri()])).unwrap();
        let export = &info["exports"][0];
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(export["export-name"], "disk");
        assert_eq!(export["description"], serde_json::Value::Null, "strangers hear what it is made of");
        assert_eq!(export["export-size"], 64 << 20);
        for (what, is) in [
            ("is_read_only", false),
            ("can_flush", true),
            ("can_fua", true),
            ("can_multi_conn", true),
            ("can_trim", true),
            ("can_zero", true),
            ("can_cache", true),
            ("can_df", true),
            ("can_fast_zero", true),
        ] {
            assert_eq!(export[what], is, "{what} of {spec}");
        }
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        let list: serde_json::Value =
            serde_json::from_str(&nbdinfo(&server, &["--json", "--list", server.uri()])).unwrap();
        let names: Vec<_> = list["exports"].as_array().unwrap().iter().map(|e| &e["export-name"]).collect();
        assert_eq!(names, ["disk", "other"]);
        assert_eq!(nbdinfo(&server, &["--size", server.uri()]).trim(), (64 << 20).to_string());
        // The first is the default.
        let default = server.uri().replace("/disk?", "/?");
        assert_eq!(nbdinfo(&server, &["--size", &default]).trim(), (64 << 20).to_string());
        let unknown = server.uri().replace("/disk?", "/nowhere?");
        let said = refused("libnbd-bin", "nbdinfo", &[&unknown], server.folder());
        assert!(said.contains("No such file or directory for export: nowhere"), "{said}");
        assert!(server.is_alive());
    }
}

#[test]
fn nbdcopy_in_and_out_over_four_connections_gives_the_same() {
    for queues in ["1", "2"] {
        let home = folder();
        let image: Vec<u8> = (0..12_000_000u64 / 8)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
            .chain(std::iter::repeat_n(0, 4_777_216))
            .collect();
        fs::write(home.path().join("in.img"), &image).unwrap();
        for spec in specs(home.path(), "16M") {
            let arguments = ["--listen", "unix:s", "--listen", "tcp:127.0.0.1:0", "--queues", queues, &spec];
            let inner = tempfile::tempdir_in(home.path()).unwrap();
            let server = Server::started(inner, &arguments);
            let copy = |from: &str, to: &str| {
                let arguments = ["-C", "4", "-R", "64", from, to];
                tool("libnbd-bin", "nbdcopy", &arguments, home.path());
            };
            let [unix, tcp] = &server.uris[..] else { panic!("{:?}", server.uris) };
            for (into, out_of) in [(unix, tcp), (tcp, unix)] {
                assert_eq!(image.len() % 512, 0);
                copy("in.img", into);
                copy(out_of, "out.img");
                assert!(
                    fs::read(home.path().join("out.img")).unwrap()[..image.len()] == image[..],
                    "{spec} by {into} and {out_of}"
                );
            }
        }
    }
}

#[test]
fn qemu_io_reads_back_what_it_wrote_discarded_and_zeroed() {
    for spec in specs(Path::new("."), "64M") {
        let server = Server::start(&[&spec]);
        let steps = [
            "write -P 7 0 64k",
            "read -P 7 0 64k",
            "read -P 0 64k 64k",
            "write -P 9 1M 8M",
            "read -P 9 1M 8M",
            "discard 0 64k",
            "read -P 0 0 64k",
            "write -z 1M 1M",
            "read -P 0 1M 1M",
            "write -z -u 2M 1M",
            "read -P 0 2M 1M",
            "read -P 9 3M 6M",
            "write -f -P 3 30M 32M",
            "read -P 3 30M 32M",
            "flush",
            "read -P 9 3M 6M",
            "write -P 5 67104768 4096",
            "read -P 5 67104768 4096",
        ];
        let arguments: Vec<&str> = ["-f", "raw"]
            .into_iter()
            .chain(steps.iter().flat_map(|step| ["-c", step]))
            .chain([server.uri()])
            .collect();
        let said = tool("qemu-utils", "qemu-io", &arguments, server.folder());
        assert!(!said.contains("failed") && said.contains("wrote 33554432"), "{spec}: {said}");
        // The pattern check itself must be able to fail.
        let wrong = refused(
            "qemu-utils",
            "qemu-io",
            &["-f", "raw", "-c", "read -P 1 3M 4k", server.uri()],
            server.folder(),
        );
        assert!(wrong.contains("Pattern verification failed"), "{wrong}");
    }
}

#[test]
fn qemu_img_converts_and_compares() {
    let server = Server::start(&["ram:8M"]);
    let image: Vec<u8> = (0..8u32 << 20).map(|n| (n / 1000) as u8).collect();
    fs::write(server.folder().join("in.img"), image).unwrap();
    let qemu = |arguments: &[&str]| tool("qemu-utils", "qemu-img", arguments, server.folder());
    qemu(&["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", "in.img", server.uri()]);
    let same = qemu(&["compare", "-f", "raw", "-F", "raw", "in.img", server.uri()]);
    assert!(same.contains("identical"), "{same}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    for spec in specs(Path::new("."), "128M") {
        let server = Server::start(&["--queues", "2", &format!("disk={spec}")]);
        for (mode, sizes) in [("randwrite", "4k-256k"), ("randrw", "4k-4k"), ("write", "1M-1M")] {
            let uri = format!("--uri={}", server.uri());
            let (mode_word, sizes_word) = (format!("--rw={mode}"), format!("--bsrange={sizes}"));
            let arguments = [
                "--name=interop",
                "--ioengine=nbd",
                &uri,
                &mode_word,
                &sizes_word,
                "--size=24M",
                "--offset_increment=24M",
                "--numjobs=4",
                "--iodepth=32",
                "--verify=crc32c",
                "--verify_state_save=0",
                "--group_reporting",
            ];
            let said = tool("fio", "fio", &arguments, server.folder());
            assert!(said.contains("err= 0") && !said.contains("verify:"), "{spec} {mode}: {said}");
        }
    }
}

/// Four connections on two queues, none of whose writes is a whole block of the disk: neighbours in one
/// block must not lose what the other wrote.
#[test]
fn clients_of_sectors_share_the_blocks_of_a_disk_of_pages() {
    for spec in specs(Path::new("."), "64M") {
        let spec = format!("disk={spec}");
        let server = Server::start(&["--queues", "2", "--filter", "blocksize,size=4096", &spec]);
        let info: serde_json::Value =
            serde_json::from_str(&nbdinfo(&server, &["--json", server.uri()])).unwrap();
        assert_eq!(info["exports"][0]["block_size_minimum"], 1);
        let uri = format!("--uri={}", server.uri());
        let mut arguments =
            vec!["--name=global", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=512", "--iodepth=16"];
        // One writes the sectors 0, 4, 8 …, the next 1, 5, 9 …, so that each block has two writers or more.
        arguments.extend(["--verify=crc32c", "--verify_state_save=0", "--size=2M", "--zonemode=strided"]);
        arguments.extend(["--zonesize=512", "--zonerange=2k", "--zoneskip=1536"]);
        let names = ["--name=a", "--name=b", "--name=c", "--name=d"];
        let offsets = ["--offset=0", "--offset=512", "--offset=1024", "--offset=1536"];
        for (name, offset) in names.into_iter().zip(offsets) {
            arguments.extend([name, offset]);
        }
        let said = tool("fio", "fio", &arguments, server.folder());
        assert_eq!(said.matches("err= 0").count(), 4, "{spec}: {said}");
    }
}

#[test]
fn a_read_only_export_is_one() {
    let server = Server::start(&["--read-only", "ram:1M"]);
    let info: serde_json::Value = serde_json::from_str(&nbdinfo(&server, &["--json", server.uri()])).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    assert_eq!(info["exports"][0]["can_trim"], false);
    let said =
        refused("qemu-utils", "qemu-io", &["-f", "raw", "-c", "write 0 4k", server.uri()], server.folder());
    assert!(said.contains("Permission denied") || said.contains("read-only"), "{said}");
}

/// libnbd without its own checks sends what no friendly client would.
#[test]
fn libnbd_without_manners_gets_errors_and_goes_on() {
    let server = Server::start(&["--block-size", "512", "ram:1M"]);
    let program = r#"
h.connect_uri(given)
h.set_strict_mode(0)
fails(errno.EINVAL, h.pread, 512, 1 << 20)
fails(errno.EINVAL, h.pread, 512, (1 << 63) - 512)
fails(errno.EINVAL, h.pread, 100, 0)
fails(errno.EINVAL, h.pread, 512, 7)
fails(errno.ENOSPC, h.pwrite, b"x" * 1024, (1 << 20) - 512)
fails(errno.EINVAL, h.pwrite, b"x" * 100, 0)
fails(errno.ENOSPC, h.zero, 1024, (1 << 20) - 512)
fails(errno.EINVAL, h.trim, 1024, (1 << 20) - 512)
fails(errno.EINVAL, h.cache, 1024, (1 << 20) - 512)
h.cache(512, 0)
fails(errno.EINVAL, h.pread, 0, 0)
h.zero(512, 0, flags=nbd.CMD_FLAG_FAST_ZERO)
h.pwrite(b"y" * 512, 512, flags=nbd.CMD_FLAG_FUA)
h.trim(512, 0, flags=nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(512, 512) == b"y" * 512
h.shutdown()
"#;
    libnbd(program, server.uri(), server.folder());
}

/// Whose last bytes are no block, and whose middle is none either.
#[test]
fn an_odd_sized_file_is_served_to_its_last_byte() {
    let home = folder();
    let contents: Vec<u8> = (0..1_000_003u32).map(|n| (n >> 7) as u8 ^ n as u8).collect();
    std::fs::write(home.path().join("odd.img"), &contents).unwrap();
    let server = Server::start(&[&format!("file:{}", home.path().join("odd.img").display())]);
    let info = tool("libnbd-bin", "nbdinfo", &["--size", server.uri()], server.folder());
    assert_eq!(info.trim(), "1000003");
    tool("libnbd-bin", "nbdcopy", &["--connections=4", server.uri(), "copy.img"], server.folder());
    assert!(std::fs::read(server.folder().join("copy.img")).unwrap() == contents);
    let script = ["-f", "raw", "-c", "write -P 7 999999 4", "-c", "read -P 7 999999 4", "-c", "flush"];
    tool("qemu-utils", "qemu-io", &[&script[..], &[server.uri()]].concat(), server.folder());
    let written = std::fs::read(home.path().join("odd.img")).unwrap();
    assert!(written[..999_999] == contents[..999_999] && written[999_999..] == [7; 4]);
}
