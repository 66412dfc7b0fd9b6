//! The HTTP listeners: what is configured is bound before the agent says that it serves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::server::ResolvesServerCert;

use super::StartError;
use crate::api::metrics::Metrics;
use crate::api::overview::Listener;
use crate::authority::Authorities;
use crate::clock::Clock;
use crate::config::{Config, EndpointProfile, Storage};
use crate::drain::Watch;
use crate::ready::Readiness;
use crate::trust::sequence::SequenceKeeper;
use crate::web::tls::{self, CertificateFiles, FilesError, OwnSvid, SvidClients};
use crate::web::{BundleSource, HttpLimits, Site, SiteParts, TcpServer, metrics_site};
use crate::workload::Workloads;

/// Why an HTTP listener cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The TCP address cannot be had.
    #[error("cannot listen on {address} for `{table}`: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The table of the configuration.
        table: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The certificate for the bundle endpoint cannot be used.
    #[error("`bundle_endpoint`: {0}")]
    Certificate(#[from] FilesError),
    /// The TLS library refused: our mistake.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// What the listeners need of the rest of the agent.
pub(super) struct WebParts<'a> {
    pub(super) config: &'a Config,
    pub(super) workloads: &'a Workloads,
    pub(super) authorities: &'a Authorities,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) readiness: &'a Readiness,
    pub(super) watch: &'a Watch,
    pub(super) attestations: &'a crate::api::limits::Admission,
}

/// A task of the agent.
pub(super) type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Bound listeners; nothing is accepted yet.
pub(super) struct Web {
    pub(super) site: Site,
    pub(super) servers: Vec<TcpServer>,
    /// What keeps certificates fresh.
    pub(super) tasks: Vec<Task>,
    /// For `mayfly status`.
    pub(super) listeners: Vec<Listener>,
}

pub(super) fn bind(parts: &WebParts<'_>) -> Result<Web, StartError> {
    let keeper = match &parts.config.storage {
        Storage::Disk(dir) => SequenceKeeper::on_disk(dir)?,
        Storage::Memory => SequenceKeeper::in_memory(),
    };
    let refresh_hint = parts.config.bundle.refresh_hint;
    let site = Site::new(SiteParts {
        workloads: parts.workloads.clone(),
        clock: Arc::clone(parts.clock),
        readiness: parts.readiness.clone(),
        bundle: BundleSource::new(keeper, refresh_hint, parts.readiness.clone()),
        issuer: parts.config.jwt.issuer.clone(),
        attestations: parts.attestations.clone(),
    });
    let mut web = Web { site, servers: Vec::new(), tasks: Vec::new(), listeners: Vec::new() };
    web.listen(parts)?;
    Ok(web)
}

/// What probes and collectors ask, over TCP and in the clear.
pub(super) fn bind_probes(
    config: &Config,
    health: tonic::service::Routes,
    metrics: Metrics,
) -> Result<Vec<TcpServer>, StartError> {
    let mut servers = Vec::new();
    let mut bind = |address, table, app, grpc: bool| {
        let failed = |source| WebError::Bind { address, table, source };
        let server = TcpServer::bind(address, None, app, HttpLimits::default()).map_err(failed)?;
        tracing::info!(address = %server.address().map_err(failed)?, table, "listening");
        servers.push(if grpc { server.grpc() } else { server });
        Ok::<_, WebError>(())
    };
    if let Some(address) = config.probes.health {
        bind(address, "health", health.into_axum_router(), true)?;
    }
    if let Some(address) = config.probes.metrics {
        bind(address, "metrics", metrics_site(metrics), false)?;
    }
    Ok(servers)
}

impl Web {
    fn listen(&mut self, parts: &WebParts<'_>) -> Result<(), StartError> {
        let http = &parts.config.http;
        let path = http.socket.display().to_string();
        self.listeners.push(Listener { name: "http".to_owned(), address: path });
        if let Some(address) = http.tcp {
            self.add("http.tcp", address, None, self.site.named())?;
        }
        if let Some(address) = http.mtls {
            let own = self.own_svid(parts, http.spiffe_id.clone(), "X.509-SVID of the HTTP listener");
            let clients = SvidClients::new(parts.workloads.clone());
            let config = tls::server_config(own, Some(clients)).map_err(WebError::from)?;
            self.add("http.mtls", address, Some(config), self.site.named())?;
        }
        let Some(endpoint) = &parts.config.bundle_endpoint else { return Ok(()) };
        let certificate: Arc<dyn ResolvesServerCert> = match &endpoint.profile {
            EndpointProfile::Spiffe(id) => {
                self.own_svid(parts, id.clone(), "X.509-SVID of the bundle endpoint")
            }
            EndpointProfile::Web { certificate, key, names } => {
                let files = CertificateFiles::load(certificate, key, names, parts.clock.wall())
                    .map_err(WebError::from)?;
                let (clock, readiness) = (Arc::clone(parts.clock), parts.readiness.clone());
                let follow = Arc::clone(&files).follow(clock, readiness, parts.watch.clone());
                self.tasks.push(Box::pin(follow));
                files
            }
        };
        let config = tls::server_config(certificate, None).map_err(WebError::from)?;
        self.add("bundle_endpoint", endpoint.listen, Some(config), self.site.bundle_endpoint())
    }

    fn add(
        &mut self,
        table: &'static str,
        address: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        app: axum::Router,
    ) -> Result<(), StartError> {
        let failed = |source| WebError::Bind { address, table, source };
        let server = TcpServer::bind(address, tls, app, HttpLimits::default()).map_err(failed)?;
        let address = server.address().map_err(failed)?;
        tracing::info!(%address, table, "listening");
        self.listeners.push(Listener { name: table.to_owned(), address: address.to_string() });
        self.servers.push(server);
        Ok(())
    }

    fn own_svid(
        &mut self,
        parts: &WebParts<'_>,
        spiffe_id: crate::id::SpiffeId,
        concern: &'static str,
    ) -> Arc<OwnSvid> {
        let own = OwnSvid::new(spiffe_id, concern);
        let keep = Arc::clone(&own).keep(
            parts.workloads.clone(),
            parts.authorities.subscribe(),
            Arc::clone(parts.clock),
            parts.readiness.clone(),
            parts.watch.clone(),
        );
        self.tasks.push(Box::pin(keep));
        own
    }
}
