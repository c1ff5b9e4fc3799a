//! Servers that people use.

use std::fs;
use std::path::Path;
use std::process::Command;

use blockhaus::io::{Capabilities, Errno, Op};

use super::verified::{Verified, works};
use super::{Foreign, disk, image, open, spec};
use crate::played::Request;
use crate::server::{Server, folder};

const SIZE: u64 = 8 << 20;

/// Requests at random, all of them read back, at depths 1 and 16; then what the server has, where that is a file.
fn exercise(spec: &str, file: Option<&Path>) {
    for depth in [1, 16] {
        let mut disk = disk(spec, depth);
        let mut verified = Verified::new(&disk, u64::from(depth));
        if depth == 16 {
            let zeroes = vec![0; 64 << 10];
            for offset in (0..disk.stack.geometry().size).step_by(64 << 10) {
                assert_eq!(disk.call(Request::write(offset, zeroes.clone())).0, Ok(()));
            }
        }
        verified.rounds(&mut disk, 40, 2 * usize::from(depth));
        verified.check(&mut disk);
        disk.close();
        if let Some(file) = file {
            verified.check_bytes(&fs::read(file).unwrap());
        }
    }
}

fn notes(spec: &str) -> String {
    let stack = open(spec).unwrap();
    let notes = stack.notes().join("\n");
    stack.close().unwrap();
    notes
}

#[test]
fn nbdkit_memory_and_file() {
    let home = folder();
    let path = image(home.path(), SIZE);
    for arguments in [
        &["memory", "8M"][..],
        &["file", "disk.img"],
        &["--filter=fua", "file", "disk.img", "fuamode=emulate"],
    ] {
        let file = arguments.contains(&"disk.img").then_some(path.as_path());
        for (keys, connections) in [("connections=1", "1 connection,"), ("", "4 connections,")] {
            fs::write(&path, vec![0; SIZE as usize]).unwrap();
            let _server = Foreign::nbdkit(home.path(), arguments);
            exercise(&spec(home.path(), keys), file);
            let notes = notes(&spec(home.path(), keys));
            assert!(notes.contains("structured replies") && notes.contains(connections), "{notes}");
        }
    }
}

#[test]
fn nbdkit_with_filters_that_make_it_difficult() {
    let home = folder();
    image(home.path(), SIZE);
    for arguments in [
        &["--filter=delay", "memory", "8M", "delay-read=2ms", "delay-write=1ms"][..],
        &[
            "--filter=blocksize-policy",
            "memory",
            "8M",
            "blocksize-minimum=4k",
            "blocksize-maximum=64k",
            "blocksize-error-policy=error",
        ],
        &[
            "--filter=blocksize-policy",
            "memory",
            "8M",
            "blocksize-minimum=64k",
            "blocksize-preferred=64k",
            "blocksize-maximum=1M",
            "blocksize-error-policy=error",
        ],
        // No structured replies, no other way to find the export than its name.
        &["--no-sr", "memory", "8M"],
        &["--mask-handshake=0", "memory", "8M"],
        &["--mask-handshake=2", "memory", "8M"],
        &["--filter=nozero", "--filter=multi-conn", "memory", "8M", "multi-conn-mode=disable"],
    ] {
        let _server = Foreign::nbdkit(home.path(), arguments);
        works(&spec(home.path(), ""));
    }
}

