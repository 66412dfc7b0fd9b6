//! `Explain`: an operator's question, and the answer taken apart.

use mayfly_proto::task as proto;
use serde_json::{Value, json};
use tonic::Status;

use super::super::tasks::errors::{malformed, of_error};
use super::super::tasks::{task_id, wire};
use crate::id::SpiffeId;
use crate::policy::{Action, Object, Principal, Question, Reason};
use crate::task::Refused;
use crate::workload::{Ask, AskAs, TaskExplained, Workloads};

/// Explains one decision.
pub(super) fn explain(
    workloads: &Workloads,
    asked: proto::ExplainRequest,
) -> Result<proto::Explanation, Status> {
    let explained = workloads.explain_for_task(&question(asked)?).map_err(of_error)?;
    Ok(shown(&explained))
}

fn question(asked: proto::ExplainRequest) -> Result<AskAs, Status> {
    let spiffe_id = (!asked.spiffe_id.is_empty())
        .then(|| SpiffeId::parse(asked.spiffe_id.as_bytes()).map_err(|_not_one| malformed("spiffe_id")))
        .transpose()?;
    let request = asked.request.ok_or_else(|| malformed("request"))?;
    if request.request_approval {
        // An operator asks what would be, and asks nobody for anything.
        return Err(malformed("request.request_approval"));
    }
    let task = (!request.task_id.is_empty()).then(|| task_id(&request.task_id)).transpose()?;
    let action = request.action.parse::<Action>().ok().filter(|action| match action {
        // Whoever begins is in no task yet.
        Action::Begin => task.is_none(),
        other => other.is_on_target() || *other == Action::Delegate,
    });
    // Only a task can begin by nothing.
    if request.target.is_empty() && action != Some(Action::Begin) {
        return Err(malformed("request.target"));
    }
    let ask = Ask {
        // Means nothing without one.
        task: task.unwrap_or_else(|| crate::id::TaskId::new(0, [0; 10])),
        form: None,
        target: request.target,
        details: Vec::new(),
        action: Some(action.ok_or_else(|| malformed("request.action"))?),
        ttl: wire::duration("request.ttl", request.ttl)?,
        proof: None,
        operation: wire::operation(request.operation)?,
        approval: None,
        ask_people: false,
    };
    Ok(AskAs { task, spiffe_id, ask })
}

fn shown(explained: &TaskExplained) -> proto::Explanation {
    let TaskExplained { explanation, question, before } = explained;
    let mut decision = wire::decision(&explanation.decision);
    decision.policy_ids.clone_from(&explanation.decision.policy_ids);
    let mut would_help = explanation.changes.clone();
    if let Some(refused) = before {
        decision.allow = false;
        decision.reason = word(refused).to_owned();
        would_help.insert(0, help(refused));
    }
    let failed = explanation.decision.reason == Reason::EvaluationError;
    let errors = explanation.considered.iter().filter(|one| failed && one.decided);
    let errors =
        errors.map(|one| format!("{} ({}): {}", one.id, one.place, one.because.join("; "))).collect();
    proto::Explanation {
        decision: Some(decision),
        request: request(question).to_string(),
        would_help,
        errors,
    }
}

/// The reason that the agent itself would be told.
fn word(refused: &Refused) -> &'static str {
    match refused {
        Refused::Ended(_) => "task_ended",
        Refused::Pending => "pending_approval",
        _ => "not_granted",
    }
}

fn help(refused: &Refused) -> String {
    match refused {
        Refused::Ended(ending) => {
            format!("the task has ended ({}): only another task could do this", ending.as_str())
        }
        Refused::Pending => "the task, or one above it, waits for people".to_owned(),
        _ => "the task's details do not cover this: a task would have to begin with them".to_owned(),
    }
}

/// The question as policy saw it.
fn request(question: &Question) -> Value {
    let object = match &question.object {
        Object::Target(name) => json!({"target": name}),
        Object::Agent(id) => json!({"agent": id.to_string()}),
        Object::Template(name) => json!({"template": name}),
        Object::Identity(identity) => json!({"identity": identity.spiffe_id.to_string()}),
    };
    json!({
        "principal": principal(&question.principal),
        "action": question.action.as_str(),
        "resource": object,
        "phase": question.phase.as_str(),
        "requested_ttl": question.requested_ttl.as_secs(),
        "context": context(question),
    })
}

fn principal(principal: &Principal) -> Value {
    match principal {
        Principal::User(user) => json!({"user": user.name, "groups": user.groups}),
        Principal::Workload(who) => json!({
            "spiffe_id": who.spiffe_id.to_string(),
            "profile": who.profile.to_string(),
            "uid": who.uid,
            "selectors": who.selectors,
            "exe_sha256": who.exe_sha256,
            "node": who.node,
            "groups": who.groups,
            "posture": {
                "traced": who.posture.traced,
                "exe_deleted": who.posture.exe_deleted,
                "no_new_privs": who.posture.no_new_privs,
                "isolated": who.posture.isolated,
            },
        }),
    }
}

fn context(question: &Question) -> Value {
    let about = &question.circumstances;
    let chain: Vec<String> = about.chain.iter().map(ToString::to_string).collect();
    let mut context = json!({
        "chain": chain,
        "risk": about.risk,
        "new_destination": about.new_destination,
    });
    let Some(members) = context.as_object_mut() else { return context };
    if let Some(task) = &question.task {
        let seconds = |at| crate::clock::unix_seconds(at);
        let task = json!({
            "id": task.id, "root": task.root, "depth": task.depth, "template": task.template,
            "purpose": task.purpose, "started": seconds(task.started), "deadline": seconds(task.deadline),
            "calls": task.calls, "denials": task.denials, "children": task.children,
            "audiences": task.audiences,
        });
        members.insert("task".to_owned(), task);
    }
    if let Some(user) = &about.on_behalf_of {
        members.insert("on_behalf_of".to_owned(), json!({"name": user.name, "groups": user.groups}));
    }
    if let Some(http) = &about.http {
        let http = json!({"method": http.method, "host": http.host, "path": http.path});
        members.insert("http".to_owned(), http);
    }
    if let Some(mcp) = &about.mcp {
        members.insert("mcp".to_owned(), json!({"tool": mcp.tool}));
    }
    if let Some(sql) = &about.sql {
        members.insert("sql".to_owned(), json!({"db": sql.db, "role": sql.role}));
    }
    context
}
