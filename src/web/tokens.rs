//! Introspection (RFC 7662) and revocation (RFC 7009) of JWT-SVIDs, for callers with a name. Both answer from the
//! memory that `ValidateJWTSVID` asks: what was taken back is inactive in the same instant.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::caller::Caller;
use super::form::{self, Token};
use super::named::{Named, Unnamed};
use super::site::Inner;
use crate::id::LeaseId;
use crate::issue::jwt::{self, ValidatedJwt};
use crate::workload::GivenBack;

/// `POST /introspect`
pub(super) async fn introspect(
    State(site): State<Arc<Inner>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    let (_named, token) = match asked(&site, &caller, &headers, body).await {
        Ok(asked) => asked,
        Err(refused) => return refused,
    };
    let answer = match site.inspect(&token) {
        Some(valid) => describe(valid),
        // Not one word more: why it is not active is nobody's business here.
        None => json!({ "active": false }),
    };
    json_answer(StatusCode::OK, &answer)
}

/// `POST /revoke`
pub(super) async fn revoke(
    State(site): State<Arc<Inner>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    let (named, token) = match asked(&site, &caller, &headers, body).await {
        Ok(asked) => asked,
        Err(refused) => return refused,
    };
    // RFC 7009 §2.2: a token that is not good for anything needs no revoking.
    let Some(lease) = site.inspect(&token).as_ref().and_then(lease) else { return done() };
    match site.parts.workloads.give_back(lease, &named.claim).await {
        GivenBack::Revoked | GivenBack::Unknown => done(),
        GivenBack::NotTheirs => json_answer(
            StatusCode::FORBIDDEN,
            &json!({
                "error": "unauthorized_client",
                "error_description": "the token is for another identity: ask its holder, or whoever administers the node",
            }),
        ),
    }
}

impl Inner {
    /// What a token of our own says, if it is good now.
    fn inspect(&self, token: &Token) -> Option<ValidatedJwt> {
        let trust = self.trust();
        let denied = |lease| self.parts.workloads.is_revoked(lease);
        let now = self.parts.clock.wall();
        match jwt::inspect(token.expose(), trust.jwt_bundles(), &denied, now) {
            Ok(valid) => Some(valid).filter(|valid| valid.spiffe_id.trust_domain() == trust.trust_domain()),
            Err(refusal) => {
                tracing::debug!(%refusal, "a token is not active");
                None
            }
        }
    }
}

async fn asked(
    site: &Inner,
    caller: &Caller,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Named, Token), Response<Body>> {
    let named = site.recognise(caller, headers).await.map_err(refused)?;
    let body: Bytes = axum::body::to_bytes(body, MAX_BODY_BYTES).await.map_err(|_too_long| {
        let description = "the form is too long";
        json_answer(
            StatusCode::PAYLOAD_TOO_LARGE,
            &json!({ "error": "invalid_request", "error_description": description }),
        )
    })?;
    let token = form::token(headers, &body).map_err(|wrong| {
        let description = wrong.to_string();
        json_answer(
            StatusCode::BAD_REQUEST,
            &json!({ "error": "invalid_request", "error_description": description }),
        )
    })?;
    Ok((named, token))
}

fn refused(why: Unnamed) -> Response<Body> {
    let (status, header, value, error) = match why {
        Unnamed::Stranger(_) => {
            (StatusCode::UNAUTHORIZED, WWW_AUTHENTICATE, "X509-SVID realm=\"mayfly\"", "invalid_client")
        }
        Unnamed::Busy => (StatusCode::TOO_MANY_REQUESTS, RETRY_AFTER, "1", "slow_down"),
    };
    let mut answer = json_answer(status, &json!({ "error": error }));
    answer.headers_mut().insert(header, HeaderValue::from_static(value));
    answer
}

/// The claims that RFC 7662 §2.2 knows, `status` among them where tokens have it. The holder is the client.
fn describe(valid: ValidatedJwt) -> Value {
    let client = valid.spiffe_id.to_string();
    let known = |name: &str| CLAIMS.contains(&name);
    let mut answer: Map<String, Value> = valid.claims.into_iter().filter(|(name, _)| known(name)).collect();
    answer.insert("active".to_owned(), true.into());
    answer.insert("client_id".to_owned(), client.into());
    answer.insert("token_type".to_owned(), "Bearer".into());
    Value::Object(answer)
}

fn lease(valid: &ValidatedJwt) -> Option<LeaseId> {
    valid.claims.get("jti")?.as_str()?.parse().ok()
}

fn done() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    answer.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    answer
}

fn json_answer(status: StatusCode, json: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(crate::json::sorted(json.clone()).to_string()));
    *answer.status_mut() = status;
    let headers: [(HeaderName, HeaderValue); 2] =
        [(CONTENT_TYPE, HeaderValue::from_static("application/json")), (CACHE_CONTROL, NO_STORE)];
    answer.headers_mut().extend(headers);
    answer
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// A token of 16 KiB, each octet written as three.
const MAX_BODY_BYTES: usize = 64 * 1024;
const CLAIMS: [&str; 8] = ["sub", "aud", "exp", "iat", "nbf", "iss", "jti", "status"];
