//! A plain SDS client over a Unix socket, state of the world and incremental, that does what tests tell it and
//! nothing by itself. Also compiled into the holder program (`tests/it/bin/holder.rs`).

use std::path::Path;

use mayfly_proto::xds::envoy::config::core::v3::data_source::Specifier;
use mayfly_proto::xds::envoy::config::core::v3::node::UserAgentVersionType;
use mayfly_proto::xds::envoy::config::core::v3::{BuildVersion, DataSource, Node};
use mayfly_proto::xds::envoy::extensions::transport_sockets::tls::v3::{
    Secret, SpiffeCertValidatorConfig, secret,
};
use mayfly_proto::xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use mayfly_proto::xds::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use mayfly_proto::xds::envoy::r#type::v3::SemanticVersion;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::wire::channel;

/// One connection to the public socket.
#[derive(Clone, Debug)]
pub struct Sds {
    api: SecretDiscoveryServiceClient<Channel>,
}

/// A state-of-the-world stream.
#[derive(Debug)]
pub struct World {
    asks: mpsc::Sender<DiscoveryRequest>,
    replies: Streaming<DiscoveryResponse>,
}

/// An incremental stream.
#[derive(Debug)]
pub struct Delta {
    asks: mpsc::Sender<DeltaDiscoveryRequest>,
    replies: Streaming<DeltaDiscoveryResponse>,
}

impl Sds {
    /// Connects now, in the calling process.
    ///
    /// # Errors
    /// The socket cannot be reached.
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        Ok(Self { api: SecretDiscoveryServiceClient::new(channel(socket).await?) })
    }

    /// `StreamSecrets`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn world(&self) -> Result<World, Status> {
        let (asks, requests) = mpsc::channel(16);
        let replies = self.api.clone().stream_secrets(ReceiverStream::new(requests)).await?.into_inner();
        Ok(World { asks, replies })
    }

    /// `DeltaSecrets`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn delta(&self) -> Result<Delta, Status> {
        let (asks, requests) = mpsc::channel(16);
        let replies = self.api.clone().delta_secrets(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Delta { asks, replies })
    }

    /// `FetchSecrets`.
    ///
    /// # Errors
    /// The call's status.
    pub async fn fetch(&self, ask: DiscoveryRequest) -> Result<DiscoveryResponse, Status> {
        Ok(self.api.clone().fetch_secrets(ask).await?.into_inner())
    }
}

impl World {
    /// Sends a request. A stream that has ended says so with the next message.
    pub async fn ask(&self, ask: DiscoveryRequest) {
        self.asks.send(ask).await.ok();
    }

    /// The next response; `None` at the end.
    ///
    /// # Errors
    /// The stream's status.
    pub async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        self.replies.message().await
    }
}

impl Delta {
    /// Sends a request. A stream that has ended says so with the next message.
    pub async fn ask(&self, ask: DeltaDiscoveryRequest) {
        self.asks.send(ask).await.ok();
    }

    /// The next response; `None` at the end.
    ///
    /// # Errors
    /// The stream's status.
    pub async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        self.replies.message().await
    }
}

/// What an Envoy of that version says of itself.
pub fn node(id: &str, minor_number: u32) -> Node {
    let version = Some(SemanticVersion { major_number: 1, minor_number, patch: 0 });
    Node {
        id: id.to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version })),
        ..Node::default()
    }
}

/// A request for those names.
pub fn ask(names: &[&str], version: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: version.to_owned(),
        node: Some(node("test", 40)),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// A secret as it came. PEM blocks are told apart, wherever they stood.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8 DER.
    pub key: Vec<u8>,
    /// Trust anchors, DER.
    pub anchors: Vec<Vec<u8>>,
    /// CRLs, DER.
    pub crls: Vec<Vec<u8>>,
    /// Trust domains, when it is for the SPIFFE validator.
    pub judged: Vec<String>,
    /// Only the leaf is to be looked up.
    pub leaf_only: bool,
}

impl Seen {
    /// Reads a resource.
    ///
    /// # Panics
    /// When it is no secret of the two kinds, or has no PEM where it should.
    pub fn read(resource: &[u8]) -> Self {
        let secret = Secret::decode(resource).expect("a secret");
        let mut seen = Self { name: secret.name, ..Self::default() };
        match secret.r#type.expect("a kind") {
            secret::Type::TlsCertificate(certificate) => {
                for (label, der) in blocks(certificate.certificate_chain.as_ref()) {
                    assert_eq!(label, "CERTIFICATE");
                    seen.chain.push(der);
                }
                seen.key = blocks(certificate.private_key.as_ref()).remove(0).1;
            }
            secret::Type::ValidationContext(context) => {
                seen.leaf_only = context.only_verify_leaf_cert_crl;
                let mut sources = vec![context.trusted_ca, context.crl];
                if let Some(custom) = context.custom_validator_config {
                    let any = custom.typed_config.expect("typed");
                    let config = SpiffeCertValidatorConfig::decode(any.value.as_slice()).expect("its type");
                    for domain in config.trust_domains {
                        seen.judged.push(domain.name);
                        sources.push(domain.trust_bundle);
                    }
                }
                for (label, der) in sources.iter().flat_map(|source| blocks(source.as_ref())) {
                    if label == "X509 CRL" { &mut seen.crls } else { &mut seen.anchors }.push(der);
                }
            }
        }
        seen
    }

    /// All secrets of a response.
    pub fn all(reply: &DiscoveryResponse) -> Vec<Self> {
        reply.resources.iter().map(|any| Self::read(&any.value)).collect()
    }

    /// All secrets of an incremental response.
    ///
    /// # Panics
    /// When a resource is empty, or called otherwise than its secret.
    pub fn all_delta(reply: &DeltaDiscoveryResponse) -> Vec<Self> {
        let read = |resource: &mayfly_proto::xds::envoy::service::discovery::v3::Resource| {
            let seen = Self::read(&resource.resource.as_ref().expect("a resource").value);
            assert_eq!(seen.name, resource.name);
            seen
        };
        reply.resources.iter().map(read).collect()
    }
}

fn blocks(source: Option<&DataSource>) -> Vec<(String, Vec<u8>)> {
    let Some(Specifier::InlineBytes(text)) = source.and_then(|source| source.specifier.as_ref()) else {
        return Vec::new();
    };
    let each = x509_parser::pem::Pem::iter_from_buffer(text);
    each.map(|block| block.expect("PEM")).map(|block| (block.label, block.contents)).collect()
}
