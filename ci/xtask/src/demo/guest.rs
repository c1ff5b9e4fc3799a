//! The steps in a virtual machine.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::say;
use crate::vm::{Machine, Payload};

/// The file lies in the guest's memory: the disk that QEMU plays would be
/// measured otherwise.
const FOLDER: &str = "\
modprobe brd rd_nr=1 rd_size=819200 && mkfs.ext4 -q /dev/ram0 && mkdir -p /mnt/demo &&
    mount /dev/ram0 /mnt/demo || { echo '@fail no room for the file in the guest'; exit 1; }
";

/// Boot `kernel` and run the steps in it.
pub fn run(kernel: &str, binary: &Path, seconds: u32, on_line: &mut dyn FnMut(&str)) -> Result<u8> {
    let machine = Machine {
        payload: vec![Payload::new(binary, "blockhaus")],
        timeout: Some(Duration::from_secs(600 + 10 * u64::from(seconds))),
        ..Machine::with_kernel(kernel)
    };
    machine.prepare(false)?;
    say::step("booting; the file will lie in the guest's memory, on ext4 on brd");
    let script = FOLDER.to_string() + &super::script("/payload/blockhaus", "/mnt/demo", seconds);
    Ok(machine.run(&script, on_line)?.0)
}
