//! Clients that break the rules, or the connection. Whatever they do, the server lives and others
//! are served.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::raw::reply::{INVALID, TOO_BIG, UNKNOWN, UNSUPPORTED};
use crate::raw::{Client, DISC, FLUSH, READ, WRITE, go, option, request};
use crate::server::{Server, folder, specs};
use crate::waiting::wait_at_most;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// Somebody else is served, and at once.
fn others_are_served(server: &mut Server) {
    let began = Instant::now();
    let mut other = Client::transmitting(&server.socket());
    other.write(4096, &[0xa5; 4096]).unwrap();
    assert_eq!(other.ask(READ, 4096, 4096).unwrap(), [0xa5; 4096]);
    other.ask(FLUSH, 0, 0).unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "others waited {:?}", began.elapsed());
    assert!(server.is_alive());
}

#[test]
fn options_nobody_knows_are_refused_and_the_handshake_goes_on() {
    let mut server = Server::start(&["disk=ram:1M"]);
    let mut client = Client::connect(&server.socket());
    client.send(&[0, 0, 0, 3]);
    for (bytes, kind) in [
        (option(0xdead_beef, b"what"), UNSUPPORTED),
        (option(5, &[]), UNSUPPORTED),
        (option(4, &[]), UNSUPPORTED),
        (option(8, b"data"), INVALID),
        (option(9, &[0; 12]), INVALID),
        (option(10, &[0; 12]), INVALID),
        (option(11, b"data"), INVALID),
        (option(3, b"data"), INVALID),
        (option(7, &[0xff; 6]), INVALID),
        (option(7, &[0; 100_000]), TOO_BIG),
        (go("nowhere"), UNKNOWN),
    ] {
        client.send(&bytes);
        assert_eq!(client.option_replies(), [kind]);
    }
    // The next message right behind, in one piece with requests.
    let mut all = go("disk");
    all.extend(request(READ, 1, 0, 512));
    all.extend(request(WRITE, 2, 0, 512));
    all.extend([7; 512]);
    client.send(&all);
    assert_eq!(client.option_replies(), [3, 3, 1]);
    assert_eq!(client.reply(), (1, 0));
    assert_eq!(client.receive(512), [0; 512]);
    assert_eq!(client.reply(), (2, 0));
    others_are_served(&mut server);
}

#[test]
fn who_does_not_speak_the_protocol_is_cut_off() {
    let mut server = Server::start(&["ram:1M"]);
    let mut long = option(7, &[]);
    long[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [&[0, 0, 0, 3][..], &[0; 16]].concat(),
        [&[0, 0, 0, 3][..], &long].concat(),
        [&[0, 0, 0, 3][..], &option(1, b"nowhere")].concat(),
        [&[0, 0, 0, 0][..], &option(3, &[])].concat(),
        vec![0x80, 0, 0, 0],
    ] {
        let mut client = Client::connect(&server.socket());
        client.send(&bytes);
        assert!(client.is_closed(), "{bytes:?}");
    }
    let mut client = Client::transmitting(&server.socket());
    client.send(&[0; 28]);
    assert!(client.is_closed());
    others_are_served(&mut server);
}

#[test]
fn lengths_and_offsets_are_bounded() {
    let home = folder();
    for spec in specs(home.path(), "64M") {
        let mut server = Server::start(&["--block-size", "512", &spec]);
        let size = 64 << 20;
        let mut client = Client::transmitting(&server.socket());
        for (offset, len) in [
            (0, u32::MAX),
            (0, 33 << 20),
            (size, 512),
            (size - 512, 1024),
            (u64::MAX - 511, 512),
            (1, 512),
            (0, 0),
        ] {
            assert_eq!(client.ask(READ, offset, len), Err(EINVAL), "{offset} {len}");
        }
        assert_eq!(client.write(size - 4096, &[1; 8192]), Err(ENOSPC));
        assert_eq!(client.write(u64::MAX - 4095, &[1; 4096]), Err(ENOSPC));
        assert_eq!(client.write(0, &vec![1; 33 << 20]), Err(EINVAL), "skipped, not stored");
        for command in [7, 8, 999] {
            assert_eq!(client.ask(command, 0, 4096), Err(EINVAL), "command {command}");
        }
        // All that, and the stream is where it should be.
        let longest: Vec<u8> = (0..32u32 << 20).map(|n| (n >> 8) as u8 ^ n as u8).collect();
        client.write(size / 2, &longest).unwrap();
        assert!(client.ask(READ, size / 2, 32 << 20).unwrap() == longest);
        assert_eq!(client.ask(READ, 0, 4096).unwrap(), [0; 4096]);
        others_are_served(&mut server);
    }
}

