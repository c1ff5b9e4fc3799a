//! How a server begins and ends.

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Output;

use crate::raw::{Client, READ, request};
use crate::server::{Server, command, folder};

fn output(folder: &std::path::Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

#[test]
fn a_signal_ends_it_in_order_and_takes_the_socket_along() {
    let server = Server::start(&["ram:64M"]);
    let socket = server.socket();
    let mut busy = Client::transmitting(&socket);
    let mut idle = Client::transmitting(&socket);
    let mut half_open = Client::connect(&socket);
    // So many replies that they cannot all be on their way already.
    let reads: Vec<u8> = (0..30).flat_map(|n| request(READ, n, 0, 1 << 20)).collect();
    busy.send(&reads);
    assert_eq!(busy.reply().1, 0);
    busy.receive(1 << 20);
    server.terminate();
    assert!(idle.is_closed() && half_open.is_closed());
    // What was begun is answered whole; what was not is not answered at all.
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut busy.stream, &mut rest);
    assert_eq!(rest.len() % ((1 << 20) + 16), 0, "a reply was cut off");
    let (status, said) = server.ended();
    assert!(status.success(), "{status}: {said}");
    assert!(said.contains("SIGTERM"), "{said}");
    assert!(!socket.exists());
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let home = folder();
    let spec = format!("file:{},size=1M", home.path().join("disk.img").display());
    for round in 0..3u8 {
        let server = Server::start(&[&spec]);
        let mut client = Client::transmitting(&server.socket());
        if round > 0 {
            assert_eq!(client.ask(READ, 0, 4096).unwrap(), [round - 1; 4096]);
        }
        client.write(0, &[round; 4096]).unwrap();
        server.terminate();
        assert!(server.ended().0.success());
    }
}

#[test]
fn only_a_dead_servers_socket_is_replaced() {
    let home = folder();
    let socket = home.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let server = Server::start_in(home, &["ram:1M"]);
    Client::transmitting(&socket);
    let second = output(server.folder(), &["--listen", "unix:s", "ram:1M"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("somebody else listens there"), "{said}");
    Client::transmitting(&socket);
    std::fs::write(server.folder().join("file"), "precious").unwrap();
    let third = output(server.folder(), &["--listen", "unix:file", "ram:1M"]);
    assert_eq!(third.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(server.folder().join("file")).unwrap(), "precious");
    let _datagrams = UnixDatagram::bind(server.folder().join("d")).unwrap();
    let fourth = output(server.folder(), &["--listen", "unix:d", "ram:1M"]);
    let said = String::from_utf8_lossy(&fourth.stderr).into_owned();
    assert!(said.contains("a file of another kind") && said.contains("choose another path"), "{said}");
}

#[test]
fn what_makes_no_sense_is_said_before_anything_is_served() {
    let home = folder();
    for (arguments, part) in [
        (&["--listen", "tcp:0.0.0.0:0", "ram:1M"][..], "--insecure-listen"),
        (&["--listen", "tcp:[::]:0", "ram:1M"], "--insecure-listen"),
        (&["--listen", "udp:1.2.3.4:5", "ram:1M"], "tcp:127.0.0.1:10809"),
        (&["--listen", "unix:s", "a=ram:1M", "a=ram:1M"], "cannot export \"a\" twice"),
        (&["--listen", "unix:s", "a=rma:1M"], "did you mean ram?"),
        (&["--listen", "unix:s", "--depth", "0", "ram:1M"], "depth"),
        (&["--listen", "unix:nowhere/s", "ram:1M"], "nowhere/s"),
    ] {
        let output = output(home.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
        assert!(!home.path().join("s").exists());
    }
}

#[test]
fn json_says_what_is_served_and_where() {
    let server = Server::started(
        folder(),
        &["--listen", "unix:s", "--listen", "tcp:127.0.0.1:0", "--json", "a=ram:1M", "b=ram:2M"],
    );
    let said: serde_json::Value = serde_json::from_str(server.uri()).unwrap();
    assert_eq!(said["pid"], server.pid());
    assert_eq!((&said["exports"][1]["name"], &said["exports"][1]["size"]), (&"b".into(), &(2 << 20).into()));
    let uris = said["exports"][0]["uris"].as_array().unwrap();
    assert!(uris[0].as_str().unwrap().starts_with("nbd+unix:///a?socket=/"));
    assert!(uris[1].as_str().unwrap().starts_with("nbd://127.0.0.1:"));
}
