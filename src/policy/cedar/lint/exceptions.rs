//! Exceptions: what lets somebody do what others may not, and is to end one day. Each must say who answers for it and
//! until when.
//!
//! A permit is one that is called so or names something that is (break-glass, emergency, …), that has a date, that
//! permits every action, or that lets everybody change something. A way out of a forbid is one when it names who may
//! go through it.

use cedar_policy::{ActionConstraint, Effect, PrincipalConstraint};
use serde_json::Value;

use super::reading::{Conditions, has_a_date, names_principals, reads};
use crate::policy::Action;
use crate::policy::cedar::index::actions_of;
use crate::policy::cedar::parse::Rule;
use crate::policy::lint::Lint;

/// What is missing of an exception, or who answers for any other policy.
pub(super) fn exception(rule: &Rule, conditions: &Conditions) -> Option<Lint> {
    let found = match rule.notes.effect {
        Effect::Permit => of_permit(rule, conditions),
        Effect::Forbid => of_forbid(rule, conditions),
    };
    found.or_else(|| {
        let message = format!("`{}` has no `@owner`: say who answers for it", rule.notes.id);
        rule.notes.owner.is_none().then(|| Lint::note(rule.notes.place.problem(message)))
    })
}

fn of_permit(rule: &Rule, conditions: &Conditions) -> Option<Lint> {
    let why = if is_called_one(rule) {
        "is for emergencies".to_owned()
    } else if rule.notes.until.is_some() {
        "has a date".to_owned()
    } else if matches!(rule.policy.action_constraint(), ActionConstraint::Any) {
        "permits every action".to_owned()
    } else {
        let changes = changes_for_everybody(rule, conditions)?;
        format!("lets everybody {changes} (no group, principal, approval, chain or user is asked for)")
    };
    let date = if rule.notes.until.is_some() { None } else { Some("`@until(\"…\")`") };
    fails(rule, &why, date)
}

fn of_forbid(rule: &Rule, conditions: &Conditions) -> Option<Lint> {
    // What people lift each time they lift for whoever asks.
    let named = |way: &&Value| names_principals(way) && !reads(way, "context", "approval");
    let ways = conditions.ways_out();
    let mut ways = ways.into_iter().filter(named).peekable();
    ways.peek()?;
    let date =
        if ways.all(has_a_date) { None } else { Some("`context.now < datetime(\"…\")` beside the name") };
    fails(rule, "does not hold for somebody whom it names", date)
}

/// `date`: how to write the one that is missing.
fn fails(rule: &Rule, why: &str, date: Option<&str>) -> Option<Lint> {
    let owner = if rule.notes.owner.is_none() { Some("`@owner(\"…\")`") } else { None };
    let missing: Vec<&str> = owner.into_iter().chain(date).collect();
    let message = format!("`{}` {why}: write {}", rule.notes.id, missing.join(" and "));
    (!missing.is_empty()).then(|| Lint::fails(rule.notes.place.problem(message)))
}

fn is_called_one(rule: &Rule) -> bool {
    let called = |text: &str| {
        let plain = text.to_ascii_lowercase().replace(['-', '_', '.'], "");
        WORDS.iter().any(|word| plain.contains(word))
    };
    called(&rule.notes.id) || rule.policy.entity_literals().iter().any(|uid| called(uid.id().unescaped()))
}

/// What that changes something, where it is permitted to whoever asks.
fn changes_for_everybody(rule: &Rule, conditions: &Conditions) -> Option<String> {
    let open =
        matches!(rule.policy.principal_constraint(), PrincipalConstraint::Any | PrincipalConstraint::Is(_));
    let is_narrowed = || {
        conditions.name_principals()
            || ["approval", "chain", "on_behalf_of"].iter().any(|fact| conditions.read("context", fact))
    };
    let changing =
        |action: &Action| matches!(action, Action::Write | Action::Delete | Action::Execute | Action::Admin);
    let changes: Vec<String> =
        actions_of(&rule.policy).iter().filter(|one| changing(one)).map(|one| format!("`{one}`")).collect();
    (open && !changes.is_empty() && !is_narrowed()).then(|| changes.join(", "))
}

/// In names of policies and of what they name, without `-`, `_` and `.`.
const WORDS: [&str; 6] = ["breakglass", "emergency", "exception", "override", "bypass", "temporary"];