#[test]
fn a_client_that_goes_in_the_middle_takes_nothing_with_it() {
    let home = folder();
    for spec in specs(home.path(), "64M") {
        let mut server = Server::start(&[&spec]);
        for cut in [1usize, 27, 28, 29, 28 + 512, 28 + 4095, 28 + 300_000, 28 + (1 << 20) - 1] {
            let mut client = Client::transmitting(&server.socket());
            let mut bytes = request(WRITE, 1, 1 << 20, 1 << 20);
            bytes.extend(vec![9; 1 << 20]);
            client.send(&bytes[..cut]);
            if cut.is_multiple_of(2) {
                client.stream.shutdown(Shutdown::Both).unwrap();
            }
        }
        // Gone with many replies on their way.
        let mut client = Client::transmitting(&server.socket());
        let reads: Vec<u8> = (0..50).flat_map(|n| request(READ, n, 0, 1 << 20)).collect();
        client.send(&reads);
        client.receive(100);
        drop(client);
        others_are_served(&mut server);
    }
}

#[test]
fn who_does_not_go_on_holds_up_nobody() {
    let mut server = Server::start(&["--depth", "4", "ram:64M"]);
    // Writes that never come, one whole payload each.
    let mut silent: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = Client::transmitting(&server.socket());
            client.send(&request(WRITE, 1, 0, 32 << 20));
            client.send(&[1; 1000]);
            client
        })
        .collect();
    others_are_served(&mut server);
    // A reader of much that never reads.
    let mut deaf = Client::transmitting(&server.socket());
    let reads: Vec<u8> = (0..1000).flat_map(|n| request(READ, n, 0, 64 << 10)).collect();
    deaf.send(&reads);
    others_are_served(&mut server);
    // And what was asked is still answered, all of it.
    deaf.hears_reads(1000, 64 << 10);
    for client in &mut silent {
        client.send(&vec![1; (32 << 20) - 1000]);
        assert_eq!(client.reply(), (1, 0));
    }
}

#[test]
fn options_that_are_skipped_are_counted_and_their_sender_holds_up_nobody() {
    let mut server = Server::start(&["disk=ram:1M"]);
    let mut client = Client::connect(&server.socket());
    client.send(&[0, 0, 0, 3]);
    let mut hears = client.stream.try_clone().unwrap();
    let listens = std::thread::spawn(move || std::io::copy(&mut hears, &mut std::io::sink()));
    let began = Instant::now();
    let flood = option(7, &[0; 9000]).repeat(16);
    let mut sends = client.stream.try_clone().unwrap();
    let floods = std::thread::spawn(move || while std::io::Write::write_all(&mut sends, &flood).is_ok() {});
    others_are_served(&mut server);
    floods.join().unwrap();
    let _ = listens.join();
    assert!(began.elapsed() < Duration::from_secs(8), "cut off only after {:?}", began.elapsed());
    others_are_served(&mut server);
}

#[test]
fn who_holds_everything_and_does_not_listen_is_cut_off_when_others_come() {
    let mut server = Server::start(&["ram:64M"]);
    let mut deaf = Client::transmitting(&server.socket());
    // Replies of all the memory that there is, and more.
    let reads: Vec<u8> = (0..20).flat_map(|n| request(READ, n, 0, 32 << 20)).collect();
    deaf.send(&reads);
    deaf.receive(1 << 20);
    let mut other = Client::transmitting(&server.socket());
    assert_eq!(other.ask(READ, 0, 4096).unwrap(), [0; 4096], "within the patience of twenty seconds");
    others_are_served(&mut server);
    // Alone, one that does not listen may take its time.
    drop((deaf, other));
    let mut slow = Client::transmitting(&server.socket());
    slow.send(&reads);
    std::thread::sleep(Duration::from_secs(12));
    for _ in 0..20 {
        assert_eq!(slow.reply().1, 0);
        slow.receive(32 << 20);
    }
}

