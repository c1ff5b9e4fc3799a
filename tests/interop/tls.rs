//! TLS: against libnbd, qemu and nbdkit in both directions, and against those who would get round it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blockhaus::tls::ClientConfig;

use crate::certificates::{Authority, NOW, all_well};
use crate::raw::{Client, FLUSH, READ, STARTTLS, go, option, request};
use crate::server::{Server, folder};
use crate::tools::{refused, tool};
use crate::waiting::{wait_at_most, wait_until};

/// NBD_REP_*.
const ACK: u32 = 1;
const INVALID: u32 = 1 << 31 | 3;
const TLS_REQUIRED: u32 = 1 << 31 | 5;

/// A server of one disk with certificates in `pki` and `more` on its command line.
fn served(more: &[&str]) -> Server {
    let home = folder();
    all_well(&home.path().join("pki"));
    served_in(home, more)
}

fn served_in(home: tempfile::TempDir, more: &[&str]) -> Server {
    let mut arguments =
        vec!["--listen", "tcp:127.0.0.1:0", "--listen", "unix:s", "--tls-certificates", "pki"];
    arguments.extend(more);
    arguments.push("ram:16M");
    Server::started(home, &arguments)
}

fn port(server: &Server) -> u16 {
    let (_, port) = server.uri().trim_end_matches('/').rsplit_once(':').expect("a port");
    port.parse().unwrap()
}

/// What a client of libnbd is given, with the certificates in `pki` below the server's folder.
fn uri(server: &Server, scheme: &str, pki: &str) -> String {
    let folder = server.folder().join(pki);
    format!("{scheme}://localhost:{}/?tls-certificates={}", port(server), folder.display())
}

fn config(server: &Server, pki: &str) -> ClientConfig {
    ClientConfig::read(Some(&server.folder().join(pki))).unwrap()
}

/// In the clear, with its flags sent.
fn plain(server: &Server) -> Client {
    let mut client = Client::connect(&server.socket());
    client.send(&[0, 0, 0, 3]);
    client
}

fn transmitting(server: &Server) -> Client {
    let mut client = plain(server).encrypted(&config(server, "pki"), "localhost").unwrap();
    client.goes_with("");
    client
}

fn others_are_served(server: &mut Server) {
    let began = Instant::now();
    let mut other = transmitting(server);
    other.write(4096, &[0xa5; 4096]).unwrap();
    assert_eq!(other.ask(READ, 4096, 4096).unwrap(), [0xa5; 4096]);
    other.ask(FLUSH, 0, 0).unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "others waited {:?}", began.elapsed());
    assert!(server.is_alive());
}

fn image(folder: &Path, len: usize) -> Vec<u8> {
    let image: Vec<u8> = (0..len).map(|at| (at >> 9) as u8 ^ at as u8).collect();
    std::fs::write(folder.join("in.img"), &image).unwrap();
    image
}

#[test]
fn libnbd_comes_in_and_gets_what_it_wrote_over_four_connections() {
    let server = served(&["--tls", "required", "--tls-verify-peer"]);
    assert!(server.uris[0].starts_with("nbds://127.0.0.1:") && server.uris[1].starts_with("nbds+unix://"));
    let there = uri(&server, "nbds", "pki");
    let info = tool("libnbd-bin", "nbdinfo", &["--json", &there], server.folder());
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["TLS"], &info["exports"][0]["export-size"]), (&true.into(), &(16 << 20).into()));
    let image = image(server.folder(), 16 << 20);
    tool("libnbd-bin", "nbdcopy", &["-C", "4", "in.img", &there], server.folder());
    let by_unix = format!("{}&tls-certificates={}", server.uris[1], server.folder().join("pki").display());
    tool("libnbd-bin", "nbdcopy", &["-C", "4", &by_unix, "out.img"], server.folder());
    assert!(std::fs::read(server.folder().join("out.img")).unwrap() == image);
}

#[test]
fn libnbd_refuses_a_server_that_is_another() {
    let home = folder();
    let pki = home.path().join("pki");
    let authority = all_well(&pki);
    authority.certify(&pki, "server", &["elsewhere.example"], NOW);
    Authority::new("another CA").is_trusted_in(&home.path().join("other"));
    let server = served_in(home, &["--tls", "required"]);
    for trusted in ["pki", "other"] {
        let there = uri(&server, "nbds", trusted);
        let said = refused("libnbd-bin", "nbdinfo", &[&there], server.folder());
        assert!(said.contains("certificate"), "{trusted}: {said}");
    }
    // The same server is taken for what it is.
    let mut client = plain(&server).encrypted(&config(&server, "pki"), "elsewhere.example").unwrap();
    client.goes_with("");
    let error = plain(&server).encrypted(&config(&server, "pki"), "localhost").err().unwrap().to_string();
    assert!(error.contains("not valid for name"), "{error}");
}

