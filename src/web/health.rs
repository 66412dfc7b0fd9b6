//! `/health`: whether the agent is ready, for a proxy or a probe that speaks HTTP. What is amiss is for the admin
//! socket alone.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response, StatusCode};

use super::site::Inner;

pub(super) async fn answer(State(site): State<Arc<Inner>>) -> Response<Body> {
    let ready = site.parts.readiness.is_ready();
    let mut answer = Response::new(Body::from(if ready { "{\"ready\":true}" } else { "{\"ready\":false}" }));
    *answer.status_mut() = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
