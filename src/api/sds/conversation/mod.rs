//! One stream's conversation, without bytes, sockets or time: what the client wants, what it was sent, what it
//! said to that. The two xDS protocols differ in how a client asks ([`world`], [`delta`]); what it is owed is
//! decided alike:
//!
//! - a name that stands for something is sent when it is new to the client, and again when it changed;
//! - a name that stands for nothing is answered by silence, for as long as it takes;
//! - a name that no longer stands for what the client was sent is *closed*: Envoy obeys no withdrawal, so it is
//!   sent a replacement that opens nothing.

pub(super) mod delta;
#[cfg(test)]
mod model;
pub(super) mod world;

/// What kind of secret a name stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Chain and key.
    Certificate,
    /// What peers are judged by.
    Context,
}

/// What a name stands for at this moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Finding {
    /// A secret; two with the same version are the same.
    Value(Kind, String),
    /// Nothing, or nothing any more. The kind if the name alone tells it.
    Gone(Option<Kind>),
    /// Whatever it is, the caller may not be told just now; what it has, it keeps.
    Withheld,
}

/// The secrets of one moment.
pub(super) trait Catalog {
    /// What the name stands for.
    fn find(&self, name: &str) -> Finding;
    /// Every name of its own (no second names such as `default`): what a client that names nothing is sent.
    fn names(&self) -> Vec<String>;
}

/// One secret to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) version: String,
    /// In place of what the client was sent before, something that opens nothing.
    pub(super) closed: bool,
}

/// What a request turned out to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Heard {
    /// The first, or a change of what is wanted, or nothing new.
    Asked,
    /// The last response was accepted.
    Accepted,
    /// A response was refused, with the client's words.
    Refused(String),
    /// About a response that is not the last one.
    Stale,
}

/// The client wants more names than one stream may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("more than {MAX_NAMES} names on one stream")]
pub(super) struct TooManyNames;

/// A version that says "closed".
const CLOSED: &str = "closed";

/// Names one stream may want; Envoy asks for one on each.
pub(super) const MAX_NAMES: usize = 256;

/// What to send for `name`, if anything: `had` is what the client has of us, by kind (where that is known) and
/// version.
fn owed(catalog: &dyn Catalog, name: &str, had: Option<(Option<Kind>, &str)>) -> Option<Piece> {
    let piece = |kind, version: &str, closed| Piece {
        name: name.to_owned(),
        kind,
        version: version.to_owned(),
        closed,
    };
    match catalog.find(name) {
        Finding::Value(kind, version) => Some(piece(kind, &version, false)),
        Finding::Gone(told) => {
            let (kind, _) = had?;
            Some(piece(kind.or(told)?, CLOSED, true))
        }
        Finding::Withheld => None,
    }
}
