//! From the file of `up` to what a server is to do: at the start, and each time the file is read
//! again.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Spec;
use crate::config::changes::changes;
use crate::config::entrance::{Listen, Nbd, Tls, Vsock};
use crate::config::file::{self, At, Config, Device, Disk, Export};
use crate::config::limits::Limits;
use crate::engine::nbd::Encryption;
use crate::engine::ublk::{Load, Wish};
use crate::engine::{self, Choices, Chosen, DeviceName, DeviceOptions, Engine, EngineWish, NbdChoices, nbd};
use crate::error::{Error, Kind, Result};
use crate::port::clock::Duration;
use crate::port::inherited::Inherited;
use crate::port::system;
use crate::queue::Stack;
use crate::server::entrance::{self, Address, Entrance};
use crate::server::{Change, Engines, Job, Key, Offering, Plan, Source};
use crate::stack::{OpenOptions, SpecTable, in_bytes};
use crate::tls::ServerConfig;

mod same_file;

use same_file::Place;

/// A spec and its filters as one text, as `list` shows them.
pub fn with_filters(spec: &Spec, filters: &[Spec]) -> String {
    filters.iter().fold(spec.to_string(), |text, filter| format!("{text} --filter {filter}"))
}

/// What this machine allows a disk.
pub fn limits() -> Limits {
    let page_size = u32::try_from(system::page_size()).unwrap_or(4096);
    Limits { cpus: system::cpu_count(), page_size }
}

/// Reads the file and checks all that can be checked without opening anything. Relative paths in
/// specs begin at the folder this process is in.
pub fn check(path: &Path, table: &SpecTable) -> Result<Config> {
    let name = path.display().to_string();
    let system = |error| Error::system(format!("cannot read {name}"), error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(system)?;
    // One byte more than is taken, so that a longer one is told from one that just fits.
    file.take(file::MAX_LEN as u64 + 1).read_to_string(&mut text).map_err(system)?;
    let config = file::parse(&name, &text, &limits())?;
    let mut places: BTreeMap<Place, (usize, bool)> = BTreeMap::new();
    for device in &config.devices {
        data_path(&device.part).map_err(|error| in_line(&name, device.line, &error))?;
        load(&device.part).map_err(|error| in_line(&name, device.line, &error))?;
        wish(&device.part).map_err(|error| in_line(&name, device.line, &error))?;
    }
    let devices = config.devices.iter().map(|device| (device.line, &device.part.disk));
    let exports = config.exports.iter().map(|export| (export.line, &export.part.disk));
    for (line, disk) in devices.chain(exports) {
        let at_line = |error: &Error| in_line(&name, line, error);
        table.check(&disk.spec).map_err(|error| at_line(&error))?;
        for filter in &disk.filters {
            table.check_filter(filter).map_err(|error| at_line(&error))?;
        }
        for place in Place::all_of(disk, table) {
            // Many may read what nobody writes.
            if let Some((other, read_only)) = places.insert(place, (line, disk.read_only))
                && !(read_only && disk.read_only)
            {
                let spec = with_filters(&disk.spec, &disk.filters);
                let why = format!("{spec} has the same file as that of line {other}");
                return Err(Error::invalid(format!("{name}, line {line}"), why)
                    .cure("give each a file of its own, or make all of them read-only"));
            }
        }
    }
    Ok(config)
}

/// An error of a part of the file, with the part's line before it.
fn in_line(name: &str, line: usize, error: &Error) -> Error {
    Error::new(error.kind(), format!("{name}, line {line}"), error.to_string())
}

/// Where the clients of the file's exports come to, and how; reads certificates. An address that other machines can
/// reach is refused unless the file insists, or requires TLS. `inherited` is what a service manager has passed on.
pub fn entrance(path: &Path, config: &Config, inherited: Vec<Inherited>) -> Result<Option<Entrance>> {
    let name = path.display().to_string();
    let nbd = &config.nbd;
    let encryption = encryption(&name, nbd)?;
    let insecure = nbd.insecure_listen || nbd.tls == Tls::Required;
    let address = |listen: &At<Listen>| {
        let address = match &listen.part {
            // Absolute, since that is what the URI needs.
            Listen::Unix(path) => std::path::absolute(path).map(Address::Unix),
            Listen::Tcp { host, port } => entrance::resolve(host, *port).map(Address::Tcp),
            Listen::Vsock(Vsock { context, port }) => Ok(Address::Vsock { context: *context, port: *port }),
            Listen::Inherited(name) => Ok(Address::Inherited(name.clone())),
        };
        let at_line = |error: &Error| in_line(&name, listen.line, error);
        let address =
            address.map_err(|error| at_line(&Error::system("cannot find where to listen", error)))?;
        if !insecure && address.is_reachable() {
            let insist =
                "require TLS (tls = \"required\"), or say insecure-listen = true under [nbd] if you mean it";
            return Err(at_line(&entrance::refused(&address, insist)));
        }
        Ok(address)
    };
    let addresses = nbd.listen.iter().map(address).collect::<Result<Vec<_>>>()?;
    if addresses.is_empty() {
        return Ok(None);
    }
    Ok(Some(Entrance {
        addresses,
        insecure,
        unix_mode: nbd.unix_mode,
        inherited,
        at_standard: None,
        encryption,
        max_connections: nbd.max_connections,
    }))
}

fn encryption(name: &str, nbd: &Nbd) -> Result<Encryption> {
    let Some(folder) = &nbd.tls_certificates else { return Ok(Encryption::Off) };
    let config = ServerConfig::read(&folder.part, nbd.tls_verify_peer)
        .map_err(|error| in_line(name, folder.line, &error))?;
    Ok(match nbd.tls {
        Tls::Off => Encryption::Off,
        Tls::On => Encryption::Offered(config),
        Tls::Required => Encryption::Required(config),
    })
}

/// What the file wants, and what was made of it so far.
pub struct Wanted {
    /// The file, an absolute path.
    path: PathBuf,
    table: Arc<SpecTable>,
    /// What a person should know about each disk of this process.
    notes: Vec<String>,
    /// Every disk that a server was asked for.
    known: BTreeMap<Key, Part>,
    /// What stood under `[nbd]` at the start.
    nbd: Option<Nbd>,
    /// What was made of it.
    encryption: Encryption,
    next: Key,
}

/// A disk of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Device(Device),
    Export(Export),
}

