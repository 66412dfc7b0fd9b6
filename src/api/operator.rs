//! Who gives orders on the admin socket. A process that is in a task is no operator, whatever its user may do: else an
//! agent could approve itself, or thaw what was frozen because of it.

use std::sync::Arc;

use tonic::{Code, Extensions, Status};

use super::peer::Peer;
use super::tasks::check_known;
use super::tasks::errors::reason;
use crate::audit;
use crate::workload::Workloads;

/// The operator's process, for the record.
///
/// # Errors
/// It is in a task, or nobody knows it: nobody orders anything without a name. Or the order has a field that is not known.
pub(super) fn operator(workloads: &Workloads, caller: &Extensions) -> Result<audit::Agent, Status> {
    let peer = caller.get::<Arc<Peer>>().ok_or_else(|| Status::internal("the caller is not known"))?;
    if !workloads.may_order(peer.process()) {
        let message =
            "a process that works in a task gives no operator's orders: say this from a shell of your own";
        return Err(reason(Code::PermissionDenied, "in_task", message, &[]));
    }
    // What this agent does not know could be what the order was to be limited to.
    check_known(caller)?;
    Ok(audit::Agent::new(peer.process().key(), peer.process().uid()))
}
