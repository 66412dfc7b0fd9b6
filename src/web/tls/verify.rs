//! Callers by TLS: whoever shows a valid X.509-SVID of our trust domain that was not taken back.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use tokio::sync::watch;

use super::provider;
use crate::trust::TrustSnapshot;
use crate::web::caller::SvidCaller;
use crate::web::der;
use crate::workload::Workloads;

/// Verifies against the trust of the moment of each handshake.
pub struct SvidClients {
    trust: watch::Receiver<Arc<TrustSnapshot>>,
    workloads: Workloads,
    chains: ArcSwapOption<(u64, Arc<dyn ClientCertVerifier>)>,
}

impl std::fmt::Debug for SvidClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SvidClients").finish_non_exhaustive()
    }
}

impl SvidClients {
    /// For those whom `workloads` knows.
    pub fn new(workloads: Workloads) -> Arc<Self> {
        Arc::new(Self { trust: workloads.trust(), workloads, chains: ArcSwapOption::empty() })
    }

    /// Checks chains up to our authorities, with the CRLs in force.
    fn chains(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let trust = self.trust.borrow().clone();
        if let Some(made) = self.chains.load().as_ref().filter(|made| made.0 == trust.generation()) {
            return Ok(Arc::clone(&made.1));
        }
        let mut roots = RootCertStore::empty();
        for authority in der::certificates(trust.x509_bundle()) {
            roots.add(authority)?;
        }
        let crls = trust.crls().iter().map(|crl| CertificateRevocationListDer::from(crl.to_vec()));
        // What no CRL covers is not refused for that: a serial of ours is looked up in memory below, and of an
        // authority elsewhere in the domain we may have no list.
        let made = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .with_crls(crls)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        self.chains.store(Some(Arc::new((trust.generation(), Arc::clone(&made)))));
        Ok(made)
    }
}

impl ClientCertVerifier for SvidClients {
    /// None: SVID clients have one certificate to choose from, and our authorities come and go.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chains()?.verify_client_cert(end_entity, intermediates, now)?;
        let caller =
            SvidCaller::of_leaf(end_entity).ok_or(CertificateError::ApplicationVerificationFailure)?;
        if caller.spiffe_id.trust_domain() != self.trust.borrow().trust_domain() {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        if caller.lease.is_some_and(|lease| self.workloads.is_revoked(lease)) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
