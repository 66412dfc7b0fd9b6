//! Between the wire's types and ours.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use mayfly_proto::task as proto;
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::errors::{malformed, reason, standing};
use crate::id::{SpiffeId, TaskId, hex_text};
use crate::issue::user::{MAX_USER_TOKEN_BYTES, UserToken};
use crate::policy::{Decision, MAX_TASK_TTL};
use crate::task::{Detail, Grants, Limits, Operation, RawDetail, Scope};
use crate::trust::TrustSnapshot;
use crate::workload::{
    Begin, Form, Issued, MOST_AUDIENCES, ScopeWish, TaskCredential, TaskSummary, TaskView,
};

/// A task to begin.
pub(super) fn begin(mut asked: proto::BeginRequest) -> Result<Begin, Status> {
    let on_behalf_of = user_token(&mut asked)?;
    let scope = scope_wish(asked.process_scope)?;
    let mut same = asked.clone();
    let (text, params) = (std::mem::take(&mut same.idempotency_key), std::mem::take(&mut same.params));
    let key = key("Begin", text, &params, &same)?;
    let spiffe_id = match asked.spiffe_id.as_str() {
        "" => None,
        text => Some(spiffe_id(text)?),
    };
    let details = details(&asked.details)?;
    if details.is_empty() && asked.template.is_empty() {
        return Err(malformed("details"));
    }
    Ok(Begin {
        purpose: asked.purpose,
        template: Some(asked.template).filter(|name| !name.is_empty()),
        params: asked.params.into_iter().collect(),
        details,
        life: duration("ttl", asked.ttl)?,
        limits: limits(asked.limits.as_ref())?,
        on_behalf_of,
        spiffe_id,
        require_isolated: asked.require_isolated,
        keeper: asked.keeper.map(keeper).transpose()?,
        scope,
        key,
    })
}

/// The user's token, taken out of the request, of which copies are made. What is left there tells one token from another
/// and is none.
fn user_token(asked: &mut proto::BeginRequest) -> Result<Option<UserToken>, Status> {
    let token = UserToken::new(std::mem::take(&mut asked.on_behalf_of));
    match token.expose() {
        "" => Ok(None),
        text if text.len() > MAX_USER_TOKEN_BYTES => Err(malformed("on_behalf_of")),
        text => {
            asked.on_behalf_of = hex_text(digest(&SHA256, text.as_bytes()).as_ref());
            Ok(Some(token))
        }
    }
}

/// For which audiences somebody is to keep credentials.
pub(super) fn keeper(asked: proto::Keeper) -> Result<BTreeSet<String>, Status> {
    let all = asked.audiences.len();
    let named: BTreeSet<String> =
        asked.audiences.into_iter().filter(|audience| !audience.is_empty()).collect();
    if named.len() == all && all <= MOST_AUDIENCES { Ok(named) } else { Err(malformed("keeper.audiences")) }
}

/// A SPIFFE ID that is one.
pub(super) fn spiffe_id(text: &str) -> Result<SpiffeId, Status> {
    SpiffeId::parse(text.as_bytes()).map_err(|_not_one| malformed("spiffe_id"))
}

/// By what a task is to be held.
pub(super) fn scope_wish(asked: i32) -> Result<ScopeWish, Status> {
    match proto::Scope::try_from(asked) {
        Ok(proto::Scope::Unspecified) => Ok(ScopeWish::Any),
        Ok(proto::Scope::Cgroup) => Ok(ScopeWish::Cgroup),
        Ok(proto::Scope::Process) => Ok(ScopeWish::Process),
        Err(_unknown) => Err(malformed("process_scope")),
    }
}

/// An idempotency key, with the digest of the request: `rest` is what is left of it without key and `params`, since
/// maps have no order on the wire. Requests of two methods may look the same there.
pub(super) fn key(
    method: &str,
    text: String,
    params: &HashMap<String, String>,
    rest: &impl prost::Message,
) -> Result<Option<(String, [u8; 32])>, Status> {
    match text {
        text if text.is_empty() => Ok(None),
        text if text.len() > MAX_KEY_BYTES => Err(malformed("idempotency_key")),
        text => {
            let params: BTreeMap<_, _> = params.iter().collect();
            let bytes = [format!("{method} {params:?} ").into_bytes(), rest.encode_to_vec()].concat();
            let print = digest(&SHA256, &bytes).as_ref().first_chunk().copied().unwrap_or_default();
            Ok(Some((text, print)))
        }
    }
}

impl From<&proto::AuthorizationDetail> for RawDetail {
    fn from(detail: &proto::AuthorizationDetail) -> Self {
        Self {
            kind: detail.r#type.clone(),
            locations: detail.locations.clone(),
            actions: detail.actions.clone(),
            datatypes: detail.datatypes.clone(),
            identifier: detail.identifier.clone(),
            tools: detail.tools.clone(),
            methods: detail.methods.clone(),
            paths: detail.paths.clone(),
        }
    }
}

