//! Whatever a client sends in transmission, and however it arrives: no panic, the same events, and no request that is
//! not inside the export.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::io::Op;
use protocol::nbd::transmission::{Event, Incoming, Reply, Rules, Wanted};
use protocol::nbd::{BlockSizes, Export, ExportFlags, Headers, Settled};

const SIZE: u64 = 1 << 30;
const MAXIMUM: u64 = 1 << 20;

fn rules(read_only: bool) -> Rules {
    let mut flags = ExportFlags::all();
    flags.set(ExportFlags::READ_ONLY, read_only);
    Rules::new(&Export {
        name: String::new(),
        description: String::new(),
        size: SIZE,
        flags,
        block: BlockSizes { minimum: 512, preferred: 4096, maximum: MAXIMUM as u32 },
    })
}

fn check(wanted: &Wanted, read_only: bool) {
    assert!(!(read_only && wanted.op.modifies()));
    if wanted.op == Op::Flush {
        return;
    }
    assert!(wanted.len > 0 && (wanted.offset | wanted.len) % 512 == 0);
    assert!(wanted.offset.checked_add(wanted.len).is_some_and(|end| end <= SIZE));
    let carries = wanted.op == Op::Write || matches!(wanted.reply, Reply::Data | Reply::DataInOne);
    assert!(!carries || wanted.len <= MAXIMUM);
}

fn events(settled: Settled, read_only: bool, stream: &[u8], piece: usize) -> (Vec<Event>, bool) {
    let mut incoming = Incoming::new(rules(read_only), settled);
    let (mut events, mut payload, mut buffer) = (Vec::new(), 0u64, Vec::new());
    for bytes in stream.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            let here = payload.min(buffer.len() as u64);
            buffer.drain(..here as usize);
            payload -= here;
            if payload > 0 {
                break;
            }
            let Ok((used, event)) = incoming.next(&buffer) else { return (events, true) };
            buffer.drain(..used);
            if event == Event::Incomplete {
                break;
            }
            events.push(event);
            match event {
                Event::Request(wanted) => {
                    check(&wanted, read_only);
                    payload = if wanted.op == Op::Write { wanted.len } else { 0 };
                }
                Event::Disconnect => return (events, false),
                Event::Refused { .. } | Event::Incomplete => {}
            }
        }
        // Whatever is refused is thrown away as it comes: only a head waits.
        assert!(buffer.len() < 64);
    }
    (events, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((&[how, piece], stream)) = data.split_first_chunk::<2>() else { return };
    let headers = [Headers::Simple, Headers::Structured, Headers::Extended][usize::from(how) % 3];
    let settled = Settled { headers, allocation: how & 64 != 0 && headers != Headers::Simple };
    let read_only = how & 128 != 0;
    let whole = events(settled, read_only, stream, stream.len().max(1));
    assert_eq!(events(settled, read_only, stream, usize::from(piece) + 1), whole);
});
