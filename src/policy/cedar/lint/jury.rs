//! Whether there is anybody who may answer what policies ask people.

use std::collections::BTreeSet;
use std::time::SystemTime;

use cedar_policy::Effect;

use super::agents;
use super::reading::Conditions;
use crate::policy::cedar::Rules;
use crate::policy::cedar::index::{actions_of, is_about};
use crate::policy::cedar::parse::Rule;
use crate::policy::lint::Lint;
use crate::policy::sketch::Sketch;
use crate::policy::{Action, Catalogue, Object, Principal, Question, UserFacts, Verdict};

/// A forbid that people could lift, if one of them were allowed to `approve`.
pub(super) fn jury(rules: &Rules, catalogue: &Catalogue, rule: &Rule, now: SystemTime) -> Option<Lint> {
    let group = rule.notes.approval.as_ref()?;
    let people = people(catalogue, group);
    let objects = objects(catalogue, rule);
    // Of so many nobody says for all that none is possible.
    if people.len() > MOST || objects.len() > MOST {
        return None;
    }
    let mut left: Vec<Object> = Vec::new();
    let mut answered = false;
    for object in objects {
        let about = question(catalogue, people.first()?, &object, now)?;
        if !is_about(&rule.policy, &rules.types.ask(&about, catalogue).ok()?.parties.resources) {
            continue;
        }
        if people.iter().any(|person| may_approve(rules, catalogue, person, &object, now)) {
            answered = true;
        } else {
            left.push(object);
        }
    }
    let (id, first) = (&rule.notes.id, shown(left.first()?));
    let advice = format!(
        "permit `approve`: `permit(principal in Mayfly::Group::\"{group}\", action == Mayfly::Action::\"approve\", resource);`"
    );
    Some(if answered {
        let message =
            format!("nobody in `{group}`, which `{id}` asks, may approve what is done to {first}: {advice}");
        Lint::note(rule.notes.place.problem(message))
    } else {
        let message = format!(
            "`{id}` asks people in `{group}`, and policy lets none of them approve anything: {advice}"
        );
        Lint::fails(rule.notes.place.problem(message))
    })
}

/// Root, who is taken for one of the group where one answer is enough, and whoever the catalogue has there.
fn people(catalogue: &Catalogue, group: &String) -> Vec<UserFacts> {
    let root = UserFacts { name: ROOT.to_owned(), groups: BTreeSet::from([group.clone()]) };
    let known = catalogue.people().filter(|person| person.groups.contains(group));
    let known = known.map(|person| UserFacts { name: person.name.clone(), groups: person.groups.clone() });
    std::iter::once(root).chain(known).collect()
}

/// Everything in the catalogue that those actions are done to.
fn objects(catalogue: &Catalogue, rule: &Rule) -> Vec<Object> {
    let actions = actions_of(&rule.policy);
    let mut objects = Vec::new();
    if actions.iter().any(|action| action.is_on_target()) {
        objects.extend(catalogue.targets().map(|target| Object::Target(target.name.clone())));
    }
    if actions.contains(&Action::Begin) {
        objects.extend(catalogue.templates().map(|template| Object::Template(Some(template.name.clone()))));
    }
    if actions.contains(&Action::Delegate) {
        objects.extend(agents(catalogue).map(Object::Agent));
    }
    objects
}

fn question(catalogue: &Catalogue, person: &UserFacts, object: &Object, now: SystemTime) -> Option<Question> {
    let sketch = Sketch {
        person: Some(person.name.clone()),
        action: Some(Action::Approve),
        target: Some(String::new()),
        ..Sketch::default()
    };
    let question = sketch.question(catalogue, now).ok()?;
    Some(Question { principal: Principal::User(person.clone()), object: object.clone(), ..question })
}

/// Whether policy lets that person approve, or could: a condition on the circumstances may hold another time.
fn may_approve(
    rules: &Rules,
    catalogue: &Catalogue,
    person: &UserFacts,
    object: &Object,
    now: SystemTime,
) -> bool {
    let Some(question) = question(catalogue, person, object, now) else { return false };
    if rules.settle(catalogue, &question).verdict == Verdict::Allow {
        return true;
    }
    let Ok(asked) = rules.types.ask(&question, catalogue) else { return false };
    let mut candidates =
        rules.index.buckets(Action::Approve, &asked.parties.principals, &asked.parties.resources);
    candidates.any(|bucket| {
        bucket.policies().any(|policy| {
            let id: &str = policy.id().as_ref();
            rules.by_id.get(id).is_some_and(|rule| {
                let live = rule.notes.effect == Effect::Permit && !rule.has_ended(now);
                live && Conditions::of(rule).speak_of("context")
            })
        })
    })
}

fn shown(object: &Object) -> String {
    match object {
        Object::Target(name) => format!("`{name}`"),
        Object::Template(name) => format!("the template `{}`", name.as_deref().unwrap_or_default()),
        Object::Agent(id) => format!("`{id}`"),
        Object::Identity(_) => "an identity".to_owned(),
    }
}

/// As the agent calls root where the catalogue has no name.
const ROOT: &str = "uid:0";
/// People, and things: what is asked is one by the other.
const MOST: usize = 64;
