//! A task that waits for people: the program begins when they have allowed it, or not at all.

use std::io::{self, Write as _};

use mayfly_proto::task::task_event::Event;
use mayfly_proto::task::{Approval, ApprovalState, Task, TaskEvent, TaskState, WatchRequest};

use crate::cli::client::{Connection, answer};
use crate::cli::failure::Failure;
use crate::cli::render::{cell, clean};

/// Until the task is active.
///
/// # Errors
/// It ended first: people said no, or nothing, or policy has changed its mind.
pub(super) async fn allowed(connection: &Connection, task: Task) -> Result<Task, Failure> {
    if task.state() != TaskState::PendingApproval {
        return Ok(task);
    }
    let request = WatchRequest { task_id: task.id.clone() };
    let mut events = answer(connection.tasks().watch(request)).await?.into_inner();
    let mut last = None;
    while let Some(TaskEvent { event: Some(event), .. }) = answer(events.message()).await? {
        match event {
            Event::Task(task) if task.state() != TaskState::PendingApproval => return Ok(task),
            Event::Approval(approval) => {
                if last.is_none() {
                    tell(&approval);
                }
                last = Some(approval.state());
            }
            Event::Ended(summary) => return Err(Failure::failed(over(last, &summary.reason))),
            _ => {}
        }
    }
    Err(Failure::failed("the agent has stopped telling of the task, which waits for people"))
}

fn tell(approval: &Approval) {
    let words = format!(
        "the task waits for people ({}): `mayfly approve show {}`",
        cell(&approval.approvers),
        cell(&approval.id)
    );
    writeln!(io::stderr(), "mayfly: {}", clean(&words)).ok();
}

fn over(last: Option<ApprovalState>, reason: &str) -> String {
    match (last, reason) {
        (Some(ApprovalState::Denied), _) => "people did not allow the task".to_owned(),
        (Some(ApprovalState::Expired), _) => "nobody has allowed the task in time".to_owned(),
        (_, "policy") => "policy does not allow the task, or people did not".to_owned(),
        (_, reason) => format!("the task has ended ({}) before people allowed it", cell(reason)),
    }
}