#[test]
fn a_client_needs_a_certificate_where_one_is_demanded() {
    let home = folder();
    let pki = home.path().join("pki");
    let authority = all_well(&pki);
    authority.is_trusted_in(&home.path().join("none"));
    for (name, years) in [("expired", 2020..2021), ("well", NOW), ("revoked", NOW)] {
        authority.is_trusted_in(&home.path().join(name));
        let number = authority.certify(&home.path().join(name), "client", &["c"], years);
        if name == "revoked" {
            authority.revoke(&pki, number);
        }
    }
    authority.is_trusted_in(&home.path().join("stranger"));
    Authority::new("another CA").certify(&home.path().join("stranger"), "client", &["c"], NOW);
    let mut server = served_in(home, &["--tls", "required", "--tls-verify-peer"]);
    for name in ["none", "expired", "stranger", "revoked"] {
        refused("libnbd-bin", "nbdinfo", &[&uri(&server, "nbds", name)], server.folder());
        let client = plain(&server).encrypted(&config(&server, name), "localhost");
        // By TLS 1.3 it hears only behind its own handshake that it is not wanted.
        if let Ok(mut client) = client {
            let _ = client.stream.write_all(&go(""));
            assert!(client.is_closed(), "{name}");
        }
    }
    tool("libnbd-bin", "nbdinfo", &["--size", &uri(&server, "nbds", "well")], server.folder());
    others_are_served(&mut server);
    server.terminate();
    let (_, said) = server.ended();
    assert!(said.contains("did not come in"), "{said}");
}

#[test]
fn where_tls_is_required_who_does_not_ask_for_it_hears_nothing_but_that() {
    let mut server = served(&["--tls", "required"]);
    let said = refused("libnbd-bin", "nbdinfo", &[&uri(&server, "nbd", "pki")], server.folder());
    assert!(said.contains("TLS"), "{said}");
    let mut client = plain(&server);
    for number in (3..=12).filter(|number| *number != STARTTLS).chain([0, 99, u32::MAX]) {
        for data in [&[][..], &go("")[16..], &[0; 9000]] {
            client.send(&option(number, data));
            assert_eq!(client.option_replies(), [TLS_REQUIRED], "option {number}, {} bytes", data.len());
        }
    }
    client.send(&option(2, &[]));
    assert_eq!(client.option_replies(), [ACK]);
    assert!(client.is_closed());
    let mut client = plain(&server);
    client.send(&option(1, b""));
    assert!(client.is_closed(), "the old way in");
    // Requests without a handshake are nothing at all.
    let mut client = plain(&server);
    client.send(&request(READ, 1, 0, 512));
    assert!(client.is_closed());
    others_are_served(&mut server);
}

#[test]
fn where_tls_is_offered_both_come_in() {
    let mut server = served(&["--tls", "on"]);
    assert!(server.uri().starts_with("nbd://"));
    for scheme in ["nbd", "nbds"] {
        tool("libnbd-bin", "nbdinfo", &["--size", &uri(&server, scheme, "pki")], server.folder());
    }
    Client::transmitting(&server.socket());
    others_are_served(&mut server);
}

#[test]
fn what_was_put_in_before_tls_does_not_count_behind_it() {
    let mut server = served(&["--tls", "on"]);
    // In one piece with STARTTLS: not even looked at.
    for behind in [option(3, &[]), go(""), vec![0x16, 3, 1, 0, 5], vec![0]] {
        let mut client = plain(&server);
        client.send(&[option(STARTTLS, &[]), behind].concat());
        assert!(client.is_closed());
    }
    // Behind its acknowledgement, and no TLS.
    let mut client = plain(&server);
    client.send(&option(STARTTLS, &[]));
    assert_eq!(client.option_replies(), [ACK]);
    client.send(&go(""));
    let mut heard = Vec::new();
    let _ = client.stream.read_to_end(&mut heard);
    assert!(heard.len() < 20 && !heard.starts_with(&0x0003_e889_0455_65a9u64.to_be_bytes()), "{heard:?}");
    // Negotiated in the clear, perhaps by somebody on the way: forgotten.
    for number in [8, 11] {
        let mut client = plain(&server);
        client.send(&option(number, &[]));
        client.option_replies();
        let mut client = client.encrypted(&config(&server, "pki"), "localhost").unwrap();
        client.goes_with("");
        assert_eq!(client.ask(READ, 0, 512).unwrap(), [0; 512], "a simple reply");
    }
    // Once is enough.
    let mut client = plain(&server).encrypted(&config(&server, "pki"), "localhost").unwrap();
    client.send(&option(STARTTLS, &[]));
    assert_eq!(client.option_replies(), [INVALID]);
    client.goes_with("");
    others_are_served(&mut server);
}

