use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::port::clock::Duration;

#[path = "../../tests/harness/certificates.rs"]
mod certificates;

use certificates::{Authority, NOW, all_well};

/// A socket as a test likes it: it waits, for a while.
fn patient(socket: Socket) -> UnixStream {
    let Socket::Unix(stream) = socket else { panic!("no Unix socket") };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// Client and server with TLS between them, and what the server holds.
fn connected(
    server_files: &Path,
    client_files: &Path,
    name: &str,
    verify_peer: bool,
) -> Result<(Socket, Socket, Arc<()>)> {
    let (theirs, ours) = Socket::pair().unwrap();
    let held = Arc::new(());
    let config = ServerConfig::read(server_files, verify_peer)?;
    let (server, _) = server(theirs, &config, soon(), held.clone()).unwrap();
    let client = client(ours, &ClientConfig::read(Some(client_files))?, name, soon())?;
    Ok((client, server, held))
}

/// A client and a server that have what each wants of the other, and what the server holds.
fn talking() -> (UnixStream, UnixStream, Arc<()>) {
    let folder = tempfile::tempdir().unwrap();
    all_well(folder.path());
    let (client, server, held) = connected(folder.path(), folder.path(), "localhost", false).unwrap();
    (patient(client), patient(server), held)
}

/// All that is still said, to its end.
fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    heard
}

/// Hears something, so that the handshake is over on both sides.
fn met(client: &mut UnixStream, server: &mut UnixStream) {
    client.write_all(b"!").unwrap();
    server.read_exact(&mut [0]).unwrap();
}

fn is_let_go(held: &Arc<()>) -> bool {
    Deadline::after(Duration::from_secs(5)).wait_until(|| Arc::strong_count(held) == 1)
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 251) as u8 ^ at as u8 ^ seed).collect()
}

