//! What has to be done to come from one file to another: as little as possible.

/// Places in the lists that were compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What stays as it is: its place in the old list and in the new one.
    pub keep: Vec<(usize, usize)>,
    /// What is there and no longer wanted, places in the old list.
    pub stop: Vec<usize>,
    /// What is wanted and not there yet, places in the new list.
    pub start: Vec<usize>,
}

/// Compares what there is with what is wanted. Equal ones stay, each for one of the other list, so
/// that two equal disks are two; one that differs in anything is stopped and started.
pub fn changes<T: PartialEq>(old: &[T], new: &[T]) -> Changes {
    let mut changes = Changes::default();
    let mut free: Vec<bool> = vec![true; old.len()];
    for (place, wanted) in new.iter().enumerate() {
        match old.iter().enumerate().position(|(at, there)| free[at] && there == wanted) {
            Some(at) => {
                free[at] = false;
                changes.keep.push((at, place));
            }
            None => changes.start.push(place),
        }
    }
    changes.stop = (0..old.len()).filter(|at| free[*at]).collect();
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_list_in_another_order_changes_nothing() {
        let changes = changes(&["a", "b", "a"], &["b", "a", "a"]);
        assert_eq!(changes, Changes { keep: vec![(1, 0), (0, 1), (2, 2)], ..Changes::default() });
    }

    #[test]
    fn equal_ones_are_counted() {
        let changes = changes(&["a", "a", "b"], &["a", "c"]);
        assert_eq!(changes, Changes { keep: vec![(0, 0)], stop: vec![1, 2], start: vec![1] });
    }

    proptest! {
        #[test]
        fn what_is_kept_and_started_is_what_is_wanted(
            old in proptest::collection::vec(0u8..4, 0..12),
            new in proptest::collection::vec(0u8..4, 0..12),
        ) {
            let changes = changes(&old, &new);
            // Nothing appears twice and nothing is forgotten, on either side.
            let mut of_old: Vec<usize> = changes.keep.iter().map(|kept| kept.0).chain(changes.stop.clone()).collect();
            let mut of_new: Vec<usize> = changes.keep.iter().map(|kept| kept.1).chain(changes.start.clone()).collect();
            of_old.sort_unstable();
            of_new.sort_unstable();
            prop_assert_eq!(of_old, (0..old.len()).collect::<Vec<_>>());
            prop_assert_eq!(of_new, (0..new.len()).collect::<Vec<_>>());
            prop_assert!(changes.keep.iter().all(|&(at, place)| old[at] == new[place]));
            // As little as possible: no value is both stopped and started.
            prop_assert!(!changes.stop.iter().any(|&at| changes.start.iter().any(|&place| old[at] == new[place])));
        }
    }
}
