//! The WIT-SVID profile (Workload API section 7, incubating): served where it is switched on. Switched off, both
//! methods answer `Unimplemented` to everybody, with an identity or without (WAPI-46).

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::stream;
use mayfly_proto::workload as proto;
use tonic::{Request, Status};

use super::admission::{Admitted, Call, Gate};
use super::status::{Busy, no_identity};
use super::workload::Messages;
use crate::drain::Watch;
use crate::id::SpiffeId;
use crate::issue::wit::WitSvid;
use crate::trust::TrustView;
use crate::workload::{Subscription, View, Workloads};

/// Checks the header, then that the profile is on, then that the agent serves (conformance 1.3).
pub(super) fn call<T>(gate: &Gate, request: &Request<T>, method: &'static str) -> Result<Call, Status> {
    Gate::check_header(request)?;
    if !gate.workloads().serves_wits() {
        return Err(Status::unimplemented("the WIT profile is switched off"));
    }
    gate.call(request, method)
}

/// The WIT-SVIDs of a caller, renewed as long as the stream is open. `wanted`: only that identity, which must be one
/// of the caller's.
pub(super) fn svids(
    workloads: &Workloads,
    admitted: &Admitted,
    wanted: Option<SpiffeId>,
    drain: Watch,
) -> Result<Messages<proto::WitsvidResponse>, Status> {
    let admission = admitted.admission();
    if wanted.as_ref().is_some_and(|id| !admission.identities().iter().any(|one| one.spiffe_id == *id)) {
        return Err(no_identity());
    }
    let subscription = workloads.subscribe_wits(admission);
    let start = WitStream { subscription, wanted, drain, sent: Vec::new(), ended: false };
    Ok(Box::pin(stream::unfold(start, |mut state| async move {
        let message = state.next().await?;
        Some((message, state))
    })))
}

struct WitStream {
    subscription: Subscription<WitSvid>,
    wanted: Option<SpiffeId>,
    drain: Watch,
    /// What the last message carried.
    sent: Vec<Arc<WitSvid>>,
    ended: bool,
}

impl WitStream {
    /// One message for each change of what this stream is about. Changes of the trust are none: bundles have a
    /// stream of their own.
    async fn next(&mut self) -> Option<Result<proto::WitsvidResponse, Status>> {
        while !self.ended {
            let view = tokio::select! {
                biased;
                () = self.drain.stopping() => return self.end(Busy::Stopping.into()),
                (view, _trust) = self.subscription.next() => view,
            };
            let all = match view {
                View::Ready(svids) => svids,
                View::NoIdentity | View::Ended => return self.end(no_identity()),
                View::Pending | View::Unavailable => {
                    return self.end(Status::unavailable("no SVID could be issued; see the agent's log"));
                }
            };
            let is_wanted =
                |svid: &&Arc<WitSvid>| self.wanted.as_ref().is_none_or(|id| *id == svid.spiffe_id);
            let svids: Vec<Arc<WitSvid>> = all.iter().filter(is_wanted).cloned().collect();
            if svids.is_empty() {
                return self.end(no_identity());
            }
            if !svids.iter().map(|svid| svid.id).eq(self.sent.iter().map(|svid| svid.id)) {
                let message =
                    proto::WitsvidResponse { svids: svids.iter().map(|svid| message(svid)).collect() };
                self.sent = svids;
                return Some(Ok(message));
            }
            tokio::select! {
                () = self.drain.stopping() => {}
                () = self.subscription.changed() => {}
            }
        }
        None
    }

    fn end<T>(&mut self, status: Status) -> Option<Result<T, Status>> {
        self.ended = true;
        Some(Err(status))
    }
}

fn message(svid: &WitSvid) -> proto::Witsvid {
    proto::Witsvid {
        spiffe_id: svid.spiffe_id.to_string(),
        wit_svid: svid.token.clone(),
        wit_svid_key: text(svid.key.expose()),
        hint: svid.hint.clone(),
    }
}

/// Our own domain's keys, and those of the domains that the caller's entries name; a domain without any is left out.
pub(super) fn bundles(trust: &TrustView) -> proto::WitBundlesResponse {
    let own = (trust.trust_domain(), trust.own());
    let others = trust.federated().filter(|(_, bundle)| !bundle.wit().is_empty());
    let all = std::iter::once(own).chain(others);
    let bundles: HashMap<String, String> =
        all.map(|(domain, bundle)| (domain.id().to_string(), text(bundle.wit().json()))).collect();
    proto::WitBundlesResponse { bundles }
}

/// JSON that we wrote.
fn text(json: &[u8]) -> String {
    String::from_utf8_lossy(json).into_owned()
}
