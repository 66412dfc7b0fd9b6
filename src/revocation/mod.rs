//! Taking back: the denylist, the certificate revocation list, and the times each step took.
//!
//! The order of a revocation, for whoever drives this: refuse in memory ([`RevokedSet::add`]) → ledger → plan
//! ([`CrlNumbering::next`]) and sign ([`sign_and_lint`]) → push to subscribers → record the CRL's number in the
//! ledger → [`Witness::publish`] → audit. The record comes before the witness, so a witness that is ahead of
//! the ledger can only mean that the ledger was rolled back ([`judge`]). It follows each push, so that at most
//! [`RESTART_MARGIN`] CRLs are ever out without one. A ledger that fails holds up issuing, never a revocation.
//! Ledger rows are kept until [`ROW_RETENTION_SECONDS`] after their `not_after`.

mod crl;
mod numbering;
mod set;
pub mod status_list;
mod timings;
mod witness;

#[cfg(test)]
mod interop;
#[cfg(test)]
mod judges;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod verifiers;

pub use self::crl::{Crl, CrlError, CrlFault, lint, sign_and_lint};
pub use self::numbering::{CLOCK_CONCERN, CrlNumbering, CrlTurn, RESTART_MARGIN};
pub use self::set::{KEEP_AFTER_EXPIRY_SECONDS, Revoked, RevokedSet};
pub use self::timings::{BUCKETS, Buckets, Stage, StageFigures, Timings};
pub use self::witness::{
    LastCrl, ROW_RETENTION_SECONDS, Recorded, RollbackSign, Verdict, Witness, WitnessError, judge,
};
