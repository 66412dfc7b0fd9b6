//! TLS of the TCP listeners: what is spoken, what we show, and whom we let in.
//!
//! Versions and suites are those of Mozilla's *intermediate* profile, as rustls has them (Federation §5): TLS 1.3
//! and 1.2, ephemeral keys and authenticated encryption only. No session is ever resumed: a resumed one would
//! skip the look at certificates and CRLs.

mod files;
mod own;
mod verify;

use std::sync::{Arc, LazyLock};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};

pub use self::files::{CertificateFiles, FilesError};
pub use self::own::OwnSvid;
pub use self::verify::SvidClients;

/// A configuration that shows what `certificate` says at the time of each handshake. Without `clients` nobody is
/// asked for a certificate (Federation §5.2).
///
/// # Errors
/// When rustls refuses the protocol versions: our mistake.
pub fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&versions)?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fed11_only_ephemeral_keys_and_authenticated_encryption() {
        for suite in &provider().cipher_suites {
            let name = format!("{:?}", suite.suite());
            let modern = name.starts_with("TLS13_") || name.starts_with("TLS_ECDHE_");
            assert!(modern && (name.contains("GCM") || name.contains("CHACHA20")), "{name}");
        }
    }
}
