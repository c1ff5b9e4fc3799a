//! Every filter against a model of a disk, with many requests at once on two queues.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockhaus::backend::Backend;
use blockhaus::backend::dynamic::Dynamic;
use blockhaus::backend::ram::Ram;
use blockhaus::config::Spec;
use blockhaus::filter::blocksize::Blocksize;
use blockhaus::filter::fault::{Fault, Rule, When};
use blockhaus::filter::log::Log;
use blockhaus::filter::offset::Offset;
use blockhaus::filter::stripe::Stripe;
use blockhaus::filter::throttle::{Limits, Throttle};
use blockhaus::io::extents::{Extent, State, extents};
use blockhaus::io::{Capabilities, Errno, Flags, Op};
use blockhaus::queue::Stack;
use blockhaus::stack::{OpenOptions, SpecTable};
use played::{Disk, MAX_IO, Request};
use proptest::prelude::*;
use strict::Strict;

#[path = "harness/played.rs"]
mod played;
#[path = "harness/strict.rs"]
mod strict;

const QUEUES: u16 = 2;
const DEPTH: u16 = 16;

/// What a disk must hold. A byte that was discarded may be anything.
struct Model {
    bytes: Vec<Option<u8>>,
    discard_zeroes: bool,
}

impl Model {
    fn of(stack: &dyn Stack) -> Model {
        let zero = Some(0);
        Model {
            bytes: vec![zero; stack.geometry().size as usize],
            discard_zeroes: stack.capabilities().contains(Capabilities::DISCARD_ZEROES),
        }
    }

    fn apply(&mut self, request: &Request) {
        let range = &mut self.bytes[request.offset as usize..(request.offset + request.len) as usize];
        match request.op {
            Op::Write => range.iter_mut().zip(&request.data).for_each(|(byte, new)| *byte = Some(*new)),
            Op::WriteZeroes => range.fill(Some(0)),
            Op::Discard => range.fill(if self.discard_zeroes { Some(0) } else { None }),
            Op::Read | Op::Flush | Op::Extents => {}
        }
    }

    fn check(&self, request: &Request, data: &[u8]) -> Result<(), TestCaseError> {
        let range = &self.bytes[request.offset as usize..(request.offset + request.len) as usize];
        if request.op == Op::Extents {
            return self.check_extents(request, data);
        }
        for (at, (expected, got)) in range.iter().zip(data).enumerate() {
            if let Some(expected) = expected {
                let offset = request.offset + at as u64;
                prop_assert_eq!(*got, *expected, "byte {} of {:?}", offset, request.op);
            }
        }
        Ok(())
    }
}

impl Model {
    /// An answer says something of the first byte at least, of no byte beyond the range, and zeros are zeros.
    fn check_extents(&self, request: &Request, answer: &[u8]) -> Result<(), TestCaseError> {
        let mut at = request.offset as usize;
        for Extent { len, state } in extents(answer, u64::MAX) {
            let run = &self.bytes[at..at + len as usize];
            at += run.len();
            let is_zero = run.iter().all(|byte| byte.is_none_or(|byte| byte == 0));
            prop_assert!(!state.contains(State::ZERO) || is_zero, "{len} bytes before {at} are no zeros");
        }
        prop_assert!(at as u64 > request.offset && at as u64 <= request.offset + request.len, "up to {at}");
        Ok(())
    }
}

/// What is asked for at once, in units of the disk: kind, start, length, byte.
type Batch = Vec<(u8, u64, u64, u8)>;

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let near = (0u8..10, 0u64..48, 1u64..24, any::<u8>());
    let anywhere = (0u8..10, 0u64..4096, 1u64..200, any::<u8>());
    let request = prop_oneof![3 => near, 1 => anywhere];
    prop::collection::vec(prop::collection::vec(request, 1..40), 1..8)
}