impl Part {
    fn disk(&self) -> &Disk {
        match self {
            Part::Device(device) => &device.disk,
            Part::Export(export) => &export.disk,
        }
    }

    fn device(&self) -> Option<&Device> {
        if let Part::Device(device) = self { Some(device) } else { None }
    }

    fn export_name(&self) -> Option<&String> {
        match self {
            Part::Device(device) => device.export.as_ref(),
            Part::Export(export) => Some(&export.name),
        }
    }
}

/// Everything that the file has, devices first, each with its line.
fn parts(config: &Config) -> Vec<At<Part>> {
    let devices =
        config.devices.iter().map(|device| At { line: device.line, part: Part::Device(device.part.clone()) });
    let exports =
        config.exports.iter().map(|export| At { line: export.line, part: Part::Export(export.part.clone()) });
    devices.chain(exports).collect()
}

/// What cannot change while it is up, wherever in the file it stands.
fn without_lines(nbd: &Nbd) -> Nbd {
    let listen = nbd.listen.iter().map(|listen| At { line: 0, part: listen.part.clone() }).collect();
    let tls_certificates = nbd.tls_certificates.clone().map(|folder| At { line: 0, ..folder });
    Nbd { listen, tls_certificates, ..nbd.clone() }
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").field("path", &self.path).field("known", &self.known).finish_non_exhaustive()
    }
}

impl Wanted {
    /// Nothing yet.
    pub fn new(path: PathBuf, table: Arc<SpecTable>, notes: Vec<String>) -> Wanted {
        Wanted { path, table, notes, known: BTreeMap::new(), nbd: None, encryption: Encryption::Off, next: 0 }
    }

    /// All that the file wants: every disk, and where clients come to. Called once, before the first
    /// [`Source::reload`].
    pub fn start(&mut self, inherited: Vec<Inherited>) -> Result<(Vec<Job>, Option<Entrance>)> {
        let config = check(&self.path, &self.table)?;
        let entrance = entrance(&self.path, &config, inherited)?;
        let jobs = self.change(&config, &[])?.start;
        self.nbd = Some(without_lines(&config.nbd));
        self.encryption = entrance.as_ref().map(|entrance| entrance.encryption.clone()).unwrap_or_default();
        Ok((jobs, entrance))
    }

