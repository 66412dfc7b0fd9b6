//! `ListApprovals` and `Decide`: what agents ask people, and the answers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::stream;
use mayfly_proto::task as proto;
use tokio::sync::watch;
use tonic::{Code, Extensions, Status};

use super::super::peer::Peer;
use super::super::tasks::approvals::approval;
use super::super::tasks::errors::{malformed, of_approval, reason};
use super::super::tasks::task_id;
use super::super::workload::Messages;
use crate::drain::Watch;
use crate::id::{ApprovalId, TaskId};
use crate::workload::{Answer, AnswerError, Workloads};

/// What was sent of one: it is sent again when that changes.
type Shown = (i32, usize);

struct Follower {
    workloads: Workloads,
    task: Option<TaskId>,
    closed: bool,
    news: watch::Receiver<u64>,
    drain: Watch,
    shown: HashMap<String, Shown>,
    queue: VecDeque<proto::Approval>,
}

pub(super) fn list(
    workloads: &Workloads,
    asked: &proto::ListApprovalsRequest,
    drain: Watch,
) -> Result<Messages<proto::Approval>, Status> {
    let task = (!asked.task_id.is_empty()).then(|| task_id(&asked.task_id)).transpose()?;
    if !asked.follow {
        let all = workloads.approvals(task, asked.include_closed);
        let all: Vec<_> = all.iter().map(|view| Ok(approval(view))).collect();
        return Ok(Box::pin(stream::iter(all)));
    }
    let mut follower = Follower {
        workloads: workloads.clone(),
        task,
        closed: asked.include_closed,
        news: workloads.approval_news(),
        drain,
        shown: HashMap::new(),
        queue: VecDeque::new(),
    };
    follower.look();
    Ok(Box::pin(stream::unfold(follower, Follower::next)))
}

impl Follower {
    /// What is new, or not as it was shown. One that was shown is shown to its end.
    fn look(&mut self) {
        self.news.mark_unchanged();
        let all = self.workloads.approvals(self.task, true);
        let mut now = HashMap::with_capacity(all.len());
        for view in &all {
            let message = approval(view);
            let state = (message.state, message.votes.len());
            let before = self.shown.get(&message.id);
            let wanted = self.closed || view.approval.state.is_open() || before.is_some();
            if !wanted {
                continue;
            }
            now.insert(message.id.clone(), state);
            if before != Some(&state) {
                self.queue.push_back(message);
            }
        }
        self.shown = now;
    }

    async fn next(mut self) -> Option<(Result<proto::Approval, Status>, Self)> {
        loop {
            if let Some(next) = self.queue.pop_front() {
                return Some((Ok(next), self));
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                () = self.drain.stopping() => return None,
            }
            self.look();
        }
    }
}

pub(super) async fn decide(
    workloads: &Workloads,
    caller: &Extensions,
    asked: &proto::DecideRequest,
) -> Result<proto::Approval, Status> {
    let peer = caller.get::<Arc<Peer>>().ok_or_else(|| Status::internal("the caller is not known"))?;
    let id: ApprovalId = asked.approval_id.parse().map_err(|_not_a_name| malformed("approval_id"))?;
    let answer = Answer {
        approval: id,
        approve: asked.approve,
        reason: crate::diag::line(&asked.reason).map_err(|_why| malformed("reason"))?,
        shown: digest(&asked.operation_sha256)?,
    };
    let decided = workloads.answer(peer.process(), answer).await;
    decided.map(|view| approval(&view)).map_err(|error| refused(&error))
}

/// 64 hex digits, or nothing.
fn digest(text: &str) -> Result<Option<[u8; 32]>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || malformed("operation_sha256");
    let pair = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes = bytes.filter(|_| digits).and_then(|bytes| bytes.try_into().ok());
    bytes.map(Some).ok_or_else(wrong)
}

/// Whoever answers is an operator: he learns why it does not count.
fn refused(error: &AnswerError) -> Status {
    let word = match error {
        AnswerError::Approval(why) => return of_approval(*why),
        AnswerError::SameUser(_) => "same_user",
        AnswerError::SameCgroup => "same_cgroup",
        AnswerError::Stranger(_) => "not_an_approver",
        AnswerError::RootAmongMany => "root_among_many",
        AnswerError::Frozen => {
            return reason(Code::FailedPrecondition, "frozen", &error.to_string(), &[]);
        }
        AnswerError::Policy(_) => "policy_denied",
        AnswerError::Audit(_) => return Status::unavailable(error.to_string()),
    };
    reason(Code::PermissionDenied, word, &error.to_string(), &[])
}
