//! Bad input: refused with the thing and the cure named, and nothing left behind.

use std::time::Duration;

use super::{Entry, Where, entry};
use crate::blockhaus::Blockhaus;
use crate::outcome::Outcome;
use crate::run::{Cmd, Ran};
use crate::system::{Snapshot, leftovers};
use crate::{ensure, home};

pub(super) const TESTS: &[Entry] = &[
    entry("bad/no-such-file", 30, Where::Ends, no_such_file),
    entry("bad/directory", 30, Where::Ends, directory),
    entry("bad/size-no-multiple", 30, Where::Ends, size_no_multiple),
    entry("bad/size-zero", 30, Where::Ends, size_zero),
    entry("bad/size-nonsense", 30, Where::Ends, size_nonsense),
    entry("bad/size-smaller", 30, Where::Ends, size_smaller),
    entry("bad/depth", 30, Where::Ends, depth),
    entry("bad/queues", 30, Where::Ends, queues),
    entry("bad/block-size", 30, Where::Ends, block_size),
    entry("bad/id-in-use", 30, Where::Ends, id_in_use),
    entry("bad/no-permission", 30, Where::Ends, no_permission),
    entry("bad/unknown-spec", 30, Where::Ends, unknown_spec),
    entry("bad/near-miss", 30, Where::Ends, near_miss),
    entry("bad/unknown-key", 30, Where::Ends, unknown_key),
    entry("bad/usage", 30, Where::Ends, usage),
];

/// Attach must fail; its message holds each of `all` and at least one of `cures`.
pub(super) fn refused(args: &[&str], all: &[&str], cures: &[&str]) -> Outcome {
    let before = Snapshot::take();
    let command: Vec<&str> = ["attach"].iter().chain(args).copied().collect();
    let ran = Blockhaus::new().answer(&command)?;
    told(&ran, all, cures)?;
    nothing_left(&before, &ran)
}

pub(super) fn nothing_left(before: &Snapshot, ran: &Ran) -> Outcome {
    let left = leftovers(before, Duration::from_secs(1));
    ensure!(left.is_empty(), "`{}` failed and left {}\n{}", ran.line, left[0], left.join("\n"));
    Ok(())
}

pub(super) fn told(ran: &Ran, all: &[&str], cures: &[&str]) -> Outcome {
    ensure!(!ran.status.success(), "`{}` succeeds", ran.line);
    let code = ran.status.code();
    ensure!(matches!(code, Some(1 | 2)), "`{}` ends with {code:?}, not with status 1 or 2", ran.line);
    ensure!(ran.stdout.is_empty(), "`{}` failed and printed {:?}", ran.line, ran.stdout);
    let said = ran.stderr.to_lowercase();
    for word in all {
        ensure!(
            said.contains(&word.to_lowercase()),
            "`{}` does not mention {word:?}: {}",
            ran.line,
            ran.stderr.trim()
        );
    }
    let cured = cures.is_empty() || cures.iter().any(|cure| said.contains(&cure.to_lowercase()));
    ensure!(cured, "`{}` gives none of the cures {cures:?}: {}", ran.line, ran.stderr.trim());
    ensure!(!said.contains("panicked"), "`{}` panics: {}", ran.line, ran.stderr.trim());
    let lines = ran.stderr.lines().count();
    ensure!(code == Some(2) || (1..=4).contains(&lines), "`{}` fails with {lines} lines", ran.line);
    Ok(())
}

fn no_such_file() -> Outcome {
    let path = home::path("no-such.img");
    refused(&[&format!("file:{path}")], &[&path], &["size="])?;
    ensure!(!std::path::Path::new(&path).exists(), "a refused attach has created {path}");
    let deep = format!("{}/no/such/folder.img", home::home().display());
    refused(&[&format!("file:{deep},size=8M")], &[&deep], &[])
}

fn directory() -> Outcome {
    let path = home::scratch().display().to_string();
    refused(&[&format!("file:{path}")], &[&path, "directory"], &["regular file", "block device", "file in"])
}

fn size_no_multiple() -> Outcome {
    let cures = ["multiple", "round"];
    refused(&["ram:1000"], &["1000", "512"], &cures)?;
    refused(&["ram:513K", "--block-size", "4096"], &["4096"], &cures)?;
    let path = home::file("odd.img", 100_001)?;
    refused(&[&format!("file:{path}")], &["100001"], &cures)?;
    let path = home::path("new-odd.img");
    refused(&[&format!("file:{path},size=1000")], &["1000"], &cures)?;
    ensure!(!std::path::Path::new(&path).exists(), "a refused attach has created {path}");
    Ok(())
}

