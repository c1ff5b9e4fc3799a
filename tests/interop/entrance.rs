//! The other ways in: standard input and output, sockets that were passed on, the mode of a Unix socket, vsock.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::raw::{Client, DISC, READ, WRITE, go, request};
use crate::server::{Server, command, folder};
use crate::tools::{libnbd, tool};
use crate::waiting::wait_at_most;

const PROGRAM: &str = env!("CARGO_BIN_EXE_blockhaus");

fn image(folder: &Path) -> Vec<u8> {
    let image: Vec<u8> = (0..4u32 << 20).map(|at| (at >> 9) as u8 ^ at as u8).collect();
    fs::write(folder.join("in.img"), &image).unwrap();
    image
}

#[test]
fn libnbd_starts_it_at_standard_input_and_output_and_it_ends_with_its_client() {
    let home = folder();
    let program = r#"
for round in range(3):
    h = nbd.NBD()
    h.connect_command([given, "serve", "--stdio", "disk=file:disk.img,size=1M"])
    assert h.get_size() == 1 << 20
    if round > 0:
        assert h.pread(512, 4096) == bytes([round - 1]) * 512
    h.pwrite(bytes([round]) * 512, 4096)
    h.shutdown()
    del h
"#;
    assert_eq!(libnbd(program, PROGRAM, home.path()), "");
}

#[test]
fn nbdkit_starts_it_and_passes_on_a_socket() {
    let home = folder();
    let program = format!("command={PROGRAM}");
    let arguments = [
        "-U",
        "-",
        "nbd",
        &program,
        "arg=serve",
        "arg=file:disk.img,size=1M",
        "--run",
        "nbdinfo --size $uri",
    ];
    assert_eq!(tool("nbdkit", "nbdkit", &arguments, home.path()).trim(), (1 << 20).to_string());
}

#[test]
fn two_pipes_are_a_client_too() {
    let home = folder();
    for early in [false, true] {
        let mut child = Command::new(PROGRAM)
            .args(["serve", "--stdio", "file:disk.img,size=1M"])
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = child.stdin.take().unwrap();
        let mut hears = child.stdout.take().unwrap();
        let mut greeting = [0; 18];
        hears.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        let mut all = vec![0, 0, 0, 3];
        all.extend(go(""));
        all.extend(request(WRITE, 1, 0, 300_000));
        all.extend(vec![5; 300_000]);
        all.extend(request(READ, 2, 0, 1 << 20));
        if !early {
            all.extend(request(DISC, 3, 0, 0));
        }
        says.write_all(&all).unwrap();
        if early {
            // The end of what it says is the end as well.
            drop(says);
        }
        let mut heard = Vec::new();
        hears.read_to_end(&mut heard).unwrap();
        // The read's reply is the last or the one before, whole.
        assert!(heard.len() > (1 << 20) + 32, "{} bytes", heard.len());
        assert!(ends(&mut child).success());
        assert!(fs::read(home.path().join("disk.img")).unwrap()[..300_000] == vec![5; 300_000]);
    }
}

fn ends(child: &mut Child) -> std::process::ExitStatus {
    wait_at_most(10, "its end", || child.try_wait().unwrap().is_some());
    child.wait().unwrap()
}

#[test]
fn who_comes_by_inetd_has_a_server_of_its_own() {
    let home = folder();
    let socket = home.path().join("s");
    let mut inetd = Command::new("systemd-socket-activate")
        .args(["--accept", "--inetd", "-l", socket.to_str().unwrap()])
        .args([PROGRAM, "serve", "--stdio", "ram:1M"])
        .current_dir(home.path())
        .stderr(Stdio::null())
        .spawn()
        .expect("apt-get install systemd");
    let mut clients: Vec<Client> = (0..2).map(|_| Client::transmitting(&when_there(&socket))).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.ask(READ, 0, 512).unwrap(), [0; 512]);
        client.write(0, &[number as u8 + 1; 512]).unwrap();
    }
    let _ = inetd.kill();
    let _ = inetd.wait();
}

/// What starts a server for a connection, in a network of its own that has an address which is not this machine's alone.
const ACCEPTS: &str = r#"
import os, socket, subprocess, sys
program, family, listen, connect, way, *more = sys.argv[1:]
listener = socket.create_server((listen, 0), family=getattr(socket, family), dualstack_ipv6=listen == "::")
client = socket.create_connection((connect, listener.getsockname()[1]))
served, _ = listener.accept()
if way == "stdio":
    command, here = [program, "serve", "--stdio", *more, "ram:1M"], served
