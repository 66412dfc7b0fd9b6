//! One POST over TLS to whoever wants to be told something. No redirects, nothing is read of the answer but its status.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

use super::fetch::{FetchError, connect};
use super::tls;
use crate::config::EndpointUrl;

/// Posts JSON; the server proves itself by the Web PKI, or by the certificates of `ca_file`.
///
/// # Errors
/// Nobody was told; the text says why.
pub async fn post_json(url: &EndpointUrl, ca_file: Option<PathBuf>, body: Bytes) -> Result<(), FetchError> {
    let config = tokio::task::spawn_blocking(move || tls::web(ca_file.as_deref())).await;
    let config = config.map_err(|_gone| FetchError::Deadline)??;
    let connector = TlsConnector::from(Arc::new(config));
    let posted = tokio::time::timeout(DEADLINE, post(url, &connector, body)).await;
    match posted.ok().ok_or(FetchError::Deadline)?? {
        status if status.is_success() => Ok(()),
        status => Err(FetchError::Status(status)),
    }
}

async fn post(url: &EndpointUrl, tls: &TlsConnector, body: Bytes) -> Result<StatusCode, FetchError> {
    let stream = connect(url, tls).await?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEADER_BYTES).handshake(TokioIo::new(stream)).await?;
    let request = Request::post(url.path_and_query())
        .header(HOST, url.authority())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("mayfly/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(body));
    let request = request.ok().ok_or(FetchError::Host)?;
    let exchange = sender.send_request(request);
    let (mut exchange, mut connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    let mut over = false;
    loop {
        tokio::select! {
            answer = &mut exchange => return Ok(answer?.status()),
            _ = &mut connection, if !over => over = true,
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 32 * 1024;