/// A client that knows nothing newer than TLS 1.1 (or 1.2, by its number in the protocol, 3), as it begins.
fn hello(version: u8) -> Vec<u8> {
    let mut hello = vec![3, version];
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0, 8, 0xc0, 0x2b, 0xc0, 0x13, 0xc0, 0x09, 0x00, 0x2f]);
    hello.extend([1, 0]);
    // Groups, formats of points, signatures.
    let extensions =
        [&[0, 10, 0, 4, 0, 2, 0, 23][..], &[0, 11, 0, 2, 1, 0], &[0, 13, 0, 4, 0, 2, 4, 3]].concat();
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((hello.len() as u16).to_be_bytes());
    message.extend(hello);
    let mut record = vec![0x16, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[test]
fn tls_1_1_is_not_spoken() {
    let mut server = served(&["--tls", "required"]);
    let answer = |version| {
        let mut client = plain(&server);
        client.send(&option(STARTTLS, &[]));
        assert_eq!(client.option_replies(), [ACK]);
        client.send(&hello(version));
        (client.receive(7), client)
    };
    // By 1.2 the same client gets an answer: a message of the handshake.
    assert_eq!(answer(3).0[0], 0x16);
    // An alert, fatal: protocol_version.
    let (alert, mut client) = answer(2);
    assert_eq!((alert[0], &alert[5..]), (0x15, &[2, 70][..]), "{alert:?}");
    assert!(client.is_closed());
    others_are_served(&mut server);
}

#[test]
fn handshakes_of_tls_that_do_not_end_are_ended_and_hold_up_nobody() {
    let mut server = served(&["--tls", "required"]);
    let begun = Instant::now();
    let mut half_open: Vec<Client> = (0..10)
        .map(|number| {
            let mut client = plain(&server);
            client.send(&option(STARTTLS, &[]));
            assert_eq!(client.option_replies(), [ACK]);
            // Some of a record, or none of it.
            client.send(&hello(2)[..number * 5]);
            client
        })
        .collect();
    others_are_served(&mut server);
    // One that sends a byte now and then has no more time than the others.
    let mut slow = half_open.remove(9);
    let drips = std::thread::spawn(move || {
        while slow.stream.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    for client in &mut half_open {
        let mut heard = Vec::new();
        let _ = client.stream.read_to_end(&mut heard);
    }
    let took = begun.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&took), "{took:?}");
    drips.join().unwrap();
    // Many at once push out the oldest, and leave no thread behind.
    let flood: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = plain(&server);
            client.send(&option(STARTTLS, &[]));
            client
        })
        .collect();
    others_are_served(&mut server);
    drop(flood);
    wait_at_most(5, "the end of the threads of TLS", || threads(&server, "tls") == 0);
    others_are_served(&mut server);
}

/// Where there are few places, handshakes that do not go on do not keep them.
#[test]
fn who_only_knocks_does_not_keep_out_who_comes_in() {
    let mut server = served(&["--tls", "required", "--max-connections", "3"]);
    let knocking: Vec<Client> = (0..6)
        .map(|_| {
            let mut client = Client { stream: UnixStream::connect(server.socket()).unwrap() };
            client.send(&[0, 0, 0, 3]);
            client.send(&option(STARTTLS, &[]));
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    others_are_served(&mut server);
    drop(knocking);
}

/// Who is pushed out takes along what carried it under TLS, whether it stays, does not listen, or both: else strangers
/// could have any number of threads.
#[test]
fn who_is_pushed_out_leaves_no_thread_behind() {
    let home = folder();
    all_well(&home.path().join("pki"));
    // So that one LIST is answered with much.
    let exports: Vec<String> = (0..3).map(|n| format!("{}{n}=ram:1M", "n".repeat(4000))).collect();
    let mut arguments = vec!["--tls", "on", "--tls-certificates", "pki", "--max-connections", "4", "ram:1M"];
    arguments.extend(exports.iter().map(String::as_str));
    let mut server = Server::start_in(home, &arguments);
    let config = config(&server, "pki");
    let mut pushed_out = Vec::new();
    for number in 0..40 {
        let mut client = plain(&server).encrypted(&config, "localhost").unwrap();
        if number % 2 == 0 {
            client.send(&option(3, &[]).repeat(100));
        }
        pushed_out.push(client);
        let threads = threads(&server, "tls");
        assert!(threads <= 4, "{threads} threads carry connections, of which there are to be 4");
    }
    others_are_served(&mut server);
    // Nor does one who has said all, and takes nothing of what it is told, keep its place where others come.
    drop(pushed_out);
    let begun = Instant::now();
    let deaf: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = plain(&server).encrypted(&config, "localhost").unwrap();
            client.send(&option(3, &[]).repeat(60));
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(threads(&server, "tls") <= 4);
            client
        })
        .collect();
    others_are_served(&mut server);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    drop(deaf);
}

