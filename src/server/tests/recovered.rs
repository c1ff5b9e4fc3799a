//! A server that takes the place of one that was killed.

use super::*;

/// A job for a device whose server was killed.
fn recovery(key: Key) -> Job {
    let mut plan = (job(key, "x", &[]).open)().unwrap();
    let id = Some(FIRST_ID + key as u32);
    let options = nbd::kernel::Options { id, recover: Some(1), ..nbd::kernel::Options::plain(1) };
    plan.engines = Engines::Device(DeviceOptions::Nbd(options));
    Job { open: Box::new(|| Ok(plan)), device: id.map(DeviceName::nbd), ..job(key, "x", &[]) }
}

/// Somebody uses it: it is not taken away because what is known of it cannot be written down.
#[test]
fn a_disk_that_was_recovered_stays_whatever_becomes_of_its_entry() {
    for (job, stays) in [(recovery(1), true), (job(1, "x", &[]), false)] {
        let name = job.device.unwrap();
        let mut scene = Scene::with(vec![job]);
        // In the way of the entry once more, after it was made.
        let temporary =
            scene.registry.folder().join(format!("{name}.json.{}", crate::port::process::own_pid()));
        scene.world.in_the_way.lock().unwrap().push(temporary);
        let ended = scene.until(|scene| scene.server.handed_over);
        assert_eq!(ended, !stays, "{name}");
        let said = if stays { vec!["made 1"] } else { vec!["made 1", "stopped 1", "finished 1"] };
        assert_eq!(scene.world.said(), said);
    }
}
