//! The servers that a plan needs, built.

use std::path::PathBuf;

use anyhow::Result;

use super::peer;
use super::plan::Plan;
use crate::guest_build::{self, Target};
use crate::vm::Payload;

/// How ours is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// As everybody has it.
    AsUsual,
    /// Where its symbols say: its addresses do not change from start to start.
    InPlace,
}

/// One of them.
#[derive(Debug)]
pub struct Server {
    /// The first word of its devices' names, and its own in the guest.
    pub name: &'static str,
    /// The program.
    pub binary: PathBuf,
    /// Where the program itself cannot be asked.
    pub version: Option<String>,
}

impl Server {
    /// For the guest.
    pub fn payload(&self) -> Payload {
        Payload::new(&self.binary, self.name)
    }
}

/// All that `plan` needs.
pub fn build(plan: &Plan, ours: Ours) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    if plan.has_ours() {
        let (name, target) = ("blockhaus", Target::Bin("blockhaus"));
        let binary = match ours {
            Ours::AsUsual => guest_build::static_binary(name, target)?,
            Ours::InPlace => guest_build::binary_in_place(name, target)?,
        };
        servers.push(Server { name, binary, version: None });
    }
    if plan.has("/responder") {
        let binary = guest_build::static_binary("blockhaus", Target::Example("nbd_responder"))?;
        servers.push(Server { name: "responder", binary, version: None });
    }
    if plan.has("rublk") {
        servers.push(Server { name: "rublk", binary: peer::rublk()?, version: None });
    }
    if plan.has("kublk") {
        let (binary, version) = peer::kublk()?;
        servers.push(Server { name: "kublk", binary, version: Some(version) });
    }
    Ok(servers)
}
