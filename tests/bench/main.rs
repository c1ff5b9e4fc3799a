//! `bench` as a person meets it: on disks of this process, on files, and on a loop device where there are any.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod in_use;
mod interrupted;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockhaus"));
    command.arg("bench").args(arguments).env("BLOCKHAUS_RUN_DIR", "/nowhere/at/all");
    command
}

fn run(arguments: &[&str]) -> Output {
    bench(arguments).output().unwrap()
}

/// Runs what has to end with this status, and returns its standard output and error.
fn ends(status: i32, arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stdout}{stderr}");
    (stdout, stderr)
}

fn json(status: i32, arguments: &[&str]) -> Value {
    json_of(status, 0.3, arguments)
}

fn json_of(status: i32, seconds: f64, arguments: &[&str]) -> Value {
    let seconds = format!("--seconds={seconds}");
    serde_json::from_str(&ends(status, &[arguments, &["--json", &seconds]].concat()).0).unwrap()
}

/// As [`json`], where figures matter: on a machine so busy that the jobs did not get to run, again and for longer.
fn steady(status: i32, arguments: &[&str]) -> Value {
    let starved = |report: &Value| {
        let loads = report["loads"].as_array().unwrap();
        loads.iter().any(|load| number(&load["starved"]) >= 0.3)
    };
    let tries = [0.3, 1.0, 3.0].map(|seconds| move || json_of(status, seconds, arguments));
    let mut reports = tries.into_iter().map(|again| again());
    let mut report = reports.next().unwrap();
    while starved(&report)
        && let Some(next) = reports.next()
    {
        report = next;
    }
    report
}

fn refused(arguments: &[&str], said: &[&str]) {
    let (stdout, stderr) = ends(1, arguments);
    assert!(stdout.is_empty(), "{arguments:?} printed a report");
    for part in said {
        assert!(stderr.contains(part), "{arguments:?} does not say {part}: {stderr}");
    }
}

fn number(of: &Value) -> f64 {
    of.as_f64().unwrap_or_else(|| panic!("{of} is no number"))
}

fn remarks(report: &Value) -> String {
    report["remarks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|remark| remark.as_str().unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of so many MiB without a zero in it.
    fn image(&self, name: &str, mebibytes: usize) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, vec![7u8; mebibytes << 20]).unwrap();
        path
    }
}

fn file_spec(path: &Path) -> String {
    format!("file:{}", path.display())
}

#[test]
fn figures_agree_with_each_other() {
    for (spec, more) in [("ram:16M", &[][..]), ("null:1G", &["--jobs", "2"])] {
        let report = steady(0, &[&[spec], more].concat());
        let loads = report["loads"].as_array().unwrap();
        let shapes: Vec<_> = loads
            .iter()
            .map(|load| {
                (load["pattern"].as_str().unwrap(), number(&load["block_size"]), number(&load["depth"]))
            })
            .collect();
        assert_eq!(
            shapes,
            [("randread", 4096.0, 1.0), ("randread", 4096.0, 64.0), ("read", 131_072.0, 16.0)]
        );
        for load in loads {
            let (requests, iops, latency) =
                (number(&load["requests"]), number(&load["iops"]), &load["latency_ns"]);
            assert!(requests > 1000.0, "{load}");
            assert!((requests / number(&load["seconds"]) / iops - 1.0).abs() < 1e-6, "{load}");
            assert!(
                (iops * number(&load["block_size"]) / number(&load["bytes_per_second"]) - 1.0).abs() < 1e-6
            );
            let row: Vec<f64> =
                ["min", "p50", "p90", "p99", "p99.9", "max"].map(|name| number(&latency[name])).into();
            assert!(row.is_sorted() && row[0] > 0.0, "{row:?}");
            assert!(number(&latency["mean"]) <= row[5] && number(&latency["mean"]) >= row[0], "{latency}");
            let steps = latency["histogram"].as_array().unwrap();
            let sum: f64 = steps.iter().map(|step| number(&step[1])).sum();
            assert_eq!(sum, number(&latency["count"]));
            assert!(sum >= requests && sum <= requests + 64.0 * 2.0, "{sum} and {requests}");
            assert_eq!((&load["errors"], &load["interrupted"]), (&0.into(), &false.into()));
            assert!(
                number(&load["cpu_ns_per_request"]["user"]) + number(&load["cpu_ns_per_request"]["system"])
                    > 0.0
            );
        }
        assert_eq!((&report["interrupted"], &report["disk"]["read_only"]), (&false.into(), &true.into()));
    }
}

