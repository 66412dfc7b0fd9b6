//! Bounds on attesting.

use std::path::PathBuf;
use std::time::Duration;

/// Bounds on attesting.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttestSettings {
    /// For every attestor but back-ends, which have their own; the hash of the program has its own too
    /// ([`crate::MeasureLimits`]).
    pub deadline: Duration,
    /// How many ancestors are measured at most.
    pub ancestors: usize,
    /// Where the machine's cgroups are mounted.
    pub cgroup_root: PathBuf,
    /// Below which cgroup this node's containers are; empty on an ordinary host.
    pub cgroup_prefix: PathBuf,
}

impl Default for AttestSettings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(1),
            ancestors: 16,
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            cgroup_prefix: PathBuf::new(),
        }
    }
}
