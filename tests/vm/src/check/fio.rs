//! fio, as a verifier and as load.

use std::time::Duration;

use crate::ensure;
use crate::outcome::{Context, Fail, Outcome};
use crate::run::{Background, Cmd, Ran, wait_until};

/// Sizes from one sector to 1 MiB, small ones more often.
const SIZES: &str = "--bssplit=512/12:1k/8:1536/4:4k/24:7k/8:16k/14:60k/8:64k/10:128k/5:256k/3:512k/2:1m/2";
const SIZES_4K: &str = "--bssplit=4k/36:8k/12:12k/8:16k/14:60k/8:64k/10:128k/5:256k/3:512k/2:1m/2";

/// Writes a region in random pieces, discards some of them on the way, reads all of it back and
/// checks its CRC; discarded pieces must read as zeros.
pub fn verify(device: &str, block: u32, depth: u16, start: u64, len: u64) -> Outcome {
    let ran = Cmd::new("fio")
        .args(["--name=verify", "--direct=1", "--ioengine=io_uring", "--rw=randwrite", "--randrepeat=1"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--output-format=json"])
        .args(["--trim_percentage=12", "--trim_backlog=24", "--trim_backlog_batch=6", "--trim_verify_zero=1"])
        .arg(if block > 512 { SIZES_4K } else { SIZES })
        .arg(format!("--filename={device}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--offset={start}"))
        .arg(format!("--size={len}"))
        .timeout(120)
        .run()?;
    if !ran.status.success() {
        return Err(ran.fail("found something wrong"));
    }
    let answer = read(&ran)?;
    let job = &answer["jobs"][0];
    let count = |what: &str| job[what]["total_ios"].as_u64().unwrap_or(0);
    let (reads, writes, trims) = (count("read"), count("write"), count("trim"));
    ensure!(job["error"].as_u64() == Some(0), "fio reports error {}", job["error"]);
    // A verification that verified nothing must not pass.
    ensure!(
        writes > 100 && trims > 10 && reads + trims >= writes / 2,
        "fio did {writes} writes, {trims} trims, {reads} verifying reads: too few to mean anything"
    );
    Ok(())
}

fn read(ran: &Ran) -> Outcome<serde_json::Value> {
    // Warnings may stand before the object.
    let from = ran.stdout.find('{').unwrap_or(0);
    serde_json::from_str(&ran.stdout[from..]).context("cannot read fio's answer")
}

/// fio hammering a device until it fails or is stopped.
pub struct Load {
    fio: Background,
}

impl Load {
    /// Starts it and waits until the device has served `warm` requests.
    pub fn start(
        device: &str,
        seconds: u32,
        warm: u64,
        mut served: impl FnMut() -> Outcome<u64>,
    ) -> Outcome<Self> {
        let fio = Cmd::new("fio")
            .args(["--name=load", "--direct=1", "--ioengine=io_uring", "--rw=randrw", "--bsrange=4k-64k"])
            .args([
                "--iodepth=32",
                "--numjobs=2",
                "--thread",
                "--time_based",
                "--norandommap",
                "--group_reporting",
            ])
            .args(["--exitall_on_error=1", "--output-format=json"])
            .arg(format!("--filename={device}"))
            .arg(format!("--runtime={seconds}"))
            .spawn()?;
        let mut load = Self { fio };
        let before = served()?;
        let mut trouble = None;
        let warmed = wait_until(Duration::from_secs(30), || match (served(), load.fio.ended()) {
            (Ok(now), Ok(None)) => now >= before + warm,
            (Err(fail), _) | (_, Err(fail)) => {
                trouble = Some(fail);
                true
            }
            (_, Ok(Some(_))) => true,
        });
        if let Some(fail) = trouble {
            return Err(fail);
        }
        if load.fio.ended()?.is_some() {
            return Err(load.fio.wait(Duration::from_secs(1))?.fail("ended before it was to"));
        }
        ensure!(
            warmed,
            "fio has not got {warm} requests served in 30 s: the device does not work under load"
        );
        Ok(load)
    }

    pub fn pid(&self) -> u32 {
        self.fio.pid()
    }

    /// Requires that it ends with an I/O error within the time.
    pub fn ends_in_error(self, within: u64) -> Outcome {
        let ran = self.fio.wait(Duration::from_secs(within))?;
        ensure!(!ran.status.success(), "fio ended well although its device died below it");
        Ok(())
    }

    /// Requires that it ends well within the time.
    pub fn ends_well(self, within: u64) -> Outcome {
        let ran = self.fio.wait(Duration::from_secs(within))?;
        if ran.status.success() { Ok(()) } else { Err(ran.fail("met an error")) }
    }

    /// Requires that it ends, well or not.
    pub fn ends(self, within: u64) -> Outcome {
        self.fio
            .wait(Duration::from_secs(within))
            .map(drop)
            .map_err(|fail| Fail::new(format!("{}: its I/O is stuck", fail.why)))
    }
}
