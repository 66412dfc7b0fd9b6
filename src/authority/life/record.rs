//! One authority as the life cycle sees it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::authority::State;

/// What an authority signs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthorityKind {
    /// X.509-SVIDs and CRLs.
    X509,
    /// JWT-SVIDs.
    Jwt,
    /// WIT-SVIDs.
    Wit,
}

impl AuthorityKind {
    /// `x509`, `jwt` or `wit`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }
}

impl fmt::Display for AuthorityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an authority stands, and since when. Times are Unix seconds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// What it signs.
    pub kind: AuthorityKind,
    /// Its name: key identifier in hex, or `kid`.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// Its validity ends.
    pub not_after: u64,
    /// It was made.
    pub prepared_at: u64,
    /// It began to sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<u64>,
    /// Another took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_at: Option<u64>,
    /// What it signed began to be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tainted_at: Option<u64>,
    /// It was ordered out of the bundle, and leaves when everything it signed has been replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoking_since: Option<u64>,
    /// It left the bundle by order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<u64>,
}

impl Record {
    /// One that was just made.
    pub fn prepared(kind: AuthorityKind, id: String, not_after: u64, now: u64) -> Self {
        Self {
            kind,
            id,
            state: State::Prepared,
            not_after,
            prepared_at: now,
            activated_at: None,
            old_at: None,
            tainted_at: None,
            revoking_since: None,
            revoked_at: None,
        }
    }

    /// Whether verifiers are told of it.
    pub fn in_bundle(&self) -> bool {
        self.state != State::Revoked
    }

    fn life(&self) -> u64 {
        self.not_after.saturating_sub(self.prepared_at)
    }

    /// A successor is made from then on.
    pub(super) fn half(&self) -> u64 {
        self.not_after - self.life().div_ceil(2)
    }

    /// A successor takes over from then on.
    pub(super) fn last_sixth(&self) -> u64 {
        self.not_after - self.life() / 6
    }

    /// A successor takes over then even if verifiers had little time to learn it: what this one still signs lives
    /// hardly longer than it takes to hand over.
    pub(super) fn last_moment(&self) -> u64 {
        self.not_after - (self.life() / 60).clamp(1, 60)
    }
}
