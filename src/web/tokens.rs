//! Introspection (RFC 7662) and revocation (RFC 7009) of JWT-SVIDs and of access tokens of tasks, for callers with a
//! name. Both answer from the memory that `ValidateJWTSVID` asks: what was taken back is inactive in the same instant.
//!
//! An access token that is good for one use is active for whoever introspects it first, and never again: it is taken
//! back, durably, before that answer leaves. Whoever merely asks uses it up as well; that errs on the safe side.

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
use crate::issue::access::{self, TASK_CLAIM, ValidAccess};
use crate::issue::jwt::{self, JwtRefusal, ValidatedJwt};
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
    let workloads = &site.parts.workloads;
    let good = site.inspect(&token, "introspection");
    // What is frozen is not used up by a question: it may go on.
    let suspended = |valid: &Valid| valid.lease().is_some_and(|lease| workloads.is_suspended(lease));
    let active = match good.filter(|valid| !suspended(valid)) {
        Some(Valid::Access(access)) if access.is_single_use() => {
            site.parts.workloads.use_up(access.lease).await.then_some(Valid::Access(access))
        }
        other => other,
    };
    // Not one word more: why it is not active is nobody's business here.
    let answer = active.map_or_else(|| json!({ "active": false }), Valid::describe);
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
    let workloads = &site.parts.workloads;
    let good = site.inspect(&token, "revocation").as_ref().and_then(Valid::lease);
    let given_back = match good {
        Some(lease) => workloads.give_back(lease, &named.claim).await,
        None => GivenBack::Unknown,
    };
    match given_back {
        GivenBack::Revoked => done(),
        // It may be one that was taken back, and the ledger does not know of that yet.
        GivenBack::Unknown if workloads.settle().await.is_ok() => done(),
        GivenBack::Unknown | GivenBack::NotWritten => not_written(),
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
    fn inspect(&self, token: &Token, place: &str) -> Option<Valid> {
        let trust = self.trust();
        let workloads = &self.parts.workloads;
        let now = self.parts.clock.wall();
        let denied = |lease| workloads.refuses(lease, place);
        let inactive = |refusal: &dyn std::fmt::Display| tracing::debug!(%refusal, "a token is not active");
        match jwt::inspect(token.expose(), trust.jwt_bundles(), &denied, now) {
            Ok(valid) => Some(valid)
                .filter(|valid| valid.spiffe_id.trust_domain() == trust.trust_domain())
                .map(Valid::Svid),
            // Another type: the only other one that is taken here.
            Err(JwtRefusal::Type) => {
                let own = trust.jwt_bundles().get(trust.trust_domain())?;
                let stands = |lease| workloads.stands(lease, place);
                let access = access::inspect(token.expose(), own, &stands, now);
                access.inspect_err(|refusal| inactive(refusal)).ok().map(Valid::Access)
            }
            Err(refusal) => {
                inactive(&refusal);
                None
            }
        }
    }
}

/// A token that is good now.
enum Valid {
    Svid(ValidatedJwt),
    Access(ValidAccess),
}

impl Valid {
    fn lease(&self) -> Option<LeaseId> {
        match self {
            Self::Svid(valid) => valid.claims.get("jti")?.as_str()?.parse().ok(),
            Self::Access(valid) => Some(valid.lease),
        }
    }

    /// The claims that RFC 7662 §2.2 knows, and those of RFC 9396, 8693 and 7800 where a token has them, and its task.
    fn describe(self) -> Value {
        let (claims, client, known) = match self {
            // The holder is the client.
            Self::Svid(valid) => (valid.claims, Some(valid.spiffe_id.to_string()), &CLAIMS[..]),
            Self::Access(valid) => (valid.claims, None, &ACCESS_CLAIMS[..]),
        };
        let is_dpop = claims.get("cnf").is_some_and(|cnf| cnf.get("jkt").is_some());
        let kept = |name: &str| known.contains(&name);
        let mut answer: Map<String, Value> = claims.into_iter().filter(|(name, _)| kept(name)).collect();
        answer.insert("active".to_owned(), true.into());
        answer.extend(client.map(|client| ("client_id".to_owned(), client.into())));
        answer.insert("token_type".to_owned(), if is_dpop { "DPoP" } else { "Bearer" }.into());
        Value::Object(answer)
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

/// RFC 7009 §2.2.1: the token may still be good, and whoever asks may ask again.
fn not_written() -> Response<Body> {
    let mut answer = json_answer(
        StatusCode::SERVICE_UNAVAILABLE,
        &json!({
            "error": "temporarily_unavailable",
            "error_description": "it is refused, and that could not be written down: a restart of the agent would undo it",
        }),
    );
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
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
const CLAIMS: [&str; 11] = [
    "sub",
    "aud",
    "exp",
    "iat",
    "nbf",
    "iss",
    "jti",
    "status",
    "mayfly_task",
    "mayfly_template",
    "mayfly_action_class",
];
const ACCESS_CLAIMS: [&str; 17] = [
    "sub",
    "sub_id",
    "sub_profile",
    "aud",
    "exp",
    "iat",
    "nbf",
    "iss",
    "jti",
    "status",
    "client_id",
    "scope",
    "authorization_details",
    "act",
    "cnf",
    "txn",
    TASK_CLAIM,
];
