//! The hidden verb of processes that are started by others of ours: the helper, see [`crate::registry::isolated`],
//! that for loop devices, see [`crate::engine::fuse::helper`], and the keeper, see [`crate::server::keeper`].

use std::ffi::OsString;
use std::process::ExitCode;

use super::{background, output};
use crate::engine::{DeviceName, fuse};
use crate::error::{Error, Result};
use crate::port::process;
use crate::registry::Registry;
use crate::registry::isolated::{KEEP, Order, Target, serve};
use crate::sandbox;
use crate::server::keeper::keep;

/// Does what the arguments say. Those of the helper are an order and names of devices.
pub(super) fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(2);
    let order = arguments.next().unwrap_or_default();
    if order == KEEP {
        return run_keeper(&arguments.collect::<Vec<_>>());
    }
    let order = order.to_str().and_then(Order::from_name);
    let order = order.ok_or_else(|| Error::invalid("bad order", "it is neither remove, info nor keep"))?;
    let target = |text: OsString| {
        let target = Target::from_argument(&text.to_string_lossy());
        target.ok_or_else(|| Error::invalid("bad device", format!("{} names none", text.display())))
    };
    let targets = arguments.map(target).collect::<Result<Vec<_>>>()?;
    serve(order, &targets, &mut |answer| {
        // Whoever waited may have gone; what was begun is finished all the same.
        let _ = output::json(answer);
    });
    Ok(ExitCode::SUCCESS)
}

/// The keeper's arguments: a device, the process that serves it and when that started, and that process's arguments.
fn run_keeper(arguments: &[OsString]) -> Result<ExitCode> {
    process::close_inherited();
    process::set_name(c"blockhaus-keep");
    // Ctrl-C at the terminal that the disk was attached from is not for this.
    let _ = process::own_session();
    // It has to get on while the disk has no server.
    let _ = sandbox::prepare();
    let [name, pid, start, server @ ..] = arguments else {
        return Err(Error::invalid("bad keeper", "there is no device, no process or no start"));
    };
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
    let name = name.to_str().and_then(|name| name.parse::<DeviceName>().ok());
    let (Some(name), Some(pid), Some(start)) = (name, number(pid), number(start)) else {
        return Err(Error::invalid("bad keeper", "the device, the process or its start makes no sense"));
    };
    keep(&Registry::of_host(), name, (pid as i32, start), &mut || background::again(name, server))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes or removes a loop device, which may wait for whoever serves its file. Argument: an order.
pub(super) fn loop_device() -> Result<ExitCode> {
    let order = std::env::args().nth(2).unwrap_or_default();
    // Whoever waited may have gone, as above.
    let _ = output::json(&fuse::helper::serve(&order));
    Ok(ExitCode::SUCCESS)
}
