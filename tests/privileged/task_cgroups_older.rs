//! The same where the kernel does not tell by the pidfd who a process is and in which cgroup (before Linux 6.13): both are
//! read below `/proc`, and the cgroup is found by its path.

use std::cell::Cell;

use super::freeze::what_is_frozen_stands_still_until_the_last_freeze_is_thawed;
use super::restart::{
    a_task_in_a_cgroup_goes_on_after_a_restart,
    a_task_of_one_process_beside_a_cgroups_task_is_seen_again_after_a_restart, watches,
};
use super::*;

thread_local! {
    static OLDER: Cell<bool> = const { Cell::new(false) };
}

/// The plan, for an older kernel if this thread tests one.
pub(super) fn as_told(plan: Plan) -> Plan {
    if OLDER.get() { plan.failpoints("pidfd.info=fail") } else { plan }
}

/// Until it is dropped: other tests may run on the same thread.
struct Older;

impl Older {
    fn is() -> Self {
        OLDER.set(true);
        Self
    }
}

impl Drop for Older {
    fn drop(&mut self) {
        OLDER.set(false);
    }
}

/// Runs a test with agents for which the kernel is an older one.
fn on_an_older_kernel(test: fn()) {
    let _older = Older::is();
    test();
}

#[test]
fn older_the_agent_says_what_it_does_without() {
    let _older = Older::is();
    let (agent, group) = (agent(), Group::new("test"));
    assert!(agent.log().contains("before Linux 6.13"), "{}", agent.log());
    let (mut founder, task) = founder(&agent, &group);
    assert!(watches(&agent, &group));
    // By its number in the hierarchy, as the kernel itself would say it.
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(group.dir()).unwrap());
    assert_eq!(get(&mut founder, &task).unwrap().instance, format!("c-{inode:x}"));
}

#[test]
fn older_a_helper_acts_in_the_task_and_the_last_exit_ends_it() {
    on_an_older_kernel(a_helper_acts_in_the_task_when_its_founder_has_exited_and_the_last_exit_ends_it);
}

#[test]
fn older_whoever_is_outside_or_is_not_what_the_task_is_cannot_act_in_it() {
    on_an_older_kernel(k01_whoever_is_outside_or_is_not_what_the_task_is_cannot_act_in_it);
}

#[test]
fn older_a_cgroup_that_a_user_owns_or_that_others_are_in_isolates_nothing() {
    on_an_older_kernel(c08_a_cgroup_that_a_user_owns_or_that_others_are_in_isolates_nothing);
}

#[test]
fn older_a_task_is_isolated_as_long_as_nobody_else_has_a_seat_in_its_cgroup() {
    on_an_older_kernel(a_task_is_isolated_as_long_as_nobody_else_has_a_seat_in_its_cgroup);
}

#[test]
fn older_the_last_exit_ends_everything_below_as_well() {
    on_an_older_kernel(the_last_exit_ends_everything_below_as_well);
}

#[test]
fn older_a_child_that_outlives_its_parent_keeps_the_task_and_is_killed_with_it() {
    on_an_older_kernel(a_child_that_outlives_its_parent_keeps_the_task_and_is_killed_with_it);
}

#[test]
fn older_a_founder_that_becomes_something_else_loses_the_task() {
    on_an_older_kernel(a_founder_that_becomes_something_else_loses_the_task_and_one_that_exits_does_not);
}

#[test]
fn older_what_is_frozen_stands_still_until_the_last_freeze_is_thawed() {
    on_an_older_kernel(what_is_frozen_stands_still_until_the_last_freeze_is_thawed);
}

#[test]
fn older_a_task_in_a_cgroup_goes_on_after_a_restart() {
    on_an_older_kernel(a_task_in_a_cgroup_goes_on_after_a_restart);
}

#[test]
fn older_a_task_of_one_process_beside_a_cgroups_task_is_seen_again_after_a_restart() {
    on_an_older_kernel(a_task_of_one_process_beside_a_cgroups_task_is_seen_again_after_a_restart);
}
