//! `mayfly.task.v1.TaskAdmin`, on the admin socket only: what an operator asks and orders of tasks. Every method refuses
//! a caller that is in a task itself.

mod approvals;
mod explain;
mod streams;

use futures_util::stream;
use mayfly_proto::task as proto;
use mayfly_proto::task::task_admin_server::TaskAdmin;
use tonic::{Request, Response, Status};

use super::operator::operator;
use super::tasks::errors::{malformed, of_error};
use super::tasks::{task_id, wire};
use super::workload::Messages;
use crate::audit;
use crate::drain::Watch;
use crate::id::SpiffeId;
use crate::workload::{TaskFilter, Workloads};

/// Serves operators.
pub(super) struct TaskAdminService {
    workloads: Workloads,
    audit: audit::Log,
    drain: Watch,
}

impl std::fmt::Debug for TaskAdminService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskAdminService").finish_non_exhaustive()
    }
}

impl TaskAdminService {
    /// A service over the tasks of this node.
    pub(super) fn new(workloads: Workloads, audit: audit::Log, drain: Watch) -> Self {
        Self { workloads, audit, drain }
    }
}

#[tonic::async_trait]
impl TaskAdmin for TaskAdminService {
    type ListStream = Messages<proto::Task>;
    type TailAuditStream = Messages<proto::AuditEvent>;
    type ListApprovalsStream = Messages<proto::Approval>;

    async fn list(
        &self,
        request: Request<proto::ListTasksRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        operator(&self.workloads, request.extensions())?;
        let asked = request.into_inner();
        let filter = filter(&asked)?;
        if asked.follow {
            let follower = self.workloads.follow_tasks(filter);
            return Ok(Response::new(streams::tasks(follower, self.drain.clone())));
        }
        let tasks = self.workloads.tasks(&filter).map_err(of_error)?;
        let tasks = tasks.into_iter().map(|view| Ok(wire::task(&view)));
        Ok(Response::new(Box::pin(stream::iter(tasks.collect::<Vec<_>>()))))
    }

    async fn revoke(
        &self,
        request: Request<proto::RevokeTaskRequest>,
    ) -> Result<Response<proto::TaskSummary>, Status> {
        let by = operator(&self.workloads, request.extensions())?;
        let asked = request.get_ref();
        let reason = crate::diag::line(&asked.reason).map_err(|_why| malformed("reason"))?;
        let ended = self.workloads.revoke_task(task_id(&asked.task_id)?, &reason, by).await;
        ended.map(|summary| Response::new(wire::summary(&summary))).map_err(of_error)
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::Explanation>, Status> {
        operator(&self.workloads, request.extensions())?;
        explain::explain(&self.workloads, request.into_inner()).map(Response::new)
    }

    async fn tail_audit(
        &self,
        request: Request<proto::TailAuditRequest>,
    ) -> Result<Response<Self::TailAuditStream>, Status> {
        operator(&self.workloads, request.extensions())?;
        let options = streams::options(request.into_inner())?;
        let tailing = self.audit.tail(options);
        let tailing = tailing.ok_or_else(|| Status::failed_precondition("this agent keeps no audit log"))?;
        Ok(Response::new(streams::lines(tailing, self.drain.clone())))
    }

    async fn list_approvals(
        &self,
        request: Request<proto::ListApprovalsRequest>,
    ) -> Result<Response<Self::ListApprovalsStream>, Status> {
        operator(&self.workloads, request.extensions())?;
        approvals::list(&self.workloads, request.get_ref(), self.drain.clone()).map(Response::new)
    }

    async fn decide(
        &self,
        request: Request<proto::DecideRequest>,
    ) -> Result<Response<proto::Approval>, Status> {
        let (_, caller, asked) = request.into_parts();
        operator(&self.workloads, &caller)?;
        approvals::decide(&self.workloads, &caller, &asked).await.map(Response::new)
    }

    async fn freeze(
        &self,
        request: Request<proto::FreezeRequest>,
    ) -> Result<Response<proto::FreezeResult>, Status> {
        let (_, caller, order) = request.into_parts();
        super::freeze::task_freeze(&self.workloads, &caller, order).await.map(Response::new)
    }

    async fn thaw(
        &self,
        request: Request<proto::ThawRequest>,
    ) -> Result<Response<proto::ThawResult>, Status> {
        let (_, caller, order) = request.into_parts();
        super::freeze::task_thaw(&self.workloads, &caller, order).await.map(Response::new)
    }
}

fn filter(asked: &proto::ListTasksRequest) -> Result<TaskFilter, Status> {
    let top = (!asked.task_id.is_empty()).then(|| task_id(&asked.task_id)).transpose()?;
    let spiffe_id = (!asked.spiffe_id.is_empty())
        .then(|| SpiffeId::parse(asked.spiffe_id.as_bytes()).map_err(|_not_one| malformed("spiffe_id")))
        .transpose()?;
    Ok(TaskFilter { top, spiffe_id, include_ended: asked.include_ended })
}
