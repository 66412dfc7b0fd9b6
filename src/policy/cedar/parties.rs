//! Who asks and what about, as entities of Cedar's. A process asks about the same target again and again, so the last
//! ones are remembered: making them is a third of a decision.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cedar_policy::{Entities, Entity, EntityTypeName, EntityUid, RestrictedExpression};

use super::asking::{Types, record, string, strings, uid};
use super::moments::datetime;
use crate::policy::{
    Catalogue, IdentityFacts, Object, Principal, Question, Reason, Target, UserFacts, WorkloadFacts,
};

/// So many pairs are remembered.
const MOST: usize = 256;

/// The two sides of a question.
#[derive(Debug)]
pub(super) struct Parties {
    pub(super) principal: Entity,
    pub(super) resource: Entity,
    /// What the principal is and is in.
    pub(super) principals: Vec<EntityUid>,
    /// What the resource is and is in.
    pub(super) resources: Vec<EntityUid>,
    /// Both, ready to be asked about.
    entities: Entities,
}

impl Parties {
    /// Both, and whom the question mentions besides.
    pub(super) fn with(&self, mentioned: Vec<Entity>) -> Result<Entities, Reason> {
        if mentioned.is_empty() {
            return Ok(self.entities.clone());
        }
        let mut all = vec![self.principal.clone(), self.resource.clone()];
        all.extend(mentioned);
        entities(all)
    }
}

/// Those of the last questions, by a hash of everything that they are made of but the catalogue, which is always the same.
#[derive(Debug, Default)]
pub(super) struct KnownParties {
    hasher: RandomState,
    known: Mutex<HashMap<u64, Known>>,
}

#[derive(Debug)]
struct Known {
    principal: Principal,
    object: Object,
    parties: Arc<Parties>,
}

impl KnownParties {
    /// When there are too many, all are forgotten: then each costs once more what it cost to begin with.
    pub(super) fn get_or_make(
        &self,
        question: &Question,
        make: impl FnOnce() -> Result<Parties, Reason>,
    ) -> Result<Arc<Parties>, Reason> {
        let (principal, object) = (&question.principal, &question.object);
        let hash = self.hasher.hash_one((principal, object));
        if let Some(known) = self.lock().get(&hash)
            && known.principal == *principal
            && known.object == *object
        {
            return Ok(Arc::clone(&known.parties));
        }
        let parties = Arc::new(make()?);
        let known =
            Known { principal: principal.clone(), object: object.clone(), parties: Arc::clone(&parties) };
        let mut all = self.lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(hash, known);
        Ok(parties)
    }

    /// Nobody leaves half an entry, not even by a panic.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same person may approve and be acted for.
fn entities(mut all: Vec<Entity>) -> Result<Entities, Reason> {
    let mut seen = HashSet::new();
    all.retain(|entity| seen.insert(entity.uid()));
    Entities::from_entities(all, None).map_err(|_error| Reason::Malformed)
}

impl Types {
    pub(super) fn parties(&self, question: &Question, catalogue: &Catalogue) -> Result<Parties, Reason> {
        let (principal, principals) = match &question.principal {
            Principal::Workload(workload) => self.workload(workload, catalogue)?,
            Principal::User(user) => self.person(user, catalogue),
        };
        let (resource, resources) = self.object(&question.object, catalogue)?;
        let entities = entities(vec![principal.clone(), resource.clone()])?;
        Ok(Parties { principal, resource, principals, resources, entities })
    }

    fn workload(
        &self,
        facts: &WorkloadFacts,
        catalogue: &Catalogue,
    ) -> Result<(Entity, Vec<EntityUid>), Reason> {
        let WorkloadFacts {
            spiffe_id,
            profile,
            uid,
            selectors,
            exe_sha256,
            node,
            posture,
            attested_at,
            groups,
        } = facts;
        let posture = record([
            ("ptraced", RestrictedExpression::new_bool(posture.traced)),
            ("exe_deleted", RestrictedExpression::new_bool(posture.exe_deleted)),
            ("no_new_privs", RestrictedExpression::new_bool(posture.no_new_privs)),
            ("isolated", RestrictedExpression::new_bool(posture.isolated)),
        ])?;
        let attributes = [
            ("spiffe_id", string(spiffe_id.as_str())),
            ("profile", string(profile.as_str())),
            ("uid", RestrictedExpression::new_long((*uid).into())),
            ("selectors", strings(selectors)),
            ("exe_sha256", string(exe_sha256)),
            ("node", string(node)),
            ("posture", posture),
            ("attested_at", datetime(*attested_at)),
        ];
        let groups = groups.iter().map(String::as_str).chain(catalogue.groups_of(spiffe_id));
        self.entity(&self.workload, spiffe_id.as_str(), groups, attributes)
    }