/// The requests of a batch that can be told apart: none touches what another one changes.
fn requests(batch: &Batch, unit: u64, size: u64) -> Vec<Request> {
    let mut taken: Vec<(u64, u64, bool)> = Vec::new();
    let mut requests = Vec::new();
    for &(kind, start, len, byte) in batch {
        let units = (size / unit).min(4096);
        let start = start % units * unit;
        let len = (len * unit).min(size - start).min(u64::from(MAX_IO));
        let (op, flags) = match kind {
            0..=3 => (Op::Write, Flags::empty()),
            4 => (Op::Write, Flags::FUA),
            5 => (Op::WriteZeroes, Flags::empty()),
            6 => (Op::Discard, Flags::empty()),
            7 => (Op::Flush, Flags::empty()),
            8 if byte % 2 == 0 => (Op::Extents, Flags::empty()),
            _ => (Op::Read, Flags::empty()),
        };
        let end = start + len;
        let changes = op.modifies();
        if op != Op::Flush && taken.iter().any(|&(s, e, c)| s < end && start < e && (changes || c)) {
            continue;
        }
        let data = if op == Op::Write {
            (0..len).map(|at| byte ^ (at / 512) as u8 ^ (start / 512) as u8).collect()
        } else {
            Vec::new()
        };
        if op != Op::Flush {
            taken.push((start, end, changes));
        }
        requests.push(Request { op, flags, offset: start, len, data });
    }
    requests
}

fn holds_what_was_written(stack: Arc<dyn Stack>, batches: &[Batch]) -> Result<(), TestCaseError> {
    let geometry = stack.geometry();
    let mut model = Model::of(&*stack);
    let mut disk = Disk::open(stack, QUEUES, DEPTH);
    let mut run = |disk: &mut Disk, requests: Vec<Request>| {
        let first = disk.ask(0, Request::new(Op::Flush, 0, 0));
        for (at, request) in requests.iter().enumerate() {
            disk.ask(at, request.clone());
        }
        let mut reads = Vec::new();
        for _ in 0..=requests.len() {
            let ended = disk.wait();
            prop_assert_eq!(ended.result, Ok(()), "request {:?}", ended.number);
            if ended.number > first && matches!(requests[ended.number - first - 1].op, Op::Read | Op::Extents)
            {
                reads.push((ended.number - first - 1, ended.data));
            }
        }
        requests.iter().for_each(|request| model.apply(request));
        reads.iter().try_for_each(|(number, data)| model.check(&requests[*number], data))
    };
    let mut result = Ok(());
    for batch in batches {
        let unit = u64::from(geometry.logical_block_size);
        result = result.and_then(|()| run(&mut disk, requests(batch, unit, geometry.size)));
    }
    let everything = (0..geometry.size)
        .step_by(MAX_IO as usize)
        .map(|offset| Request::new(Op::Read, offset, (geometry.size - offset).min(u64::from(MAX_IO))));
    result = result.and_then(|()| run(&mut disk, everything.collect()));
    disk.close();
    result
}

fn never() -> Rule {
    Rule { op: Some(Op::Discard), start: u64::MAX - 1, errno: Some(Errno::EIO), ..Rule::default() }
}

fn sometimes_late() -> Rule {
    Rule { when: When::Every(7), delay_ms: 1, ..Rule::default() }
}

fn dynamic(backend: impl Backend) -> Dynamic {
    Dynamic::new(Arc::new(backend))
}

const FAST: Limits = Limits { iops: Some(200_000), bandwidth: Some(1 << 31), burst_ms: 10 };

type Build = fn() -> Arc<dyn Stack>;

