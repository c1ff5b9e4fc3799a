//! Servers that go away, and come back or not.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockhaus::io::{Errno, Op};

use super::verified::Verified;
use super::{Foreign, disk, image, spec};
use crate::played::Request;
use crate::raw::{Client, READ};
use crate::server::{Server, folder};
use crate::waiting::{wait_at_most, wait_until};

const SIZE: u64 = 4 << 20;

/// What is waited for when a server is back.
const IN_USE: &str = "the server to be used again";

/// A server that keeps what is written in memory until a flush, and then puts it into the file: killed, it has lost it.
const FORGETFUL: [&str; 4] = ["--filter=cache", "file", "disk.img", "cache=writeback"];

fn write(offset: u64, byte: u8, len: usize) -> Request {
    Request::write(offset, vec![byte; len])
}

#[test]
fn a_server_that_is_killed_again_and_again_loses_nothing_that_was_acknowledged() {
    for (arguments, keys) in [
        (&FORGETFUL[..], "connections=1"),
        (&FORGETFUL[..], "connections=4"),
        // A journal that is always full.
        (&FORGETFUL[..], "connections=4,replay=300K"),
        (&["file", "disk.img"][..], ""),
    ] {
        let home = folder();
        let path = image(home.path(), SIZE);
        let mut server = Foreign::nbdkit(home.path(), arguments);
        let mut disk = disk(&spec(home.path(), keys), 16);
        let mut verified = Verified::new(&disk, 3);
        let ends = AtomicBool::new(false);
        let served = std::thread::scope(|scope| {
            let goes_on = || !ends.load(Ordering::SeqCst);
            let (disk, verified) = (&mut disk, &mut verified);
            let load = scope.spawn(move || verified.rounds_while(disk, 32, &mut { goes_on }));
            // By this thread: nbdkit ends with the thread that has started it.
            for round in 0..12u64 {
                std::thread::sleep(Duration::from_millis(150 + round * 37 % 150));
                server.kill();
                std::thread::sleep(Duration::from_millis(round % 3 * 60));
                server = Foreign::nbdkit(home.path(), arguments);
            }
            ends.store(true, Ordering::SeqCst);
            load.join().unwrap()
        });
        assert!(served > 100, "{served} requests between twelve kills");
        verified.check(&mut disk);
        // Close flushes, so that what the file has is everything.
        disk.close();
        server.kill();
        verified.check_bytes(&fs::read(&path).unwrap());
    }
}

/// The server of the test above does lose what was not flushed, and we do not show it.
#[test]
fn without_a_journal_the_disk_ends_where_something_may_be_lost() {
    let home = folder();
    let path = image(home.path(), SIZE);
    let mut server = Foreign::nbdkit(home.path(), &FORGETFUL);
    let mut disk = disk(&spec(home.path(), "replay=0"), 4);
    assert_eq!(disk.call(write(0, 1, 4096)).0, Ok(()));
    assert_eq!(disk.call(Request::new(Op::Flush, 0, 0)).0, Ok(()));
    // All that was acknowledged is flushed: nothing can be lost.
    server.kill();
    server = Foreign::nbdkit(home.path(), &FORGETFUL);
    assert_eq!(disk.call(Request::new(Op::Read, 0, 4096)), (Ok(()), vec![1; 4096]));
    assert_eq!(disk.call(write(0, 2, 4096)).0, Ok(()));
    server.kill();
    assert_eq!(fs::read(&path).unwrap()[..4096], [1; 4096], "the server has forgotten nothing");
    let _server = Foreign::nbdkit(home.path(), &FORGETFUL);
    for _ in 0..5 {
        assert_eq!(disk.call(Request::new(Op::Read, 0, 4096)).0, Err(Errno::EIO), "older than acknowledged");
        assert_eq!(disk.call(Request::new(Op::Flush, 0, 0)).0, Err(Errno::EIO));
        assert_eq!(disk.call(write(0, 3, 4096)).0, Err(Errno::EIO));
    }
}