/// Details as they were asked for.
pub(super) fn details(asked: &[proto::AuthorizationDetail]) -> Result<Vec<Detail>, Status> {
    let read = |(at, detail): (usize, &proto::AuthorizationDetail)| {
        Detail::read(&detail.into()).map_err(|wrong| {
            let field = format!("details[{at}]");
            let message = format!("{field}: {wrong}");
            reason(Code::InvalidArgument, "malformed", &message, &[("field", &field)])
        })
    };
    asked.iter().enumerate().map(read).collect()
}

/// The operation, if one was named.
pub(in crate::api) fn operation(asked: Option<proto::Operation>) -> Result<Option<Operation>, Status> {
    use proto::operation::Kind;
    let Some(kind) = asked.map(|asked| asked.kind) else { return Ok(None) };
    let read = match kind.ok_or_else(|| malformed("operation"))? {
        Kind::Http(call) => {
            Operation::http(&call.method, &call.host, &call.path, call.bytes, &call.body_sha256)
        }
        Kind::Mcp(call) => Operation::mcp(&call.server, &call.tool, &call.arguments),
        Kind::Sql(call) => Operation::sql(&call.db, &call.role, &call.statement_sha256),
    };
    let wrong = |wrong: crate::task::OperationError| {
        let field = format!("operation.{}", wrong.0);
        reason(Code::InvalidArgument, "malformed", &wrong.to_string(), &[("field", &field)])
    };
    read.map(Some).map_err(wrong)
}

