//! Policies by action, principal and resource, so that a decision evaluates those that could apply and no other.
//!
//! The scope of a policy names at most one entity for the principal and one for the resource, which the principal or
//! resource must be or be in; a policy lies in the bucket of both names. A question looks into the buckets of what its
//! principal and resource are and are in. Which policies are satisfied is a property of each policy alone, so the
//! answers of buckets add up to the answer of the whole set; a property test holds that.

use std::collections::HashMap;

use cedar_policy::{
    ActionConstraint, EntityTypeName, EntityUid, Policy, PolicySet, PrincipalConstraint, ResourceConstraint,
};

use super::parse::Rule;
use crate::policy::Action;

/// Buckets of policies.
#[derive(Debug, Default)]
pub(super) struct Index {
    names: HashMap<EntityUid, u32>,
    buckets: HashMap<Key, PolicySet>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Key {
    action: Action,
    principal: Option<u32>,
    resource: Option<u32>,
}

impl Index {
    /// Sorts policies into buckets. Their names are unique, so that adding cannot fail; what does is reported as its
    /// name, because a policy that is left out would be a hole.
    pub(super) fn build(rules: &[Rule]) -> Result<Self, String> {
        let mut index = Self::default();
        for rule in rules {
            let principal = principal_of(&rule.policy).map(|uid| index.name(uid));
            let resource = resource_of(&rule.policy).map(|uid| index.name(uid));
            for action in actions_of(&rule.policy) {
                let bucket = index.buckets.entry(Key { action, principal, resource }).or_default();
                bucket.add(rule.policy.clone()).map_err(|_twice| rule.notes.id.clone())?;
            }
        }
        Ok(index)
    }

    fn name(&mut self, uid: EntityUid) -> u32 {
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        *self.names.entry(uid).or_insert(next)
    }

    /// The buckets that a question falls into. `principals`: what the principal is and is in; `resources` likewise.
    pub(super) fn buckets<'a>(
        &'a self,
        action: Action,
        principals: &[EntityUid],
        resources: &[EntityUid],
    ) -> impl Iterator<Item = &'a PolicySet> {
        let known = |uids: &[EntityUid]| -> Vec<Option<u32>> {
            let named = uids.iter().filter_map(|uid| self.names.get(uid).copied());
            std::iter::once(None).chain(named.map(Some)).collect()
        };
        let (principals, resources) = (known(principals), known(resources));
        principals.into_iter().flat_map(move |principal| {
            let keys: Vec<Key> =
                resources.iter().map(|resource| Key { action, principal, resource: *resource }).collect();
            keys.into_iter().filter_map(|key| self.buckets.get(&key))
        })
    }
}

fn principal_of(policy: &Policy) -> Option<EntityUid> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
        PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) | PrincipalConstraint::IsIn(_, uid) => {
            Some(uid)
        }
    }
}

fn resource_of(policy: &Policy) -> Option<EntityUid> {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        ResourceConstraint::In(uid) | ResourceConstraint::Eq(uid) | ResourceConstraint::IsIn(_, uid) => {
            Some(uid)
        }
    }
}

/// Whether a policy's scope lets in a resource that is and is in those: the first is what it is.
pub(super) fn is_about(policy: &Policy, resources: &[EntityUid]) -> bool {
    let is = |kind: &EntityTypeName| resources.first().is_some_and(|own| own.type_name() == kind);
    match policy.resource_constraint() {
        ResourceConstraint::Any => true,
        ResourceConstraint::Is(kind) => is(&kind),
        ResourceConstraint::IsIn(kind, uid) => is(&kind) && resources.contains(&uid),
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) => resources.contains(&uid),
    }
}

/// The actions it can apply to: those that its scope names. (There are no groups of actions in the schema.)
pub(super) fn actions_of(policy: &Policy) -> Vec<Action> {
    let named = |uid: &EntityUid| uid.id().unescaped().parse().ok();
    match policy.action_constraint() {
        ActionConstraint::Any => Action::ALL.to_vec(),
        ActionConstraint::Eq(uid) => named(&uid).into_iter().collect(),
        ActionConstraint::In(uids) => {
            let mut all: Vec<Action> = uids.iter().filter_map(named).collect();
            all.sort_unstable();
            all.dedup();
            all
        }
    }
}
