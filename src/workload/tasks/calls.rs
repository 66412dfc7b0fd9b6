//! Calls that run to their end.

use tokio::sync::oneshot;

use super::TaskError;
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
        let (send, answer) = oneshot::channel();
        self.0.spawn_for_call(async move {
            // Nobody may be there any more who wants to know.
            send.send(work.await).ok();
        });
        // The runtime is only gone when the agent is.
        answer.await.unwrap_or(Err(TaskError::Workload(Refusal::WatchLost)))
    }
}
