//! Another trust domain, made of nothing of ours: an authority, its bundle documents, and an HTTPS server that
//! answers as it is told.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// An X.509 authority.
pub struct Authority {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    jwk: Value,
}

/// A server's certificate and key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// Certificate chain and key.
    pub fn into_parts(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain, self.key)
    }

    /// Certificate and key as PEM.
    pub fn pem(&self) -> (String, String) {
        (pem("CERTIFICATE", &self.chain[0]), pem("PRIVATE KEY", self.key.secret_der()))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<String> =
        body.as_bytes().chunks(64).map(|l| String::from_utf8_lossy(l).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A self-signed one with a fresh P-256 key.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let point = key.der_bytes().to_vec();
        let (x, y) = point[1..].split_at(32);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "use": "x509-svid",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
            "x5c": [STANDARD.encode(&certificate)],
        });
        Self { certificate, issuer: Issuer::new(params, key), jwk }
    }

    /// An X509-SVID of that ID.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn svid(&self, id: &str) -> Identity {
        self.leaf(|params| {
            params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id).expect("ASCII"))];
        })
    }

    /// A Web PKI server certificate for that name or address.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn server(&self, host: &str) -> Identity {
        self.leaf(|params| {
            params.subject_alt_names = vec![match host.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(Ia5String::try_from(host).expect("ASCII")),
            }];
        })
    }

    /// A leaf with what `change` makes of it.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        Identity { chain: vec![leaf], key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() }
    }

    /// The certificate as PEM.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }
}

/// A SPIFFE bundle document of these authorities, with a refresh hint of an hour: tests say when to fetch.
pub fn document(sequence: u64, authorities: &[&Authority]) -> String {
    let keys: Vec<&Value> = authorities.iter().map(|authority| &authority.jwk).collect();
    json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": 3600 }).to_string()
}

/// How the server answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200 with this body.
    Ok(String),
    /// That status, with nothing.
    Status(u16),
    /// That status, to that place.
    Redirect(u16, String),
    /// These bytes, and an end.
    Raw(Vec<u8>),
    /// 200 and a body that never ends.
    Endless,
    /// Never.
    Silence,
}

/// An HTTPS server on loopback.
#[derive(Debug)]
pub struct Endpoint {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    identity: Identity,
    answer: Answer,
    requests: Vec<String>,
}

impl Endpoint {
    /// Serves on a port of its own until the process ends.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(identity: Identity, answer: Answer) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State { identity, answer, requests: Vec::new() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that goes away is no matter.
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        Self { port, state }
    }

    /// Its URL by address.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/bundle", self.port)
    }

    /// Its URL by that name.
    pub fn url_at(&self, host: &str) -> String {
        format!("https://{host}:{}/bundle", self.port)
    }

    /// Answers so from now on.
    ///
    /// # Panics
    /// When a server thread panicked.
    pub fn answer(&self, answer: Answer) {
        self.state.lock().expect("lock").answer = answer;
    }

    /// Proves itself so from now on.
    ///
    /// # Panics
    /// When a server thread panicked.
    pub fn become_(&self, identity: Identity) {
        self.state.lock().expect("lock").identity = identity;
    }

    /// All requests so far, head and body.
    ///
    /// # Panics
    /// When a server thread panicked.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().expect("lock").requests.clone()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (identity, answer) = {
        let state = state.lock().expect("lock");
        (state.identity.clone(), state.answer.clone())
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .expect("a certificate and its key");
    let connection = ServerConnection::new(Arc::new(config)).expect("a connection");
    let mut tls = StreamOwned::new(connection, stream);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        tls.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let length = text.to_lowercase().split_once("content-length: ").map(|(_, rest)| rest.to_owned());
    let length = length.and_then(|rest| rest.lines().next()?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    tls.read_exact(&mut body)?;
    state.lock().expect("lock").requests.push(text + &String::from_utf8_lossy(&body));
    match answer {
        Answer::Ok(body) => {
            let length = body.len();
            write!(
                tls,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            )?;
        }
        Answer::Status(status) => write!(tls, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n")?,
        Answer::Redirect(status, to) => {
            write!(tls, "HTTP/1.1 {status} x\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")?;
        }
        Answer::Raw(bytes) => tls.write_all(&bytes)?,
        Answer::Endless => {
            write!(tls, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            loop {
                tls.write_all(&[b' '; 16 * 1024])?;
            }
        }
        Answer::Silence => {
            tls.read_exact(&mut byte)?;
        }
    }
    tls.conn.send_close_notify();
    tls.flush()
}
