//! For programs that link this crate and take access tokens or WIT-SVIDs: whether whoever shows one has the key that
//! it is bound to. `docs/verify.md` is the guide.
//!
//! [`check`] is for access tokens (`cnf.jkt` with a DPoP proof, RFC 9449; `cnf["x5t#S256"]` with a certificate, RFC
//! 8705), [`wpt::check`] for WIT-SVIDs. Neither says whether the token itself is good: check that first, and give its
//! claims. Everything is an argument, the time too; what was used before is remembered by a [`Replays`] of yours.
//!
//! ```no_run
//! use mayfly::proof::{Replays, Request, Rules, Scheme, Shown, check};
//! # fn example(claims: &serde_json::Map<String, serde_json::Value>, token: &str, dpop: &str,
//! #            now: std::time::SystemTime) -> Result<(), mayfly::proof::Refusal> {
//! let mut replays = Replays::new(100_000);      // one for all requests, behind a Mutex
//! let shown = Shown { token, scheme: Scheme::Dpop, proofs: &[dpop], certificate: None };
//! let request = Request { method: "GET", url: "https://wiki.example.org/api/page?id=7", now };
//! let holder = check(&shown, claims, &request, &Rules::default(), &mut replays)?;
//! # drop(holder);
//! # Ok(())
//! # }
//! ```

mod binding;
mod dpop;
mod refusal;
mod replay;
mod target;
#[cfg(test)]
mod tests;
pub mod wpt;

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

pub use self::binding::Binding;
pub use self::dpop::MAX_PROOF_BYTES;
pub use self::refusal::{Blame, Refusal};
pub use self::replay::{Replays, Used};
pub use self::target::Target;
use crate::authority::JwsAlgorithm;

/// A request, as its receiver saw it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, as it was sent.
    pub method: &'a str,
    /// The whole URL, as the client called it: behind a proxy the one that the proxy is called by. Never put together
    /// from a header that the client chooses alone.
    pub url: &'a str,
    /// When it came.
    pub now: SystemTime,
}

/// By which scheme of the `Authorization` header a token was shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// `Bearer`.
    Bearer,
    /// `DPoP`.
    Dpop,
}

/// What came with a request.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// The access token, to the letter.
    pub token: &'a str,
    /// How it was shown.
    pub scheme: Scheme,
    /// The values of all `DPoP` header fields.
    pub proofs: &'a [&'a str],
    /// The certificate (DER) with which the peer of this very connection authenticated itself in its TLS handshake.
    pub certificate: Option<&'a [u8]>,
}

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shown({:?})", self.scheme)
    }
}

/// What proofs are held to.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The algorithms that a proof may be signed by. None of them has a shared secret.
    pub algorithms: Vec<JwsAlgorithm>,
    /// How old a proof may be.
    pub past: Duration,
    /// How far ahead of our clock its maker's may be.
    pub ahead: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { algorithms: JwsAlgorithm::ALL.to_vec(), past: PAST, ahead: AHEAD }
    }
}

/// What somebody has proved to have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holder {
    /// The private key.
    Key {
        /// Its RFC 7638 thumbprint: the token's `jkt`.
        thumbprint: String,
        /// The `jti` of the proof.
        proof_id: String,
    },
    /// The certificate that the token is bound to.
    Certificate,
}

/// Whether whoever shows the token has what it is bound to. `claims` are those of that very token, which was found good.
///
/// A token that is bound to nothing is refused ([`Refusal::Unbound`]); who takes such ones from somebody looks at
/// [`Binding::of`] first.
///
/// # Errors
/// The first [`Refusal`]. Only a proof with no other fault is remembered as used.
pub fn check(
    shown: &Shown<'_>,
    claims: &Map<String, Value>,
    request: &Request<'_>,
    rules: &Rules,
    replays: &mut Replays,
) -> Result<Holder, Refusal> {
    match (Binding::of(claims)?.ok_or(Refusal::Unbound)?, shown.scheme) {
        (Binding::Key(jkt), Scheme::Dpop) => dpop::check(shown, &jkt, request, rules, replays),
        (binding @ Binding::Certificate(_), Scheme::Bearer) => {
            binding.check_certificate(shown.certificate.ok_or(Refusal::NoCertificate)?)?;
            Ok(Holder::Certificate)
        }
        // The scheme says what is proved: who may choose it could choose to prove nothing (RFC 9449 §7.2).
        (Binding::Key(_), Scheme::Bearer) | (Binding::Certificate(_), Scheme::Dpop) => Err(Refusal::Scheme),
    }
}

/// How old a proof may be by default.
pub const PAST: Duration = Duration::from_secs(60);
/// How far ahead it may be by default.
pub const AHEAD: Duration = Duration::from_secs(30);
/// Neither is ever more than this, whatever the rules say.
pub const LONGEST: Duration = Duration::from_secs(300);
