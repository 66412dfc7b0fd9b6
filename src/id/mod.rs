//! Names: SPIFFE IDs, trust domains, and the identifiers of leases, keys and entries.

mod hex;
mod numbers;
mod spiffe;
mod ulid;

pub use self::hex::HexError;
pub(crate) use self::hex::encode as hex_text;
pub use self::numbers::{EntryId, KeyId, LeaseId};
pub use self::spiffe::{
    IdError, MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SCHEME, SpiffeId, TrustDomain, check_segment,
};
pub use self::ulid::{ApprovalId, DelegationId, NameError, TaskId};
