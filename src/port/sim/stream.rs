//! Transfers over sockets: real ones within this process, of which a ring takes and gives as much as
//! chance says, when chance says.

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::schedule::Event;
use super::world::State;
use crate::port::ring::{Entry, Token};

/// A transfer that has not ended.
pub(super) struct Transfer {
    pub ring: usize,
    token: Token,
    entry: Entry,
    done: u32,
}

// SAFETY: the address in the entry is the server's memory, which it keeps until the transfer has ended,
// whatever thread carries it out.
unsafe impl Send for Transfer {}

impl State {
    /// A transfer came into a ring.
    pub fn transfer(&mut self, ring: usize, entry: Entry, token: Token) {
        self.numbered += 1;
        let number = self.numbered;
        self.transfers.insert(number, Transfer { ring, token, entry, done: 0 });
        let after = self.latency();
        self.schedule.after(after, Event::Transfer(number));
    }

    /// It gets on, or has to wait.
    pub fn get_on(&mut self, number: u64) {
        let Some(mut transfer) = self.transfers.remove(&number) else { return };
        let ring = &self.rings[transfer.ring];
        if ring.closed || self.process_dead(ring.process) {
            // Its socket is closed, and its number may be another's.
            return;
        }
        let (len, whole) = match transfer.entry {
            Entry::Receive { len, all, .. } => (len, all),
            Entry::Send { len, .. } => (len, true),
            _ => return,
        };
        let left = len - transfer.done;
        let few = self.random.chance(self.config.faults.short.max(50));
        let most = if few { self.random.between(1, u64::from(left.max(1))) as u32 } else { left };
        let moved = move_bytes(&transfer, most.min(left));
        self.note("transfer", [number, transfer.done.into(), moved.unwrap_or(-1) as u64, u64::from(most)]);
        match moved {
            Ok(count) => {
                transfer.done += count as u32;
                // As after a signal: what was moved counts, and the rest is asked for again.
                let cut_short = self.random.chance(self.config.faults.interrupted);
                let over = count == 0 || transfer.done == len || !whole || cut_short;
                if over {
                    return self.complete(transfer.ring, transfer.token, transfer.done as i32);
                }
            }
            Err(Errno::EAGAIN) => {}
            Err(_) if transfer.done > 0 => {
                return self.complete(transfer.ring, transfer.token, transfer.done as i32);
            }
            Err(errno) => {
                self.note("transfer failed", [number, errno as u64, 0, 0]);
                return self.complete(transfer.ring, transfer.token, -(errno as i32));
            }
        }
        self.transfers.insert(number, transfer);
        let after = self.random.between(20_000, 150_000);
        self.schedule.after(after, Event::Transfer(number));
    }
}

fn move_bytes(transfer: &Transfer, most: u32) -> Result<i32, Errno> {
    let done = transfer.done as usize;
    let waits_not = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let count = match transfer.entry {
        Entry::Receive { socket, start, .. } => {
            // SAFETY: the entry names this much memory, which is initialised and the transfer's alone
            // until it has ended.
            let bytes = unsafe { std::slice::from_raw_parts_mut(start.add(done), most as usize) };
            recv(socket, bytes, waits_not)?
        }
        Entry::Send { socket, start, .. } => {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(start.add(done), most as usize) };
            send(socket, bytes, waits_not)?
        }
        _ => 0,
    };
    Ok(count as i32)
}

/// Whether a ring has transfers that have not ended.
pub(super) fn any_of(state: &State, ring: usize) -> bool {
    state.transfers.values().any(|transfer| transfer.ring == ring)
}