const STACKS: &[(&str, Build)] = &[
    ("strict itself", || Arc::new(Strict::new(1 << 20, 512, 1))),
    ("blocksize", || Arc::new(Blocksize::new(Strict::new(256 << 10, 4096, 1), 512).unwrap())),
    ("blocksize, memory aligned", || {
        Arc::new(Blocksize::new(Strict::new(256 << 10, 4096, 4096), 512).unwrap())
    }),
    ("blocksize, memory aligned beyond its blocks", || {
        Arc::new(Blocksize::new(Strict::new(256 << 10, 512, 4096), 128).unwrap())
    }),
    ("blocksize of single bytes", || Arc::new(Blocksize::new(Strict::new(64 << 10, 512, 512), 1).unwrap())),
    ("blocksize, large blocks", || {
        Arc::new(Blocksize::new(Strict::new(1 << 20, 64 << 10, 512), 512).unwrap())
    }),
    ("blocksize, coarser", || Arc::new(Blocksize::new(Strict::new(255 << 10, 512, 1), 4096).unwrap())),
    ("blocksize of a disk that zeroes what is discarded", || {
        let mut below = Strict::new(256 << 10, 4096, 512);
        below.capabilities |= Capabilities::DISCARD_ZEROES;
        Arc::new(Blocksize::new(below, 512).unwrap())
    }),
    ("offset", || Arc::new(Offset::new(Strict::new(1 << 20, 512, 1), 5120, Some(300 << 10)).unwrap())),
    ("stripe", || {
        let members = (0..3).map(|extra| Strict::new((400 + extra) << 10, 512, 1)).collect();
        Arc::new(Stripe::new(members, 4096).unwrap())
    }),
    ("stripe of eight, coarse blocks", || {
        let members = (0..8).map(|_| Strict::new(128 << 10, 4096, 512)).collect();
        Arc::new(Stripe::new(members, 8192).unwrap())
    }),
    ("blocksize on a stripe", || {
        let members = (0..3).map(|_| Strict::new(96 << 10, 4096, 4096)).collect();
        Arc::new(Blocksize::new(Stripe::new(members, 4096).unwrap(), 512).unwrap())
    }),
    ("stripe of blocksizes", || {
        let members =
            (0..2).map(|_| Blocksize::new(Strict::new(96 << 10, 4096, 512), 512).unwrap()).collect();
        Arc::new(Stripe::new(members, 1024).unwrap())
    }),
    ("throttle", || Arc::new(Throttle::new(Strict::new(256 << 10, 512, 1), FAST).unwrap())),
    ("fault", || Arc::new(Fault::new(Strict::new(256 << 10, 512, 1), sometimes_late()).unwrap())),
    ("log", || {
        Arc::new(Log::new(Strict::new(256 << 10, 512, 1), Box::new(std::io::sink()), "nothing").unwrap())
    }),
    ("three static ones on memory", || {
        let ram = Ram::new(1 << 20, 4096, false).unwrap();
        let offset = Offset::new(ram, 8192, None).unwrap();
        Arc::new(Throttle::new(Blocksize::new(offset, 512).unwrap(), FAST).unwrap())
    }),
    ("three dynamic ones", || {
        let offset = dynamic(Offset::new(dynamic(Strict::new(512 << 10, 4096, 512)), 8192, None).unwrap());
        let blocksize = dynamic(Blocksize::new(offset, 512).unwrap());
        Arc::new(Fault::new(blocksize, sometimes_late()).unwrap())
    }),
    ("a dynamic stripe of dynamic stripes", || {
        let disk = || dynamic(Strict::new(32 << 10, 512, 1));
        let inner = || dynamic(Stripe::new((0..4).map(|_| disk()).collect(), 1024).unwrap());
        Arc::new(Stripe::new((0..4).map(|_| inner()).collect(), 2048).unwrap())
    }),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_stack_holds_what_was_written(batches in batches()) {
        for (name, build) in STACKS {
            let result = holds_what_was_written(build(), &batches);
            prop_assert!(result.is_ok(), "{name}: {}", result.unwrap_err());
        }
    }
}

fn pattern(len: usize, byte: u8) -> Vec<u8> {
    (0..len).map(|at| byte ^ (at / 512) as u8).collect()
}

#[test]
fn what_a_filter_cannot_keep_it_takes_away() {
    let full = || {
        let mut strict = Strict::new(1 << 20, 4096, 1);
        strict.capabilities = Capabilities::all();
        strict
    };
    let blocksize = Blocksize::new(full(), 512).unwrap();
    let lost = Capabilities::HIDDEN_PAYLOAD | Capabilities::DISCARD_ZEROES;
    assert_eq!(Backend::capabilities(&blocksize), Capabilities::all() - lost);
    let geometry = Backend::geometry(&blocksize);
    assert_eq!((geometry.logical_block_size, geometry.physical_block_size), (512, 4096));
    let coarser = Blocksize::new(full(), 8192).unwrap();
    assert_eq!(Backend::capabilities(&coarser), Capabilities::all());
    assert_eq!(Backend::geometry(&coarser).logical_block_size, 8192);
    for same in [
        Backend::capabilities(&Offset::new(full(), 4096, None).unwrap()),
        Backend::capabilities(&Throttle::new(full(), FAST).unwrap()),
        Backend::capabilities(&Fault::new(full(), Rule { torn: true, op: None, ..never() }).unwrap()),
        Backend::capabilities(&Log::new(full(), Box::new(std::io::sink()), "").unwrap()),
    ] {
        assert_eq!(same, Capabilities::all());
    }
    // An odd size: what is no whole block below is not shown.
    let odd = Blocksize::new(Strict::new((1 << 20) + 1536, 4096, 1), 512).unwrap();
    assert_eq!(Backend::geometry(&odd).size, 1 << 20);
    assert!(Backend::notes(&odd)[0].contains("the last 1536 bytes"));
    assert!(Blocksize::new(Strict::new(1536, 4096, 1), 512).is_err());
    // Nor can it count in blocks that are no power of two.
    assert!(Blocksize::new(Strict::new(1536 << 10, 1536, 1), 512).is_err());
    assert!(Blocksize::new(full(), 1000).is_err());
}

