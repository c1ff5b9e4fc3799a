//! Clients that want more than there is at once: who waits for whom, and for how long.

use std::time::{Duration, Instant};

use crate::raw::{Client, READ, WRITE, request};
use crate::server::{Server, folder};

const MIB: u32 = 1 << 20;

/// A read of all the memory that a queue has, which needs every slot.
const ALL: u32 = 32 * MIB;

#[test]
fn a_read_of_everything_waits_for_a_payload_that_is_coming() {
    let server = Server::start(&["--queues", "1", "ram:64M"]);
    let mut writer = Client::transmitting(&server.socket());
    let mut reader = Client::transmitting(&server.socket());
    let began = Instant::now();
    for left in [100_000usize, 1000] {
        // The payload has a slot, and less or more than is worth a receive of its own comes late.
        let payload = vec![7; 256 << 10];
        writer.send(&request(WRITE, 1, 0, 256 << 10));
        writer.send(&payload[left..]);
        std::thread::sleep(Duration::from_millis(100));
        reader.send(&request(READ, 2, 0, ALL));
        std::thread::sleep(Duration::from_millis(100));
        writer.send(&payload[..left]);
        assert_eq!(writer.reply(), (1, 0), "the rest of the payload was not looked at");
        assert_eq!(reader.reply(), (2, 0));
        assert_eq!(reader.receive(ALL as usize)[..256 << 10], payload);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "they waited {:?}", began.elapsed());
}

#[test]
fn a_slow_reader_gives_back_what_it_has_been_sent() {
    let server = Server::start(&["--queues", "1", "ram:64M"]);
    let mut slow = Client::transmitting(&server.socket());
    slow.send(&request(READ, 1, 0, ALL));
    assert_eq!(slow.reply(), (1, 0));
    let mut other = Client::transmitting(&server.socket());
    let reads = std::thread::spawn(move || {
        for _ in 0..ALL / MIB {
            slow.receive(MIB as usize);
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    let began = Instant::now();
    assert_eq!(other.ask(READ, 0, 4096).unwrap(), [0; 4096]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "it waited {took:?} for one slot of many");
    // Slow is not silent: nobody cuts it off, though another waits for all that it has.
    assert_eq!(other.ask(READ, 0, ALL).map(|data| data.len()), Ok(ALL as usize));
    reads.join().unwrap();
}

#[test]
fn who_sends_by_drops_is_cut_off_when_another_waits_for_it() {
    let server = Server::start(&["--queues", "1", "ram:64M"]);
    let mut drops = Client::transmitting(&server.socket());
    // So little that each drop comes as it is, and not all of it at its end.
    drops.send(&request(WRITE, 1, 0, 4096));
    std::thread::sleep(Duration::from_millis(200));
    let mut other = Client::transmitting(&server.socket());
    let sends = std::thread::spawn(move || {
        while std::io::Write::write_all(&mut drops.stream, &[7]).is_ok() {
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let began = Instant::now();
    assert_eq!(other.ask(READ, 0, ALL).map(|data| data.len()), Ok(ALL as usize));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(18), "it waited {took:?}");
    drop(server);
    sends.join().unwrap();
}

#[test]
fn a_client_that_leaves_much_unread_gets_all_replies_at_the_end() {
    let server = Server::started(folder(), &["--listen", "tcp:127.0.0.1:0", "ram:64M"]);
    let address = server.uri().strip_prefix("nbd://").unwrap().trim_end_matches('/').parse().unwrap();
    let mut busy = Client::transmitting_to(address);
    let reads: Vec<u8> = (0..200).flat_map(|n| request(READ, n, 0, MIB)).collect();
    busy.send(&reads);
    assert_eq!(busy.reply(), (0, 0));
    busy.receive(MIB as usize);
    // Nobody will look at these, and they lie in the kernel when the connection ends.
    busy.send(&reads);
    server.terminate();
    std::thread::sleep(Duration::from_millis(300));
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut busy.stream, &mut rest).expect("the end of the stream, not a reset");
    assert!(!rest.is_empty() && rest.len().is_multiple_of(MIB as usize + 16), "{} bytes", rest.len());
    let (status, said) = server.ended();
    assert!(status.success(), "{status}: {said}");
}

#[test]
fn who_stays_after_the_last_reply_is_not_waited_for() {
    let server = Server::start(&["--queues", "1", "ram:1M"]);
    let mut stays = Client::transmitting(&server.socket());
    server.terminate();
    assert!(stays.is_closed());
    let began = Instant::now();
    assert!(server.ended().0.success());
    assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
    drop(stays);
}
