//! `Freeze` and `Thaw`, of the admin service and of the operators' service for tasks: one code for both.

use std::collections::BTreeSet;

use mayfly_proto::admin as proto;
use mayfly_proto::admin::frozen_thing::What;
use mayfly_proto::task;
use tonic::{Extensions, Status};

use super::operator::operator;
use crate::audit;
use crate::clock::{Clock as _, SystemClock};
use crate::id::{SpiffeId, TaskId};
use crate::policy::{Freeze, Frozen, Thawed};
use crate::workload::{Frost, Workloads};

pub(super) async fn freeze(
    workloads: &Workloads,
    caller: &Extensions,
    order: proto::FreezeRequest,
) -> Result<proto::FreezeResponse, Status> {
    let by = operator(workloads, caller)?;
    let (what, freeze) = (workloads.to_freeze(thing(order.thing)?), of(&by, &order.reason, order.revoke)?);
    let frost = workloads.freeze(&what, freeze, by).await;
    let frost = frost.map_err(|error| unwritten("it is frozen", &error))?;
    Ok(proto::FreezeResponse {
        credentials: count(frost.credentials),
        scopes: count(frost.still),
        scopes_not_held: count(frost.not_still),
        unknown: frost.unknown.unwrap_or_default(),
        what: what.to_string(),
    })
}

pub(super) async fn thaw(
    workloads: &Workloads,
    caller: &Extensions,
    order: &proto::ThawRequest,
) -> Result<proto::ThawResponse, Status> {
    let by = operator(workloads, caller)?;
    let what = workloads.to_thaw(thing(order.thing.clone())?);
    let needs_another = thawed(workloads, by, &what, &order.reason).await?;
    Ok(proto::ThawResponse { needs_another, what: what.to_string() })
}

/// The same for tasks, or a kill.
pub(super) async fn task_freeze(
    workloads: &Workloads,
    caller: &Extensions,
    order: task::FreezeRequest,
) -> Result<task::FreezeResult, Status> {
    use task::freeze_request::What as Asked;
    let by = operator(workloads, caller)?;
    let what = order.what.map(|what| match what {
        Asked::All(all) => What::All(all),
        Asked::SpiffeId(id) => What::SpiffeId(id),
        Asked::TaskId(id) => What::TaskId(id),
        Asked::Target(name) => What::Target(name),
    });
    let (what, freeze) =
        (workloads.to_freeze(thing(Some(proto::FrozenThing { what }))?), of(&by, &order.reason, order.kill)?);
    if order.kill {
        let killed = workloads.kill(&what, freeze, by).await;
        let killed = killed.map_err(|error| unwritten("it is frozen and killed", &error))?;
        return Ok(task::FreezeResult {
            tasks: count(killed.tasks),
            credentials: count(killed.credentials),
            scopes: count(killed.scopes),
            scopes_not_held: count(killed.not_killed),
            micros: u64::try_from(killed.took.as_micros()).unwrap_or(u64::MAX),
            unknown: killed.unknown.unwrap_or_default(),
            what: what.to_string(),
        });
    }
    let start = SystemClock.monotonic();
    let frost = workloads.freeze(&what, freeze, by).await;
    let frost = frost.map_err(|error| unwritten("it is frozen", &error))?;
    let Frost { unknown, credentials, tasks, still, not_still } = frost;
    let took = SystemClock.monotonic().saturating_duration_since(start);
    Ok(task::FreezeResult {
        tasks: count(tasks),
        credentials: count(credentials),
        scopes: count(still),
        scopes_not_held: count(not_still),
        micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        unknown: unknown.unwrap_or_default(),
        what: what.to_string(),
    })
}

pub(super) async fn task_thaw(
    workloads: &Workloads,
    caller: &Extensions,
    order: task::ThawRequest,
) -> Result<task::ThawResult, Status> {
    use task::thaw_request::What as Asked;
    let by = operator(workloads, caller)?;
    let what = order.what.map(|what| match what {
        Asked::All(all) => What::All(all),
        Asked::SpiffeId(id) => What::SpiffeId(id),
        Asked::TaskId(id) => What::TaskId(id),
        Asked::Target(name) => What::Target(name),
    });
    let what = workloads.to_thaw(thing(Some(proto::FrozenThing { what }))?);
    let needs_another = thawed(workloads, by, &what, &order.reason).await?;
    let tasks = if needs_another { 0 } else { workloads.tasks_named(&what) };
    Ok(task::ThawResult { tasks: count(tasks), needs_another, what: what.to_string() })
}

/// Whether another person must say so, too.
async fn thawed(workloads: &Workloads, by: audit::Agent, what: &Frozen, why: &str) -> Result<bool, Status> {
    let thawed = workloads.thaw(what, &reason(why)?, by).await;
    match thawed.map_err(|error| stays(&error))? {
        Thawed::Nothing => Err(Status::not_found(format!("{what} is not frozen by order"))),
        Thawed::Done => Ok(false),
        Thawed::NeedsAnother => Ok(true),
    }
}

fn of(by: &audit::Agent, why: &str, revoke: bool) -> Result<Freeze, Status> {
    let (by, at) = (format!("uid {}", by.uid), SystemClock.wall());
    Ok(Freeze { by, reason: reason(why)?, at, revoke, audiences: BTreeSet::new() })
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn thing(thing: Option<proto::FrozenThing>) -> Result<Frozen, Status> {
    let named = |text: String| {
        let usable = !text.is_empty() && text.len() <= MAX_NAME && crate::diag::is_plain(&text);
        if usable {
            Ok(text)
        } else {
            Err(Status::invalid_argument("the name is empty, too long or not plain"))
        }
    };
    match thing.and_then(|thing| thing.what) {
        Some(What::All(true)) => Ok(Frozen::All),
        Some(What::SpiffeId(text)) => match SpiffeId::parse(text.as_bytes()) {
            Ok(id) => Ok(Frozen::Agent(id.to_string())),
            Err(error) => Err(Status::invalid_argument(format!("no SPIFFE ID: {error}"))),
        },
        // A name that is none would freeze nothing, and whoever needs a kill switch would not be told.
        Some(What::TaskId(text)) => match text.parse::<TaskId>() {
            Ok(id) => Ok(Frozen::Task(id.to_string())),
            Err(_not_one) => {
                Err(Status::invalid_argument("no task has such a name: `tsk_` and 26 characters"))
            }
        },
        Some(What::Target(text)) => named(text).map(Frozen::Target),
        Some(What::All(false)) | None => {
            Err(Status::invalid_argument("say what: all, an agent, a task or a target"))
        }
    }
}

fn reason(text: &str) -> Result<String, Status> {
    crate::diag::line(text).map_err(|why| Status::invalid_argument(format!("the reason {why}")))
}

fn unwritten(so: &str, error: &std::io::Error) -> Status {
    tracing::error!(%error, "what is frozen cannot be written down");
    Status::unavailable(format!(
        "{so}, and could not be written down ({error}): a restart would not know of it"
    ))
}

fn stays(error: &std::io::Error) -> Status {
    tracing::error!(%error, "what was to be thawed stays frozen");
    Status::unavailable(format!("it stays frozen: {error}"))
}

const MAX_NAME: usize = 2048;