#[test]
fn what_one_side_says_the_other_hears_to_the_end_and_in_both_directions_at_once() {
    let folder = tempfile::tempdir().unwrap();
    all_well(folder.path());
    let (client, server, held) = connected(folder.path(), folder.path(), "localhost", true).unwrap();
    let sides = [(patient(client), 1u8, 2u8), (patient(server), 2, 1)];
    const LEN: usize = 8 << 20;
    let threads: Vec<_> = sides
        .into_iter()
        .flat_map(|(mut stream, says, hears)| {
            let mut speaker = stream.try_clone().unwrap();
            let speaks = std::thread::spawn(move || {
                speaker.write_all(&bytes(LEN, says)).unwrap();
                speaker.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let listens = std::thread::spawn(move || {
                assert!(rest(&mut stream) == bytes(LEN, hears));
            });
            [speaks, listens]
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(is_let_go(&held));
}

#[test]
fn the_end_of_one_direction_is_not_that_of_the_other() {
    let (mut client, mut server, held) = talking();
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut server), b"question");
    server.write_all(&bytes(1 << 20, 3)).unwrap();
    drop(server);
    assert!(rest(&mut client) == bytes(1 << 20, 3));
    drop(client);
    assert!(is_let_go(&held));
}

#[test]
fn who_goes_with_much_unsaid_is_heard_to_the_end() {
    let (mut client, mut server, held) = talking();
    met(&mut client, &mut server);
    // Nobody looks at these.
    client.write_all(&[7; 100_000]).unwrap();
    server.write_all(&bytes(150_000, 9)).unwrap();
    drop(server);
    assert!(rest(&mut client) == bytes(150_000, 9));
    drop(client);
    assert!(is_let_go(&held));
}

/// The peer goes while it is still being spoken to: what it said before that is heard, and then its end.
#[test]
fn a_peer_that_leaves_in_the_middle_of_a_sentence_is_heard_as_one_that_has_ended() {
    for round in 0..4usize {
        let (mut client, mut server, held) = talking();
        met(&mut client, &mut server);
        let mut speaker = client.try_clone().unwrap();
        let speaks = std::thread::spawn(move || while speaker.write_all(&[7; 50_000]).is_ok() {});
        server.write_all(&bytes(60_000 * round, 9)).unwrap();
        drop(server);
        assert!(rest(&mut client) == bytes(60_000 * round, 9), "round {round}");
        speaks.join().unwrap();
        drop(client);
        assert!(is_let_go(&held));
    }
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority = all_well(&path("well"));
    for (name, years) in [("expired", 2020..2021), ("early", 2110..2120)] {
        authority.is_trusted_in(&path(name));
        authority.certify(&path(name), "server", &["localhost"], years);
    }
    let stranger = Authority::new("another CA");
    stranger.certify(&path("stranger"), "server", &["localhost"], NOW);
    authority.is_trusted_in(&path("revoked"));
    let number = authority.certify(&path("revoked"), "server", &["localhost"], NOW);
    authority.revoke(&path("revoked"), number);
    for (server, client, name, said) in [
        ("expired", "well", "localhost", &["expired", "new certificate"][..]),
        ("early", "well", "localhost", &["not valid yet", "clock"]),
        ("stranger", "well", "localhost", &["UnknownIssuer", "ca-cert.pem"]),
        ("well", "well", "elsewhere.example", &["not valid for name", "tls-hostname="]),
        ("well", "well", "192.0.2.7", &["not valid for name", "tls-hostname="]),
        ("well", "well", "no name at all", &["neither the name nor the address"]),
        ("revoked", "revoked", "localhost", &["evoked", "new certificate"]),
    ] {
        let error = connected(&path(server), &path(client), name, false).unwrap_err().to_string();
        assert!(said.iter().all(|part| error.contains(part)), "{server}: {error}");
    }
    for name in ["localhost", "127.0.0.1", "::1"] {
        assert!(connected(&path("well"), &path("well"), name, true).is_ok(), "{name}");
    }
}

#[test]
fn files_that_are_read_again_count_for_who_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    all_well(&old);
    let config = ServerConfig::read(&old, false).unwrap();
    let clone = config.clone();
    let comes_in = |trusted: &Path| {
        let (theirs, ours) = Socket::pair().unwrap();
        let (inside, _) = server(theirs, &clone, soon(), ()).unwrap();
        let client = client(ours, &ClientConfig::read(Some(trusted)).unwrap(), "localhost", soon());
        client.map(|client| (client, inside))
    };
    let (there, inside) = comes_in(&old).unwrap();
    all_well(&new);
    for file in ["server-cert.pem", "server-key.pem"] {
        std::fs::copy(new.join(file), old.join(file)).unwrap();
    }
    assert!(comes_in(&old).is_ok(), "nobody has read them yet");
    config.read_again().unwrap();
    assert!(comes_in(&new).is_ok() && comes_in(&old).is_err());
    std::fs::write(old.join("server-key.pem"), "nothing").unwrap();
    assert!(config.read_again().is_err());
    assert!(comes_in(&new).is_ok(), "what cannot be used changes nothing");
    // Who was there before goes on.
    let (mut there, mut inside) = (patient(there), patient(inside));
    there.write_all(b"still here").unwrap();
    let mut heard = [0; 10];
    inside.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still here");
}

#[test]
fn a_client_without_a_certificate_that_counts_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority = all_well(&path("well"));
    authority.is_trusted_in(&path("none"));
    authority.is_trusted_in(&path("expired"));
    authority.certify(&path("expired"), "client", &["c"], 2020..2021);
    authority.is_trusted_in(&path("stranger"));
    Authority::new("another CA").certify(&path("stranger"), "client", &["c"], NOW);
    authority.is_trusted_in(&path("revoked"));
    let number = authority.certify(&path("revoked"), "client", &["c"], NOW);
    authority.revoke(&path("well"), number);
    for name in ["none", "expired", "stranger", "revoked"] {
        let (theirs, ours) = Socket::pair().unwrap();
        let server_config = ServerConfig::read(&path("well"), true).unwrap();
        let client_config = ClientConfig::read(Some(&path(name))).unwrap();
        let (inside, _) =
            server(theirs, &server_config, Deadline::after(Duration::from_secs(10)), ()).unwrap();
        // With TLS 1.3 the client hears of it only behind its own handshake.
        let mut heard = Vec::new();
        if let Ok(socket) = client(ours, &client_config, "localhost", soon()) {
            let mut stream = patient(socket);
            let _ = stream.write_all(b"let me in");
            let _ = stream.read_to_end(&mut heard);
            let noted = || client_config.failures().last().is_some();
            assert!(Deadline::after(Duration::from_secs(5)).wait_until(noted), "{name}");
        }
        let mut inside = patient(inside);
        let mut came = Vec::new();
        let _ = inside.read_to_end(&mut came);
        assert!(heard.is_empty() && came.is_empty(), "{name}");
        let noted = || server_config.failures().count() == 1;
        assert!(Deadline::after(Duration::from_secs(5)).wait_until(noted), "{name}");
    }
}

#[test]
fn a_handshake_ends_with_its_time_or_when_nobody_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    all_well(folder.path());
    let config = ServerConfig::read(folder.path(), false).unwrap();
    let (theirs, silent) = Socket::pair().unwrap();
    let held = Arc::new(());
    let begun = Instant::now();
    let (inside, _) =
        server(theirs, &config, Deadline::after(Duration::from_millis(300)), held.clone()).unwrap();
    assert_eq!(rest(&mut patient(inside)), b"");
    assert!((Duration::from_millis(250)..Duration::from_secs(5)).contains(&begun.elapsed()));
    assert!(is_let_go(&held) && config.failures().last().unwrap().contains("too long"));
    drop(silent);
    let (theirs, _silent) = Socket::pair().unwrap();
    let begun = Instant::now();
    drop(server(theirs, &config, Deadline::after(Duration::from_secs(60)), held.clone()).unwrap());
    assert!(is_let_go(&held) && begun.elapsed() < Duration::from_secs(5));
}

fn over_tcp() -> (Socket, Socket) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = listener.accept().unwrap().0;
    [&ours, &theirs].into_iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    (Socket::Tcp(theirs), Socket::Tcp(ours))
}

