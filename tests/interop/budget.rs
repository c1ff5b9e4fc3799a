//! How much memory clients can make a server take, whatever they do: what architecture.md states, measured.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blockhaus::tls::{CARRIER_MEMORY, ClientConfig};

use crate::certificates::all_well;
use crate::raw::{Client, READ, STARTTLS, WRITE, option, request};
use crate::server::{Server, folder};

const CONNECTIONS: usize = 64;

/// Buffers of a connection.
const CONNECTION: usize = 816 << 10;

/// Slots of a queue.
const SLOTS: usize = 32 << 20;

/// The handshakes that there are at once: the longest option each, and what is said of it.
const HANDSHAKES: usize = 32 * (64 << 10);

/// What a program grows by beside that: its allocator's own, pages of the program that were not needed before.
const SLACK: usize = 16 << 20;

/// Bytes of memory in use that are the process's own.
fn memory(server: &Server) -> usize {
    let sums = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", server.pid())).unwrap();
    let kib = |name: &str| -> usize {
        let line = sums.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
    };
    (kib("Private_Dirty:") + kib("Private_Clean:")) << 10
}

/// A client that has asked for everything, sends half of something more and listens to nothing.
fn greedy(mut client: Client) -> Client {
    client.stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut flood: Vec<u8> = (0..200).flat_map(|n| request(READ, n, 0, 32 << 20)).collect();
    flood.extend(request(WRITE, 999, 0, 32 << 20));
    flood.extend(vec![1; 3 << 20]);
    let _ = std::io::Write::write_all(&mut client.stream, &flood);
    client
}

/// Fills every place with whoever `come` makes, again and again, and yields the most memory seen on top of what there was.
fn grown(server: &Server, mut come: impl FnMut() -> Vec<Client>) -> usize {
    let before = memory(server);
    let mut most = 0;
    for _ in 0..2 {
        let clients = come();
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            most = most.max(memory(server));
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(clients);
    }
    most.saturating_sub(before)
}

fn connections(server: &Server, count: usize) -> Vec<UnixStream> {
    (0..count).filter_map(|_| UnixStream::connect(server.socket()).ok()).collect()
}

/// As many in transmission as come in; whoever is there from the round before goes meanwhile.
fn come_in(mut one: impl FnMut() -> Option<Client>) -> Vec<Client> {
    // Those of the round before are cut off when they neither listen nor go on.
    let until = Instant::now() + Duration::from_secs(90);
    let mut inside = Vec::new();
    while inside.len() < CONNECTIONS - 2 {
        assert!(Instant::now() < until, "only {} came in", inside.len());
        match one() {
            Some(client) => inside.push(greedy(client)),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    inside
}

/// Into transmission, or turned away since all places are taken.
fn tries(server: &Server, config: Option<&ClientConfig>) -> Option<Client> {
    use std::io::{Read, Write};
    let mut stream = UnixStream::connect(server.socket()).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0; 18]).ok()?;
    stream.write_all(&[0, 0, 0, 3]).ok()?;
    let mut client = Client { stream };
    if let Some(config) = config {
        client.send(&option(STARTTLS, &[]));
        client = client.encrypted_after_reply(config)?;
    }
    client.goes_with("");
    Some(client)
}

#[test]
fn clients_that_want_everything_take_no_more_than_is_stated() {
    let server = Server::start(&["ram:64M"]);
    let grown = grown(&server, || come_in(|| tries(&server, None)));
    let budget = CONNECTIONS * CONNECTION + SLOTS + HANDSHAKES + SLACK;
    eprintln!("plain: {} KiB of {} KiB", grown >> 10, budget >> 10);
    assert!(grown < budget, "{grown} of {budget}");
}

#[test]
fn under_tls_neither() {
    let home = folder();
    let pki = home.path().join("pki");
    all_well(&pki);
    let config = ClientConfig::read(Some(&pki)).unwrap();
    let server = Server::start_in(home, &["--tls", "required", "--tls-certificates", "pki", "ram:64M"]);
    let grown = grown(&server, || come_in(|| tries(&server, Some(&config))));
    let budget = CONNECTIONS * (CONNECTION + CARRIER_MEMORY) + SLOTS + HANDSHAKES + SLACK;
    eprintln!("TLS: {} KiB of {} KiB", grown >> 10, budget >> 10);
    assert!(grown < budget, "{grown} of {budget}");
}

#[test]
fn nor_do_those_that_never_come_in() {
    let home = folder();
    all_well(&home.path().join("pki"));
    let server = Server::start_in(home, &["--tls", "on", "--tls-certificates", "pki", "ram:1M"]);
    let grown = grown(&server, || {
        // Each of them at another place of the handshake, with as much said as it can.
        let mut clients = Vec::new();
        for (number, mut stream) in connections(&server, 300).into_iter().enumerate() {
            use std::io::Write;
            let _ = stream.set_write_timeout(Some(Duration::from_millis(50)));
            let starttls = option(STARTTLS, &[]);
            let half: Vec<u8> = match number % 5 {
                0 => vec![],
                1 => option(7, &[0; 8000])[..7000].to_vec(),
                2 => option(99, &[0; 1 << 20])[..1 << 19].to_vec(),
                // The head of a message of the handshake of TLS that is as long as one can be, in records.
                3 => [starttls].concat(),
                _ => option(3, &[]).repeat(1000),
            };
            let _ = stream.write_all(&[0, 0, 0, 3]).and_then(|()| stream.write_all(&half));
            if number % 5 == 3 {
                std::thread::sleep(Duration::from_millis(2));
                let mut message = vec![1, 0, 0xff, 0xf0];
                message.resize(16_000, 3);
                let mut record = vec![0x16, 3, 1];
                record.extend((message.len() as u16).to_be_bytes());
                record.extend(&message);
                let mut more = vec![0x16, 3, 3, 0x3e, 0x80];
                more.resize(5 + 16_000, 3);
                let _ = stream.write_all(&record);
                (0..2).for_each(|_| drop(stream.write_all(&more)));
            }
            clients.push(Client { stream });
        }
        clients
    });
    let budget = 32 * CARRIER_MEMORY + HANDSHAKES + SLACK;
    eprintln!("handshakes: {} KiB of {} KiB", grown >> 10, budget >> 10);
    assert!(grown < budget, "{grown} of {budget}");
}
