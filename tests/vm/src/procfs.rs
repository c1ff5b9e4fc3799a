//! Reading /proc: what processes are, hold and use.

use std::fs;
use std::path::{Path, PathBuf};

/// Every process id there is.
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// The program a process runs; a deleted one keeps its name.
pub fn exe(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let text = path.to_string_lossy();
    Some(text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from))
}

/// The command line of a process.
pub fn cmdline(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_string()
}

/// A process that exists and is not merely waiting for its parent to read its status.
pub fn alive(pid: u32) -> bool {
    stat(&format!("/proc/{pid}/stat")).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// The fields of a stat file that we need.
pub struct Stat {
    pub comm: String,
    pub state: char,
    pub session: i32,
    pub flags: u64,
}

pub fn stat(path: &str) -> Option<Stat> {
    let text = fs::read_to_string(path).ok()?;
    // The name stands in brackets and may itself hold brackets and spaces.
    let (head, tail) = (text.find('(')?, text.rfind(')')?);
    let comm = text.get(head + 1..tail)?.to_string();
    let fields: Vec<&str> = text.get(tail + 1..)?.split_whitespace().collect();
    Some(Stat {
        comm,
        state: fields.first()?.chars().next()?,
        session: fields.get(3)?.parse().ok()?,
        flags: fields.get(6)?.parse().ok()?,
    })
}

/// The first two numbers of the kernel's release.
pub fn kernel() -> Option<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// How long processors had nothing to do while a thread of theirs waited for a disk, in ticks of USER_HZ.
pub fn iowait_ticks() -> Option<u64> {
    fs::read_to_string("/proc/stat").ok()?.lines().next()?.split_whitespace().nth(5)?.parse().ok()
}

/// The threads of a process with their scheduling policies, as linux/sched.h numbers them.
pub fn policies(pid: u32) -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let policy = |tid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
        text.get(text.rfind(')')? + 1..)?.split_whitespace().nth(38)?.parse().ok()
    };
    let tids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    tids.filter_map(|tid| Some((tid, policy(tid)?))).collect()
}

/// How long a process has run, in ticks of USER_HZ, which is 100 a second everywhere.
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// A line `Name:  value [kB]` of a status file, as it stands.
pub fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// A field in bytes that the kernel gives in kB.
pub fn bytes(pid: u32, name: &str) -> Option<u64> {
    let value = field(format!("/proc/{pid}/status"), name)?;
    value.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Resident bytes of the mappings that are locked (`lo` in VmFlags).
pub fn resident_and_locked(pid: u32) -> Option<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut total, mut rss) = (0, 0);
    for line in smaps.lines() {
        if let Some(value) = line.strip_prefix("Rss:") {
            rss = value.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split_whitespace().any(|flag| flag == "lo")
        {
            total += rss;
        }
    }
    Some(total)
}

/// Threads of a process.
pub fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// `0-1,4` as numbers.
pub fn cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

/// One line of /proc/self/mounts.
pub struct Mount {
    pub source: String,
    pub target: PathBuf,
}

pub fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some(Mount { source: words.next()?.to_string(), target: PathBuf::from(words.next()?) })
        })
        .collect()
}

/// What uninterruptible tasks wait for, a line each: the first question after a hang.
pub fn stuck() -> Vec<String> {
    pids().into_iter().flat_map(|pid| waiting(pid, |stat| stat.state == 'D')).collect()
}

/// What the chosen threads of a process wait for, a line each.
pub fn waiting(pid: u32, chosen: impl Fn(&Stat) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    for tid in threads(pid) {
        let task = format!("/proc/{pid}/task/{tid}");
        let Some(stat) = stat(&format!("{task}/stat")).filter(|stat| chosen(stat)) else { continue };
        let stack = fs::read_to_string(format!("{task}/stack")).unwrap_or_default();
        let calls: Vec<&str> =
            stack.lines().take(8).filter_map(|line| line.split_whitespace().last()).collect();
        lines.push(format!("{}[{tid}] is in state {}, in {}", stat.comm, stat.state, calls.join(" < ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_stat_can_be_read() {
        let stat = stat("/proc/self/stat").unwrap();
        assert!(stat.comm.starts_with("vmtest"), "{}", stat.comm);
        assert!(matches!(stat.state, 'R' | 'S'));
        assert!(alive(std::process::id()));
        assert!(bytes(std::process::id(), "VmRSS").unwrap() > 0);
    }

    #[test]
    fn cpu_lists_are_ranges_and_numbers() {
        assert_eq!(cpu_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(cpu_list(""), [0u32; 0]);
    }
}
