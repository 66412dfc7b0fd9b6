//! What an admitted process is known by for as long as it is served. Made by `admit` alone.

use std::sync::Arc;

use mayfly_attestors::{Attestation, Process};

use super::super::Shared;
use super::super::state::federates_with;
use crate::lease::WorkloadId;
use crate::registration::Identity;
use crate::trust::FederatesWith;

/// Proof that a process was pinned, attested and matched to at least one entry just now.
#[derive(Clone, Debug)]
#[must_use]
pub struct Admission {
    pub(super) id: WorkloadId,
    pub(super) process: Arc<Process>,
    pub(super) attestation: Arc<Attestation>,
    pub(super) identities: Vec<Identity>,
    pub(super) cgroup: Option<u64>,
    pub(super) _held: Arc<Held>,
}

/// While it lives the workload is not forgotten, though it may hold nothing yet. Takes the state lock when dropped.
pub(super) struct Held(pub(super) Arc<Shared>, pub(super) WorkloadId);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.1.fmt(f)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.core.unhold(self.1);
        self.0.forget_idle(&mut state, self.1);
    }
}

impl Admission {
    /// The workload.
    pub fn id(&self) -> WorkloadId {
        self.id
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The cgroup that it is in, where one holds a task: read for this call.
    pub(in crate::workload) fn cgroup(&self) -> Option<u64> {
        self.cgroup
    }

    /// What the attestors said.
    pub fn attestation(&self) -> &Attestation {
        &self.attestation
    }

    /// The trust domains whose bundles it may have: those that its entries name.
    pub fn federates_with(&self) -> FederatesWith {
        federates_with(&self.identities)
    }

    /// Its identities, the default first. Never empty.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }
}
