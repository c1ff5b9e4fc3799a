//! The test of the tests: each planted bug must be found.

use blockhaus::engine::ublk::DataPath;
use blockhaus::port::sim::Bug;

use crate::careless::Carelessness;
use crate::chain;
use crate::nbd;
use crate::scenario::{self, Wishes};
use crate::stacks::{Filters, Kind};

/// Seeds that a bug may take to be found.
const PATIENCE: u64 = 300;

fn found(wishes: Wishes) {
    for seed in 0..PATIENCE {
        if let Some(failure) = scenario::run(seed, wishes).failure {
            eprintln!("seed {seed} found {wishes:?}: {}", failure.what);
            return;
        }
    }
    panic!("{wishes:?} was not found by {PATIENCE} seeds");
}

fn careless(how: Carelessness) {
    let filters = Some(Filters::None);
    found(Wishes { kind: Some(Kind::Careless(how)), filters, ..Wishes::default() });
}

fn planted(kind: Kind, filters: Filters, bug: Bug) {
    found(Wishes { kind: Some(kind), filters: Some(filters), bug: Some(bug), ..Wishes::default() });
}

fn on_path(path: DataPath, bug: Bug) {
    let (kind, filters) = (Some(Kind::File), Some(Filters::None));
    found(Wishes { kind, filters, path: Some(path), bug: Some(bug) });
}

/// Without a mistake nothing may be found, or the rest of this proves nothing.
#[test]
fn without_a_bug_nothing_is_found() {
    for seed in 0..100 {
        let wishes = Wishes { kind: Some(Kind::Careless(Carelessness::None)), ..Wishes::default() };
        if let Some(failure) = scenario::run(seed, wishes).failure {
            panic!("{}\nseed {seed}: {}", failure.trace, failure.what);
        }
    }
}

fn careless_by_nbd(how: Carelessness) {
    for seed in 0..PATIENCE {
        if let Some(failure) = nbd::run(seed, Some(Kind::Careless(how))).failure {
            eprintln!("seed {seed} found {how:?} by NBD: {}", failure.what);
            return;
        }
    }
    panic!("{how:?} was not found by {PATIENCE} seeds by NBD");
}

fn in_a_chain(bug: Bug) {
    for seed in 0..PATIENCE {
        if let Some(failure) = chain::run(seed, Some(bug)).failure {
            eprintln!("seed {seed} found {bug:?} in a chain: {}", failure.what);
            return;
        }
    }
    panic!("{bug:?} was not found by {PATIENCE} seeds in a chain");
}

macro_rules! bugs {
    ($($name:ident $how:expr;)*) => {
        $(#[test]
        fn $name() {
            $how;
        })*
    };
}

bugs! {
    a_flush_that_does_not_flush careless(Carelessness::FlushNothing);
    a_fua_write_that_is_not_durable careless(Carelessness::FuaIgnored);
    an_error_turned_into_zeros careless(Carelessness::ErrorsAsZeros);
    a_torn_write_acknowledged careless(Carelessness::TornWrite);
    a_short_read_passed_as_whole careless(Carelessness::ShortRead);
    a_discard_that_eats_its_neighbour careless(Carelessness::DiscardEatsNeighbour);
    zeroes_that_leave_the_data careless(Carelessness::ZeroesLeaveData);
    a_read_that_another_queue_made_stale careless(Carelessness::StaleOnOtherQueue);
    an_interrupted_write_acknowledged careless(Carelessness::InterruptedIsDone);
    a_write_at_the_wrong_place careless(Carelessness::Misplaced);
    a_write_that_is_forgotten careless(Carelessness::ForgottenWrite);
    a_commit_sent_twice planted(Kind::File, Filters::None, Bug::CommitTwice);
    a_commit_for_another_tag planted(Kind::File, Filters::None, Bug::CommitForAnother);
    a_commit_lost planted(Kind::File, Filters::None, Bug::CommitLost);
    a_commit_of_fewer_bytes planted(Kind::File, Filters::None, Bug::CommitShort);
    a_slot_reused_before_its_completion planted(Kind::File, Filters::None, Bug::SlotReusedEarly);
    a_descriptor_stride_of_our_own_depth planted(Kind::File, Filters::None, Bug::StrideOfOwnDepth);
    a_wake_up_lost planted(Kind::Slow, Filters::None, Bug::WakeUpLost);
    a_short_read_by_nbd careless_by_nbd(Carelessness::ShortRead);
    a_flush_that_does_not_flush_by_nbd careless_by_nbd(Carelessness::FlushNothing);
    a_hole_that_is_none_by_nbd careless_by_nbd(Carelessness::HolesEverywhere);
    a_lost_auto_registration_fallback on_path(DataPath::AutoBuf, Bug::FallbackLost);
    a_user_copy_that_is_forgotten on_path(DataPath::UserCopy, Bug::UserCopyLost);
    a_range_lock_that_covers_one_queue_only
        planted(Kind::File, Filters::Blocksize, Bug::RangeLockOfOneQueue);
    a_batch_of_which_a_part_is_taken_for_whole
        on_path(DataPath::BatchCopy, Bug::PartOfBatchTakenForWhole);
    a_fetch_that_is_not_sent_again on_path(DataPath::BatchAutoBuf, Bug::FetchNotRenewed);
    a_buffer_of_tags_that_is_read_too_late on_path(DataPath::BatchCopy, Bug::TagsReadTooLate);
    a_result_for_the_tag_beside_it on_path(DataPath::BatchAutoBuf, Bug::BatchShifted);
    a_stop_in_the_middle_of_a_batch on_path(DataPath::BatchAutoBuf, Bug::DeafWhileStopping);
    a_replay_that_is_left_out in_a_chain(Bug::ReplayLeftOut);
    a_replay_without_order in_a_chain(Bug::ReplayAtOnce);
    a_flush_that_is_taken_for_a_later_one in_a_chain(Bug::FlushCoversLaterChanges);
    a_server_that_is_deaf_while_stopping planted(Kind::File, Filters::None, Bug::DeafWhileStopping);
}
