//! The hidden verb of the helper process; see [`crate::registry::isolated`].

use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::error::{Error, Result};
use crate::registry::isolated::{Order, serve};

/// Carries out kernel commands that may never return, so that they can take nobody along.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// `remove` or `info`.
    order: String,
    /// Ids of devices.
    ids: Vec<u32>,
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let order = Order::from_name(&arguments.order).ok_or_else(|| {
        Error::invalid(format!("bad order {:?}", arguments.order), "it is neither remove nor info")
    })?;
    serve(order, &arguments.ids, &mut |answer| {
        // Whoever waited may have gone; what was begun is finished all the same.
        let _ = output::json(answer);
    });
    Ok(ExitCode::SUCCESS)
}
