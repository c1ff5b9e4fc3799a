//! Exports beside devices, played as these are.

use super::super::network::{Both, Export};
use super::*;
use crate::engine::nbd::Catalogue;

#[test]
fn exports_stand_beside_devices_and_a_process_answers_for_all() {
    let mut scene = Scene::with(vec![job(0, "a", &[]), offer(1, "x", false, &[]), offer(2, "y", true, &[])]);
    let mut shown = Vec::new();
    while shown.is_empty() {
        let mut said = |disks: &[Shown]| {
            shown = disks
                .iter()
                .map(|disk| match disk {
                    Shown::Device(ready) => (ready.id - FIRST_ID, ready.uris.len()),
                    Shown::Export(export) => {
                        assert_eq!(
                            (export.name.as_str(), &export.notes[..]),
                            ("x", &["a remark".into()][..])
                        );
                        (999, export.uris.len())
                    }
                })
                .collect();
            Ok(())
        };
        assert!(!scene.server.turn(&mut said).unwrap());
    }
    assert_eq!(shown, [(0, 0), (999, 1), (2, 1)]);
    assert_eq!(scene.server.serving(), "serving 2 devices and 2 exports");
    let device = Some(format!("/dev/ublkb{}", FIRST_ID + 2));
    let both = [("x".to_owned(), State::Live, None), ("y".to_owned(), State::Live, device)];
    assert_eq!(scene.exports(), both);
    // An export has no entry of its own.
    assert_eq!(scene.entries(), [0, 2]);
    let replies = scene.ask_process(Request::End { force: false });
    assert!(matches!(&replies[..], [Reply::Accepted, Reply::Stopped]), "{replies:?}");
    assert!(scene.registry.names().is_empty() && scene.registry.servers().is_empty());
}

#[test]
fn who_tells_a_process_to_end_hears_what_refuses() {
    let mut scene = Scene::up_with(vec![job(0, "a", &[]), offer(1, "x", false, &[])]);
    scene.world.busy.lock().unwrap().insert(FIRST_ID);
    let replies = scene.ask_process(Request::End { force: false });
    assert!(matches!(&replies[..], [Reply::Accepted, Reply::Failed { .. }]), "{replies:?}");
    assert_eq!((scene.live(), scene.server.ending), (vec![0], false));
    // What is left goes on, under the eyes of everybody.
    assert_eq!((scene.exports(), scene.registry.servers().len()), (vec![], 1));
}

#[test]
fn a_name_is_free_when_its_export_has_gone() {
    let mut scene = Scene::up_with(vec![offer(0, "x", false, &[]), offer(1, "y", true, &[])]);
    scene.world.slow.lock().unwrap().insert(FIRST_ID);
    *scene.next.0.lock().unwrap() =
        Some(Ok(Change { stop: vec![0], start: vec![offer(5, "x", false, &[]), offer(6, "z", false, &[])] }));
    scene.server.signalled(Signal::Hangup);
    // Its clients have time for their replies, what has another name comes meanwhile.
    scene.until(|scene| scene.live() == [1, 6] && scene.world.said.lock().unwrap().len() == 2);
    let mut said = scene.world.said();
    said.sort();
    assert_eq!(said, ["made 6", "stopped 0"]);
    scene.world.slow.lock().unwrap().clear();
    scene.until(|scene| scene.live().contains(&5));
    assert_eq!(scene.world.said(), ["finished 0", "made 5"]);
    // A device that is in use keeps its name.
    scene.world.busy.lock().unwrap().insert(FIRST_ID + 1);
    scene.reload(Ok(Change { stop: vec![1], start: vec![offer(7, "y", false, &[])] }));
    assert_eq!((scene.live(), scene.world.said()), (vec![1, 5, 6], vec![]));
}

#[test]
fn slow_clients_are_cut_off_by_the_second_signal() {
    let mut scene = Scene::up_with(vec![offer(0, "x", false, &[])]);
    scene.world.slow.lock().unwrap().insert(FIRST_ID);
    scene.server.signalled(Signal::Terminate);
    scene.until(|scene| !scene.world.said.lock().unwrap().is_empty());
    assert_eq!(scene.world.said(), ["stopped 0"]);
    scene.server.signalled(Signal::Terminate);
    assert!(scene.until(|_| false));
    assert!(scene.server.error.is_none());
    assert_eq!(scene.world.said(), ["finished 0"]);
}

/// A played device with a real export of the same disk.
#[test]
fn a_device_that_refuses_keeps_its_export_and_one_that_goes_takes_it_first() {
    let world = Arc::new(World::default());
    let both = || {
        let job = offer(3, "x", true, &[]);
        let plan = (job.open)().unwrap();
        let offering = plan.engines.export().unwrap();
        let catalogue = Catalogue::new(4);
        let export = Export::start(&plan, offering, true, &catalogue, &[]).unwrap();
        let device = Fake { id: FIRST_ID + 3, is_device: true, export: None, world: world.clone() };
        (Both { export, device: Box::new(device), failed: AtomicBool::new(false) }, plan.stack)
    };
    let (disk, stack) = both();
    assert_eq!(disk.name(), format!("/dev/ublkb{}", FIRST_ID + 3));
    assert!(disk.report().unwrap().notes[0].contains("export \"x\", 0 connections"));
    assert!(disk.export().is_some() && disk.failure().is_none());
    world.busy.lock().unwrap().insert(FIRST_ID + 3);
    assert!(disk.stop(true).is_err());
    clock::sleep(Duration::from_millis(50));
    assert!(!disk.export.exported.has_ended(), "the device stays and its export has gone");
    world.busy.lock().unwrap().clear();
    disk.stop(true).unwrap();
    disk.drain(&|| false);
    assert!(disk.export.exported.has_ended());
    Box::new(disk).finish().unwrap();
    assert_eq!(world.said(), ["stopped 3", "finished 3"]);
    // Nothing of the export is left that has the disk.
    assert_eq!(Arc::strong_count(&stack), 1);
    // On the way out with an error nobody waits.
    let (disk, stack) = both();
    drop(disk);
    assert_eq!(Arc::strong_count(&stack), 1);
}
