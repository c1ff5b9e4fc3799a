//! `stripe`: several disks as one, a chunk from each in turn.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use crate::backend::{Backend, Queue, QueueContext};
use crate::error::{Error, Result};
use crate::io::extents::{ANSWER_LEN, Answer, extents};
use crate::io::{Capabilities, Errno, Geometry, Io, IoResult, Op};
use crate::payload::{Lane, OPERATIONS_PER_SLOT, Payload};

/// Most disks of a stripe: a slot has as many operations.
pub const MOST_MEMBERS: usize = OPERATIONS_PER_SLOT;

/// Chunks whose extents are asked for in one request.
const CHUNKS_LOOKED_AT: usize = 64;

/// Spreads a disk's chunks over several others.
#[derive(Debug)]
pub struct Stripe<B> {
    members: Vec<B>,
    layout: Layout,
}

/// Where which byte lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    chunk: u64,
    members: u64,
}

impl<B: Backend> Stripe<B> {
    /// Over 2 to 8 disks, of which each has as many whole chunks as the smallest. `chunk` is a power of
    /// two, not below the block size of any of them.
    pub fn new(members: Vec<B>, chunk: u32) -> Result<Stripe<B>> {
        let what = || format!("cannot stripe {} disks", members.len());
        if members.len() < 2 || members.len() > MOST_MEMBERS {
            let why = format!("a stripe has 2 to {MOST_MEMBERS}");
            return Err(Error::invalid(what(), why).cure("name the others with with=SPEC;SPEC"));
        }
        let layout = Layout { chunk: u64::from(chunk), members: members.len() as u64 };
        let stripe = Stripe { members, layout };
        let what = || format!("cannot stripe in chunks of {chunk} bytes");
        let block = stripe.block();
        if !chunk.is_power_of_two() || chunk < block {
            let why = format!("a chunk is a power of two from the block size, {block}, up");
            return Err(Error::invalid(what(), why).cure("give chunk=64K, say"));
        }
        if stripe.geometry().size == 0 {
            return Err(Error::invalid(what(), "the smallest of the disks has less than a chunk")
                .cure("give a smaller chunk"));
        }
        Ok(stripe)
    }

    /// The largest of all, since each of them is a power of two; and memory is cut where blocks end.
    fn block(&self) -> u32 {
        let needs = |geometry: Geometry| geometry.logical_block_size.max(geometry.memory_alignment);
        self.members.iter().map(|member| needs(member.geometry())).max().unwrap_or(512)
    }
}

impl<B: Backend> Backend for Stripe<B> {
    type Queue = StripeQueue<B::Queue>;

    fn geometry(&self) -> Geometry {
        let Layout { chunk, members } = self.layout;
        let all = || self.members.iter().map(Backend::geometry);
        let smallest = all().map(|geometry| geometry.size).min().unwrap_or(0);
        let most = |part: fn(&Geometry) -> u32| all().map(|geometry| part(&geometry)).max().unwrap_or(0);
        let segments = all().filter_map(|geometry| geometry.segments).reduce(|one, other| {
            let boundary_mask = one.boundary_mask & other.boundary_mask;
            let (max_size, max_count) =
                (one.max_size.min(other.max_size), one.max_count.min(other.max_count));
            crate::io::SegmentLimits { boundary_mask, max_size, max_count }
        });
        Geometry {
            size: (smallest - smallest % chunk).saturating_mul(members),
            logical_block_size: self.block(),
            physical_block_size: most(|geometry| geometry.physical_block_size).max(self.block()),
            optimal_io_size: u32::try_from(chunk * members).unwrap_or(0),
            memory_alignment: most(|geometry| geometry.memory_alignment),
            max_io_size: all().map(|geometry| geometry.max_io_size).min().unwrap_or(0),
            discard_granularity: most(|geometry| geometry.discard_granularity),
            segments,
        }
    }

