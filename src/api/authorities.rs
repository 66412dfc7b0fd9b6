//! The authorities on the admin socket.

use mayfly_proto::admin as proto;
use mayfly_proto::admin::order_authority_request::Order as Asked;
use tonic::{Code, Status};

use super::identity::seconds;
use super::status::BadRequest;
use crate::audit;
use crate::authority::life::Record;
use crate::authority::{AuthorityKind, LoadError};
use crate::workload::{Order, OrderError, Workloads};

pub(super) fn list(workloads: &Workloads) -> proto::ListAuthoritiesResponse {
    let authorities = workloads.authority_records().iter().map(record).collect();
    proto::ListAuthoritiesResponse { authorities }
}

pub(super) async fn order(
    workloads: &Workloads,
    asked: proto::OrderAuthorityRequest,
    by: Option<audit::Agent>,
) -> Result<proto::OrderAuthorityResponse, Status> {
    let order = match asked.order {
        Some(Asked::Prepare(kind)) => Order::Prepare(parse(&kind)?),
        Some(Asked::Activate(kind)) => Order::Activate { kind: parse(&kind)?, hurry: asked.now },
        Some(Asked::Taint(id)) => Order::Taint(id),
        Some(Asked::Revoke(id)) => Order::Revoke(id),
        None => return Err(BadRequest::Order.into()),
    };
    let done = workloads.order(order, by).await.map_err(|error| status(&error))?;
    Ok(proto::OrderAuthorityResponse { authority: Some(record(&done)) })
}

fn parse(kind: &str) -> Result<AuthorityKind, BadRequest> {
    let all = [AuthorityKind::X509, AuthorityKind::Jwt, AuthorityKind::Wit];
    all.into_iter().find(|one| one.as_str() == kind).ok_or(BadRequest::Order)
}

/// An operator hears everything: the admin socket is the operator's alone.
fn status(error: &OrderError) -> Status {
    let code = match error {
        OrderError::Step(LoadError::Refused(_)) => Code::FailedPrecondition,
        OrderError::Step(_) => Code::Internal,
        OrderError::Unpublished(_) | OrderError::Unavailable => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

fn record(record: &Record) -> proto::AuthorityRecord {
    let at = |time: Option<u64>| time.map_or(0, seconds);
    proto::AuthorityRecord {
        kind: record.kind.to_string(),
        id: record.id.clone(),
        state: record.state.to_string(),
        not_after: seconds(record.not_after),
        prepared_at: seconds(record.prepared_at),
        activated_at: at(record.activated_at),
        old_at: at(record.old_at),
        tainted_at: at(record.tainted_at),
        revoking_since: at(record.revoking_since),
        revoked_at: at(record.revoked_at),
    }
}
