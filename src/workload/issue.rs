//! Issuance of what is kept fresh, X.509-SVIDs and WIT-SVIDs: mint → commit → look again → release.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_attestors::{AttestError, Attestation, Process, failpoint};

use super::state::Member;
use super::{Refusal, Shared, State, lock};
use crate::audit::{self, Event};
use crate::clock::unix_seconds;
use crate::id::{EntryId, LeaseId};
use crate::issue;
use crate::issue::wit::MintedWit;
use crate::issue::x509::MintedX509;
use crate::lease::{Completion, Form, Jitter, Ticket, WorkloadId};
use crate::ledger::{Committed, Row};
use crate::policy::{Kind, Permit, PermitRequest};
use crate::registration::Identity;

/// Everything an issuance needs to know of its workload, copied out of the state lock.
pub(super) struct Subject {
    pub(super) process: Arc<Process>,
    pub(super) attestation: Arc<Attestation>,
    pub(super) attested_at: Instant,
    pub(super) identity: Identity,
}

/// Why a process does not count as the attested one just now.
#[derive(Debug)]
pub(super) enum Doubt {
    /// It is gone, or another program, user or cgroup, or it cannot be read any more. What that makes of it is for the
    /// second look to find out.
    Changed,
    /// We had nothing to look with: says nothing about the process.
    NotSeen,
}

impl From<Doubt> for Refusal {
    fn from(doubt: Doubt) -> Self {
        match doubt {
            // Not yet "no identity": also a program that was only moved or linked anew looks changed at first.
            Doubt::Changed => Self::Attest(AttestError::Unanswered {
                kind: "process",
                why: "it is not what it was and is being looked at again".to_owned(),
            }),
            Doubt::NotSeen => Self::Attest(AttestError::Descriptors),
        }
    }
}

/// One SVID that the lease core has asked for.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) ticket: Ticket,
    pub(super) entry: EntryId,
    pub(super) form: Form,
    pub(super) renewal: bool,
}

/// A credential that nobody may see yet.
pub(super) enum Minted {
    X509(MintedX509),
    Wit(MintedWit),
}

impl Minted {
    fn row(&self, process: &Process) -> Row {
        match self {
            Self::X509(minted) => minted.row(process.key(), process.uid()),
            Self::Wit(minted) => minted.row(process.key(), process.uid()),
        }
    }

    /// The print of a token, for the audit log.
    fn print(&self) -> Option<audit::TokenPrint> {
        match self {
            Self::X509(_) => None,
            Self::Wit(minted) => Some(audit::TokenPrint::of_sha256(minted.token_sha256().as_ref())),
        }
    }
}

/// One that is minted and not yet released.
struct Draft {
    order: Order,
    subject: Subject,
    minted: Minted,
    row: Row,
}

/// So many of one workload are minted by one thread, looked at and written down together: enough to spread the
/// cost of a look and a commit, few enough that another workload's first one never waits for long.
const ORDERS_AT_ONCE: usize = 16;

impl Shared {
    /// Issues what the core has asked for one workload.
    pub(super) fn spawn_issue(self: &Arc<Self>, id: WorkloadId, orders: Vec<Order>) {
        let mut orders = orders.into_iter();
        loop {
            let some: Vec<Order> = orders.by_ref().take(ORDERS_AT_ONCE).collect();
            if some.is_empty() {
                return;
            }
            // A renewal is due by itself, whose call it may be in which that shows.
            let is_first = some.iter().all(|order| !order.renewal);
            let trace = audit::trace::current().filter(|_| is_first);
            let shared = Arc::clone(self);
            self.spawn(async move { shared.issue(id, some, trace).await });
        }
    }

    /// `trace`: of the call by which the workload was taken in.
    async fn issue(self: Arc<Self>, id: WorkloadId, orders: Vec<Order>, trace: Option<audit::Trace>) {
        let drafts = audit::trace::within(trace, || self.mint_all(id, orders));
        if drafts.is_empty() {
            return;
        }
        let events = drafts.iter().map(|d| {
            let event = issue_event(&d.subject, &d.row, d.order.renewal, d.minted.print());
            (d.row.clone(), event)
        });
        match audit::trace::scope(trace, self.write_down(events.collect())).await {
            Ok(committed) => self.release_all(id, drafts, &committed),
            Err((refusal, written)) => {
                tracing::warn!(error = %refusal, "SVIDs could not be written down");
                self.abandon_all(id, drafts, written);
            }
        }
    }

