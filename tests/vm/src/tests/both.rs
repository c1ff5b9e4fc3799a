//! One backend that is a device and an NBD export at the same time, from one process.

use std::time::Duration;

use super::up::{Up, device, nothing_left, path, requests};
use super::{Entry, Where, entry};
use crate::check::device::Device;
use crate::check::fio::{self, Load, Side};
use crate::home::Mounted;
use crate::outcome::{Context, Outcome};
use crate::run::Cmd;
use crate::{ensure, home};

pub(super) const TESTS: &[Entry] = &[
    entry("both/turns-file", 240, Where::Ublk, || turns("file")),
    entry("both/turns-ram-filters", 240, Where::Ends, || turns("ram")),
    entry("both/at-once", 180, Where::Ends, at_once),
    entry("both/life", 180, Where::Ublk, life),
];

const MIB: u64 = 1 << 20;

fn nbd() -> String {
    format!("[nbd]\nlisten = [\"unix:{}\"]\n", socket())
}

fn socket() -> String {
    home::scratch().join("both-nbd.sock").display().to_string()
}

fn uri(name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", socket())
}

/// A device that NBD clients can choose, too.
fn both(id: u32, spec: &str, name: &str) -> String {
    format!("{}export = \"{name}\"\n", device(id, spec))
}

fn export(name: &str, spec: &str) -> String {
    format!("[[export]]\nname = \"{name}\"\nspec = \"{spec}\"\n")
}

/// The size that clients are told; none where there is no such export.
fn size(name: &str) -> Outcome<Option<u64>> {
    let ran = Cmd::new("nbdinfo").args(["--size", &uri(name)]).run()?;
    match ran.status.success() {
        true => Ok(Some(ran.stdout.trim().parse().ok().context("nbdinfo says no number")?)),
        false => {
            // Older and newer libnbd.
            let none = ["No such file", "has not returned export size"];
            let is_none = none.iter().any(|words| ran.stderr.contains(words));
            ensure!(is_none, "nbdinfo of {name}: {}", ran.stderr.trim());
            Ok(None)
        }
    }
}

/// What is written on one side is verified on both, in turns. Each turn has blocks of a size of its own,
/// so that what an earlier one left cannot pass.
fn turns(kind: &str) -> Outcome {
    let file = home::path("both.img");
    let (disk, len, blocks) = match kind {
        "file" => (both(24, &format!("file:{file},size=48M"), "x"), 24 * MIB, ["4k", "8k", "16k", "12k"]),
        // Pieces of blocks, for which the range lock has to hold for the queues of both.
        _ => {
            let log = home::path("both.log");
            let filters =
                format!("block-size = 512\nfilters = [\"log,file={log}\", \"blocksize,size=4096\"]\n");
            (format!("{}{filters}", both(24, "ram:48M", "x")), 12 * MIB, ["1536", "6k", "3k", "12k"])
        }
    };
    let up = Up::new("both", &[nbd(), disk])?;
    let paths = up.paths(2)?;
    ensure!(paths == [path(24), uri("x")], "up printed {paths:?}");
    up.serves(&[24])?;
    ensure!(size("x")? == Some(48 * MIB), "clients are told the size {:?}", size("x")?);
    let (ours, uri) = (path(24), uri("x"));
    let sides = [Side::Disk(&ours), Side::Nbd(&uri)];
    for (turn, block) in blocks.into_iter().enumerate() {
        let (writer, reader) = (sides[turn % 2], sides[(turn + 1) % 2]);
        fio::write(writer, block, 8 * MIB, len).context(format!("turn {turn}, write"))?;
        fio::read_back(reader, block, 8 * MIB, len).context(format!("turn {turn}, the other side"))?;
        fio::read_back(writer, block, 8 * MIB, len).context(format!("turn {turn}, the same side"))?;
        // The check itself must be able to fail.
        ensure!(
            fio::read_back(reader, "32k", 8 * MIB, len).is_err(),
            "fio verifies blocks that nobody has written"
        );
    }
    Device::open(&ours)?.fill(7, 0, 8 * MIB)?;
    up.down(&[])?.done()?;
    nothing_left(&[24])?;
    up.ends()?;
    if kind != "file" {
        return Ok(());
    }
    // What either side has written is in the file when all is down; the last turn was the clients'.
    let up = Up::new("both", &[device(24, &format!("file:{file}"))])?;
    fio::read_back(sides[0], "12k", 8 * MIB, len).context("after a restart")?;
    Device::open(&ours)?.expect(7, 0, 8 * MIB, 0)?;
    up.down(&[])?.done()?;
    up.ends()
}

