//! An export of an NBD server as a ublk disk.

use std::time::Duration;

use super::{Entry, Where, entry};
use crate::blockhaus::Blockhaus;
use crate::check::fio::{self, Load};
use crate::check::fs::{self, Kind};
use crate::outcome::Outcome;
use crate::run::{Background, signal, wait_until};
use crate::{ensure, home};

pub(super) const TESTS: &[Entry] = &[
    entry("chain/verify-1", 240, Where::Ends, || verify("connections=1", 1)),
    entry("chain/verify-4", 240, Where::Ublk, || verify("connections=4", 64)),
    entry("chain/kill9-server", 180, Where::Ublk, kill9_server),
];

fn socket() -> String {
    home::scratch().join("chain.sock").display().to_string()
}

/// A server of ours, which is ready; killed when it is dropped.
struct Server(Background);

impl Server {
    fn start(spec: &str) -> Outcome<Server> {
        let listen = format!("unix:{}", socket());
        let mut server =
            Blockhaus::new().command(&["serve", "--listen", &listen, spec]).timeout(600).spawn()?;
        let ready = wait_until(Duration::from_secs(20), || {
            server.stdout_so_far().ends_with('\n') || !matches!(server.ended(), Ok(None))
        });
        ensure!(
            ready && matches!(server.ended(), Ok(None)),
            "the NBD server does not start: {}",
            server.stderr_so_far().trim()
        );
        Ok(Server(server))
    }

    fn kill(&mut self) {
        signal(self.0.pid() as i32, libc::SIGKILL);
        wait_until(Duration::from_secs(10), || !matches!(self.0.ended(), Ok(None)));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn uri(keys: &str) -> String {
    format!("nbd+unix:///?socket={},{keys}", socket())
}

/// fio's checksums with discards between, and a file system's whole life.
fn verify(keys: &str, depth: u16) -> Outcome {
    let file = home::path("chain.img");
    let _server = Server::start(&format!("file:{file},size=400M"))?;
    let device = Blockhaus::new().attach(&[&uri(keys), "--queues", "2", "--depth", &depth.to_string()])?;
    ensure!(
        device.info.notes.iter().any(|note| note.contains("connection")),
        "attach does not say how it is connected: {:?}",
        device.info.notes
    );
    fio::verify(device.path(), device.info.block_size, depth, 0, 48 << 20)?;
    fs::round(device.path(), Kind::Ext4, 24 << 20, false)?;
    device.detach()
}

/// The NBD server is killed three times under load on the device, and comes back: nobody is told, and what was
/// written before is there.
fn kill9_server() -> Outcome {
    let spec = format!("file:{},size=128M", home::path("chain-kill.img"));
    let mut server = Server::start(&spec)?;
    let device = Blockhaus::new().attach(&[&uri("connections=2"), "--queues", "2", "--depth", "32"])?;
    let before = device.status()?.queue_threads.len();
    ensure!(before == 2, "{before} queue threads");
    for round in 0..3u64 {
        let load = Load::start(device.path(), 12, 300, || device.requests())?;
        server.kill();
        std::thread::sleep(Duration::from_millis(300 * round));
        server = Server::start(&spec)?;
        load.ends_well(60)?;
        fio::verify(device.path(), device.info.block_size, 16, 16 << 20, 12 << 20)?;
    }
    device.detach()
}
