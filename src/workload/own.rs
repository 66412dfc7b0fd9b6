//! The agent's own X.509-SVID, for its listeners. Minted and written down like those of workloads; its holder is
//! the agent's process, so the next start takes it back.

use mayfly_attestors::{Process, ProcessKey};

use super::issue::new_lease;
use super::{Refusal, Shared, Workloads};
use crate::audit::{self, Event};
use crate::id::{EntryId, SpiffeId};
use crate::issue;
use crate::issue::x509::X509Svid;
use crate::policy::{Kind, PermitRequest};

impl Workloads {
    /// A fresh key and certificate for the agent itself.
    ///
    /// # Errors
    /// As for a workload: nothing is handed over that the ledger and the audit log do not have.
    pub async fn issue_own(&self, spiffe_id: &SpiffeId) -> Result<X509Svid, Refusal> {
        let (shared, spiffe_id) = (self.0.clone(), spiffe_id.clone());
        let (send, answer) = tokio::sync::oneshot::channel();
        self.0.spawn(async move {
            // Nobody waits any more only when the agent stops.
            send.send(shared.issue_own(&spiffe_id).await).ok();
        });
        answer.await.unwrap_or(Err(Refusal::WatchLost))
    }
}

impl Shared {
    async fn issue_own(&self, spiffe_id: &SpiffeId) -> Result<X509Svid, Refusal> {
        let request = PermitRequest {
            entry: EntryId::new(ENTRY),
            spiffe_id: spiffe_id.clone(),
            kind: Kind::X509,
            ttl: self.settings.x509_ttl,
            audience: Vec::new(),
            allowed_audiences: None,
            dns_names: Vec::new(),
            hint: String::new(),
        };
        let permit = self.parts.policy.permit_own(request).map_err(|_denied| Refusal::NotEntitled)?;
        let authorities = self.parts.authorities.current();
        let minted =
            issue::x509::mint(permit, authorities.active_x509(), new_lease()?, self.parts.clock.wall())
                .map_err(Refusal::Authority)?;
        let row = minted.row(self.own_key(), rustix::process::geteuid().as_raw());
        let event =
            Event::CredentialIssue { agent: audit::Agent::of(&row), credential: audit::Credential::of(&row) };
        let committed = self.write_down(vec![(row, event)]).await.map_err(|(refusal, _written)| refusal)?;
        minted.release(&committed).ok_or(Refusal::WatchLost)
    }

    /// Where the procfs counts in another pid namespace than ours, a key that no process has: all that matters is
    /// that the next run finds it gone.
    fn own_key(&self) -> ProcessKey {
        let pid = std::process::id();
        let own = Process::of_pid(&self.parts.host, pid).map(|own| own.key());
        own.unwrap_or_else(|_unnameable| ProcessKey {
            boot_id: self.parts.host.boot_id(),
            pid,
            start_time: 0,
            pidfs_inode: None,
        })
    }
}

/// Stands for the entry that an agent does not need.
const ENTRY: &str = "mayfly-agent";
