//! What belongs to one kind of event only, as it stands in the line.

use serde::Serialize;

use super::timestamp;
use crate::audit::event::Event;
use crate::audit::text::capped;

/// What belongs to one kind of event only.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Detail {
    Start {
        version: String,
        posture: Vec<String>,
    },
    Reason {
        reason: String,
    },
    Launch {
        program: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        measured: Vec<String>,
    },
    Entries {
        source: String,
        total: u64,
        added: Names,
        removed: Names,
        changed: Names,
    },
    Frozen {
        what: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
        #[serde(skip_serializing_if = "is_false")]
        revoke: bool,
        #[serde(skip_serializing_if = "is_false")]
        needs_another: bool,
        #[serde(skip_serializing_if = "is_false")]
        unknown: bool,
    },
    Killed {
        #[serde(skip_serializing_if = "Option::is_none")]
        cgroup: Option<String>,
        initiator: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    Policy {
        source: String,
        version: String,
        policies: u64,
        targets: u64,
    },
    Rejected {
        source: String,
        problems: Names,
    },
    Authority {
        kind: &'static str,
        id: String,
        algorithm: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        not_after: Option<String>,
        created: bool,
    },
    Step {
        kind: &'static str,
        id: String,
        state: &'static str,
        #[serde(skip_serializing_if = "is_false")]
        leaving: bool,
        #[serde(skip_serializing_if = "is_false")]
        hurried: bool,
    },
    Lost {
        reason: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        moved_to: Option<String>,
    },
    Admin {
        target: String,
        credentials: u64,
    },
    Fetch {
        trust_domain: String,
        url: String,
        peer: String,
        result: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        sequence: Option<u64>,
        changed: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        sequence_went_back: bool,
    },
    Bundle {
        order: &'static str,
        trust_domain: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        sequence: Option<u64>,
    },
    Checkpoint {
        seq: u64,
        head: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        proof: Option<String>,
    },
    Recovered {
        cut_bytes: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        moved_to: Option<String>,
    },
    ExecWatchLost {
        suspects: u64,
    },
    Socket {
        path: String,
        found: &'static str,
    },
    Gap {
        lost: u64,
    },
}

/// A list that a big installation could make long: the first of it, and how many there are.
#[derive(Serialize)]
pub(super) struct Names {
    count: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    first: Vec<String>,
}

impl Event {
    fn step(&self) -> Option<Detail> {
        let Self::AuthorityStep { kind, id, state, leaving, hurried, .. } = self else { return None };
        Some(Detail::Step {
            kind: kind.as_str(),
            id: capped(id),
            state: state.as_str(),
            leaving: *leaving,
            hurried: *hurried,
        })
    }

    /// What an event says that is about no process.
    pub(super) fn detail(&self) -> Option<Detail> {
        Some(match self {
            Self::AuthorityStep { .. } => return self.step(),
            Self::EntriesChanged { source, total, added, removed, changed } => Detail::Entries {
                source: capped(source),
                total: *total,
                added: Names::of(added.iter().map(|id| id.as_str())),
                removed: Names::of(removed.iter().map(|id| id.as_str())),
                changed: Names::of(changed.iter().map(|id| id.as_str())),
            },
            Self::PolicyLoaded { source, version, policies, targets } => Detail::Policy {
                source: capped(source),
                version: capped(version),
                policies: *policies,
                targets: *targets,
            },
            Self::EntriesRejected { source, problems } | Self::PolicyRejected { source, problems } => {
                Detail::Rejected {
                    source: capped(source),
                    problems: Names::of(problems.iter().map(String::as_str)),
                }
            }
            Self::AuthorityLoaded { kind, id, algorithm, not_after, created } => Detail::Authority {
                kind: kind.as_str(),
                id: capped(id),
                algorithm: capped(algorithm),
                not_after: not_after.map(timestamp),
                created: *created,
            },
            Self::LedgerLost { why, moved_to } => {
                Detail::Lost { reason: capped(why), moved_to: moved_to.as_deref().map(capped) }
            }
            Self::Checkpoint { head, proof } => {
                Detail::Checkpoint { seq: head.seq, head: head.hash_text(), proof: proof.clone() }
            }
            Self::BundleOrder { order, trust_domain, sequence, .. } => {
                Detail::Bundle { order, trust_domain: trust_domain.to_string(), sequence: *sequence }
            }
            Self::Freeze { .. } | Self::Thaw { .. } => self.frozen()?,
            Self::Killed { cgroup, initiator, failed, .. } => Detail::Killed {
                cgroup: cgroup.as_deref().map(capped),
                initiator: capped(initiator),
                error: failed.as_deref().map(capped),
            },
            Self::Recovered { cut_bytes, moved_to } => {
                Detail::Recovered { cut_bytes: *cut_bytes, moved_to: moved_to.as_deref().map(capped) }
            }
            Self::Gap { lost } => Detail::Gap { lost: *lost },
            Self::SocketReplaced { path, found } => Detail::Socket { path: capped(path), found },
            Self::ExecWatchLost { suspects } => Detail::ExecWatchLost { suspects: *suspects },
            Self::BundleFetch { trust_domain, url, peer, outcome, changed, went_back } => Detail::Fetch {
                trust_domain: trust_domain.to_string(),
                url: capped(url),
                peer: capped(peer),
                result: outcome.as_ref().map_or_else(|why| capped(why), |_| "ok".to_owned()),
                sequence: outcome.as_ref().ok().copied().flatten(),
                changed: *changed,
                sequence_went_back: *went_back,
            },
            _ => return None,
        })
    }
}

impl Event {
    /// What was frozen or thawed.
    fn frozen(&self) -> Option<Detail> {
        let (what, reason, revoke, needs_another, unknown) = match self {
            Self::Freeze { what, reason, revoke, unknown, .. } => (what, reason, *revoke, false, *unknown),
            Self::Thaw { what, reason, needs_another, .. } => (what, reason, false, *needs_another, false),
            _ => return None,
        };
        Some(Detail::Frozen { what: capped(what), reason: capped(reason), revoke, needs_another, unknown })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Names {
    fn of<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> Self {
        Self { count: names.len(), first: names.take(MAX_NAMES).map(capped).collect() }
    }
}

pub(super) fn first<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.take(MAX_NAMES).map(|name| capped(name)).collect()
}

/// Longer lists are given by their length and this many of their first names.
const MAX_NAMES: usize = 32;