#[test]
fn a_server_that_stays_away_is_an_error_after_a_while_and_one_that_is_back_serves_again() {
    let home = folder();
    image(home.path(), SIZE);
    let mut server = Foreign::nbdkit(home.path(), &FORGETFUL);
    let mut disk = disk(&spec(home.path(), "dead_s=2"), 8);
    assert_eq!(disk.call(write(8192, 5, 4096)).0, Ok(()));
    server.kill();
    let began = Instant::now();
    let asked: Vec<usize> = (0..8).map(|n| disk.ask(n, write(0, 9, 4096))).collect();
    for _ in &asked {
        assert_eq!(disk.wait().result, Err(Errno::EIO));
    }
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(8), "{took:?}");
    // Now at once.
    let began = Instant::now();
    assert_eq!(disk.call(Request::new(Op::Read, 0, 4096)).0, Err(Errno::EIO));
    assert!(began.elapsed() < Duration::from_secs(1));
    let _server = Foreign::nbdkit(home.path(), &FORGETFUL);
    wait_until(IN_USE, || {
        let (result, data) = disk.call(Request::new(Op::Read, 8192, 4096));
        assert!(result.is_err() || data == [5; 4096], "what was acknowledged before");
        result.is_ok()
    });
    disk.close();
}

#[test]
fn a_server_that_hangs_is_given_up() {
    let home = folder();
    image(home.path(), SIZE);
    let server = Foreign::nbdkit(home.path(), &["memory", "4M"]);
    let mut disk = disk(&spec(home.path(), "answer_s=1,dead_s=2"), 4);
    assert_eq!(disk.call(write(0, 5, 4096)).0, Ok(()));
    let signal = |name: &str| {
        let pid = server.child.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let began = Instant::now();
    assert_eq!(disk.call(Request::new(Op::Read, 0, 4096)).0, Err(Errno::EIO));
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(15), "{took:?}");
    signal("-CONT");
    wait_until(IN_USE, || disk.call(Request::new(Op::Read, 0, 4096)).0.is_ok());
    disk.close();
}

#[test]
fn one_that_ends_with_its_last_client_is_found_again_by_nobody_and_that_is_fine() {
    let home = folder();
    let mut server = Foreign::nbdkit(home.path(), &["--filter=exitlast", "memory", "4M"]);
    let mut disk = disk(&spec(home.path(), ""), 4);
    assert_eq!(disk.call(write(0, 5, 4096)).0, Ok(()));
    disk.close();
    wait_at_most(10, "the end of the last connection", || server.child.try_wait().unwrap().is_some());
}

#[test]
fn an_export_that_is_another_when_it_is_back_is_not_taken_for_the_disk() {
    let home = folder();
    let mut server = Foreign::nbdkit(home.path(), &["memory", "4M"]);
    let mut disk = disk(&spec(home.path(), "dead_s=1"), 4);
    assert_eq!(disk.call(Request::new(Op::Read, 0, 4096)).0, Ok(()));
    for (arguments, is_taken) in
        [(&["memory", "2M"][..], false), (&["-r", "memory", "4M"], false), (&["memory", "6M"], true)]
    {
        server.kill();
        server = Foreign::nbdkit(home.path(), arguments);
        std::thread::sleep(Duration::from_millis(1500));
        let mut is_ok = || disk.call(Request::new(Op::Read, 0, 4096)).0.is_ok();
        match is_taken {
            true => wait_at_most(10, IN_USE, is_ok),
            false => assert!(!is_ok(), "{arguments:?}"),
        }
    }
    assert_eq!(disk.stack.geometry().size, 4 << 20, "a disk does not grow under its users");
    disk.close();
}

#[test]
fn whoever_serves_a_disk_whose_server_is_gone_says_so_at_the_end() {
    let home = folder();
    image(home.path(), SIZE);
    let mut server = Foreign::nbdkit(home.path(), &FORGETFUL);
    let chain = Server::start(&[&spec(home.path(), "dead_s=1")]);
    let mut client = Client::transmitting(&chain.socket());
    client.write(0, &[5; 4096]).unwrap();
    server.kill();
    assert_eq!(client.ask(READ, 0, 4096), Err(5));
    chain.terminate();
    let (status, said) = chain.ended();
    assert!(!status.success() && said.contains("cannot flush what was written"), "{status}: {said}");
    assert!(said.contains("connection lost") && said.contains("no server for 1 s"), "{said}");
}
