//! An NBD server with nothing behind it, for `cargo xtask bench --nbd`: what a server has to do at least.
//!
//! `nbd_responder SOCKET SIZE` says yes to every write and answers every read with what happens to be in its memory: no
//! bounds are checked and nothing is kept. It takes as many requests from a receive as there are, and gathers the
//! answers to them into one send, in one thread a connection: no server that has a backend as well can do it with less.
//! It speaks what fio and nbdcopy need (NBD's doc/proto.md: fixed newstyle, GO, simple replies) and trusts them.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// Bytes of a receive and of a send: room for more than 64 requests of 4 KiB.
const ROOM: usize = 1 << 20;

const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, CAN_MULTI_CONN.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let (Some(path), Some(size)) = (words.next(), words.next().and_then(|size| size.parse::<u64>().ok()))
    else {
        return Err(Error::new(ErrorKind::InvalidInput, "usage: nbd_responder SOCKET SIZE"));
    };
    for client in UnixListener::bind(path)?.incoming() {
        let client = client?;
        std::thread::spawn(move || {
            // A client that leaves is no failure of ours.
            let _ = handshake(&client, size)
                .and_then(|goes_on| if goes_on { transmission(&client) } else { Ok(()) });
        });
    }
    Ok(())
}

fn number<const N: usize>(mut client: &UnixStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Whether the client wants to begin.
fn handshake(mut client: &UnixStream, size: u64) -> Result<bool> {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    number::<4>(client)?;
    loop {
        number::<8>(client)?;
        let option = u32::from_be_bytes(number(client)?);
        let mut data = vec![0; u32::from_be_bytes(number(client)?) as usize];
        client.read_exact(&mut data)?;
        let reply = |kind: u32, data: &[u8]| {
            let mut reply = OPTION_REPLY.to_be_bytes().to_vec();
            reply.extend(option.to_be_bytes());
            reply.extend(kind.to_be_bytes());
            reply.extend((data.len() as u32).to_be_bytes());
            reply.extend(data);
            (&mut &*client).write_all(&reply)
        };
        match option {
            // GO, or INFO.
            7 | 6 => {
                let mut info = vec![0, 0];
                info.extend(size.to_be_bytes());
                info.extend(FLAGS.to_be_bytes());
                reply(3, &info)?;
                reply(1, &[])?;
                if option == 7 {
                    return Ok(true);
                }
            }
            // ABORT.
            2 => return reply(1, &[]).map(|()| false),
            // Whatever else there is we do not know, EXPORT_NAME included, which nobody needs beside GO.
            _ => reply(1 << 31 | 1, &[])?,
        }
    }
}

fn transmission(mut client: &UnixStream) -> Result<()> {
    let (mut received, mut replies) = (vec![0; ROOM], vec![0; ROOM]);
    // Bytes that are there, and of a write's that are not to be looked at.
    let (mut there, mut skip) = (0, 0);
    // The write whose bytes are being skipped: nobody expects its answer before the last of them.
    let mut write: Option<[u8; 8]> = None;
    loop {
        let count = client.read(&mut received[there..])?;
        if count == 0 {
            return Ok(());
        }
        there += count;
        let (mut at, mut gathered) = (0, 0);
        loop {
            let skipped = skip.min(there - at);
            at += skipped;
            skip -= skipped;
            if skip != 0 {
                break;
            }
            let (cookie, len) = match write.take() {
                Some(cookie) => (cookie, 0),
                None => {
                    let Some(request) = received[at..there].first_chunk::<28>() else { break };
                    let field = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| request[at + byte]));
                    let (magic, kind, len) = (field(0), field(4) & 0xffff, field(24) as usize);
                    let cookie = std::array::from_fn(|byte| request[8 + byte]);
                    at += request.len();
                    match kind {
                        _ if magic != REQUEST => return Ok(()),
                        0 => (cookie, len),
                        1 => {
                            (skip, write) = (len, Some(cookie));
                            continue;
                        }
                        2 => return Ok(()),
                        _ => (cookie, 0),
                    }
                }
            };
            let answer = 16 + len;
            if gathered + answer > replies.len() {
                client.write_all(&replies[..gathered])?;
                gathered = 0;
                replies.resize(replies.len().max(answer), 0);
            }
            let reply = &mut replies[gathered..gathered + 16];
            reply[..4].copy_from_slice(&SIMPLE_REPLY.to_be_bytes());
            reply[4..8].fill(0);
            reply[8..].copy_from_slice(&cookie);
            gathered += answer;
        }
        received.copy_within(at..there, 0);
        there -= at;
        client.write_all(&replies[..gathered])?;
    }
}
