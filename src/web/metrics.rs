//! `/metrics`, on a listener of its own.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use axum::routing::get;

use crate::api::metrics::Metrics;

/// What the listener of `[metrics]` answers: the page, and nothing else.
pub fn metrics_site(metrics: Metrics) -> Router {
    Router::new().route("/metrics", get(answer)).with_state(metrics)
}

async fn answer(State(metrics): State<Metrics>) -> Response<Body> {
    let mut answer = Response::new(Body::from(metrics.page()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    answer
}
