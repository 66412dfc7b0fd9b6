//! Why the agent did not start, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use mayfly_attestors::{HostError, SeccompError};

use super::web::WebError;
use crate::api::listener::BindError;
use crate::audit::LogOpenError;
use crate::authority::LoadError;
use crate::diag::Problems;
use crate::exit::Exit;
use crate::files::FileError;
use crate::ledger::OpenError;

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration or the entries are wrong; nothing was started.
    #[error("{0}")]
    Config(Problems),
    /// The process cannot be made non-dumpable.
    #[error("cannot protect the agent's memory: {0}")]
    Harden(#[source] io::Error),
    /// System calls cannot be taken away.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// This machine cannot pin processes.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A directory of the agent cannot be used.
    #[error(transparent)]
    Directory(#[from] FileError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The ledger is older than the last CRL that was published: it cannot name every credential that is out.
    #[error(
        "the ledger in {0} was rolled back, or its last CRL is damaged ({why}); nothing will be issued. \
         `mayfly ledger reset --data-dir {0}` moves it aside together with its signing keys: the next start makes \
         new ones and every old credential leaves the bundle",
        data_dir.display()
    )]
    Rollback {
        /// The data directory.
        data_dir: PathBuf,
        /// How it showed.
        why: String,
    },
    /// The authority's keys cannot be used.
    #[error(transparent)]
    Authority(#[from] LoadError),
    /// There is not one active authority of each kind: our mistake.
    #[error("there is not exactly one active authority of each kind")]
    NoAuthorities,
    /// The passphrase of the key files cannot be had.
    #[error("cannot read the passphrase of the key files from {}: {why}", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration names a credential, and no service manager has handed any over.
    #[error(
        "`authority.passphrase_credential` is set and CREDENTIALS_DIRECTORY is not: start the agent as a systemd \
         service with LoadCredentialEncrypted=, or use `passphrase_file`"
    )]
    NoCredentials,
    /// The audit log cannot be used, and without it nothing may be issued.
    #[error(transparent)]
    Audit(#[from] LogOpenError),
    /// A socket cannot be bound.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// Pods are to be looked up, and cannot be.
    #[error("pods cannot be looked up: {0}")]
    Kubernetes(String),
    /// An HTTP listener cannot be started.
    #[error(transparent)]
    Web(#[from] WebError),
    /// There is no private directory for the development sockets.
    #[error("no private directory for the sockets: `{}` {why}; set XDG_RUNTIME_DIR or --runtime-dir", path.display())]
    RuntimeDir {
        /// The directory that was tried.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The interface descriptions do not fit each other: our mistake.
    #[error("cannot describe the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A thread or runtime could not be made.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

impl StartError {
    /// The exit code, as documented in `docs/cli.md`.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Invalid,
            Self::Host(_) => Exit::CannotPin,
            Self::Ledger(OpenError::InUse { .. }) => Exit::DataDirBusy,
            Self::Directory(_)
            | Self::Passphrase { .. }
            | Self::Rollback { .. }
            | Self::Ledger(_)
            | Self::Authority(_)
            | Self::Audit(_) => Exit::DataDir,
            Self::Harden(_)
            | Self::Seccomp(_)
            | Self::NoAuthorities
            | Self::NoCredentials
            | Self::Kubernetes(_)
            | Self::Reflection(_)
            | Self::Listen(_)
            | Self::Web(_)
            | Self::RuntimeDir { .. }
            | Self::System(_) => Exit::Failed,
        }
    }
}
