//! Pins a process and turns it into selectors. Knows nothing of SPIFFE IDs, policy or keys.
//!
//! A [`Process`] is one live process, held by a pidfd: nothing here is ever looked up by a bare process number
//! twice. Whatever is read about it counts only if the process was still alive after the read.

mod attestation;
mod backend;
mod cgroup;
mod docker;
pub mod failpoint;
mod foreign;
mod gather;
mod host;
pub mod kubernetes;
mod launch;
mod lineage;
mod measure;
mod neighbours;
pub mod origin;
mod passed;
mod privilege;
mod process;
mod root_socket;
mod scope;
mod seccomp;
mod selector;
mod set;
mod socket;
pub mod sys;
mod systemd;
mod target;
#[cfg(test)]
mod testing;
mod text;
mod ticks;
mod unix;

pub use attestation::{Answer, Attestation, Depth, Fingerprint, Gap, Outcome, Posture};
pub use backend::{Backend, BackendFuture, BackendTask, Found, News, Silent, Subject, Tell};
pub use docker::{Docker, DockerSettings};
pub use foreign::{ForeignError, ForeignType};
pub use gather::{Everything, Interest};
pub use host::{BootId, BootIdError, Features, Host, HostError};
pub use launch::{
    Code, LaunchClaim, LaunchError, Launches, MAX_BYTES as MAX_MEASURED_BYTES,
    MAX_FILES as MAX_MEASURED_FILES, ParentError, SealError, sealed_copy, sealed_digest,
};
pub use measure::{MeasureFigures, MeasureLimits, Measurer, WorkerCommand, measure_worker};
pub use passed::{adopt_passed, inode_of_pidfd};
pub use privilege::raise_permitted;
pub use process::{
    ExecCounter, ExecMode, ExecNotice, ExecWatch, ExitCause, ExitNotice, PinError, Process, ProcessKey,
    Reaper, WatchLost,
};
pub use root_socket::{RootSocketError, connect_to_root};
pub use scope::{CgroupEvents, CgroupScope, Cgroups, ScopeError};
pub use seccomp::{SeccompError, deny_what_is_never_needed};
pub use selector::{Selector, Strength, strength_of};
pub use set::{AttestError, AttestSettings, AttestorSet};
pub use systemd::Systemd;
