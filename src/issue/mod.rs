//! Issuance: each function here spends a [`Permit`](crate::policy::Permit), and what it makes stays shut until
//! the ledger has committed to it ([`Committed`](crate::ledger::Committed)). Signing only: no I/O, no clock.

pub mod access;
pub(crate) mod compact;
pub mod jwt;
mod minted;
pub mod question;
pub mod user;
pub mod wit;
pub mod x509;

use std::time::{Duration, SystemTime};

pub use self::minted::{Minted, Token};

use crate::authority::{AuthorityError, CryptoError};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::LeaseId;
use crate::policy::Kind;

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The permit was for another kind of credential: our mistake.
    #[error("the permit is for another kind of credential")]
    WrongKind,
    /// There is no authority for this kind of credential: it is switched off.
    #[error("this kind of credential is switched off")]
    SwitchedOff,
    /// The authority's validity is over, or so nearly that nothing useful fits.
    #[error("the signing authority has expired")]
    AuthorityExpired,
    /// The authority's validity has not begun: the clock was set back.
    #[error("the signing authority is not valid yet, the clock is behind")]
    AuthorityNotYetValid,
    /// The token would be longer than any server should have to read.
    #[error("the token would be too long")]
    TooLong,
    /// The authority refused or failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No key could be made.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// A new lease identifier: 126 random bits, serial number and `jti` alike.
///
/// # Errors
/// [`CryptoError`] when the machine has no randomness to give.
pub fn new_lease() -> Result<LeaseId, CryptoError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|aws_lc_rs::error::Unspecified| CryptoError)?;
    Ok(LeaseId::from_random(bytes))
}

/// The end of a validity that starts now: whole seconds, at most `ttl` away, never after the authority's own.
fn not_after(
    now: SystemTime,
    ttl: Duration,
    authority: (SystemTime, SystemTime),
) -> Result<SystemTime, IssueError> {
    let (from, until) = authority;
    if now < from {
        return Err(IssueError::AuthorityNotYetValid);
    }
    let wanted = now.checked_add(ttl).unwrap_or(until).min(until);
    let end = from_unix_seconds(unix_seconds(wanted));
    if end <= now { Err(IssueError::AuthorityExpired) } else { Ok(end) }
}

/// The longest life of a credential that nobody takes any more when `left` is over. Times are whole seconds in every
/// form. A token is refused in the second that it names (RFC 7519 §4.1.4), a certificate is good to the end of that one
/// (RFC 5280 §4.1.2.5). `None`: there is no such credential.
pub(crate) fn longest_within(now: SystemTime, left: Duration, kind: Kind) -> Option<Duration> {
    let last = if kind == Kind::X509 { Duration::from_secs(1) } else { Duration::ZERO };
    let left = left.checked_sub(last)?;
    let end =
        now.checked_add(left).map_or(SystemTime::UNIX_EPOCH, |end| from_unix_seconds(unix_seconds(end)));
    (end > now).then_some(left)
}

#[cfg(test)]
pub(crate) mod testing {
    use std::time::Duration;

    use mayfly_attestors::{BootId, ProcessKey};

    use crate::id::{EntryId, SpiffeId};
    use crate::policy::{Engine, Kind, Permit, PermitRequest};

    pub(crate) fn permit(kind: Kind, id: &str, ttl: u64, audience: &[&str]) -> Permit {
        let request = PermitRequest {
            entry: EntryId::new("web"),
            spiffe_id: SpiffeId::parse(id.as_bytes()).unwrap(),
            kind,
            ttl: Duration::from_secs(ttl),
            audience: audience.iter().map(|&one| one.to_owned()).collect(),
            allowed_audiences: None,
            dns_names: vec!["web.example.org".to_owned()],
            hint: "internal".to_owned(),
        };
        Engine::without_policy().permit_own(request).unwrap()
    }

    pub(crate) fn process() -> ProcessKey {
        let boot_id = BootId::from_bytes([1; 16]);
        ProcessKey { boot_id, pid: 42, start_time: 4_711, pidfs_inode: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::{NOW, authorities};

    fn at(seconds: u64) -> SystemTime {
        from_unix_seconds(seconds)
    }

    #[test]
    fn nothing_outlives_its_issuer() {
        let authority = (at(100), at(1_000));
        let end = |now, ttl| not_after(at(now), Duration::from_secs(ttl), authority).ok();
        assert_eq!(end(200, 60), Some(at(260)));
        assert_eq!(end(990, 60), Some(at(1_000)));
        assert_eq!(end(200, u64::MAX), Some(at(1_000)));
        assert!(matches!(
            not_after(at(1_000), Duration::from_secs(60), authority),
            Err(IssueError::AuthorityExpired)
        ));
        assert!(matches!(
            not_after(at(99), Duration::from_secs(60), authority),
            Err(IssueError::AuthorityNotYetValid)
        ));
    }

    #[test]
    fn leases_do_not_repeat() {
        let all: std::collections::BTreeSet<_> = (0..1_000).map(|_| new_lease().unwrap()).collect();
        assert_eq!(all.len(), 1_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Of every form: there is no moment after the deadline at which somebody takes it.
        #[test]
        fn nothing_is_taken_after_the_end_of_its_task(
            begun in 0..3_000_000_000_u64,
            left in 0..4_000_000_000_u64,
            ttl in 1..10_u64,
        ) {
            let set = authorities("example.org", KeyType::EcP256);
            let now = at(NOW) + Duration::from_nanos(begun);
            let left = Duration::from_nanos(left);
            for kind in [Kind::X509, Kind::Jwt, Kind::Wit] {
                let Some(most) = longest_within(now, left, kind) else {
                    prop_assert!(left < Duration::from_secs(2));
                    continue;
                };
                let permit = testing::permit(kind, "spiffe://example.org/web", ttl, &["a"]).no_longer_than(most);
                let lease = new_lease().unwrap();
                // Until then it is taken.
                let until = match kind {
                    Kind::X509 => x509::mint(permit, set.active_x509(), lease, now).unwrap().not_after() + Duration::from_secs(1),
                    Kind::Jwt => jwt::mint(permit, set.active_jwt(), lease, "iss", now).unwrap().not_after(),
                    Kind::Wit => {
                        let recipe = wit::Recipe { key: KeyType::EcP256, issuer: None };
                        wit::mint(permit, set.active_wit().unwrap(), lease, &recipe, now).unwrap().not_after()
                    }
                };
                prop_assert!(until <= now + left, "{kind:?} {until:?} {now:?} {left:?}");
            }
        }
    }
}
