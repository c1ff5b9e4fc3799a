//! What the numbers and filters mean that every verb that makes disks takes, all of them checked.

use crate::config::Spec;
use crate::config::limits::Outside;
use crate::error::{Error, Result};
use crate::port::clock::Duration;
use crate::up;

/// A number of queues.
pub(super) fn queues(asked: u32) -> Result<u16> {
    up::limits().queues(asked.into()).map_err(|outside| refused("--queues", outside))
}

/// A number of requests at once.
pub(super) fn depth(asked: u32) -> Result<u16> {
    up::limits().depth(asked.into()).map_err(|outside| refused("--depth", outside))
}

/// N of /dev/ublkbN or /dev/nbdN.
pub(super) fn id(asked: u32) -> Result<u32> {
    up::limits().id(asked.into()).map_err(|outside| refused("--id", outside))
}

/// A time in microseconds to look for work.
pub(super) fn spin(asked_us: u32) -> Result<Duration> {
    let spin_us = up::limits().spin_us(asked_us.into()).map_err(|outside| refused("--spin-us", outside))?;
    Ok(Duration::from_micros(spin_us.into()))
}

/// A number of connections between the kernel's NBD driver and the server.
pub(super) fn connections(asked: u32) -> Result<u16> {
    up::limits().connections(asked.into()).map_err(|outside| refused("--connections", outside))
}

/// A time that a request may take.
pub(super) fn timeout(asked_s: u32) -> Result<Duration> {
    let timeout_s =
        up::limits().timeout_s(asked_s.into()).map_err(|outside| refused("--timeout", outside))?;
    Ok(Duration::from_secs(timeout_s.into()))
}

/// A time to wait for a server.
pub(super) fn dead_connection(asked_s: u32) -> Result<Duration> {
    let time_s = up::limits().dead_connection_s(asked_s.into());
    let time_s = time_s.map_err(|outside| refused("--dead-connection-timeout", outside))?;
    Ok(Duration::from_secs(time_s.into()))
}

/// A logical block size in bytes.
pub(super) fn block_size(text: &str) -> Result<u32> {
    up::limits().block_size(text).map_err(|outside| refused("--block-size", outside))
}

/// Filters, the first nearest to the client.
pub(super) fn filters(texts: &[String]) -> Result<Vec<Spec>> {
    texts.iter().map(|text| Spec::filter(text)).collect()
}

/// The error for an option with a value that no disk can have.
fn refused(option: &str, outside: Outside) -> Error {
    let values: Vec<String> = outside.instead.iter().map(|value| format!("{option} {value}")).collect();
    let cure = match values.is_empty() {
        true => format!("leave {option} out, or give another"),
        false => format!("ask for {}", values.join(" or ")),
    };
    Error::invalid(outside.what, outside.why).cure(cure)
}
