//! `features`: which engines this machine has, and what its ublk can do.

use std::process::ExitCode;

use blockhaus_uapi::ublk::Features;
use clap::Args;
use serde::Serialize;

use super::output;
use crate::engine::ublk::control::Control;
use crate::engine::{self, Engine};
use crate::error::Result;
use crate::port::system;

/// Shows which engines this machine has, and what its ublk driver offers and what that means. Where an engine
/// is missing, why, and what to do about it.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A feature flag for people.
struct Feature {
    flag: Features,
    since: &'static str,
    meaning: &'static str,
}

const fn feature(flag: Features, since: &'static str, meaning: &'static str) -> Feature {
    Feature { flag, since, meaning }
}

/// All that there are up to Linux 7.3, by bit.
const FEATURES: [Feature; 21] = [
    feature(Features::SUPPORT_ZERO_COPY, "6.0", "requests' pages are used without copying (works from 6.15)"),
    feature(Features::URING_CMD_COMP_IN_TASK, "6.0", "commands complete in the server's own threads"),
    feature(Features::NEED_GET_DATA, "6.0", "a write's data is asked for in a second step"),
    feature(Features::USER_RECOVERY, "6.1", "a disk outlives its server and waits for the next one"),
    feature(
        Features::USER_RECOVERY_REISSUE,
        "6.1",
        "what a dead server left undone is given to the next one",
    ),
    feature(Features::UNPRIVILEGED_DEV, "6.3", "an ordinary user can have disks"),
    feature(Features::CMD_IOCTL_ENCODE, "6.4", "commands are numbered like ioctls"),
    feature(Features::USER_COPY, "6.5", "the server copies data itself, with reads and writes"),
    feature(Features::ZONED, "6.6", "zoned disks"),
    feature(
        Features::USER_RECOVERY_FAIL_IO,
        "6.13",
        "I/O fails at once while a disk waits for its next server",
    ),
    feature(Features::UPDATE_SIZE, "6.16", "a disk can be resized while it is in use"),
    feature(Features::AUTO_BUF_REG, "6.16", "zero copy without a command for each request"),
    feature(Features::QUIESCE, "6.16", "a disk can be handed over to a new server"),
    feature(Features::PER_IO_DAEMON, "6.16", "several threads can serve one queue"),
    feature(Features::BUF_REG_OFF_DAEMON, "6.17", "any thread can register buffers for zero copy"),
    feature(Features::BATCH_IO, "7.0", "commands go in batches"),
    feature(Features::INTEGRITY, "7.0", "requests can carry checksums (protection information)"),
    feature(Features::SAFE_STOP_DEV, "7.0", "a disk that somebody has open is never stopped by mistake"),
    feature(Features::NO_AUTO_PART_SCAN, "7.0", "the search for partitions can be left out"),
    feature(Features::SHMEM_ZC, "7.1", "zero copy with memory shared with the disk's user"),
    feature(Features::IO_DESC_SIZE, "7.3", "request descriptors can grow"),
];

/// A feature and whether this kernel has it.
#[derive(Debug, Serialize)]
struct Row {
    bit: u32,
    name: String,
    meaning: String,
    since: &'static str,
    offered: bool,
}

/// An engine and whether this machine has it.
#[derive(Debug, Serialize)]
struct EngineRow {
    engine: Engine,
    offered: bool,
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Answer {
    kernel: String,
    engines: Vec<EngineRow>,
    ublk: bool,
    reason: Option<String>,
    mask: Option<String>,
    features: Vec<Row>,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let offered = Control::open().and_then(|control| control.features());
    let kernel = system::kernel_release();
    let (mask, reason) = match &offered {
        Ok(features) => (Some(features.bits()), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let engine = |engine: Engine| {
        let missing = engine::available(engine).err();
        let reason = missing.map(|error| error.to_string());
        EngineRow { engine, offered: reason.is_none(), reason }
    };
    let answer = Answer {
        kernel,
        engines: Engine::ALL.into_iter().map(engine).collect(),
        ublk: mask.is_some(),
        reason,
        mask: mask.map(|mask| format!("{mask:#x}")),
        features: rows(mask.unwrap_or(0)),
    };
    match arguments.json {
        true => output::json(&answer)?,
        false => output::raw(text(&answer).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(mask: u64) -> Vec<Row> {
    let known = FEATURES.iter().map(|feature| Row {
        bit: feature.flag.bits().trailing_zeros(),
        name: feature.flag.iter_names().map(|(name, _)| name).collect(),
        meaning: feature.meaning.to_owned(),
        since: feature.since,
        offered: mask & feature.flag.bits() != 0,
    });
    let unknown =
        (0..u64::BITS).filter(|bit| (mask & !Features::all().bits()) >> bit & 1 == 1).map(|bit| Row {
            bit,
            name: format!("bit {bit}"),
            meaning: "newer than this blockhaus".to_owned(),
            since: "?",
            offered: true,
        });
    known.chain(unknown).collect()
}

fn text(answer: &Answer) -> String {
    let rows: Vec<Vec<String>> = answer
        .engines
        .iter()
        .map(|row| {
            let offered = if row.offered { "yes" } else { "no" };
            vec![row.engine.to_string(), offered.to_owned(), row.reason.clone().unwrap_or_default()]
        })
        .collect();
    let engines = output::table(&["ENGINE", "HERE", "WHY NOT"], &rows);
    if answer.reason.is_some() {
        return engines;
    }
    let rows: Vec<Vec<String>> = answer
        .features
        .iter()
        .map(|row| {
            let offered = if row.offered { "yes" } else { "no" };
            vec![
                row.bit.to_string(),
                row.name.clone(),
                offered.to_owned(),
                row.since.to_owned(),
                row.meaning.clone(),
            ]
        })
        .collect();
    let mask = answer.mask.as_deref().unwrap_or("?");
    let table = output::table(&["BIT", "NAME", "HERE", "SINCE", "MEANING"], &rows);
    format!("{engines}\nLinux {} has ublk, features {mask}\n\n{table}", answer.kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_its_row() {
        let all = FEATURES.iter().fold(Features::empty(), |all, feature| all | feature.flag);
        assert_eq!(all, Features::all());
        for (bit, feature) in FEATURES.iter().enumerate() {
            assert_eq!(feature.flag.bits(), 1 << bit);
        }
        let rows = rows(1 << 1 | 1 << 40);
        assert!(rows[1].offered && !rows[0].offered);
        assert_eq!(rows[1].name, "URING_CMD_COMP_IN_TASK");
        assert_eq!(rows.last().unwrap().bit, 40);
    }
}
