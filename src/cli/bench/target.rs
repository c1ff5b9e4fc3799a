//! What is measured, and how it is opened: as `attach` would open it, for reading only unless somebody means to
//! write.

use std::path::{Path, PathBuf};

use crate::cli::disk;
use crate::config::Spec;
use crate::error::{Error, Kind, Result};
use crate::holders::{self, Holder};
use crate::port::file::{self, FileKind};
use crate::registry::{Registry, devices};
use crate::stack::SpecTable;

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
        let is_device = named.is_some() || path.as_deref().is_some_and(is_block_device);
        let name = named.as_ref().map_or_else(|| spec.to_string(), |path| path.display().to_string());
        let name = filters.iter().fold(name, |name, filter| format!("{name} --filter {filter}"));
        let is_new = path.as_deref().is_some_and(|path| !path.exists());
        Ok(Target { name, spec, filters, device: path.filter(|_| is_device), is_new })
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
            Kind::Busy if write => match self.device.as_deref().and_then(mount) {
                Some(at) => {
                    error.cure(format!("run umount {at} first, or leave --write out to measure reads"))
                }
                None => error.cure("have it released first, or leave --write out to measure reads"),
            },
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
        _ => (text.starts_with("/dev/") || is_block_device(path)).then(|| path.to_path_buf()),
    }
}

fn is_block_device(path: &Path) -> bool {
    file::metadata(path).is_ok_and(|metadata| file::kind(&metadata) == FileKind::BlockDevice)
}

fn mount(device: &Path) -> Option<String> {
    holders::passive(device, &[]).into_iter().find_map(|holder| match holder {
        Holder::Mount { at, .. } => Some(at),
        _ => None,
    })
}
