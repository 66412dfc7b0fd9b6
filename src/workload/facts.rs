//! What policy may know of a process.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mayfly_attestors::{Attestation, Process};

use super::{Admission, Shared, Workloads};
use crate::clock::unix_millis;
use crate::id::EntryId;
use crate::policy::{Decision, Engine, PostureFacts, WorkloadFacts};
use crate::registration::Identity;

impl Workloads {
    /// Decides, by the policy set in force. Clones of it follow the set.
    pub fn policy(&self) -> &Engine {
        &self.0.parts.policy
    }

    /// What policy may know of an admitted process in the name of one of its identities, as it was last attested.
    /// `None` when it has ended or has lost that identity since. Whether it is isolated is for a task's shell to say.
    pub fn facts(&self, admission: &Admission, entry: &EntryId) -> Option<WorkloadFacts> {
        let state = self.0.lock();
        let member = state.members.get(&admission.id())?;
        let identity = member.identity(entry)?;
        Some(self.0.facts(&member.process, &member.attestation, member.attested_at, identity))
    }
}

impl Shared {
    pub(super) fn facts(
        &self,
        process: &Process,
        attestation: &Attestation,
        attested_at: Instant,
        identity: &Identity,
    ) -> WorkloadFacts {
        self.facts_of(process.uid(), attestation, attested_at, identity)
    }

    pub(super) fn facts_of(
        &self,
        uid: u32,
        attestation: &Attestation,
        attested_at: Instant,
        identity: &Identity,
    ) -> WorkloadFacts {
        let clock = &self.parts.clock;
        let age = clock.monotonic().saturating_duration_since(attested_at);
        let now = clock.wall();
        let says = |key| attestation.values("process", key).any(|value| value == "true");
        let odd = attestation.posture();
        WorkloadFacts {
            spiffe_id: identity.spiffe_id.clone(),
            profile: identity.entry.id.clone(),
            uid,
            selectors: attestation.selectors().iter().map(ToString::to_string).collect(),
            exe_sha256: attestation.values("unix", "sha256").next().unwrap_or_default().to_owned(),
            node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            posture: PostureFacts {
                traced: odd.traced,
                exe_deleted: odd.anonymous_exe,
                no_new_privs: says("no_new_privs"),
                isolated: false,
            },
            attested_at: to_a_tenth(now.checked_sub(age).unwrap_or(now)),
            groups: BTreeSet::new(),
        }
    }
}

/// To a tenth of a second, rounded down: it comes of two clocks, and must be the same each time for one process, so that
/// what was made of it is found again.
fn to_a_tenth(at: SystemTime) -> SystemTime {
    let millis = unix_millis(at);
    UNIX_EPOCH + Duration::from_millis(millis - millis % 100)
}

/// Why, for the record: what the operator finds again in `mayfly policy explain`.
pub(super) fn why(decision: &Decision) -> String {
    let reason = decision.reason.as_str();
    let by = if decision.policy_ids.is_empty() {
        String::new()
    } else {
        format!(" by {}", decision.policy_ids.join(", "))
    };
    format!("{reason}{by} ({})", decision.evaluation_id)
}
