//! Disks that NBD clients can choose, beside devices or instead of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::{Added, Disk, Make, Node, Shown};
use super::entrance::{self, Address, Entered, Entrance, Refusals};
use super::log;
use super::plan::{Engines, Offering, Plan};
use crate::engine::nbd::kernel::Attached;
use crate::engine::nbd::{self, Catalogue, Exported, Offer};
use crate::engine::ublk::Device;
use crate::engine::{DeviceName, DeviceOptions, LiveDevice, Report, Tell, fuse};
use crate::error::{Error, Kind, Result};
use crate::holders::Holder;
use crate::port::clock::{Deadline, Duration};
use crate::port::stream::{Listener, Socket};
use crate::registry::control::DiskStats;

/// How long clients have to take the replies to what they asked before the end; less than `down` waits
/// altogether.
const DRAIN: Duration = Duration::from_secs(6);

/// Between two looks whether they have them.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where clients come to. Nobody is let in before everything is there.
pub(super) struct Network {
    catalogue: Arc<Catalogue>,
    addresses: Vec<Address>,
    waiting: Option<(Vec<Listener>, Vec<Socket>)>,
    door: Option<nbd::Server>,
    refusals: Refusals,
}

impl Network {
    /// Listens, which is where an address that cannot be had is an error; who comes has to wait.
    pub(super) fn listen(entrance: Entrance) -> Result<Network> {
        let catalogue = Catalogue::encrypted(entrance.max_connections, entrance.encryption.clone());
        let Entered { listeners, connections, addresses, .. } = entrance::enter(entrance)?;
        Ok(Network {
            catalogue,
            addresses,
            waiting: Some((listeners, connections)),
            door: None,
            refusals: Refusals::default(),
        })
    }

    /// Lets clients in, the first time that it is called.
    pub(super) fn open(&mut self) -> Result<()> {
        if let Some((listeners, connections)) = self.waiting.take() {
            self.door = Some(nbd::Server::open_for(&self.catalogue, listeners, connections)?);
        }
        Ok(())
    }

    /// Says in the log who did not come in.
    pub(super) fn look(&mut self) {
        self.refusals.look(self.catalogue.encryption());
    }

    /// Nobody comes in any more. What is encrypted and still on its way to those whose export has ended is waited for.
    pub(super) fn close(mut self) {
        self.door = None;
        Deadline::after(DRAIN).wait_until(|| self.catalogue.connections() == 0);
    }
}

/// Makes devices, and exports for the clients of `network`.
pub(super) fn maker(network: Option<&Network>) -> Make {
    let offers = network.map(|network| (network.catalogue.clone(), network.addresses.clone()));
    Arc::new(move |plan, added| {
        let offer = |offering: &Offering, is_shared| {
            let (catalogue, addresses) = offers.as_ref().ok_or_else(|| {
                let what = format!("cannot export {:?}", offering.name);
                Error::new(Kind::Failed, what, "nothing is listened at")
            })?;
            Export::start(plan, offering, is_shared, catalogue, addresses)
        };
        Ok(match &plan.engines {
            Engines::Device(options) => device(plan, options, added)?,
            Engines::Export(offering) => Box::new(offer(offering, false)?),
            Engines::Both(options, offering) => {
                let device = device(plan, options, added)?;
                Box::new(Both { export: offer(offering, true)?, device, failed: AtomicBool::new(false) })
            }
        })
    })
}

/// Makes a device of this machine.
fn device(plan: &Plan, options: &DeviceOptions, added: Added<'_>) -> Result<Box<dyn Disk>> {
    let engine = options.engine();
    let mut added = |id| added(Node::of_kernel(DeviceName::new(engine, id)));
    let stack = plan.stack.clone();
    let device: Box<dyn LiveDevice> = match options {
        DeviceOptions::Ublk(options) => Box::new(Device::start(stack, options, &mut added)?),
        DeviceOptions::Nbd(options) => Box::new(Attached::start(stack, options, &mut added)?),
        DeviceOptions::Fuse(options) => Box::new(fuse::Device::start(stack, options, &mut added)?),
    };
    Ok(Box::new(Shown(device)))
}

/// A disk for NBD clients.
pub(super) struct Export {
    pub(super) exported: Exported,
    spec: String,
    uris: Vec<String>,
}

