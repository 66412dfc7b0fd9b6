//! What people see before they decide: found out by this agent, the most telling first. What the asking agent said of
//! itself, its purpose and what it filled a template with, is not among it.

use mayfly_attestors::Attestation;

use super::TaskView;
use super::issue::Ask;
use crate::id::hex_text;
use crate::policy::{Decision, Target};
use crate::task::{Operation, Scope, Task};
use crate::workload::Shared;

/// Name and value.
pub(super) type Fact = (&'static str, String);

/// Where a task is held.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) uid: u32,
    /// `None`: not known.
    pub(super) cgroup: Option<String>,
}

impl Place {
    /// Whether a cgroup is this one or below it. The root of the hierarchy is where everybody is who has none: it tells
    /// nobody apart.
    pub(super) fn holds(&self, cgroup: Option<&str>) -> bool {
        let Some(own) = self.cgroup.as_deref().filter(|own| *own != "/") else { return false };
        // Of whoever cannot be placed it cannot be said that he is elsewhere.
        let Some(cgroup) = cgroup else { return true };
        cgroup.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Shared {
    /// Where the task is, and all above it.
    pub(super) fn places_of(&self, view: &TaskView) -> Vec<Place> {
        let seats: Vec<_> = {
            let state = self.lock();
            let line = state.tasks.tree.lineage(view.task.id);
            let process = |task: &Task| state.process_of(&task.seat);
            line.into_iter().map(|task| (task.seat.clone(), process(task))).collect()
        };
        let place = |(seat, process): (crate::task::Seat, Option<_>)| {
            let own = || self.parts.attestors.cgroup_of(process.as_deref()?);
            let cgroup = match seat.scope {
                Scope::Cgroup { path, .. } => Some(path),
                Scope::Process => own(),
            };
            Place { uid: seat.uid, cgroup }
        };
        seats.into_iter().map(place).collect()
    }
}

/// In the order in which to show them.
pub(super) fn facts(
    view: &TaskView,
    attestation: &Attestation,
    places: &[Place],
    target: &Target,
    ask: &Ask,
    decision: &Decision,
) -> Vec<Fact> {
    let task = &view.task;
    let mut facts = vec![
        ("agent", task.charter.spiffe_id.to_string()),
        ("action", ask.action.map_or("read", |action| action.as_str()).to_owned()),
        ("target", format!("{} ({})", target.name, target.audience)),
        ("data class", target.data_class.clone()),
        ("target owner", target.owner.clone()),
    ];
    match &ask.operation {
        Some(operation) => facts.extend(operation.facts()),
        None => facts.push(("operation", "NOT NAMED: a yes is good for any one such operation".to_owned())),
    }
    let digest = ask.operation.as_ref().map(Operation::digest);
    facts.extend(digest.map(|digest| ("operation SHA-256", hex_text(&digest))));
    facts.extend(process_facts(view, attestation, places));
    facts.push(("task", format!("{} (depth {}, root {})", task.id, task.depth, task.root)));
    if view.chain.len() > 1 {
        facts.push(("chain", view.chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(" > ")));
    }
    facts.extend(task.charter.template.clone().map(|template| ("template", template)));
    let user = task.charter.user.as_ref();
    facts.extend(user.map(|user| ("on behalf of", format!("{} ({})", user.sub, user.iss))));
    facts.push(("asked by policy", decision.policy_ids.join(", ")));
    facts
}

pub(super) fn process_facts(view: &TaskView, attestation: &Attestation, places: &[Place]) -> Vec<Fact> {
    let seat = &view.task.seat;
    let one = |key: &str| attestation.values("unix", key).next().map(str::to_owned);
    let user = one("user").map(|name| format!(" ({name})")).unwrap_or_default();
    let unknown = || "not known".to_owned();
    let cgroup = places.first().and_then(|place| place.cgroup.clone());
    let isolated = if view.isolated { "yes" } else { "no: other processes can act as it" };
    let mut facts = vec![("process", format!("pid {}, uid {}{user}", seat.process.pid, seat.uid))];
    facts.extend(one("path").map(|path| ("program", path)));
    facts.push(("program SHA-256", one("sha256").unwrap_or_else(unknown)));
    facts.push(("cgroup", cgroup.unwrap_or_else(unknown)));
    facts.push(("isolated", isolated.to_owned()));
    let odd = attestation.posture().names();
    if !odd.is_empty() {
        facts.push(("POSTURE", odd.join(", ")));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_where_the_agent_is_does_not_decide_and_the_root_is_nowhere() {
        let place = |cgroup: Option<&str>| Place { uid: 1, cgroup: cgroup.map(str::to_owned) };
        let unit = place(Some("/system.slice/agent.service"));
        for inside in ["/system.slice/agent.service", "/system.slice/agent.service/tools"] {
            assert!(unit.holds(Some(inside)), "{inside}");
        }
        assert!(unit.holds(None), "nobody knows where he is");
        for outside in ["/system.slice/agent.service2", "/system.slice", "/", "/user.slice/session-3.scope"] {
            assert!(!unit.holds(Some(outside)), "{outside}");
        }
        for nowhere in [place(Some("/")), place(None)] {
            assert!(!nowhere.holds(Some("/")) && !nowhere.holds(None) && !nowhere.holds(Some("/a")));
        }
    }
}
