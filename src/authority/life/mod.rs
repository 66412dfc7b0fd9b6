//! The life cycle of authorities, as a pure core: no clock, no I/O, no keys. It knows of each authority which kind
//! it is, where it stands and since when; it says what is due, and allows or refuses what an operator asks for.
//!
//! prepared → active → old → tainted → revoked. Five rules hold for every history:
//!
//! 1. Once a kind has had an active authority it has exactly one.
//! 2. Nothing becomes active that was not published first.
//! 3. Nothing leaves the state *revoked*.
//! 4. What is old or tainted stays in the bundle, with its CRL, until its validity ends or it is revoked.
//! 5. An identifier is never taken in twice.

mod core;
mod record;
#[cfg(test)]
mod simulation;

use std::time::Duration;

pub use self::core::Life;
pub use self::record::{AuthorityKind, Record};

/// A moment on both clocks. Validity goes by the wall; how long something has been published goes by the uptime,
/// which no operator can set and which begins anew with the agent, as every stream of every verifier does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// Unix seconds.
    pub wall: u64,
    /// Since the agent started.
    pub up: Duration,
}

/// What the life cycle goes by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LifeSettings {
    /// The kinds there are to be.
    pub kinds: Vec<AuthorityKind>,
    /// How long an authority is published before it signs.
    pub lead: Duration,
    /// The kinds that stand under an upstream: their successor is nearly always trusted before it is made, and takes
    /// over as soon as verifiers can know it.
    pub prompt: Vec<AuthorityKind>,
}

/// What is due by age.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make a key, publish it, and take it in with [`Life::add`].
    Prepare(AuthorityKind),
    /// Let this one sign from now on.
    Activate {
        /// Which.
        id: String,
        /// Verifiers had less time than they should have: the active one would have ended first.
        hurried: bool,
    },
    /// Its validity is over: take it out of the bundle and forget it.
    Expire(String),
}

/// What an operator's order came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Revoking {
    /// It is out.
    Done,
    /// It leaves with [`Life::finish`], as soon as everything it signed has been replaced.
    WhenReplaced,
}

/// Why an order was not followed. The text tells the operator what to do instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// No such authority.
    #[error("there is no authority {0}; `mayfly authority show` lists them")]
    Unknown(String),
    /// WIT authorities while WIT-SVIDs are switched off.
    #[error("{0} authorities are switched off; see [wit] in the configuration")]
    SwitchedOff(AuthorityKind),
    /// One successor at a time.
    #[error("{kind} authority {id} is prepared already; activate or revoke it first")]
    AlreadyPrepared {
        /// The kind.
        kind: AuthorityKind,
        /// The prepared one.
        id: String,
    },
    /// There is nothing to activate.
    #[error("no {0} authority is prepared; `mayfly authority prepare {0}` makes one")]
    NonePrepared(AuthorityKind),
    /// The order does not fit the state.
    #[error("authority {id} is {state}: {instead}")]
    State {
        /// Which.
        id: String,
        /// Where it stands.
        state: super::State,
        /// What would be possible.
        instead: &'static str,
    },
    /// Verifiers may not have heard of it.
    #[error(
        "authority {id} has been published for {published} s of the {lead} s that verifiers are given to learn it; \
         wait, or say --now and risk that some refuse what it signs"
    )]
    TooEarly {
        /// Which.
        id: String,
        /// For how long it has been published, seconds.
        published: u64,
        /// For how long it should be, seconds.
        lead: u64,
    },
}

/// The records contradict each other: the journal was changed by somebody else.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Inconsistent {
    /// Two records of one name.
    #[error("authority {0} is there twice")]
    Twice(String),
    /// Two that sign.
    #[error("more than one {0} authority is active")]
    TwoActive(AuthorityKind),
}
