//! Offers and those who take them up, between the wire's types and ours.

use mayfly_proto::task as proto;
use tonic::Status;

use super::errors::malformed;
use super::{task_id, wire};
use crate::workload::{Delegate, Join, OfferView};

/// A part of a task to offer.
pub(super) fn delegate(asked: proto::DelegateRequest) -> Result<Delegate, Status> {
    let mut same = asked.clone();
    let (text, params) = (std::mem::take(&mut same.idempotency_key), std::mem::take(&mut same.params));
    let key = wire::key("Delegate", text, &params, &same)?;
    let details = wire::details(&asked.details)?;
    if details.is_empty() && asked.template.is_empty() {
        return Err(malformed("details"));
    }
    Ok(Delegate {
        task: task_id(&asked.task_id)?,
        to: wire::spiffe_id(&asked.spiffe_id)?,
        purpose: asked.purpose,
        template: Some(asked.template).filter(|name| !name.is_empty()),
        params: asked.params.into_iter().collect(),
        details,
        life: wire::duration("ttl", asked.ttl)?,
        limits: wire::limits(asked.limits.as_ref())?,
        require_isolated: asked.require_isolated,
        drops_user: asked.drop_on_behalf_of,
        key,
    })
}

/// An offer to take up.
pub(super) fn join(asked: proto::JoinRequest) -> Result<Join, Status> {
    let scope = wire::scope_wish(asked.process_scope)?;
    let offer = asked.delegation_id.parse().map_err(|_not_a_name| malformed("delegation_id"))?;
    let mut rest = asked;
    let text = std::mem::take(&mut rest.idempotency_key);
    let keeper = rest.keeper.clone().map(wire::keeper).transpose()?;
    Ok(Join { offer, keeper, scope, key: wire::key("Join", text, &std::collections::HashMap::new(), &rest)? })
}

/// An offer as it is.
pub(super) fn delegation(view: &OfferView) -> proto::Delegation {
    proto::Delegation {
        id: view.offer.id.to_string(),
        parent: view.offer.parent.to_string(),
        spiffe_id: view.offer.charter.spiffe_id.to_string(),
        details: wire::grants(&view.offer.charter.grants),
        expires_at: Some(wire::timestamp(view.expires)),
        deadline: Some(wire::timestamp(view.deadline)),
        approval_id: view.approval.map(|id| id.to_string()).unwrap_or_default(),
    }
}
