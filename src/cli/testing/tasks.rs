//! Tasks, as the stand-in serves them.

use futures_util::StreamExt;
use futures_util::stream;
use mayfly_proto::task::task_admin_server::TaskAdmin;
use mayfly_proto::task::task_api_server::TaskApi;
use mayfly_proto::task::*;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::agent::{Answer, Script, Streamed, get};

fn later<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this stand-in"))
}

#[tonic::async_trait]
impl TaskApi for Script {
    type WatchStream = Streamed<TaskEvent>;

    async fn begin(&self, _: Request<BeginRequest>) -> Answer<Response<Task>> {
        later()
    }

    async fn get(&self, request: Request<GetTaskRequest>) -> Answer<Response<Task>> {
        self.note(&request);
        let tasks = self.tasks.borrow().clone()?;
        let own = tasks.into_iter().find(|task| task.id == request.get_ref().task_id);
        own.map(Response::new).ok_or_else(|| Status::not_found("no such task"))
    }

    async fn delegate(&self, _: Request<DelegateRequest>) -> Answer<Response<Delegation>> {
        later()
    }

    async fn join(&self, _: Request<JoinRequest>) -> Answer<Response<Task>> {
        later()
    }

    async fn authorize(&self, _: Request<AuthorizeRequest>) -> Answer<Response<Decision>> {
        later()
    }

    async fn issue(&self, _: Request<IssueRequest>) -> Answer<Response<Credential>> {
        later()
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Answer<Response<Task>> {
        later()
    }

    async fn end(&self, request: Request<EndRequest>) -> Answer<Response<TaskSummary>> {
        self.note(&request);
        get(&self.summary)
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Response<Self::WatchStream>> {
        later()
    }
}

#[tonic::async_trait]
impl TaskAdmin for Script {
    type ListStream = Streamed<Task>;
    type TailAuditStream = Streamed<AuditEvent>;
    type ListApprovalsStream = Streamed<Approval>;

    /// With `follow` every task again at each change.
    async fn list(&self, request: Request<ListTasksRequest>) -> Answer<Response<Self::ListStream>> {
        self.note(&request);
        self.tasks.borrow().clone()?;
        let each = WatchStream::new(self.tasks.subscribe());
        let tasks = each.map(|answer: Answer<Vec<Task>>| match answer {
            Ok(tasks) => stream::iter(tasks.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(status) => stream::iter(vec![Err(status)]),
        });
        Ok(Response::new(match request.get_ref().follow {
            true => Box::pin(tasks.flatten()),
            false => Box::pin(tasks.take(1).flatten()),
        }))
    }

    async fn revoke(&self, request: Request<RevokeTaskRequest>) -> Answer<Response<TaskSummary>> {
        self.note(&request);
        get(&self.summary)
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Answer<Response<Explanation>> {
        later()
    }

    async fn tail_audit(&self, _: Request<TailAuditRequest>) -> Answer<Response<Self::TailAuditStream>> {
        later()
    }

    async fn list_approvals(
        &self,
        _: Request<ListApprovalsRequest>,
    ) -> Answer<Response<Self::ListApprovalsStream>> {
        later()
    }

    async fn decide(&self, _: Request<DecideRequest>) -> Answer<Response<Approval>> {
        later()
    }

    async fn freeze(&self, request: Request<FreezeRequest>) -> Answer<Response<FreezeResult>> {
        self.note(&request);
        get(&self.frozen)
    }

    async fn thaw(&self, _: Request<ThawRequest>) -> Answer<Response<ThawResult>> {
        later()
    }
}
