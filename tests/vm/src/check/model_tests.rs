//! The verifier against disks that lie: each kind of lie must be caught.

use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    LosesAWrite,
    LosesTheLastSector,
    ShiftsBySector,
    ReadsElsewhere,
    ReturnsOldData,
    DiscardsItsNeighbour,
    ZeroesNothing,
    ZeroesShort,
    ReadsShort,
    RewritesItsNeighbour,
    IgnoresFua,
    DiscardBringsRubbish,
    FailsAFlush,
}

/// A disk in memory that lies every fourth time.
struct Liar {
    bytes: Mutex<Vec<u8>>,
    lie: Lie,
    block: u64,
    count: AtomicU32,
}

impl Liar {
    fn new(lie: Lie, block: u64) -> Self {
        Self { bytes: Mutex::new(vec![0; 24 << 20]), lie, block, count: AtomicU32::new(0) }
    }

    fn lies(&self, lie: Lie) -> bool {
        // Often enough that no interleaving of the threads lets all of them go unseen: a test that
        // fails once in a thousand runs is no test.
        self.lie == lie && self.count.fetch_add(1, Ordering::Relaxed) % 4 == 3
    }
}

impl Target for Liar {
    fn size(&self) -> u64 {
        24 << 20
    }

    fn block(&self) -> u64 {
        self.block
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        assert_eq!((at % self.block, out.len() as u64 % self.block), (0, 0));
        let at = if self.lies(Lie::ReadsElsewhere) { at - at.min(4096) } else { at } as usize;
        let short = if self.lies(Lie::ReadsShort) { SECTOR } else { 0 };
        let count = out.len() - short;
        out[..count].copy_from_slice(&self.bytes.lock().unwrap()[at..at + count]);
        Ok(())
    }

    fn write(&self, at: u64, data: &[u8], fua: bool) -> io::Result<()> {
        assert_eq!((at % self.block, data.len() as u64 % self.block), (0, 0));
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = at as usize;
        let mut count = data.len();
        if self.lies(Lie::LosesAWrite) || (fua && self.lie == Lie::IgnoresFua) {
            return Ok(());
        }
        if self.lies(Lie::LosesTheLastSector) {
            count -= SECTOR;
        }
        if self.lies(Lie::ShiftsBySector) {
            at += SECTOR;
            count -= SECTOR;
        }
        if self.lies(Lie::ReturnsOldData) && count > 8 * SECTOR {
            // The middle keeps what was there.
            bytes[at..at + SECTOR].copy_from_slice(&data[..SECTOR]);
            return Ok(());
        }
        if self.lies(Lie::RewritesItsNeighbour) && at >= SECTOR {
            // A read-modify-write that raced: the sector before gets what it held long ago.
            bytes[at - SECTOR..at].fill(0);
        }
        bytes[at..at + count].copy_from_slice(&data[..count]);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.lie == Lie::FailsAFlush { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let (at, mut len) = (at as usize, len as usize);
        if self.lies(Lie::DiscardsItsNeighbour) {
            len += SECTOR;
        }
        let end = (at + len).min(bytes.len());
        bytes[at..end].fill(if self.lie == Lie::DiscardBringsRubbish { 0xff } else { 0 });
        Ok(())
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        let (at, mut len) = (at as usize, len as usize);
        if self.lies(Lie::ZeroesNothing) {
            return Ok(());
        }
        if self.lies(Lie::ZeroesShort) {
            len -= SECTOR;
        }
        self.bytes.lock().unwrap()[at..at + len].fill(0);
        Ok(())
    }
}

fn plan(seed: u64) -> Plan {
    Plan { seed, threads: 3, operations: 400, start: 1536, len: 16 << 20 }
}

#[test]
fn an_honest_disk_passes_and_is_really_used() {
    for block in [512, 4096] {
        let disk = Liar::new(Lie::None, block);
        let model = verify(&disk, plan(1)).unwrap();
        let tally = &model.tally;
        assert!(tally.reads > 300 && tally.writes > 400, "{tally:?}");
        assert!(tally.discards > 80 && tally.zeroes > 80 && tally.flushes > 30, "{tally:?}");
        model.check(&disk).unwrap();
    }
}

#[test]
fn every_lie_is_caught() {
    let lies = [
        Lie::LosesAWrite,
        Lie::LosesTheLastSector,
        Lie::ShiftsBySector,
        Lie::ReadsElsewhere,
        Lie::ReturnsOldData,
        Lie::DiscardsItsNeighbour,
        Lie::ZeroesNothing,
        Lie::ZeroesShort,
        Lie::ReadsShort,
        Lie::RewritesItsNeighbour,
        Lie::IgnoresFua,
        Lie::DiscardBringsRubbish,
        Lie::FailsAFlush,
    ];
    for lie in lies {
        for seed in 0..3 {
            let found = verify(&Liar::new(lie, 512), plan(seed)).err();
            assert!(found.is_some(), "{lie:?} with seed {seed} was not caught");
        }
    }
}

#[test]
fn a_change_after_the_run_is_found_by_the_second_check() {
    let disk = Liar::new(Lie::None, 512);
    let model = verify(&disk, plan(5)).unwrap();
    disk.bytes.lock().unwrap()[9 << 20..(9 << 20) + 4096].fill(7);
    let told = model.check(&disk).unwrap_err().to_string();
    assert!(told.contains("expected") && told.contains("no sector of ours"), "{told}");
}

#[test]
fn discarded_sectors_may_keep_what_they_had() {
    struct Keeps(Liar);
    impl Target for Keeps {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn block(&self) -> u64 {
            512
        }
        fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(at, out)
        }
        fn write(&self, at: u64, data: &[u8], fua: bool) -> io::Result<()> {
            self.0.write(at, data, fua)
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn zero(&self, at: u64, len: u64) -> io::Result<()> {
            self.0.zero(at, len)
        }
    }
    verify(&Keeps(Liar::new(Lie::None, 512)), plan(2)).unwrap();
}

#[test]
fn too_small_a_disk_is_said_so() {
    let wide = Plan { len: 1 << 30, ..plan(0) };
    assert!(verify(&Liar::new(Lie::None, 512), wide).is_err());
}
