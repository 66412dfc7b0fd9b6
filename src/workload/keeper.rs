//! The keeper: one thread that lets authorities live their lives, by age and by order.
//!
//! Each step goes journal → verifiers → signers: it is written down, then published by the revoker (a new X.509
//! authority together with its first CRL), and only then does anybody sign with it. What a tainted authority signed is
//! issued again at once; an authority that is to leave does so when no open stream was last given anything it signed.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::revoker::Job;
use super::state::Member;
use super::{Shared, Workloads};
use crate::audit::{self, Event};
use crate::authority::life::{Moment, Record};
use crate::authority::{AuthorityKind, Change, Custody, LoadError, State};
use crate::clock::unix_seconds;
use crate::id::LeaseId;
use crate::ledger::Kind;

/// What an operator may order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Order {
    /// Make a successor.
    Prepare(AuthorityKind),
    /// Let the prepared one sign.
    Activate {
        /// Of that kind.
        kind: AuthorityKind,
        /// Before verifiers had their time to learn it.
        hurry: bool,
    },
    /// Replace everything that this one signed.
    Taint(String),
    /// Take this one out of the bundle, when everything it signed has been replaced.
    Revoke(String),
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It does not fit, or the journal or a key cannot be written.
    #[error(transparent)]
    Step(#[from] LoadError),
    /// Verifiers could not be told; it is tried again.
    #[error("it is written down and not published yet: {0}")]
    Unpublished(String),
    /// The agent is starting or stopping.
    #[error("the agent is starting or stopping")]
    Unavailable,
}

/// An order on its way.
#[derive(Debug)]
pub(super) struct Request {
    order: Order,
    by: Option<audit::Agent>,
    trace: Option<audit::Trace>,
    answer: oneshot::Sender<Result<Record, OrderError>>,
}

impl Workloads {
    /// Begins to keep the authorities. What is in force counts as published from now on: call it when callers are
    /// let in.
    pub fn keep(&self, custody: Custody) -> std::io::Result<()> {
        let (orders, queue) = mpsc::channel();
        let began = self.0.parts.clock.monotonic();
        let weak = Arc::downgrade(&self.0);
        let mut keeper = Keeper {
            shared: weak,
            custody,
            began,
            waiting: BTreeMap::new(),
            replaced: BTreeMap::new(),
            unpublished: false,
        };
        self.0.records.send_replace(Arc::from(keeper.custody.life().records()));
        keeper.custody.mark_published(Duration::ZERO);
        // Kept once, by whoever puts the agent together.
        self.0.orders.set(orders).ok();
        std::thread::Builder::new().name("keeper".to_owned()).spawn(move || keeper.run(&queue))?;
        Ok(())
    }

    /// Carries out an operator's order; answers where the authority stands then. The answer to
    /// [`Order::Revoke`] comes when it is out.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn order(&self, order: Order, by: Option<audit::Agent>) -> Result<Record, OrderError> {
        let (answer, answered) = oneshot::channel();
        let orders = self.0.orders.get().ok_or(OrderError::Unavailable)?;
        let trace = audit::trace::current();
        orders.send(Request { order, by, trace, answer }).map_err(|_gone| OrderError::Unavailable)?;
        answered.await.map_err(|_gone| OrderError::Unavailable)?
    }

    /// What is amiss with the upstream, if anything is.
    pub fn upstream_trouble(&self) -> Option<String> {
        self.0.upstream.borrow().clone()
    }

    /// Every authority and where it stands, those revoked lately included.
    pub fn authority_records(&self) -> Arc<[Record]> {
        Arc::clone(&self.0.records.borrow())
    }
}

type Answer = oneshot::Sender<Result<Record, OrderError>>;

struct Keeper {
    shared: Weak<Shared>,
    custody: Custody,
    began: Instant,
    /// Who waits for an authority to be out.
    waiting: BTreeMap<String, Vec<Answer>>,
    /// Since when an authority that is to leave has been leaving, and since when nobody holds what it signed.
    replaced: BTreeMap<String, (Instant, Option<Instant>)>,
    /// The journal is ahead of what verifiers know.
    unpublished: bool,
}

