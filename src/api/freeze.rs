//! `Freeze` and `Thaw` of the admin service.

use mayfly_proto::admin as proto;
use mayfly_proto::admin::frozen_thing::What;
use tonic::{Extensions, Status};

use super::operator::operator;
use crate::clock::{Clock as _, SystemClock};
use crate::id::SpiffeId;
use crate::policy::{Freeze, Frozen, Thawed};
use crate::workload::Workloads;

pub(super) fn freeze(
    workloads: &Workloads,
    caller: &Extensions,
    order: proto::FreezeRequest,
) -> Result<proto::FreezeResponse, Status> {
    let (what, by) = (thing(order.thing)?, operator(workloads, caller)?);
    let freeze = Freeze {
        by: format!("uid {}", by.uid),
        reason: reason(&order.reason)?,
        at: SystemClock.wall(),
        revoke: order.revoke,
    };
    let frost = workloads.freeze(what, freeze, by).map_err(|error| unwritten("it is frozen", &error))?;
    Ok(proto::FreezeResponse { credentials: u32::try_from(frost.credentials).unwrap_or(u32::MAX) })
}

pub(super) fn thaw(
    workloads: &Workloads,
    caller: &Extensions,
    order: &proto::ThawRequest,
) -> Result<proto::ThawResponse, Status> {
    let (what, by) = (thing(order.thing.clone())?, operator(workloads, caller)?);
    let thawed = workloads.thaw(&what, &reason(&order.reason)?, by);
    match thawed.map_err(|error| unwritten("it stays frozen", &error))? {
        Thawed::Nothing => Err(Status::not_found(format!("{what} is not frozen by order"))),
        Thawed::Done => Ok(proto::ThawResponse { needs_another: false }),
        Thawed::NeedsAnother => Ok(proto::ThawResponse { needs_another: true }),
    }
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
        Some(What::TaskId(text)) => named(text).map(Frozen::Task),
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

const MAX_NAME: usize = 2048;
