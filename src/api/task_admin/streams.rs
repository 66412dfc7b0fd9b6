//! What an operator follows: tasks as they change, and lines of the audit log as they are written. Both are asked for
//! what is next only when there is room to send it.

use std::collections::VecDeque;

use futures_util::stream;
use mayfly_proto::task as proto;
use tonic::Status;

use super::super::status::Busy;
use super::super::tasks::errors::{malformed, of_error};
use super::super::tasks::wire;
use super::super::workload::Messages;
use crate::audit::{Filter, NumberedLine, TailOptions, Tailing, TailingError};
use crate::drain::Watch;
use crate::workload::{TaskFollower, TaskView};

/// A stream of what a source gives in heaps, until it fails or the agent stops.
struct Stream<S, T> {
    source: S,
    drain: Watch,
    heap: VecDeque<T>,
    ended: bool,
}

/// Something to follow.
trait Source: Send + 'static {
    type Item: Send;

    /// The next ones; none at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Vec<Self::Item>>, Status>> + Send;
}

impl Source for TaskFollower {
    type Item = TaskView;

    async fn next(&mut self) -> Result<Option<Vec<TaskView>>, Status> {
        Self::next(self).await.map(Some).map_err(of_error)
    }
}

impl Source for Tailing {
    type Item = NumberedLine;

    async fn next(&mut self) -> Result<Option<Vec<NumberedLine>>, Status> {
        Self::next(self).await.map_err(|error| {
            let message = error.to_string();
            match error {
                TailingError::Behind(_) => Status::resource_exhausted(message),
                TailingError::Gap(_) => Status::data_loss(message),
                TailingError::Io(error) => {
                    tracing::error!(%error, "the audit log cannot be read for an operator");
                    Status::unavailable(message)
                }
            }
        })
    }
}

impl<S: Source> Stream<S, S::Item> {
    async fn next(&mut self) -> Option<Result<S::Item, Status>> {
        while !self.ended {
            if let Some(item) = self.heap.pop_front() {
                return Some(Ok(item));
            }
            let next = tokio::select! {
                biased;
                () = self.drain.stopping() => Err(Busy::Stopping.into()),
                next = self.source.next() => next,
            };
            match next {
                Ok(Some(items)) => self.heap.extend(items),
                Ok(None) => self.ended = true,
                Err(status) => {
                    self.ended = true;
                    return Some(Err(status));
                }
            }
        }
        None
    }
}

fn messages<S: Source, M: Send + 'static>(source: S, drain: Watch, show: fn(S::Item) -> M) -> Messages<M> {
    let start = Stream { source, drain, heap: VecDeque::new(), ended: false };
    Box::pin(stream::unfold(start, move |mut state| async move {
        let item = state.next().await?;
        Some((item.map(show), state))
    }))
}

/// Tasks, each again when it changes.
pub(super) fn tasks(follower: TaskFollower, drain: Watch) -> Messages<proto::Task> {
    messages(follower, drain, |view| wire::task(&view))
}

/// Which lines.
pub(super) fn options(asked: proto::TailAuditRequest) -> Result<TailOptions, Status> {
    let some = |text: String| (!text.is_empty()).then_some(text);
    if asked.events.len() > MOST_EVENTS {
        return Err(malformed("events"));
    }
    let filter = Filter {
        events: asked.events,
        spiffe_id: some(asked.spiffe_id),
        task: some(asked.task_id),
        ..Filter::default()
    };
    let last = usize::try_from(asked.last).map_err(|_too_many| malformed("last"))?;
    Ok(TailOptions { last: Some(last), follow: asked.follow, filter })
}

/// Lines of the audit log.
pub(super) fn lines(tailing: Tailing, drain: Watch) -> Messages<proto::AuditEvent> {
    messages(tailing, drain, |NumberedLine { seq, text }| proto::AuditEvent { seq, line: text })
}

/// There are not that many.
const MOST_EVENTS: usize = 64;