    /// How a disk is opened. Carried out at once where nothing is in its way, so that what cannot
    /// be opened is known before anything else is touched.
    fn job(&self, at: &At<Part>, key: Key, after: Vec<Key>, opens_later: bool) -> Result<Job> {
        let (file, line, part) = (self.path.display().to_string(), at.line, at.part.clone());
        let (table, notes) = (self.table.clone(), self.notes.clone());
        let spec = with_filters(&part.disk().spec, &part.disk().filters);
        let name = part.export_name().cloned();
        let chosen = match part.device() {
            Some(device) => Some(choose(device).map_err(|error| in_line(&file, line, &error))?),
            None => None,
        };
        let id = part.device().and_then(|device| device.id);
        let device = id.zip(chosen.as_ref()).map(|(id, chosen)| DeviceName::new(chosen.engine, id));
        let open = move || open(&part, chosen, &table, notes).map_err(|error| in_line(&file, line, &error));
        let open: Box<dyn FnOnce() -> Result<Plan> + Send> = match opens_later {
            true => Box::new(open),
            false => {
                let plan = open()?;
                Box::new(|| Ok(plan))
            }
        };
        Ok(Job { key, spec, device, name, after, open })
    }
}

fn data_path(device: &Device) -> Result<Wish> {
    device.data_path.as_deref().map_or(Ok(Wish::Auto), str::parse)
}

fn load(device: &Device) -> Result<Load> {
    device.load.as_deref().map_or(Ok(Load::Any), str::parse)
}

fn wish(device: &Device) -> Result<EngineWish> {
    device.engine.as_deref().map_or(Ok(EngineWish::Auto), str::parse)
}

/// What shows a device on this machine.
fn choose(device: &Device) -> Result<Chosen> {
    engine::choose(wish(device)?, &engine::available)
}

fn open(part: &Part, chosen: Option<Chosen>, table: &SpecTable, mut notes: Vec<String>) -> Result<Plan> {
    let disk = part.disk();
    let (engines, engine_unit) = match part {
        Part::Device(device) => {
            let Chosen { engine, why } = chosen.map_or_else(|| choose(device), Ok)?;
            let (engines, unused) = of_device(device, engine)?;
            notes.splice(0..0, std::iter::once(why).chain(unused));
            (engines, None)
        }
        Part::Export(export) => {
            let options = nbd::Options { queues: export.queues, depth: export.depth };
            let (name, description) = (export.name.clone(), export.description.clone());
            (Engines::Export(Offering { name, description, options }), Some(nbd::UNIT))
        }
    };
    let options =
        OpenOptions { read_only: disk.read_only, block_size: disk.block_size, engine_unit, again: false };
    let (stack, engines) = fit(table.open_with(&disk.spec, &disk.filters, &options)?, engines)?;
    Ok(Plan { spec: with_filters(&disk.spec, &disk.filters), stack, engines, notes })
}

/// What an engine needs of the disk that it is to show: FUSE has clients that ask for any bytes, and makes a block device
/// with the disk's own blocks.
pub fn fit(stack: Arc<dyn Stack>, mut engines: Engines) -> Result<(Arc<dyn Stack>, Engines)> {
    match &mut engines {
        Engines::Device(DeviceOptions::Fuse(options)) | Engines::Both(DeviceOptions::Fuse(options), _) => {
            options.block_size = stack.geometry().logical_block_size;
            Ok((in_bytes(stack)?, engines))
        }
        Engines::Device(_) | Engines::Export(_) | Engines::Both(..) => Ok((stack, engines)),
    }
}

fn of_device(device: &Device, engine: Engine) -> Result<(Engines, Vec<String>)> {
    let seconds = |time_s: u32| Duration::from_secs(time_s.into());
    let choices = Choices {
        id: device.id,
        queues: device.queues,
        depth: device.depth,
        partition_scan: device.partition_scan,
        data_path: data_path(device)?,
        load: load(device)?,
        spin: Duration::from_micros(device.spin_us.into()),
        registered_tags: None,
        loop_device: true,
        nbd: NbdChoices {
            connections: device.connections,
            timeout: device.timeout_s.map(seconds),
            dead_connection: device.dead_connection_s.map(seconds),
        },
    };
    let (options, unused) = choices.with(engine);
    let engines = match &device.export {
        None => Engines::Device(options),
        Some(name) => {
            let as_device = nbd::Options { queues: device.queues, depth: device.depth };
            Engines::Both(
                options,
                Offering { name: name.clone(), description: String::new(), options: as_device },
            )
        }
    };
    Ok((engines, unused))
}