/// How many threads of this name it has.
fn threads(server: &Server, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|found| found.trim() == name).count()
}

#[test]
fn who_does_not_listen_under_tls_holds_up_nobody_and_gets_all_in_the_end() {
    let mut server = served(&["--tls", "required"]);
    let mut deaf = transmitting(&server);
    // Less than half of the slots that there are: who takes all of them is another matter.
    let reads: Vec<u8> = (0..50).flat_map(|n| request(READ, n, 0, 256 << 10)).collect();
    deaf.send(&reads);
    others_are_served(&mut server);
    deaf.hears_reads(50, 256 << 10);
    // So it does when the server ends.
    deaf.send(&reads);
    deaf.receive(100);
    server.terminate();
    let mut rest = Vec::new();
    deaf.stream.read_to_end(&mut rest).unwrap();
    assert!((rest.len() + 100).is_multiple_of((256 << 10) + 16), "{} bytes", rest.len());
    let (status, said) = server.ended();
    assert!(status.success() && !said.contains("cutting"), "{status}: {said}");
}

#[test]
fn certificates_that_cannot_be_used_and_what_makes_no_sense_are_said_at_the_start() {
    let home = folder();
    all_well(&home.path().join("pki"));
    std::fs::create_dir(home.path().join("empty")).unwrap();
    for (arguments, part) in [
        (&["--tls", "required"][..], "--tls-certificates FOLDER"),
        (&["--tls-certificates", "pki"], "TLS is off"),
        (&["--tls-verify-peer"], "--tls-certificates"),
        (&["--tls", "on", "--tls-certificates", "pki", "--tls-verify-peer"], "give --tls required"),
        (&["--tls", "on", "--tls-certificates", "empty"], "server-cert.pem: No such file"),
        (&["--tls", "maybe", "--tls-certificates", "pki"], "required"),
        (&["--tls", "on", "--tls-certificates", "pki", "--listen", "tcp:0.0.0.0:0"], "--tls required"),
    ] {
        let all = [&["--listen", "unix:s", "ram:1M"], arguments].concat();
        let output = crate::server::command(home.path(), &all).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{arguments:?}: {said}");
    }
    // Required, it may be reached from everywhere.
    let arguments = ["--listen", "tcp:0.0.0.0:0", "--tls", "require", "--tls-certificates", "pki", "ram:1M"];
    let server = Server::started(home, &arguments);
    assert!(server.uri().starts_with("nbds://0.0.0.0:"));
}

/// The options by which qemu's tools find certificates and a server.
fn of_qemu(server: &Server, pki: &str) -> [String; 2] {
    let folder = server.folder().join(pki);
    let secret = format!("tls-creds-x509,id=t,endpoint=client,dir={}", folder.display());
    let node = format!("driver=nbd,host=localhost,port={},tls-creds=t", port(server));
    [secret, node]
}

#[test]
fn qemu_comes_in_with_its_certificates_and_not_without() {
    let home = folder();
    let authority = all_well(&home.path().join("pki"));
    authority.is_trusted_in(&home.path().join("none"));
    let server = served_in(home, &["--tls", "required", "--tls-verify-peer"]);
    let image = image(server.folder(), 16 << 20);
    let [secret, node] = of_qemu(&server, "pki");
    let qemu = |arguments: &[&str]| tool("qemu-utils", "qemu-img", arguments, server.folder());
    qemu(&["convert", "--object", &secret, "-n", "-f", "raw", "--target-image-opts", "in.img", &node]);
    let source = format!("driver=raw,file.{}", node.replace(",", ",file."));
    qemu(&["convert", "--object", &secret, "--image-opts", &source, "-O", "raw", "out.img"]);
    assert!(std::fs::read(server.folder().join("out.img")).unwrap() == image);
    let [secret, node] = of_qemu(&server, "none");
    refused("qemu-utils", "qemu-img", &["info", "--object", &secret, "--image-opts", &node], server.folder());
    let node = node.replace(",tls-creds=t", "");
    let said = refused("qemu-utils", "qemu-img", &["info", "--image-opts", &node], server.folder());
    assert!(said.contains("TLS"), "{said}");
}

