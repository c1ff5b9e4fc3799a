//! What a person may choose for a device, and what each engine makes of it.

use super::{DeviceName, Engine, fuse, nbd, ublk};
use crate::port::clock::Duration;

/// The choices for a device, whatever shows it.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Its number with its engine.
    pub id: Option<u32>,
    /// Queues, at most one a processor.
    pub queues: u16,
    /// Requests that a queue takes at once.
    pub depth: u16,
    /// Whether the kernel looks for partitions at the start.
    pub partition_scan: bool,
    /// How the bytes travel.
    pub data_path: ublk::Wish,
    /// What the load will be like.
    pub load: ublk::Load,
    /// How long a queue's thread looks for work before it sleeps, at most.
    pub spin: Duration,
    /// As [`ublk::Options::registered_tags`].
    pub registered_tags: Option<u16>,
    /// By FUSE: whether a loop device makes a block device of the file.
    pub loop_device: bool,
    /// What is asked of the NBD driver.
    pub nbd: NbdChoices,
}

/// Choices that only the kernel's NBD driver has a use for, but for the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NbdChoices {
    /// Connections between the kernel and the server; by FUSE, threads that take requests from the kernel.
    pub connections: Option<u16>,
    /// How long a request may take before its connection counts as dead.
    pub timeout: Option<Duration>,
    /// How long requests wait for a server while there is none.
    pub dead_connection: Option<Duration>,
}

/// What an engine is asked for.
#[derive(Clone, Copy, Debug)]
pub enum DeviceOptions {
    /// /dev/ublkbN.
    Ublk(ublk::Options),
    /// /dev/nbdN.
    Nbd(nbd::kernel::Options),
    /// A file, and a loop device on it.
    Fuse(fuse::Options),
}

impl DeviceOptions {
    /// Whose options they are.
    pub fn engine(&self) -> Engine {
        match self {
            DeviceOptions::Ublk(_) => Engine::Ublk,
            DeviceOptions::Nbd(_) => Engine::Nbd,
            DeviceOptions::Fuse(_) => Engine::Fuse,
        }
    }

    /// The name that is asked for, where one is.
    pub fn name(&self) -> Option<DeviceName> {
        let id = match self {
            DeviceOptions::Ublk(options) => options.id,
            DeviceOptions::Nbd(options) => options.id,
            DeviceOptions::Fuse(options) => options.id,
        };
        id.map(|id| DeviceName::new(self.engine(), id))
    }

    /// Whether it is somebody's disk already: its server was killed, and this one takes its place.
    pub fn is_recovery(&self) -> bool {
        matches!(self, DeviceOptions::Nbd(options) if options.recover.is_some())
    }

    /// Queues and the depth of each.
    pub fn shape(&self) -> (u16, u16) {
        match self {
            DeviceOptions::Ublk(options) => (options.queues, options.depth),
            DeviceOptions::Nbd(options) => (options.queues, options.depth),
            DeviceOptions::Fuse(options) => (options.queues, options.depth),
        }
    }
}

impl Choices {
    /// What `engine` is asked for, and what of the choices has no meaning with it, a line each.
    pub fn with(&self, engine: Engine) -> (DeviceOptions, Vec<String>) {
        let mut unused = Vec::new();
        let mut ask = |was_asked: bool, what: &str| {
            if was_asked {
                unused.push(format!("{what} has no meaning with the engine {engine} and is not used"));
            }
        };
        let options = match engine {
            Engine::Ublk => {
                ask(!self.loop_device, "leaving the loop device out");
                ask(self.nbd.connections.is_some(), "the number of connections");
                ask(self.nbd.timeout.is_some(), "the timeout of requests");
                ask(self.nbd.dead_connection.is_some(), "the time to wait for a server");
                DeviceOptions::Ublk(ublk::Options {
                    id: self.id,
                    queues: self.queues,
                    depth: self.depth,
                    partition_scan: self.partition_scan,
                    data_path: self.data_path,
                    load: self.load,
                    spin: self.spin,
                    registered_tags: self.registered_tags,
                })
            }
            Engine::Fuse => {
                ask(self.nbd.timeout.is_some(), "the timeout of requests");
                ask(self.nbd.dead_connection.is_some(), "the time to wait for a server");
                ask(self.data_path != ublk::Wish::Auto, "a data path");
                DeviceOptions::Fuse(fuse::Options {
                    id: self.id,
                    queues: self.queues,
                    depth: self.depth,
                    threads: self.nbd.connections.unwrap_or(self.queues),
                    loop_device: self.loop_device,
                    block_size: 0,
                    partition_scan: self.partition_scan,
                    scheduling: self.load.scheduling(),
                    spin: self.spin,
                })
            }
            Engine::Nbd => {
                ask(!self.loop_device, "leaving the loop device out");
                ask(self.data_path != ublk::Wish::Auto, "a data path");
                ask(self.load != ublk::Load::Any, "what the load will be");
                ask(!self.spin.is_zero(), "looking for work before a thread sleeps");
                ask(!self.partition_scan, "leaving the search for partitions out");
                let plain = nbd::kernel::Options::plain(self.queues);
                DeviceOptions::Nbd(nbd::kernel::Options {
                    id: self.id,
                    depth: self.depth,
                    connections: self.nbd.connections.unwrap_or(plain.connections),
                    timeout: self.nbd.timeout.unwrap_or(plain.timeout),
                    dead_connection: self.nbd.dead_connection.unwrap_or(plain.dead_connection),
                    ..plain
                })
            }
        };
        (options, unused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICES: Choices = Choices {
        id: Some(3),
        queues: 2,
        depth: 16,
        partition_scan: true,
        data_path: ublk::Wish::Auto,
        load: ublk::Load::Any,
        spin: Duration::ZERO,
        registered_tags: None,
        loop_device: true,
        nbd: NbdChoices { connections: None, timeout: None, dead_connection: None },
    };

    #[test]
    fn plain_choices_suit_every_engine() {
        for engine in Engine::ALL {
            let (options, unused) = CHOICES.with(engine);
            assert_eq!((options.engine(), options.shape(), unused.len()), (engine, (2, 16), 0));
            assert_eq!(options.name(), Some(DeviceName::new(engine, 3)));
        }
        assert_eq!(Choices { id: None, ..CHOICES }.with(Engine::Nbd).0.name(), None);
    }

    #[test]
    fn what_an_engine_has_no_use_for_is_said() {
        let nbd = NbdChoices { connections: Some(4), ..NbdChoices::default() };
        let choices = Choices { data_path: "copy".parse().unwrap(), partition_scan: false, nbd, ..CHOICES };
        let (options, unused) = choices.with(Engine::Nbd);
        assert_eq!(unused.len(), 2, "{unused:?}");
        assert!(matches!(options, DeviceOptions::Nbd(options) if options.connections == 4));
        let (_, unused) = choices.with(Engine::Ublk);
        assert!(unused.len() == 1 && unused[0].contains("connections"), "{unused:?}");
    }
}
