//! Random histories against the core. Every history that once broke it has its name in `histories`.
//!
//! A history is a list of steps: processes arrive, listen, gain and lose entries, die; issuances are
//! answered late, in any order, well or badly; time passes. After each step the model checks the four
//! rules of the module's contract. It does not check what the ledger or the CRL make of the actions.

mod histories;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Action, Cause, Completion, Core, Form, Jitter, Ticket, Wanted, WorkloadId};
use crate::clock::{Clock, SystemClock};
use crate::id::{EntryId, LeaseId};

const TTL: Duration = Duration::from_secs(100);

#[derive(Clone, Debug)]
enum Step {
    Admit(u8),
    Entries(u8, u8, u8),
    Listen(u8, bool),
    Unlisten(u8, bool),
    Jwt(u8, u8),
    Answer(u8, u32),
    Fail(u8, bool),
    Exit(u8),
    Bar(u8),
    RevokeLease(u8),
    Advance(u8),
    Forget(u8),
    /// The key behind every lease that this mask picks is tainted.
    Renew(u8),
    Retry(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..5u8;
    prop_oneof![
        3 => who.clone().prop_map(Step::Admit),
        4 => (who.clone(), 0..8u8, 0..4u8).prop_map(|(w, mask, rev)| Step::Entries(w, mask, rev)),
        4 => (who.clone(), any::<bool>()).prop_map(|(w, wit)| Step::Listen(w, wit)),
        2 => (who.clone(), any::<bool>()).prop_map(|(w, wit)| Step::Unlisten(w, wit)),
        2 => (who.clone(), 0..3u8).prop_map(|(w, e)| Step::Jwt(w, e)),
        8 => (any::<u8>(), any::<u32>()).prop_map(|(n, j)| Step::Answer(n, j)),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(n, written)| Step::Fail(n, written)),
        2 => who.clone().prop_map(Step::Exit),
        1 => who.clone().prop_map(Step::Bar),
        1 => any::<u8>().prop_map(Step::RevokeLease),
        5 => any::<u8>().prop_map(Step::Advance),
        1 => who.clone().prop_map(Step::Forget),
        1 => who.prop_map(Step::Retry),
        2 => any::<u8>().prop_map(Step::Renew),
    ]
}

struct InFlight {
    ticket: Ticket,
    who: u64,
    entry: EntryId,
    subject: u64,
    /// It fills the slot of its entry, and that has not been taken away since.
    in_slot: Option<Form>,
}

#[derive(Clone)]
struct Out {
    who: u64,
    ends: Instant,
    entry: EntryId,
    subject: u64,
}

/// What must be true, kept apart from the core.
#[derive(Default)]
struct Model {
    core: Core,
    elapsed: Duration,
    live: BTreeSet<u64>,
    generation: BTreeMap<u8, u64>,
    listeners: BTreeMap<(u64, Form), usize>,
    held: BTreeMap<u64, BTreeMap<EntryId, u64>>,
    barred: BTreeSet<u64>,
    flights: Vec<InFlight>,
    /// Released and neither revoked nor expired.
    out: BTreeMap<LeaseId, Out>,
    ended: BTreeSet<LeaseId>,
    next_lease: u64,
}

impl Model {
    fn now(&self, epoch: Instant) -> Instant {
        epoch + self.elapsed
    }

    fn id(&self, slot: u8) -> u64 {
        u64::from(slot) << 32 | self.generation.get(&slot).copied().unwrap_or(0)
    }

