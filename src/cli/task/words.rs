//! One task in words, and as JSON.

use std::time::SystemTime;

use mayfly_proto::task::{AuthorizationDetail, Scope, Task, TaskState};
use prost_types::Timestamp;
use serde::Serialize;

use super::super::render::{cell, count, relative, stamp_unix};
use crate::task::RawDetail;

/// `active`, `ended (process_exit)`, ….
pub(super) fn state(task: &Task) -> String {
    let name = state_name(task);
    match task.reason.as_str() {
        "" => name.to_owned(),
        reason => format!("{name} ({reason})"),
    }
}

fn state_name(task: &Task) -> &'static str {
    match task.state() {
        TaskState::Unspecified => "unknown",
        TaskState::PendingApproval => "pending_approval",
        TaskState::Active => "active",
        TaskState::Suspended => "suspended",
        TaskState::Ended => "ended",
    }
}

/// Everything that fits into a line of the tree.
pub(super) fn line(task: &Task, now: SystemTime) -> String {
    let mut parts = vec![cell(&task.id), cell(&task.spiffe_id), cell(&state(task))];
    if task.state() != TaskState::Ended {
        parts.extend(task.deadline.map(|at| format!("ends {}", relative(at.seconds, now))));
        parts.push(count(task.live_credentials.into(), "credential", "credentials"));
    }
    if !task.isolated {
        parts.push("not isolated".to_owned());
    }
    if !task.purpose.is_empty() {
        parts.push(format!("\"{}\"", cell(&task.purpose)));
    }
    parts.join("  ")
}

/// What it may do, and what nobody but it says.
pub(super) fn page(task: &Task, now: SystemTime) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |label: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("{label:12}{text}"));
        }
    };
    line("task", cell(&task.id));
    line("parent", cell(&task.parent));
    line("agent", cell(&task.spiffe_id));
    line("chain", cell(&task.chain.join(" > ")));
    line(
        "user",
        task.on_behalf_of
            .as_ref()
            .map(|user| cell(&format!("{} at {}", user.sub, user.iss)))
            .unwrap_or_default(),
    );
    line("state", cell(&state(task)));
    line("process", format!("pid {}, uid {}, {}", task.pid, task.uid, scope(task)));
    line("begun", stamp(task.begun_at));
    line(
        "deadline",
        task.deadline
            .map(|at| format!("{} ({})", stamp(Some(at)), relative(at.seconds, now)))
            .unwrap_or_default(),
    );
    line(
        "ended",
        task.ended_at
            .map(|at| format!("{}: {}", stamp(Some(at)), cell(&why(&task.reason))))
            .unwrap_or_default(),
    );
    line("template", cell(&task.template));
    for detail in &task.details {
        line("may", cell(&RawDetail::from(detail).to_string()));
    }
    line("may not", "everything else".to_owned());
    line("used", used(task));
    line(
        "live",
        format!(
            "{}, {}",
            count(task.live_credentials.into(), "credential", "credentials"),
            count(task.live_children.into(), "child", "children")
        ),
    );
    line("policy", cell(&task.policy_version));
    line("evaluation", cell(&task.evaluation_id));
    if !task.purpose.is_empty() {
        line("purpose", format!("\"{}\" (the agent's own words)", cell(&task.purpose)));
    }
    lines
}

fn used(task: &Task) -> String {
    let (used, limits) = (task.used.unwrap_or_default(), task.limits.unwrap_or_default());
    format!(
        "{} calls{}, {}, {}",
        used.calls,
        at_most(limits.max_calls),
        count(used.audiences.into(), "audience", "audiences"),
        count(used.denials.into(), "denial", "denials"),
    )
}

fn at_most(limit: u64) -> String {
    if limit == 0 { String::new() } else { format!(" of {limit}") }
}

/// Why a task has ended, for people.
fn why(reason: &str) -> String {
    let text = match reason {
        "completed" => "its holder said that the work is done",
        "failed" => "its holder said that it went wrong",
        "deadline" => "its time was over",
        "idle" => "nothing was asked of it for too long",
        "process_exit" => "its process exited",
        "parent_ended" => "the task above it ended",
        "policy" => "policy, or the loss of its identity",
        "admin" => "an operator ended it",
        "kill_switch" => "an operator killed it",
        "anomaly" => "an anomaly",
        "restart" => "the agent restarted",
        "watch_lost" => "the agent cannot tell any more whether its process lives",
        other => other,
    };
    text.to_owned()
}

fn scope(task: &Task) -> String {
    let scope = if task.process_scope() == Scope::Cgroup { "its cgroup" } else { "this process alone" };
    let isolated = if task.isolated { "isolated" } else { "not isolated: others could act as it" };
    format!("{scope}, {isolated}")
}

fn stamp(at: Option<Timestamp>) -> String {
    at.map(|at| stamp_unix(at.seconds)).unwrap_or_default()
}

/// A task for programs.
#[derive(Serialize)]
pub(super) struct TaskJson {
    id: String,
    root: String,
    parent: Option<String>,
    depth: u32,
    spiffe_id: String,
    chain: Vec<String>,
    purpose: String,
    template: String,
    state: &'static str,
    reason: String,
    begun_at: String,
    deadline: String,
    ended_at: Option<String>,
    isolated: bool,
    scope: &'static str,
    pid: u32,
    uid: u32,
    details: Vec<DetailJson>,
    live_credentials: u32,
    live_children: u32,
    calls: u64,
    denials: u32,
    policy_version: String,
    evaluation_id: String,
}

/// As in RFC 9396; what sets no limit is left out.
#[derive(Serialize)]
struct DetailJson {
    r#type: String,
    locations: Vec<String>,
    actions: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    datatypes: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    identifier: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<String>,
}

impl From<Task> for TaskJson {
    fn from(task: Task) -> Self {
        let used = task.used.unwrap_or_default();
        Self {
            state: state_name(&task),
            scope: if task.process_scope() == Scope::Cgroup { "cgroup" } else { "process" },
            root: task.root,
            parent: Some(task.parent).filter(|parent| !parent.is_empty()),
            depth: task.depth,
            spiffe_id: task.spiffe_id,
            chain: task.chain,
            purpose: task.purpose,
            template: task.template,
            reason: task.reason,
            begun_at: stamp(task.begun_at),
            deadline: stamp(task.deadline),
            ended_at: task.ended_at.map(|at| stamp(Some(at))),
            isolated: task.isolated,
            pid: task.pid,
            uid: task.uid,
            details: task.details.into_iter().map(Into::into).collect(),
            live_credentials: task.live_credentials,
            live_children: task.live_children,
            calls: used.calls,
            denials: used.denials,
            policy_version: task.policy_version,
            evaluation_id: task.evaluation_id,
            id: task.id,
        }
    }
}

impl From<AuthorizationDetail> for DetailJson {
    fn from(detail: AuthorizationDetail) -> Self {
        Self {
            r#type: detail.r#type,
            locations: detail.locations,
            actions: detail.actions,
            datatypes: detail.datatypes,
            identifier: detail.identifier,
            tools: detail.tools,
            methods: detail.methods,
            paths: detail.paths,
        }
    }
}
