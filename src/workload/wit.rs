//! WIT-SVIDs of a workload: kept fresh in slots like X.509-SVIDs, because the Workload API streams them.

use super::issue::{Subject, new_lease};
use super::{Refusal, Shared};
use crate::issue;
use crate::issue::IssueError;
use crate::issue::wit::MintedWit;
use crate::policy::{Kind, PermitRequest};

impl Shared {
    pub(super) fn mint_wit(&self, subject: &Subject) -> Result<MintedWit, Refusal> {
        let identity = &subject.identity;
        let entry = &identity.entry;
        let request = PermitRequest {
            entry: entry.id.clone(),
            spiffe_id: identity.spiffe_id.clone(),
            kind: Kind::Wit,
            ttl: self.ttl_of(Kind::Wit, identity),
            audience: Vec::new(),
            allowed_audiences: None,
            dns_names: Vec::new(),
            hint: identity.hint.clone(),
        };
        let permit = self.permit(request, subject)?;
        let authorities = self.parts.authorities.current();
        let authority = authorities.active_wit().ok_or(Refusal::Authority(IssueError::SwitchedOff))?;
        let now = self.parts.clock.wall();
        issue::wit::mint(permit, authority, new_lease()?, &self.settings.wit, now).map_err(Refusal::Authority)
    }
}
