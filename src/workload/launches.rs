//! Launches: what a process says it is about to become, recorded and audited.

use std::sync::Arc;

use mayfly_attestors::{ExecCounter, LaunchClaim, LaunchError, Process};

use super::Workloads;
use crate::audit::{self, Event};

/// Why a launch was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum LaunchRefusal {
    /// The launcher, or what it brought.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The audit log does not take events.
    #[error("audit log unavailable")]
    Audit(#[source] audit::AuditError),
}

impl Workloads {
    /// Whether launchers must close themselves to other processes of their user.
    pub fn launches_are_hidden(&self) -> bool {
        self.0.parts.attestors.launches().wants_hidden()
    }

    /// Launches can be recorded from now on: the kernel gives word of every exec.
    pub fn count_execs_with(&self, counter: ExecCounter) {
        self.0.parts.attestors.launches().count_with(counter);
    }

    /// Records what a launcher is about to become; the digests of its files, in hex. It stands only if the audit log
    /// has it.
    ///
    /// # Errors
    /// [`LaunchRefusal`].
    pub async fn record_launch(
        &self,
        process: &Arc<Process>,
        claim: LaunchClaim,
    ) -> Result<Vec<String>, LaunchRefusal> {
        let attestors = &self.0.parts.attestors;
        let program = claim.path.to_string_lossy().into_owned();
        let digests = attestors.record_launch(process, claim).await?;
        let measured: Vec<String> = digests.iter().map(|sha256| crate::id::hex_text(sha256)).collect();
        let agent = audit::Agent::new(process.key(), process.uid());
        let recorded = Event::LaunchRecorded { agent, program, measured: measured.clone() };
        if let Err(error) = self.0.parts.audit.record(vec![recorded]).await {
            attestors.launches().forget(&process.key());
            return Err(LaunchRefusal::Audit(error));
        }
        Ok(measured)
    }
}