impl Source for Wanted {
    fn reload(&mut self, served: &[Key]) -> Result<Change> {
        let config = check(&self.path, &self.table)?;
        if self.nbd.as_ref().is_some_and(|nbd| *nbd != without_lines(&config.nbd)) {
            let line = config.nbd.listen.first().map_or(1, |listen| listen.line);
            let what = format!("{}, line {line}", self.path.display());
            let why = "[nbd] has changed, which cannot be done while it is up";
            return Err(Error::new(Kind::Unsupported, what, why).cure(
                "put it back, or take everything down and up again: `systemctl restart`, or `down` and `up`",
            ));
        }
        // They are renewed from time to time, which is no reason to disconnect anybody.
        if let (Some(encryption), Some(folder)) = (self.encryption.config(), &config.nbd.tls_certificates) {
            let name = self.path.display().to_string();
            encryption.read_again().map_err(|error| in_line(&name, folder.line, &error))?;
        }
        self.change(&config, served)
    }
}

impl Wanted {
    /// What has to be done to come from what is served to what the file wants.
    fn change(&mut self, config: &Config, served: &[Key]) -> Result<Change> {
        let there: Vec<(Key, Part)> =
            served.iter().filter_map(|key| Some((*key, self.known.get(key)?.clone()))).collect();
        let wanted = parts(config);
        let old: Vec<Part> = there.iter().map(|(_, part)| part.clone()).collect();
        let new: Vec<Part> = wanted.iter().map(|at| at.part.clone()).collect();
        let changes = changes(&old, &new);
        let going: Vec<&(Key, Part)> = changes.stop.iter().map(|at| &there[*at]).collect();
        let mut start = Vec::new();
        let mut added = BTreeMap::new();
        for place in changes.start {
            let at = &wanted[place];
            let files = Place::all_of(at.part.disk(), &self.table);
            let has_one = |other: &Part| !Place::all_of(other.disk(), &self.table).is_disjoint(&files);
            let after: Vec<Key> =
                going.iter().filter(|(_, other)| has_one(other)).map(|(key, _)| *key).collect();
            let opens_later = !after.is_empty();
            let key = self.next + start.len() as Key;
            start.push(self.job(at, key, after, opens_later)?);
            added.insert(key, at.part.clone());
        }
        // From here on nothing fails.
        let stop = going.into_iter().map(|(key, _)| *key).collect();
        self.next += start.len() as Key;
        self.known.retain(|key, _| served.contains(key));
        self.known.extend(added);
        Ok(Change { stop, start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `up` in a folder of its own.
    struct Scene {
        folder: tempfile::TempDir,
        wanted: Wanted,
    }

    impl Scene {
        fn new() -> Scene {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("up.toml");
            let wanted = Wanted::new(path, Arc::new(SpecTable::builtin()), Vec::new());
            Scene { folder, wanted }
        }

        fn image(&self, name: &str) -> String {
            let path = self.folder.path().join(name);
            if !path.exists() {
                std::fs::write(&path, vec![0; 1 << 20]).unwrap();
            }
            path.display().to_string()
        }

        fn reload(&mut self, text: &str, served: &[Key]) -> Result<Change> {
            std::fs::write(&self.wanted.path, text).unwrap();
            self.wanted.reload(served)
        }
    }

    /// With an engine, since a machine that tests may have none. Three lines, and one for each of `more`.
    fn device(spec: &str, more: &str) -> String {
        let more = more.trim_end();
        let more = if more.is_empty() { String::new() } else { format!("{more}\n") };
        format!("[[device]]\nspec = \"{spec}\"\n{more}engine = \"ublk\"\n")
    }

    /// The key and the spec of a job, and what it has to wait for.
    type Started = (Key, String, Vec<Key>);

    fn summary(change: &Change) -> (Vec<Key>, Vec<Started>) {
        let start = change.start.iter().map(|job| (job.key, job.spec.clone(), job.after.clone()));
        (change.stop.clone(), start.collect())
    }

    #[test]
    fn a_reload_touches_what_has_changed_and_nothing_else() {
        let mut scene = Scene::new();
        let (a, b) = (device("ram:1M", ""), device("ram:2M", "id = 5"));
        let first = scene.reload(&format!("{a}{b}"), &[]).unwrap();
        assert_eq!(
            summary(&first),
            (vec![], vec![(0, "ram:1M".into(), vec![]), (1, "ram:2M".into(), vec![])])
        );
        assert_eq!(first.start[1].device, Some(DeviceName::ublk(5)));
        // The same in another order, with another comment.
        let same = scene.reload(&format!("# moved\n{b}\n{a}"), &[0, 1]).unwrap();
        assert_eq!(summary(&same), (vec![], vec![]));
        // One away, one new.
        let other = scene.reload(&format!("{b}{}", device("ram:3M", "")), &[0, 1]).unwrap();
        assert_eq!(summary(&other), (vec![0], vec![(2, "ram:3M".into(), vec![])]));
        // What somebody has detached comes back, and another id makes another disk.
        let changed = device("ram:2M", "id = 6");
        let back = scene.reload(&format!("{changed}{}", device("ram:3M", "")), &[1]).unwrap();
        let start = vec![(3, "ram:2M".into(), vec![]), (4, "ram:3M".into(), vec![])];
        assert_eq!(summary(&back), (vec![1], start));
    }

    #[test]
    fn a_changed_disk_on_the_same_file_opens_it_when_the_old_one_has_let_go() {
        let mut scene = Scene::new();
        let spec = format!("file:{}", scene.image("a.img"));
        let first = scene.reload(&device(&spec, ""), &[]).unwrap();
        let plan = (first.start.into_iter().next().unwrap().open)().unwrap();
        // The first one holds the lock, and still the reload works.
        let change = scene.reload(&device(&spec, "queues = 1\ndepth = 8"), &[0]).unwrap();
        assert_eq!(summary(&change).0, [0]);
        assert_eq!(change.start[0].after, [0]);
        drop(plan);
        let plan = (change.start.into_iter().next().unwrap().open)().unwrap();
        assert!(matches!(plan.engines, Engines::Device(options) if options.shape() == (1, 8)), "{plan:?}");
    }

    #[test]
    fn the_files_of_a_stripe_are_the_disks_too() {
        let mut scene = Scene::new();
        let (a, b) = (scene.image("a.img"), scene.image("b.img"));
        let stripe = |spec: &str, more: &str| {
            device(spec, &format!("filters = [\"stripe,with=ram:1M;file:{b}\"]\n{more}"))
        };
        let striped = stripe(&format!("file:{a}"), "");
        let first = scene.reload(&striped, &[]).unwrap();
        let plan = (first.start.into_iter().next().unwrap().open)().unwrap();
        // The first one holds the locks of both, and only a member is the same.
        let change = scene.reload(&stripe("ram:1M", "depth = 8"), &[0]).unwrap();
        assert_eq!((&change.stop[..], &change.start[0].after[..]), (&[0][..], &[0][..]));
        drop(plan);
        assert!((change.start.into_iter().next().unwrap().open)().is_ok());
        let both = format!("{striped}{}", device(&format!("file:{b}"), ""));
        let error = scene.reload(&both, &[]).err().unwrap().to_string();
        assert!(error.contains("line 5") && error.contains("same file as that of line 1"), "{error}");
    }

    #[test]
    fn exports_are_wanted_as_devices_are_and_the_door_stays_where_it_is() {
        let mut scene = Scene::new();
        let spec = format!("file:{}", scene.image("a.img"));
        let nbd = "[nbd]\nlisten = [\"unix:nbd.sock\", \"tcp:127.0.0.1:1\"]\nmax-connections = 5\n";
        let export =
            |name: &str, more: &str| format!("[[export]]\nname = \"{name}\"\nspec = \"{spec}\"\n{more}");
        std::fs::write(
            &scene.wanted.path,
            format!("{nbd}{}{}", export("a", ""), device("ram:1M", "export = \"b\"")),
        )
        .unwrap();
        let (jobs, entrance) = scene.wanted.start(Vec::new()).unwrap();
        let names: Vec<_> = jobs.iter().map(|job| (job.name.as_deref(), job.device)).collect();
        assert_eq!(names, [(Some("b"), None), (Some("a"), None)], "devices first");
        let entrance = entrance.unwrap();
        assert_eq!((entrance.addresses.len(), entrance.max_connections), (2, 5));
        assert!(matches!(&entrance.addresses[0], Address::Unix(path) if path.is_absolute()));
        let mut plans = jobs.into_iter().map(|job| (job.open)().unwrap());
        let (both, alone) = (plans.next().unwrap(), plans.next().unwrap());
        assert!(matches!(&both.engines, Engines::Both(_, offering) if offering.name == "b"));
        assert!(matches!(&alone.engines, Engines::Export(offering) if offering.name == "a"));
        assert_eq!(both.stack.geometry().logical_block_size, 512);
        assert_eq!(alone.stack.geometry().logical_block_size, 1, "its clients count in bytes");
        // The same file becomes a device's, once the export has let go of it.
        let moved = device(&spec, "export = \"a\"");
        let change = scene.reload(&format!("{nbd}{moved}"), &[0, 1]).unwrap();
        assert_eq!(summary(&change), (vec![0, 1], vec![(2, spec.clone(), vec![1])]));
        let before = scene.wanted.known.clone();
        for other in [nbd.replace("nbd.sock", "other.sock"), nbd.replace('5', "6"), String::new()] {
            let text = format!("{other}{}", device("ram:1M", ""));
            let error = scene.reload(&text, &[0, 1]).err().unwrap().to_string();
            assert!(error.contains("[nbd] has changed") && error.contains("restart"), "{error}");
            assert_eq!(scene.wanted.known, before);
        }
    }

    #[test]
    fn where_other_machines_can_connect_somebody_has_to_insist() {
        let mut scene = Scene::new();
        let text = "[[export]]\nname = \"a\"\nspec = \"ram:1M\"\n[nbd]\nlisten = [\"tcp:0.0.0.0:10809\"]\n";
        std::fs::write(&scene.wanted.path, text).unwrap();
        let error = scene.wanted.start(Vec::new()).err().unwrap().to_string();
        assert!(error.contains("up.toml, line 5") && error.contains("insecure-listen = true"), "{error}");
        std::fs::write(&scene.wanted.path, format!("{text}insecure-listen = true\n")).unwrap();
        assert!(scene.wanted.start(Vec::new()).unwrap().1.is_some());
    }

    #[test]
    fn a_broken_file_changes_nothing() {
        let mut scene = Scene::new();
        let good = device("ram:1M", "");
        scene.reload(&good, &[]).unwrap();
        let nowhere = format!("{good}{}", device("file:/nowhere/at-all", ""));
        for (text, said) in [
            ("[[device]\n", "line 1"),
            (&device("rma:1G", ""), "did you mean ram?"),
            (&device("ram:1M", "filters = [\"lgo\"]"), "did you mean log?"),
            (&device("ram:1M", "data-path = \"by-hand\""), "by-hand"),
            (&device("ram:1M", "for = \"speed\""), "speed"),
            (nowhere.as_str(), "line 4: cannot use /nowhere/at-all"),
        ] {
            let error = scene.reload(text, &[0]).err().unwrap().to_string();
            assert!(error.contains(said) && error.contains("up.toml, line "), "{error}");
        }
        assert_eq!(summary(&scene.reload(&good, &[0]).unwrap()), (vec![], vec![]));
    }

    #[test]
    fn one_file_is_for_one_disk_whatever_it_is_called() {
        let mut scene = Scene::new();
        let image = scene.image("a.img");
        let link = scene.folder.path().join("link.img");
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let hard = scene.folder.path().join("hard.img");
        std::fs::hard_link(&image, &hard).unwrap();
        let dotted =
            scene.folder.path().join("../").join(scene.folder.path().file_name().unwrap()).join("new.img");
        let new = scene.folder.path().join("new.img");
        let image_path = Path::new(&image);
        for (one, other) in [(image_path, &link), (image_path, &hard), (&new, &dotted)] {
            let spec = |path: &Path| format!("file:{},size=1M", path.display());
            let text = format!("{}{}", device(&spec(one), ""), device(&spec(other), ""));
            let error = scene.reload(&text, &[]).err().unwrap().to_string();
            assert!(error.contains("line 4") && error.contains("same file as that of line 1"), "{error}");
            assert!(!new.exists(), "it was opened before it was refused");
        }
        let reader = device(&format!("file:{image}"), "read-only = true");
        assert_eq!(scene.reload(&reader.repeat(2), &[]).unwrap().start.len(), 2);
    }
}
