//! Request-time decisions: who may do what to what, for how long, on whose behalf. A permit is the only way to an
//! issuance, and one permit buys one.
//!
//! The constructor of [`Permit`] is private to this module and nothing here can copy one, so an issuer that takes a
//! `Permit` by value cannot be reached past the engine. A [`Question`] holds everything a decision may hang on, time
//! included; a [`Decision`] holds everything that follows from it. With no policy set loaded a matched entry is enough
//! for what the Workload API gives, as it is without this module, and everything else is denied.
//!
//! The [`Catalogue`] says what there is to decide about: targets, agents, task templates, people. It is read from the
//! same directory as the policies and changes with them in one step, so that a decision never sees half of a reload.

mod cases;
mod catalogue;
#[cfg(feature = "cedar")]
mod cedar;
mod decision;
mod dev;
mod engine;
mod explanation;
mod freeze;
mod freeze_file;
mod lint;
mod permit;
mod question;
mod reach;
mod set;
mod sketch;
mod source;

pub use self::cases::{Broken, Case, parse_cases};
pub use self::catalogue::{
    Agent, Allowed, Catalogue, Ceilings, Filled, IdPattern, MAX_CREDENTIAL_TTL, MAX_TASK_TTL, Operation,
    Param, ParamError, ParamType, Person, Target, TargetKind, Template, TemplateDetail, parse_catalogue,
};
pub use self::decision::{
    ApprovalNeeded, Binding, Decision, EvaluationId, Log, Obligations, PolicyVersion, Reason, Verdict,
};
pub use self::engine::{Engine, GrantedActions, NotGiven, RefusedActions};
pub use self::explanation::{Considered, Explanation};
pub use self::freeze::{Freeze, Freezes, Frozen, Thawed};
pub use self::freeze_file::{load_freezes, store_freezes};
pub use self::lint::Lint;
pub use self::permit::{Denied, Grant, Kind, Permit, PermitRequest};
pub use self::question::{
    Action, ApprovalFacts, Circumstances, HttpFacts, IdentityFacts, McpFacts, Object, Phase, PostureFacts,
    Principal, Question, SqlFacts, TaskFacts, UserFacts, WorkloadFacts,
};
#[cfg(feature = "cedar")]
use self::set::Finding;
pub use self::set::{Fetchable, PolicySet};
pub use self::sketch::{ApprovalSketch, ProcessSketch, Sketch, TaskSketch};
pub use self::source::{MAX_POLICY_BYTES, PolicySource, check_policies, is_policy_file};

/// The schema that policies are held to, as it is written.
pub const SCHEMA: &str = include_str!("cedar/schema.cedarschema");

/// A moment as people and logs read it.
fn shown_time(at: std::time::SystemTime) -> String {
    let at = time::OffsetDateTime::from(at);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_too_far| at.to_string())
}