fn size_zero() -> Outcome {
    refused(&["ram:0"], &["0"], &["at least", "size", "larger"])?;
    refused(&["null:0"], &["0"], &["at least", "size", "larger"])?;
    let path = home::file("empty.img", 0)?;
    refused(&[&format!("file:{path}")], &[&path], &["size=", "empty"])
}

fn size_nonsense() -> Outcome {
    for size in ["lots", "-5M", "1Q", "", "99999999999999999999", "16777216T", "1.5G"] {
        refused(&[&format!("ram:{size}")], &[size], &["size", "bytes"])?;
    }
    Ok(())
}

/// `size=` never shrinks or truncates what is there.
fn size_smaller() -> Outcome {
    let path = home::file("large.img", 8 << 20)?;
    let ran = Blockhaus::new().answer(&["attach", &format!("file:{path},size=4M")])?;
    let len = std::fs::metadata(&path).map_or(0, |meta| meta.len());
    ensure!(len == 8 << 20, "size=4M made a file of 8 MiB {len} bytes long");
    told(&ran, &[&path], &["size=", "shrink", "larger"])
}

fn depth() -> Outcome {
    refused(&["ram:8M", "--depth", "0"], &["0", "depth"], &["1"])?;
    refused(&["ram:8M", "--depth", "5000"], &["5000", "depth"], &["4096"])
}

fn queues() -> Outcome {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (cpus, more) = (cpus.to_string(), (cpus + 1).to_string());
    refused(&["ram:8M", "--queues", "0"], &["0", "queues"], &[])?;
    refused(&["ram:8M", "--queues", &more], &[&more, "queue", "cpu"], &[&cpus])?;
    refused(&["ram:8M", "--queues", "4000"], &["4000", "queue"], &[&cpus])
}

fn block_size() -> Outcome {
    for wrong in ["0", "511", "1000", "1048576"] {
        refused(&["ram:8M", "--block-size", wrong], &[wrong, "block"], &["512", "4096"])?;
    }
    Ok(())
}

fn id_in_use() -> Outcome {
    let tool = Blockhaus::new();
    let device = tool.attach(&["ram:8M"])?;
    let id = device.id().to_string();
    refused(&["ram:8M", "--id", &id], &[&id, "in use"], &["detach", "another", "--id"])?;
    ensure!(tool.state(device.id())?.as_deref() == Some("live"), "the device that had the id suffered");
    device.detach()
}

fn no_permission() -> Outcome {
    let binary = crate::blockhaus::binary();
    let before = Snapshot::take();
    let ran = Cmd::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(&binary)
        .args(["attach", "ram:8M"])
        .run()?;
    told(&ran, &[], &["root", "sudo", "cap_sys_admin"])?;
    let said = ran.stderr.to_lowercase();
    ensure!(
        said.contains("permission") || said.contains("privilege") || said.contains("not permitted"),
        "it is not said that permission is missing: {}",
        ran.stderr.trim()
    );
    nothing_left(&before, &ran)
}

fn unknown_spec() -> Outcome {
    refused(&["tape:1G"], &["tape"], &["ram"])?;
    refused(&["tape:1G"], &["tape"], &["file"])?;
    refused(&["ram"], &["ram"], &["ram:"])?;
    refused(&[""], &[], &["ram:", "spec"])
}

fn near_miss() -> Outcome {
    refused(&["rma:8M"], &["rma"], &["did you mean ram", "did you mean `ram"])?;
    refused(&["flie:/tmp/x"], &["flie"], &["did you mean file", "did you mean `file"])?;
    refused(&["RAM:8M"], &["RAM"], &["did you mean ram", "ram:"])
}

fn unknown_key() -> Outcome {
    refused(&["ram:8M,hugepage=yes"], &["hugepage"], &["hugepages"])?;
    refused(&["ram:8M,colour=red"], &["colour"], &["hugepages"])?;
    refused(&["ram:8M,hugepages=perhaps"], &["hugepages", "perhaps"], &["yes", "no"])?;
    let path = home::file("keys.img", 1 << 20)?;
    refused(&[&format!("file:{path},drect=no")], &["drect"], &["direct"])?;
    refused(&[&format!("file:{path},direct=no,direct=yes")], &["direct"], &["twice", "once"])
}

fn usage() -> Outcome {
    let tool = Blockhaus::new();
    for args in [&["attach"][..], &["detach"], &["attach", "ram:8M", "--deep", "4"], &["atach", "ram:8M"]] {
        let ran = tool.answer(args)?;
        told(&ran, &[], &["usage", "help"])?;
        ensure!(
            ran.status.code() == Some(2),
            "`{}` is no usage error (status {:?})",
            ran.line,
            ran.status.code()
        );
    }
    Ok(())
}
