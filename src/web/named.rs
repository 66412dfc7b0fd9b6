//! Callers with a name: a process of this machine that has an identity of ours or administers the node, or whoever
//! showed an X.509-SVID of ours. The transport says who it is; nothing in the request does.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use super::caller::Caller;
use super::site::Inner;
use crate::api::limits::Ticket;
use crate::api::peer::Peer;
use crate::id::SpiffeId;
use crate::workload::{Claim, Connection};

/// A caller who was recognised just now.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) claim: Claim,
    /// Counts the request as running while it is held.
    _ticket: Ticket,
}

/// Why a caller is not served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unnamed {
    /// Nobody we know.
    Stranger(&'static str),
    /// It asks too much.
    Busy,
}

impl Inner {
    /// Recognises a caller, and takes one request from its budget.
    pub(super) async fn recognise(&self, caller: &Caller, headers: &HeaderMap) -> Result<Named, Unnamed> {
        // No token opens this door, whatever its kind: a stolen one must not ask about others.
        if headers.contains_key(AUTHORIZATION) {
            return Err(self.stranger(
                caller,
                "credentials in the request are not taken: the connection says who calls",
            ));
        }
        match caller {
            Caller::Nobody => Err(self.stranger(caller, "the connection has no name")),
            Caller::Svid(svid) => {
                let _ticket = self.spend(by_name(&svid.spiffe_id))?;
                if svid.lease.is_some_and(|lease| self.parts.workloads.is_revoked(lease)) {
                    return Err(self.stranger(caller, "the X.509-SVID was revoked"));
                }
                Ok(Named { claim: Claim::Workload(None, vec![svid.spiffe_id.clone()]), _ticket })
            }
            Caller::Process(peer) => {
                let _ticket = self.spend(peer.process().uid())?;
                if administers(peer) {
                    return Ok(Named { claim: Claim::Operator, _ticket });
                }
                let identities = self.identities(peer).await?;
                Ok(Named { claim: Claim::Workload(Some(peer.process().key()), identities), _ticket })
            }
        }
    }

    async fn identities(&self, peer: &Arc<Peer>) -> Result<Vec<SpiffeId>, Unnamed> {
        let connection: Arc<dyn Connection> = peer.clone();
        let workloads = &self.parts.workloads;
        let admission = match workloads.recall(peer.process(), &connection) {
            Some(admission) => admission,
            None => {
                let now = self.parts.clock.monotonic();
                let ticket = self.parts.attestations.try_start(peer.process().uid(), now);
                let _ticket = ticket.map_err(|_limited| Unnamed::Busy)?;
                // A refusal is in the audit log already.
                let admitted = workloads.admit(peer.process(), &connection).await;
                admitted.map_err(|_refusal| Unnamed::Stranger("the process has no identity"))?
            }
        };
        Ok(admission.identities().iter().map(|identity| identity.spiffe_id.clone()).collect())
    }

    fn spend(&self, whose: u32) -> Result<Ticket, Unnamed> {
        let now = self.parts.clock.monotonic();
        self.requests.try_start(whose, now).map_err(|_limited| Unnamed::Busy)
    }

    /// Leaves a trace of whoever is turned away.
    fn stranger(&self, caller: &Caller, why: &'static str) -> Unnamed {
        match caller {
            Caller::Process(peer) => self.parts.workloads.note_refused(peer.process(), "http", why),
            Caller::Svid(svid) => {
                tracing::warn!(spiffe_id = svid.spiffe_id.as_str(), why, "an HTTP caller was refused");
            }
            Caller::Nobody => tracing::debug!(why, "an HTTP caller was refused"),
        }
        Unnamed::Stranger(why)
    }
}

/// Those to whom the admin socket is open: root, our own user, our own group.
fn administers(peer: &Peer) -> bool {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let process = peer.process();
    process.uid() == 0 || process.uid() == uid || process.gid() == gid
}

/// Budgets are counted by a number; two callers that share one share its budget.
fn by_name(spiffe_id: &SpiffeId) -> u32 {
    let mut hasher = DefaultHasher::new();
    spiffe_id.as_str().hash(&mut hasher);
    let [.., a, b, c, d] = hasher.finish().to_be_bytes();
    u32::from_be_bytes([a, b, c, d]) | 1 << 31
}
