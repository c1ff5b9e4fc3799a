//! Which modules a machine needs before it has a root, and in which order.

use std::collections::{HashMap, HashSet};

/// Wanted on the way to the root. What a kernel has built in is not listed in
/// its `modules.dep`, and is left out; `crc32c_generic` is a wish of ext4 that
/// older kernels express only softly.
const WANTED: &[&str] = &["crc32c_generic", "virtio_pci", "virtio_blk", "virtio_console", "ext4"];

/// The files to load, each after those that it depends on.
pub fn boot_order(modules_dep: &str) -> Vec<String> {
    let mut files: HashMap<String, (&str, Vec<&str>)> = HashMap::new();
    for line in modules_dep.lines() {
        if let Some((file, needs)) = line.split_once(':') {
            files.insert(module_name(file), (file, needs.split_whitespace().collect()));
        }
    }
    let mut order = Vec::new();
    let mut done = HashSet::new();
    for wanted in WANTED {
        add(&module_name(wanted), &files, &mut done, &mut order);
    }
    order
}

fn add(
    name: &str,
    files: &HashMap<String, (&str, Vec<&str>)>,
    done: &mut HashSet<String>,
    order: &mut Vec<String>,
) {
    let Some((file, needs)) = files.get(name) else { return };
    if !done.insert(name.to_string()) {
        return;
    }
    for need in needs {
        add(&module_name(need), files, done, order);
    }
    order.push((*file).to_string());
}

/// `kernel/fs/ext4/ext4.ko` is `ext4`; `-` and `_` are the same to the kernel.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split('.').next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_module_comes_after_those_it_needs() {
        let dep = "\
kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/mbcache.ko:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio-ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio-ring.ko
kernel/drivers/virtio/virtio-ring.ko:
kernel/drivers/block/nbd.ko:
";
        assert_eq!(
            boot_order(dep),
            [
                "kernel/drivers/virtio/virtio-ring.ko",
                "kernel/drivers/virtio/virtio.ko",
                "kernel/drivers/block/virtio_blk.ko",
                "kernel/fs/mbcache.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/fs/ext4/ext4.ko",
            ]
        );
    }

    #[test]
    fn what_is_built_in_is_left_out() {
        assert!(boot_order("").is_empty());
    }
}
