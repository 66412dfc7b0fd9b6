//! Calls that run to their end.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::TaskError;
use crate::task::{Limit, Refused};
use crate::workload::{Refusal, Workloads};

impl Workloads {
    /// Does what a caller asked for whether or not the caller waits: what cannot be recorded must be undone then, too, and
    /// people be told of what they are asked.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
    ) -> Result<T, TaskError> {
        // Who goes away frees his stream, and not this.
        let place = Arc::clone(&self.0.calls).try_acquire_owned();
        let place = place.map_err(|_full| TaskError::Refused(Refused::Limit(Limit::Rate)))?;
        let (send, answer) = oneshot::channel();
        self.0.spawn_for_call(async move {
            // Nobody may be there any more who wants to know.
            send.send(work.await).ok();
            drop(place);
        });
        // The runtime is only gone when the agent is.
        answer.await.unwrap_or(Err(TaskError::Workload(Refusal::WatchLost)))
    }
}
