//! What is recorded of tasks: their steps, and what policy decided about what they wanted.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};

use super::request::Request;
use super::text::hex;
use crate::id::TaskId;

/// A step of a task's life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TaskStep {
    /// A root began.
    Begin,
    /// A part of it was offered to somebody.
    Delegate,
    /// An offer was taken up: a child began.
    Join,
    /// It was given more time.
    Renew,
    /// Nothing is decided in its favour until it is resumed.
    Suspend,
    /// It goes on.
    Resume,
    /// It is over.
    Ended,
}

/// One task, as far as the record tells it. The purpose is the agent's own words and no fact.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFacts {
    /// Its name.
    pub id: TaskId,
    /// The top of its tree.
    pub root: TaskId,
    /// Right above it.
    pub parent: Option<TaskId>,
    /// 0 for a root.
    pub depth: u32,
    /// By which template.
    pub template: Option<String>,
    /// In the agent's own words.
    pub purpose: String,
    /// `pending_approval`, `active`, `suspended`, `ended`, or `refused` for one that never was.
    pub state: &'static str,
    /// It ends then.
    pub deadline: Option<SystemTime>,
    /// Whether nobody else can act as it.
    pub isolated: bool,
    /// Identities from the root to this task's own.
    pub chain: Vec<String>,
    /// For whom.
    pub user: Option<UserPrint>,
}

/// A user: who says so, and a print of who it is. The record is read by many, and names nobody.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserPrint {
    /// The issuer.
    pub iss: String,
    /// SHA-256 of the subject, hex.
    pub sub_hash: String,
}

impl UserPrint {
    /// The print of a user.
    pub fn of(iss: &str, sub: &str) -> Self {
        Self { iss: iss.to_owned(), sub_hash: hex(digest(&SHA256, sub.as_bytes()).as_ref()) }
    }
}

/// What policy decided.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyDecision {
    /// Names the evaluation: the caller was told the same. `None`: policy was not asked, the task does not cover it.
    pub evaluation_id: Option<String>,
    /// `allow`, `deny` or `requestable`.
    pub result: &'static str,
    /// `begin`, `issue`, `use` or `exchange`.
    pub phase: &'static str,
    /// The action class.
    pub action: &'static str,
    /// By the name that policies know it by.
    pub target: String,
    /// The MCP tool, if it was one.
    pub tool: Option<String>,
    /// SHA-256 of the operation in canonical form, hex, if it was named.
    pub args_hash: Option<String>,
    /// The operation, if it was named.
    pub request: Option<Request>,
    /// Those that decided.
    pub policy_ids: Vec<String>,
    /// The set that was asked.
    pub policy_version: Option<String>,
    /// Why.
    pub reason: &'static str,
    /// What has to be kept to.
    pub obligations: Vec<String>,
}

/// A step of an approval's life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ApprovalStep {
    /// People were asked.
    Requested,
    /// One of them said yes: enough, or not yet.
    Granted,
    /// One of them said no.
    Denied,
    /// Nobody said enough in time, or nobody used it in time.
    Expired,
    /// Its task ended first.
    Cancelled,
    /// It was used.
    Used,
    /// Nobody could be told that it was asked for.
    NotTold,
}

/// One approval, as far as the record tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct ApprovalFacts {
    /// Its name.
    pub id: String,
    /// For which task.
    pub task: TaskId,
    /// The action class.
    pub action: &'static str,
    /// By the name that policies know it by.
    pub target: String,
    /// Of the operation in canonical form, hex.
    pub operation_sha256: Option<String>,
    /// The operation, if it was named.
    pub request: Option<Request>,
    /// The evaluation that asked for it.
    pub evaluation_id: String,
    /// Who answered.
    pub by: Option<String>,
    /// In his words.
    pub reason: Option<String>,
    /// When that was.
    pub at: Option<SystemTime>,
    /// Until when a yes is good.
    pub until: Option<SystemTime>,
}

/// What the end of a task has taken along.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TaskEnd {
    /// `completed`, `deadline`, `parent_ended`, ….
    pub reason: &'static str,
    /// `kernel`, `holder`, `operator uid 0`, `parent`, ….
    pub initiator: String,
    /// Credentials refused from then on, its own and those of all below.
    pub credentials: u64,
    /// Tasks below it that ended because of it.
    pub descendants: u64,
    /// From the cause to the last local effect.
    pub latency: Duration,
    /// What whoever ended it had to say.
    pub words: Option<EndWords>,
}

/// Said of an end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndWords {
    /// By the agent itself: its own words, and no fact.
    Agent(String),
    /// By the operator who ended it.
    Operator(String),
}
