//! What a server has counted, as `stats` and Prometheus see it.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

/// A disk on which one block cannot be read.
fn flawed() -> String {
    let fault = "filters = [\"fault,op=read,offset=1M,length=4K\"]\n";
    format!("{NBD}{}{fault}{}", export("a", "ram:64M"), export("b", "ram:1M"))
}

/// Three writes, two of them in two pieces; two reads, one of which fails; a flush.
fn load(up: &Up) {
    let mut client = Client::choosing(&up.socket(), "a");
    client.write(0, &[1; 4096]).unwrap();
    client.write(4096, &[2; 400_000]).unwrap();
    client.write(2 << 20, &[3; 300_000]).unwrap();
    client.ask(READ, 0, 8192).unwrap();
    assert_eq!(client.ask(READ, 1 << 20, 4096).unwrap_err(), 5);
    client.ask(FLUSH, 0, 0).unwrap();
}

#[test]
fn what_was_done_for_an_export_is_counted() {
    let up = Up::start(&flawed(), 2);
    load(&up);
    let output = up.run(&["stats", "a", "--json"]);
    let stats: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let [stats] = &stats.as_array().unwrap()[..] else { panic!("{stats}") };
    assert_eq!(
        (&stats["engine"], &stats["name"], &stats["spec"]),
        (&"nbd".into(), &"a".into(), &stats["spec"])
    );
    assert!(stats["spec"].as_str().unwrap().starts_with("ram:64M"), "{stats}");
    let counted = |op: usize| {
        let op = &stats["ops"][op];
        assert_eq!(op["latency"]["measured"], op["requests"], "{op}");
        ["requests", "bytes", "errors"].map(|what| op[what].as_u64().unwrap())
    };
    assert_eq!(counted(0), [2, 12_288, 1]);
    assert_eq!(counted(1), [5, 704_096, 0]);
    assert_eq!(counted(2), [1, 0, 0]);
    assert_eq!(stats["queues"][0]["in_flight"], 0);
    let text = String::from_utf8(up.run(&["stats", "a"]).stdout).unwrap();
    let row = text.lines().find(|line| line.starts_with("read")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>()[..4], ["read", "2", "12K", "1"], "{text}");
    // Nothing has come since, and of the other there was nothing at all.
    let interval = String::from_utf8(up.run(&["stats", "a", "--every", "1", "--count", "1"]).stdout).unwrap();
    assert!(interval.contains("0 in flight\nno requests"), "{interval}");
    let other = up.run(&["stats", "b", "--json"]).stdout;
    let other: serde_json::Value = serde_json::from_slice(&other).unwrap();
    assert_eq!(
        (&other[0]["ops"][0]["requests"], &other[0]["ops"][0]["latency"]),
        (&0.into(), &serde_json::Value::Null)
    );
    let nobody = up.run(&["stats", "c"]);
    assert!(!nobody.status.success() && said(&nobody).contains("no export"), "{}", said(&nobody));
}

/// An `up` that is stopped, or hangs, is no reason to say that there is no such export.
#[test]
fn who_does_not_answer_may_have_the_export() {
    let up = Up::start(&flawed(), 2);
    up.kill("-STOP");
    let silent = up.run(&["stats", "a"]);
    up.kill("-CONT");
    let text = said(&silent);
    assert!(!silent.status.success() && text.contains("does not answer, it was stopped"), "{text}");
}

/// Two processes may each have an export of one name.
#[test]
fn exports_of_one_name_are_told_apart() {
    let up = Up::start(&flawed(), 2);
    let other = flawed().replace("unix:s", "unix:t");
    fs::write(up.folder().join("other.toml"), other).unwrap();
    let mut child =
        blockhaus(up.folder(), &["up", "other.toml"]).stdout(Stdio::piped()).spawn().expect("it starts");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(2).count();
    let _other = Exporter(child);
    assert_eq!(lines, 2);
    load(&up);
    let output = up.run(&["stats", "a", "--every", "1", "--count", "1", "--json"]);
    let intervals: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(intervals.as_array().unwrap().len(), 2, "{intervals}");
    for interval in intervals.as_array().unwrap() {
        let requests = interval["ops"].as_array().unwrap().iter().map(|op| op["requests"].as_u64().unwrap());
        assert_eq!(requests.sum::<u64>(), 0, "{interval}");
    }
    let printed = String::from_utf8(up.run(&["metrics"]).stdout).unwrap();
    let all = samples("prometheus_client.parser", &printed);
    let series = || all.lines().map(|line| line.rsplit_once(' ').unwrap().0);
    assert_eq!(series().collect::<std::collections::BTreeSet<_>>().len(), series().count(), "{all}");
    assert!(all.contains("other.toml'), ('disk', 'a')"), "{all}");
}

/// Reads the text with Prometheus' own library: a line for each sample.
const READER: &str = "
import importlib, sys
read = importlib.import_module(sys.argv[1]).text_string_to_metric_families
for family in read(sys.stdin.read()):
    for sample in family.samples:
        print(sample.name, sorted(sample.labels.items()), float(sample.value))
";

fn samples(parser: &str, text: &str) -> String {
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", READER, parser])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is there");
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    let missing = "apt-get install python3-prometheus-client";
    assert!(output.status.success(), "{} ({missing}?)\n{text}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks over a connection of its own, which the other side closes after its answer.
fn scrape(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The process that answers scrapes.
struct Exporter(Child);

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prometheus_reads_the_metrics() {
    let up = Up::start(&flawed(), 2);
    load(&up);
    let mut child = blockhaus(up.folder(), &["metrics", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let _exporter = Exporter(child);
    let address = url.trim().strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
    // Those who ask for nothing keep nobody waiting.
    let silent: Vec<_> = (0..4).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let accept =
        "Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3\r\n";
    let answer = scrape(&address, &format!("GET /metrics HTTP/1.1\r\nHost: here\r\n{accept}\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text;"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    let all = samples("prometheus_client.openmetrics.parser", body);
    let about = format!("('about', '{}')", up.folder().join("up.toml").display());
    let labels =
        |op: &str| format!("[{about}, ('disk', 'a'), ('engine', 'nbd'), ('op', '{op}'), ('queue', '0')]");
    for line in [
        format!("blockhaus_requests_total {} 5", labels("write")),
        format!("blockhaus_request_bytes_total {} 704096", labels("write")),
        format!("blockhaus_request_errors_total {} 1", labels("read")),
        format!("blockhaus_requests_in_flight [{about}, ('disk', 'a'), ('engine', 'nbd'), ('queue', '0')] 0"),
        format!(
            "blockhaus_request_latency_seconds_count [{about}, ('disk', 'a'), ('engine', 'nbd'), ('op', 'write')] 5"
        ),
    ] {
        assert!(all.lines().any(|found| found.starts_with(&line)), "no {line} in\n{all}");
    }
    assert!(all.contains("('disk', 'b')"), "{all}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "400"),
    ] {
        let answer = scrape(&address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "x".repeat(9000));
    assert!(scrape(&address, &long).starts_with("HTTP/1.1 431 "));
    drop(silent);
    // Who does not ask for that gets the older format, as does who asks without HTTP; with the same in it.
    let answer = scrape(&address, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4;"), "{head}");
    assert!(body.contains("# TYPE blockhaus_request_bytes_total counter\n"), "{body}");
    let printed = String::from_utf8(up.run(&["metrics"]).stdout).unwrap();
    for text in [body, &printed] {
        let read = samples("prometheus_client.parser", text);
        let different = all.lines().zip(read.lines()).find(|(one, other)| one != other);
        assert_eq!((different, read.lines().count()), (None, all.lines().count()));
    }
}