#[test]
fn a_stripe_promises_what_all_its_members_keep() {
    let with = |capabilities: Capabilities, size: u64| {
        let mut strict = Strict::new(size, 512, 1);
        strict.capabilities = capabilities;
        strict
    };
    let all = Capabilities::all();
    let fold = |one, other| {
        Backend::capabilities(&Stripe::new(vec![with(one, 1 << 20), with(other, 1 << 20)], 4096).unwrap())
    };
    assert_eq!(fold(all, all), all);
    let without_cache = all - Capabilities::VOLATILE_CACHE - Capabilities::FUA - Capabilities::ROTATIONAL;
    assert_eq!(fold(all, without_cache), all, "what has no cache is durable by itself");
    assert_eq!(fold(without_cache, without_cache), without_cache);
    assert!(!fold(all, all - Capabilities::FUA).contains(Capabilities::FUA));
    assert!(!fold(all, all - Capabilities::HIDDEN_PAYLOAD).contains(Capabilities::HIDDEN_PAYLOAD));
    assert!(!fold(all, Capabilities::empty()).contains(Capabilities::WRITE));

    let members = vec![with(all, 1 << 20), with(all, (1 << 20) - 512)];
    let stripe = Stripe::new(members.clone(), 4096).unwrap();
    assert_eq!(Backend::geometry(&stripe).size, 2 * ((1 << 20) - 4096));
    let mut disk = Disk::open(Arc::new(stripe), 1, 4);
    assert_eq!(disk.call(Request::new(Op::Flush, 0, 0)).0, Ok(()));
    disk.close();
    assert!(members.iter().all(|member| member.shared.flushes.load(Ordering::SeqCst) == 1));
    assert!(Stripe::new(vec![with(all, 1 << 20)], 4096).is_err());
    assert!(Stripe::new(vec![with(all, 1 << 20), with(all, 1 << 20)], 256).is_err());
    assert!(Stripe::new(vec![with(all, 1 << 20), with(all, 2048)], 4096).is_err());
}

#[test]
fn a_throttle_lets_so_much_through_and_no_more() {
    let limits = Limits { iops: Some(1000), bandwidth: None, burst_ms: 0 };
    let stack = Throttle::new(Ram::new(1 << 20, 512, false).unwrap(), limits).unwrap();
    let mut disk = Disk::open(Arc::new(stack), QUEUES, DEPTH);
    let start = Instant::now();
    for number in 0..200 {
        disk.ask(number, Request::new(Op::Read, 0, 512));
    }
    for _ in 0..200 {
        assert_eq!(disk.wait().result, Ok(()));
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(198), "200 requests took {took:?}");
    disk.close();

    let limits = Limits { iops: None, bandwidth: Some(1 << 20), burst_ms: 100 };
    let stack = Throttle::new(Ram::new(1 << 20, 512, false).unwrap(), limits).unwrap();
    let mut disk = Disk::open(Arc::new(stack), QUEUES, DEPTH);
    let start = Instant::now();
    for number in 0..64 {
        disk.ask(number, Request::write(number as u64 * 4096, pattern(4096, 1)));
        disk.ask(number, Request::new(Op::Flush, 0, 0));
    }
    for _ in 0..128 {
        assert_eq!(disk.wait().result, Ok(()));
    }
    let took = start.elapsed();
    // 256 KiB at 1 MiB a second, a tenth of a second of it for nothing.
    assert!(took >= Duration::from_millis(145), "64 writes took {took:?}");
    disk.close();
    assert!(Throttle::new(Strict::new(4096, 512, 1), Limits::default()).is_err());
}

