//! `mayfly.task.v1.TaskAPI` on the public socket, for whoever is attested and matched.

pub(super) mod approvals;
mod children;
pub(super) mod errors;
mod fields;
mod strict;
mod watch;
pub(super) mod wire;

use std::sync::Arc;
use std::time::Duration;

use mayfly_proto::task as proto;
use mayfly_proto::task::task_api_server::TaskApi;
use tonic::{Request, Response, Status};

use self::errors::{limited_rate, malformed, not_admitted, of_error, reason};
pub(super) use self::strict::{Strict, check_known};
use super::admission::{Admitted, Call, Gate, Words};
use super::workload::Messages;
use crate::clock::Clock;
use crate::drain::Watch;
use crate::id::{ApprovalId, TaskId};
use crate::policy::Action;
use crate::task::Ending;
use crate::workload::{Ask, Errand, Form, Proof, TaskError};

/// Serves tasks.
pub(super) struct TaskService {
    gate: Gate,
    clock: Arc<dyn Clock>,
    drain: Watch,
}

impl std::fmt::Debug for TaskService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskService").finish_non_exhaustive()
    }
}

impl TaskService {
    /// A service behind `gate`; streams end with `Unavailable` when the drain starts.
    pub(super) fn new(gate: Gate, clock: Arc<dyn Clock>, drain: Watch) -> Self {
        Self { gate, clock, drain }
    }

    async fn admit<T>(&self, request: &Request<T>, method: &'static str) -> Result<Admitted, Status> {
        let call = self.knock(request, method)?;
        call.admit().await
    }

    /// A request without any field that we do not know.
    fn knock<T>(&self, request: &Request<T>, method: &'static str) -> Result<Call, Status> {
        let call = self.gate.call(request, method)?;
        let call = call.in_words(Words { refused: not_admitted, limited: limited_rate });
        check_known(request.extensions())?;
        Ok(call)
    }

    /// Work that is done whether or not the caller waits: who goes away must not keep what could not be recorded.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
    ) -> Result<T, TaskError> {
        self.gate.workloads().to_its_end(work).await
    }

    /// Admits the caller, or the process of the task that it keeps.
    async fn admit_in<T>(
        &self,
        request: &Request<T>,
        method: &'static str,
        task: TaskId,
        errand: Errand<'_>,
    ) -> Result<Admitted, Status> {
        let call = self.knock(request, method)?;
        let caller = call.peer().process();
        match self.gate.workloads().kept_by(&caller.key(), task, errand).map_err(of_error)? {
            Some(process) => call.admit_as(&process).await,
            None => call.admit_as(caller).await,
        }
    }
}

#[tonic::async_trait]
impl TaskApi for TaskService {
    type WatchStream = Messages<proto::TaskEvent>;

    async fn begin(&self, request: Request<proto::BeginRequest>) -> Result<Response<proto::Task>, Status> {
        let admitted = self.admit(&request, "Begin").await?;
        let begin = wire::begin(request.into_inner())?;
        let workloads = self.gate.workloads().clone();
        let begun = self.to_its_end(async move { workloads.begin_task(admitted.admission(), begin).await });
        begun.await.map(|view| Response::new(wire::task(&view))).map_err(of_error)
    }

    async fn get(&self, request: Request<proto::GetTaskRequest>) -> Result<Response<proto::Task>, Status> {
        Gate::check_header(&request)?;
        let id = task_id(&request.get_ref().task_id)?;
        let admitted = self.admit_in(&request, "Get", id, Errand::Tend).await?;
        let found = self.gate.workloads().task(id, admitted.admission());
        found.map(|view| Response::new(wire::task(&view))).map_err(of_error)
    }

    async fn authorize(
        &self,
        request: Request<proto::AuthorizeRequest>,
    ) -> Result<Response<proto::Decision>, Status> {
        let admitted = self.admit(&request, "Authorize").await?;
        let asked = request.into_inner();
        let approval = approval_id(&asked.approval_id)?;
        if asked.request_approval && approval.is_some() {
            // To use an approval and to ask for one are two things.
            return Err(malformed("request_approval"));
        }
        let action = asked.action.parse::<Action>().ok().filter(|action| action.is_on_target());
        let ask = Ask {
            task: task_id(&asked.task_id)?,
            form: None,
            target: asked.target,
            details: Vec::new(),
            action: Some(action.ok_or_else(|| malformed("action"))?),
            ttl: wire::duration("ttl", asked.ttl)?,
            proof: None,
            operation: wire::operation(asked.operation)?,
            approval,
            ask_people: asked.request_approval,
        };
        let workloads = self.gate.workloads().clone();
        let said = self.to_its_end(async move { workloads.authorize(admitted.admission(), ask).await });
        let said = said.await.map_err(of_error)?;
        let access_request = said.access_request.as_ref().map(approvals::access_request);
        let decision = proto::Decision { access_request, ..wire::decision(&said.decision) };
        Ok(Response::new(decision))
    }

