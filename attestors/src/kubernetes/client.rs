//! GET from one API server over TLS: an address, a CA and a token, both read anew for each request, because projected
//! volumes replace them while we run. No names are looked up, no redirect is followed, no proxy is asked.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

/// Where the API server is, and how it and we prove ourselves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiServer {
    /// Its address: names are not looked up.
    pub address: SocketAddr,
    /// A file with the token of our service account.
    pub token_file: PathBuf,
    /// PEM certificates that its own must lead to.
    pub ca_file: PathBuf,
}

/// Why a request brought nothing. For operators: each says what to look at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("the token of the service account cannot be read from {0}: {1}")]
    Token(PathBuf, #[source] io::Error),
    #[error("{0} holds no token")]
    NoToken(PathBuf),
    #[error("the CA of the API server cannot be read from {0}: {1}")]
    Ca(PathBuf, #[source] io::Error),
    #[error("{0} holds no certificate")]
    NoCa(PathBuf),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("no connection to {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("the server at {0} does not prove to be the API server: {1}")]
    Handshake(SocketAddr, #[source] io::Error),
    #[error("the answer broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// Any answer but 200.
    #[error("{}", .0.text())]
    Refused(Refusal),
}

/// An answer that is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// The server's words.
    message: String,
    /// How long it wants to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    fn text(&self) -> String {
        let advice = match self.status {
            StatusCode::UNAUTHORIZED => " (is the token of a service account that exists?)",
            StatusCode::FORBIDDEN => " (the service account needs the verbs `list` and `watch`)",
            _ => "",
        };
        let said = crate::text::of_bytes(self.message.as_bytes());
        let colon = if said.is_empty() { "" } else { ": " };
        format!("the API server answers {}{colon}{said}{advice}", self.status.as_u16())
    }
}

/// An answer whose body is still to be read.
pub(crate) struct Reply {
    body: Incoming,
    /// Must be polled for the body to come.
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
}

impl ApiServer {
    /// Asks for `path` and waits for the head of the answer.
    pub(crate) async fn get(&self, path: &str, deadline: Duration) -> Result<Reply, ClientError> {
        let exchange = self.exchange(path);
        tokio::time::timeout(deadline, exchange).await.unwrap_or(Err(ClientError::Deadline(deadline)))
    }

    /// Asks for `path` and reads the whole answer.
    pub(crate) async fn get_all(
        &self,
        path: &str,
        most: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let read = async {
            let mut reply = self.exchange(path).await?;
            let mut all = Vec::new();
            while let Some(bytes) = reply.chunk().await? {
                if all.len() + bytes.len() > most {
                    return Err(ClientError::TooLong(most));
                }
                all.extend_from_slice(&bytes);
            }
            Ok(all)
        };
        tokio::time::timeout(deadline, read).await.unwrap_or(Err(ClientError::Deadline(deadline)))
    }

    async fn exchange(&self, path: &str) -> Result<Reply, ClientError> {
        // Before anything is sent: the token leaves only over a connection that has proved itself.
        let token = read_token(&self.token_file).await?;
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
        let request = Request::get(path)
            .header(HOST, self.address.to_string())
            .header(AUTHORIZATION, token)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("mayfly/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new());
        // The path is our own, and checked where it is made.
        let request = request.map_err(|error| ClientError::Connect(self.address, io::Error::other(error)))?;
        let mut connection: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { connection.await.unwrap_or_default() });
        let mut answer = std::pin::pin!(sender.send_request(request));
        let mut over = false;
        let response = loop {
            tokio::select! {
                biased;
                response = &mut answer => break response?,
                // What it has read already still reaches the exchange.
                () = &mut connection, if !over => over = true,
            }
        };
        let (status, retry_after) = (response.status(), retry_after(response.headers().get(RETRY_AFTER)));
        let mut reply = Reply { body: response.into_body(), connection, over };
        if status == StatusCode::OK {
            return Ok(reply);
        }
        let message = reply.words().await;
        Err(ClientError::Refused(Refusal { status, message, retry_after }))
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, ClientError> {
        let tls = TlsConnector::from(Arc::new(tls(&self.ca_file).await?));
        let unreachable = |error| ClientError::Connect(self.address, error);
        let stream = TcpStream::connect(self.address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        keep_alive(&stream).map_err(unreachable)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        tls.connect(name, stream).await.map_err(|error| ClientError::Handshake(self.address, error))
    }
}

impl Reply {
    /// The next part of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                () = &mut self.connection, if !self.over => {
                    self.over = true;
                    continue;
                }
            };
            match frame.transpose()?.map(hyper::body::Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) => return Ok(Some(data)),
                // Trailers say nothing.
                Some(Err(_)) => {}
            }
        }
    }

    /// The message in an answer that is none, as far as it can be had.
    async fn words(&mut self) -> String {
        let mut all = Vec::new();
        while let Ok(Some(bytes)) = self.chunk().await {
            all.extend_from_slice(&bytes);
            if all.len() > MAX_WORDS {
                return String::new();
            }
        }
        let said: Option<serde_json::Value> = serde_json::from_slice(&all).ok();
        let message = said.as_ref().and_then(|status| status.get("message")?.as_str()).unwrap_or_default();
        message.chars().take(200).collect()
    }
}

/// A server that asks to be left alone is, within reason.
fn retry_after(header: Option<&HeaderValue>) -> Option<Duration> {
    let seconds: u64 = header?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MOST_PATIENCE))
}

async fn read_token(path: &Path) -> Result<HeaderValue, ClientError> {
    let unread = |error| ClientError::Token(path.to_owned(), error);
    let bytes = Zeroizing::new(read_small(path).await.map_err(unread)?);
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(ClientError::NoToken(path.to_owned()));
    }
    let mut header = Zeroizing::new(b"Bearer ".to_vec());
    header.extend_from_slice(token);
    let value = HeaderValue::from_bytes(&header);
    let mut value = value.map_err(|error| unread(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn tls(ca_file: &Path) -> Result<ClientConfig, ClientError> {
    let pem = read_small(ca_file).await.map_err(|error| ClientError::Ca(ca_file.to_owned(), error))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if roots.is_empty() {
        return Err(ClientError::NoCa(ca_file.to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A token, or a bundle of certificates. Through links: a projected volume is made of them.
async fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    read.await.map_err(io::Error::other)?
}

/// A server that vanishes without a word is noticed within a minute, though a watch may be silent for longer.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(20))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, 30_000)?;
    Ok(())
}

const MAX_HEAD: usize = 64 * 1024;
const MAX_WORDS: usize = 16 * 1024;
const MAX_FILE: u64 = 1 << 20;
const MOST_PATIENCE: Duration = Duration::from_secs(60);
