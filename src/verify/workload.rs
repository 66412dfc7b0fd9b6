//! A client of the Workload API: one connection to the agent, checked before a byte is sent.
//!
//! A socket path proves nothing, since anybody may have bound it first: the kernel is asked who listens there,
//! and only root, ourselves or the uid that the program names is spoken to.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use mayfly_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use mayfly_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, X509svidRequest, X509svidResponse,
};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint as Transport};
use tonic::{Code, Request, Status, Streaming};

use super::answer::{AnswerError, X509Answer};
use crate::clock::{Clock, SystemClock};
use crate::endpoint::{Endpoint, EndpointError};
use crate::id::{IdError, SpiffeId, TrustDomain};

/// Where the agent listens unless `SPIFFE_ENDPOINT_SOCKET` or the program says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mayfly/public/api.sock";

/// The variable of the Workload Endpoint specification.
pub const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Nobody accepts there.
    #[error("cannot connect to `{}`: {source}", .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A stranger listens there.
    #[error("`{}` is served by uid {uid}, which is neither root nor us: not talking to it", .path.display())]
    Untrusted {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        uid: u32,
    },
    /// The agent has no identity for this process, or has taken it back.
    #[error("the agent has no identity for this process: {0}")]
    NoIdentity(String),
    /// The connection broke, or the agent is not ready: worth another try.
    #[error("the agent went away: {0}")]
    Interrupted(String),
    /// The agent refuses; trying again changes nothing (WEP-08).
    #[error("the agent refuses the call: {0}")]
    Refused(String),
    /// The agent's answer must not be used.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Which agent to talk to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Agent {
    socket: PathBuf,
    server_uid: Option<u32>,
}

