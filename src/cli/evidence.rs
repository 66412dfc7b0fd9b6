//! Seen from outside an agent and its workloads: whether a credential is still good.

use bytes::Bytes;
use mayfly_proto::workload::{ValidateJwtsvidRequest, X509BundlesRequest, X509BundlesResponse};
use rustls::pki_types::CertificateDer;
use tonic::Streaming;

use super::client::{Connection, answer};
use super::failure::Failure;
use super::x509::{Crl, read_crl};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;
use crate::id::SpiffeId;
use crate::verify::{PeerError, RevocationPolicy, Role, Trust};

/// An X.509-SVID without its key, and what verifies it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) spiffe_id: String,
    pub(super) serial: String,
    pub(super) not_after: String,
    pub(super) chain: Vec<Bytes>,
    pub(super) bundle: Vec<Bytes>,
}

/// `None` = accepted, else why it is refused.
pub(super) async fn judge(
    connection: &Connection,
    audience: &str,
    token: &str,
) -> Result<Option<String>, Failure> {
    let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() };
    match answer(connection.workload().validate_jwtsvid(request)).await {
        Ok(_) => Ok(None),
        Err(failure) if failure.exit == Exit::Failed => Ok(Some(failure.message)),
        Err(failure) => Err(failure),
    }
}

/// Why a TLS server of the same trust domain that reads the lists refuses this certificate; `None`: it is good.
pub(super) fn judgement(held: &Held, crls: &[Crl]) -> Result<Option<PeerError>, Failure> {
    let odd = |error: &dyn std::error::Error| Failure::failed(error.to_string());
    let id: SpiffeId = held.spiffe_id.parse().map_err(|error| odd(&error))?;
    let mut trust = Trust::new();
    let mut authorities = held.bundle.iter();
    authorities
        .try_for_each(|der| trust.add_authority(id.trust_domain(), der))
        .map_err(|error| odd(&error))?;
    crls.iter().try_for_each(|crl| trust.add_list(&crl.der)).map_err(|error| odd(&error))?;
    let chain: Vec<_> = held.chain.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
    Ok(trust.verify(&chain, Role::Client, RevocationPolicy::strict(), SystemClock.wall()).err())
}

/// The revocation lists as a subscriber of the bundle stream gets them.
pub(super) struct Crls {
    stream: Streaming<X509BundlesResponse>,
    pub(super) now: Vec<Crl>,
}

impl Crls {
    pub(super) async fn open(connection: &Connection) -> Result<Self, Failure> {
        let mut workload = connection.workload();
        let stream = answer(workload.fetch_x509_bundles(X509BundlesRequest {})).await?.into_inner();
        let mut crls = Self { stream, now: Vec::new() };
        crls.next().await?;
        Ok(crls)
    }

    pub(super) async fn next(&mut self) -> Result<(), Failure> {
        let message = self.stream.message().await?;
        let message = message.ok_or_else(|| unseen("a bundle stream that stays open"))?;
        self.now = message.crl.iter().map(read_crl).collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(super) fn with(&self, serial: &str) -> Option<&Crl> {
        self.now.iter().find(|crl| crl.revoked.contains_key(serial))
    }

    pub(super) fn lists(&self, serial: &str) -> bool {
        self.with(serial).is_some()
    }
}

/// A step that did not come.
pub(super) fn unseen(what: &str) -> Failure {
    Failure::failed(format!("not observed: {what}"))
}
