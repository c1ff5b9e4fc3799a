//! What is measured, and how it is opened: as `attach` would open it, for reading only unless somebody means to
//! write.

use std::path::{Path, PathBuf};

use crate::cli::disk;
use crate::config::{Spec, human_size};
use crate::engine::load::Disk;
use crate::error::{Error, Kind, Result};
use crate::holders::{self, Holder};
use crate::port::clock::{Deadline, Duration};
use crate::port::file::{self, FileKind};
use crate::registry::{Registry, devices};
use crate::stack::SpecTable;

/// How long whoever looks at a disk for a moment may take.
const A_MOMENT: Duration = Duration::from_secs(1);

/// A disk as a person names it.
#[derive(Debug)]
pub(super) struct Target {
    /// The device's path, or the spec with its filters.
    pub name: String,
    pub spec: Spec,
    pub filters: Vec<Spec>,
    /// The block device that is opened, where it is one.
    pub device: Option<PathBuf>,
    /// There is no such file yet.
    pub is_new: bool,
}

impl Target {
    /// An existing block device, the number or name of a disk of ours, or a spec, whose type, keys and filters are checked.
    pub fn parse(text: &str, filters: &[String], table: &SpecTable) -> Result<Target> {
        let filters = disk::filters(filters)?;
        filters.iter().try_for_each(|filter| table.check_filter(filter).map(drop))?;
        let named = named_device(text);
        let spec: Spec = match &named {
            Some(path) => format!("file:{}", path.display().to_string().replace(',', ",,")).parse()?,
            None => text.parse()?,
        };
        table.check(&spec)?;
        let path = (spec.kind() == "file").then(|| PathBuf::from(spec.arg()));
        let is_missing = path.as_deref().is_some_and(|path| !path.exists());
        let is_device = named.is_some() && is_missing || path.as_deref().is_some_and(is_block_device);
        let name = named.as_ref().map_or_else(|| spec.to_string(), |path| path.display().to_string());
        let name = filters.iter().fold(name, |name, filter| format!("{name} --filter {filter}"));
        let is_new = named.is_none() && is_missing;
        Ok(Target { name, spec, filters, device: path.filter(|_| is_device), is_new })
    }

    /// Refuses to write to what somebody else uses. Opening it keeps out less: a mount or another device on it, not a
    /// program that has it open.
    pub fn check_alone(&self) -> Result<()> {
        for path in self.files() {
            let mut users = Vec::new();
            // Udev always lets go again, and is waited for where it has the lock.
            Deadline::after(A_MOMENT).wait_until(|| {
                users = holders::of_contents(&path);
                users.retain(|user| !user.is_udev());
                users.is_empty() || users.iter().any(Holder::is_lasting)
            });
            if !users.is_empty() {
                let why = format!("it is in use: {}", holders::describe(&users));
                return Err(Error::new(Kind::Busy, format!("cannot write to {}", path.display()), why)
                    .cure(release(&users)));
            }
        }
        Ok(())
    }

    /// The files and block devices that it lies on, as far as their names tell.
    fn files(&self) -> Vec<PathBuf> {
        let members = self.filters.iter().filter_map(|filter| filter.get("with"));
        let members = members.flat_map(|with| with.split(';')).filter_map(|member| member.parse().ok());
        let all = std::iter::once(self.spec.clone()).chain(members);
        all.filter(|spec: &Spec| spec.kind() == "file").map(|spec| PathBuf::from(spec.arg())).collect()
    }

    /// What it loses when it is written to; none where there is nothing yet, or only in this process.
    pub fn loss(&self, disk: &Disk) -> Option<String> {
        let has_contents = !self.is_new && disk.memory_used.is_none() && self.spec.kind() != "null";
        has_contents.then(|| format!("all over {} ({})", self.name, human_size(disk.size)))
    }

    /// Why it cannot be opened. The cures of `attach` are not those of a measurement.
    pub fn explain(&self, error: Error, write: bool) -> Error {
        let is_missing_device = self.device.as_deref().is_some_and(|device| !device.exists());
        match error.kind() {
            Kind::NotFound if is_missing_device => {
                error.cure("`lsblk` and `blockhaus list` show what there is")
            }
            Kind::NotFound if !write && self.spec.get("size").is_some() => {
                error.cure("a file is only made with --write, and removed again at the end")
            }
            Kind::Busy if write => error.cure(release(&[])),
            Kind::Busy => error.cure("detach it first, or measure the disk that lies on it"),
            Kind::Permission => error.cure("run as a user who may open it"),
            _ => error,
        }
    }
}

/// The path that `text` names a block device by.
fn named_device(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let registry = Registry::of_host();
    match devices::meant(&registry, text) {
        Ok(name) if !text.contains('/') => {
            Some(registry.read(name).map_or_else(|| name.path(), |entry| entry.device))
        }
        _ => {
            let is_device = match file::metadata(path).ok().map(|metadata| file::kind(&metadata)) {
                Some(FileKind::BlockDevice) => true,
                // In /dev/shm, say.
                Some(FileKind::Regular) => false,
                _ => text.starts_with("/dev/"),
            };
            is_device.then(|| path.to_path_buf())
        }
    }
}

fn is_block_device(path: &Path) -> bool {
    file::metadata(path).is_ok_and(|metadata| file::kind(&metadata) == FileKind::BlockDevice)
}

/// The cure for a disk that is in use and was to be written to.
fn release(users: &[Holder]) -> String {
    let mounted = users.iter().find_map(|user| match user {
        Holder::Mount { at, .. } => Some(at),
        _ => None,
    });
    let first = mounted.map_or_else(|| "have it released".to_owned(), |at| format!("run umount {at}"));
    format!("{first} first, or leave --write out to measure reads")
}
