//! Whatever a server says in the handshake, and however it arrives: no panic, the same end, nothing in the clear where the
//! connection must be encrypted, and nothing that is longer than it may be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::nbd::Headers;
use protocol::nbd::client::Negotiated;
use protocol::nbd::client::handshake::{Failed, Handshake, Progress};

/// More than all that a client says: flags, six options, and the name of the export in two of them.
const MOST_SAID: usize = 256;

/// The longest reply to an option.
const MOST_WAITING: usize = 20 + (64 << 10);

/// What a client says before TLS: its flags and STARTTLS.
const IN_THE_CLEAR: usize = 4 + 16;

fn check(told: &Negotiated) {
    assert!(told.size <= i64::MAX as u64);
    if let Some(block) = told.block {
        assert!(
            block.minimum.is_power_of_two() && block.minimum <= 64 << 10 && block.maximum >= block.minimum
        );
    }
    assert!(told.allocation.is_none() || told.headers != Headers::Simple);
}

/// All that was said, and how it ended.
fn driven(encrypt: bool, stream: &[u8], piece: usize) -> (Vec<u8>, Result<Progress, Failed>) {
    let mut handshake = Handshake::new("disk", encrypt);
    let (mut said, mut buffer, mut in_the_clear) = (Vec::new(), Vec::new(), encrypt);
    for bytes in stream.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            let received = handshake.receive(&buffer);
            said.append(handshake.to_send());
            assert!(said.len() <= if in_the_clear { IN_THE_CLEAR } else { MOST_SAID });
            match received {
                Err(failed) => return (said, Err(failed)),
                Ok((used, progress)) => {
                    buffer.drain(..used);
                    match progress {
                        Progress::Incomplete => break,
                        Progress::Answered => {}
                        Progress::StartTls => {
                            assert!(in_the_clear);
                            in_the_clear = false;
                            handshake.encrypted();
                            said.append(handshake.to_send());
                        }
                        Progress::Transmission(told) => {
                            assert!(!in_the_clear);
                            check(&told);
                            return (said, Ok(progress));
                        }
                    }
                }
            }
        }
        assert!(buffer.len() <= MOST_WAITING);
    }
    (said, Ok(Progress::Incomplete))
}

fuzz_target!(|data: &[u8]| {
    let Some((&[how, piece], stream)) = data.split_first_chunk::<2>() else { return };
    let encrypt = how & 1 != 0;
    let whole = driven(encrypt, stream, stream.len().clamp(1, MOST_WAITING));
    assert_eq!(driven(encrypt, stream, usize::from(piece) + 1), whole);
});
