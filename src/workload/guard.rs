//! Policy on the Workload API: in which forms a live workload may be given its identities, now and after every change of
//! the policy set or end of a permit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{Member, State};
use super::{Admission, Shared, Workloads};
use crate::id::{EntryId, LeaseId, SpiffeId};
use crate::lease::{Action, Cause, Form, WorkloadId};
use crate::ledger::{Kind as RowKind, Row};
use crate::policy::{Explanation, Fetchable, IdentityFacts, Kind, PolicySet, Question, WorkloadFacts};
use crate::registration::Identity;

/// The form of a lease that stands in a slot; what is made on demand, or for a task, does not.
pub(super) fn form_of(row: &Row) -> Option<Form> {
    match row.kind {
        _ if row.task.is_some() => None,
        RowKind::X509 => Some(Form::X509),
        RowKind::Wit => Some(Form::Wit),
        RowKind::Jwt | RowKind::Access => None,
    }
}

impl Shared {
    /// Says to the core what a workload matches and in which forms policy gives it. Everything that follows from
    /// matching goes through here, so that nothing matched is ever held undecided.
    pub(super) fn hold_matched(
        self: &Arc<Self>,
        state: &mut State,
        id: WorkloadId,
        cause: Cause,
        now: Instant,
    ) -> Vec<Action> {
        let set = self.parts.policy.in_force();
        let Some(member) = state.members.get_mut(&id) else { return Vec::new() };
        member.fetch = is_guarded(&set).then(|| self.fetchable(&set, member));
        let closed = closed(member.fetch.as_deref().unwrap_or_default());
        let wanted = member.wanted();
        // First what is closed: an entry that is new must not be issued in a form that is not given.
        let mut actions = state.core.close(id, &closed, now);
        actions.extend(state.core.set_entries(id, &wanted, cause, now));
        if is_guarded(&set) {
            let lost = self.tokens_lost(&set, state, id);
            actions.extend(state.core.take_back(&lost, Cause::Policy, now));
        }
        actions
    }

    fn fetchable(&self, set: &PolicySet, member: &Member) -> Vec<(EntryId, Fetchable)> {
        let now = self.parts.clock.wall();
        let each = member.identities.iter().map(|identity| {
            let who = self.facts(&member.process, &member.attestation, member.attested_at, identity);
            let ttl = |kind| self.ttl_of(kind, identity);
            (identity.entry.id.clone(), set.fetchable(&who, &facts_of(identity, Kind::X509), ttl, now))
        });
        each.collect()
    }

    /// The lifetime that a credential of an identity is asked for with.
    pub(super) fn ttl_of(&self, kind: Kind, identity: &Identity) -> Duration {
        let terms = &identity.entry.terms;
        match kind {
            Kind::X509 => terms.x509_ttl.unwrap_or(self.settings.x509_ttl),
            Kind::Jwt => terms.jwt_ttl.unwrap_or(self.settings.jwt_ttl),
            Kind::Wit => terms.wit_ttl.unwrap_or(self.settings.wit_ttl),
        }
    }

    /// Live JWT-SVIDs of a workload that policy would not give for their audiences any more.
    fn tokens_lost(&self, set: &PolicySet, state: &State, id: WorkloadId) -> Vec<LeaseId> {
        let leases = state.core.leases_of(id).into_iter().filter_map(|lease| state.rows.get(&lease.id));
        let tokens = leases.filter(|row| row.kind == RowKind::Jwt && row.task.is_none());
        tokens.filter(|row| !self.gives_token(set, state, id, row)).map(|row| row.id).collect()
    }

    /// Whether policy gives a workload the JWT-SVID of that row. One whose identity it has not any more is not ours to
    /// judge: the core has taken it back.
    pub(super) fn gives_token(&self, set: &PolicySet, state: &State, id: WorkloadId, row: &Row) -> bool {
        !is_guarded(set) || self.token_question(state, id, row).is_some_and(|question| set.gives(&question))
    }

    /// Whether a freeze stops the JWT-SVID of that row from being handed over. One that is out is suspended by it, and stays.
    pub(super) fn holds_token_back(&self, set: &PolicySet, state: &State, id: WorkloadId, row: &Row) -> bool {
        let stops = |question: Question| set.freezes().stops(&question);
        !set.freezes().is_empty() && self.token_question(state, id, row).is_none_or(stops)
    }

    fn token_question(&self, state: &State, id: WorkloadId, row: &Row) -> Option<Question> {
        let member = state.members.get(&id)?;
        let identity = member.identity(&row.entry)?;
        let who = self.facts(&member.process, &member.attestation, member.attested_at, identity);
        let audiences = row.audience.iter().cloned().collect();
        let wanted = IdentityFacts { audiences, ..facts_of(identity, Kind::Jwt) };
        Some(Question::fetch(who, wanted, self.ttl_of(Kind::Jwt, identity), self.parts.clock.wall()))
    }
}

/// What policy makes of one identity in one form.
#[derive(Debug)]
pub struct Fetched {
    /// By which entry.
    pub entry: EntryId,
    /// In which form.
    pub kind: Kind,
    /// Why, and what would have to change. Of a JWT-SVID: for no audience in particular.
    pub explanation: Explanation,
    /// Whether some other audience of a JWT-SVID may be given.
    pub for_some_audience: bool,
}

impl Workloads {
    /// In which forms policy gives an admitted process one of its identities.
    pub fn may_fetch(&self, admission: &Admission, entry: &EntryId) -> Fetchable {
        let state = self.0.lock();
        let member = state.members.get(&admission.id());
        member.map_or(Fetchable::NONE, |member| member.may_fetch(entry))
    }
}

impl Shared {
    /// What policy makes of these identities of one process; empty without a policy set.
    pub(super) fn explain_fetch(
        &self,
        identities: &[Identity],
        who: impl Fn(&Identity) -> WorkloadFacts,
    ) -> Vec<Fetched> {
        let set = self.parts.policy.in_force();
        if !set.is_loaded() {
            return Vec::new();
        }
        let now = self.parts.clock.wall();
        let each = identities.iter().flat_map(|identity| {
            [Kind::X509, Kind::Jwt, Kind::Wit].map(|kind| (identity, who(identity), kind))
        });
        let set = &set;
        each.map(|(identity, who, kind)| {
            let ttl = |kind| self.ttl_of(kind, identity);
            let some = kind == Kind::Jwt && set.fetchable(&who, &facts_of(identity, kind), ttl, now).jwt;
            let question = Question::fetch(who, facts_of(identity, kind), self.ttl_of(kind, identity), now);
            let explanation = set.explain(&question, crate::policy::EvaluationId::from_random([0; 16]));
            Fetched { entry: identity.entry.id.clone(), kind, explanation, for_some_audience: some }
        })
        .collect()
    }
}

/// Whether anything could be in the way of what entries give.
fn is_guarded(set: &PolicySet) -> bool {
    set.is_loaded() || !set.freezes().is_empty()
}

fn facts_of(identity: &Identity, kind: Kind) -> IdentityFacts {
    let spiffe_id: SpiffeId = identity.spiffe_id.clone();
    IdentityFacts { spiffe_id, kind, audiences: BTreeSet::new(), entry: identity.entry.id.clone() }
}

fn closed(fetch: &[(EntryId, Fetchable)]) -> BTreeSet<(EntryId, Form)> {
    let forms = fetch.iter().flat_map(|(entry, may)| {
        [(Form::X509, may.x509), (Form::Wit, may.wit)].map(|(form, open)| (entry, form, open))
    });
    forms.filter(|(.., open)| !open).map(|(entry, form, _)| (entry.clone(), form)).collect()
}
