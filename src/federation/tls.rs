//! TLS of a bundle client: TLS 1.2 and 1.3 with the suites of Mozilla's intermediate profile (FED-11), no client
//! certificate (FED-18), no resumption: each fetch proves the server anew.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::clock::from_unix_seconds;
use crate::files::{self, FileError, TrustRules};
use crate::id::SpiffeId;
use crate::verify::{PeerError, RevocationPolicy, Role, Trust};

/// Why no connection can even be tried.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA file is not used.
    #[error("`ca_file` is not used: {0}")]
    CaFile(#[from] FileError),
    /// The CA file has no certificate that can vouch for anybody.
    #[error("`ca_file` {0:?} has no usable certificate")]
    NoCertificate(PathBuf),
    /// The system's store is empty.
    #[error("the system has no CA certificates: install them, or write `ca_file`")]
    NoSystemRoots,
    /// rustls did not take the settings.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// Believes certificates of the Web PKI for the host of the URL. Blocking: reads files.
pub(super) fn web(ca_file: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let text = files::read_trusted(path, &TrustRules::public(MAX_CA_FILE_BYTES))?;
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
            if roots.is_empty() {
                return Err(TlsError::NoCertificate(path.to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
        }
    }
    let setup = |error: &dyn std::error::Error| TlsError::Setup(error.to_string());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    config(verifier.build().map_err(|error| setup(&error))?)
}

/// Believes an X509-SVID of exactly that ID, below these authorities (DER) of its trust domain.
pub(super) fn spiffe(id: SpiffeId, authorities: &[Bytes]) -> Result<ClientConfig, TlsError> {
    let mut trust = Trust::new();
    for der in authorities {
        if let Err(error) = trust.add_authority(id.trust_domain(), der) {
            tracing::debug!(%error, "this one vouches for nobody");
        }
    }
    config(Arc::new(SpiffeServer { id, trust, provider: provider() }))
}

fn config(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| TlsError::Setup(error.to_string()))?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Passed as a value, never installed: nothing else in the process is to be changed by it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// FED-30: a valid X509-SVID with exactly this ID; the host's name says nothing.
#[derive(Debug)]
struct SpiffeServer {
    id: SpiffeId,
    /// Of its own trust domain alone.
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
enum PeerFault {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("the server is {0}, not the configured endpoint")]
    OtherId(SpiffeId),
}

impl SpiffeServer {
    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), PeerFault> {
        let now = from_unix_seconds(now.as_secs());
        // What other trust domains have revoked is not told.
        let peer = self.trust.verify(chain, Role::Server, RevocationPolicy::permissive(), now)?;
        let id = peer.spiffe_id();
        if *id == self.id { Ok(()) } else { Err(PeerFault::OtherId(id.clone())) }
    }
}

impl ServerCertVerifier for SpiffeServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity.clone()).chain(intermediates.iter().cloned()).collect();
        self.check(&chain, now).map_err(|fault| {
            let error = CertificateError::Other(OtherError(Arc::new(fault)));
            rustls::Error::InvalidCertificate(error)
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The words of a handshake that failed; ours where it was we who refused.
pub(super) fn handshake_fault(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(fault)))) => {
            fault.to_string()
        }
        _ => error.to_string(),
    }
}

/// A system's whole store takes some 250 KiB.
const MAX_CA_FILE_BYTES: u64 = 4 << 20;
