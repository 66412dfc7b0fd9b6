//! Findings of `mayfly policy lint`.

use std::time::{Duration, SystemTime};

use super::{Catalogue, PolicySet};
use crate::diag::Problem;

/// Something that loads and should be otherwise.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lint {
    /// What and where.
    pub problem: Problem,
    /// Whether the lint fails by it; else it is only told.
    pub fails: bool,
}

impl Lint {
    pub(super) fn fails(problem: Problem) -> Self {
        Self { problem, fails: true }
    }

    pub(super) fn note(problem: Problem) -> Self {
        Self { problem, fails: false }
    }
}

impl PolicySet {
    /// Everything in the set that should be otherwise, in the order of files and lines.
    pub fn lint(&self, now: SystemTime) -> Vec<Lint> {
        let mut found = reviews(self.catalogue(), now);
        found.extend(self.lint_policies(now));
        found.sort_by(|a, b| a.problem.cmp(&b.problem));
        found.dedup();
        found
    }
}

/// Agents that nobody has looked at for a year.
fn reviews(catalogue: &Catalogue, now: SystemTime) -> Vec<Lint> {
    let mut found = Vec::new();
    for agent in catalogue.agents() {
        let message = match agent.reviewed_at {
            None => format!("`{}` was never reviewed: write `reviewed_at`", agent.pattern),
            Some(at) if now.duration_since(at).is_ok_and(|age| age > REVIEW) => {
                format!("`{}` was last reviewed more than a year ago", agent.pattern)
            }
            Some(_) => continue,
        };
        found.push(Lint::note(agent.place.problem(message)));
    }
    found
}

const REVIEW: Duration = Duration::from_secs(366 * 86_400);