#[test]
fn nbdkits_client_comes_in() {
    let server = served(&["--tls", "required", "--tls-verify-peer"]);
    let port = format!("port={}", port(&server));
    let pki = format!("tls-certificates={}", server.folder().join("pki").display());
    let arguments = [
        "-U",
        "-",
        "nbd",
        "hostname=localhost",
        &port,
        "tls=require",
        "tls-verify=true",
        &pki,
        "--run",
        "nbdinfo --size $uri",
    ];
    assert_eq!(tool("nbdkit", "nbdkit", &arguments, server.folder()).trim(), (16 << 20).to_string());
}

/// A server of somebody else's, killed when it is dropped.
struct Foreign {
    child: Child,
    home: tempfile::TempDir,
    /// Where it listens.
    path: PathBuf,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// nbdkit or qemu-nbd, which both want a certificate, with a disk of sevens.
fn foreign(program: &str) -> Foreign {
    let home = tempfile::tempdir().unwrap();
    all_well(&home.path().join("pki"));
    std::fs::write(home.path().join("disk.img"), vec![7; 1 << 20]).unwrap();
    let path = home.path().join("s");
    let mut command = Command::new(program);
    match program {
        "nbdkit" => command.args(["-f", "-U"]).arg(&path).args([
            "--tls=require",
            "--tls-certificates=pki",
            "--tls-verify-peer",
            "file",
            "disk.img",
        ]),
        _ => command
            .args([
                "--object",
                "tls-creds-x509,id=t,endpoint=server,dir=pki,verify-peer=on",
                "--tls-creds",
                "t",
            ])
            .args(["--persistent", "-e", "8", "-f", "raw", "-x", "", "-k"])
            .arg(&path)
            .arg("disk.img"),
    };
    // nbdkit leaves the folder it was started from only when it goes into the background.
    let child = command.current_dir(home.path()).stdin(Stdio::null()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
    let foreign = Foreign { child, home, path };
    wait_until(&format!("{program} to listen"), || foreign.path.exists());
    foreign
}

#[test]
fn our_side_of_a_client_comes_in_at_nbdkit_and_qemu() {
    for program in ["nbdkit", "qemu-nbd"] {
        let foreign = foreign(program);
        let pki = foreign.home.path().join("pki");
        let none = foreign.home.path().join("none");
        std::fs::create_dir(&none).unwrap();
        std::fs::copy(pki.join("ca-cert.pem"), none.join("ca-cert.pem")).unwrap();
        let connect = |files: &Path, name: &str| {
            let mut client = Client::greeted(UnixStream::connect(&foreign.path).unwrap());
            client.send(&[0, 0, 0, 3]);
            client.encrypted(&ClientConfig::read(Some(files)).unwrap(), name)
        };
        let mut client = connect(&pki, "localhost").unwrap();
        client.send(&go(""));
        client.option_replies();
        assert_eq!(client.ask(READ, 4096, 300_000).unwrap(), vec![7; 300_000], "{program}");
        let error = connect(&pki, "elsewhere.example").err().unwrap().to_string();
        assert!(error.contains("not valid for name"), "{program}: {error}");
        if let Ok(mut client) = connect(&none, "localhost") {
            let _ = client.stream.write_all(&go(""));
            assert!(client.is_closed(), "{program}: without a certificate");
        }
    }
}

#[test]
fn over_the_network_as_well_as_on_this_machine() {
    let server = served(&["--tls", "required"]);
    let stream = TcpStream::connect(("127.0.0.1", port(&server))).unwrap();
    let mut client = Client::greeted(UnixStream::from(OwnedFd::from(stream)));
    client.send(&[0, 0, 0, 3]);
    let mut client = client.encrypted(&config(&server, "pki"), "127.0.0.1").unwrap();
    client.goes_with("");
    client.write(0, &[3; 700_000]).unwrap();
    assert_eq!(client.ask(READ, 0, 700_000).unwrap(), vec![3; 700_000]);
}
