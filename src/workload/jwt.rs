//! JWT issuance: one token for each identity and call, never shared, never cached.

use std::sync::Arc;

use mayfly_attestors::failpoint;

use super::issue::{Subject, issue_event, new_lease, remaining};
use super::{Admission, Refusal, Shared, Workloads};
use crate::audit::TokenPrint;
use crate::id::SpiffeId;
use crate::issue;
use crate::issue::jwt::{JwtSvid, MintedJwt};
use crate::lease::{Completion, Jitter, Ticket, WorkloadId};
use crate::ledger::{self, Committed, Row};
use crate::policy::{Kind, PermitRequest};
use crate::registration::Identity;

struct Draft {
    ticket: Ticket,
    subject: Subject,
    minted: MintedJwt,
    row: Row,
}

impl Workloads {
    /// Mints one JWT-SVID for `wanted`, or for each identity when it is `None`, in the order of the
    /// identities. All or none.
    pub async fn issue_jwt(
        &self,
        admission: &Admission,
        wanted: Option<&SpiffeId>,
        audience: &[String],
    ) -> Result<Vec<JwtSvid>, Refusal> {
        let chosen: Vec<&Identity> =
            admission.identities().iter().filter(|i| wanted.is_none_or(|w| *w == i.spiffe_id)).collect();
        if chosen.is_empty() {
            return Err(Refusal::NotEntitled);
        }
        self.0.check_quota(admission, chosen.len())?;
        let mut drafts = Vec::with_capacity(chosen.len());
        for identity in chosen {
            match self.0.draft(admission, identity, audience) {
                Ok(draft) => drafts.push(draft),
                Err(refusal) => {
                    self.0.discard(admission.id(), drafts, false);
                    return Err(refusal);
                }
            }
        }
        let written = drafts
            .iter()
            .map(|d| {
                (
                    d.row.clone(),
                    issue_event(
                        &d.subject,
                        &d.row,
                        false,
                        Some(TokenPrint::of_sha256(d.minted.token_sha256().as_ref())),
                    ),
                )
            })
            .collect();
        match self.0.write_down(written).await {
            Ok(committed) => self.0.release_jwts(admission.id(), drafts, &committed),
            Err((refusal, written)) => {
                self.0.discard(admission.id(), drafts, written);
                Err(refusal)
            }
        }
    }
}

impl Shared {
    fn check_quota(&self, admission: &Admission, more: usize) -> Result<(), Refusal> {
        let state = self.lock();
        let of_uid = state.leases_by_uid.get(&admission.process().uid()).copied().unwrap_or_default();
        let jwts = state
            .core
            .leases_of(admission.id())
            .iter()
            .filter(|l| state.rows.get(&l.id).is_some_and(|r| r.kind == ledger::Kind::Jwt))
            .count();
        let over = of_uid + more > self.settings.leases_per_uid
            || jwts + more > self.settings.jwt_leases_per_workload;
        if over { Err(Refusal::TooManyLeases) } else { Ok(()) }
    }

    fn draft(
        &self,
        admission: &Admission,
        identity: &Identity,
        audience: &[String],
    ) -> Result<Draft, Refusal> {
        let subject = self.subject(admission.id(), &identity.entry.id).ok_or(Refusal::NotEntitled)?;
        let entry = &identity.entry;
        let permit = self
            .parts
            .policy
            .permit(PermitRequest {
                entry: entry.id.clone(),
                spiffe_id: identity.spiffe_id.clone(),
                kind: Kind::Jwt,
                ttl: entry.terms.jwt_ttl.unwrap_or(self.settings.jwt_ttl),
                audience: audience.to_vec(),
                allowed_audiences: entry.terms.jwt_audiences.as_ref().map(|a| a.iter().cloned().collect()),
                dns_names: Vec::new(),
                hint: identity.hint.clone(),
            })
            .map_err(|_denied| Refusal::NotEntitled)?;
        let now = self.parts.clock.wall();
        let authority = self.parts.authorities.active_jwt();
        let minted = issue::jwt::mint(permit, authority, new_lease()?, &self.settings.jwt_issuer, now)
            .map_err(Refusal::Authority)?;
        let row = minted.row(admission.process().key(), admission.process().uid());
        let ticket =
            self.lock().core.begin(admission.id(), &entry.id).map_err(|_refused| Refusal::NotEntitled)?;
        Ok(Draft { ticket, subject, minted, row })
    }

    fn release_jwts(
        self: &Arc<Self>,
        id: WorkloadId,
        drafts: Vec<Draft>,
        committed: &Committed,
    ) -> Result<Vec<JwtSvid>, Refusal> {
        failpoint::hit("issue.before_release");
        if let Err(why) = drafts.iter().try_for_each(|d| self.verify(&d.subject)) {
            self.discard(id, drafts, true);
            self.doubt(id, &why);
            return Err(why.into());
        }
        let (now, wall) = (self.parts.clock.monotonic(), self.parts.clock.wall());
        let mut released = Vec::with_capacity(drafts.len());
        let mut refused = false;
        let mut state = self.lock();
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
        if refused { Err(Refusal::NotEntitled) } else { Ok(released) }
    }

    fn discard(self: &Arc<Self>, id: WorkloadId, drafts: Vec<Draft>, written: bool) {
        for draft in drafts {
            self.abandon_jwt(draft.ticket, id, written.then_some(draft.row));
        }
    }

    fn abandon_jwt(self: &Arc<Self>, ticket: Ticket, _id: WorkloadId, written: Option<Row>) {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        let lease = written.as_ref().map(|row| row.id);
        if let Some(row) = written {
            state.add_row(row);
        }
        let actions = state.core.fail(ticket, lease, now);
        self.perform(&mut state, actions, now);
    }
}
