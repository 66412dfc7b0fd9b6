//! JWT issuance: one token for each identity and call, never shared, never cached.

use std::sync::Arc;

use mayfly_attestors::failpoint;
use tokio::sync::oneshot;

use super::issue::{Subject, issue_event, new_lease, remaining};
use super::{Admission, Refusal, Shared, Workloads};
use crate::audit::{Event, TokenPrint};
use crate::id::{EntryId, LeaseId, SpiffeId};
use crate::issue;
use crate::issue::jwt::{JwtSvid, MintedJwt};
use crate::lease::{Completion, Jitter, Ticket, WorkloadId};
use crate::ledger::{Committed, Row};
use crate::policy::{Kind, PermitRequest, PolicySet};
use crate::registration::Identity;

struct Draft {
    ticket: Ticket,
    subject: Subject,
    minted: MintedJwt,
    row: Row,
}

impl Draft {
    /// The row, and the audit event that says so.
    fn record(&self) -> (Row, Event) {
        let print = TokenPrint::of_sha256(self.minted.token_sha256().as_ref());
        (self.row.clone(), issue_event(&self.subject, &self.row, false, Some(print)))
    }
}

impl Workloads {
    /// Mints one JWT-SVID for `wanted`, or for each identity when it is `None`, in the order of the
    /// identities. All or none. It runs to its end whether or not the caller waits: what the caller no
    /// longer takes is revoked.
    pub async fn issue_jwt(
        &self,
        admission: &Admission,
        wanted: Option<&SpiffeId>,
        audience: &[String],
    ) -> Result<Vec<JwtSvid>, Refusal> {
        let fits = |identity: &&Identity| wanted.is_none_or(|id| *id == identity.spiffe_id);
        let chosen: Vec<Identity> = admission.identities().iter().filter(fits).cloned().collect();
        if chosen.is_empty() {
            return Err(Refusal::NotEntitled);
        }
        let all = wanted.is_none();
        let (send, answer) = oneshot::channel();
        let (shared, admission, audience) = (Arc::clone(&self.0), admission.clone(), audience.to_vec());
        self.0.spawn_for_call(async move {
            let issued = shared.issue_jwts(&admission, &chosen, &audience, all).await;
            if let Err(Ok(unclaimed)) = send.send(issued) {
                shared.withdraw(unclaimed.iter().map(|svid| svid.id));
            }
        });
        // The runtime is only gone when the agent is.
        answer.await.unwrap_or(Err(Refusal::WatchLost))
    }
}

impl Shared {
    async fn issue_jwts(
        self: &Arc<Self>,
        admission: &Admission,
        chosen: &[Identity],
        audience: &[String],
        all: bool,
    ) -> Result<Vec<JwtSvid>, Refusal> {
        // Looked at before anything is decided: a set that comes in between is told from it at the release.
        let set = self.parts.policy.in_force();
        let mut drafts = Vec::with_capacity(chosen.len());
        for identity in chosen {
            match self.draft(admission, identity, audience) {
                Ok(draft) => drafts.push(draft),
                // Who asks for all of its identities gets those that policy gives.
                Err(Refusal::NotEntitled) if all && set.is_loaded() => {}
                Err(refusal) => {
                    self.discard(drafts, false);
                    return Err(refusal);
                }
            }
        }
        if drafts.is_empty() {
            return Err(Refusal::NotEntitled);
        }
        let written = drafts.iter().map(Draft::record).collect();
        match self.write_down(written).await {
            Ok(committed) => self.release_jwts(admission.id(), drafts, &committed, &set),
            Err((refusal, written)) => {
                self.discard(drafts, written);
                Err(refusal)
            }
        }
    }

    fn draft(
        self: &Arc<Self>,
        admission: &Admission,
        identity: &Identity,
        audience: &[String],
    ) -> Result<Draft, Refusal> {
        let subject = self.subject(admission.id(), &identity.entry.id).ok_or(Refusal::NotEntitled)?;
        let ticket = self.begin_jwt(admission, &identity.entry.id)?;
        match self.mint_jwt(&subject, audience) {
            Ok(minted) => {
                let row = minted.row(admission.process().key(), admission.process().uid());
                Ok(Draft { ticket, subject, minted, row })
            }
            Err(refusal) => {
                self.abandon_jwt(ticket, None);
                Err(refusal)
            }
        }
    }