/// The disk is as slow as it is told to be and no slower, and the figures say so.
#[test]
fn what_a_disk_takes_is_what_is_told() {
    let (mut seconds, mut told) = (1.0, 0.0);
    // Where the machine does something else, longer; and then it says nothing.
    for _ in 0..3 {
        let slow = ["null:1G", "--filter", "fault,delay_ms=20", "--op", "randread", "--depth", "8"];
        let load = &json_of(0, seconds, &slow)["loads"][0];
        told = number(&load["iops"]);
        // 50 a second for each that is in flight: a timer is late by a little, never by as much again.
        assert!(told <= 400.0 * 1.1 + 8.0, "{load}");
        assert_eq!(number(&load["bytes_per_second"]).round(), (told * 4096.0).round());
        if told >= 200.0 {
            break;
        }
        assert!(
            number(&load["starved"]) >= 0.05,
            "half of what is due is missing, and nobody had the processors: {load}"
        );
        seconds *= 2.0;
    }
    eprintln!("{told} IOPS of 400");
    let slow = ["null:1G", "--filter", "fault,delay_ms=20", "--op", "randread"];
    for depth in [1.0, 8.0] {
        let depth_text = depth.to_string();
        let report = json(0, &[&slow[..], &["--depth", &depth_text]].concat());
        let load = &report["loads"][0];
        assert!(number(&load["latency_ns"]["min"]) >= 19.9e6, "{load}");
        // 50 a second for each that is in flight, and never more.
        assert!(number(&load["iops"]) <= 50.0 * depth * 1.35 + 4.0, "{load}");
        let is_short = number(&load["latency_ns"]["count"]) < 1000.0;
        assert_eq!(is_short, load["latency_ns"]["p99.9"].is_null(), "so few say nothing of that: {load}");
        assert_eq!(is_short, remarks(&report).contains("fewer than 1000"));
    }
}

fn fits(text: &str) {
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn the_report_fits_a_terminal() {
    let mut report = ends(0, &["ram:16M", "--seconds", "0.2"]);
    // As above.
    for seconds in ["1", "3"] {
        if report.0.contains("waited for a processor") {
            report = ends(0, &["ram:16M", "--seconds", seconds]);
        }
    }
    let (text, said) = report;
    for part in [
        "ram:16M",
        "opened read-only",
        "4K random read, depth 64",
        "IOPS",
        "p99.9",
        "^p50",
        "max",
        "no errors",
        "io_uring",
    ] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    assert!(text.contains('█') && text.contains('┬') && text.contains("µs"), "{text}");
    fits(&text);
    // What was never written is not read.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("nothing but zeros") && text.contains("memory of this process"), "{text}");
    assert_eq!(said.lines().count(), 3, "a line a load where nobody watches: {said}");
}

#[test]
fn without_write_nothing_is_changed_and_with_it_only_what_the_load_covers() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 4);
    let before = std::fs::read(&image).unwrap();
    let spec = file_spec(&image);
    let report = json(0, &[&spec]);
    assert!(!remarks(&report).contains("zeros"), "{report}");
    assert!(std::fs::read(&image).unwrap() == before, "it was changed");
    let window = ["--filter", "offset,start=1M,length=1M"];
    let report = json(0, &[&[spec.as_str(), "--write"], &window[..]].concat());
    assert_eq!(report["loads"].as_array().unwrap().len(), 6);
    let after = std::fs::read(&image).unwrap();
    assert_eq!(after.len(), before.len());
    assert!(
        after[..1 << 20] == before[..1 << 20] && after[2 << 20..] == before[2 << 20..],
        "outside the window"
    );
    assert!(after[1 << 20..2 << 20] != before[1 << 20..2 << 20], "nothing was written");
    assert!(remarks(&report).contains("volatile"), "{report}");
}

