//! The hidden verb of the helper process; see [`crate::registry::isolated`].

use std::process::ExitCode;

use super::output;
use crate::error::{Error, Result};
use crate::registry::isolated::{Order, serve};

/// Carries out kernel commands that may never return, so that they can take nobody along.
/// Arguments: an order, and ids of devices.
pub(super) fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(2);
    let order = arguments.next().unwrap_or_default();
    let order = Order::from_name(&order)
        .ok_or_else(|| Error::invalid(format!("bad order {order:?}"), "it is neither remove nor info"))?;
    let ids: Result<Vec<u32>, _> = arguments.map(|id| id.parse()).collect();
    let ids = ids.map_err(|error| Error::invalid("bad id", error.to_string()))?;
    serve(order, &ids, &mut |answer| {
        // Whoever waited may have gone; what was begun is finished all the same.
        let _ = output::json(answer);
    });
    Ok(ExitCode::SUCCESS)
}
