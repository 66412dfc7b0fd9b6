//! Turns a question into Cedar's terms, with the typed interface: no JSON and no schema check on the way. A test holds
//! what comes out to the schema.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::clock::unix_millis;
use crate::policy::{
    Action, ApprovalFacts, Catalogue, IdentityFacts, Object, Principal, Question, Reason, Target, TaskFacts,
    UserFacts, WorkloadFacts,
};

/// The names of entity types, parsed once.
#[derive(Clone, Debug)]
pub(super) struct Types {
    action: EntityTypeName,
    agent: EntityTypeName,
    data_class: EntityTypeName,
    group: EntityTypeName,
    identity: EntityTypeName,
    target: EntityTypeName,
    template: EntityTypeName,
    user: EntityTypeName,
    workload: EntityTypeName,
}

/// A question in Cedar's terms.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) entities: Entities,
    /// What the principal is and is in.
    pub(super) principals: Vec<EntityUid>,
    /// What the resource is and is in.
    pub(super) resources: Vec<EntityUid>,
}

impl Types {
    pub(super) fn new() -> Option<Self> {
        let name = |text: &str| format!("Mayfly::{text}").parse::<EntityTypeName>().ok();
        Some(Self {
            action: name("Action")?,
            agent: name("Agent")?,
            data_class: name("DataClass")?,
            group: name("Group")?,
            identity: name("Identity")?,
            target: name("Target")?,
            template: name("Template")?,
            user: name("User")?,
            workload: name("Workload")?,
        })
    }

    /// The question in Cedar's terms, or why it is answered without asking.
    pub(super) fn ask(&self, question: &Question, catalogue: &Catalogue) -> Result<Asked, Reason> {
        check(question, catalogue)?;
        let (principal, principals) = match &question.principal {
            Principal::Workload(workload) => self.workload(workload, catalogue)?,
            Principal::User(user) => self.person(user, catalogue),
        };
        let (resource, resources) = self.object(&question.object, catalogue)?;
        let mut entities = vec![principal.clone(), resource.clone()];
        let context = self.context(question, catalogue, &mut entities)?;
        let action = uid(&self.action, question.action.as_str());
        let request = Request::new(principal.uid(), action, resource.uid(), context, None);
        // The same person may approve and be acted for.
        let mut seen = HashSet::new();
        entities.retain(|entity| seen.insert(entity.uid()));
        let entities = Entities::from_entities(entities, None).map_err(|_error| Reason::Malformed)?;
        Ok(Asked { request: request.map_err(|_error| Reason::Malformed)?, entities, principals, resources })
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

    fn person(&self, user: &UserFacts, catalogue: &Catalogue) -> (Entity, Vec<EntityUid>) {
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

    /// Users that the context names go to `entities`, so that their groups are known.
    fn context(
        &self,
        question: &Question,
        catalogue: &Catalogue,
        entities: &mut Vec<Entity>,
    ) -> Result<Context, Reason> {
        let around = &question.circumstances;
        let mut pairs = vec![
            ("phase", string(question.phase.as_str())),
            ("now", datetime(question.now)),
            ("requested_ttl", duration(question.requested_ttl)),
            ("risk", RestrictedExpression::new_long(around.risk.into())),
        ];
        if question.action != Action::Fetch {
            let task = question.task.as_ref().ok_or(Reason::Malformed)?;
            pairs.push(("task", task_context(task)?));
            let chain = around.chain.iter().map(|id| uid(&self.agent, id.as_str()));
            let chain = chain.map(RestrictedExpression::new_entity_uid);
            pairs.push(("chain", RestrictedExpression::new_set(chain)));
            pairs.push(("new_destination", RestrictedExpression::new_bool(around.new_destination)));
            if let Some(user) = &around.on_behalf_of {
                pairs.push(("on_behalf_of", self.mention(user, catalogue, entities)));
            }
            if let Some(approval) = &around.approval {
                let by = self.mention(&approval.by, catalogue, entities);
                pairs.push(("approval", approval_context(approval, by)?));
            }
            pairs.extend(request_context(question)?);
        }
        let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value));
        Context::from_pairs(pairs).map_err(|_error| Reason::Malformed)
    }

