//! Runs that somebody ends before their time.

use super::*;

/// Ctrl-C ends it in order: what was measured is told, and that it is not all.
#[test]
fn an_interruption_still_reports() {
    let mut command = bench(&["null:1G", "--op", "randread", "--op", "read", "--seconds", "60"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("measuring 4K random read"), "{line}");
    std::thread::sleep(Duration::from_secs(3));
    let began = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(began.elapsed().as_secs() < 20);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("INTERRUPTED after") && text.contains("INTERRUPTED in load 1 of 2"), "{text}");
    assert!(text.contains("IOPS") && text.contains("^p50"), "{text}");
}

/// Sends a signal to a run that has said what it measures and has gone on for so long.
fn interrupted(arguments: &[&str], seconds: u64) -> Output {
    let mut child = bench(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("measuring"), "{line}");
    std::thread::sleep(Duration::from_secs(seconds));
    assert!(interrupt(&child));
    child.wait_with_output().unwrap()
}

fn interrupt(child: &std::process::Child) -> bool {
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
}

/// Whoever asks for the end while the last requests are awaited has what was measured, whole.
#[test]
fn an_interruption_behind_the_window_cuts_nothing_short() {
    // The first requests end long after the window.
    let slow = ["null:1G", "--filter", "fault,delay_ms=6000", "--depth", "2", "--seconds", "0.3"];
    let output = interrupted(&[&slow[..], &["--op", "read", "--op", "randread"]].concat(), 2);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("INTERRUPTED after load 1 of 2.") && !text.contains("shorter time"), "{text}");
    assert!(!text.contains("INTERRUPTED after 0.3 s"), "{text}");
    let output = interrupted(&[&slow[..], &["--op", "read", "--json"]].concat(), 2);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!((&report["interrupted"], &report["loads"][0]["interrupted"]), (&false.into(), &false.into()));
    assert_eq!(report["loads"][0]["latency_ns"]["count"], 2);
}

/// Whoever asks twice does not wait for a disk that does not answer, and the files that were made go all the same.
#[test]
fn the_second_interruption_leaves_no_file() {
    // A signal that comes before the first request ends a run in order: then once more, and later.
    let said = [1, 4, 16].into_iter().map(interrupted_twice).find(|said| said.contains("ended at once"));
    assert!(said.is_some(), "no run had requests in flight");
}

/// What a run says whose requests take a minute.
fn interrupted_twice(after_seconds: u64) -> String {
    let folder = Folder::new();
    let (path, member) = (folder.path("new.img"), folder.path("member.img"));
    let spec = format!("{},size=2M", file_spec(&path));
    let stripe = format!("stripe,with={},,size=2M", file_spec(&member));
    let filters = ["--filter", "fault,delay_ms=60000", "--filter", &stripe];
    let mut command = bench(&[&[spec.as_str(), "--write", "--op", "randwrite"], &filters[..]].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("measuring") && path.exists() && member.exists(), "{line}");
    std::thread::sleep(Duration::from_secs(after_seconds));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed().as_secs() < 30, "it waits for what is in flight");
        interrupt(&child);
        std::thread::sleep(Duration::from_millis(300));
    };
    assert_eq!(status.code(), Some(130));
    assert!(!path.exists() && !member.exists(), "a file is left");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    rest
}
