//! Histories that broke the core once, or that show a rule best, by name.

use super::*;

fn one_live(core: &mut Core, now: Instant) -> (WorkloadId, Ticket) {
    let workload = WorkloadId(1);
    core.admit(workload);
    core.set_entries(
        workload,
        &[Wanted { entry: entry(0), subject: 0, revision: 0 }],
        Cause::EntryWithdrawn,
        now,
    );
    let actions = core.listen(workload, Form::X509, now);
    let [Action::Issue { ticket, renewal: false, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    (workload, *ticket)
}

#[test]
fn exit_during_issuance_is_revoked_at_birth() {
    let now = start();
    let mut core = Core::default();
    let (workload, ticket) = one_live(&mut core, now);
    assert!(core.end(workload, Cause::Exited).is_empty());
    let lease = LeaseId::from_bytes([7; 16]);
    let Completion::RevokedAtBirth(Cause::Exited, actions) =
        core.complete(ticket, lease, now + TTL, Jitter(0), now)
    else {
        panic!("released to a dead process")
    };
    assert_eq!(actions, [Action::Revoke { workload, leases: vec![lease], cause: Cause::Exited }]);
}

#[test]
fn renews_between_forty_and_sixty_percent_and_revokes_both_on_exit() {
    let now = start();
    for jitter in [0, 100, 200, 201, u32::MAX] {
        let mut core = Core::default();
        let (workload, ticket) = one_live(&mut core, now);
        let first = LeaseId::from_bytes([1; 16]);
        let _released = core.complete(ticket, first, now + TTL, Jitter(jitter), now);
        let due = core.deadline().unwrap().duration_since(now);
        assert!((TTL * 2 / 5..=TTL * 3 / 5).contains(&due), "{due:?}");
        let actions = core.on_timeout(now + due);
        let [Action::Issue { ticket, renewal: true, .. }] = actions.as_slice() else { panic!("{actions:?}") };
        let second = LeaseId::from_bytes([2; 16]);
        let _released = core.complete(*ticket, second, now + due + TTL, Jitter(jitter), now + due);
        let revoke = core.end(workload, Cause::Exited);
        assert_eq!(revoke, [Action::Revoke { workload, leases: vec![first, second], cause: Cause::Exited }]);
    }
}

#[test]
fn a_failed_renewal_is_tried_again_while_the_old_lease_is_valid() {
    let now = start();
    let mut core = Core::default();
    let (workload, ticket) = one_live(&mut core, now);
    let first = LeaseId::from_bytes([1; 16]);
    let _released = core.complete(ticket, first, now + TTL, Jitter(0), now);
    let mut at = core.deadline().unwrap();
    for _ in 0..5 {
        let actions = core.on_timeout(at);
        let Some(Action::Issue { ticket, .. }) = actions.first() else { panic!("{actions:?}") };
        core.fail(*ticket, None, at);
        assert_eq!(core.shown(workload, Form::X509, at), [(entry(0), Some(first))], "the valid one stays");
        at = core.deadline().unwrap();
    }
    assert!(at < now + TTL);
}

#[test]
fn another_identity_by_the_same_entry_revokes_the_first() {
    let now = start();
    let mut core = Core::default();
    let (workload, ticket) = one_live(&mut core, now);
    let first = LeaseId::from_bytes([1; 16]);
    let _released = core.complete(ticket, first, now + TTL, Jitter(0), now);
    let other = [Wanted { entry: entry(0), subject: 1, revision: 0 }];
    let actions = core.set_entries(workload, &other, Cause::EntryWithdrawn, now);
    let revoke = Action::Revoke { workload, leases: vec![first], cause: Cause::EntryWithdrawn };
    assert!(actions.contains(&revoke), "{actions:?}");
    assert!(actions.iter().any(|a| matches!(a, Action::Issue { renewal: false, .. })), "{actions:?}");
}

#[test]
fn an_entry_that_changes_while_its_issuance_is_in_flight_is_issued_again() {
    let now = start();
    let mut core = Core::default();
    let (workload, ticket) = one_live(&mut core, now);
    let changed = [Wanted { entry: entry(0), subject: 0, revision: 1 }];
    assert_eq!(core.set_entries(workload, &changed, Cause::EntryWithdrawn, now), []);
    let Completion::Release(actions) =
        core.complete(ticket, LeaseId::from_bytes([1; 16]), now + TTL, Jitter(0), now)
    else {
        panic!("revoked")
    };
    assert!(actions.iter().any(|a| matches!(a, Action::Issue { renewal: true, .. })), "{actions:?}");
}

#[test]
fn nothing_is_renewed_while_nobody_listens() {
    let now = start();
    let mut core = Core::default();
    let (workload, ticket) = one_live(&mut core, now);
    let _released = core.complete(ticket, LeaseId::from_bytes([1; 16]), now + TTL, Jitter(0), now);
    core.unlisten(workload, Form::X509);
    assert_eq!(core.on_timeout(now + TTL * 3 / 4), []);
    let again = core.listen(workload, Form::X509, now + TTL * 3 / 4);
    assert!(matches!(again.as_slice(), [Action::Issue { renewal: true, .. }]), "{again:?}");
}

#[test]
fn who_listens_for_one_form_is_issued_no_other_and_exit_revokes_both() {
    let now = start();
    let mut core = Core::default();
    let (workload, ticket) = one_live(&mut core, now);
    let leases = [LeaseId::from_bytes([1; 16]), LeaseId::from_bytes([2; 16])];
    let _released = core.complete(ticket, leases[0], now + TTL, Jitter(0), now);
    assert_eq!(core.shown(workload, Form::Wit, now), [(entry(0), None)]);
    let actions = core.listen(workload, Form::Wit, now);
    let [Action::Issue { ticket, form: Form::Wit, renewal: false, .. }] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    let _released = core.complete(*ticket, leases[1], now + TTL, Jitter(0), now);
    assert_eq!(core.shown(workload, Form::Wit, now), [(entry(0), Some(leases[1]))]);
    core.unlisten(workload, Form::X509);
    let due = core.on_timeout(now + TTL * 3 / 5);
    assert!(matches!(due.as_slice(), [Action::Issue { form: Form::Wit, .. }]), "{due:?}");
    let revoke = core.end(workload, Cause::Exited);
    assert_eq!(revoke, [Action::Revoke { workload, leases: leases.to_vec(), cause: Cause::Exited }]);
}

#[test]
fn an_entry_gained_while_somebody_listens_for_wits_gets_one() {
    let now = start();
    let mut core = Core::default();
    let (workload, _ticket) = one_live(&mut core, now);
    core.listen(workload, Form::Wit, now);
    let wanted = [0, 1].map(|n| Wanted { entry: entry(n), subject: 0, revision: 0 });
    let actions = core.set_entries(workload, &wanted, Cause::EntryWithdrawn, now);
    let issued = |form| actions.iter().any(|a| matches!(a, Action::Issue { form: f, .. } if *f == form));
    assert!(issued(Form::X509) && issued(Form::Wit), "{actions:?}");
    let actions = core.set_entries(workload, &wanted[..1], Cause::EntryWithdrawn, now);
    assert_eq!(core.shown(workload, Form::Wit, now).len(), 1, "{actions:?}");
}

#[test]
fn an_operator_s_word_binds_until_the_process_restarts() {
    let now = start();
    let mut core = Core::default();
    let (workload, ticket) = one_live(&mut core, now);
    let _released = core.complete(ticket, LeaseId::from_bytes([1; 16]), now + TTL, Jitter(0), now);
    assert!(matches!(core.bar(workload).as_slice(), [Action::Revoke { .. }, Action::Show { .. }]));
    let wanted = [Wanted { entry: entry(0), subject: 0, revision: 0 }];
    assert_eq!(core.set_entries(workload, &wanted, Cause::EntryWithdrawn, now), []);
    assert_eq!(core.listen(workload, Form::X509, now), []);
    assert!(!core.forget(workload), "forgetting would lift the ban");
}

#[test]
fn an_adopted_lease_of_a_process_that_no_longer_matches_is_revoked() {
    let now = start();
    let mut core = Core::default();
    let lease = LeaseId::from_bytes([1; 16]);
    core.adopt(WorkloadId(1), entry(0), None, lease, now + TTL);
    let actions = core.set_entries(WorkloadId(1), &[], Cause::NoLongerMatches, now);
    assert!(matches!(&actions[0], Action::Revoke { leases, .. } if *leases == [lease]), "{actions:?}");
}

#[test]
fn what_a_tainted_key_signed_while_it_was_tainted_is_issued_again() {
    let (mut core, now) = (Core::default(), start());
    let (workload, ticket) = one_live(&mut core, now);
    assert_eq!(core.renew(&BTreeSet::new(), now), []);
    let lease = LeaseId::from_bytes([1; 16]);
    let done = core.complete(ticket, lease, now + TTL, Jitter(0), now);
    let Completion::Release(actions) = done else { panic!("{done:?}") };
    let again = actions.iter().find_map(|action| match action {
        Action::Issue { ticket, renewal: true, .. } => Some(*ticket),
        _ => None,
    });
    let again = again.expect("it was in flight when the key was tainted");
    let next = LeaseId::from_bytes([2; 16]);
    let done = core.complete(again, next, now + TTL, Jitter(0), now);
    assert!(matches!(done, Completion::Release(actions) if actions == [Action::Show { workload }]));
}

#[test]
fn a_tainted_lease_that_nobody_sees_is_replaced_when_somebody_listens() {
    let (mut core, now) = (Core::default(), start());
    let (workload, ticket) = one_live(&mut core, now);
    let lease = LeaseId::from_bytes([1; 16]);
    assert!(matches!(core.complete(ticket, lease, now + TTL, Jitter(0), now), Completion::Release(_)));
    core.unlisten(workload, Form::X509);
    assert_eq!(core.renew(&BTreeSet::from([lease]), now), [Action::Show { workload }]);
    assert!(
        core.shown(workload, Form::X509, now).iter().all(|(_, shown)| shown.is_none()),
        "shown to nobody"
    );
    let actions = core.listen(workload, Form::X509, now);
    assert!(matches!(actions.as_slice(), [Action::Issue { .. }]), "{actions:?}");
}