#[test]
fn a_handshake_that_does_not_end_is_ended() {
    let mut server = Server::start(&["ram:1M"]);
    let began = Instant::now();
    let mut half_open: Vec<Client> = (0..5).map(|_| Client::connect(&server.socket())).collect();
    half_open[1].send(&[0, 0]);
    half_open[2].send(&[0, 0, 0, 3]);
    half_open[3].send(&[0, 0, 0, 3]);
    half_open[3].send(&option(7, &[0; 100])[..50]);
    others_are_served(&mut server);
    for client in &mut half_open {
        assert!(client.is_closed());
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&took), "{took:?}");
    // A flood of them pushes out the oldest, not whoever comes next.
    let flood: Vec<Client> = (0..100).map(|_| Client::connect(&server.socket())).collect();
    others_are_served(&mut server);
    drop(flood);
    others_are_served(&mut server);
}

#[test]
fn connections_are_limited_and_given_back() {
    let mut server = Server::start(&["--max-connections", "3", "ram:1M"]);
    for _ in 0..5 {
        let clients: Vec<Client> = (0..3).map(|_| Client::transmitting(&server.socket())).collect();
        let mut one_more =
            Client { stream: std::os::unix::net::UnixStream::connect(server.socket()).unwrap() };
        assert!(one_more.is_closed());
        drop(clients);
        // Whoever left is noticed a moment later.
        wait_at_most(5, "the end of all sockets but one", || {
            let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
            let sockets = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
            sockets.filter(|target| target.to_string_lossy().starts_with("socket:")).count() == 1
        });
    }
    others_are_served(&mut server);
}

#[test]
fn who_says_goodbye_gets_all_replies_first() {
    let mut server = Server::start(&["ram:64M"]);
    let mut client = Client::transmitting(&server.socket());
    let mut bytes: Vec<u8> = (0..40).flat_map(|n| request(READ, n, 0, 256 << 10)).collect();
    bytes.extend(request(DISC, 99, 0, 0));
    client.send(&bytes);
    for _ in 0..40 {
        assert_eq!(client.reply().1, 0);
        client.receive(256 << 10);
    }
    assert!(client.is_closed());
    // The same by half a close.
    let mut client = Client::transmitting(&server.socket());
    client.send(&bytes[..40 * 28]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    for _ in 0..40 {
        assert_eq!(client.reply().1, 0);
        client.receive(256 << 10);
    }
    assert!(client.is_closed());
    others_are_served(&mut server);
}

#[test]
fn many_requests_at_once_from_many_are_all_answered() {
    let mut server = Server::start(&["--queues", "2", "ram:64M"]);
    let socket = server.socket();
    let workers: Vec<_> = (0..8u64)
        .map(|worker| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut client = Client::transmitting(&socket);
                let base = worker * (8 << 20);
                // Sizes on both sides of every boundary: copied, in place, several slots.
                let sizes = [512u32, 4096, 32 << 10, (32 << 10) + 512, 256 << 10, (256 << 10) + 512, 1 << 20];
                for round in 0..20u64 {
                    let mut bytes = Vec::new();
                    for (n, &size) in sizes.iter().enumerate() {
                        bytes.extend(request(WRITE, n as u64, base + (n as u64) * (1 << 20), size));
                        bytes.extend(vec![(round * 7 + n as u64 + worker) as u8; size as usize]);
                    }
                    client.send(&bytes);
                    for _ in sizes {
                        assert_eq!(client.reply().1, 0);
                    }
                    let reads: Vec<u8> = (0..sizes.len())
                        .flat_map(|n| request(READ, n as u64, base + (n as u64) * (1 << 20), sizes[n]))
                        .collect();
                    client.send(&reads);
                    let mut seen = vec![false; sizes.len()];
                    for _ in sizes {
                        let (n, error) = client.reply();
                        assert_eq!(error, 0);
                        let data = client.receive(sizes[n as usize] as usize);
                        assert!(data.iter().all(|&byte| byte == (round * 7 + n + worker) as u8));
                        assert!(!std::mem::replace(&mut seen[n as usize], true));
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    others_are_served(&mut server);
}
