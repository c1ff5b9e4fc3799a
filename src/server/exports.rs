//! The main thread of a process that serves exports: it waits for a signal, and ends it all in order.

use std::os::fd::AsFd;

use serde::Serialize;

use super::entrance::{self, Entered, Entrance, Refusals};
use super::{abandon, log};
use crate::engine::nbd::{Catalogue, Exported, Offer, Options, Report, Server};
use crate::error::{Error, Kind, Result};
use crate::port::clock::{Deadline, Duration};
use crate::port::signal::Signals;
use crate::port::{process, socket, thread};

/// How often the main thread looks whether a queue has failed or has ended.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The same where it ends with its clients, and somebody may be waiting for that.
const LOOK_OFTEN: Duration = Duration::from_millis(20);

/// How long clients have to take the replies to what they asked before the end.
const DRAIN: Duration = Duration::from_secs(10);

/// What is to be served, and where.
#[derive(Debug)]
pub struct Plan {
    /// The exports, the default one first, and the spec of each, as people see it.
    pub offers: Vec<(Offer, String)>,
    /// Where clients come in.
    pub entrance: Entrance,
    /// What the engine is asked for, for each export.
    pub options: Options,
}

/// What is said when clients can connect.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    /// The process that serves.
    pub pid: i32,
    /// Every export.
    pub exports: Vec<Report>,
}

/// Serves until a signal ends it, or, where nobody can come any more, until the last client has gone. `signals` were
/// blocked before any thread was made; `ready` is called once, when clients can connect, and ends it all again when it
/// fails.
pub fn run(plan: Plan, mut signals: Signals, ready: &mut dyn FnMut(&Ready) -> Result<()>) -> Result<()> {
    let _guard = thread::AbortOnPanic;
    let catalogue = Catalogue::encrypted(plan.entrance.max_connections, plan.entrance.encryption.clone());
    let Entered { listeners, connections, addresses, all_said } = entrance::enter(plan.entrance)?;
    let (offers, specs): (Vec<Offer>, Vec<String>) = plan.offers.into_iter().unzip();
    let start = |offer| Exported::start(&catalogue, offer, &plan.options);
    let exports = offers.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let ends_with_clients = listeners.is_empty();
    let mut server = Server::open_for(&catalogue, listeners, connections)?;
    exports.iter().for_each(Exported::started);
    let policy = catalogue.encryption().policy();
    let uris = |export: &Exported| entrance::uris(&addresses, policy, &export.export().name);
    let reports = exports.iter().zip(specs).map(|(export, spec)| export.report(spec, uris(export)));
    ready(&Ready { pid: process::own_pid(), exports: reports.collect() })?;
    let patience = if ends_with_clients { LOOK_OFTEN } else { LOOK_EVERY };
    let mut refusals = Refusals::default();
    let failure = loop {
        refusals.look(catalogue.encryption());
        socket::poll(&[(signals.as_fd(), false)], patience)
            .map_err(|error| Error::system("cannot wait for signals", error))?;
        if let Some(signal) = signals.take() {
            log(&format!("{}: ending with {} connections", signal.name(), catalogue.connections()));
            break None;
        }
        if let Some(failure) = exports.iter().find_map(Exported::failure) {
            log(&format!("a queue has failed: {failure}"));
            break Some(Error::new(Kind::Failed, "a queue has failed", failure));
        }
        if ends_with_clients && catalogue.connections() == 0 {
            break None;
        }
    };
    server.close();
    refusals.look(catalogue.encryption());
    drain(&exports, &mut signals);
    let mut result = Ok(());
    for export in exports {
        result = result.and(export.finish());
    }
    // What is encrypted, or goes out by standard output, is still on its way.
    wait(&mut signals, || catalogue.connections() == 0 && all_said());
    failure.map_or(result, Err)
}

/// Lets clients have the replies to what they asked, for a while.
fn drain(exports: &[Exported], signals: &mut Signals) {
    exports.iter().for_each(|export| export.close(false));
    wait(signals, || exports.iter().all(Exported::has_ended));
}

fn wait(signals: &mut Signals, is_over: impl Fn() -> bool) {
    let deadline = Deadline::after(DRAIN);
    while !deadline.at_most(LOOK_EVERY).wait_until(&is_over) {
        if let Some(signal) = signals.take() {
            abandon(signal);
        }
        if deadline.passed() {
            log("some clients do not take their replies: cutting them off");
            return;
        }
    }
}
