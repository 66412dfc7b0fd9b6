//! Turns a question into Cedar's terms, with the typed interface: no JSON and no schema check on the way. A test holds
//! what comes out to the schema.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
};

use super::moments::{datetime, duration};
use super::parties::{KnownParties, Parties};
use crate::policy::{
    Action, ApprovalFacts, Catalogue, Object, Principal, Question, Reason, TaskFacts, UserFacts,
};

/// The names of entity types, parsed once, and what was lately made of them.
#[derive(Debug)]
pub(super) struct Types {
    action: EntityTypeName,
    pub(super) agent: EntityTypeName,
    pub(super) data_class: EntityTypeName,
    pub(super) group: EntityTypeName,
    pub(super) identity: EntityTypeName,
    pub(super) target: EntityTypeName,
    pub(super) template: EntityTypeName,
    pub(super) user: EntityTypeName,
    pub(super) workload: EntityTypeName,
    known: KnownParties,
}

/// A question in Cedar's terms.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) entities: Entities,
    pub(super) parties: Arc<Parties>,
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
            known: KnownParties::default(),
        })
    }

    /// The question in Cedar's terms, or why it is answered without asking. Always with the same catalogue: who and what
    /// it has made of that is remembered.
    pub(super) fn ask(&self, question: &Question, catalogue: &Catalogue) -> Result<Asked, Reason> {
        check(question, catalogue)?;
        let parties = self.known.get_or_make(question, || self.parties(question, catalogue))?;
        let mut mentioned = Vec::new();
        let context = self.context(question, catalogue, &mut mentioned)?;
        let entities = parties.with(mentioned)?;
        let (principal, action) = (parties.principal.uid(), uid(&self.action, question.action.as_str()));
        let request = Request::new(principal, action, parties.resource.uid(), context, None);
        Ok(Asked { request: request.map_err(|_error| Reason::Malformed)?, entities, parties })
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

pub(super) fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

pub(super) fn string(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

pub(super) fn strings(texts: &BTreeSet<String>) -> RestrictedExpression {
    RestrictedExpression::new_set(texts.iter().map(|text| string(text)))
}

/// A count; one that is too great for Cedar is as great as can be.
fn number(count: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(count).unwrap_or(i64::MAX))
}

pub(super) fn record<'a>(
    fields: impl IntoIterator<Item = (&'a str, RestrictedExpression)>,
) -> Result<RestrictedExpression, Reason> {
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value));
    RestrictedExpression::new_record(fields).map_err(|_twice| Reason::Malformed)
}
