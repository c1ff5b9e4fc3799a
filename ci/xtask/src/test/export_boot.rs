//! A machine whose root file system is an export of ours: QEMU's own NBD client reads and writes it, from the first block that
//! the kernel looks at to the last that it writes; what one machine left there the next one finds.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::Guest;
use super::tally::{Failure, Tally};
use crate::vm::{Machine, rootfs};
use crate::{paths, run};

/// What it is called in the summary, beside the kernels.
pub const SUITE: &str = "vm:export";

/// As a filter sees it.
pub const NAME: &str = "export/boots";

/// How long the server may take to listen, on a busy machine.
const START: Duration = Duration::from_secs(30);

const WRITES: &str = "set -eu
root=$(findmnt --noheadings --output SOURCE /)
cat \"/sys/block/${root##*/}/serial\"; echo
dd if=/dev/urandom of=/root/left-here bs=1M count=24 status=none
sha256sum /root/left-here
sync";
const READS: &str = "set -eu
sha256sum /root/left-here
fstrim /";

/// Boots twice from one export, and looks at what is left.
pub fn run(guest: &Guest) -> Tally {
    Tally::one(boots(guest).map_err(|error| Failure::new(NAME, &format!("{error:#}"))))
}

fn boots(guest: &Guest) -> Result<()> {
    let scratch = paths::Scratch::new_in(&paths::workspace().join("target/test"))?;
    let (image, socket) = (scratch.path().join("root.img"), scratch.path().join("socket"));
    run::quiet(run::command("cp").arg("--sparse=always").args([&rootfs::ensure(false)?, &image]))?;
    let server = Server::start(guest.program("blockhaus")?, &image, &socket)?;
    let uri = format!("nbd+unix:///root?socket={}", socket.display());
    let machine = Machine { root: Some(uri), ..Machine::default() };
    let says = |script: &str| {
        let mut said = Vec::new();
        let status = machine.run(script, |line| said.push(line.to_string()))?;
        ensure!(status.success(), "status {}: {}", status.0, said.join("; "));
        Ok(said)
    };
    let written = says(WRITES).context("the first machine")?;
    let [serial, left] = &written[..] else { anyhow::bail!("the first machine said {written:?}") };
    ensure!(serial == "root", "the root file system is not the export but {serial}");
    let read = says(READS).context("the second machine")?;
    ensure!(read.first() == Some(left), "{left:?} was left there, and {read:?} was found");
    server.end()?;
    // A machine's power goes without an unmount: its journal is to be replayed, and nothing else.
    run::command("e2fsck").args(["-E", "journal_only", "-y"]).arg(&image).output()?;
    run::quiet(run::command("e2fsck").args(["-f", "-n"]).arg(&image)).context("what is left on the image")
}

/// `blockhaus serve`, killed when dropped.
struct Server(Child);

impl Server {
    fn start(program: &Path, image: &Path, socket: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["serve", "--listen"]).arg(format!("unix:{}", socket.display()));
        command.arg(format!("root=file:{}", image.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self(run::die_with_us(&mut command).spawn().context("cannot start the server")?);
        let until = Instant::now() + START;
        while !socket.exists() {
            let ended = server.0.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < until, "the server does not listen ({ended:?})");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// It ends in order when it is asked to.
    fn end(mut self) -> Result<()> {
        run::quiet(run::command("kill").arg(self.0.id().to_string()))?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