    /// Looks at the process once, and mints for it; what cannot be minted is given back.
    fn mint_all(self: &Arc<Self>, id: WorkloadId, orders: Vec<Order>) -> Vec<Draft> {
        let mut looked: Option<Result<(), Doubt>> = None;
        let mut drafts = Vec::with_capacity(orders.len());
        for order in orders {
            let Some(subject) = self.subject(id, &order.entry) else {
                self.abandon(&order, id, None);
                continue;
            };
            let same = looked.get_or_insert_with(|| {
                // First of all nothing more is pushed to it, not even the CRL that the rest brings about.
                self.verify(&subject).inspect_err(|why| self.doubt(id, why))
            });
            if same.is_err() {
                self.abandon(&order, id, None);
                continue;
            }
            match self.mint(order.form, &subject) {
                Ok(minted) => {
                    let row = minted.row(&subject.process);
                    drafts.push(Draft { order, subject, minted, row });
                }
                Err(refusal) => {
                    tracing::warn!(entry = %order.entry, form = ?order.form, error = %refusal, "an SVID could not be minted");
                    self.abandon(&order, id, None);
                }
            }
        }
        drafts
    }

    pub(super) fn subject(&self, id: WorkloadId, entry: &EntryId) -> Option<Subject> {
        let state = self.lock();
        let member = state.members.get(&id)?;
        Some(Subject {
            process: Arc::clone(&member.process),
            attestation: Arc::clone(&member.attestation),
            attested_at: member.attested_at,
            identity: member.identity(entry)?.clone(),
        })
    }

    /// That the process is alive and still the program, user and cgroup that were attested. Nothing leaves
    /// after any other answer.
    pub(super) fn verify(&self, subject: &Subject) -> Result<(), Doubt> {
        self.compare(&subject.process, &subject.attestation)
    }

    pub(super) fn compare(&self, process: &Process, attestation: &Attestation) -> Result<(), Doubt> {
        if !process.is_alive() {
            return Err(Doubt::Changed);
        }
        match self.parts.attestors.fingerprint(process) {
            Ok(now_is) if now_is == *attestation.fingerprint() => Ok(()),
            Err(error) if error.is_passing() => Err(Doubt::NotSeen),
            Ok(_) | Err(_) => Err(Doubt::Changed),
        }
    }

    /// Draws the consequence. One that could not be looked at keeps what it has: whoever waits tries again.
    pub(super) fn doubt(self: &Arc<Self>, id: WorkloadId, why: &Doubt) {
        match why {
            Doubt::Changed => self.suspect(id),
            Doubt::NotSeen => {}
        }
    }

    /// Whether the user has room for one more lease. Revoked ones count until they expire: each is an entry
    /// in every CRL that goes out.
    pub(super) fn check_user(&self, state: &State, uid: u32) -> Result<(), Refusal> {
        let live = state.leases_by_uid.get(&uid).copied().unwrap_or_default();
        let charged = live + lock(&self.denied).of_uid(uid);
        if charged < self.settings.leases_per_uid { Ok(()) } else { Err(Refusal::TooManyLeases) }
    }

    /// [`Self::compare`], and no tracer has taken hold of any thread since (B06). Reads every thread, so it is
    /// asked once, last, before a credential leaves, and by the second look.
    pub(super) fn verify_closely(&self, process: &Process, attestation: &Attestation) -> Result<(), Doubt> {
        self.compare(process, attestation)?;
        if attestation.posture().traced {
            return Ok(());
        }
        match self.parts.attestors.is_traced(process) {
            Ok(false) => Ok(()),
            Err(error) if error.is_passing() => Err(Doubt::NotSeen),
            Ok(true) | Err(_) => Err(Doubt::Changed),
        }
    }

    fn mint(&self, form: Form, subject: &Subject) -> Result<Minted, Refusal> {
        self.check_user(&self.lock(), subject.process.uid())?;
        match form {
            Form::X509 => self.mint_x509(subject).map(Minted::X509),
            Form::Wit => self.mint_wit(subject).map(Minted::Wit),
        }
    }

    /// Asks policy, and says in the record when it says no.
    pub(super) fn permit(&self, request: PermitRequest, subject: &Subject) -> Result<Permit, Refusal> {
        let Subject { process, attestation, attested_at, identity } = subject;
        let who = || self.facts(process, attestation, *attested_at, identity);
        self.parts.policy.permit(request, who, self.parts.clock.wall()).map_err(|not_given| {
            if let Some(decision) = &not_given.decision {
                let spiffe_id = Some(identity.spiffe_id.to_string());
                let agent = || super::seen::agent(process, attestation, spiffe_id);
                self.note_denied_of(process, "policy", &super::facts::why(decision), agent);
            }
            Refusal::NotEntitled
        })
    }

    fn mint_x509(&self, subject: &Subject) -> Result<MintedX509, Refusal> {
        let identity = &subject.identity;
        let entry = &identity.entry;
        let request = PermitRequest {
            entry: entry.id.clone(),
            spiffe_id: identity.spiffe_id.clone(),
            kind: Kind::X509,
            ttl: self.ttl_of(Kind::X509, identity),
            audience: Vec::new(),
            allowed_audiences: None,
            dns_names: entry.terms.dns_names.clone(),
            hint: identity.hint.clone(),
        };
        let permit = self.permit(request, subject)?;
        let now = self.parts.clock.wall();
        let authorities = self.parts.authorities.current();
        issue::x509::mint(permit, authorities.active_x509(), new_lease()?, now).map_err(Refusal::Authority)
    }

