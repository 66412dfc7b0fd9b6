//! Closing forms: random histories of policies that open and close them, and each rule by name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Action, Cause, Completion, Core, Form, Jitter, Ticket, Wanted, WorkloadId};
use crate::clock::{Clock as _, SystemClock};
use crate::id::{EntryId, LeaseId};

const TTL: Duration = Duration::from_secs(100);
const WHO: WorkloadId = WorkloadId(1);
const FORMS: [Form; 2] = [Form::X509, Form::Wit];

fn entry(n: u8) -> EntryId {
    EntryId::new(format!("entry-{n}"))
}

fn wanted(n: u8) -> Wanted {
    Wanted { entry: entry(n), subject: 0, revision: 0 }
}

fn lease(n: u64) -> LeaseId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    LeaseId::from_bytes(bytes)
}

/// Which of three entries in which of two forms: one bit each.
fn closed(mask: u8) -> BTreeSet<(EntryId, Form)> {
    let all = (0..3u8).flat_map(|n| FORMS.map(|form| (n, form)));
    all.enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, (n, form))| (entry(n), form)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// Policy says otherwise.
    Close(u8),
    Entries(u8),
    Listen(bool),
    Token(u8),
    Answer(u8),
    Fail(u8),
    Advance(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..64u8).prop_map(Step::Close),
        2 => (0..8u8).prop_map(Step::Entries),
        2 => any::<bool>().prop_map(Step::Listen),
        1 => (0..3u8).prop_map(Step::Token),
        6 => any::<u8>().prop_map(Step::Answer),
        1 => any::<u8>().prop_map(Step::Fail),
        3 => (0..90u8).prop_map(Step::Advance),
    ]
}

/// What must be true, kept apart from the core.
#[derive(Default)]
struct Model {
    core: Core,
    elapsed: Duration,
    closed: BTreeSet<(EntryId, Form)>,
    held: BTreeSet<EntryId>,
    listening: BTreeSet<Form>,
    flights: Vec<(Ticket, EntryId, Option<Form>)>,
    /// Released and neither revoked nor expired.
    out: BTreeMap<LeaseId, (EntryId, Option<Form>)>,
    ended: BTreeSet<LeaseId>,
    next: u64,
}

impl Model {
    fn take(&mut self, actions: Vec<Action>) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                Action::Issue { ticket, entry, form, .. } => {
                    let is_closed = self.closed.contains(&(entry.clone(), form));
                    prop_assert!(!is_closed, "issued in a form that policy does not give");
                    prop_assert!(self.held.contains(&entry) && self.listening.contains(&form));
                    self.flights.push((ticket, entry, Some(form)));
                }
                Action::Revoke { leases, .. } => {
                    for lease in leases {
                        self.out.remove(&lease);
                        prop_assert!(self.ended.insert(lease), "ended twice");
                    }
                }
                Action::Expire { lease, .. } => {
                    prop_assert!(self.out.remove(&lease).is_some(), "only a live lease expires");
                    prop_assert!(self.ended.insert(lease), "ended twice");
                }
                Action::Show { .. } => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, step: &Step, epoch: Instant) -> Result<(), TestCaseError> {
        let now = epoch + self.elapsed;
        let actions = match *step {
            Step::Close(mask) => {
                self.closed = closed(mask);
                self.core.close(WHO, &self.closed, now)
            }
            Step::Entries(mask) => {
                let wanted: Vec<Wanted> = (0..3).filter(|bit| mask & (1 << bit) != 0).map(wanted).collect();
                self.held = wanted.iter().map(|w| w.entry.clone()).collect();
                self.core.set_entries(WHO, &wanted, Cause::EntryWithdrawn, now)
            }
            Step::Listen(wit) => {
                let form = if wit { Form::Wit } else { Form::X509 };
                self.listening.insert(form);
                self.core.listen(WHO, form, now)
            }
            Step::Token(n) => {
                if let Ok(ticket) = self.core.begin(WHO, &entry(n)) {
                    self.flights.push((ticket, entry(n), None));
                }
                Vec::new()
            }
            Step::Answer(n) => return self.answer(n, now),
            Step::Fail(_) if self.flights.is_empty() => return Ok(()),
            Step::Fail(n) => {
                let (ticket, ..) = self.flights.remove(usize::from(n) % self.flights.len());
                self.core.fail(ticket, None, now)
            }
            Step::Advance(seconds) => {
                self.elapsed += Duration::from_secs(seconds.into());
                self.core.on_timeout(epoch + self.elapsed)
            }
        };
        self.take(actions)
    }

    fn answer(&mut self, n: u8, now: Instant) -> Result<(), TestCaseError> {
        if self.flights.is_empty() {
            return Ok(());
        }
        let (ticket, entry, form) = self.flights.remove(usize::from(n) % self.flights.len());
        self.next += 1;
        let lease = lease(self.next);
        match self.core.complete(ticket, lease, now + TTL, Jitter(0), now) {
            Completion::Release(actions) => {
                self.out.insert(lease, (entry, form));
                self.take(actions)
            }
            Completion::RevokedAtBirth(_, actions) => self.take(actions),
        }
    }

    /// The rule that this module adds to the others.
    fn check(&self, now: Instant) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.core.live_leases(), self.out.len());
        for (entry, form) in self.out.values() {
            let is_closed = form.is_some_and(|form| self.closed.contains(&(entry.clone(), form)));
            prop_assert!(!is_closed, "a lease in a form that policy does not give any more");
        }
        for form in FORMS {
            let shown: BTreeSet<EntryId> =
                self.core.shown(WHO, form, now).into_iter().map(|(entry, _)| entry).collect();
            let open = self.held.iter().filter(|entry| !self.closed.contains(&((*entry).clone(), form)));
            prop_assert_eq!(shown, open.cloned().collect::<BTreeSet<_>>(), "{:?}", form);
        }
        prop_assert_eq!(self.core.held(WHO).into_iter().collect::<BTreeSet<_>>(), self.held.clone());
        Ok(())
    }
}