    pub(super) fn person(&self, user: &UserFacts, catalogue: &Catalogue) -> (Entity, Vec<EntityUid>) {
        let known = catalogue.person(&user.name).into_iter().flat_map(|person| &person.groups);
        let groups = user.groups.iter().chain(known).map(String::as_str);
        let (parents, scopes) = self.parents(uid(&self.user, &user.name), groups);
        (Entity::new_no_attrs(uid(&self.user, &user.name), parents), scopes)
    }

    fn object(&self, object: &Object, catalogue: &Catalogue) -> Result<(Entity, Vec<EntityUid>), Reason> {
        match object {
            Object::Target(name) => self.target(catalogue.target(name).ok_or(Reason::UnknownTarget)?),
            Object::Agent(id) => {
                let groups = catalogue.groups_of(id).into_iter();
                self.entity(&self.agent, id.as_str(), groups, [("spiffe_id", string(id.as_str()))])
            }
            Object::Template(None) => {
                self.entity(&self.template, "", [].into_iter(), [("owner", string(""))])
            }
            Object::Template(Some(name)) => {
                let template = catalogue.template(name).ok_or(Reason::UnknownTemplate)?;
                let groups = template.groups.iter().map(String::as_str);
                self.entity(&self.template, name, groups, [("owner", string(&template.owner))])
            }
            Object::Identity(identity) => self.identity(identity, catalogue),
        }
    }

    fn target(&self, target: &Target) -> Result<(Entity, Vec<EntityUid>), Reason> {
        let data_class = uid(&self.data_class, &target.data_class);
        let attributes = [
            ("audience", string(&target.audience)),
            ("kind", string(target.kind.as_str())),
            ("data_class", RestrictedExpression::new_entity_uid(data_class)),
            ("owner", string(&target.owner)),
            ("binding", string(target.binding.as_str())),
        ];
        self.entity(&self.target, &target.name, target.groups.iter().map(String::as_str), attributes)
    }

    fn identity(
        &self,
        identity: &IdentityFacts,
        catalogue: &Catalogue,
    ) -> Result<(Entity, Vec<EntityUid>), Reason> {
        let IdentityFacts { spiffe_id, kind, audiences, entry } = identity;
        let attributes = [
            ("spiffe_id", string(spiffe_id.as_str())),
            ("kind", string(kind.as_str())),
            ("audiences", strings(audiences)),
            ("entry", string(entry.as_str())),
        ];
        let groups = catalogue.groups_of(spiffe_id).into_iter();
        self.entity(&self.identity, spiffe_id.as_str(), groups, attributes)
    }

    /// An entity, and what it is and is in.
    fn entity<'a, const N: usize>(
        &self,
        kind: &EntityTypeName,
        id: &str,
        groups: impl Iterator<Item = &'a str>,
        attributes: [(&str, RestrictedExpression); N],
    ) -> Result<(Entity, Vec<EntityUid>), Reason> {
        let own = uid(kind, id);
        let (parents, scopes) = self.parents(own.clone(), groups);
        let attributes: HashMap<String, RestrictedExpression> =
            attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let entity = Entity::new(own, attributes, parents).map_err(|_error| Reason::Malformed)?;
        Ok((entity, scopes))
    }

    fn parents<'a>(
        &self,
        own: EntityUid,
        groups: impl Iterator<Item = &'a str>,
    ) -> (HashSet<EntityUid>, Vec<EntityUid>) {
        let parents: HashSet<EntityUid> = groups.map(|group| uid(&self.group, group)).collect();
        let scopes = std::iter::once(own).chain(parents.iter().cloned()).collect();
        (parents, scopes)
    }
}