else:
    os.dup2(served.fileno(), 3)
    os.environ["LISTEN_FDS"] = "1"
    command = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", program, "serve", *more, "ram:1M"]
    here = subprocess.DEVNULL
server = subprocess.Popen(command, stdin=here, stdout=here, stderr=subprocess.PIPE, pass_fds=[3] if way != "stdio" else [])
served.close()
if way != "stdio":
    os.close(3)
client.settimeout(10)
try:
    print(client.recv(8))
except ConnectionError:
    print(b"")
client.close()
print(server.stderr.read().decode())
"#;

/// `Accept=yes` of a systemd socket, and inetd: somebody else has accepted the client, wherever it came from.
#[test]
fn a_client_of_another_machine_that_is_there_already_is_served_in_the_clear_only_if_somebody_insists() {
    let home = folder();
    let setup = "ip link set lo up && ip address add 192.0.2.1/32 dev lo && exec /usr/bin/python3 -c \"$@\"";
    for way in ["stdio", "passed on"] {
        for (family, listen, connect, more, is_served) in [
            ("AF_INET", "192.0.2.1", "192.0.2.1", &[][..], false),
            ("AF_INET6", "::", "192.0.2.1", &[], false),
            ("AF_INET", "192.0.2.1", "192.0.2.1", &["--insecure-listen"], true),
            ("AF_INET", "0.0.0.0", "127.0.0.1", &[], true),
            ("AF_INET6", "::", "127.0.0.1", &[], true),
        ] {
            let fixed = ["-rn", "sh", "-c", setup, "sh", ACCEPTS, PROGRAM, family, listen, connect, way];
            let said = tool("iproute2 python3", "unshare", &[&fixed, more].concat(), home.path());
            let what = format!("{way}, {listen} by {connect}, {more:?}: {said}");
            assert_eq!(said.starts_with("b'NBDMAGIC'"), is_served, "{what}");
            assert!(is_served || said.contains("refusing to serve"), "{what}");
        }
    }
}

fn when_there(socket: &Path) -> std::path::PathBuf {
    wait_at_most(10, &socket.display().to_string(), || socket.exists());
    socket.to_path_buf()
}

#[test]
fn brackets_of_nbdcopy_and_nbdinfo_start_it_and_standard_output_is_theirs() {
    let home = folder();
    let image = image(home.path());
    let disk = "file:disk.img,size=4M";
    let copy = |arguments: &[&str]| tool("libnbd-bin", "nbdcopy", arguments, home.path());
    copy(&["--", "in.img", "[", PROGRAM, "serve", disk, "]"]);
    copy(&["--", "[", PROGRAM, "serve", disk, "]", "out.img"]);
    assert!(fs::read(home.path().join("out.img")).unwrap() == image);
    let line = format!("nbdcopy -- [ {PROGRAM} serve {disk} ] - | cmp - in.img");
    tool("libnbd-bin", "sh", &["-c", &line], home.path());
    let size =
        tool("libnbd-bin", "nbdinfo", &["--size", "--", "[", PROGRAM, "serve", disk, "]"], home.path());
    assert_eq!(size.trim(), (4 << 20).to_string());
}

/// A server below `systemd-socket-activate`, killed when it is dropped.
struct Activated(Child);

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn activated(home: &Path, sockets: &[&str], names: &str, arguments: &[&str]) -> Activated {
    let mut command = Command::new("systemd-socket-activate");
    for socket in sockets {
        command.args(["-l", home.join(socket).to_str().unwrap()]);
    }
    command.arg(format!("--fdname={names}")).arg(PROGRAM).args(arguments).current_dir(home);
    command.env("BLOCKHAUS_RUN_DIR", home.join("run")).stdin(Stdio::null());
    let log = fs::File::create(home.join("log")).unwrap();
    Activated(command.stdout(Stdio::piped()).stderr(log).spawn().expect("apt-get install systemd"))
}

#[test]
fn sockets_that_were_passed_on_are_listened_to_and_left_where_they_are() {
    let home = folder();
    let mut server = activated(home.path(), &["a", "b"], "one:two", &["serve", "ram:1M"]);
    let mut first = Client::transmitting(&when_there(&home.path().join("a")));
    first.write(0, &[9; 512]).unwrap();
    let mut second = Client::transmitting(&home.path().join("b"));
    assert_eq!(second.ask(READ, 0, 512).unwrap(), [9; 512]);
    let status = Command::new("kill").arg(server.0.id().to_string()).status().unwrap();
    assert!(status.success() && first.is_closed() && ends(&mut server.0).success());
    let mut printed = String::new();
    server.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "", "standard output is somebody else's");
    assert!(home.path().join("a").exists(), "the name is systemd's");
}