/// The numbers of the requests that fail, of so many reads on one queue.
fn struck(rule: Rule, count: usize) -> Vec<usize> {
    let stack = Fault::new(Ram::new(1 << 20, 512, false).unwrap(), rule).unwrap();
    let mut disk = Disk::open(Arc::new(stack), 1, 1);
    let failed = (0..count).filter(|_| disk.call(Request::new(Op::Read, 0, 4096)).0.is_err()).collect();
    disk.close();
    failed
}

#[test]
fn faults_strike_by_rule_and_the_same_seed_strikes_the_same() {
    let rule = Rule { errno: Some(Errno::ENOSPC), ..Rule::default() };
    assert_eq!(struck(Rule { when: When::Every(3), ..rule }, 10), [2, 5, 8]);
    let chance = Rule { when: When::Probability(0.25), seed: 7, ..rule };
    let first = struck(chance, 400);
    assert!((60..140).contains(&first.len()), "{} of 400", first.len());
    assert_eq!(first, struck(chance, 400));
    assert_ne!(first, struck(Rule { seed: 8, ..chance }, 400));
    assert!(struck(Rule { when: When::Probability(0.0), ..rule }, 50).is_empty());
    assert_eq!(struck(Rule { when: When::Probability(1.0), ..rule }, 50).len(), 50);
    assert!(struck(Rule { op: Some(Op::Write), ..rule }, 10).is_empty());
    assert!(struck(Rule { start: 4096, ..rule }, 10).is_empty());
    assert_eq!(struck(Rule { start: 4095, end: 4096, ..rule }, 10).len(), 10);
    let late = Instant::now();
    assert!(struck(Rule { delay_ms: 20, errno: None, ..rule }, 5).is_empty());
    assert!(late.elapsed() >= Duration::from_millis(100));
    for bad in [
        Rule::default(),
        Rule { torn: true, ..Rule::default() },
        Rule { torn: true, op: Some(Op::Read), ..rule },
        Rule { when: When::Every(0), ..rule },
        Rule { when: When::Probability(1.5), ..rule },
        Rule { start: 9, end: 9, ..rule },
    ] {
        assert!(Fault::new(Strict::new(4096, 512, 1), bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_torn_write_is_written_in_part_and_fails() {
    let rule = Rule { torn: true, errno: Some(Errno::EIO), op: Some(Op::Write), ..Rule::default() };
    let strict = Strict::new(1 << 20, 512, 1);
    let mut disk = Disk::open(Arc::new(Fault::new(strict.clone(), rule).unwrap()), 1, 4);
    let mut lengths = std::collections::BTreeSet::new();
    for round in 0..40u64 {
        let offset = round * 8192;
        assert_eq!(disk.call(Request::write(offset, vec![9; 4096])).0, Err(Errno::EIO));
        let contents = strict.shared.contents.lock().expect("no panic").clone();
        let written = contents[offset as usize..][..8192].iter().take_while(|&&byte| byte == 9).count();
        assert!(contents[offset as usize + written..].iter().all(|&byte| byte == 0));
        assert!(written < 4096 && written.is_multiple_of(512), "{written}");
        lengths.insert(written);
    }
    assert!(lengths.len() >= 5, "{lengths:?}");
    disk.close();
}

/// Where a log can be looked at.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_log_has_a_line_for_each_request_or_counts_it_as_lost() {
    let text = Text::default();
    let faulty = Fault::new(
        Ram::new(1 << 20, 512, false).unwrap(),
        Rule { op: Some(Op::Write), start: 8192, errno: Some(Errno::ENOSPC), ..Rule::default() },
    );
    let log = Log::new(faulty.unwrap(), Box::new(text.clone()), "a test").unwrap();
    let mut disk = Disk::open(Arc::new(log), QUEUES, DEPTH);
    assert_eq!(disk.call(Request::write(512, vec![1; 1024])).0, Ok(()));
    assert_eq!(disk.call(Request::write(8192, vec![1; 512])).0, Err(Errno::ENOSPC));
    disk.call(Request::new(Op::Flush, 0, 0)).0.unwrap();
    let many = 30_000;
    for number in 0..many {
        disk.ask(number, Request::new(Op::Read, 4096, 512));
    }
    (0..many).for_each(|_| drop(disk.wait()));
    disk.close();
    let text = String::from_utf8(text.0.lock().unwrap().clone()).unwrap();
    let has = |what: &str| text.lines().any(|line| line.contains(what));
    assert!(has("write offset=512 len=1024 ok "), "{}", &text[..400]);
    assert!(has("write offset=8192 len=512 errno=28 "));
    assert!(has(" flush ok "));
    let written = text.lines().filter(|line| line.contains("read offset=4096 len=512 ok")).count();
    let lost: usize = text
        .lines()
        .filter_map(|line| line.strip_prefix("# ")?.strip_suffix(" lines were lost")?.parse::<usize>().ok())
        .sum();
    assert_eq!(written + lost, many);
}

/// A filter that fails writes to the log itself: nothing waits for it, all lines are lost.
#[test]
fn a_log_that_cannot_be_written_holds_nobody_up() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(28))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::new(Ram::new(1 << 20, 512, false).unwrap(), Box::new(Full), "nowhere").unwrap();
    let mut disk = Disk::open(Arc::new(log), 1, 4);
    assert_eq!(disk.call(Request::write(0, vec![1; 512])).0, Ok(()));
    disk.close();
}

fn open(spec: &str, filters: &[&str], options: OpenOptions) -> Result<Arc<dyn Stack>, String> {
    let filters: Result<Vec<Spec>, _> = filters.iter().map(|filter| Spec::filter(filter)).collect();
    let filters = filters.map_err(|error| error.to_string())?;
    let opened = SpecTable::builtin().open_with(&spec.parse().unwrap(), &filters, &options);
    opened.map_err(|error| error.to_string())
}

#[test]
fn filters_are_stacked_in_the_order_they_are_given() {
    // The window is cut out of what the stripe makes, or each member of the stripe is a window.
    let outside = open("ram:1M", &["offset,start=64K", "stripe,with=ram:1M;ram:1M"], OpenOptions::default());
    assert_eq!(outside.unwrap().geometry().size, (3 << 20) - (64 << 10));
    let inside = open("ram:1M", &["stripe,with=ram:1M;ram:1M", "offset,start=64K"], OpenOptions::default());
    assert_eq!(inside.unwrap().geometry().size, 3 * ((1 << 20) - (64 << 10)));
}

#[test]
fn what_is_asked_of_a_table_works() {
    let stack = open(
        "ram:1M",
        &[
            "fault,op=read,offset=512K,errno=ENOSPC",
            "throttle,iops=100000,bandwidth=1G,burst_ms=50",
            "log,file=/dev/null",
            "blocksize,size=512",
        ],
        OpenOptions { block_size: Some(4096), ..OpenOptions::default() },
    );
    let stack = stack.unwrap();
    let notes = stack.notes();
    let order: Vec<&str> = notes.iter().filter_map(|note| note.split(':').next()).collect();
    assert_eq!(order, ["fault", "throttle", "log", "blocksize", "ram"]);
    let mut disk = Disk::open(stack, QUEUES, DEPTH);
    assert_eq!(disk.call(Request::write(512, pattern(1536, 3))).0, Ok(()));
    assert_eq!(disk.call(Request::new(Op::Read, 512, 1536)), (Ok(()), pattern(1536, 3)));
    assert_eq!(disk.call(Request::new(Op::Read, 512 << 10, 512)).0, Err(Errno::ENOSPC));
    disk.close();
}

#[test]
fn blocks_below_the_disks_own_come_from_the_blocksize_filter() {
    let fine = open("ram:1M", &[], OpenOptions { block_size: Some(4096), ..OpenOptions::default() });
    assert_eq!(fine.unwrap().notes().len(), 1, "the disk can do it by itself");
    let options = OpenOptions { engine_unit: Some(1), ..OpenOptions::default() };
    let stack = open("ram:1M", &[], options).unwrap();
    assert_eq!(stack.geometry().logical_block_size, 1);
    let mut disk = Disk::open(stack, 1, 4);
    assert_eq!(disk.call(Request::write(7, b"blockhaus".to_vec())).0, Ok(()));
    assert_eq!(disk.call(Request::new(Op::Read, 8, 7)), (Ok(()), b"lockhau".to_vec()));
    disk.close();
    let coarse = ["blocksize,size=8192"];
    let stack = open("ram:1M", &coarse, OpenOptions { block_size: Some(512), ..OpenOptions::default() });
    assert_eq!(stack.unwrap().geometry().logical_block_size, 512);
}

/// A file that is no whole number of anything, for clients that count in bytes.
#[test]
fn an_odd_sized_file_is_shown_whole_to_whoever_counts_in_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd");
    std::fs::write(&path, pattern(100_001, 5)).unwrap();
    let spec = format!("file:{}", path.display());
    let error = open(&spec, &[], OpenOptions::default()).err().unwrap();
    assert!(error.contains("100001") && error.contains("multiple"), "{error}");

    let stack = open(&spec, &[], OpenOptions { engine_unit: Some(1), ..OpenOptions::default() }).unwrap();
    let geometry = stack.geometry();
    assert_eq!((geometry.size, geometry.logical_block_size), (100_001, 1));
    let mut disk = Disk::open(stack, QUEUES, DEPTH);
    assert_eq!(disk.call(Request::new(Op::Read, 99_000, 1001)).1, pattern(100_001, 5)[99_000..]);
    assert_eq!(disk.call(Request::new(Op::Read, 99_000, 1002)).0, Err(Errno::EINVAL));
    assert_eq!(disk.call(Request::write(99_991, vec![1; 10])).0, Ok(()));
    assert_eq!(disk.call(Request::new(Op::WriteZeroes, 3, 50_000)).0, Ok(()));
    disk.close();
    let mut expected = pattern(100_001, 5);
    expected[99_991..].fill(1);
    expected[3..50_003].fill(0);
    let found = std::fs::read(&path).unwrap();
    let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    assert_eq!((found.len(), differs), (100_001, None));
}

