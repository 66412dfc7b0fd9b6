//! What is right and yet should not be: exceptions nobody answers for, names nobody has, reviews nobody made.

mod exceptions;
mod jury;
mod open_fetch;
mod reading;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use cedar_policy::{PrincipalConstraint, ResourceConstraint};

use self::exceptions::exception;
use self::jury::jury;
use self::open_fetch::open_fetch;
use self::reading::Conditions;
use super::Rules;
use super::parse::Rule;
use crate::id::SpiffeId;
use crate::policy::Catalogue;
use crate::policy::lint::Lint;

impl Rules {
    /// See [`crate::policy::PolicySet::lint`].
    pub(in crate::policy) fn lint(&self, catalogue: &Catalogue, now: SystemTime) -> Vec<Lint> {
        let mut found: Vec<Lint> = self.warnings.iter().cloned().map(Lint::note).collect();
        let names = Names::of(catalogue);
        let mut for_everybody = 0;
        for rule in self.by_id.values() {
            let conditions = Conditions::of(rule);
            found.extend(exception(rule, &conditions));
            found.extend(open_fetch(self, catalogue, rule, &conditions, now));
            found.extend(jury(self, catalogue, rule, now));
            found.extend(facts(rule, &conditions));
            found.extend(dates(rule, now));
            found.extend(approval(rule, catalogue));
            found.extend(names.strangers(rule));
            let principal = matches!(
                rule.policy.principal_constraint(),
                PrincipalConstraint::Any | PrincipalConstraint::Is(_)
            );
            let resource = matches!(
                rule.policy.resource_constraint(),
                ResourceConstraint::Any | ResourceConstraint::Is(_)
            );
            for_everybody += usize::from(principal && resource);
        }
        if for_everybody > MANY {
            let message = format!(
                "{for_everybody} policies name neither a principal nor a resource in their heads: each decision \
                 evaluates all of them; name groups in the head, not in the condition"
            );
            found.push(Lint::note(crate::diag::Problem::whole_file("policies", message)));
        }
        found
    }
}

fn dates(rule: &Rule, now: SystemTime) -> Option<Lint> {
    let until = rule.notes.until?;
    if rule.has_ended(now) {
        let at = crate::policy::shown_time(until);
        return Some(Lint::note(
            rule.notes.place.problem(format!("`{}` ended at {at}: remove it", rule.notes.id)),
        ));
    }
    let far = until.duration_since(now).is_ok_and(|left| left > FAR);
    far.then(|| Lint::note(rule.notes.place.problem(format!("`{}` ends in more than a year", rule.notes.id))))
}

fn approval(rule: &Rule, catalogue: &Catalogue) -> Option<Lint> {
    let group = rule.notes.approval.as_ref()?;
    let place = &rule.notes.place;
    let id = &rule.notes.id;
    if !Conditions::of(rule).read("context", "approval") {
        let message = format!(
            "`{id}` requires an approval and does not look at `context.approval`: none would lift it"
        );
        return Some(Lint::fails(place.problem(message)));
    }
    let nobody = !catalogue.people().any(|person| person.groups.contains(group));
    nobody.then(|| {
        Lint::note(place.problem(format!("nobody in the catalogue is in `{group}`, which `{id}` requires")))
    })
}

/// What a policy reads that says less than it seems to.
fn facts(rule: &Rule, conditions: &Conditions) -> Vec<Lint> {
    let mut found = Vec::new();
    let mut note = |what: &str| {
        let message = format!("`{}` reads {what}", rule.notes.id);
        found.push(Lint::note(rule.notes.place.problem(message)));
    };
    if conditions.read_within("context", "task", "purpose") {
        note("`context.task.purpose`, which is the agent's own words: whoever steers the agent chooses them");
    }
    if conditions.read("context", "risk") {
        note("`context.risk`, which is always 0: there are no rules yet that would raise it");
    }
    found
}

/// One agent for each pattern of the catalogue: what fits it, with an `x` for each `*`.
fn agents(catalogue: &Catalogue) -> impl Iterator<Item = SpiffeId> {
    let patterns = catalogue.agents().iter().map(|agent| agent.pattern.to_string());
    patterns.filter_map(|text| text.replace("**", "x").replace('*', "x").parse().ok())
}

/// Every name that the catalogue has.
struct Names<'c> {
    catalogue: &'c Catalogue,
    groups: BTreeSet<&'c str>,
    data_classes: BTreeSet<&'c str>,
}

impl<'c> Names<'c> {
    fn of(catalogue: &'c Catalogue) -> Self {
        let of_agents = catalogue.agents().iter().map(|agent| &agent.groups);
        let of_targets = catalogue.targets().map(|target| &target.groups);
        let of_templates = catalogue.templates().map(|template| &template.groups);
        let of_people = catalogue.people().map(|person| &person.groups);
        let all = of_agents.chain(of_targets).chain(of_templates).chain(of_people);
        let groups = all.flatten().map(String::as_str).collect();
        let data_classes = catalogue.targets().map(|target| target.data_class.as_str()).collect();
        Self { catalogue, groups, data_classes }
    }

    /// Names in a policy that nobody has: it can never apply, or never fail to.
    fn strangers(&self, rule: &Rule) -> Vec<Lint> {
        let mut found = Vec::new();
        for uid in rule.policy.entity_literals() {
            let name = uid.id().unescaped();
            let (known, what) = match uid.type_name().basename() {
                "Group" => (self.groups.contains(name), "group"),
                "Target" => (self.catalogue.target(name).is_some(), "target"),
                "Template" => (name.is_empty() || self.catalogue.template(name).is_some(), "template"),
                "DataClass" => (self.data_classes.contains(name), "data class"),
                _ => continue,
            };
            if !known {
                let shown = crate::diag::Shown(name);
                let message = format!(
                    "`{}` names the {what} `{shown}`, which nothing in the catalogue has",
                    rule.notes.id
                );
                found.push(Lint::note(rule.notes.place.problem(message)));
            }
        }
        found
    }
}

const MANY: usize = 50;
const FAR: Duration = Duration::from_secs(366 * 86_400);

#[cfg(test)]
mod tests;
