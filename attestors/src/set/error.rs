//! Why a process has no attestation.

use crate::target::OpenError;

/// Why a process has no attestation.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It is gone.
    #[error("the process exited during attestation")]
    Exited,
    /// It is not who it was when it connected.
    #[error("the process changed its user or group since it connected")]
    CredentialsChanged,
    /// Our own descriptor table is full, or the machine's, or there is no memory: says nothing about the process.
    /// Worth trying again.
    #[error("no descriptor or memory is free to look at the process with")]
    Descriptors,
    /// Too much is being measured; worth trying again.
    #[error("too many programs are being measured")]
    Overloaded,
    /// The answer did not come in time, or was not of one moment; worth trying again.
    #[error("{kind} attestor: {why}")]
    Unanswered {
        /// Which attestor.
        kind: &'static str,
        /// One plain clause; `measure_deadline` when the program could not be read in time.
        why: String,
    },
    /// It could not be read.
    #[error("{kind} attestor: {why}")]
    Failed {
        /// Which attestor.
        kind: &'static str,
        /// One plain clause.
        why: String,
    },
}

impl AttestError {
    /// Whether it is about us or about the moment: it says nothing about the process, and another try may succeed.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Descriptors | Self::Overloaded | Self::Unanswered { .. } => true,
            Self::Exited | Self::CredentialsChanged | Self::Failed { .. } => false,
        }
    }
}

impl From<OpenError> for AttestError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Exited => Self::Exited,
            OpenError::Descriptors => Self::Descriptors,
            OpenError::Failed(error) => Self::Failed { kind: "process", why: error.to_string() },
        }
    }
}
