//! One fetch: GET over TLS, redirects checked anew, size and time limited.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{TlsError, handshake_fault};
use crate::config::{EndpointUrl, UrlError};
use crate::trust::{DocumentError, MAX_DOCUMENT_BYTES};

/// Why a fetch brought no bundle. The texts are for the operator; they are shown in `mayfly bundle list`.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The endpoint's SPIFFE ID cannot be checked.
    #[error(
        "no bundle of `{0}` is known, by which the endpoint must prove itself: set one, or write `bootstrap_bundle`"
    )]
    NoBundle(String),
    /// The bootstrap bundle is not used.
    #[error("`bootstrap_bundle` is not used: {0}")]
    Bootstrap(String),
    /// TLS could not be set up.
    #[error(transparent)]
    Setup(#[from] TlsError),
    /// The host is neither a name nor an address.
    #[error("the host of the URL is no name that TLS knows")]
    Host,
    /// No connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, #[source] io::Error),
    /// The server did not prove to be the right one, or speaks no TLS of ours.
    #[error("TLS handshake with {0}: {1}")]
    Handshake(String, String),
    /// Not HTTP/1.1, or it broke off.
    #[error("the answer broke off: {0}")]
    Http(#[from] hyper::Error),
    /// Anything but 200 and a redirect.
    #[error("the endpoint answers with status {0}")]
    Status(StatusCode),
    /// A redirect without a target, or to one that no endpoint may have.
    #[error("redirected to {0:?}, which {1}")]
    Redirect(String, #[source] UrlError),
    /// More than [`MAX_REDIRECTS`].
    #[error("redirected more than {MAX_REDIRECTS} times")]
    TooManyRedirects,
    /// The body is longer than a document may be.
    #[error("the answer is longer than {MAX_DOCUMENT_BYTES} bytes")]
    TooLong,
    /// All of it took too long.
    #[error("no whole answer within {} seconds", DEADLINE.as_secs())]
    Deadline,
    /// The document is refused.
    #[error("the document is refused: {0}")]
    Document(#[from] DocumentError),
    /// The relationship ended, or was set by hand, while the answer was on its way.
    #[error("the relationship changed meanwhile")]
    Overtaken,
}

/// Fetches the document. Every server on the way proves itself by `tls`.
pub(super) async fn fetch(url: &EndpointUrl, tls: Arc<ClientConfig>) -> Result<Bytes, FetchError> {
    let connector = TlsConnector::from(tls);
    tokio::time::timeout(DEADLINE, follow(url.clone(), &connector)).await.ok().ok_or(FetchError::Deadline)?
}

/// Begins at the configured URL every time: the target of a redirect is never kept (FED-23).
async fn follow(mut url: EndpointUrl, tls: &TlsConnector) -> Result<Bytes, FetchError> {
    for _ in 0..=MAX_REDIRECTS {
        match get(&url, tls).await? {
            Answer::Body(body) => return Ok(body),
            Answer::Elsewhere(location) => {
                url = url.redirect(&location).map_err(|error| FetchError::Redirect(location, error))?;
            }
        }
    }
    Err(FetchError::TooManyRedirects)
}

enum Answer {
    Body(Bytes),
    Elsewhere(String),
}

async fn get(url: &EndpointUrl, tls: &TlsConnector) -> Result<Answer, FetchError> {
    let stream = connect(url, tls).await?;
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEADER_BYTES).handshake(TokioIo::new(stream)).await?;
    let request = Request::get(url.path_and_query())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("mayfly/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new());
    // Both header values and the path were parsed as parts of a URL.
    let request = request.ok().ok_or(FetchError::Host)?;
    let exchange = async move { read(sender.send_request(request).await?).await };
    let (mut exchange, mut connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    let mut over = false;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            // What it has read already still reaches the exchange.
            _ = &mut connection, if !over => over = true,
        }
    }
}

pub(super) async fn connect(
    url: &EndpointUrl,
    tls: &TlsConnector,
) -> Result<TlsStream<TcpStream>, FetchError> {
    let name = ServerName::try_from(url.host().to_owned()).ok().ok_or(FetchError::Host)?;
    let connected = TcpStream::connect((url.host(), url.port())).await;
    let stream = connected.map_err(|error| FetchError::Connect(url.authority().to_owned(), error))?;
    tls.connect(name, stream)
        .await
        .map_err(|error| FetchError::Handshake(url.authority().to_owned(), handshake_fault(&error)))
}

async fn read(response: Response<Incoming>) -> Result<Answer, FetchError> {
    let status = response.status();
    if REDIRECTS.contains(&status) {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        return Ok(Answer::Elsewhere(location.unwrap_or_default().to_owned()));
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status(status));
    }
    match Limited::new(response.into_body(), MAX_DOCUMENT_BYTES).collect().await {
        Ok(body) => Ok(Answer::Body(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLong),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(FetchError::Http(*error)),
            Err(_) => Err(FetchError::TooLong),
        },
    }
}

/// Permanent ones are followed like the others, and remembered as little.
const REDIRECTS: [StatusCode; 5] = [
    StatusCode::MOVED_PERMANENTLY,
    StatusCode::FOUND,
    StatusCode::SEE_OTHER,
    StatusCode::TEMPORARY_REDIRECT,
    StatusCode::PERMANENT_REDIRECT,
];
/// Redirects in one fetch.
pub const MAX_REDIRECTS: usize = 5;
/// For one fetch with all its redirects.
const DEADLINE: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 32 * 1024;
