//! A kernel without ublk: said in a sentence, and nothing else breaks.

use super::{Entry, Where, bad, entry};
use crate::blockhaus::Blockhaus;
use crate::ensure;
use crate::outcome::{Context, Outcome};
use crate::system::Snapshot;

pub(super) const TESTS: &[Entry] = &[
    entry("none/attach", 30, Where::NoUblk, attach),
    entry("none/features", 30, Where::NoUblk, features),
    entry("none/other-verbs", 30, Where::NoUblk, other_verbs),
    entry("help/texts", 60, Where::Everywhere, help),
];

fn release() -> Outcome<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("release of the kernel")?;
    Ok(release.trim().to_string())
}

fn attach() -> Outcome {
    let before = Snapshot::take();
    for args in
        [&["attach", "ram:64M"][..], &["attach", "ram:64M", "--json"], &["attach", "null:1G", "--foreground"]]
            .map(|args| [args, &["--engine", "ublk"]].concat())
    {
        let ran = Blockhaus::new().answer(&args)?;
        bad::told(&ran, &["no ublk"], &[])?;
        ensure!(ran.status.code() == Some(1), "`{}` ends with {:?}, not 1", ran.line, ran.status.code());
        let start = format!("blockhaus: this kernel ({}) has no ublk", release()?);
        ensure!(
            ran.stderr.starts_with(&start),
            "`{}` does not begin with {start:?}: {}",
            ran.line,
            ran.stderr.trim()
        );
        ensure!(ran.stderr.lines().count() == 1, "that takes more than a line: {}", ran.stderr.trim());
        bad::nothing_left(&before, &ran)?;
    }
    Ok(())
}

fn features() -> Outcome {
    let tool = Blockhaus::new();
    let told = tool.features()?;
    ensure!(!told.ublk, "features sees an ublk that is not there");
    ensure!(told.kernel == release()?, "features says kernel {:?}", told.kernel);
    let reason = told.reason.context("features does not say why there is no ublk")?;
    ensure!(reason.len() > 15, "that is no reason: {reason:?}");
    ensure!(told.features.iter().all(|feature| !feature.offered), "features offers something without ublk");
    let ran = tool.answer(&["features"])?;
    ensure!(ran.status.success(), "features fails without ublk: {}", ran.stderr.trim());
    ensure!(ran.stdout.contains("6."), "features does not say what to do about it: {}", ran.stdout.trim());
    Ok(())
}

fn other_verbs() -> Outcome {
    let tool = Blockhaus::new();
    ensure!(tool.list()?.is_empty(), "list shows devices where there is no ublk");
    for args in [&["gc"][..], &["detach", "--all"]] {
        let ran = tool.answer(args)?;
        if !ran.status.success() {
            return Err(ran.fail("fails where there is no ublk and nothing to do"));
        }
    }
    let ran = tool.answer(&["status", "0"])?;
    ensure!(!ran.status.success() && !ran.stderr.is_empty(), "status of a device that cannot be succeeds");
    Ok(())
}

/// Every verb explains itself, completes itself and has a page.
fn help() -> Outcome {
    let tool = Blockhaus::new();
    for verb in ["attach", "detach", "list", "status", "features", "gc", "completions", "man"] {
        let ran = tool.answer(&[verb, "--help"])?;
        ensure!(ran.status.success() && ran.stdout.contains("Usage"), "`{}` is no help", ran.line);
    }
    for shell in ["bash", "zsh", "fish"] {
        let ran = tool.answer(&["completions", shell])?;
        ensure!(ran.status.success() && ran.stdout.contains("detach"), "`{}` completes nothing", ran.line);
    }
    let pages = crate::home::scratch().join("man");
    std::fs::create_dir_all(&pages).context("folder for the pages")?;
    let ran = tool.answer(&["man", &pages.display().to_string()])?;
    ensure!(ran.status.success(), "man fails: {}", ran.stderr.trim());
    let page = std::fs::read_to_string(pages.join("blockhaus-attach.1")).context("blockhaus-attach.1")?;
    ensure!(page.contains(".TH"), "blockhaus-attach.1 is no manual page");
    Ok(())
}