/// Both sides at once, each on a half of its own; then each half from the other side.
fn at_once() -> Outcome {
    let up = Up::new("both", &[nbd(), both(24, &format!("file:{},size=128M", home::path("once.img")), "x")])?;
    let (ours, uri) = (path(24), uri("x"));
    let halves = [(Side::Disk(&ours), 0), (Side::Nbd(&uri), 64 * MIB)];
    for block in ["4k", "16k"] {
        let results: Vec<Outcome> = std::thread::scope(|scope| {
            let running = halves.map(|(side, at)| scope.spawn(move || fio::write(side, block, at, 60 * MIB)));
            running
                .into_iter()
                .map(|thread| thread.join().ok().context("a thread has panicked").and_then(|done| done))
                .collect()
        });
        results.into_iter().collect::<Outcome<Vec<()>>>()?;
        for ((_, at), (other, _)) in halves.into_iter().zip(halves.into_iter().rev()) {
            fio::read_back(other, block, at, 60 * MIB)
                .context(format!("the half at {at} from the other side"))?;
        }
    }
    up.down(&[])?.done()?;
    up.ends()
}

/// Devices and exports come and go by reload, and what is in use keeps both of its sides.
fn life() -> Outcome {
    let (alone, first, second) = (export("e", "ram:64M"), both(24, "ram:64M", "d"), both(25, "ram:32M", "d"));
    let up = Up::new("both", &[nbd(), first, alone.clone()])?;
    let paths = up.paths(3)?;
    ensure!(paths == [path(24), uri("d"), uri("e")], "up printed {paths:?}");
    ensure!(size("d")? == Some(64 * MIB), "d has {:?} bytes", size("d")?);
    // The same name for another disk, while somebody works on the other export.
    let load = fio::nbd_load(&uri("e"), 15)?;
    let third = both(26, "ram:16M", "m");
    up.reload(&[nbd(), second.clone(), third, alone.clone()])?;
    up.serves(&[25, 26])?;
    nothing_left(&[24])?;
    ensure!(size("d")? == Some(32 * MIB), "after the reload d has {:?} bytes", size("d")?);
    ensure!(up.log().contains("serving 2 devices and 3 exports now"), "{}", up.log());
    let ours = path(25);
    fio::write(Side::Nbd(&uri("d")), "4k", 0, 16 * MIB)?;
    fio::read_back(Side::Disk(&ours), "4k", 0, 16 * MIB)?;
    let ran = load.wait(Duration::from_secs(60))?;
    ensure!(ran.status.success(), "the load on e during a reload: {}", ran.stderr.trim());
    // A device that is in use stays, and its export with it.
    Cmd::new("mkfs.ext4").args(["-q", "-F", &path(26)]).timeout(60).ok()?;
    let mounted = Mounted::new(&path(26), "both-mounted")?;
    up.reload(&[nbd(), second, alone])?;
    up.serves(&[25, 26])?;
    ensure!(size("m")? == Some(16 * MIB), "the export of a mounted device has gone");
    let refused = up.down(&[])?;
    ensure!(!refused.status.success(), "down of a mounted disk worked");
    ensure!(size("m")?.is_some() && size("d")?.is_some(), "a refused down has taken exports");
    mounted.unmount()?;
    // One device by itself, with its export, under load on its device; forced, as somebody has it open.
    let load = Load::start(&ours, 60, 500, || requests(25))?;
    up.tool.answer(&["detach", "25", "--force"])?.done()?;
    load.ends_in_error(30)?;
    nothing_left(&[25])?;
    ensure!(size("d")?.is_none() && size("e")?.is_some(), "detach of one has not taken its export alone");
    up.tool.answer(&["detach", "26"])?.done()?;
    // Now there are exports only, and `down` finds them all the same.
    ensure!(size("m")?.is_none() && size("e")? == Some(64 * MIB), "e has gone with the devices");
    let listed = up.tool.answer(&["list", "--exports"])?;
    ensure!(listed.stdout.lines().count() == 2 && listed.stdout.contains("ram:64M"), "{}", listed.stdout);
    up.down(&[])?.done()?;
    nothing_left(&[24, 25, 26])?;
    up.ends()
}
