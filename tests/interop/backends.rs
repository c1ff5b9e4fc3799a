//! Exports of backends that are slow, or fail, or keep an account of what they are asked.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use blockhaus::backend::{Backend, Queue, QueueContext};
use blockhaus::engine::nbd::{Catalogue, Exported, Offer, Options, Server};
use blockhaus::error::{Error, Result};
use blockhaus::io::{Capabilities, Errno, Geometry, Io, IoResult, Op};
use blockhaus::nbd::Request;
use blockhaus::payload::Payload;
use blockhaus::port::ring::Ring;
use blockhaus::port::stream::Listener;

use crate::raw::{Client, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, request};
use crate::server::{command, folder};

const MIB: u64 = 1 << 20;

/// What a disk without contents does with what it is asked.
#[derive(Clone, Default)]
struct Habits {
    /// It takes so long over each request.
    takes: Duration,
    /// A request that begins here fails.
    bad: Option<u64>,
    /// Its queues cannot be opened.
    no_queues: bool,
}

#[derive(Clone, Default)]
struct Disk {
    habits: Habits,
    asked: Arc<Mutex<Vec<Io>>>,
}

struct DiskQueue {
    disk: Disk,
    ring: Ring,
}

impl Backend for Disk {
    type Queue = DiskQueue;

    fn geometry(&self) -> Geometry {
        Geometry::plain(8192 * MIB)
    }

    fn capabilities(&self) -> Capabilities {
        use Capabilities as C;
        C::WRITE | C::DISCARD | C::WRITE_ZEROES | C::VOLATILE_CACHE
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<DiskQueue> {
        match self.habits.no_queues {
            true => Err(Error::invalid("cannot open the disk", "it is for show")),
            false => Ok(DiskQueue { disk: self.clone(), ring: context.ring.clone() }),
        }
    }
}

impl Queue for DiskQueue {
    async fn serve(&self, io: Io, payload: Payload<'_>) -> IoResult {
        self.disk.asked.lock().unwrap().push(io);
        let until = self.ring.now() + self.disk.habits.takes.as_nanos() as u64;
        self.ring.sleep_until(&payload, until).await?;
        match self.disk.habits.bad == Some(io.offset) {
            true => Err(Errno::EIO),
            false => Ok(()),
        }
    }
}

/// An export of such a disk, and where it is.
struct Open {
    exported: Exported,
    _door: Server,
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Io>>>,
}

fn open(habits: Habits) -> Open {
    let disk = Disk { habits, ..Disk::default() };
    let (catalogue, asked) = (Catalogue::new(4), disk.asked.clone());
    let offer =
        Offer { name: "disk".into(), description: String::new(), stack: Arc::new(disk), is_shared: false };
    let exported = Exported::start(&catalogue, offer, &Options { queues: 1, depth: 128 }).unwrap();
    let folder = folder();
    let _door = Server::open(&catalogue, vec![Listener::unix(&folder.path().join("s")).unwrap()]).unwrap();
    exported.started();
    Open { exported, _door, folder, asked }
}

impl Open {
    fn client(&self) -> Client {
        Client::transmitting(&self.folder.path().join("s"))
    }

