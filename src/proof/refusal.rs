//! Why whoever shows an access token did not prove to be its owner, who is to blame, and what an HTTP server says to him.

use super::replay::Used;
use crate::authority::{ConfirmationFault, JwsAlgorithm};

/// The reason. For logs: a client is told [`Refusal::challenge`] and no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The token has no `cnf`.
    #[error("token is bound to nothing")]
    Unbound,
    /// Its `cnf` is not one of the two that are known.
    #[error("token is bound to something that is not understood")]
    Binding,
    /// `Bearer` for one that is bound to a key, or `DPoP` for one that is bound to a certificate.
    #[error("token was not shown by the scheme of what it is bound to")]
    Scheme,
    /// The peer showed no certificate.
    #[error("peer has no certificate")]
    NoCertificate,
    /// It showed another one.
    #[error("token is bound to another certificate")]
    OtherCertificate,
    /// The proof is good, and by another key than the token's.
    #[error("token is bound to another key")]
    OtherKey,
    /// No proof came with it.
    #[error("there is no proof")]
    NoProof,
    /// More than one did.
    #[error("there is more than one proof")]
    Several,
    /// Not a compact JWS of JSON objects with the claims it must have, no member twice.
    #[error("proof is malformed")]
    Malformed,
    /// `typ` is not exactly `dpop+jwt`.
    #[error("proof is not of type dpop+jwt")]
    Type,
    /// The header has no `jwk` that is a key, or asks for something: `crit`, `jku`, `x5c`, ….
    #[error("proof has a header that is malformed, or wants more than to bring its key")]
    Header,
    /// `alg` is not one of the rules', or does not fit the key.
    #[error("proof has an algorithm that is not allowed")]
    Algorithm,
    /// The key is private or a shared secret. Whoever sent it should never use it again.
    #[error("proof brings a private key")]
    PrivateKey,
    /// The signature is wrong.
    #[error("signature of the proof does not verify")]
    Signature,
    /// `htm` is another method.
    #[error("proof is for another method")]
    Method,
    /// `htu` is another URL, or has a query.
    #[error("proof is for another url")]
    Target,
    /// It is too old, or has ended.
    #[error("proof is too old")]
    Stale,
    /// It comes from the future.
    #[error("proof is not valid yet: compare the clocks")]
    Future,
    /// `ath` is missing or of another token.
    #[error("proof is for another token")]
    OtherToken,
    /// It is not the first time.
    #[error(transparent)]
    Used(#[from] Used),
    /// The URL of the request is none.
    #[error("the request's own url is no http or https url")]
    Url,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// The token cannot be used so, or is not the client's.
    Token,
    /// The client's proof.
    Proof,
    /// Nobody but the receiver.
    Receiver,
}

impl From<ConfirmationFault> for Refusal {
    fn from(fault: ConfirmationFault) -> Self {
        match fault {
            ConfirmationFault::Private => Self::PrivateKey,
            ConfirmationFault::Algorithm => Self::Algorithm,
            ConfirmationFault::Key => Self::Header,
        }
    }
}

impl Refusal {
    /// Whose fault it is.
    pub fn blame(self) -> Blame {
        match self {
            Self::Unbound
            | Self::Binding
            | Self::Scheme
            | Self::NoCertificate
            | Self::OtherCertificate
            | Self::OtherKey => Blame::Token,
            Self::NoProof
            | Self::Several
            | Self::Malformed
            | Self::Type
            | Self::Header
            | Self::Algorithm
            | Self::PrivateKey
            | Self::Signature
            | Self::Method
            | Self::Target
            | Self::Stale
            | Self::Future
            | Self::OtherToken
            | Self::Used(Used::Again) => Blame::Proof,
            Self::Used(Used::Full) | Self::Url => Blame::Receiver,
        }
    }

    /// Whether a token was shown by somebody who does not have what it is bound to: what a copied one looks like.
    pub fn is_mismatch(self) -> bool {
        matches!(self, Self::OtherCertificate | Self::OtherKey | Self::OtherToken)
    }

    /// The status that an HTTP server answers with.
    pub fn status(self) -> u16 {
        match (self.blame(), self) {
            (Blame::Token | Blame::Proof, _) => 401,
            (Blame::Receiver, Self::Used(_)) => 503,
            (Blame::Receiver, _) => 500,
        }
    }

    /// The `WWW-Authenticate` that goes with it (RFC 9449 §7.1, RFC 6750 §3); `None` where the client is not to blame.
    pub fn challenge(self, algorithms: &[JwsAlgorithm]) -> Option<String> {
        let algorithms: Vec<&str> = algorithms.iter().map(|one| one.as_str()).collect();
        let dpop = |error: &str| format!("DPoP error=\"{error}\", algs=\"{}\"", algorithms.join(" "));
        match (self.blame(), self) {
            (_, Self::NoCertificate | Self::OtherCertificate) => {
                Some("Bearer error=\"invalid_token\"".into())
            }
            (Blame::Token, _) => Some(dpop("invalid_token")),
            (Blame::Proof, _) => Some(dpop("invalid_dpop_proof")),
            (Blame::Receiver, _) => None,
        }
    }
}