#[test]
fn a_file_is_made_for_writes_alone_and_goes_again() {
    let folder = Folder::new();
    let path = folder.path("new.img");
    let spec = format!("{},size=2M", file_spec(&path));
    refused(&[&spec], &["new.img", "only made with --write"]);
    assert!(!path.exists());
    let report = json(0, &[&spec, "--write", "--op", "randwrite"]);
    assert!(remarks(&report).contains("removed again") && !path.exists(), "{report}");
    let small = folder.image("small.img", 1);
    refused(&[&format!("{},size=2M", file_spec(&small))], &["cannot be made"]);
    assert_eq!(std::fs::metadata(&small).unwrap().len(), 1 << 20);
}

#[test]
fn errors_are_counted_and_end_nothing() {
    let report = steady(1, &["ram:16M", "--filter", "fault,op=read,every=4,errno=EIO", "--op", "randread"]);
    let load = &report["loads"][0];
    let (served, errors) = (number(&load["latency_ns"]["count"]), number(&load["errors"]));
    assert!(errors > 100.0 && (served / errors - 3.0).abs() < 0.1, "{served} and {errors}");
    assert_eq!(
        (&load["errors_by_errno"][0]["errno"], &load["errors_by_errno"][0]["count"]),
        (&5.into(), &load["errors"])
    );
    let (text, _) = ends(1, &["ram:16M", "--filter", "fault", "--op", "read", "--seconds", "0.2"]);
    assert!(
        text.contains("errors") && text.contains("Input/output error") && text.contains("0.0 IOPS"),
        "{text}"
    );
    fits(&text);
}

/// A disk that fails only while it warms up has failed.
#[test]
fn errors_of_the_warm_up_are_counted_apart() {
    // By this seed the 56th request fails, and then none of the next thousands.
    let failing =
        ["null:1G", "--filter", "throttle,iops=400", "--filter", "fault,probability=0.0002,seed=135"];
    let more = ["--op", "randread", "--depth", "4"];
    let load = &json_of(1, 0.5, &[&failing[..], &more].concat())["loads"][0];
    assert_eq!((&load["errors"], &load["warm_up_errors"]), (&0.into(), &1.into()), "{load}");
    assert_eq!(load["warm_up_errors_by_errno"][0]["errno"], 5);
    let (text, _) = ends(1, &[&failing[..], &more, &["--seconds", "0.5"]].concat());
    for part in ["1 error while warming up", "failed 1 times while warming up: Input/output error"] {
        assert!(text.contains(part), "{text}");
    }
    fits(&text);
}