    /// What all can do. Without a volatile cache, a write is as durable as FUA asks for by itself.
    fn capabilities(&self) -> Capabilities {
        let all = || self.members.iter().map(Backend::capabilities);
        let durable = |capabilities: Capabilities| {
            capabilities.contains(Capabilities::FUA) || !capabilities.contains(Capabilities::VOLATILE_CACHE)
        };
        let of_some = Capabilities::VOLATILE_CACHE | Capabilities::ROTATIONAL;
        let some = all().fold(Capabilities::empty(), |some, one| some | (one & of_some));
        let mut folded = all().fold(Capabilities::all(), |folded, one| folded & one);
        folded = (folded - of_some) | some;
        folded.set(Capabilities::FUA, some.contains(Capabilities::VOLATILE_CACHE) && all().all(durable));
        folded
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<StripeQueue<B::Queue>> {
        let members = self.members.iter().map(|member| member.open_queue(context)).collect::<Result<_>>()?;
        Ok(StripeQueue { members, layout: self.layout, block: self.block() as usize })
    }

    fn started(&self) {
        self.members.iter().for_each(Backend::started);
    }

    fn abandoned(&self) {
        self.members.iter().for_each(Backend::abandoned);
    }

    /// All of them, and then the first error.
    fn close(&self) -> Result<()> {
        self.members.iter().map(Backend::close).fold(Ok(()), Result::and)
    }

    fn memory_used(&self) -> Option<u64> {
        self.members.iter().filter_map(Backend::memory_used).reduce(|sum, one| sum.saturating_add(one))
    }

    fn outlives_process(&self) -> bool {
        self.members.iter().all(Backend::outlives_process)
    }

    fn notes(&self) -> Vec<String> {
        let size = self.geometry().size / self.layout.members;
        let mut own = format!("stripe: {} disks, chunks of {} bytes", self.members.len(), self.layout.chunk);
        if self.members.iter().any(|member| member.geometry().size != size) {
            own += &format!(", {size} bytes of each");
        }
        std::iter::once(own).chain(self.members.iter().flat_map(Backend::notes)).collect()
    }
}

impl Layout {
    /// Which member a byte is on.
    #[inline]
    fn member(&self, offset: u64) -> u64 {
        offset / self.chunk % self.members
    }

    /// How many bytes of a member come before a byte of the whole: where it is there, or the next one
    /// of that member.
    #[inline]
    fn before(&self, member: u64, offset: u64) -> u64 {
        let row = self.chunk * self.members;
        let in_row = (offset % row).saturating_sub(member * self.chunk).min(self.chunk);
        offset / row * self.chunk + in_row
    }
}

/// One queue's handle: one on each member.
#[derive(Debug)]
pub struct StripeQueue<Q> {
    members: Vec<Q>,
    layout: Layout,
    block: usize,
}

/// What one member has to do for a request.
enum Share<'s> {
    /// Read or write these pieces, one after the other, from this byte on.
    Pieces(Lane<'s>),
    /// All at once; the payload is scratch memory, or nothing.
    Whole(Payload<'s>),
}

impl<Q> StripeQueue<Q> {
    /// The member and the request there, where one has it all.
    #[inline]
    fn single(&self, io: &Io) -> Option<(&Q, Io)> {
        let Layout { chunk, .. } = self.layout;
        if io.op == Op::Flush || io.offset / chunk != (io.offset + io.len.max(1) - 1) / chunk {
            return None;
        }
        let member = self.layout.member(io.offset);
        let below = Io { offset: self.layout.before(member, io.offset), ..*io };
        Some((self.members.get(member as usize)?, below))
    }
}

impl<Q: Queue> Queue for StripeQueue<Q> {
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        let (member, below) = self.single(io)?;
        member.serve_now(&below, payload)
    }

    #[inline]
    async fn serve(&self, io: Io, payload: Payload<'_>) -> IoResult {
        if let Some((member, below)) = self.single(&io) {
            return member.serve(below, payload).await;
        }
        match io.op {
            Op::Read | Op::Write => self.spread(io, payload).await,
            Op::Flush | Op::Discard | Op::WriteZeroes => self.everywhere(io, payload).await,
            Op::Extents => self.extents(io, payload).await,
        }
    }
}

impl<Q: Queue> StripeQueue<Q> {
    /// The bytes are cut where chunks end; each member serves its pieces one after the other, all
    /// members at once.
    async fn spread(&self, io: Io, payload: Payload<'_>) -> IoResult {
        let Layout { chunk, members } = self.layout;
        let first = chunk - io.offset % chunk;
        let lanes = payload.deal(first as usize, chunk as usize, self.members.len())?;
        let from = self.layout.member(io.offset);
        let lanes = lanes.enumerate().map(|(lane, pieces)| {
            let member = (from + lane as u64) % members;
            self.serve_share(member, io, Share::Pieces(pieces))
        });
        join(lanes).await
    }

