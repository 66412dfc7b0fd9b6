//! What is recorded when a task asks for something that is not its own: nobody's policy was asked, and yet it is what
//! somebody looks for who wonders what an agent is up to.

use super::TaskView;
use super::issue::Ask;
use super::named::request;
use crate::audit::{Agent, Event, PolicyDecision};
use crate::policy::{Phase, Verdict};
use crate::task::{Operation, Refused};

/// The event of a request that the task itself does not cover. `target`: by the name that the record uses.
pub(super) fn refused_event(
    agent: Agent,
    view: &TaskView,
    refused: Refused,
    ask: &Ask,
    target: &str,
) -> Event {
    let decision = PolicyDecision {
        evaluation_id: None,
        result: Verdict::Deny.as_str(),
        phase: Phase::Issue.as_str(),
        action: action(ask),
        target: target.to_owned(),
        tool: ask.operation.as_ref().and_then(Operation::tool).map(str::to_owned),
        args_hash: ask.operation.as_ref().map(|operation| crate::id::hex_text(&operation.digest())),
        request: ask.operation.as_ref().map(request),
        policy_ids: Vec::new(),
        policy_version: None,
        reason: refused.as_str(),
        obligations: Vec::new(),
    };
    Event::Decided { agent, task: view.facts(), decision: Box::new(decision) }
}

/// The one action class that was named; several, or none, are `any`.
fn action(ask: &Ask) -> &'static str {
    let mut named: Vec<_> =
        ask.details.iter().flat_map(|detail| detail.actions.iter()).chain(ask.action.as_ref()).collect();
    named.sort_unstable();
    named.dedup();
    match named.as_slice() {
        [one] => one.as_str(),
        _ => "any",
    }
}
