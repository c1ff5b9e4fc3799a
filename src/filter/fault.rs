//! `fault`: errors, delays and torn writes, by rule and by chance that repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, Queue, QueueContext, pass_on};
use crate::error::{Error, Result};
use crate::filter::notes;
use crate::io::{Capabilities, Errno, Geometry, Io, IoResult, Op};
use crate::payload::Payload;
use crate::port::ring::Ring;
use crate::random::mix;

/// Longest delay in milliseconds: a client gives up before.
const LONGEST_DELAY_MS: u64 = 600_000;

/// Which of the requests that a rule is about it strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// All of them.
    Always,
    /// Each so-manyth, from the so-manyth on.
    Every(u64),
    /// Each with this probability, from 0 to 1.
    Probability(f64),
}

/// What is to go wrong, and when. A request is struck where everything here is true of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Only requests that ask for this.
    pub op: Option<Op>,
    /// Only requests that touch a byte from here on.
    pub start: u64,
    /// And before here. A flush touches every byte.
    pub end: u64,
    /// Which of those.
    pub when: When,
    /// What chance comes from: the same seed strikes the same requests.
    pub seed: u64,
    /// They wait for so many milliseconds.
    pub delay_ms: u64,
    /// They fail with this.
    pub errno: Option<Errno>,
    /// Writes fail after some of their blocks, from the first on, have been written.
    pub torn: bool,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule {
            op: None,
            start: 0,
            end: u64::MAX,
            when: When::Always,
            seed: 0,
            delay_ms: 0,
            errno: None,
            torn: false,
        }
    }
}

/// Makes requests fail that would not.
#[derive(Debug)]
pub struct Fault<B> {
    below: B,
    rule: Rule,
    seen: Arc<AtomicU64>,
}

impl<B: Backend> Fault<B> {
    /// By this rule.
    pub fn new(below: B, rule: Rule) -> Result<Fault<B>> {
        let bad = |why: &str, cure: &str| Err(Error::invalid("cannot inject faults", why).cure(cure));
        if rule.delay_ms == 0 && rule.errno.is_none() && !rule.torn {
            return bad("the rule does nothing", "give errno=EIO, delay_ms=100 or torn=yes");
        }
        if rule.torn && rule.errno.is_none() {
            return bad(
                "a torn write without an errno would be acknowledged",
                "give errno=EIO with torn=yes",
            );
        }
        if rule.torn && rule.op.is_some_and(|op| op != Op::Write) {
            return bad("only a write can be torn", "give op=write, or leave torn=yes away");
        }
        if rule.delay_ms > LONGEST_DELAY_MS {
            return bad("the delay is longer than ten minutes", "give delay_ms=100, say");
        }
        if rule.start >= rule.end {
            return bad("the range has no byte", "give a length above 0");
        }
        match rule.when {
            When::Every(0) => return bad("every=0 is no rhythm", "give every=1 or more"),
            When::Probability(chance) if !(0.0..=1.0).contains(&chance) => {
                return bad("a probability is from 0 to 1", "give probability=0.01, say");
            }
            _ => {}
        }
        Ok(Fault { below, rule, seen: Arc::new(AtomicU64::new(0)) })
    }
}

impl<B: Backend> Backend for Fault<B> {
    type Queue = FaultQueue<B::Queue>;

    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    /// A torn write has a part of its payload written, for which nobody need look at it.
    fn capabilities(&self) -> Capabilities {
        self.below.capabilities()
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<FaultQueue<B::Queue>> {
        Ok(FaultQueue {
            below: self.below.open_queue(context)?,
            ring: context.ring.clone(),
            rule: self.rule,
            block: u64::from(self.below.geometry().logical_block_size),
            seen: self.seen.clone(),
        })
    }

    fn notes(&self) -> Vec<String> {
        notes("fault: requests fail or wait on purpose".into(), self.below.notes())
    }

    pass_on!(below);
}

/// One queue's handle.
#[derive(Debug)]
pub struct FaultQueue<Q> {
    below: Q,
    ring: Ring,
    rule: Rule,
    block: u64,
    seen: Arc<AtomicU64>,
}

impl<Q> FaultQueue<Q> {
    #[inline]
    fn concerns(&self, io: &Io) -> bool {
        let rule = &self.rule;
        let inside =
            io.op == Op::Flush || (io.offset < rule.end && io.offset.saturating_add(io.len) > rule.start);
        inside && rule.op.is_none_or(|op| op == io.op)
    }

    /// The chance of a request that the rule is about, and whether it is struck.
    fn draw(&self) -> (u64, bool) {
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        let chance = mix(self.rule.seed ^ mix(number));
        let struck = match self.rule.when {
            When::Always => true,
            When::Every(count) => (number + 1).is_multiple_of(count),
            // The upper 53 bits make a number from 0 to 1, without 1, each as likely.
            When::Probability(probability) => ((chance >> 11) as f64) / ((1u64 << 53) as f64) < probability,
        };
        (chance, struck)
    }
}

impl<Q: Queue> Queue for FaultQueue<Q> {
    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        if self.concerns(io) { None } else { self.below.serve_now(io, payload) }
    }

    #[inline]
    async fn serve(&self, io: Io, mut payload: Payload<'_>) -> IoResult {
        let (chance, struck) = if self.concerns(&io) { self.draw() } else { (0, false) };
        if struck {
            if self.rule.delay_ms != 0 {
                let until = self.ring.now().saturating_add(self.rule.delay_ms * 1_000_000);
                self.ring.sleep_until(&payload, until).await?;
            }
            if let Some(errno) = self.rule.errno {
                let blocks = if self.rule.torn && io.op == Op::Write { io.len / self.block } else { 0 };
                // Never all of them: that would not be torn.
                let len = mix(chance).checked_rem(blocks).unwrap_or(0) * self.block;
                if len != 0 {
                    let part = payload.part(0..len as usize)?;
                    self.below.serve(Io { len, ..io }, part).await?;
                }
                return Err(errno);
            }
        }
        self.below.serve(io, payload).await
    }
}