/// A peer that does not listen has ten seconds for what was said to it, and one that stays a second, unless there is no
/// time for that.
#[test]
fn by_its_leash_a_connection_ends_at_once_whatever_the_peer_does() {
    let folder = tempfile::tempdir().unwrap();
    all_well(folder.path());
    let config = ServerConfig::read(folder.path(), false).unwrap();
    // More than TCP has room for.
    for (said, (theirs, ours)) in [
        (0, Socket::pair().unwrap()),
        (8 << 20, Socket::pair().unwrap()),
        (0, over_tcp()),
        (64 << 20, over_tcp()),
    ] {
        let held = Arc::new(());
        let deadline = Deadline::after(Duration::from_secs(10));
        let (inside, leash) = server(theirs, &config, deadline, held.clone()).unwrap();
        let peer =
            client(ours, &ClientConfig::read(Some(folder.path())).unwrap(), "localhost", soon()).unwrap();
        let (mut peer, mut inside) = (patient(peer), patient(inside));
        met(&mut peer, &mut inside);
        inside.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let heard = inside.write_all(&vec![7; said]);
        assert_eq!(heard.is_ok(), said == 0, "all of it was taken");
        drop(inside);
        std::thread::sleep(Duration::from_millis(100));
        assert!(Arc::strong_count(&held) == 2 && !leash.is_over(), "it has ended by itself");
        leash.cut();
        let begun = Instant::now();
        assert!(is_let_go(&held) && begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
        assert!(leash.is_over());
        leash.cut();
        drop(peer);
    }
}

#[test]
fn what_is_no_tls_or_is_cut_off_ends_the_connection_and_nothing_of_it_gets_in() {
    let folder = tempfile::tempdir().unwrap();
    all_well(folder.path());
    let config = ServerConfig::read(folder.path(), false).unwrap();
    for said in
        [&b"IHAVEOPT\0\0\0\x03\0\0\0\0"[..], &[0x16, 3, 1, 0xff, 0xff, 0, 0], &[0x16; 40_000], &[0; 100_000]]
    {
        let (theirs, peer) = Socket::pair().unwrap();
        let held = Arc::new(());
        let (inside, _) =
            server(theirs, &config, Deadline::after(Duration::from_secs(10)), held.clone()).unwrap();
        let mut peer = patient(peer);
        let _ = peer.write_all(said);
        let _ = peer.shutdown(std::net::Shutdown::Write);
        assert_eq!(rest(&mut patient(inside)), b"");
        assert!(is_let_go(&held));
    }
}

#[test]
fn files_that_cannot_be_used_are_told_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let said = |verify: bool| ServerConfig::read(here, verify).unwrap_err().to_string();
    assert!(said(false).contains("server-cert.pem: No such file"), "{}", said(false));
    let authority = all_well(here);
    std::fs::remove_file(here.join("ca-cert.pem")).unwrap();
    assert!(ServerConfig::read(here, false).is_ok());
    assert!(said(true).contains("ca-cert.pem: No such file"), "{}", said(true));
    std::fs::write(here.join("ca-cert.pem"), "nothing").unwrap();
    assert!(said(true).contains("there is not a certificate in it"), "{}", said(true));
    std::fs::copy(here.join("client-key.pem"), here.join("server-key.pem")).unwrap();
    assert!(said(false).contains("must be the key of the first certificate"), "{}", said(false));
    std::fs::write(here.join("server-key.pem"), "-----BEGIN PRIVATE KEY-----\n!\n").unwrap();
    assert!(said(false).contains("server-key.pem"), "{}", said(false));
    authority.is_trusted_in(here);
    std::fs::remove_file(here.join("client-key.pem")).unwrap();
    let error = ClientConfig::read(Some(here)).unwrap_err().to_string();
    assert!(error.contains("client-key.pem: No such file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However the bytes are cut, and however slowly they are taken.
    #[test]
    fn bytes_arrive_in_order_however_they_are_cut(
        sizes in prop::collection::vec(prop_oneof![0usize..200, 16_000usize..17_000, 60_000usize..140_000], 1..12),
        takes in prop::collection::vec(1usize..200_000, 1..6),
    ) {
        let (mut client, mut server, held) = talking();
        let total: usize = sizes.iter().sum();
        let said = bytes(total, 5);
        let sent = said.clone();
        let sends = std::thread::spawn(move || {
            let mut rest = &sent[..];
            for size in sizes {
                let (now, later) = rest.split_at(size);
                client.write_all(now).unwrap();
                rest = later;
            }
            client.shutdown(std::net::Shutdown::Write).unwrap();
            client
        });
        let mut heard = Vec::new();
        for take in takes.iter().cycle() {
            let mut piece = vec![0; *take];
            match server.read(&mut piece).unwrap() {
                0 => break,
                count => heard.extend_from_slice(&piece[..count]),
            }
        }
        prop_assert!(heard == said);
        drop(sends.join().unwrap());
        drop(server);
        prop_assert!(is_let_go(&held));
    }
}
