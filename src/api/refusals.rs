//! Connections that were closed before they were served: why, and how many.

use std::sync::atomic::{AtomicU64, Ordering};

use mayfly_attestors::PinError;

use super::seats::Full;

/// Why a connection was closed before it was served.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Refusal {
    /// Too many connections.
    Total,
    /// Too many of this uid, or of it in its container.
    Uid,
    /// Too many of this cgroup.
    Cgroup,
    /// This uid connects too fast.
    Rate,
    /// The process was gone before it could be pinned.
    Exited,
    /// The kernel cannot name it or its user from here.
    Unnameable,
    /// Nothing to pin it with was left.
    Descriptors,
    /// The kernel refuses to pin.
    Unsupported,
    /// The agent is stopping.
    Stopping,
}

impl Refusal {
    /// Every reason, in the order of [`Refusals::counts`].
    pub const ALL: [Self; 9] = [
        Self::Total,
        Self::Uid,
        Self::Cgroup,
        Self::Rate,
        Self::Exited,
        Self::Unnameable,
        Self::Descriptors,
        Self::Unsupported,
        Self::Stopping,
    ];

    /// A stable name for logs, metrics and the audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Total => "too_many_connections",
            Self::Uid => "too_many_of_uid",
            Self::Cgroup => "too_many_of_cgroup",
            Self::Rate => "too_many_connects_of_uid",
            Self::Exited => "peer_exited",
            Self::Unnameable => "peer_unnameable",
            Self::Descriptors => "out_of_descriptors",
            Self::Unsupported => "pin_unsupported",
            Self::Stopping => "stopping",
        }
    }
}

/// A connection that was closed before it was served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Why.
    pub reason: Refusal,
    /// Effective uid when it connected, if the kernel said.
    pub uid: Option<u32>,
    /// Process number when it connected; it may name another process by now.
    pub pid: Option<u32>,
}

/// How many connections were refused, by reason.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Refusals {
    /// Each reason and its count.
    pub fn counts(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    pub(super) fn count(&self, reason: Refusal) {
        for (known, count) in Refusal::ALL.iter().zip(&self.0) {
            count.fetch_add(u64::from(*known == reason), Ordering::Relaxed);
        }
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        match full {
            Full::Total => Self::Total,
            Full::Uid => Self::Uid,
            Full::Cgroup => Self::Cgroup,
            Full::Rate => Self::Rate,
        }
    }
}

impl From<PinError> for Refusal {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Exited => Self::Exited,
            PinError::Overflow => Self::Unnameable,
            PinError::Descriptors => Self::Descriptors,
            PinError::Unsupported(_) => Self::Unsupported,
        }
    }
}
