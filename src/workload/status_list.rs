//! Published status lists: each token gets its place when it is minted, and is listed as taken back in the same step in
//! which memory begins to refuse it. That it is suspended follows from what is frozen whenever a list is asked for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use super::{Shared, Workloads, lock};
use crate::clock::unix_seconds;
use crate::ledger::{Row, State, StatusIndex};
use crate::revocation::status_list;

/// A signed list.
#[derive(Clone, Debug)]
pub struct SignedList {
    /// Compact JWS of type `statuslist+jwt`.
    pub token: String,
    /// Moves when a bit does.
    pub revision: u64,
    /// Unix seconds.
    pub issued_at: u64,
}

impl Workloads {
    /// Which form of a list is in force; `None` when there is no such list (any more), or none is published.
    pub fn status_list_revision(&self, list: u64) -> Option<u64> {
        self.0.settings.status_list_uri.as_ref()?;
        self.0.list_suspended();
        let mut lists = lock(&self.0.status);
        lists.expire(unix_seconds(self.0.parts.clock.wall()));
        lists.revision(list)
    }

    /// Signs a list as it is now. Blocking: the key may be anywhere.
    pub fn sign_status_list(&self, list: u64) -> Option<SignedList> {
        let uri = self.0.settings.status_list_uri.as_ref()?;
        self.0.list_suspended();
        let (octets, revision) = lock(&self.0.status).compressed(list)?;
        let issued_at = unix_seconds(self.0.parts.clock.wall());
        let claims = Claims {
            sub: format!("{uri}/{list}"),
            iat: issued_at,
            exp: status_list::ends(list).min(issued_at + VALID_SECONDS),
            ttl: TTL_SECONDS,
            status_list: Lst { bits: status_list::BITS, lst: URL_SAFE_NO_PAD.encode(octets) },
        };
        let authorities = self.0.parts.authorities.current();
        let token = authorities.active_jwt().sign_as(TYPE, &claims);
        let token =
            token.map_err(|error| tracing::warn!(%error, "a status list could not be signed")).ok()?;
        Some(SignedList { token, revision, issued_at })
    }
}

impl Shared {
    /// A place for a token that ends then; `None` where no lists are published.
    pub(super) fn list_token(&self, not_after: u64) -> Option<(StatusIndex, String)> {
        let uri = self.settings.status_list_uri.as_ref()?;
        let place = lock(&self.status).take(not_after, super::issue::random_u32)?;
        Some((place, format!("{uri}/{}", place.list)))
    }

    pub(super) fn list_as_revoked(&self, rows: &[Row]) {
        let mut places = rows.iter().filter_map(|row| row.status).peekable();
        if places.peek().is_some() {
            let mut lists = lock(&self.status);
            places.for_each(|place| lists.revoke(place));
        }
    }

    pub(super) fn restore_lists(&self, rows: &[Row]) {
        let mut lists = lock(&self.status);
        for row in rows {
            if let Some(place) = row.status {
                lists.restore(place, matches!(row.state, State::Revoked { .. }));
            }
        }
        lists.expire(unix_seconds(self.parts.clock.wall()));
    }
}

/// Token Status List §5.1.
#[derive(Serialize)]
struct Claims {
    sub: String,
    iat: u64,
    exp: u64,
    ttl: u64,
    status_list: Lst,
}

#[derive(Serialize)]
struct Lst {
    bits: u32,
    lst: String,
}

const TYPE: &str = "statuslist+jwt";
/// How long a verifier may keep a list before it asks again.
const TTL_SECONDS: u64 = 20;
/// How long one is good for at all, for verifiers that heed nothing else.
const VALID_SECONDS: u64 = 300;