impl Keeper {
    fn run(mut self, orders: &mpsc::Receiver<Request>) {
        let mut patience = Duration::ZERO;
        loop {
            let request = orders.recv_timeout(patience);
            let Some(shared) = self.shared.upgrade() else { return };
            match request {
                Ok(request) => self.obey(&shared, request),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            patience = self.tend(&shared);
        }
    }

    fn obey(&mut self, shared: &Arc<Shared>, request: Request) {
        let Request { order, by, trace, answer } = request;
        let now = self.moment(shared);
        let done = match &order {
            Order::Prepare(kind) => self.custody.prepare(*kind, now.wall),
            Order::Activate { kind, hurry } => self.custody.activate(*kind, *hurry, now),
            Order::Taint(id) => self.custody.taint(id, now.wall),
            Order::Revoke(id) => self.custody.revoke(id, now.wall).map(|(change, _)| change),
        };
        let change = match done {
            Ok(change) => change,
            Err(error) => {
                // Whoever asked may be gone.
                answer.send(Err(error.into())).ok();
                return;
            }
        };
        audit::trace::within(trace, || note(shared, &change, by));
        let published = self.publish(shared);
        let record = change.record;
        if record.state == State::Tainted {
            replace(shared, &record.id);
        }
        match published {
            Err(why) => drop(answer.send(Err(OrderError::Unpublished(why)))),
            Ok(()) if record.revoking_since.is_some() => {
                self.waiting.entry(record.id).or_default().push(answer);
            }
            Ok(()) => drop(answer.send(Ok(record))),
        }
    }

    /// Does what is due; answers how long nothing will be.
    fn tend(&mut self, shared: &Arc<Shared>) -> Duration {
        if self.unpublished && self.publish(shared).is_err() {
            return RETRY;
        }
        match self.custody.follow(self.moment(shared)) {
            Ok(false) => {}
            Ok(true) if self.publish(shared).is_ok() => {}
            Ok(true) => return RETRY,
            Err(error) => {
                self.complain(shared, &error);
                return RETRY;
            }
        }
        loop {
            match self.custody.tend(self.moment(shared)) {
                Ok(Some(change)) => {
                    if change.hurried {
                        tracing::warn!(
                            id = change.record.id,
                            "this authority signs before verifiers had their time to learn it: the former one ends"
                        );
                    }
                    note(shared, &change, None);
                    if self.publish(shared).is_err() {
                        return RETRY;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.complain(shared, &error);
                    return RETRY;
                }
            }
        }
        shared.parts.readiness.clear(CONCERN);
        self.tell_of_upstream(shared);
        let leaving = self.let_leave(shared);
        let next = self.custody.next(self.moment(shared)).unwrap_or(LOOK).min(LOOK);
        if leaving { next.min(LEAVING) } else { next }
    }

    /// An upstream's outage is not ours until little is left of the certificate that it gave.
    fn tell_of_upstream(&self, shared: &Shared) {
        let now = unix_seconds(shared.parts.clock.wall());
        let told = self.custody.trouble(now).map(|trouble| {
            let left = trouble.until.saturating_sub(now);
            let told = format!("{}; this node can sign for another {left} s", trouble.why);
            if trouble.late {
                shared.parts.readiness.raise(UPSTREAM, told.clone());
            } else {
                shared.parts.readiness.clear(UPSTREAM);
            }
            told
        });
        if told.is_none() {
            shared.parts.readiness.clear(UPSTREAM);
        }
        shared.upstream.send_replace(told);
    }

    /// A successor that cannot be made is no alarm while there is half a life left.
    fn complain(&self, shared: &Shared, error: &LoadError) {
        let now = unix_seconds(shared.parts.clock.wall());
        let life = self.custody.life();
        let left = life.kinds().iter().filter_map(|kind| life.active(*kind));
        let left = left.map(|active| active.not_after.saturating_sub(now)).min().unwrap_or(0);
        tracing::warn!(%error, seconds_left = left, "an authority's next step cannot be taken");
        if left < NEAR_END.as_secs() {
            let why = format!("{error}; the active authority ends in {left} s and nothing is issued then");
            shared.parts.readiness.raise(CONCERN, why);
        }
    }

    /// Takes those out that nobody holds anything of. Whether any is still waited for.
    fn let_leave(&mut self, shared: &Arc<Shared>) -> bool {
        let leaving: Vec<String> = self.custody.life().leaving().map(|one| one.id.clone()).collect();
        for id in &leaving {
            let now = shared.parts.clock.monotonic();
            let holders = holders(shared, id);
            let (since, replaced) = self.replaced.entry(id.clone()).or_insert((now, None));
            if holders == 0 {
                replaced.get_or_insert(now);
            } else {
                *replaced = None;
            }
            let settled = replaced.is_some_and(|at| now.saturating_duration_since(at) >= SETTLE);
            let late = now.saturating_duration_since(*since) >= PATIENCE;
            if !settled && !late {
                continue;
            }
            if !settled {
                tracing::warn!(
                    id,
                    holders,
                    "an authority leaves although some have not taken their new SVID"
                );
            }
            self.take_out(shared, id);
        }
        self.custody.life().leaving().next().is_some()
    }

    fn take_out(&mut self, shared: &Arc<Shared>, id: &str) {
        let done = self.custody.finish(id, self.moment(shared).wall);
        let answers = self.waiting.remove(id).unwrap_or_default();
        self.replaced.remove(id);
        let result = done.map_err(|error| error.to_string()).and_then(|change| {
            note(shared, &change, None);
            self.publish(shared).map(|()| change.record)
        });
        for answer in answers {
            answer.send(result.clone().map_err(OrderError::Unpublished)).ok();
        }
    }

    /// Verifiers first, then signers; nothing counts as published before.
    fn publish(&mut self, shared: &Shared) -> Result<(), String> {
        let published = self.put_in_force(shared);
        self.unpublished = published.is_err();
        match &published {
            Ok(()) => self.custody.mark_published(self.moment(shared).up),
            Err(why) => shared.parts.readiness.raise(CONCERN, why.clone()),
        }
        shared.records.send_replace(Arc::from(self.custody.life().records()));
        published
    }

    fn put_in_force(&self, shared: &Shared) -> Result<(), String> {
        let set = self.custody.set().ok_or("there is not exactly one active authority of each kind")?;
        let (done, answer) = mpsc::sync_channel(1);
        let job = Job::Authorities { set: Arc::new(set), done };
        shared.jobs.send(job).map_err(|_gone| "the revoker has stopped")?;
        answer.recv().map_err(|_gone| "the revoker has stopped")?
    }

    fn moment(&self, shared: &Shared) -> Moment {
        let clock = &shared.parts.clock;
        let up = clock.monotonic().saturating_duration_since(self.began);
        Moment { wall: unix_seconds(clock.wall()), up }
    }
}

/// Issues everything again that this authority signed and somebody holds.
fn replace(shared: &Arc<Shared>, issuer: &str) {
    let now = shared.parts.clock.monotonic();
    let mut state = shared.lock();
    let signed = state.rows.values().filter(|row| row.kind != Kind::Jwt && row.issuer == issuer);
    let leases = signed.map(|row| row.id).collect();
    let actions = state.core.renew(&leases, now);
    shared.perform(&mut state, actions, now);
}

/// How many open streams were last given an SVID of this authority, or are about to be.
fn holders(shared: &Shared, issuer: &str) -> usize {
    let state = shared.lock();
    let signed = |lease: &LeaseId| state.rows.get(lease).is_some_and(|row| row.issuer == *issuer);
    let given = state.given.values().filter(|leases| leases.iter().any(&signed)).count();
    let shows = |member: &&Member| {
        member.x509.shows(signed) || member.wit.as_ref().is_some_and(|wit| wit.shows(signed))
    };
    given + state.members.values().filter(shows).count()
}

fn note(shared: &Shared, change: &Change, by: Option<audit::Agent>) {
    let record = &change.record;
    shared.parts.audit.note(vec![Event::AuthorityStep {
        kind: record.kind,
        id: record.id.clone(),
        state: record.state,
        leaving: record.revoking_since.is_some(),
        hurried: change.hurried,
        by,
    }]);
}

const CONCERN: &str = "authorities";
const UPSTREAM: &str = "upstream";
/// How long after a failure the next attempt follows.
const RETRY: Duration = Duration::from_secs(1);
/// How often the clock is looked at when nothing is due: it may have been set.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked whether an authority can leave.
const LEAVING: Duration = Duration::from_millis(20);
/// How long a process has to take a new SVID into use after it was handed over, before the old authority leaves.
const SETTLE: Duration = Duration::from_millis(if cfg!(feature = "failpoints") { 50 } else { 1_000 });
/// How long an authority that is to leave waits for streams that do not read.
const PATIENCE: Duration = Duration::from_secs(60);
/// From when on a missing successor is an alarm.
const NEAR_END: Duration = Duration::from_secs(24 * 3600);