fn histories() -> u32 {
    if std::env::var_os("MAYFLY_FULL").is_some() { 50_000 } else { 1_000 }
}

mod tests {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: histories(), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_out_or_on_its_way_out_in_a_form_that_policy_does_not_give(
            steps in proptest::collection::vec(step(), 1..60)
        ) {
            let (mut model, epoch) = (Model::default(), SystemClock.monotonic());
            model.core.admit(WHO);
            for step in &steps {
                model.apply(step, epoch)?;
                model.check(epoch + model.elapsed)?;
            }
        }
    }

    /// One entry, of which somebody listens for X.509-SVIDs.
    fn listening(core: &mut Core, now: Instant) -> Ticket {
        core.admit(WHO);
        core.set_entries(WHO, &[wanted(0)], Cause::EntryWithdrawn, now);
        match core.listen(WHO, Form::X509, now).as_slice() {
            [Action::Issue { ticket, .. }] => *ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_form_that_closes_takes_what_was_given_in_it_and_nothing_else() {
        let (mut core, now) = (Core::default(), SystemClock.monotonic());
        let ticket = listening(&mut core, now);
        assert!(matches!(core.complete(ticket, lease(1), now + TTL, Jitter(0), now), Completion::Release(_)));
        let token = core.begin(WHO, &entry(0)).unwrap();
        assert!(matches!(core.complete(token, lease(2), now + TTL, Jitter(0), now), Completion::Release(_)));
        let x509 = BTreeSet::from([(entry(0), Form::X509)]);
        let revoke = Action::Revoke { workload: WHO, leases: vec![lease(1)], cause: Cause::Policy };
        assert_eq!(core.close(WHO, &x509, now), [revoke, Action::Show { workload: WHO }]);
        assert_eq!((core.held(WHO), core.live_leases()), (vec![entry(0)], 1));
        assert_eq!(core.shown(WHO, Form::X509, now), []);
        assert_eq!(core.shown(WHO, Form::Wit, now), [(entry(0), None)]);
        assert_eq!(core.close(WHO, &x509, now), [], "nothing changed");
    }

    #[test]
    fn what_is_in_flight_when_its_form_closes_is_revoked_at_birth_though_it_opened_again() {
        let (mut core, now) = (Core::default(), SystemClock.monotonic());
        let ticket = listening(&mut core, now);
        core.close(WHO, &BTreeSet::from([(entry(0), Form::X509)]), now);
        let opened = core.close(WHO, &BTreeSet::new(), now);
        let [Action::Issue { ticket: next, .. }, Action::Show { .. }] = opened.as_slice() else {
            panic!("{opened:?}")
        };
        let old = core.complete(ticket, lease(1), now + TTL, Jitter(0), now);
        assert!(matches!(old, Completion::RevokedAtBirth(Cause::Policy, _)), "{old:?}");
        let new = core.complete(*next, lease(2), now + TTL, Jitter(0), now);
        assert!(matches!(new, Completion::Release(_)), "{new:?}");
        assert_eq!(core.shown(WHO, Form::X509, now), [(entry(0), Some(lease(2)))]);
    }

    #[test]
    fn an_adopted_lease_of_a_closed_form_is_revoked_and_one_made_on_demand_is_not() {
        let (mut core, now) = (Core::default(), SystemClock.monotonic());
        core.adopt(WHO, entry(0), Some(Form::Wit), lease(1), now + TTL);
        core.adopt(WHO, entry(0), None, lease(2), now + TTL);
        let revoke = Action::Revoke { workload: WHO, leases: vec![lease(1)], cause: Cause::Policy };
        let actions = core.close(WHO, &BTreeSet::from([(entry(0), Form::Wit)]), now);
        assert_eq!(actions, [revoke, Action::Show { workload: WHO }]);
    }

    #[test]
    fn single_leases_are_taken_back_and_what_fills_a_slot_is_issued_again() {
        let (mut core, now) = (Core::default(), SystemClock.monotonic());
        let ticket = listening(&mut core, now);
        let released = core.complete(ticket, lease(1), now + TTL, Jitter(0), now);
        assert!(matches!(released, Completion::Release(_)));
        let actions = core.take_back(&[lease(1), lease(9)], Cause::Policy, now);
        let revoke = Action::Revoke { workload: WHO, leases: vec![lease(1)], cause: Cause::Policy };
        assert_eq!(actions.first(), Some(&revoke));
        assert!(matches!(actions.get(1), Some(Action::Issue { .. })), "{actions:?}");
        assert_eq!(core.take_back(&[lease(1)], Cause::Policy, now), [], "once");
    }
}
