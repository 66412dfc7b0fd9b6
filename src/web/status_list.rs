//! `/statuslists/HOUR`: whether the tokens that end in that hour still stand, for verifiers that fetch
//! (draft-ietf-oauth-status-list §8). Signed again when a bit has moved, or half of its time to live is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::ACCESS_CONTROL_ALLOW_ORIGIN;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse as _;

use super::conditional::Document;
use super::site::Inner;
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::workload::SignedList;

/// The lists signed last.
#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<BTreeMap<u64, SignedList>>);

pub(super) async fn answer(
    State(site): State<Arc<Inner>>,
    Path(list): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let Ok(list) = list.parse::<u64>() else { return StatusCode::NOT_FOUND.into_response() };
    let signed = match site.known_list(list) {
        Known::Absent => None,
        Known::Fresh(signed) => Some(signed),
        Known::Stale => tokio::task::spawn_blocking(move || site.sign_list(list)).await.ok().flatten(),
    };
    let Some(signed) = signed else { return StatusCode::NOT_FOUND.into_response() };
    let mut answer = document(&signed).answer(&headers);
    // It holds no secret, and browsers verify tokens too (§8.2).
    answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    answer
}

enum Known {
    Absent,
    Fresh(SignedList),
    Stale,
}

impl Inner {
    fn known_list(&self, list: u64) -> Known {
        let Some(revision) = self.parts.workloads.status_list_revision(list) else { return Known::Absent };
        let now = unix_seconds(self.parts.clock.wall());
        let lists = self.lists.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |signed: &&SignedList| {
            signed.revision == revision && now.saturating_sub(signed.issued_at) < RESIGN_SECONDS
        };
        lists.get(&list).filter(fresh).map_or(Known::Stale, |signed| Known::Fresh(signed.clone()))
    }

    fn sign_list(&self, list: u64) -> Option<SignedList> {
        let signed = self.parts.workloads.sign_status_list(list)?;
        let mut lists = self.lists.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|list, _| self.parts.workloads.status_list_revision(*list).is_some());
        lists.insert(list, signed.clone());
        Some(signed)
    }
}

fn document(signed: &SignedList) -> Document {
    Document {
        body: signed.token.clone().into(),
        content_type: "application/statuslist+jwt",
        tag: format!("{}-{}", signed.issued_at, signed.revision),
        modified: Some(from_unix_seconds(signed.issued_at)),
        cache: "public, max-age=10, must-revalidate".to_owned(),
    }
}

const RESIGN_SECONDS: u64 = 10;