impl Agent {
    /// The one at that socket.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), server_uid: None }
    }

    /// The one that `SPIFFE_ENDPOINT_SOCKET` names, or the system's ([`DEFAULT_SOCKET`]).
    ///
    /// # Errors
    /// The variable is no endpoint, or a TCP one.
    pub fn from_env() -> Result<Self, EndpointError> {
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::at(DEFAULT_SOCKET)),
            Some(value) => {
                let value = value.to_string_lossy();
                Endpoint::parse(&value, VARIABLE)?.into_path(VARIABLE).map(Self::at)
            }
        }
    }

    /// Trusts an agent that runs as this uid, besides root and ourselves.
    #[must_use]
    pub fn served_by(mut self, uid: u32) -> Self {
        self.server_uid = Some(uid);
        self
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects once.
    ///
    /// # Errors
    /// [`WorkloadError::Unreachable`], [`WorkloadError::Untrusted`], [`WorkloadError::Interrupted`].
    pub async fn connect(&self) -> Result<Connection, WorkloadError> {
        let path = || self.socket.clone();
        let unreachable = |source| WorkloadError::Unreachable { path: path(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let uid = stream.peer_cred().map_err(unreachable)?.uid();
        let is_known = uid == 0 || uid == rustix::process::geteuid().as_raw() || Some(uid) == self.server_uid;
        if !is_known && crate::files::given_by_root(&self.socket) != Some(uid) {
            return Err(WorkloadError::Untrusted { path: path(), uid });
        }
        let mut stream = Some(TokioIo::new(stream));
        // One stream to give away: when it breaks, calls fail, and whoever connects again checks again.
        let connector = tower::service_fn(move |_uri: http::Uri| {
            std::future::ready(stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        let transport = Transport::from_static("http://localhost");
        match tokio::time::timeout(ANSWER, transport.connect_with_connector(connector)).await {
            Ok(Ok(channel)) => Ok(Connection { channel }),
            Ok(Err(_)) | Err(_) => Err(WorkloadError::Interrupted("it does not answer".to_owned())),
        }
    }
}

/// A checked connection. Dropping it ends every call on it.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
}

impl Connection {
    /// Follows our identities. Each item replaces the one before.
    ///
    /// # Errors
    /// [`WorkloadError`].
    pub async fn x509(&self) -> Result<X509Stream, WorkloadError> {
        let mut api = self.api();
        let call = api.fetch_x509svid(with_header(X509svidRequest {}));
        Ok(X509Stream(soon(call).await?.into_inner()))
    }

    /// A JWT-SVID of ours for that audience: of that identity, or of the default one. Compact JWS.
    ///
    /// # Errors
    /// [`WorkloadError`].
    pub async fn jwt(&self, audience: &[String], id: Option<&SpiffeId>) -> Result<String, WorkloadError> {
        let spiffe_id = id.map(ToString::to_string).unwrap_or_default();
        let mut api = self.api();
        let call = api.fetch_jwtsvid(with_header(JwtsvidRequest { audience: audience.to_vec(), spiffe_id }));
        let first = soon(call).await?.into_inner().svids.into_iter().next();
        match first.map(|svid| svid.svid) {
            Some(token) if !token.is_empty() => Ok(token),
            _ => Err(AnswerError::Empty("svids").into()),
        }
    }

    /// Follows the JWT authorities of our trust domain and of those we federate with.
    ///
    /// # Errors
    /// [`WorkloadError`].
    pub async fn jwt_bundles(&self) -> Result<JwtBundleStream, WorkloadError> {
        let mut api = self.api();
        let call = api.fetch_jwt_bundles(with_header(JwtBundlesRequest {}));
        Ok(JwtBundleStream(soon(call).await?.into_inner()))
    }

    fn api(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }
}

/// Our identities as they change.
#[derive(Debug)]
pub struct X509Stream(Streaming<X509svidResponse>);

impl X509Stream {
    /// The next answer. After [`WorkloadError::Answer`] the stream goes on; after any other error it is over.
    ///
    /// # Errors
    /// [`WorkloadError`]; [`WorkloadError::NoIdentity`] when our identity was taken back.
    pub async fn next(&mut self) -> Result<X509Answer, WorkloadError> {
        let message = next(&mut self.0).await?;
        Ok(X509Answer::check(&message, SystemClock.wall())?)
    }
}

/// JWT authorities as they change: trust domain and its JWKS document.
#[derive(Debug)]
pub struct JwtBundleStream(Streaming<JwtBundlesResponse>);

impl JwtBundleStream {
    /// The next answer, as [`X509Stream::next`].
    ///
    /// # Errors
    /// [`WorkloadError`].
    pub async fn next(&mut self) -> Result<BTreeMap<TrustDomain, Bytes>, WorkloadError> {
        let bundles = next(&mut self.0).await?.bundles;
        let named = bundles.into_iter().map(|(name, document)| {
            let id: SpiffeId = name.parse()?;
            Ok((id.trust_domain().clone(), document))
        });
        Ok(named.collect::<Result<_, IdError>>().map_err(AnswerError::from)?)
    }
}

async fn next<M>(stream: &mut Streaming<M>) -> Result<M, WorkloadError> {
    match stream.message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(WorkloadError::Interrupted("it ended the stream".to_owned())),
        Err(status) => Err(refusal(&status)),
    }
}

async fn soon<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, WorkloadError> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => answer.map_err(|status| refusal(&status)),
        Err(_elapsed) => Err(WorkloadError::Interrupted("it does not answer".to_owned())),
    }
}

fn refusal(status: &Status) -> WorkloadError {
    let message = status.message().escape_debug().to_string();
    match status.code() {
        Code::PermissionDenied => WorkloadError::NoIdentity(message),
        Code::InvalidArgument | Code::Unimplemented => WorkloadError::Refused(message),
        _ => WorkloadError::Interrupted(message),
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// How long the agent may take for its first answer.
const ANSWER: Duration = Duration::from_secs(10);

/// CRLs and bundles of a large node exceed gRPC's default of 4 MiB.
const MESSAGE_MAX: usize = 64 << 20;
