//! What people can be asked about. An obligation that nobody could keep would be passed over without a word: it fails
//! the load.

use cedar_policy::{EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::index::actions_of;
use crate::policy::Action;

/// Why `@requires_approval` can mean nothing on this policy, if it cannot: it also forbids what nobody is ever asked
/// about.
pub(super) fn unheard(policy: &Policy) -> Option<String> {
    let principal = principal_type(policy);
    let resource = resource_type(policy);
    let may_be = |kind: Option<&EntityTypeName>, names: &[&str]| {
        kind.is_none_or(|kind| names.iter().any(|name| kind.basename() == *name))
    };
    let applies = |action: &Action| match action {
        Action::Fetch => {
            may_be(principal.as_ref(), &["Workload"]) && may_be(resource.as_ref(), &["Identity"])
        }
        Action::Approve => {
            may_be(principal.as_ref(), &["User"])
                && may_be(resource.as_ref(), &["Target", "Template", "Agent"])
        }
        _ => false,
    };
    let unheard: Vec<String> =
        actions_of(policy).iter().filter(|action| applies(action)).map(|one| format!("`{one}`")).collect();
    (!unheard.is_empty()).then(|| {
        format!(
            "stands on a forbid of {}, which people are never asked to allow: name in its head only actions that \
             they are (`read`, `write`, `delete`, `execute`, `admin`, `begin`, `delegate`), and forbid the rest by \
             another policy",
            unheard.join(" and ")
        )
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
