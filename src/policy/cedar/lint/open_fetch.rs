//! What of the Workload API is open: a token for whatever audience an agent names, outside of any task.

use std::time::SystemTime;

use cedar_policy::{Decision, Effect, PolicySet};

use super::agents;
use super::reading::Conditions;
use crate::policy::cedar::Rules;
use crate::policy::cedar::index::actions_of;
use crate::policy::cedar::parse::Rule;
use crate::policy::lint::Lint;
use crate::policy::sketch::Sketch;
use crate::policy::{Action, Catalogue, Kind};

/// A permit of `fetch` that asks neither for a form nor for an audience, or asks and lets any audience through.
pub(super) fn open_fetch(
    rules: &Rules,
    catalogue: &Catalogue,
    rule: &Rule,
    conditions: &Conditions,
    now: SystemTime,
) -> Option<Lint> {
    let fetches = actions_of(&rule.policy).contains(&Action::Fetch);
    if rule.notes.effect == Effect::Forbid || !fetches {
        return None;
    }
    let asks = conditions.read("resource", "kind") || conditions.read("resource", "audiences");
    if asks && !gives_to_anybody(rules, catalogue, rule, now) {
        return None;
    }
    let message = format!(
        "`{}` lets an agent fetch tokens for every audience, outside of any task: write \
         `when {{ resource.kind == \"x509\" }}`, or name the audiences",
        rule.notes.id
    );
    Some(Lint::note(rule.notes.place.problem(message)))
}

/// Whether it alone gives some agent of the catalogue a token for an audience that nobody has.
fn gives_to_anybody(rules: &Rules, catalogue: &Catalogue, rule: &Rule, now: SystemTime) -> bool {
    let mut alone = PolicySet::new();
    if alone.add(rule.policy.clone()).is_err() {
        return false;
    }
    agents(catalogue).any(|agent| {
        let sketch = Sketch {
            agent: Some(agent),
            action: Some(Action::Fetch),
            kind: Some(Kind::Jwt),
            audiences: [NOBODY.to_owned()].into(),
            ..Sketch::default()
        };
        let asked =
            sketch.question(catalogue, now).ok().and_then(|one| rules.types.ask(&one, catalogue).ok());
        asked.is_some_and(|asked| {
            let answer = rules.authorizer.is_authorized(&asked.request, &alone, &asked.entities);
            answer.decision() == Decision::Allow
        })
    })
}

/// No audience: the name cannot be had (RFC 6761).
const NOBODY: &str = "https://nobody.invalid";