    async fn issue(
        &self,
        request: Request<proto::IssueRequest>,
    ) -> Result<Response<proto::Credential>, Status> {
        Gate::check_header(&request)?;
        let task = task_id(&request.get_ref().task_id)?;
        let ask = ask(request.get_ref().clone(), task)?;
        let admitted = self.admit_in(&request, "Issue", task, Errand::Issue(&ask.target)).await?;
        let form = ask.form.unwrap_or(Form::Access);
        let workloads = self.gate.workloads();
        let issued = workloads.issue_for_task(admitted.admission(), ask).await.map_err(of_error)?;
        Ok(Response::new(wire::credential(&issued, form, task, &workloads.trust().borrow())))
    }

    async fn end(&self, request: Request<proto::EndRequest>) -> Result<Response<proto::TaskSummary>, Status> {
        Gate::check_header(&request)?;
        let asked = request.get_ref();
        let task = task_id(&asked.task_id)?;
        let ending = match asked.reason.as_str() {
            "" | "completed" => Ending::Completed,
            "failed" => Ending::Failed,
            _ => return Err(malformed("reason")),
        };
        let admitted = self.admit_in(&request, "End", task, Errand::Tend).await?;
        let ended = self.gate.workloads().end_task(task, admitted.admission(), ending, &asked.note).await;
        ended.map(|summary| Response::new(wire::summary(&summary))).map_err(of_error)
    }

    async fn delegate(
        &self,
        request: Request<proto::DelegateRequest>,
    ) -> Result<Response<proto::Delegation>, Status> {
        let admitted = self.admit(&request, "Delegate").await?;
        let asked = children::delegate(request.into_inner())?;
        let workloads = self.gate.workloads().clone();
        let offered = self.to_its_end(async move { workloads.delegate(admitted.admission(), asked).await });
        offered.await.map(|view| Response::new(children::delegation(&view))).map_err(of_error)
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::Task>, Status> {
        let admitted = self.admit(&request, "Join").await?;
        let asked = children::join(request.into_inner())?;
        let workloads = self.gate.workloads().clone();
        let joined = self.to_its_end(async move { workloads.join_task(admitted.admission(), asked).await });
        joined.await.map(|view| Response::new(wire::task(&view))).map_err(of_error)
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::Task>, Status> {
        Gate::check_header(&request)?;
        let asked = request.get_ref();
        let (id, life) = (task_id(&asked.task_id)?, wire::duration("ttl", asked.ttl)?);
        let admitted = self.admit_in(&request, "Renew", id, Errand::Tend).await?;
        let workloads = self.gate.workloads().clone();
        let renewed =
            self.to_its_end(async move { workloads.renew_task(admitted.admission(), id, life).await });
        renewed.await.map(|view| Response::new(wire::task(&view))).map_err(of_error)
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Gate::check_header(&request)?;
        let id = task_id(&request.get_ref().task_id)?;
        let admitted = self.admit_in(&request, "Watch", id, Errand::Tend).await?;
        let watch = self.gate.workloads().watch_task(admitted.admission(), id).map_err(of_error)?;
        Ok(Response::new(watch::messages(watch, Arc::clone(&self.clock), self.drain.clone())))
    }
}

pub(super) fn task_id(text: &str) -> Result<TaskId, Status> {
    text.parse().map_err(|_not_a_name| malformed("task_id"))
}

/// `None` when none is named.
fn approval_id(text: &str) -> Result<Option<ApprovalId>, Status> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_not_a_name| malformed("approval_id")),
    }
}

/// What is asked for, if it is for one audience.
fn ask(asked: proto::IssueRequest, task: TaskId) -> Result<Ask, Status> {
    let form = match asked.format() {
        proto::Format::AccessToken => Form::Access,
        proto::Format::JwtSvid => Form::Jwt,
        proto::Format::X509Svid => Form::X509,
        proto::Format::WitSvid => Form::Wit,
        proto::Format::Unspecified => return Err(malformed("format")),
    };
    let [audience] = asked.audience.as_slice() else {
        return Err(match asked.audience.len() {
            0 => malformed("audience"),
            _ => reason(
                tonic::Code::InvalidArgument,
                "one_audience_per_credential",
                "a credential is for one audience: ask for one after the other, each is decided by itself",
                &[],
            ),
        });
    };
    let approval = approval_id(&asked.approval_id)?;
    let proof = match asked.binding {
        None => None,
        Some(proto::issue_request::Binding::Jkt(thumbprint)) => {
            Some(Proof::Jkt(wire::thumbprint(&thumbprint).ok_or_else(|| malformed("jkt"))?))
        }
        Some(proto::issue_request::Binding::X509CredentialId(id)) => {
            Some(Proof::Certificate(id.parse().map_err(|_not_a_name| malformed("x509_credential_id"))?))
        }
    };
    let audience = audience.clone();
    if audience.is_empty() {
        return Err(malformed("audience"));
    }
    let ttl = wire::duration("ttl", asked.ttl)?;
    if ttl.is_some_and(|ttl| ttl < Duration::from_secs(1)) {
        return Err(malformed("ttl"));
    }
    Ok(Ask {
        task,
        form: Some(form),
        target: audience,
        details: wire::details(&asked.details)?,
        action: None,
        ttl,
        proof,
        operation: wire::operation(asked.operation)?,
        approval,
        ask_people: false,
    })
}

impl From<TaskError> for Status {
    fn from(error: TaskError) -> Self {
        of_error(error)
    }
}