    /// What the disk was asked since the last time: what, from where, to where.
    fn asked(&self) -> Vec<(Op, u64, u64)> {
        self.asked.lock().unwrap().drain(..).map(|io| (io.op, io.offset, io.offset + io.len)).collect()
    }
}

#[test]
fn long_ranges_are_cut_into_pieces_that_come_one_after_the_other() {
    let open = open(Habits { bad: Some(4096 * MIB), ..Habits::default() });
    let mut client = open.client();
    for (command, op) in [(WRITE_ZEROES, Op::WriteZeroes), (TRIM, Op::Discard)] {
        // Short: as it is.
        client.ask(command, 10 * MIB, 100 * MIB as u32).unwrap();
        assert_eq!(open.asked(), [(op, 10 * MIB, 110 * MIB)]);
        // Long: one reply, one flush for FUA behind all of it.
        let fua = Request { flags: 1, command, cookie: 42, offset: 100 * MIB, len: 700 * MIB };
        client.send(&fua.encode());
        assert_eq!(client.reply(), (42, 0));
        let pieces = [
            (op, 100 * MIB, 256 * MIB),
            (op, 256 * MIB, 512 * MIB),
            (op, 512 * MIB, 768 * MIB),
            (op, 768 * MIB, 800 * MIB),
            (Op::Flush, 0, 0),
        ];
        assert_eq!(open.asked(), pieces);
        // An error ends it.
        assert_eq!(client.ask(command, 3840 * MIB, 1024 * MIB as u32), Err(5));
        assert_eq!(open.asked(), [(op, 3840 * MIB, 4096 * MIB), (op, 4096 * MIB, 4352 * MIB)]);
        // The longest that there is.
        client.ask(command, 0, !4095).unwrap_or_else(|error| panic!("errno {error}"));
        assert_eq!((open.asked().len(), client.ask(FLUSH, 0, 0)), (16, Ok(Vec::new())));
        open.asked();
    }
}

#[test]
fn between_the_pieces_of_a_long_range_others_are_served() {
    let open = open(Habits { takes: Duration::from_millis(300), ..Habits::default() });
    let (mut long, mut short) = (open.client(), open.client());
    long.send(&request(WRITE_ZEROES, 1, 0, 2048 * MIB as u32));
    short.ask(READ, 0, 4096).unwrap();
    assert_eq!(long.reply(), (1, 0));
    let asked = open.asked();
    let read = asked.iter().position(|(op, ..)| *op == Op::Read);
    assert!(asked.len() == 9 && read.is_some_and(|at| at < 4), "{asked:?}");
}

#[test]
fn a_client_that_waits_for_the_disk_is_not_cut_off() {
    let open = open(Habits { takes: Duration::from_secs(19), ..Habits::default() });
    let mut patient = open.client();
    // All slots but one are with the disk.
    let most = (32 << 20) - (256 << 10);
    patient.send(&request(WRITE, 1, 0, most as u32));
    patient.send(&vec![1; most]);
    std::thread::sleep(Duration::from_secs(1));
    // Now that there are two of them that is more than its share, and one more payload waits for a slot.
    let mut other = open.client();
    std::thread::sleep(Duration::from_millis(300));
    patient.send(&request(WRITE, 2, 0, 4096));
    patient.send(&[2; 4096]);
    std::thread::sleep(Duration::from_millis(500));
    other.send(&request(READ, 3, 0, 512 << 10));
    assert_eq!(patient.reply(), (1, 0), "cut off, for the disk's sake");
}

#[test]
fn a_guest_of_a_queue_that_has_failed_is_sent_away() {
    let open = open(Habits { no_queues: true, ..Habits::default() });
    let mut guests: Vec<Client> = (0..3).map(|_| open.client()).collect();
    let began = Instant::now();
    for guest in &mut guests {
        assert!(guest.is_closed());
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    // A guest sees its end a moment before its place is free.
    while open.exported.connections() != 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "places are lost");
        std::thread::sleep(Duration::from_millis(5));
    }
    let failure = open.exported.failure().unwrap();
    assert!(failure.contains("for show"), "{failure}");
    // No place was lost either: there are four.
    for _ in 0..10 {
        assert!(open.client().is_closed());
    }
}

#[test]
fn a_queue_that_cannot_be_seated_says_at_once_why() {
    let home = folder();
    let mut reasons = 0;
    // A queue has buffers of 256 MiB: somewhere there is memory for one queue and not for two.
    for limit in (128..=4096).step_by(128).map(|mib| mib << 10) {
        let arguments = ["--listen", "unix:s", "--queues", "2", "--depth", "1024", "ram:1M"];
        let serve = command(home.path(), &arguments);
        let mut child = std::process::Command::new("sh")
            .args(["-c", &format!("ulimit -v {limit}; exec \"$0\" \"$@\"")])
            .arg(serve.get_program())
            .args(serve.get_args())
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A line when it serves, or none when it has ended.
        let (stdout, (tell, told)) = (child.stdout.take().unwrap(), mpsc::channel());
        let listens = std::thread::spawn(move || tell.send(BufReader::new(stdout).lines().next().is_some()));
        // Less than the minute after which the threads that wait for the others would be given up.
        let started = told.recv_timeout(Duration::from_secs(30));
        let _ = child.kill();
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        let _ = listens.join();
        match started {
            Ok(true) => break,
            Ok(false) => {}
            Err(_) => panic!("with {limit} KiB it neither starts nor fails: {said}"),
        }
        reasons += usize::from(said.contains("no memory for the buffers"));
    }
    assert!(reasons > 0, "no queue lacked memory");
}
