//! A task that waits for people: the program begins when they have allowed it, or not at all.

use std::io::{self, Write as _};

use mayfly_proto::task::task_event::Event;
use mayfly_proto::task::{Approval, Task, TaskEvent, TaskState, WatchRequest};

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
    let mut told = false;
    while let Some(TaskEvent { event: Some(event), .. }) = answer(events.message()).await? {
        match event {
            Event::Task(task) if task.state() != TaskState::PendingApproval => return Ok(task),
            Event::Approval(approval) if !std::mem::replace(&mut told, true) => tell(&approval),
            Event::Ended(summary) => return Err(Failure::failed(over(&summary.reason))),
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

/// An end is told at once, and what came right before it is not told by itself.
fn over(reason: &str) -> String {
    match reason {
        "policy" => "people did not allow the task, or policy does not any more".to_owned(),
        reason => format!("the task has ended ({}) before people allowed it", cell(reason)),
    }
}
