//! The stream of a task: first the task, then what changes, last how it ended.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream;
use mayfly_proto::task as proto;
use proto::task_event::Event;
use tonic::Status;

use super::approvals::approval;
use super::errors::{frozen, of_error};
use super::wire;
use crate::api::status::Busy;
use crate::api::workload::Messages;
use crate::clock::Clock;
use crate::drain::Watch;
use crate::id::ApprovalId;
use crate::task::approval::ApprovalState;
use crate::task::{Follower, Held, Note, Refused};
use crate::workload::{ApprovalView, Look, TaskWatch};

/// Tells of a task until it has ended, or its follower may not know any more.
pub(super) fn messages(watch: TaskWatch, clock: Arc<dyn Clock>, drain: Watch) -> Messages<proto::TaskEvent> {
    let start = TaskStream {
        watch,
        clock,
        drain,
        follower: Follower::default(),
        asked: HashMap::new(),
        waiting: VecDeque::new(),
        over: false,
    };
    Box::pin(stream::unfold(start, |mut state| async move {
        let message = state.next().await?;
        Some((message, state))
    }))
}

/// A task as it was shown. Its moments are kept by the monotonic clock: the wall clock's word for them is a little
/// different each time, and that is no change.
#[derive(Clone)]
struct Shown {
    task: proto::Task,
    ends: (Instant, Instant),
}

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        let plain = |one: &Self| proto::Task { deadline: None, latest_deadline: None, ..one.task.clone() };
        self.ends == other.ends && plain(self) == plain(other)
    }
}

struct TaskStream {
    watch: TaskWatch,
    clock: Arc<dyn Clock>,
    drain: Watch,
    follower: Follower<Shown>,
    /// Approvals as they were shown.
    asked: HashMap<ApprovalId, ApprovalState>,
    /// What the last look brought and nobody has taken yet: no more than the task holds credentials and has
    /// asked people for. Nothing is looked at before it is empty.
    waiting: VecDeque<proto::TaskEvent>,
    over: bool,
}

impl TaskStream {
    async fn next(&mut self) -> Option<Result<proto::TaskEvent, Status>> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            let now = self.clock.wall();
            let (view, held) = match self.watch.look() {
                Look::Live(view, held) => (view, held),
                Look::Ended(summary) => {
                    return self.end(Ok(event(now, Event::Ended(wire::summary(&summary)))));
                }
                Look::Forgotten => return self.end(Err(of_error(Refused::NoSuchTask.into()))),
                Look::Frozen => return self.end(Err(frozen())),
            };
            let shown = Shown { task: wire::task(&view), ends: (view.task.deadline, view.task.latest) };
            let notes = self.follower.look(shown, held, now);
            let events = notes.into_iter().map(|note| self.told(note)).map(|told| event(now, told));
            self.waiting = events.collect();
            let asked = self.asked();
            self.waiting.extend(asked.into_iter().map(|told| event(now, told)));
            if self.waiting.is_empty() && !self.wait().await {
                return self.end(Err(Busy::Stopping.into()));
            }
        }
    }

    /// Waits until there may be something to tell; false when the agent stops.
    async fn wait(&mut self) -> bool {
        let ripe = self.follower.wakes_at();
        let ripe = ripe.map(|at| at.duration_since(self.clock.wall()).unwrap_or_default());
        tokio::select! {
            () = self.drain.stopping() => return false,
            () = self.watch.changed() => {}
            // Runs past the moment: clocks have seconds, timers milliseconds.
            () = after(ripe.map(|left| left + Duration::from_millis(1))) => return true,
        }
        // Several changes at once are one message; an end waits for nothing.
        tokio::select! {
            () = self.watch.ended() => {}
            () = tokio::time::sleep(SETTLE) => {}
        }
        true
    }

    /// What people were asked or have answered since the last look. One that was closed before the first is history.
    fn asked(&mut self) -> Vec<Event> {
        let all = self.watch.approvals();
        let seen = std::mem::take(&mut self.asked);
        let is_new = |view: &&ApprovalView| match seen.get(&view.approval.id) {
            Some(before) => *before != view.approval.state,
            None => view.approval.state.is_open(),
        };
        let told =
            all.iter().filter(is_new).map(|view| Event::Approval(for_the_agent(approval(view)))).collect();
        self.asked = all.iter().map(|view| (view.approval.id, view.approval.state)).collect();
        told
    }

    fn told(&self, note: Note<Shown>) -> Event {
        match note {
            Note::Changed(shown) => Event::Task(shown.task),
            Note::Expiring(held) => {
                let Held { lease, audience, expires, .. } = held;
                let expires_at = Some(wire::timestamp(expires));
                Event::CredentialExpiring(proto::CredentialExpiring {
                    id: lease.to_string(),
                    audience,
                    expires_at,
                })
            }
            Note::Revoked(held) => Event::CredentialRevoked(proto::CredentialRevoked {
                id: held.lease.to_string(),
                audience: held.audience,
                reason: self.watch.why_refused(held.lease).to_owned(),
            }),
        }
    }

    fn end<T>(&mut self, last: Result<T, Status>) -> Option<Result<T, Status>> {
        self.over = true;
        Some(last)
    }
}

fn event(at: SystemTime, event: Event) -> proto::TaskEvent {
    proto::TaskEvent { at: Some(wire::timestamp(at)), event: Some(event) }
}

/// Who answered, and what the agent's daemon showed them, is for people.
fn for_the_agent(approval: proto::Approval) -> proto::Approval {
    proto::Approval { votes: Vec::new(), facts: Vec::new(), ..approval }
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// Changes within this time are told together.
const SETTLE: Duration = Duration::from_millis(20);