    /// A flush goes to all. A range without bytes is one range on each member.
    async fn everywhere(&self, io: Io, payload: Payload<'_>) -> IoResult {
        // What scratch memory there is, is divided; where that makes too little, each has it in turn.
        let share = payload.len() / self.members.len() / self.block * self.block;
        let numbers = 0..self.layout.members;
        if share == 0 && !payload.is_empty() {
            let mut payload = payload;
            for member in numbers {
                let whole = payload.part(0..payload.len())?;
                self.serve_share(member, io, Share::Whole(whole)).await?;
            }
            return Ok(());
        }
        let mut rest = Some(payload);
        let shares = numbers.map_while(|member| {
            let (mine, others) = rest.take()?.split_at(share).ok()?;
            rest = Some(others);
            Some(self.serve_share(member, io, Share::Whole(mine)))
        });
        join(shares).await
    }

    /// Asks for one chunk after the other, a few of them.
    async fn extents(&self, io: Io, payload: Payload<'_>) -> IoResult {
        let middle = ANSWER_LEN.min(payload.len() / 2);
        let (mut ours, mut theirs) = payload.split_at(middle)?;
        let mut answer = Answer::new(&io, ours.bytes_mut()?)?;
        let Layout { chunk, .. } = self.layout;
        let (mut at, end) = (io.offset, io.offset + io.len);
        for _ in 0..CHUNKS_LOOKED_AT {
            let number = self.layout.member(at);
            let member = self.members.get(number as usize).ok_or(Errno::EINVAL)?;
            let len = (chunk - at % chunk).min(end - at);
            let below = Io { offset: self.layout.before(number, at), len, ..io };
            let whole = theirs.part(0..theirs.len())?;
            member.serve(below, whole).await?;
            let next = at + len;
            for extent in extents(theirs.bytes()?, len) {
                if !answer.add(extent.len, extent.state) {
                    return Ok(());
                }
                at += extent.len;
            }
            // An answer may end before its range does, and then so does ours.
            if at != next || at == end {
                break;
            }
        }
        Ok(())
    }

    async fn serve_share(&self, number: u64, io: Io, share: Share<'_>) -> IoResult {
        let member = self.members.get(number as usize).ok_or(Errno::EINVAL)?;
        let flush = io.op == Op::Flush;
        let (start, end) = match flush {
            true => (0, 0),
            false => (self.layout.before(number, io.offset), self.layout.before(number, io.offset + io.len)),
        };
        match share {
            Share::Whole(_) if start == end && !flush => Ok(()),
            Share::Whole(payload) => {
                member.serve(Io { offset: start, len: end - start, ..io }, payload).await
            }
            Share::Pieces(pieces) => {
                let mut offset = start;
                for piece in pieces {
                    let len = piece.len() as u64;
                    member.serve(Io { offset, len, ..io }, piece).await?;
                    offset += len;
                }
                debug_assert_eq!(offset, end, "the pieces are what the member has of the range");
                Ok(())
            }
        }
    }
}

/// Serves all, at most [`MOST_MEMBERS`], at once; waits for all and then tells the first error.
async fn join<F: Future<Output = IoResult>>(mut lanes: impl Iterator<Item = F>) -> IoResult {
    let mut running: [Pin<&mut Option<F>>; MOST_MEMBERS] = [
        pin!(lanes.next()),
        pin!(lanes.next()),
        pin!(lanes.next()),
        pin!(lanes.next()),
        pin!(lanes.next()),
        pin!(lanes.next()),
        pin!(lanes.next()),
        pin!(lanes.next()),
    ];
    if lanes.next().is_some() {
        return Err(Errno::EINVAL);
    }
    let mut result = Ok(());
    poll_fn(|context| {
        let mut pending = false;
        for place in &mut running {
            match place.as_mut().as_pin_mut().map(|lane| lane.poll(context)) {
                Some(Poll::Pending) => pending = true,
                Some(Poll::Ready(ended)) => {
                    place.set(None);
                    result = result.and(ended);
                }
                None => {}
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(result) }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_place_and_no_two_the_same() {
        let layout = Layout { chunk: 4, members: 3 };
        let mut seen = std::collections::BTreeSet::new();
        for offset in 0..96 {
            let member = layout.member(offset);
            assert!(seen.insert((member, layout.before(member, offset))));
            for other in 0..3 {
                let step = layout.before(other, offset + 1) - layout.before(other, offset);
                assert_eq!(step, u64::from(other == member), "only its member goes on");
            }
        }
        assert_eq!(seen.last(), Some(&(2, 31)));
    }
}
