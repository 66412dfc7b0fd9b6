//! A decision taken apart, for operators: what each policy that could have applied made of the question.

use std::fmt;

use super::{Decision, Verdict};

/// Why a decision is what it is, and what would have to change.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// Policies about this action: those that decided, then those that came nearest.
    pub considered: Vec<Considered>,
    /// What would have to change for a yes; empty for a yes.
    pub changes: Vec<String>,
}

/// What one policy made of the question.
#[derive(Clone, Debug)]
pub struct Considered {
    /// Its name.
    pub id: String,
    /// Where it stands.
    pub place: String,
    /// Whether it permits or forbids.
    pub permits: bool,
    /// Whether it decided.
    pub decided: bool,
    /// Why it did not apply: each thing that does not hold. Empty when it applies.
    pub because: Vec<String>,
    /// As it is written.
    pub text: String,
}

impl Explanation {
    /// Where there are no policies there is nothing to tell.
    pub(super) fn without_policies(decision: Decision) -> Self {
        let changes = match decision.verdict {
            Verdict::Allow => Vec::new(),
            _ => vec!["no policy set is loaded: set `policy.dir`".to_owned()],
        };
        Self { decision, considered: Vec::new(), changes }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision { verdict, reason, obligations, .. } = &self.decision;
        writeln!(f, "{} ({})", verdict.as_str(), reason.as_str())?;
        if let Some(ttl) = obligations.max_ttl {
            writeln!(f, "  for at most {}", crate::diag::ShownDuration(ttl))?;
        }
        if let Some(binding) = obligations.binding {
            writeln!(f, "  binding {}", binding.as_str())?;
        }
        for log in &obligations.log {
            writeln!(f, "  only with the operation named, and recorded with {}", log.as_str())?;
        }
        for policy in &self.considered {
            let effect = if policy.permits { "permit" } else { "forbid" };
            let part = if policy.decided { "decided" } else { "does not apply" };
            writeln!(f, "\n{effect} {} ({}): {part}", policy.id, policy.place)?;
            for reason in &policy.because {
                writeln!(f, "  - {reason}")?;
            }
            for line in policy.text.lines() {
                writeln!(f, "    | {}", crate::diag::Shown(line))?;
            }
        }
        if !self.changes.is_empty() {
            writeln!(f, "\nto be allowed:")?;
        }
        for change in &self.changes {
            writeln!(f, "  - {change}")?;
        }
        Ok(())
    }
}
