//! NBD over vsock, as between a machine and its virtual machines: here the machine with itself, by vsock_loopback.

use std::time::Duration;

use super::{Entry, Where, entry};
use crate::outcome::{Context, Outcome};
use crate::run::{Cmd, wait_until};
use crate::{blockhaus, ensure, home};

pub(super) const TESTS: &[Entry] = &[entry("vsock/copy", 120, Where::Everywhere, copy)];

/// Of this machine, to itself.
const URI: &str = "nbd+vsock://1/";

fn copy() -> Outcome {
    Cmd::new("modprobe").arg("vsock_loopback").ok()?;
    let image = home::path("vsock.img");
    let bytes: Vec<u8> = (0..16u32 << 20).map(|at| (at >> 9) as u8 ^ at as u8).collect();
    std::fs::write(&image, &bytes).context("cannot write the image")?;
    let arguments = ["serve", "--listen", "vsock:1:10809", "ram:16M"];
    let mut server = Cmd::new(blockhaus::binary()).args(arguments).spawn()?;
    let listens = wait_until(Duration::from_secs(20), || !server.stdout_so_far().is_empty());
    ensure!(listens, "the server does not listen: {}", server.stderr_so_far());
    ensure!(server.stdout_so_far().trim() == URI, "it prints {:?}", server.stdout_so_far());
    ensure!(Cmd::new("nbdinfo").args(["--size", URI]).ok()?.trim() == "16777216", "the size is another");
    let back = home::path("vsock-back.img");
    Cmd::new("nbdcopy").args(["-C", "4", &image, URI]).timeout(60).ok()?;
    Cmd::new("nbdcopy").args(["-C", "4", URI, &back]).timeout(60).ok()?;
    let same = std::fs::read(&back).context("cannot read what came back")? == bytes;
    ensure!(same, "what came back is not what was written");
    ensure!(server.ended()?.is_none(), "the server has ended: {}", server.stderr_so_far());
    Cmd::new("kill").arg(server.pid().to_string()).ok()?;
    let ran = server.wait(Duration::from_secs(20))?;
    ensure!(ran.status.success(), "it ends with {}: {}", ran.status, ran.stderr);
    // Who may reach more than this machine has to insist.
    let refused = Cmd::new(blockhaus::binary()).args(["serve", "--listen", "vsock:10809", "ram:1M"]).run()?;
    ensure!(refused.stderr.contains("--insecure-listen"), "it says {}", refused.stderr);
    Ok(())
}
