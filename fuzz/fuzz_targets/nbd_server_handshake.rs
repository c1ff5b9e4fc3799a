//! Whatever a client says in the handshake, and however it arrives: no panic, the same answers, and few of them for
//! each message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::nbd::handshake::{Handshake, Progress};
use protocol::nbd::{BlockSizes, Broken, Export, ExportFlags, Settled};

/// More than the longest answer to one option: two exports in a list, with names and descriptions.
const MOST_SAID: usize = 1024;

fn export(name: &str, description: &str) -> Export {
    Export {
        name: name.into(),
        description: description.into(),
        size: 1 << 40,
        flags: ExportFlags::all(),
        block: BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 },
    }
}

/// All that was said, where it ended, and what was settled then.
fn driven(
    exports: &[Export],
    stream: &[u8],
    piece: usize,
) -> (Vec<u8>, Result<Progress, Broken>, Option<Settled>) {
    let mut handshake = Handshake::new();
    let (mut said, mut buffer) = (Vec::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            let received = handshake.receive(&buffer, exports);
            assert!(handshake.to_send().len() <= MOST_SAID, "{} bytes at once", handshake.to_send().len());
            said.append(handshake.to_send());
            match received {
                Err(broken) => return (said, Err(broken), None),
                Ok((used, progress)) => {
                    buffer.drain(..used);
                    match progress {
                        Progress::Incomplete => break,
                        Progress::Answered => {}
                        Progress::Transmission(number) => {
                            let settled = handshake.settled(&exports[number]);
                            return (said, Ok(progress), Some(settled));
                        }
                        end => return (said, Ok(end), None),
                    }
                }
            }
        }
        // What waits is never longer than an option that is looked at.
        assert!(buffer.len() <= 16 + (8 << 10));
    }
    (said, Ok(Progress::Incomplete), None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece, stream)) = data.split_first() else { return };
    let exports = [export("disk", "a disk"), export("", "the default")];
    let whole = driven(&exports, stream, stream.len().clamp(1, 8 << 10));
    assert_eq!(driven(&exports, stream, usize::from(piece) + 1), whole);
});
