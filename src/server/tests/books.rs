//! Whatever happens to a server of many, in any order: its books are right in the end.

use proptest::prelude::*;

use super::*;

/// What can happen to a server of many.
#[derive(Clone, Debug)]
enum Happening {
    /// The file is read again: these go, and so many come, the first of them broken or not.
    Reload(Vec<Key>, u8, bool),
    Detach(Key),
    Fail(Key),
    Turn,
}

fn happening() -> impl Strategy<Value = Happening> {
    let key = 0u64..12;
    prop_oneof![
        (proptest::collection::vec(key.clone(), 0..3), 0u8..3, any::<bool>())
            .prop_map(|(stop, start, broken)| Happening::Reload(stop, start, broken)),
        key.clone().prop_map(Happening::Detach),
        key.prop_map(Happening::Fail),
        Just(Happening::Turn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens while other things are under way: in the end exactly the living are known,
    /// everything else that was made has gone in order, and nothing was made twice.
    #[test]
    fn whatever_happens_the_books_are_right(happenings in proptest::collection::vec(happening(), 0..10)) {
        let mut scene = Scene::up(&["a", "b", "c"]);
        let mut next = 3;
        let mut ended = false;
        for happening in happenings {
            let present = |scene: &Scene, key: Key| scene.live().contains(&key);
            match happening {
                Happening::Reload(stop, count, broken) => {
                    let mut planned = scene.next.0.lock().unwrap();
                    if planned.is_none() {
                        // A file cannot name what is only wished for with it.
                        let stop: Vec<Key> = stop.into_iter().filter(|key| *key < next).collect();
                        let keys = next..next + Key::from(count);
                        next = keys.end;
                        let start = keys.enumerate().map(|(at, key)| {
                            job(key, if broken && at == 0 { "broken" } else { "new" }, &stop)
                        });
                        let start = start.collect();
                        *planned = Some(Ok(Change { stop, start }));
                    }
                    drop(planned);
                    scene.server.signalled(Signal::Hangup);
                }
                Happening::Detach(key) => {
                    if let Some(served) = scene.server.served.iter_mut().find(|served| served.key == key) {
                        served.stop(false, &scene.server.around);
                    }
                }
                Happening::Fail(key) if present(&scene, key) => {
                    scene.world.failed.lock().unwrap().insert(FIRST_ID + key as u32);
                }
                Happening::Fail(_) => {}
                Happening::Turn => ended = ended || scene.server.turn(&mut |_| Ok(())).unwrap(),
            }
            if ended {
                break;
            }
        }
        let is_quiet = |scene: &Scene| {
            !scene.server.reloading.is_busy()
                && scene.next.0.lock().unwrap().is_none()
                && scene.live().iter().all(|key| !scene.world.failed.lock().unwrap().contains(&(FIRST_ID + *key as u32)))
                && scene.live().len() == scene.server.served.len()
        };
        ended = ended || scene.until(is_quiet);
        prop_assert_eq!(ended, scene.server.served.is_empty());
        let live: Vec<u32> = scene.live().iter().map(|key| *key as u32).collect();
        let mut known = scene.entries();
        known.sort_unstable();
        let mut sorted = live.clone();
        sorted.sort_unstable();
        prop_assert_eq!(known, sorted);
        let said = scene.world.said();
        let ids = |what: &str| -> Vec<u32> {
            said.iter().filter_map(|said| said.strip_prefix(what)?.trim().parse().ok()).collect()
        };
        let (made, finished) = (ids("made"), ids("finished"));
        prop_assert_eq!(made.iter().collect::<BTreeSet<_>>().len(), made.len(), "made twice: {:?}", said);
        prop_assert_eq!(finished.iter().collect::<BTreeSet<_>>().len(), finished.len(), "{:?}", said);
        // Each in its order; two that go at the same time may pass one another.
        let at = |what: &str, id: u32| said.iter().position(|said| *said == format!("{what} {id}"));
        prop_assert_eq!(ids("stopped").len(), finished.len(), "{:?}", said);
        for &id in &finished {
            prop_assert!(at("stopped", id) < at("finished", id) && at("stopped", id).is_some(), "{:?}", said);
        }
        for id in (0..3).chain(made) {
            let is_there = live.contains(&id) || finished.contains(&id);
            let was_broken = scene.world.broken.lock().unwrap().contains(&(FIRST_ID + id));
            prop_assert!(is_there != was_broken, "{id} is lost: {said:?}");
        }
    }
}
