//! rustls configurations whose every handshake asks a [`Source`].
//!
//! TLS 1.3 only, both sides authenticated, no session resumption: a resumed session skips the certificate, and
//! with it the revocation list. Host names mean nothing; the peer's SPIFFE ID does.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};

use super::authorize::Authorizer;
use super::source::Source;
use super::trust::{PeerError, Role};

impl Source {
    /// A server that shows our certificate and wants one of a peer that `authorizer` allows. To set what is yours to
    /// choose, such as ALPN, take it out of the `Arc`: `let mut config = Arc::unwrap_or_clone(config);`. Leave session
    /// resumption off: a resumed session skips the certificate.
    ///
    /// # Errors
    /// rustls's, when the crypto provider lacks TLS 1.3; ours does not.
    pub fn server_config(&self, authorizer: Authorizer) -> Result<Arc<ServerConfig>, Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(self.verifier(authorizer)))
            .with_cert_resolver(Arc::new(Presenter(self.clone())));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }

    /// A client that shows our certificate and speaks to a peer that `authorizer` allows. The server name it is
    /// given decides about SNI and nothing else.
    ///
    /// # Errors
    /// As [`Source::server_config`].
    pub fn client_config(&self, authorizer: Authorizer) -> Result<Arc<ClientConfig>, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.verifier(authorizer)))
            .with_client_cert_resolver(Arc::new(Presenter(self.clone())));
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Arc::new(config))
    }

    /// For a configuration of your own: implements both of rustls's verifier traits. Switch session resumption
    /// off wherever you use it.
    pub fn verifier(&self, authorizer: Authorizer) -> Verifier {
        let algorithms = default_provider().signature_verification_algorithms;
        Verifier { source: self.clone(), authorizer, algorithms }
    }
}

/// Verifies peers, servers and clients alike, by their SPIFFE ID.
pub struct Verifier {
    source: Source,
    authorizer: Authorizer,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn verify(&self, end: &CertificateDer<'_>, rest: &[CertificateDer<'_>], role: Role) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> = [end].into_iter().chain(rest).cloned().collect();
        self.source.verify(&chain, role, &self.authorizer).map(drop).map_err(Error::from)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("authorizer", &self.authorizer).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, Role::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// None: which authority a client should show a certificate of is the client's to know.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, Role::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Shows our certificate, if we have one at that moment.
struct Presenter(Source);

impl fmt::Debug for Presenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Presenter")
    }
}

impl Presenter {
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.0.current().identity.as_ref().map(super::Identity::certified)
    }
}

impl ResolvesServerCert for Presenter {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for Presenter {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified().filter(|certified| certified.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        self.0.current().identity.is_some()
    }
}

/// The alert the peer gets is the one RFC 8446 has for its case; the words stay here.
impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        let known = match &error {
            PeerError::Nobody => return Self::NoCertificatesPresented,
            PeerError::Revoked { .. } => CertificateError::Revoked,
            PeerError::Unknown(_) => CertificateError::UnknownRevocationStatus,
            PeerError::Expired(_) => CertificateError::ExpiredRevocationList,
            PeerError::TrustDomain(_) | PeerError::Path { why: webpki::Error::UnknownIssuer, .. } => {
                CertificateError::UnknownIssuer
            }
            PeerError::Path { why: webpki::Error::CertExpired { .. }, .. } => CertificateError::Expired,
            PeerError::NotAuthorized(_) => CertificateError::ApplicationVerificationFailure,
            PeerError::Leaf(_) | PeerError::Path { .. } | PeerError::Forged(_) => {
                CertificateError::Other(OtherError(Arc::new(error)))
            }
        };
        Self::InvalidCertificate(known)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use rustls::{ClientConnection, ServerConnection};

    use super::super::testing::{Authority, Issued, List};
    use super::super::{Identity, RevocationPolicy, State, Trust};
    use super::*;
    use crate::secret::KeyBytes;

    fn source(authority: &Authority, own: &Issued, lists: &[Vec<u8>]) -> Source {
        let source = Source::new(RevocationPolicy::strict());
        publish(&source, authority, own, lists);
        source
    }

    fn publish(source: &Source, authority: &Authority, own: &Issued, lists: &[Vec<u8>]) -> usize {
        let mut trust = Trust::new();
        trust.add_authority(&"example.org".parse().expect("name"), authority.der()).expect("authority");
        lists.iter().for_each(|list| trust.add_list(list).expect("list"));
        let identity = Identity::new(&[&own.der], &KeyBytes::new(own.key.clone())).expect("identity");
        source.publish(State { identity: Some(identity), trust: Arc::new(trust) })
    }

    struct Pair {
        client: ClientConnection,
        server: ServerConnection,
    }

