//! Names: SPIFFE IDs, trust domains, and the identifiers of leases, keys and entries.

mod hex;
mod numbers;

pub use self::hex::HexError;
pub use self::numbers::{EntryId, KeyId, LeaseId};
