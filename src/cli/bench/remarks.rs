//! What a reader of the figures has to know.

use std::path::Path;

use super::target::Target;
use crate::config::{Spec, human_size};
use crate::engine::load::{Disk, Measured};
use crate::holders;
use crate::port::thread::CpuMask;
use crate::registry::survey::survey;
use crate::registry::{Registry, devices};

/// From this share of its time on, waiting for a processor is worth a remark.
const STARVED: f64 = 0.05;

/// What can be seen before it is opened.
pub(super) fn before(target: &Target, write: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(device) = &target.device {
        // A writer was refused.
        let users = holders::passive(device, &[]);
        if !users.is_empty() && !write {
            let users = holders::describe(&users);
            remarks
                .push(format!("The device is in use ({users}): what that does to it is in these figures."));
        }
        remarks.extend(kind_of_device(device));
    }
    if write && target.is_new {
        remarks.push("The file was made for this and is removed again.".into());
    }
    if target.spec.kind() == "null" {
        let figures = match filters(target) {
            None => "what blockhaus costs by itself".to_owned(),
            Some(filters) => format!("of blockhaus and {filters}"),
        };
        remarks.push(format!("null: moves no bytes. These figures are {figures}."));
    }
    remarks
}

/// The filters by name, where there are any.
fn filters(target: &Target) -> Option<String> {
    let names: Vec<&str> = target.filters.iter().map(Spec::kind).collect();
    match names[..] {
        [] => None,
        [one] => Some(format!("the filter {one}")),
        _ => Some(format!("the filters {}", names.join(", "))),
    }
}

/// Devices that are made of something else.
fn kind_of_device(device: &Path) -> Option<String> {
    let real = std::fs::canonicalize(device).ok()?;
    let name = real.file_name()?.to_str()?;
    if name.starts_with("loop") {
        let file = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        return Some(format!(
            "A loop device on {}: its kernel thread's CPU time is not in these figures.",
            file.trim()
        ));
    }
    if ["ram", "zram", "pmem"].iter().any(|memory| name.trim_end_matches(char::is_numeric) == *memory) {
        return Some("A disk in memory: these figures are of the kernel and the processor.".into());
    }
    let name = devices::named(&real.display().to_string())?;
    let seen = survey(&Registry::of_host(), Some(name)).pop()?;
    let pid = seen.pid()?;
    let spec = seen.entry.as_ref().map_or("of another program", |entry| entry.spec.as_str());
    let engine = name.engine;
    Some(format!(
        "A {engine} disk, {spec}: the CPU time of its server, process {pid}, is not in these figures."
    ))
}

/// What the loads have shown.
pub(super) fn after(target: &Target, disk: &Disk, results: &[Measured]) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(used) = disk.memory_used
        && target.spec.kind() != "null"
    {
        let (used, size) = (human_size(used), human_size(disk.size));
        let figures = match filters(target) {
            None => "blockhaus and the processor. It answers at once, so that a greater depth changes little"
                .into(),
            Some(filters) => format!("blockhaus, {filters} and the processor"),
        };
        remarks.push(format!(
            "A disk in the memory of this process, which has {used} of its {size}: these figures are of {figures}."
        ));
    }
    let looked_at: u64 = results.iter().map(|measured| measured.looked_at).sum();
    let zeros: u64 = results.iter().map(|measured| measured.zeros).sum();
    if zeros * 2 > looked_at && target.spec.kind() != "null" {
        remarks.push(format!(
            "{zeros} of {looked_at} reads that were looked at during the warm-up brought nothing but zeros: where \
             nothing was ever written, or was discarded, a disk need not read anything."
        ));
    }
    if disk.has_volatile_cache && results.iter().any(|measured| measured.load.pattern.writes()) {
        remarks.push(
            "The disk may keep writes in a volatile cache: they were acknowledged and not flushed one by one.".into(),
        );
    }
    let starved = results.iter().map(|measured| measured.starved).fold(0.0, f64::max);
    if starved >= STARVED {
        let jobs = results.iter().map(|measured| measured.load.jobs).max().unwrap_or(0);
        let processors = CpuMask::current().map_or(usize::MAX, |mask| mask.count());
        let cause = match usize::from(jobs) > processors {
            true => format!("{jobs} jobs and {processors} processors to run on"),
            false => "The processors were busy".to_owned(),
        };
        remarks.push(format!(
            "{cause}: in one load the threads that make the requests waited for a processor {:.0} % of their time, and \
             latencies are longer by that.",
            starved * 100.0
        ));
    }
    if results.iter().any(|measured| measured.latencies.count() < 1000) {
        remarks.push(
            "Some loads have fewer than 1000 requests: there are no percentiles that cannot be told from so few."
                .into(),
        );
    }
    remarks
}
