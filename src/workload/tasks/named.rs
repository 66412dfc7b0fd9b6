//! By which names the record calls what a task asks for: the target by that of the catalogue, the operation by what
//! tells it from others, without what it carries.

use super::deciding::find_target;
use super::issue::Ask;
use crate::audit::{self, Event};
use crate::id::hex_text;
use crate::policy::{Decision, Log};
use crate::task::Operation;
use crate::workload::Shared;

impl Shared {
    /// The target's name in the catalogue, so that what was allowed and what was denied is found by one word; what the
    /// caller said where there is no such target.
    pub(super) fn target_name(&self, ask: &Ask) -> String {
        let set = self.parts.policy.in_force();
        find_target(&set, ask).map_or_else(|| ask.target.clone(), |target| target.name.clone())
    }
}

/// The operation, without what it carries.
pub(super) fn request(operation: &Operation) -> audit::Request {
    let some = |text: &str| Some(text.to_owned());
    let of = |proto: &str| audit::Request { proto: proto.to_owned(), ..audit::Request::default() };
    match operation {
        Operation::Http { method, host, path, .. } => {
            let (method, host, path) = (some(method), some(host), Some(path.to_string()));
            audit::Request { method, host, path, ..of("http") }
        }
        Operation::Mcp { server, tool, .. } => {
            audit::Request { server: some(server), tool: some(tool), ..of("mcp") }
        }
        Operation::Sql { db, role, .. } => audit::Request { db: some(db), role: some(role), ..of("sql") },
    }
}

/// With the digest of what it carries, where the policies that decided want that on record.
pub(super) fn request_of(operation: &Operation, decision: &Decision) -> audit::Request {
    let wanted = decision.obligations.log.contains(&Log::BodyHash);
    let body_sha256 = operation.body_sha256().filter(|_| wanted).map(|digest| hex_text(&digest));
    audit::Request { body_sha256, ..request(operation) }
}

/// What people are asked to allow, or have answered to.
pub(super) fn about(mut event: Event, operation: Option<&Operation>) -> Event {
    if let Event::Approval { approval, .. } = &mut event {
        approval.request = operation.map(request);
    }
    event
}
