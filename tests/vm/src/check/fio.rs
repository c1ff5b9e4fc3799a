//! fio, as a verifier and as load.

use std::time::Duration;

use crate::ensure;
use crate::outcome::{Context, Fail, Outcome};
use crate::run::{Background, Cmd, Ran, wait_until};

/// Sizes from one sector to 1 MiB, small ones more often.
const SIZES: &str = "512/12:1k/8:1536/4:4k/24:7k/8:16k/14:60k/8:64k/10:128k/5:256k/3:512k/2:1m/2";
const SIZES_4K: &str = "4k/36:8k/12:12k/8:16k/14:60k/8:64k/10:128k/5:256k/3:512k/2:1m/2";

/// Writes a region in pieces of random size while discards run beside it, reads it back and checks
/// every CRC. Twice, the halves changing roles, so that each is discarded and written again; in the
/// last third pieces are discarded and written in turn (one at a time: at depths above 1 fio orders
/// odd sizes wrongly, on any disk). (fio 3.39 cannot discard at
/// random inside a verifying job: it aborts or forgets to write. The model does that.)
pub fn verify(device: &str, block: u32, depth: u16, start: u64, len: u64) -> Outcome {
    let (sizes, odd) = if block > 512 { (SIZES_4K, "12k") } else { (SIZES, "7k") };
    let third = len / 3 / (1 << 20) * (1 << 20);
    for (written, trimmed) in [(start, start + third), (start + third, start)] {
        let ran = Cmd::new("fio")
            .args(["--output-format=json", "--direct=1", "--ioengine=io_uring", "--thread"])
            .args(["--verify_state_save=0", "--verify_fatal=1", "--randrepeat=0", "--allrandrepeat=0"])
            .args([format!("--filename={device}"), format!("--iodepth={depth}"), format!("--size={third}")])
            .args(["--name=write", "--rw=randwrite", "--verify=crc32c", "--do_verify=1"])
            .args([format!("--bssplit={sizes}"), format!("--offset={written}")])
            .args(["--name=trim", "--rw=randtrim"])
            .args([format!("--bssplit={sizes}"), format!("--offset={trimmed}")])
            .args(["--name=turns", "--rw=trimwrite", "--verify=crc32c", "--do_verify=1", "--iodepth=1"])
            .args([
                format!("--bs={odd}"),
                format!("--offset={}", start + 2 * third),
                format!("--size={}", third / 4),
            ])
            .timeout(120)
            .run()?;
        if !ran.status.success() {
            return Err(ran.fail("found something wrong"));
        }
        done(&ran)?;
    }
    Ok(())
}

/// A verification that verified nothing must not pass.
fn done(ran: &Ran) -> Outcome {
    let answer = read(ran)?;
    let count = |job: usize, what: &str| answer["jobs"][job][what]["total_ios"].as_u64().unwrap_or(0);
    for (job, name, wanted) in
        [(0, "write", ["write", "read"]), (1, "trim", ["trim", "trim"]), (2, "turns", ["trim", "read"])]
    {
        ensure!(answer["jobs"][job]["jobname"] == name, "fio's job {job} is not {name}");
        ensure!(
            answer["jobs"][job]["error"] == 0,
            "fio's job {name} reports error {}",
            answer["jobs"][job]["error"]
        );
        for what in wanted {
            ensure!(
                count(job, what) >= 50,
                "fio's job {name} did {} {what}s: too few to mean anything",
                count(job, what)
            );
        }
    }
    ensure!(
        count(0, "read") >= count(0, "write"),
        "fio wrote {} pieces and verified {}",
        count(0, "write"),
        count(0, "read")
    );
    Ok(())
}

/// Where fio works on a disk: at its device, or as an NBD client.
#[derive(Clone, Copy)]
pub enum Side<'a> {
    Disk(&'a str),
    Nbd(&'a str),
}

/// Writes every block of a region once, in any order, with a CRC in each.
pub fn write(side: Side<'_>, block: &str, start: u64, len: u64) -> Outcome {
    turn(side, &["--rw=randwrite", "--do_verify=0", "--end_fsync=1"], "write", block, start, len)
}

/// Reads what [`write()`] has written, perhaps on the other side, and checks every CRC; blocks of another
/// size are an error.
pub fn read_back(side: Side<'_>, block: &str, start: u64, len: u64) -> Outcome {
    turn(side, &["--rw=randread"], "read", block, start, len)
}

fn turn(side: Side<'_>, how: &[&str], what: &str, block: &str, start: u64, len: u64) -> Outcome {
    let at = match side {
        Side::Disk(path) => {
            vec!["--ioengine=io_uring".into(), "--direct=1".into(), format!("--filename={path}")]
        }
        Side::Nbd(uri) => vec!["--ioengine=nbd".into(), format!("--uri={uri}")],
    };
    let ran = Cmd::new("fio")
        .args(["--name=turn", "--output-format=json", "--thread", "--iodepth=32"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"])
        .args([format!("--bs={block}"), format!("--offset={start}"), format!("--size={len}")])
        .args(at)
        .args(how)
        .timeout(120)
        .run()?;
    if !ran.status.success() {
        return Err(ran.fail("found something wrong"));
    }
    let job = &read(&ran)?["jobs"][0];
    let bytes = job[what]["io_bytes"].as_u64().unwrap_or(0);
    ensure!(job["error"] == 0 && bytes == len, "fio has {what} {bytes} of {len} bytes: {}", job["error"]);
    Ok(())
}

/// An NBD client that reads and writes for so many seconds.
pub fn nbd_load(uri: &str, seconds: u32) -> Outcome<Background> {
    Cmd::new("fio")
        .args(["--name=load", "--ioengine=nbd", "--rw=randrw", "--bsrange=4k-64k", "--iodepth=16"])
        .args(["--time_based", "--norandommap", "--size=32M"])
        .args([format!("--uri={uri}"), format!("--runtime={seconds}")])
        .spawn()
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

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.fio.ended(), Ok(Some(_)))
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
