//! A plain Workload API client over a Unix socket: generated stubs, nothing clever, so that what tests see
//! is what the agent sent. Also compiled into the holder program (`tests/it/bin/holder.rs`).

use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _};
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
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
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

impl Client {
    /// Connects now, in the calling process.
    ///
    /// # Errors
    /// The socket cannot be reached.
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let path = PathBuf::from(socket);
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        let tasks = TaskApiClient::new(channel.clone());
        Ok(Self { api: SpiffeWorkloadApiClient::new(channel.clone()), tasks, channel })
    }

    /// Any unary call, message as bytes.
    ///
    /// # Errors
    /// The call's status.
    pub async fn raw(&self, path: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
        let path = path.parse().map_err(|_not_a_path| Status::internal("no path"))?;
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc.unary(with_header(message), path, Plain).await?.into_inner())
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
    request
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
