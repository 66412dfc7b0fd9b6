//! On which actions an obligation means something. One that nobody could keep would be passed over without a word: it
//! fails the load.

use cedar_policy::{EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::index::actions_of;
use crate::policy::Action;

/// Why an annotation can mean nothing on this policy, if it cannot: its head covers actions on which nobody would keep it.
pub(super) fn unheard(key: &str, policy: &Policy) -> Option<String> {
    let (kept, what): (fn(Action) -> bool, _) = match key {
        "requires_approval" => (can_be_approved, "which people are never asked to allow"),
        "max_ttl" => (has_an_end, "where nothing has a lifetime"),
        "binding" => (has_a_key, "where nothing is issued that could be bound to a key"),
        "log" => (Action::is_on_target, "where there is no request with a body"),
        _ => return None,
    };
    let idle: Vec<String> =
        applies_to(policy).filter(|one| !kept(*one)).map(|one| format!("`{one}`")).collect();
    (!idle.is_empty()).then(|| {
        let kept: Vec<String> =
            Action::ALL.iter().filter(|one| kept(**one)).map(|one| format!("`{one}`")).collect();
        format!(
            "stands on a {} of {}, {what}: name in its head only actions on which it means something ({}), \
             and write another policy for the rest",
            policy.effect(),
            idle.join(" and "),
            kept.join(", ")
        )
    })
}

fn can_be_approved(action: Action) -> bool {
    !matches!(action, Action::Fetch | Action::Approve)
}

/// A credential, a task, a part of one.
fn has_an_end(action: Action) -> bool {
    action != Action::Approve
}

fn has_a_key(action: Action) -> bool {
    action.is_on_target() || action == Action::Fetch
}

/// The actions that the head of a policy covers.
fn applies_to(policy: &Policy) -> impl Iterator<Item = Action> {
    let (principal, resource) = (principal_type(policy), resource_type(policy));
    let may_be = |kind: Option<&EntityTypeName>, names: &[&str]| {
        kind.is_none_or(|kind| names.iter().any(|name| kind.basename() == *name))
    };
    actions_of(policy).into_iter().filter(move |action| {
        let (by, to): (_, &[&str]) = match action {
            Action::Approve => ("User", &["Target", "Template", "Agent"]),
            Action::Fetch => ("Workload", &["Identity"]),
            Action::Begin => ("Workload", &["Template"]),
            Action::Delegate => ("Workload", &["Agent"]),
            _ => ("Workload", &["Target"]),
        };
        may_be(principal.as_ref(), &[by]) && may_be(resource.as_ref(), to)
    })
}

fn principal_type(policy: &Policy) -> Option<EntityTypeName> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any => None,
        PrincipalConstraint::Is(kind) | PrincipalConstraint::IsIn(kind, _) => Some(kind),
        PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) => type_of(&uid),
    }
}

fn resource_type(policy: &Policy) -> Option<EntityTypeName> {
    match policy.resource_constraint() {
        ResourceConstraint::Any => None,
        ResourceConstraint::Is(kind) | ResourceConstraint::IsIn(kind, _) => Some(kind),
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) => type_of(&uid),
    }
}

/// Anything may be in a group; in anything else is only itself.
fn type_of(uid: &EntityUid) -> Option<EntityTypeName> {
    Some(uid.type_name().clone()).filter(|kind| kind.basename() != "Group")
}
