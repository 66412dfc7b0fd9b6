//! Looks at the bytes of each request before they are decoded, for fields that nobody here knows.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::{BodyExt as _, Full, Limited};
use mayfly_proto::DESCRIPTORS;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::{Extensions, Status};

use super::errors::malformed;
use super::fields::Fields;

/// What a request has that is not known; the service refuses it when it is this request's turn to be looked at.
#[derive(Clone, Debug)]
struct UnknownField(String);

/// A request of which every field is known.
///
/// # Errors
/// `malformed`, with the first that is not.
pub(in crate::api) fn check_known(request: &Extensions) -> Result<(), Status> {
    match request.get::<UnknownField>() {
        Some(UnknownField(field)) => Err(malformed(field)),
        None => Ok(()),
    }
}

/// A service of requests that are one message each.
#[derive(Clone, Debug)]
pub(in crate::api) struct Strict<S> {
    inner: S,
    fields: Arc<Fields>,
    most: usize,
}

impl<S: NamedService> Strict<S> {
    /// Puts the look in front. `most`: bytes of a request.
    pub(in crate::api) fn new(inner: S, most: usize) -> Self {
        Self { inner, fields: Arc::new(Fields::of(DESCRIPTORS, S::NAME)), most }
    }
}

impl<S: NamedService> NamedService for Strict<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Strict<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready takes the call.
        let other = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, other);
        let (fields, most) = (Arc::clone(&self.fields), self.most);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let Ok(body) = Limited::new(body, PREFIX + most).collect().await else {
                let status = Status::out_of_range(format!("a request has at most {most} bytes"));
                return Ok(status.into_http());
            };
            let bytes = body.to_bytes();
            let method = parts.uri.path().rsplit('/').next().unwrap_or_default();
            // Compressed ones are refused by whoever decodes them.
            let message = bytes.get(PREFIX..).unwrap_or_default();
            if let Some(field) = fields.unknown(method, message) {
                parts.extensions.insert(UnknownField(field));
            }
            inner.call(Request::from_parts(parts, Body::new(Full::new(bytes)))).await
        })
    }
}

/// Of a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;
