//! Keeps a [`Source`] fed by the Workload API for as long as the program runs.

use std::time::Duration;

use super::source::Source;
use super::workload::{Agent, WorkloadError};
use crate::id::SpiffeId;

/// The feeding of one [`Source`]: a future to be spawned by the program that owns it.
///
/// Latest wins: each message of the agent replaces identity, bundles and revocation lists as one. An agent that
/// goes away changes nothing; it is asked again after 0.1 s, doubling up to 2 s. An identity that is taken back
/// is given up at once.
#[derive(Debug)]
pub struct Feed {
    source: Source,
    agent: Agent,
    identity: Option<SpiffeId>,
}

/// Pauses between attempts.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Feed {
    /// Feeds `source` from `agent`; call [`Feed::run`].
    pub fn new(source: Source, agent: Agent) -> Self {
        Self { source, agent, identity: None }
    }

    /// Uses that identity instead of the first one.
    #[must_use]
    pub fn identity(mut self, id: SpiffeId) -> Self {
        self.identity = Some(id);
        self
    }

    /// Runs until it is dropped, or until the agent refuses for good: whoever waits for [`Source::ready`] should wait
    /// for this as well.
    ///
    /// # Errors
    /// [`WorkloadError::Untrusted`], [`WorkloadError::Refused`]: nothing that another attempt would change.
    pub async fn run(self) -> Result<(), WorkloadError> {
        let mut backoff = Backoff::new();
        loop {
            match self.follow(&mut backoff).await {
                WorkloadError::NoIdentity(why) => {
                    tracing::warn!(%why, "identity withdrawn");
                    self.source.withdraw();
                }
                error @ (WorkloadError::Untrusted { .. } | WorkloadError::Refused(_)) => return Err(error),
                error => tracing::debug!(%error, "no agent"),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// One connection's life; says why it ended.
    async fn follow(&self, backoff: &mut Backoff) -> WorkloadError {
        let opened = async { self.agent.connect().await?.x509().await };
        let mut stream = match opened.await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        loop {
            match stream.next().await {
                Ok(answer) => {
                    backoff.reset();
                    let cut = self.source.publish(answer.state(self.identity.as_ref()));
                    if cut > 0 {
                        tracing::info!(cut, "connections of revoked certificates were cut");
                    }
                }
                Err(WorkloadError::Answer(error)) => tracing::warn!(%error, "update ignored"),
                Err(error) => return error,
            }
        }
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);

    /// The shortest first.
    pub fn new() -> Self {
        Self(Self::FIRST)
    }

    /// How long to wait this time: 0.1 s, 0.2 s, … 2 s.
    #[expect(clippy::should_implement_trait, reason = "it has no end and is never iterated")]
    pub fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(Self::LONGEST);
        now
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.0 = Self::FIRST;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}
