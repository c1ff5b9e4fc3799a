//! What devices of this machine are called: by the engine that shows them, and a number.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fuse;

/// The engines that show this machine a disk. What else depends on which one it is stands in a `match`
/// on this, so that a new one is asked everywhere what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The kernel's ublk driver: /dev/ublkbN.
    Ublk,
    /// The kernel's NBD driver: /dev/nbdN.
    Nbd,
    /// A file in a mount of our own, by FUSE, and a loop device on it where there may be one.
    Fuse,
}

impl Engine {
    /// All of them, the one that `auto` tries first at the front.
    pub const ALL: [Engine; 3] = [Engine::Ublk, Engine::Nbd, Engine::Fuse];

    /// As a person writes it.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Ublk => "ublk",
            Engine::Nbd => "nbd",
            Engine::Fuse => "fuse",
        }
    }

    /// What stands before the number in the name of a device.
    fn prefix(self) -> &'static str {
        match self {
            Engine::Ublk => "ublkb",
            Engine::Nbd => "nbd",
            Engine::Fuse => fuse::place::PREFIX,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a device, such as `ublkb0` or `nbd3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DeviceName {
    /// Who shows it.
    pub engine: Engine,
    /// Its number there: N of /dev/ublkbN, say.
    pub id: u32,
}

impl DeviceName {
    /// The device of an engine with this number.
    pub const fn new(engine: Engine, id: u32) -> DeviceName {
        DeviceName { engine, id }
    }

    /// N of /dev/ublkbN.
    pub const fn ublk(id: u32) -> DeviceName {
        DeviceName::new(Engine::Ublk, id)
    }

    /// N of /dev/nbdN.
    pub const fn nbd(id: u32) -> DeviceName {
        DeviceName::new(Engine::Nbd, id)
    }

    /// N of the folder fuseN.
    pub const fn fuse(id: u32) -> DeviceName {
        DeviceName::new(Engine::Fuse, id)
    }

    /// The disk's node; by FUSE, its file.
    pub fn path(self) -> PathBuf {
        match self.engine {
            Engine::Fuse => fuse::place::file(&fuse::place::root(), self.id),
            Engine::Ublk | Engine::Nbd => format!("/dev/{self}").into(),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.engine.prefix(), self.id)
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for DeviceName {
    type Error = NoDevice;

    fn try_from(text: String) -> Result<DeviceName, NoDevice> {
        text.parse()
    }
}

/// A text that is no device's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDevice;

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not the name of a device, such as ublkb0 or nbd0")
    }
}

impl std::error::Error for NoDevice {}

impl FromStr for DeviceName {
    type Err = NoDevice;

    /// Only as we write it: ublkb7 is a name, ublkb07 and ublkb+7 are not.
    fn from_str(text: &str) -> Result<DeviceName, NoDevice> {
        let named = |engine: Engine| {
            let number = text.strip_prefix(engine.prefix())?;
            let id = number.parse::<u32>().ok().filter(|id| id.to_string() == number)?;
            Some(DeviceName { engine, id })
        };
        Engine::ALL.into_iter().find_map(named).ok_or(NoDevice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_engine_and_a_number_and_nothing_else() {
        for (text, name) in [
            ("ublkb0", DeviceName::ublk(0)),
            ("nbd17", DeviceName::nbd(17)),
            ("nbd4294967295", DeviceName::nbd(u32::MAX)),
            ("fuse2", DeviceName::fuse(2)),
        ] {
            assert_eq!((text.parse(), name.to_string().as_str()), (Ok(name), text));
            let path = match name.engine {
                Engine::Fuse => fuse::place::root().join(format!("{text}/disk")),
                _ => PathBuf::from(format!("/dev/{text}")),
            };
            assert_eq!(name.path(), path);
        }
        for text in ["", "0", "ublkb", "ublkc0", "nbd", "nbd01", "nbd+1", "nbd-1", "nbd0p1", "nbd4294967296"]
        {
            assert_eq!(text.parse::<DeviceName>(), Err(NoDevice), "{text}");
        }
    }

    #[test]
    fn in_json_it_is_its_text() {
        let name = DeviceName::nbd(3);
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"nbd3\"");
        assert_eq!(serde_json::from_str::<DeviceName>("\"nbd3\"").unwrap(), name);
        assert!(serde_json::from_str::<DeviceName>("\"sda\"").is_err());
    }
}