    fn mention(
        &self,
        user: &UserFacts,
        catalogue: &Catalogue,
        entities: &mut Vec<Entity>,
    ) -> RestrictedExpression {
        entities.push(self.person(user, catalogue).0);
        RestrictedExpression::new_entity_uid(uid(&self.user, &user.name))
    }
}

/// Whether who asks, what is done and what it is done to fit each other, and what the catalogue says before any policy.
fn check(question: &Question, catalogue: &Catalogue) -> Result<(), Reason> {
    let fits = match (&question.principal, &question.object) {
        (Principal::User(_), Object::Target(_) | Object::Template(_) | Object::Agent(_)) => {
            question.action == Action::Approve
        }
        (Principal::Workload(_), Object::Target(_)) => question.action.is_on_target(),
        (Principal::Workload(_), Object::Agent(_)) => question.action == Action::Delegate,
        (Principal::Workload(_), Object::Template(_)) => question.action == Action::Begin,
        (Principal::Workload(_), Object::Identity(_)) => question.action == Action::Fetch,
        _ => false,
    };
    if !fits {
        return Err(Reason::Malformed);
    }
    if let (Principal::Workload(workload), Object::Template(name)) = (&question.principal, &question.object) {
        if let Some(name) = name
            && catalogue.template(name).is_none()
        {
            return Err(Reason::UnknownTemplate);
        }
        if !catalogue.may_begin(&workload.spiffe_id, name.as_deref()) {
            return Err(Reason::TemplateNotAllowed);
        }
    }
    Ok(())
}

fn task_context(task: &TaskFacts) -> Result<RestrictedExpression, Reason> {
    let mut fields = vec![
        ("id", string(&task.id)),
        ("root", string(&task.root)),
        ("depth", RestrictedExpression::new_long(task.depth.into())),
        ("purpose", string(&task.purpose)),
        ("started", datetime(task.started)),
        ("deadline", datetime(task.deadline)),
        ("calls", number(task.calls)),
        ("denials", number(task.denials)),
        ("children", number(task.children)),
        ("audiences", number(task.audiences)),
    ];
    fields.extend(task.template.as_deref().map(|template| ("template", string(template))));
    record(fields)
}

fn approval_context(
    approval: &ApprovalFacts,
    by: RestrictedExpression,
) -> Result<RestrictedExpression, Reason> {
    record([
        ("id", string(&approval.id)),
        ("by", by),
        ("at", datetime(approval.at)),
        ("until", datetime(approval.until)),
        ("quorum", RestrictedExpression::new_long(approval.quorum.into())),
    ])
}

/// What is known of the request itself.
fn request_context(question: &Question) -> Result<Vec<(&'static str, RestrictedExpression)>, Reason> {
    let around = &question.circumstances;
    let mut pairs = Vec::new();
    if let Some(http) = &around.http {
        let fields =
            [("method", string(&http.method)), ("host", string(&http.host)), ("path", string(&http.path))];
        pairs.push(("http", record(fields)?));
    }
    if let Some(mcp) = &around.mcp {
        pairs.push(("mcp", record([("tool", string(&mcp.tool))])?));
    }
    if let Some(sql) = &around.sql {
        pairs.push(("sql", record([("db", string(&sql.db)), ("role", string(&sql.role))])?));
    }
    Ok(pairs)
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn string(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn strings(texts: &BTreeSet<String>) -> RestrictedExpression {
    RestrictedExpression::new_set(texts.iter().map(|text| string(text)))
}

/// A count; one that is too great for Cedar is as great as can be.
fn number(count: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(count).unwrap_or(i64::MAX))
}

fn record<'a>(
    fields: impl IntoIterator<Item = (&'a str, RestrictedExpression)>,
) -> Result<RestrictedExpression, Reason> {
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value));
    RestrictedExpression::new_record(fields).map_err(|_twice| Reason::Malformed)
}

/// To the millisecond, rounded down. What Cedar cannot say becomes a text that it refuses, which denies.
fn datetime(at: SystemTime) -> RestrictedExpression {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let millis = unix_millis(at.max(UNIX_EPOCH));
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok();
    let text = at.and_then(|at| at.format(form).ok()).unwrap_or_default();
    RestrictedExpression::new_datetime(text)
}

fn duration(length: Duration) -> RestrictedExpression {
    RestrictedExpression::new_duration(format!("{}ms", length.as_millis()))
}
