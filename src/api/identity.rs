//! `mayfly.identity.v1`: what a process may learn about itself.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use mayfly_attestors::Strength;
use mayfly_proto::identity as proto;
use mayfly_proto::identity::identity_server::Identity as IdentityApi;
use tonic::{Code, Request, Response, Status};

use super::admission::{Call, Gate};
use super::status::{Busy, of_refusal};
use crate::drain::Watch;
use crate::registration::Identity;
use crate::workload::LeaseFilter;

/// How long a waiting process that was not looked at waits before it asks for its turn again.
const TURN: Duration = Duration::from_millis(200);

/// Serves `WhoAmI` and `AwaitIdentity`.
#[derive(Clone, Debug)]
pub struct IdentityService {
    gate: Gate,
    drain: Watch,
}

impl IdentityService {
    /// A service behind `gate`.
    pub fn new(gate: Gate, drain: Watch) -> Self {
        Self { gate, drain }
    }

    async fn identity_of(&self, call: &Call) -> Result<proto::WhoAmIResponse, Status> {
        let mut entries = self.gate.workloads().entries();
        let mut drain = self.drain.clone();
        loop {
            entries.borrow_and_update();
            match self.describe(call).await {
                Ok(answer) if !answer.identities.is_empty() => return Ok(answer),
                // Many wait, and one reload wakes them all: each is looked at when its turn comes.
                Err(status) if status.code() == Code::Unavailable => {
                    tokio::time::sleep(TURN).await;
                    continue;
                }
                Err(status) if status.code() != Code::PermissionDenied => return Err(status),
                _ => {}
            }
            tokio::select! {
                changed = entries.changed() => if changed.is_err() { return Err(Busy::Stopping.into()) },
                () = drain.stopping() => return Err(Busy::Stopping.into()),
            }
        }
    }

    async fn describe(&self, call: &Call) -> Result<proto::WhoAmIResponse, Status> {
        let _ticket = call.spend()?;
        let process = call.peer().process();
        let (attestation, identities) =
            self.gate.workloads().look_at(process).await.map_err(|refusal| of_refusal(&refusal))?;
        let selectors = attestation
            .selectors()
            .iter()
            .map(|s| proto::Selector { text: s.to_string(), strength: strength(s.strength()).to_owned() })
            .collect();
        let held = LeaseFilter { pid: Some(process.pid()), ..LeaseFilter::default() };
        let leases = self.gate.workloads().leases(&held);
        let leases =
            leases.into_iter().filter(|row| row.process == process.key()).map(|row| proto::HeldLease {
                id: row.id.to_string(),
                kind: row.kind.to_string(),
                spiffe_id: row.spiffe_id,
                issued_at: seconds(row.issued_at),
                not_after: seconds(row.not_after),
            });
        Ok(proto::WhoAmIResponse {
            pid: process.pid(),
            identities: identities.iter().map(matched).collect(),
            selectors,
            leases: leases.collect(),
        })
    }
}

#[tonic::async_trait]
impl IdentityApi for IdentityService {
    type AwaitIdentityStream = Pin<Box<dyn Stream<Item = Result<proto::WhoAmIResponse, Status>> + Send>>;

    async fn who_am_i(
        &self,
        request: Request<proto::WhoAmIRequest>,
    ) -> Result<Response<proto::WhoAmIResponse>, Status> {
        let call = self.gate.call(&request, "WhoAmI")?;
        self.describe(&call).await.map(Response::new)
    }

    async fn await_identity(
        &self,
        request: Request<proto::AwaitIdentityRequest>,
    ) -> Result<Response<Self::AwaitIdentityStream>, Status> {
        let call = self.gate.call(&request, "AwaitIdentity")?;
        let service = self.clone();
        Ok(Response::new(Box::pin(stream::once(async move { service.identity_of(&call).await }))))
    }
}

fn matched(identity: &Identity) -> proto::MatchedIdentity {
    proto::MatchedIdentity {
        spiffe_id: identity.spiffe_id.to_string(),
        hint: identity.hint.clone(),
        because: identity.because.clone(),
    }
}

pub(super) fn strength(strength: Strength) -> &'static str {
    match strength {
        Strength::Kernel => "kernel",
        Strength::Controller => "controller",
        Strength::Advisory => "advisory",
    }
}

pub(super) fn seconds(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}
