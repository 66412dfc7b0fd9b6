//! `mayfly.admin.v1`, on the admin socket only: what an operator asks and orders.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use mayfly_attestors::Outcome;
use mayfly_proto::admin as proto;
use mayfly_proto::admin::admin_server::Admin;
use tonic::{Request, Response, Status};

use super::identity::{seconds, strength};
use super::operator::operator;
use super::status::{BadRequest, of_refusal};
use super::{authorities, facts};
use crate::audit::{self, Event};
use crate::ledger::{Row, State};
use crate::policy::Explanation;
use crate::registration::{Entry, Identity};
use crate::workload::{Fetched, LeaseFilter, Target, Workloads};

/// Answers `Status`; made by the composition root, which knows every part.
pub type StatusSource = Arc<dyn Fn() -> proto::StatusResponse + Send + Sync>;

/// Serves an operator.
pub struct AdminService {
    workloads: Workloads,
    audit: audit::Log,
    status: StatusSource,
}

impl std::fmt::Debug for AdminService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminService").finish_non_exhaustive()
    }
}

impl AdminService {
    /// A service over the live workloads.
    pub fn new(workloads: Workloads, audit: audit::Log, status: StatusSource) -> Self {
        Self { workloads, audit, status }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type ListLeasesStream = Pin<Box<dyn Stream<Item = Result<proto::Lease, Status>> + Send>>;

    async fn status(
        &self,
        _request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        Ok(Response::new((self.status)()))
    }

    async fn jwt_key_set(
        &self,
        _request: Request<proto::JwtKeySetRequest>,
    ) -> Result<Response<proto::JwtKeySetResponse>, Status> {
        let jwks = crate::trust::oidc::key_set(&self.workloads.trust().borrow());
        let issuer = self.workloads.jwt_issuer().to_owned();
        Ok(Response::new(proto::JwtKeySetResponse { jwks, issuer }))
    }

    async fn list_leases(
        &self,
        request: Request<proto::ListLeasesRequest>,
    ) -> Result<Response<Self::ListLeasesStream>, Status> {
        let asked = request.into_inner();
        let filter = LeaseFilter {
            spiffe_id: (!asked.spiffe_id.is_empty()).then_some(asked.spiffe_id),
            pid: (asked.pid != 0).then_some(asked.pid),
        };
        let mut rows = self.workloads.leases(&filter);
        if asked.include_revoked {
            rows.extend(self.workloads.revoked_leases(&filter));
        }
        let names = facts::names(rows.iter().map(|row| row.process.pid));
        let leases = rows.into_iter().map(move |row| {
            let name = names.get(&row.process.pid).cloned().unwrap_or_default();
            Ok(lease(row, name))
        });
        Ok(Response::new(Box::pin(stream::iter(leases.collect::<Vec<_>>()))))
    }

    async fn revoke_leases(
        &self,
        request: Request<proto::RevokeLeasesRequest>,
    ) -> Result<Response<proto::RevokeLeasesResponse>, Status> {
        use proto::revoke_leases_request::Target as Asked;
        let by = operator(&self.workloads, request.extensions())?;
        let asked = request.into_inner();
        let target = match asked.target {
            Some(Asked::LeaseId(text)) => Target::Lease(text.parse().map_err(BadRequest::LeaseId)?),
            Some(Asked::Pid(pid)) if pid != 0 => Target::Pid(pid),
            Some(Asked::SpiffeId(text)) if !text.is_empty() => Target::SpiffeId(text),
            _ => return Err(BadRequest::Target.into()),
        };
        // Before it is carried out: an order that fails half-way is an order all the same.
        let order = format!("{target:?}: {}", asked.reason);
        let credentials = u64::try_from(self.workloads.count_matching(&target)).unwrap_or(u64::MAX);
        self.audit.note(vec![Event::AdminRevoke { by, target: order, credentials }]);
        let revoked = self.workloads.revoke(&target).await;
        let revoked = revoked.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(proto::RevokeLeasesResponse {
            lease_ids: revoked.leases.iter().map(ToString::to_string).collect(),
            crl_number: revoked.crl_number,
            barred: u32::try_from(revoked.barred).unwrap_or(u32::MAX),
            micros: u64::try_from(revoked.took.as_micros()).unwrap_or(u64::MAX),
        }))
    }

    async fn freeze(
        &self,
        request: Request<proto::FreezeRequest>,
    ) -> Result<Response<proto::FreezeResponse>, Status> {
        let (_, caller, order) = request.into_parts();
        super::freeze::freeze(&self.workloads, &caller, order).await.map(Response::new)
    }

    async fn thaw(
        &self,
        request: Request<proto::ThawRequest>,
    ) -> Result<Response<proto::ThawResponse>, Status> {
        let (_, caller, order) = request.into_parts();
        super::freeze::thaw(&self.workloads, &caller, &order).await.map(Response::new)
    }

    async fn list_entries(
        &self,
        _request: Request<proto::ListEntriesRequest>,
    ) -> Result<Response<proto::ListEntriesResponse>, Status> {
        let set = self.workloads.entries().borrow().clone();
        let entries = set.iter().map(|e| entry(e)).collect();
        Ok(Response::new(proto::ListEntriesResponse { entries, version: set.version().to_string() }))
    }