/// What was measured before a load failed is told.
#[test]
fn a_load_that_cannot_be_had_takes_no_other_along() {
    // The buffers of the second are half a gigabyte.
    let limited = |more: &[&str]| {
        let arguments =
            ["bench", "null:1G", "--op", "randread", "--op", "read", "--depth", "4096", "--seconds", "0.2"];
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 500000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_blockhaus")]);
        let output = command.args(arguments).args(more).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let folder = Folder::new();
    let svg = folder.path("bench.svg");
    let (status, text, said) = limited(&["--svg", svg.to_str().unwrap()]);
    assert_eq!(status, Some(1), "{said}");
    assert!(text.contains("4K random read, depth 4096") && text.contains("^p50"), "{text}{said}");
    assert!(text.contains("* Load 2 of 2 failed: ") && !text.contains("INTERRUPTED"), "{text}");
    assert!(said.contains("no memory for the buffers"), "{said}");
    assert!(well_formed(&std::fs::read_to_string(&svg).unwrap()) > 30);
    let (_, text, _) = limited(&["--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((report["loads"].as_array().unwrap().len(), &report["loads_wanted"]), (1, &2.into()));
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_cure() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 1);
    let spec = file_spec(&image);
    for (arguments, said) in [
        (&["rma:1G"][..], &["did you mean ram?"][..]),
        (&["/dev/no-such-disk"], &["/dev/no-such-disk", "lsblk"]),
        (&["7777"], &["/dev/ublkb7777", "blockhaus list"]),
        (&["/dev/null"], &["/dev/null", "neither a regular file nor a block device"]),
        (&[image.to_str().unwrap()], &["did you mean file:"]),
        (&["/dev/shm"], &["it is a directory"]),
        (&["ram:16M", "--op", "randwrite"], &["destroys", "--write"]),
        (&["ram:16M", "--seconds", "0"], &["0.1 to 3600"]),
        (&["ram:16M", "--jobs", "0"], &["--jobs 1"]),
        (&["ram:16M", "--op", "read", "--block-size", "700"], &["blocks of 512", "--block-size 512"]),
        (&["ram:16M", "--op", "read", "--block-size", "1G"], &["at most", "--block-size "]),
        (&["ram:16M", "--op", "read", "--depth", "9000"], &["--depth 4096"]),
        (&["ram:16M", "--filter", "trottle,iops=5"], &["did you mean throttle?"]),
        (&[&spec, "--svg", image.to_str().unwrap()], &["no SVG is in it"]),
        (&[&spec, "--svg", "/nowhere/x.svg"], &["no such folder"]),
    ] {
        refused(arguments, said);
    }
    ends(2, &["ram:16M", "--depth", "4"]);
    ends(2, &["ram:16M", "--op", "erase"]);
    assert!(std::fs::read(&image).unwrap().iter().all(|&byte| byte == 7));
    // Whoever has it for writing keeps readers out, and whoever has it open at all keeps a writer out.
    let held = std::fs::File::open(&image).unwrap();
    refused(&[&spec, "--write"], &["in use", &own_name(), "leave --write out"]);
    held.lock().unwrap();
    refused(&[&spec], &["locked", "detach it first"]);
}

/// This process, as an error names it.
fn own_name() -> String {
    format!("open in process {} (", std::process::id())
}

/// Not all that lies below /dev is a device.
#[test]
fn a_file_below_dev_is_a_file() {
    let file = tempfile::Builder::new().prefix("blockhaus-bench-").tempfile_in("/dev/shm").unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.into_temp_path();
    refused(&[path.to_str().unwrap()], &["did you mean file:/dev/shm/blockhaus-bench-"]);
    refused(&[path.to_str().unwrap(), "--write"], &["did you mean file:/dev/shm/blockhaus-bench-"]);
    assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(json(0, &[&file_spec(&path), "--op", "read"])["loads"][0]["errors"], 0);
}

/// Who means to write is told what is lost.
#[test]
fn what_is_lost_is_named() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 1);
    let (spec, arguments) = (file_spec(&image), ["--write", "--op", "write", "--seconds", "0.2"]);
    let (text, said) = ends(0, &[&[spec.as_str()], &arguments[..]].concat());
    let lost = format!("all over {spec} (1M)");
    assert!(said.contains(&format!("writing {lost}: what is on it is lost")), "{said}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("Written all over file:") && text.contains("(1M): what was on it is lost"),
        "{text}"
    );
    let new = format!("{},size=1M", file_spec(&folder.path("new.img")));
    let reading = ["--write", "--op", "read", "--seconds", "0.2"];
    for (disk, more) in [(spec.as_str(), &reading), (&new, &arguments), ("ram:1M", &arguments)] {
        let (text, said) = ends(0, &[&[disk], &more[..]].concat());
        assert!(!said.contains("is lost") && !text.contains("is lost"), "{disk}: {text}{said}");
    }
}