/// A length of time that is one.
pub(in crate::api) fn duration(
    field: &str,
    asked: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Status> {
    let Some(asked) = asked else { return Ok(None) };
    let length = Duration::try_from(asked).map_err(|_negative| malformed(field))?;
    if length.is_zero() { Err(malformed(field)) } else { Ok(Some(length)) }
}

/// RFC 7638 with SHA-256: 32 bytes, in the one way to write them.
pub(super) fn thumbprint(text: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    (bytes.len() == 32).then(|| text.to_owned())
}

/// Limits; 0 stands for none of one's own.
pub(super) fn limits(asked: Option<&proto::Limits>) -> Result<Limits, Status> {
    let Some(asked) = asked else { return Ok(Limits::default()) };
    let uncounted =
        [("limits.max_bytes", asked.max_bytes), ("limits.max_cost_microusd", asked.max_cost_microusd)];
    if let Some((field, _)) = uncounted.into_iter().find(|(_, most)| *most > 0) {
        let message = format!("`{field}` cannot be kept: nobody counts that yet, so leave it out");
        return Err(reason(Code::InvalidArgument, "malformed", &message, &[("field", field)]));
    }
    Ok(Limits {
        calls: (asked.max_calls > 0).then_some(asked.max_calls),
        bytes: None,
        cost_microusd: None,
        children: (asked.max_children > 0).then_some(asked.max_children),
        depth: (asked.max_depth > 0).then_some(asked.max_depth),
        // No task lives longer, so that no more is ever idle.
        idle: duration("limits.idle", asked.idle)?.map(|idle| idle.min(MAX_TASK_TTL)),
    })
}

/// A task as it is.
pub(in crate::api) fn task(view: &TaskView) -> proto::Task {
    let task = &view.task;
    let charter = &task.charter;
    let (state, why) = standing(view);
    let scope = match task.seat.scope {
        Scope::Process => proto::Scope::Process,
        Scope::Cgroup { .. } => proto::Scope::Cgroup,
    };
    proto::Task {
        id: task.id.to_string(),
        root: task.root.to_string(),
        parent: task.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        depth: task.depth,
        spiffe_id: charter.spiffe_id.to_string(),
        chain: view.chain.iter().map(ToString::to_string).collect(),
        purpose: charter.purpose.clone(),
        template: charter.template.clone().unwrap_or_default(),
        params: charter.params.clone().into_iter().collect(),
        details: grants(&charter.grants),
        limits: Some(shown_limits(&charter.limits)),
        used: Some(proto::Usage {
            calls: task.used.calls,
            bytes: task.used.bytes,
            cost_microusd: task.used.cost_microusd,
            children: task.children_ever,
            denials: task.denials,
            audiences: count(task.audiences.len()),
        }),
        state,
        reason: why,
        begun_at: Some(timestamp(task.begun_at)),
        deadline: Some(timestamp(view.deadline)),
        latest_deadline: Some(timestamp(view.latest)),
        process_scope: scope.into(),
        isolated: view.isolated,
        require_isolated: charter.require_isolated,
        instance: task.seat.instance(),
        pid: task.seat.process.pid,
        uid: task.seat.uid,
        on_behalf_of: charter
            .user
            .as_ref()
            .map(|user| proto::OnBehalfOf { iss: user.iss.clone(), sub: user.sub.clone() }),
        live_credentials: count(task.leases.len()),
        live_children: count(task.children.len()),
        evaluation_id: charter.evaluation.clone(),
        policy_version: charter.policy_version.clone(),
        ended_at: task.ended_at.map(timestamp),
    }
}

/// What an end did.
pub(in crate::api) fn summary(summary: &TaskSummary) -> proto::TaskSummary {
    let task = task(&summary.view);
    proto::TaskSummary {
        task_id: task.id,
        reason: task.reason,
        tasks: count(summary.tasks),
        credentials: count(summary.credentials),
        micros: u64::try_from(summary.took.as_micros()).unwrap_or(u64::MAX),
        used: task.used,
    }
}

/// A decision as a caller may see it: not by which policies.
pub(in crate::api) fn decision(decision: &Decision) -> proto::Decision {
    let obligations = &decision.obligations;
    let one = |kind: &str, name: &str, value: String| proto::Obligation {
        id: format!("{}/{kind}", decision.evaluation_id),
        r#type: kind.to_owned(),
        properties: [(name.to_owned(), value)].into(),
    };
    let ttl = obligations.max_ttl.map(|most| one("max_ttl", "seconds", most.as_secs().to_string()));
    let binding = obligations.binding.map(|binding| one("binding", "binding", binding.as_str().to_owned()));
    let log = obligations.log.iter().map(|log| one("log", "what", log.as_str().to_owned()));
    proto::Decision {
        allow: decision.is_allowed(),
        evaluation_id: decision.evaluation_id.to_string(),
        policy_ids: Vec::new(),
        policy_version: decision.policy_version.map(|version| version.to_string()).unwrap_or_default(),
        reason: decision.code().to_owned(),
        access_request: None,
        obligations: ttl.into_iter().chain(binding).chain(log).collect(),
        max_ttl: obligations.max_ttl.and_then(|most| most.try_into().ok()),
    }
}

/// A credential, with what belongs to it.
pub(super) fn credential(
    issued: &Issued,
    form: Form,
    task: TaskId,
    trust: &TrustSnapshot,
) -> proto::Credential {
    let format = match form {
        Form::Access => proto::Format::AccessToken,
        Form::Jwt => proto::Format::JwtSvid,
        Form::X509 => proto::Format::X509Svid,
        Form::Wit => proto::Format::WitSvid,
    };
    let carried = if form == Form::Access { grants(&issued.grants) } else { Vec::new() };
    let mut credential = proto::Credential {
        id: issued.credential.lease().to_string(),
        format: format.into(),
        task_id: task.to_string(),
        audience: issued.audience.clone(),
        details: carried,
        decision: Some(decision(&issued.decision)),
        ..proto::Credential::default()
    };
    let (spiffe_id, from, until) = match &issued.credential {
        TaskCredential::Access(one) => {
            credential.token.clone_from(&one.token);
            (&one.spiffe_id, one.issued_at, one.not_after)
        }
        TaskCredential::Jwt(one) => {
            credential.token.clone_from(&one.token);
            (&one.spiffe_id, one.issued_at, one.not_after)
        }
        TaskCredential::Wit(one) => {
            credential.token.clone_from(&one.token);
            credential.private_key = Bytes::copy_from_slice(one.key.expose());
            (&one.spiffe_id, one.issued_at, one.not_after)
        }
        TaskCredential::X509(one) => {
            credential.x509_svid = one.chain.clone();
            credential.private_key = Bytes::copy_from_slice(one.key.expose());
            credential.bundle = trust.x509_bundle().clone();
            (&one.spiffe_id, one.not_before, one.not_after)
        }
    };
    credential.spiffe_id = spiffe_id.to_string();
    credential.issued_at = Some(timestamp(from));
    credential.expires_at = Some(timestamp(until));
    credential
}

/// Details, as they go out.
pub(super) fn grants(grants: &Grants) -> Vec<proto::AuthorizationDetail> {
    let shown = |detail: &Detail| {
        let RawDetail { kind, locations, actions, datatypes, identifier, tools, methods, paths } =
            detail.raw();
        proto::AuthorizationDetail {
            r#type: kind,
            locations,
            actions,
            datatypes,
            identifier,
            tools,
            methods,
            paths,
        }
    };
    grants.details().iter().map(shown).collect()
}

fn shown_limits(limits: &Limits) -> proto::Limits {
    proto::Limits {
        max_calls: limits.calls.unwrap_or_default(),
        max_bytes: limits.bytes.unwrap_or_default(),
        max_cost_microusd: limits.cost_microusd.unwrap_or_default(),
        max_children: limits.children.unwrap_or_default(),
        max_depth: limits.depth.unwrap_or_default(),
        idle: limits.idle.and_then(|idle| idle.try_into().ok()),
    }
}

/// A moment.
pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::from(at)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

const MAX_KEY_BYTES: usize = 128;
