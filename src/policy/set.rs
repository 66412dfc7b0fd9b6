//! One policy set: policies and catalogue, read together, never changed afterwards.

use super::{Catalogue, Decision, EvaluationId, Obligations, PolicyVersion, Question, Reason, Verdict};

/// What decides. Pure: the same question gets the same answer.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    version: Option<PolicyVersion>,
    catalogue: Catalogue,
}

impl PolicySet {
    /// No set: everything is denied but what a matched entry gives by itself.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether this is a set at all.
    pub fn is_loaded(&self) -> bool {
        self.version.is_some()
    }

    /// What tells it from another; `None` when none is loaded.
    pub fn version(&self) -> Option<PolicyVersion> {
        self.version
    }

    /// What it decides about.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Decides.
    pub fn decide(&self, _question: &Question, id: EvaluationId) -> Decision {
        Decision {
            verdict: Verdict::Deny,
            evaluation_id: id,
            policy_ids: Vec::new(),
            policy_version: self.version,
            reason: Reason::NoPolicy,
            obligations: Obligations::default(),
        }
    }
}