    fn take(&mut self, actions: Vec<Action>, now: Instant) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                Action::Issue { ticket, workload, entry, form, .. } => {
                    prop_assert!(self.live.contains(&workload.0), "issued for the dead");
                    let listeners = self.listeners.get(&(workload.0, form));
                    prop_assert!(listeners.is_some_and(|n| *n > 0), "nobody listens");
                    let subject = self.held.get(&workload.0).and_then(|h| h.get(&entry)).copied();
                    prop_assert!(subject.is_some(), "not held");
                    let same = |f: &InFlight| f.who == workload.0 && f.entry == entry;
                    let twice = self.flights.iter().any(|f| f.in_slot == Some(form) && same(f));
                    prop_assert!(!twice, "two issuances in flight for one slot");
                    let (who, subject) = (workload.0, subject.unwrap_or_default());
                    self.flights.push(InFlight { ticket, who, entry, subject, in_slot: Some(form) });
                }
                Action::Revoke { leases, .. } => {
                    prop_assert!(!leases.is_empty());
                    for lease in leases {
                        self.out.remove(&lease);
                        prop_assert!(self.ended.insert(lease), "ended twice");
                    }
                }
                Action::Expire { lease, .. } => {
                    let Out { ends, .. } = self.out.remove(&lease).expect("only a live lease expires");
                    prop_assert!(ends <= now, "expired early");
                    prop_assert!(self.ended.insert(lease), "ended twice");
                }
                Action::Show { .. } => {}
            }
        }
        Ok(())
    }

    fn lease(&mut self) -> LeaseId {
        self.next_lease += 1;
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&self.next_lease.to_be_bytes());
        LeaseId::from_bytes(bytes)
    }

    fn gone(&mut self, who: u64) {
        self.live.remove(&who);
        self.listeners.retain(|(listener, _), _| *listener != who);
        self.held.remove(&who);
    }

    #[expect(clippy::too_many_lines, reason = "one arm a step; splitting would hide the list")]
    fn apply(&mut self, step: &Step, epoch: Instant) -> Result<(), TestCaseError> {
        let now = self.now(epoch);
        match *step {
            Step::Admit(w) => {
                let id = self.id(w);
                self.core.admit(WorkloadId(id));
                self.live.insert(id);
            }
            Step::Entries(w, mask, revision) => {
                let id = self.id(w);
                let wanted: Vec<Wanted> = (0..3u8)
                    .filter(|bit| mask & (1 << bit) != 0)
                    .map(|bit| Wanted {
                        entry: entry(bit),
                        subject: u64::from(revision / 2),
                        revision: revision.into(),
                    })
                    .collect();
                if self.live.contains(&id) && !self.barred.contains(&id) {
                    self.held.insert(id, wanted.iter().map(|w| (w.entry.clone(), w.subject)).collect());
                }
                let actions = self.core.set_entries(WorkloadId(id), &wanted, Cause::EntryWithdrawn, now);
                self.disown_flights(id);
                self.take(actions, now)?;
            }
            Step::Listen(w, wit) => {
                let id = self.id(w);
                if self.live.contains(&id) {
                    *self.listeners.entry((id, form(wit))).or_default() += 1;
                }
                let actions = self.core.listen(WorkloadId(id), form(wit), now);
                self.take(actions, now)?;
            }
            Step::Unlisten(w, wit) => {
                let id = self.id(w);
                if let Some(n) = self.listeners.get_mut(&(id, form(wit))) {
                    *n = n.saturating_sub(1);
                }
                self.core.unlisten(WorkloadId(id), form(wit));
            }
            Step::Jwt(w, e) => {
                let id = self.id(w);
                match self.core.begin(WorkloadId(id), &entry(e)) {
                    Ok(ticket) => {
                        prop_assert!(self.live.contains(&id), "began for the dead");
                        let subject = self.held.get(&id).and_then(|h| h.get(&entry(e))).copied();
                        prop_assert!(subject.is_some(), "began for an entry that is not held");
                        let subject = subject.unwrap_or_default();
                        self.flights.push(InFlight {
                            ticket,
                            who: id,
                            entry: entry(e),
                            subject,
                            in_slot: None,
                        });
                    }
                    Err(_) => return Ok(()),
                }
            }
            Step::Answer(n, jitter) => self.answer(n, jitter, now)?,
            Step::Fail(n, written) => {
                if self.flights.is_empty() {
                    return Ok(());
                }
                let ticket = self.flights.remove(usize::from(n) % self.flights.len()).ticket;
                let lease = written.then(|| self.lease());
                let actions = self.core.fail(ticket, lease, now);
                if let Some(lease) = lease {
                    let told = actions
                        .iter()
                        .any(|a| matches!(a, Action::Revoke { leases, .. } if leases.contains(&lease)));
                    prop_assert!(told, "a written lease of a failed issuance was not revoked");
                }
                self.take(actions, now)?;
            }
            Step::Exit(w) => {
                let id = self.id(w);
                self.gone(id);
                let actions = self.core.end(WorkloadId(id), Cause::Exited);
                self.take(actions, now)?;
                prop_assert!(self.out.values().all(|out| out.who != id), "a lease outlived its process");
                *self.generation.entry(w).or_default() += 1;
            }
            Step::Bar(w) => {
                let id = self.id(w);
                if self.live.contains(&id) {
                    self.barred.insert(id);
                    self.held.remove(&id);
                }
                self.disown_flights(id);
                let actions = self.core.bar(WorkloadId(id));
                self.take(actions, now)?;
                prop_assert!(self.out.values().all(|out| out.who != id), "a barred process kept a lease");
            }
            Step::RevokeLease(n) => {
                let Some(lease) = self.out.keys().nth(usize::from(n) % self.out.len().max(1)).copied() else {
                    return Ok(());
                };
                let actions = self.core.revoke(lease);
                self.take(actions, now)?;
                prop_assert!(!self.out.contains_key(&lease), "the operator's lease lives on");
                self.resync();
            }
            Step::Advance(seconds) => {
                self.elapsed += Duration::from_secs(seconds.into());
                let now = self.now(epoch);
                let actions = self.core.on_timeout(now);
                self.take(actions, now)?;
                prop_assert!(self.out.values().all(|out| out.ends > now), "an expired lease is kept");
                prop_assert!(self.core.deadline().is_none_or(|at| at > now), "something due was left");
            }
            Step::Renew(mask) => {
                let picked: BTreeSet<LeaseId> =
                    self.out.keys().filter(|lease| lease.as_bytes()[15] & mask != 0).copied().collect();
                let actions = self.core.renew(&picked, now);
                let asked: BTreeSet<(u64, EntryId)> = actions
                    .iter()
                    .filter_map(|action| match action {
                        Action::Issue { workload, entry, .. } => Some((workload.0, entry.clone())),
                        _ => None,
                    })
                    .collect();
                self.take(actions, now)?;
                // Every one that a listener sees is being replaced.
                for (who, form) in self.listeners.iter().filter(|(_, n)| **n > 0).map(|(key, _)| *key) {
                    for (entry, lease) in self.core.shown(WorkloadId(who), form, now) {
                        let is_tainted = lease.is_some_and(|lease| picked.contains(&lease));
                        let same = |f: &InFlight| f.who == who && f.entry == entry;
                        let coming = self.flights.iter().any(|f| f.in_slot == Some(form) && same(f));
                        prop_assert!(!is_tainted || coming, "a tainted one is not being replaced");
                    }
                }
                prop_assert!(asked.len() <= picked.len());
            }
            Step::Retry(w) => {
                let actions = self.core.retry(WorkloadId(self.id(w)), now);
                self.take(actions, now)?;
            }
            Step::Forget(w) => {
                let id = self.id(w);
                if self.core.forget(WorkloadId(id)) {
                    prop_assert!(self.out.values().all(|out| out.who != id), "forgot a holder");
                    self.gone(id);
                    *self.generation.entry(w).or_default() += 1;
                }
            }
        }
        prop_assert_eq!(self.core.live_leases(), self.out.len());
        for out in self.out.values() {
            let held = self.held.get(&out.who).and_then(|h| h.get(&out.entry));
            prop_assert_eq!(held, Some(&out.subject), "a lease outlived its identity");
        }
        Ok(())
    }

    /// An issuance for an entry that is no longer held is doomed; it no longer occupies the slot.
    fn disown_flights(&mut self, who: u64) {
        let held = self.held.get(&who).cloned().unwrap_or_default();
        for flight in self.flights.iter_mut().filter(|f| f.who == who) {
            flight.in_slot = flight.in_slot.filter(|_| held.get(&flight.entry) == Some(&flight.subject));
        }
    }

    /// After an operator took an entry, ask the core what is still held: the model only checks that
    /// nothing outside that is ever issued.
    fn resync(&mut self) {
        for id in &self.live {
            let left: BTreeSet<EntryId> = self.core.held(WorkloadId(*id)).into_iter().collect();
            if let Some(held) = self.held.get_mut(id) {
                held.retain(|entry, _| left.contains(entry));
            }
        }
        for id in self.live.clone() {
            self.disown_flights(id);
        }
    }

    fn answer(&mut self, n: u8, jitter: u32, now: Instant) -> Result<(), TestCaseError> {
        if self.flights.is_empty() {
            return Ok(());
        }
        let InFlight { ticket, who, entry, subject, .. } =
            self.flights.remove(usize::from(n) % self.flights.len());
        let lease = self.lease();
        match self.core.complete(ticket, lease, now + TTL, Jitter(jitter), now) {
            Completion::Release(actions) => {
                prop_assert!(self.live.contains(&who), "released to the dead");
                prop_assert!(!self.barred.contains(&who), "released to the barred");
                self.out.insert(lease, Out { who, ends: now + TTL, entry, subject });
                self.take(actions, now)
            }
            Completion::RevokedAtBirth(_, actions) => {
                let told = actions
                    .iter()
                    .any(|a| matches!(a, Action::Revoke { leases, .. } if leases.contains(&lease)));
                prop_assert!(told, "revoked at birth without a word to the verifiers");
                self.take(actions, now)
            }
        }
    }
}

/// Any moment will do: histories only look at differences.
fn start() -> Instant {
    SystemClock.monotonic()
}

fn form(wit: bool) -> Form {
    if wit { Form::Wit } else { Form::X509 }
}

fn entry(n: u8) -> EntryId {
    EntryId::new(format!("entry-{n}"))
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let epoch = start();
    let mut model = Model::default();
    steps.iter().try_for_each(|step| model.apply(step, epoch))
}

fn histories() -> u32 {
    if std::env::var_os("MAYFLY_FULL").is_some() { 100_000 } else { 2_000 }
}

mod tests {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: histories(), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_history_breaks_a_rule(steps in proptest::collection::vec(step(), 1..80)) {
            run(&steps)?;
        }
    }
}