/// Figures of what stands on memory are not called those of memory alone.
#[test]
fn remarks_name_the_filters() {
    for (disk, said) in [
        ("null:1G", "of blockhaus and the filters throttle, log"),
        ("ram:1M", "of blockhaus, the filters throttle, log and the processor"),
    ] {
        let filters = ["--filter", "throttle,iops=100000", "--filter", "log,file=/dev/null"];
        let report = json(0, &[&[disk, "--op", "randread"], &filters[..]].concat());
        assert!(remarks(&report).contains(said), "{report}");
        assert!(!remarks(&report).contains("It answers at once"), "{report}");
    }
}

/// Small and odd disks get what is nearest to the loads.
#[test]
fn the_usual_loads_fit_every_disk() {
    for (spec, sizes) in [("ram:512", [512.0, 512.0, 512.0]), ("ram:9K", [4096.0, 4096.0, 9216.0])] {
        let report = json(0, &[spec]);
        let told: Vec<f64> =
            report["loads"].as_array().unwrap().iter().map(|load| number(&load["block_size"])).collect();
        assert_eq!(told, sizes, "{spec}");
    }
    let report =
        json(0, &["ram:16M", "--filter", "blocksize,size=4096", "--op", "randread", "--block-size", "8K"]);
    assert_eq!(report["disk"]["logical_block_size"], 4096);
}

/// Who reads only the picture gets it.
#[test]
fn the_picture_is_drawn_when_nobody_reads_the_report() {
    let folder = Folder::new();
    let svg = folder.path("bench.svg");
    let arguments = ["null:1G", "--op", "read", "--seconds", "0.2", "--json", "--svg", svg.to_str().unwrap()];
    let mut child = bench(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("standard output"), "{said}");
    assert!(well_formed(&std::fs::read_to_string(&svg).unwrap()) > 30);
}

/// What XML demands, as far as a picture of ours goes: one root, tags that match, quoted attributes, no stray `<`
/// or `&`. Yields the number of elements.
fn well_formed(xml: &str) -> usize {
    let mut open: Vec<&str> = Vec::new();
    let (mut elements, mut rest) = (0, xml.trim());
    assert!(rest.starts_with("<svg "));
    while let Some(at) = rest.find('<') {
        let (text, tag) = rest.split_at(at);
        assert!(!open.is_empty() || (text.is_empty() && elements == 0), "behind the root: {text:?}");
        for (at, _) in text.match_indices('&') {
            let entity = text[at..].split_once(';').expect("an end").0;
            assert!(["&amp", "&lt", "&gt", "&quot"].contains(&entity), "{entity}");
        }
        assert!(
            !text.contains('>') && !text.chars().any(|letter| letter.is_control() && letter != '\n'),
            "{text:?}"
        );
        let (tag, behind) = tag[1..].split_once('>').expect("a tag has an end");
        rest = behind;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        elements += 1;
        assert!(!tag.contains('<') && tag.matches('"').count() % 2 == 0, "{tag}");
        assert_eq!(tag.matches('=').count(), tag.matches("=\"").count(), "{tag}");
        if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty() && rest.is_empty(), "{open:?} {rest:?}");
    elements
}

#[test]
fn the_picture_is_xml_whatever_the_disk_is_called() {
    let folder = Folder::new();
    let image = folder.image("a<b>&\"c\"'.img", 1);
    let svg = folder.path("bench.svg");
    let spec = file_spec(&image);
    // The second time it replaces its own.
    for _ in 0..2 {
        ends(0, &[&spec, "--seconds", "0.2", "--svg", svg.to_str().unwrap()]);
    }
    let text = std::fs::read_to_string(&svg).unwrap();
    assert!(well_formed(&text) > 60);
    for part in [
        "a&lt;b&gt;&amp;&quot;c&quot;",
        "4K random read, depth 1",
        "128K sequential read, depth 16",
        "latency (logarithmic axis)",
        "share",
        " µs",
        "p99",
        "Linux ",
        "--svg",
        "class=\"bar\"",
    ] {
        assert!(text.contains(part), "{part} is missing");
    }
}