    /// Ledger and audit log, both at once; a credential leaves only when both have it. The error says
    /// whether the ledger has the rows nevertheless.
    pub(super) async fn write_down(&self, rows: Vec<(Row, Event)>) -> Result<Committed, (Refusal, bool)> {
        let (rows, events): (Vec<Row>, Vec<Event>) = rows.into_iter().unzip();
        failpoint::hit("issue.before_commit");
        let (committed, recorded) =
            tokio::join!(self.parts.ledger.commit(rows), self.parts.audit.record(events));
        let committed = committed.map_err(|e| (Refusal::Ledger(e), false))?;
        failpoint::hit("issue.after_commit");
        recorded.map_err(|e| (Refusal::Audit(e), true))?;
        Ok(committed)
    }

    fn release_all(self: &Arc<Self>, id: WorkloadId, drafts: Vec<Draft>, committed: &Committed) {
        failpoint::hit("issue.before_release");
        if let Err(why) = self.verify_all(&drafts) {
            self.doubt(id, &why);
            self.abandon_all(id, drafts, true);
            return;
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut actions = Vec::new();
        let mut state = self.lock();
        for Draft { order, minted, row, .. } in drafts {
            let (lease, ends) = (row.id, now + remaining(&row, wall));
            state.add_row(row);
            let Some(shelve) = opened(minted, committed) else {
                // Not in this commit: it goes the way of one that failed after it was written.
                actions.extend(state.core.fail(order.ticket, Some(lease), now));
                continue;
            };
            match state.core.complete(order.ticket, lease, ends, Jitter(random_u32()), now) {
                Completion::Release(more) => {
                    if let Some(member) = state.members.get_mut(&id) {
                        shelve(member);
                    }
                    actions.extend(more);
                }
                // Dropping the SVID wipes its key.
                Completion::RevokedAtBirth(_, more) => actions.extend(more),
            }
        }
        // All of them at once: a subscriber is shown one state, not one for each identity.
        self.perform(&mut state, actions, now);
    }

    /// One close look for each attestation that the drafts rest on; that is one, unless a second look came between.
    fn verify_all(&self, drafts: &[Draft]) -> Result<(), Doubt> {
        let mut seen: Option<&Arc<Attestation>> = None;
        for Draft { subject, .. } in drafts {
            if seen.is_none_or(|seen| !Arc::ptr_eq(seen, &subject.attestation)) {
                self.verify_closely(&subject.process, &subject.attestation)?;
                seen = Some(&subject.attestation);
            }
        }
        Ok(())
    }

    fn abandon_all(self: &Arc<Self>, id: WorkloadId, drafts: Vec<Draft>, written: bool) {
        for draft in drafts {
            self.abandon(&draft.order, id, written.then_some(draft.row));
        }
    }

    /// Gives a ticket back. `written` is the row when the ledger has it already: it is revoked.
    fn abandon(self: &Arc<Self>, order: &Order, id: WorkloadId, written: Option<Row>) {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        let lease = written.as_ref().map(|row| row.id);
        if let Some(row) = written {
            state.add_row(row);
        }
        if let Some(member) = state.members.get_mut(&id) {
            member.set_failing(order.form, true);
        }
        let actions = state.core.fail(order.ticket, lease, now);
        self.perform(&mut state, actions, now);
        self.forget_idle(&mut state, id);
    }
}

/// Puts an open credential where its subscribers find it.
type Shelve = Box<dyn FnOnce(&mut Member)>;

/// Opens a credential, and says how it gets to its workload; `None` when that commit did not write it.
fn opened(minted: Minted, committed: &Committed) -> Option<Shelve> {
    match minted {
        Minted::X509(minted) => {
            let svid = minted.release(committed)?;
            Some(Box::new(move |member| member.x509.put(svid.id, svid)))
        }
        Minted::Wit(minted) => {
            let svid = minted.release(committed)?;
            Some(Box::new(move |member| member.wits().put(svid.id, svid)))
        }
    }
}

/// The audit event of an issuance. `token`: its print, unless it is a certificate.
pub(super) fn issue_event(
    subject: &Subject,
    row: &Row,
    renewal: bool,
    token: Option<audit::TokenPrint>,
) -> Event {
    let agent = super::seen::agent(&subject.process, &subject.attestation, Some(row.spiffe_id.clone()));
    let credential = audit::Credential { token, ..audit::Credential::of(row) };
    if renewal {
        Event::CredentialRenew { agent, credential }
    } else {
        Event::CredentialIssue { agent, credential }
    }
}

pub(super) fn remaining(row: &Row, now: std::time::SystemTime) -> Duration {
    Duration::from_secs(row.not_after.saturating_sub(unix_seconds(now)))
}

pub(super) fn new_lease() -> Result<LeaseId, Refusal> {
    issue::new_lease().map_err(|error| Refusal::Authority(error.into()))
}

/// Spreads timers; a failing generator only makes it less random.
pub(super) fn random_u32() -> u32 {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).ok();
    u32::from_le_bytes(bytes)
}