#[test]
fn a_socket_is_chosen_by_its_name_beside_one_of_our_own() {
    let home = folder();
    let arguments = ["serve", "--listen", "fd:two", "--listen", "unix:own", "ram:1M"];
    let mut server = activated(home.path(), &["a", "b"], "one:two", &arguments);
    // What is waited for before anything is started.
    let woken = UnixStream::connect(when_there(&home.path().join("a"))).unwrap();
    let mut first = Client::transmitting(&home.path().join("b"));
    first.write(0, &[9; 512]).unwrap();
    assert_eq!(Client::transmitting(&home.path().join("own")).ask(READ, 0, 512).unwrap(), [9; 512]);
    let mut printed = BufReader::new(server.0.stdout.take().unwrap());
    let mut lines = [String::new(), String::new()];
    for line in &mut lines {
        printed.read_line(line).unwrap();
    }
    assert!(lines[0].trim().ends_with("/b") && lines[1].trim().ends_with("/own"), "{lines:?}");
    drop(woken);
    let home = folder();
    let mut server = activated(home.path(), &["a"], "one", &["serve", "--listen", "fd:other", "ram:1M"]);
    let _woken = UnixStream::connect(when_there(&home.path().join("a"))).unwrap();
    assert!(!ends(&mut server.0).success());
    let said = fs::read_to_string(home.path().join("log")).unwrap();
    assert!(said.contains("cannot listen on fd:other") && said.contains("called one"), "{said}");
}

#[test]
fn up_listens_to_a_socket_that_was_passed_on() {
    let home = tempfile::tempdir().unwrap();
    let file = "[[export]]\nname = \"\"\nspec = \"ram:1M\"\n[nbd]\nlisten = [\"fd:nbd\"]\n";
    fs::write(home.path().join("up.toml"), file).unwrap();
    let _server = activated(home.path(), &["a"], "nbd", &["up", "up.toml"]);
    let mut client = Client::transmitting(&when_there(&home.path().join("a")));
    assert_eq!(client.ask(READ, 0, 512).unwrap(), [0; 512]);
}

#[test]
fn nowhere_to_listen_is_an_error_and_so_is_a_terminal() {
    let home = folder();
    let output = command(home.path(), &["ram:1M"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("nowhere to listen"), "{said}");
    // Descriptors that are for another process are none of ours.
    let output =
        command(home.path(), &["ram:1M"]).env("LISTEN_PID", "1").env("LISTEN_FDS", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("nowhere to listen"), "{said}");
    let output = Command::new("script")
        .args(["-qec", &format!("{PROGRAM} serve --stdio ram:1M"), "/dev/null"])
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("apt-get install bsdutils");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("terminal"), "{said}");
}

#[test]
fn the_mode_of_a_socket_is_the_one_that_was_asked_for() {
    for (more, mode) in
        [(&[][..], 0o600), (&["--unix-mode", "0660"], 0o660), (&["--unix-mode", "666"], 0o666)]
    {
        let server = Server::start(&[more, &["ram:1M"]].concat());
        let metadata = fs::metadata(server.socket()).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{more:?}");
    }
    let home = folder();
    for wrong in ["0066", "rw", "10000"] {
        let output =
            command(home.path(), &["--listen", "unix:s", "--unix-mode", wrong, "ram:1M"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("--unix-mode 0660"), "{wrong}: {said}");
    }
}

/// Whether a machine has vsock depends on its kernel, and whether one can reach oneself by it on vsock_loopback; that it
/// works is tested in the virtual machine.
#[test]
fn virtual_machines_come_in_by_vsock_where_the_kernel_has_it() {
    let home = folder();
    let output = command(home.path(), &["--listen", "vsock:10809", "ram:1M"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--insecure-listen"), "{said}");
    if !Path::new("/dev/vsock").exists() {
        let arguments = ["--listen", "vsock:10809", "--insecure-listen", "ram:1M"];
        let output = command(home.path(), &arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("the kernel must have vsock"), "{said}");
        return;
    }
    let server = Server::started(home, &["--listen", "vsock:40809", "--insecure-listen", "ram:1M"]);
    assert_eq!(server.uri(), "nbd+vsock://1:40809/");
    let second = command(server.folder(), &["--listen", "vsock:40809", "--insecure-listen", "ram:1M"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("somebody else listens there"), "{said}");
}