    /// Takes off if the process and its user have room for one more lease.
    fn begin_jwt(&self, admission: &Admission, entry: &EntryId) -> Result<Ticket, Refusal> {
        let mut state = self.lock();
        let id = admission.id();
        let jwts = state.jwts_of(&admission.process().key()) + state.core.on_demand(id);
        if jwts >= self.settings.jwt_leases_per_workload {
            return Err(Refusal::TooManyLeases);
        }
        self.check_user(&state, admission.process().uid())?;
        state.core.begin(id, entry).map_err(|_refused| Refusal::NotEntitled)
    }

    fn mint_jwt(&self, subject: &Subject, audience: &[String]) -> Result<MintedJwt, Refusal> {
        let identity = &subject.identity;
        let entry = &identity.entry;
        let request = PermitRequest {
            entry: entry.id.clone(),
            spiffe_id: identity.spiffe_id.clone(),
            kind: Kind::Jwt,
            ttl: self.ttl_of(Kind::Jwt, identity),
            audience: audience.to_vec(),
            allowed_audiences: entry.terms.jwt_audiences.as_ref().map(|a| a.iter().cloned().collect()),
            dns_names: Vec::new(),
            hint: identity.hint.clone(),
        };
        let permit = self.permit(request, subject)?;
        let authorities = self.parts.authorities.current();
        let now = self.parts.clock.wall();
        let place = |not_after| self.list_token(not_after);
        let terms = issue::jwt::Terms { issuer: &self.settings.jwt_issuer, status: Some(&place), task: None };
        issue::jwt::mint_listed(permit, authorities.active_jwt(), new_lease()?, &terms, now)
            .map_err(Refusal::Authority)
    }

    fn release_jwts(
        self: &Arc<Self>,
        id: WorkloadId,
        drafts: Vec<Draft>,
        committed: &Committed,
        decided_by: &Arc<PolicySet>,
    ) -> Result<Vec<JwtSvid>, Refusal> {
        failpoint::hit("issue.before_release");
        let same = |d: &Draft| self.verify_closely(&d.subject.process, &d.subject.attestation);
        if let Err(why) = drafts.iter().try_for_each(same) {
            self.doubt(id, &why);
            self.discard(drafts, true);
            return Err(why.into());
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut released = Vec::with_capacity(drafts.len());
        let mut refused = false;
        let mut state = self.lock();
        // A reload looks at every lease under this lock, and these are none yet.
        let set = self.parts.policy.in_force();
        let gone = |draft: &Draft| {
            let row = &draft.row;
            !self.gives_token(&set, &state, id, row) || self.holds_token_back(&set, &state, id, row)
        };
        if !Arc::ptr_eq(&set, decided_by) && drafts.iter().any(gone) {
            drop(state);
            self.discard(drafts, true);
            return Err(Refusal::NotEntitled);
        }
        for Draft { ticket, minted, row, .. } in drafts {
            let (lease, ends) = (row.id, now + remaining(&row, wall));
            state.add_row(row);
            let actions = match state.core.complete(ticket, lease, ends, Jitter(0), now) {
                Completion::Release(actions) => {
                    released.extend(minted.release(committed));
                    actions
                }
                Completion::RevokedAtBirth(_, actions) => {
                    refused = true;
                    actions
                }
            };
            self.perform(&mut state, actions, now);
        }
        drop(state);
        if refused {
            self.withdraw(released.iter().map(|svid| svid.id));
            return Err(Refusal::NotEntitled);
        }
        Ok(released)
    }

    fn discard(self: &Arc<Self>, drafts: Vec<Draft>, written: bool) {
        for draft in drafts {
            self.abandon_jwt(draft.ticket, written.then_some(draft.row));
        }
    }

    /// Gives a ticket back. `written` is the row when the ledger has it already: it is revoked.
    pub(super) fn abandon_jwt(self: &Arc<Self>, ticket: Ticket, written: Option<Row>) {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        let lease = written.as_ref().map(|row| row.id);
        if let Some(row) = written {
            state.add_row(row);
        }
        let actions = state.core.fail(ticket, lease, now);
        self.perform(&mut state, actions, now);
    }

    /// Revokes leases whose credentials never reached their process.
    pub(super) fn withdraw(self: &Arc<Self>, leases: impl Iterator<Item = LeaseId>) {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        for lease in leases {
            let actions = state.core.withdraw(lease);
            self.perform(&mut state, actions, now);
        }
    }
}