    async fn list_authorities(
        &self,
        _request: Request<proto::ListAuthoritiesRequest>,
    ) -> Result<Response<proto::ListAuthoritiesResponse>, Status> {
        Ok(Response::new(authorities::list(&self.workloads)))
    }

    async fn order_authority(
        &self,
        request: Request<proto::OrderAuthorityRequest>,
    ) -> Result<Response<proto::OrderAuthorityResponse>, Status> {
        let by = operator(&self.workloads, request.extensions())?;
        Ok(Response::new(authorities::order(&self.workloads, request.into_inner(), Some(by)).await?))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        let pid = request.into_inner().pid;
        let explained = self.workloads.explain(pid).await.map_err(|refusal| of_refusal(&refusal))?;
        let attestation = &explained.attestation;
        let selectors = attestation.selectors().iter().map(|s| proto::ExplainSelector {
            text: s.to_string(),
            strength: strength(s.strength()).to_owned(),
        });
        let attestors = attestation.answers().iter().map(|answer| proto::AttestorAnswer {
            kind: answer.kind.to_owned(),
            outcome: outcome(&answer.outcome),
            micros: u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX),
            selectors: match answer.outcome {
                Outcome::Answered(count) | Outcome::InPart(count, _) | Outcome::Kept(count, _) => {
                    u32::try_from(count).unwrap_or(u32::MAX)
                }
                Outcome::Silent(_) | Outcome::NotNeeded => 0,
            },
            notes: answer.notes.clone(),
        });
        let near_misses = explained.near_misses.iter().map(|miss| proto::NearMiss {
            entry_id: miss.entry.id.to_string(),
            spiffe_id: miss.entry.spiffe_id.to_string(),
            missing: miss.missing.clone(),
            other: miss.other.clone().unwrap_or_default(),
        });
        Ok(Response::new(proto::ExplainResponse {
            process: facts::of_process(pid),
            selectors: selectors.collect(),
            attestors: attestors.collect(),
            matches: explained.identities.iter().map(|one| matched(one, &explained.policy)).collect(),
            near_misses: near_misses.collect(),
            posture: explained.posture.iter().map(ToString::to_string).collect(),
            origin: attestation.origin().to_string(),
        }))
    }
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered(_) => "ok".to_owned(),
        Outcome::InPart(_, why) | Outcome::Silent(why) => why.clone(),
        Outcome::Kept(_, why) => format!("kept: {why}"),
        Outcome::NotNeeded => "not needed".to_owned(),
    }
}

fn decided(fetched: &Fetched) -> proto::ExplainPolicy {
    let Explanation { decision, changes, .. } = &fetched.explanation;
    let result = if fetched.for_some_audience { "per audience" } else { decision.verdict.as_str() };
    proto::ExplainPolicy {
        form: fetched.kind.as_str().to_owned(),
        result: result.to_owned(),
        reason: decision.reason.as_str().to_owned(),
        policy_ids: decision.policy_ids.clone(),
        changes: if fetched.for_some_audience { Vec::new() } else { changes.clone() },
    }
}

fn matched(identity: &Identity, policy: &[Fetched]) -> proto::ExplainMatch {
    proto::ExplainMatch {
        entry_id: identity.entry.id.to_string(),
        spiffe_id: identity.spiffe_id.to_string(),
        because: identity.because.clone(),
        policy: policy.iter().filter(|one| one.entry == identity.entry.id).map(decided).collect(),
    }
}

fn lease(row: Row, process_name: String) -> proto::Lease {
    let (state, reason) = match row.state {
        State::Live => ("live", String::new()),
        State::Revoked { reason, .. } => ("revoked", reason.to_string()),
    };
    proto::Lease {
        id: row.id.to_string(),
        kind: row.kind.to_string(),
        spiffe_id: row.spiffe_id,
        entry_id: row.entry.to_string(),
        pid: row.process.pid,
        uid: row.uid,
        process_name,
        issued_at: seconds(row.issued_at),
        not_after: seconds(row.not_after),
        audience: row.audience,
        state: state.to_owned(),
        reason,
    }
}

fn entry(entry: &Entry) -> proto::Entry {
    let terms = &entry.terms;
    let whole = |ttl: Option<std::time::Duration>| ttl.map_or(0, |t| t.as_secs());
    let strongest = entry.selectors.iter().map(crate::registration::SelectorPattern::strength).max();
    let until = entry.conditions.until.map_or(0, |at| seconds(crate::clock::unix_seconds(at)));
    proto::Entry {
        id: entry.id.to_string(),
        spiffe_id: entry.spiffe_id.to_string(),
        selectors: entry.selectors.iter().map(ToString::to_string).collect(),
        priority: i32::try_from(entry.priority).unwrap_or(if entry.priority < 0 {
            i32::MIN
        } else {
            i32::MAX
        }),
        hint: terms.hint.clone(),
        dns_names: terms.dns_names.clone(),
        x509_ttl_seconds: whole(terms.x509_ttl),
        jwt_ttl_seconds: whole(terms.jwt_ttl),
        wit_ttl_seconds: whole(terms.wit_ttl),
        federates_with: terms.federates_with.iter().map(ToString::to_string).collect(),
        jwt_audiences: terms.jwt_audiences.iter().flatten().cloned().collect(),
        owner: entry.owner.clone(),
        until,
        strength: strongest.map_or("none", |s| strength(s)).to_owned(),
        source: entry.place.to_string(),
    }
}
