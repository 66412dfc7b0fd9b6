//! The only place that turns our refusals into gRPC status codes. The texts are those that SPIRE's
//! clients match on; what is behind them goes to the log, never to the caller.

use tonic::{Code, Status};

use crate::workload::Refusal;

/// A request that is wrong in itself, whoever makes it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum BadRequest {
    /// Not exactly one `workload.spiffe.io: true` (Workload Endpoint §3).
    #[error("security header missing from request")]
    SecurityHeader,
    /// No audience, or an empty one.
    #[error("audience must be specified")]
    Audience,
    /// More audiences than one token may have.
    #[error("too many audiences: at most {0}")]
    TooManyAudiences(usize),
    /// No token.
    #[error("svid must be specified")]
    Svid,
    /// Not a SPIFFE ID.
    #[error("invalid requested SPIFFE ID: {0}")]
    SpiffeId(crate::id::IdError),
    /// The token does not validate. Says no more than that.
    #[error("invalid token")]
    Token,
    /// Not a lease id.
    #[error("not a lease id: {0}")]
    LeaseId(crate::id::HexError),
    /// Another kind of xDS resource.
    #[error("only secrets are served here")]
    ResourceType,
    /// An operator's order without an object.
    #[error("say what to revoke: a lease, a pid or a SPIFFE ID")]
    Target,
    /// An order about authorities that is none.
    #[error("say what to do: prepare or activate x509, jwt or wit, taint or revoke an authority's id")]
    Order,
}

impl From<BadRequest> for Status {
    fn from(bad: BadRequest) -> Self {
        Self::invalid_argument(bad.to_string())
    }
}

/// The agent cannot serve just now.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Busy {
    /// It has not finished starting.
    #[error("agent is starting")]
    Starting,
    /// It is going down; connect again.
    #[error("agent is shutting down")]
    Stopping,
    /// This user asks too often.
    #[error("rate limit exceeded for {0}")]
    RateLimited(&'static str),
}

impl From<Busy> for Status {
    fn from(busy: Busy) -> Self {
        Self::unavailable(busy.to_string())
    }
}

/// "No entry" and "denied" are one answer, so that a caller cannot tell which.
pub(super) fn of_refusal(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Exited | Refusal::CredentialsChanged => Code::Unauthenticated,
        Refusal::NotEntitled => Code::PermissionDenied,
        Refusal::NoProcess(_) => Code::NotFound,
        Refusal::Unpinned(..) => Code::FailedPrecondition,
        Refusal::Attest(_)
        | Refusal::Silent(_)
        | Refusal::TooManyLeases
        | Refusal::Ledger(_)
        | Refusal::Audit(_)
        | Refusal::Authority(_)
        | Refusal::WatchLost => Code::Unavailable,
    };
    let text = match refusal {
        // Only an operator gets this one, and he can do something about it.
        Refusal::Unpinned(_, why) => format!("{refusal}: {why}"),
        other => other.to_string(),
    };
    Status::new(code, text)
}

/// What a stream ends with when its process has no identity any more.
pub(super) fn no_identity() -> Status {
    of_refusal(&Refusal::NotEntitled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_that_clients_match_on() {
        let denied = no_identity();
        assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "no identity issued"));
        let header = Status::from(BadRequest::SecurityHeader);
        assert_eq!(header.code(), Code::InvalidArgument);
        assert_eq!(header.message(), "security header missing from request");
        let limited = Status::from(Busy::RateLimited("FetchX509SVID"));
        assert_eq!(
            (limited.code(), limited.message()),
            (Code::Unavailable, "rate limit exceeded for FetchX509SVID")
        );
    }
}