#[test]
fn what_asks_for_torn_writes_strikes_nothing_else() {
    let stack = open("ram:1M", &["fault,torn=yes"], OpenOptions::default()).unwrap();
    let mut disk = Disk::open(stack, 1, 4);
    assert_eq!(disk.call(Request::write(0, pattern(4096, 3))).0, Err(Errno::EIO));
    assert_eq!(disk.call(Request::new(Op::Read, 0, 512)).0, Ok(()));
    assert_eq!(disk.call(Request::new(Op::Flush, 0, 0)).0, Ok(()));
    disk.close();
}

#[test]
fn errors_of_filters_say_what_to_write() {
    let error = |filter: &str| match open("ram:1M", &[filter], OpenOptions::default()) {
        Ok(_) => panic!("{filter} was taken"),
        Err(error) => error,
    };
    let text = error("trottle,iops=5");
    assert!(
        text.starts_with("bad filter trottle,iops=5") && text.contains("did you mean throttle?"),
        "{text}"
    );
    assert!(error("throttle,ipos=5").contains("did you mean iops?"));
    assert!(error("throttle:5").contains("has no argument"));
    assert!(error("throttle,iops=many").contains("not a whole number"));
    assert!(error("throttle").contains("neither iops nor bandwidth"));
    assert!(error("fault,probability=2").contains("from 0 to 1"));
    assert!(error("fault,probability=nan").contains("from 0 to 1"));
    assert!(error("fault,every=3,probability=0.5").contains("give one of them"));
    assert!(error("fault,errno=EWHAT").contains("ENOSPC"));
    assert!(error("stripe").contains("with=ram:1G"));
    assert!(error("stripe,with=rma:1G").contains("did you mean ram?"));
    assert!(error("stripe,with=ram:1M,chunk=100").contains("power of two"));
    assert!(error("offset,start=1M").contains("smaller start"));
    assert!(error("offset,start=100").contains("blocksize"));
    assert!(error("blocksize,size=3K").contains("power of two"));
    assert!(error("log,file=/nowhere/at/all").contains("/nowhere/at/all"));
    assert!(error("1G").contains("name of a filter"));
    assert!(error("").contains("is empty"));
}