#[test]
fn a_server_with_large_blocks_is_asked_for_nothing_smaller() {
    let home = folder();
    let policy =
        ["--filter=blocksize-policy", "memory", "8M", "blocksize-minimum=4k", "blocksize-error-policy=error"];
    let _server = Foreign::nbdkit(home.path(), &policy);
    let stack = open(&spec(home.path(), "")).unwrap();
    assert_eq!(stack.geometry().logical_block_size, 4096);
    // The disk's own choke point, and not the server.
    let mut disk = crate::played::Disk::open(stack, 1, 4);
    assert_eq!(disk.call(Request::new(Op::Read, 512, 512)).0, Err(Errno::EINVAL));
    disk.close();
    // A chain shows it in bytes all the same.
    let chain = Server::start(&[&spec(home.path(), "")]);
    let steps = ["write -P 7 100 5000", "read -P 7 100 5000", "read -P 0 0 100"];
    let arguments = steps.iter().flat_map(|step| ["-c", step]);
    let output =
        Command::new("qemu-io").args(["-f", "raw"]).args(arguments).arg(chain.uri()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn errors_of_the_server_are_errors_of_the_disk() {
    let home = folder();
    let error = |what: &str| format!("error{what}");
    for (arguments, op, expected) in [
        (vec!["error-pread=ENOSPC".to_string(), "error-pread-rate=100%".into()], Op::Read, Errno::ENOSPC),
        (vec!["error-pwrite=EIO".into(), "error-pwrite-rate=1".into()], Op::Write, Errno::EIO),
        (vec![error("=EPERM"), error("-rate=100%")], Op::WriteZeroes, Errno::EPERM),
    ] {
        let mut all = vec!["--filter=error", "memory", "8M"];
        all.extend(arguments.iter().map(String::as_str));
        let _server = Foreign::nbdkit(home.path(), &all);
        let mut disk = disk(&spec(home.path(), ""), 4);
        for _ in 0..3 {
            let request = match op {
                Op::Write => Request::write(0, vec![1; 4096]),
                _ => Request::new(op, 0, 4096),
            };
            assert_eq!(disk.call(request).0, Err(expected), "{arguments:?}");
        }
        disk.close();
    }
}

#[test]
fn a_read_only_export_is_a_read_only_disk() {
    let home = folder();
    let _server = Foreign::nbdkit(home.path(), &["-r", "memory", "8M"]);
    let stack = open(&spec(home.path(), "")).unwrap();
    let changing = Capabilities::WRITE | Capabilities::DISCARD | Capabilities::WRITE_ZEROES;
    assert!(!stack.capabilities().intersects(changing));
    let mut disk = crate::played::Disk::open(stack, 1, 4);
    assert_eq!(disk.call(Request::write(0, vec![1; 512])).0, Err(Errno::EROFS));
    assert_eq!(disk.call(Request::new(Op::Read, 0, 512)), (Ok(()), vec![0; 512]));
    disk.close();
}

#[test]
fn exports_by_name_and_sizes_that_are_not_whole_blocks() {
    let home = folder();
    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", home.path().join("s").display());
    {
        let _server = Foreign::nbdkit(
            home.path(),
            &["--filter=exportname", "memory", "1M", "exportname=a b", "exportname-strict=true"],
        );
        assert_eq!(open(&uri("a%20b")).unwrap().geometry().size, 1 << 20);
        let said = open(&uri("nowhere")).err().unwrap().to_string();
        assert!(said.contains("no export of this name") && said.contains("nbdinfo"), "{said}");
    }
    let _server = Foreign::nbdkit(home.path(), &["memory", "1000001"]);
    let stack = open(&uri("")).unwrap();
    assert_eq!(stack.geometry().size, 1_000_001 / 512 * 512);
    let notes = stack.notes().join("\n");
    assert!(notes.contains("65 bytes at the end"), "{notes}");
    drop(stack);
    let _server = Foreign::nbdkit(home.path(), &["memory", "100"]);
    let said = open(&uri("")).err().unwrap().to_string();
    assert!(said.contains("less than a block"), "{said}");
}

#[test]
fn qemu_nbd() {
    let home = folder();
    let path = image(home.path(), SIZE);
    let _server = Foreign::qemu_nbd(home.path(), &["--discard=unmap", "disk.img"]);
    exercise(&spec(home.path(), ""), Some(&path));
}

/// A server that has gone into the background, by the file with its number; ended when this is dropped.
struct Daemon(std::path::PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(&self.0) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}

#[test]
fn nbd_server() {
    let home = folder();
    let path = image(home.path(), SIZE);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "[generic]\n\tlistenaddr = 127.0.0.1\n\tport = {port}\n\tallowlist = true\n\
         [disk]\n\texportname = {}\n\tflush = true\n\tfua = true\n\ttrim = true\n",
        path.display()
    );
    fs::write(home.path().join("config"), config).unwrap();
    // In the foreground it would serve one connection and end.
    let (config, pid) = (home.path().join("config"), home.path().join("pid"));
    let started = Command::new("nbd-server").arg("-C").arg(config).arg("-p").arg(&pid).status();
    assert!(started.expect("there is no nbd-server: apt-get install nbd-server").success());
    let _server = Daemon(pid);
    let spec = format!("nbd://127.0.0.1:{port}/disk");
    // It does not say when it listens.
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    exercise(&spec, Some(&path));
}

#[test]
fn a_chain_of_two_of_ours_and_tools_at_its_end() {
    let home = folder();
    let image: Vec<u8> =
        (0..SIZE / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).collect();
    fs::write(home.path().join("in.img"), &image).unwrap();
    for queues in ["1", "2"] {
        let first = Server::start(&["--queues", queues, "ram:8M"]);
        let second = Server::start(&["--queues", queues, first.uri()]);
        let third = Server::start(&[&format!("end={},connections=2", second.uri())]);
        for arguments in [["in.img", third.uri()], [third.uri(), "out.img"]] {
            let status = Command::new("nbdcopy").args(arguments).current_dir(home.path()).status().unwrap();
            assert!(status.success(), "{arguments:?}");
        }
        assert!(fs::read(home.path().join("out.img")).unwrap() == image);
        exercise_from(&image, third.uri());
        for server in [third, second, first] {
            server.terminate();
            let (status, said) = server.ended();
            assert!(status.success(), "{said}");
        }
    }
}

/// A disk of these contents, by what it reads.
fn exercise_from(image: &[u8], spec: &str) {
    let mut disk = disk(spec, 8);
    let (result, data) = disk.call(Request::new(Op::Read, 1 << 20, 128 << 10));
    assert!(result.is_ok() && data == image[1 << 20..(1 << 20) + (128 << 10)]);
    disk.close();
}

#[test]
fn bench_measures_an_export() {
    let home = folder();
    let _server = Foreign::nbdkit(home.path(), &["memory", "8M"]);
    let output = Command::new(env!("CARGO_BIN_EXE_blockhaus"))
        .args(["bench", "--seconds", "1", "--json", &spec(home.path(), "")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said.to_string().contains("iops"), "{said}");
}

#[test]
fn what_cannot_be_reached_says_why_and_what_to_do() {
    let home = folder();
    let socket = home.path().join("s");
    let uri = format!("?socket={}", socket.display());
    let failed = |spec: &str| open(spec).err().unwrap_or_else(|| panic!("{spec} was opened")).to_string();
    for (spec, parts) in [
        (format!("nbd+unix:///{uri}"), ["cannot connect", "No such file"]),
        ("nbd://127.0.0.1:1/".into(), ["cannot connect", "nobody listens"]),
        ("nbd:".into(), ["bad spec", "needs an address"]),
        ("nbd:host".into(), ["bad spec", "://"]),
        ("nbd+tcp://host/".into(), ["bad spec", "the schemes are"]),
        ("nbd://h/,connections=17".into(), ["bad spec", "from 1 to 16"]),
        ("nbd://h/,connection=1".into(), ["no key", "did you mean connections?"]),
        ("nbd://h/,answer_s=0".into(), ["bad spec", "from 1"]),
    ] {
        let said = failed(&spec);
        assert!(parts.iter().all(|part| said.contains(part)), "{spec}: {said}");
    }
    let _server = Foreign::nbdkit(home.path(), &["memory", "8M"]);
    let said = failed(&format!("nbds+unix:///{uri}"));
    assert!(said.contains("nbd instead of nbds"), "{said}");
    // Not a server of NBD at all.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let web = std::thread::spawn(move || {
        use std::io::Write;
        listener.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let said = failed(&format!("nbd://127.0.0.1:{port}/"));
    assert!(said.contains("does not greet"), "{said}");
    web.join().unwrap();
}