impl Export {
    pub(super) fn start(
        plan: &Plan,
        offering: &Offering,
        is_shared: bool,
        catalogue: &Arc<Catalogue>,
        addresses: &[Address],
    ) -> Result<Export> {
        let uris = entrance::uris(addresses, catalogue.encryption().policy(), &offering.name);
        let (name, description) = (offering.name.clone(), offering.description.clone());
        let offer = Offer { name, description, stack: plan.stack.clone(), is_shared };
        let exported = Exported::start(catalogue, offer, &offering.options)?;
        exported.started();
        Ok(Export { exported, spec: plan.spec.clone(), uris })
    }

    fn named(&self) -> String {
        format!("export {:?}", self.exported.export().name)
    }
}

impl Disk for Export {
    fn node(&self) -> Option<Node> {
        None
    }

    fn name(&self) -> String {
        self.named()
    }

    fn report(&self) -> Option<Report> {
        None
    }

    fn export(&self) -> Option<nbd::Report> {
        Some(self.exported.report(self.spec.clone(), self.uris.clone()))
    }

    fn stats(&self) -> Vec<DiskStats> {
        let export = self.exported.export();
        vec![DiskStats {
            engine: "nbd".into(),
            name: export.name.clone(),
            spec: String::new(),
            data_path: None,
            stats: self.exported.stats(),
        }]
    }

    fn failure(&self) -> Option<String> {
        self.exported.failure()
    }

    fn on_end(&self, tell: Tell) {
        self.exported.on_end(tell);
    }

    fn stop(&self, _only_if_idle: bool) -> Result<()> {
        self.exported.close(false);
        Ok(())
    }

    fn drain(&self, at_once: &dyn Fn() -> bool) {
        let deadline = Deadline::after(DRAIN);
        while !deadline.at_most(LOOK_EVERY).wait_until(|| self.exported.has_ended()) {
            let why = match (at_once(), deadline.passed()) {
                (true, _) => "clients are not waited for any longer",
                (false, true) => "clients that do not take their replies are cut off",
                (false, false) => continue,
            };
            return log(&format!("{}: {why}", self.named()));
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.exported.finish()
    }
}

/// One backend that is a device of this machine and that NBD clients can choose. The device tells it of
/// its start and closes it; the export is made after the device and goes before it.
pub(super) struct Both {
    // Dropped in this order.
    pub(super) export: Export,
    pub(super) device: Box<dyn Disk>,
    /// The export has failed by itself, and nobody can choose it any more.
    pub(super) failed: AtomicBool,
}

impl Disk for Both {
    fn node(&self) -> Option<Node> {
        self.device.node()
    }

    fn name(&self) -> String {
        self.device.name()
    }

    fn users(&self) -> Vec<Holder> {
        self.device.users()
    }

    fn report(&self) -> Option<Report> {
        let mut report = self.device.report()?;
        let connections = self.export.exported.connections();
        report.notes.push(match self.failed.load(Ordering::Relaxed) {
            true => format!("{} has failed and is gone", self.export.named()),
            false => {
                let (name, uris) = (self.export.named(), self.export.uris.join(" "));
                format!("{name}, {connections} connections: {uris}")
            }
        });
        report.notes.extend(self.export.exported.encryption_notes());
        Some(report)
    }

    fn export(&self) -> Option<nbd::Report> {
        (!self.failed.load(Ordering::Relaxed)).then(|| self.export.export()).flatten()
    }

    fn stats(&self) -> Vec<DiskStats> {
        [self.device.stats(), self.export.stats()].concat()
    }

    /// A device that works is not taken away since its export does not.
    fn failure(&self) -> Option<String> {
        if let Some(failure) = self.export.failure()
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            log(&format!("{} has failed, {} goes on: {failure}", self.export.named(), self.device.name()));
            self.export.exported.close(true);
        }
        self.device.failure()
    }

    fn on_end(&self, tell: Tell) {
        self.device.on_end(tell.clone());
        self.export.on_end(tell);
    }

    fn stop(&self, only_if_idle: bool) -> Result<()> {
        // What refuses keeps its export.
        self.device.stop(only_if_idle)?;
        self.export.exported.close(false);
        Ok(())
    }

    fn drain(&self, at_once: &dyn Fn() -> bool) {
        self.export.drain(at_once);
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Both { export, device, .. } = *self;
        let export = export.exported.finish();
        let device = device.finish();
        device.and(export)
    }
}
