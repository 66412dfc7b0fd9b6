//! A plain Workload API client over a Unix socket: generated stubs, nothing clever, so that what tests see
//! is what the agent sent. Also compiled into the holder program (`tests/it/bin/holder.rs`).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::{Buf as _, BufMut as _, Bytes};
use hyper_util::rt::TokioIo;
use mayfly_proto::task::task_api_client::TaskApiClient;
use mayfly_proto::task::{AuthorizationDetail, BeginRequest, Format, IssueRequest};
use mayfly_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use mayfly_proto::workload::{
    JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse, WitBundlesRequest,
    WitBundlesResponse, WitsvidRequest, WitsvidResponse, X509BundlesRequest, X509BundlesResponse,
    X509svidRequest, X509svidResponse,
};
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};

/// The header every Workload API call carries.
const HEADER: &str = "workload.spiffe.io";

/// One connection to the public socket.
#[derive(Clone, Debug)]
pub struct Client {
    api: SpiffeWorkloadApiClient<Channel>,
    tasks: TaskApiClient<Channel>,
    channel: Channel,
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The path of a method of the task API.
fn task_method(name: &str) -> Result<PathAndQuery, Status> {
    let path = format!("/mayfly.task.v1.TaskAPI/{name}").parse();
    path.map_err(|_not_one| Status::internal("no method has such a name"))
}

/// A connection to a socket, for any client. Made now, by the calling process.
///
/// # Errors
/// The socket cannot be reached.
pub async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = PathBuf::from(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

impl Client {
    /// Connects now, in the calling process.
    ///
    /// # Errors
    /// The socket cannot be reached.
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let channel = channel(socket).await?;
        let tasks = TaskApiClient::new(channel.clone());
        Ok(Self { api: SpiffeWorkloadApiClient::new(channel.clone()), tasks, channel })
    }

    /// Any unary call, message as bytes.
    ///
    /// # Errors
    /// The call's status.
    pub async fn raw(&self, path: &str, message: Bytes) -> Result<Bytes, Status> {
        let path = path.parse().map_err(|_not_a_path| Status::internal("no path"))?;
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc.unary(with_header(message), path, Raw).await?.into_inner())
    }

    /// Begins a task that may read at a location, and asks for one access token for an audience there: the task's
    /// name, and the token.
    ///
    /// # Errors
    /// The status of either call.
    pub async fn task(&self, location: String, audience: String) -> Result<(String, String), Status> {
        let detail = AuthorizationDetail {
            r#type: "urn:mayfly:rar:target-access".to_owned(),
            locations: vec![location],
            actions: vec!["read".to_owned()],
            ..Default::default()
        };
        let begin = BeginRequest { details: vec![detail], ..Default::default() };
        let task = self.tasks.clone().begin(with_header(begin)).await?.into_inner();
        let issue = IssueRequest {
            task_id: task.id.clone(),
            format: Format::AccessToken.into(),
            audience: vec![audience],
            ..Default::default()
        };
        let credential = self.tasks.clone().issue(with_header(issue)).await?.into_inner();
        Ok((task.id, credential.token))
    }

    /// A call of the task API; request and answer as they are on the wire.
    ///
    /// # Errors
    /// The call's status.
    pub async fn task_call(&self, method: &str, request: Bytes) -> Result<Bytes, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|why| Status::unavailable(why.to_string()))?;
        Ok(grpc.unary(with_header(request), task_method(method)?, Raw).await?.into_inner())
    }

    /// A stream of the task API; request and messages as they are on the wire.
    ///
    /// # Errors
    /// The call's status.
    pub async fn task_stream(&self, method: &str, request: Bytes) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|why| Status::unavailable(why.to_string()))?;
        Ok(grpc.server_streaming(with_header(request), task_method(method)?, Raw).await?.into_inner())
    }

    /// `FetchX509SVID`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn x509(&self) -> Result<Streaming<X509svidResponse>, Status> {
        Ok(self.api.clone().fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner())
    }

    /// `FetchX509Bundles`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn bundles(&self) -> Result<Streaming<X509BundlesResponse>, Status> {
        Ok(self.api.clone().fetch_x509_bundles(with_header(X509BundlesRequest {})).await?.into_inner())
    }

    /// `FetchJWTSVID`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn jwt(&self, audience: Vec<String>, spiffe_id: String) -> Result<JwtsvidResponse, Status> {
        let request = with_header(JwtsvidRequest { audience, spiffe_id });
        Ok(self.api.clone().fetch_jwtsvid(request).await?.into_inner())
    }

    /// `FetchWITSVID`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn wit(&self, spiffe_id: String) -> Result<Streaming<WitsvidResponse>, Status> {
        Ok(self.api.clone().fetch_witsvid(with_header(WitsvidRequest { spiffe_id })).await?.into_inner())
    }

    /// `FetchWITBundles`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn wit_bundles(&self) -> Result<Streaming<WitBundlesResponse>, Status> {
        Ok(self.api.clone().fetch_wit_bundles(with_header(WitBundlesRequest {})).await?.into_inner())
    }

    /// `ValidateJWTSVID`.
    ///
    /// # Errors
    /// The call's status: `InvalidArgument` for a token that is refused.
    pub async fn validate(&self, audience: String, svid: String) -> Result<ValidateJwtsvidResponse, Status> {
        let request = with_header(ValidateJwtsvidRequest { audience, svid });
        Ok(self.api.clone().validate_jwtsvid(request).await?.into_inner())
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HEADER, tonic::metadata::MetadataValue::from_static("true"));
    for value in TRACEPARENTS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        request.metadata_mut().append("traceparent", value.clone());
    }
    request
}

/// What every call of this process has as `traceparent` from now on, each as a header of its own.
///
/// # Errors
/// One cannot be sent.
pub fn call_in_traces(values: &[String]) -> Result<(), Status> {
    let parsed = values.iter().map(|value| value.parse()).collect::<Result<Vec<AsciiMetadataValue>, _>>();
    let parsed = parsed.map_err(|_unprintable| Status::internal("cannot be sent"))?;
    *TRACEPARENTS.lock().unwrap_or_else(PoisonError::into_inner) = parsed;
    Ok(())
}

static TRACEPARENTS: Mutex<Vec<AsciiMetadataValue>> = Mutex::new(Vec::new());