    /// A handshake in memory; the error is the first that either side met.
    fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Pair, Error> {
        let name = "anything.invalid".try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::clone(client), name)?;
        let mut server = ServerConnection::new(Arc::clone(server))?;
        for _ in 0..4 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).expect("memory");
            server.read_tls(&mut &wire[..]).expect("memory");
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).expect("memory");
            client.read_tls(&mut &wire[..]).expect("memory");
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(Pair { client, server })
    }

    fn anyone() -> Authorizer {
        Authorizer::member_of("example.org".parse().expect("name"))
    }

    fn between(client: &Source, server: &Source) -> Result<Pair, Error> {
        let (client, server) = (client.client_config(anyone())?, server.server_config(anyone())?);
        shake(&client, &server)
    }

    #[test]
    fn both_sides_know_each_other_and_nothing_is_resumed() {
        let authority = Authority::new("example.org");
        let lists = [authority.crl(&List::of(&[], 1))];
        let client = source(&authority, &authority.leaf("spiffe://example.org/c"), &lists);
        let server = source(&authority, &authority.leaf("spiffe://example.org/s"), &lists);
        let (client_config, server_config) = (
            client.client_config(anyone()).expect("config"),
            server.server_config(anyone()).expect("config"),
        );
        for _ in 0..2 {
            let mut pair = shake(&client_config, &server_config).expect("handshake");
            let live = server.admit(pair.server.peer_certificates(), Role::Client, &anyone()).expect("live");
            assert_eq!(live.peer().spiffe_id().as_str(), "spiffe://example.org/c");
            let live = client.admit(pair.client.peer_certificates(), Role::Server, &anyone()).expect("live");
            assert_eq!(live.peer().spiffe_id().as_str(), "spiffe://example.org/s");
            let full = Some(rustls::HandshakeKind::Full);
            assert_eq!((pair.client.handshake_kind(), pair.server.handshake_kind()), (full, full), "INT-14");
            pair.client.writer().write_all(b"hello").expect("memory");
            let mut wire = Vec::new();
            pair.client.write_tls(&mut wire).expect("memory");
            pair.server.read_tls(&mut &wire[..]).expect("memory");
            pair.server.process_new_packets().expect("good");
            let mut said = [0; 5];
            pair.server.reader().read_exact(&mut said).expect("there");
            assert_eq!(&said, b"hello");
        }
    }

    #[test]
    fn a_revoked_client_and_a_revoked_server_are_refused_in_the_next_handshake() {
        let authority = Authority::new("example.org");
        let (c, s) = (authority.leaf("spiffe://example.org/c"), authority.leaf("spiffe://example.org/s"));
        let lists = [authority.crl(&List::of(&[], 1))];
        let (client, server) = (source(&authority, &c, &lists), source(&authority, &s, &lists));
        let (client_config, server_config) = (
            client.client_config(anyone()).expect("config"),
            server.server_config(anyone()).expect("config"),
        );
        shake(&client_config, &server_config).expect("good before");
        let revoked = Error::InvalidCertificate(CertificateError::Revoked);
        publish(&server, &authority, &s, &[authority.crl(&List::of(&[&c.serial], 2))]);
        assert_eq!(shake(&client_config, &server_config).err(), Some(revoked.clone()));
        publish(&server, &authority, &s, &lists);
        publish(&client, &authority, &c, &[authority.crl(&List::of(&[&s.serial], 2))]);
        assert_eq!(shake(&client_config, &server_config).err(), Some(revoked));
    }

    #[test]
    fn who_is_not_authorised_is_refused_although_known() {
        let authority = Authority::new("example.org");
        let lists = [authority.crl(&List::of(&[], 1))];
        let client = source(&authority, &authority.leaf("spiffe://example.org/c"), &lists);
        let server = source(&authority, &authority.leaf("spiffe://example.org/s"), &lists);
        let only = Authorizer::exactly("spiffe://example.org/other".parse().expect("an ID"));
        let refused = Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        let config = |source: &Source| source.client_config(anyone()).expect("config");
        let strict = server.server_config(only.clone()).expect("config");
        assert_eq!(shake(&config(&client), &strict).err(), refused);
        let strict = client.client_config(only).expect("config");
        assert_eq!(shake(&strict, &server.server_config(anyone()).expect("config")).err(), refused);
    }

    #[test]
    fn without_an_identity_there_is_no_handshake() {
        let authority = Authority::new("example.org");
        let lists = [authority.crl(&List::of(&[], 1))];
        let client = source(&authority, &authority.leaf("spiffe://example.org/c"), &lists);
        let server = source(&authority, &authority.leaf("spiffe://example.org/s"), &lists);
        between(&client, &server).expect("good before");
        server.withdraw();
        assert!(between(&client, &server).is_err(), "a server without a certificate");
        let server = source(&authority, &authority.leaf("spiffe://example.org/s"), &lists);
        client.withdraw();
        assert_eq!(between(&client, &server).err(), Some(Error::NoCertificatesPresented));
    }

    #[test]
    fn a_live_connection_is_cut_by_the_publication_that_revokes_it() {
        let authority = Authority::new("example.org");
        let (c, s) = (authority.leaf("spiffe://example.org/c"), authority.leaf("spiffe://example.org/s"));
        let lists = [authority.crl(&List::of(&[], 1))];
        let (client, server) = (source(&authority, &c, &lists), source(&authority, &s, &lists));
        let pair = between(&client, &server).expect("good");
        let live = server.admit(pair.server.peer_certificates(), Role::Client, &anyone()).expect("live");
        assert_eq!(publish(&server, &authority, &s, &lists), 0, "a rotation cuts nobody");
        assert_eq!(publish(&server, &authority, &s, &[authority.crl(&List::of(&[&c.serial], 2))]), 1);
        assert!(live.is_ended());
    }
}
