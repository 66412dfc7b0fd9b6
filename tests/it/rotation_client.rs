//! A client that believes nothing: whatever it receives it verifies against the bundle beside it, against the bundle
//! stream as it last saw it, and against its CRLs at the strictest.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mayfly_harness::pki::{Case, split};
use mayfly_harness::wire::channel;
use mayfly_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use mayfly_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use tonic::Code;
use tonic::transport::Channel;
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};

const DOMAIN: &str = "spiffe://example.org";

/// What was seen, in all connections together.
#[derive(Debug)]
pub(crate) struct Counts {
    epoch: AtomicUsize,
    under_way: AtomicBool,
    x509: AtomicUsize,
    tokens: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// Whatever is verified here, for another judge.
    cases: Mutex<Option<Sender<Case>>>,
}

impl Counts {
    pub(crate) fn new(cases: Sender<Case>) -> Self {
        Self {
            epoch: AtomicUsize::default(),
            under_way: AtomicBool::default(),
            x509: AtomicUsize::default(),
            tokens: AtomicUsize::default(),
            failures: Mutex::default(),
            cases: Mutex::new(Some(cases)),
        }
    }

    /// The other judge has had the last case.
    pub(crate) fn no_more(&self) {
        self.cases.lock().unwrap().take();
    }

    /// Full chain, at the strictest, here and by the other judge.
    fn judge(&self, what: &str, chain: &[u8], bundle: &[u8], crls: &[Vec<u8>]) {
        #[expect(clippy::disallowed_methods, reason = "a verifier has its own clock")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        if let Err(why) = verify(chain, bundle, crls, now) {
            self.fail(format!("{what}: {why}"));
        }
        let (chain, bundle, crls) = (chain.to_vec(), bundle.to_vec(), crls.to_vec());
        if let Some(cases) = self.cases.lock().unwrap().as_ref() {
            cases.send(Case { chain, bundle, crls, at: Some(now.as_secs()) }).unwrap();
        }
    }

    /// Counts connections.
    pub(crate) fn epoch(&self) -> usize {
        if self.is_under_way() { self.epoch.load(Ordering::Acquire) } else { 0 }
    }

    /// Whether the present connection has seen one of each.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    pub(crate) fn x509(&self) -> usize {
        self.x509.load(Ordering::Acquire)
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens.load(Ordering::Acquire)
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// A killed agent ends calls; it must not refuse them.
    fn end(&self, status: &tonic::Status) {
        if matches!(status.code(), Code::ResourceExhausted | Code::PermissionDenied | Code::InvalidArgument) {
            self.fail(format!("refused: {status:?}"));
        }
    }

    fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }
}

/// What the streams last said.
#[derive(Default)]
struct Seen {
    bundle: Option<(Vec<u8>, Vec<Vec<u8>>)>,
    jwks: Option<Value>,
    svid: Option<Vec<u8>>,
}

/// Connects again and again until told to stop.
pub(crate) fn follow(socket: &Path, stop: &AtomicBool, counts: &Counts) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // The streams' last words are remembered over connections: an old verifier is a verifier.
        let seen = Mutex::new(Seen::default());
        while !stop.load(Ordering::Acquire) {
            counts.under_way.store(false, Ordering::Release);
            if let Ok(client) = connect(socket).await {
                counts.epoch.fetch_add(1, Ordering::AcqRel);
                let told = async {
                    while !stop.load(Ordering::Acquire) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                // Whichever ends first ends all: the agent is gone.
                tokio::select! {
                    () = svids(client.clone(), &seen, counts) => {}
                    () = bundles(client.clone(), &seen, counts) => {}
                    () = jwt_bundles(client.clone(), &seen) => {}
                    () = tokens(client, &seen, counts) => {}
                    () = told => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

async fn connect(socket: &Path) -> Result<SpiffeWorkloadApiClient<Channel>, tonic::transport::Error> {
    Ok(SpiffeWorkloadApiClient::new(channel(socket).await?))
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn svids(mut client: SpiffeWorkloadApiClient<Channel>, seen: &Mutex<Seen>, counts: &Counts) {
    let stream = match client.fetch_x509svid(request(X509svidRequest {})).await {
        Ok(stream) => stream,
        Err(status) => return counts.end(&status),
    };
    let mut stream = stream.into_inner();
    while let Ok(Some(message)) = stream.message().await {
        let X509svidResponse { svids, crl, .. } = message;
        let crls: Vec<Vec<u8>> = crl.iter().map(|one| one.to_vec()).collect();
        for svid in svids {
            counts.x509.fetch_add(1, Ordering::AcqRel);
            counts.judge("against the bundle beside it", &svid.x509_svid, &svid.bundle, &crls);
            let mut seen = seen.lock().unwrap();
            if let Some((bundle, crls)) = &seen.bundle {
                counts.judge("against the bundle stream", &svid.x509_svid, bundle, crls);
            }
            seen.svid = Some(svid.x509_svid.to_vec());
        }
    }
}

async fn bundles(mut client: SpiffeWorkloadApiClient<Channel>, seen: &Mutex<Seen>, counts: &Counts) {
    let Ok(stream) = client.fetch_x509_bundles(request(X509BundlesRequest {})).await else { return };
    let mut stream = stream.into_inner();
    let mut first = true;
    while let Ok(Some(message)) = stream.message().await {
        let crls: Vec<Vec<u8>> = message.crl.iter().map(|one| one.to_vec()).collect();
        let bundle = message.bundles[DOMAIN].to_vec();
        let mut seen = seen.lock().unwrap();
        // What this process holds must stay good. (Just after a new connection it may hold what was revoked when the
        // agent came back.)
        if let Some(svid) = seen.svid.as_ref().filter(|_| !first) {
            counts.judge("the SVID in use against a new bundle", svid, &bundle, &crls);
        }
        first = false;
        seen.bundle = Some((bundle, crls));
    }
}

async fn jwt_bundles(mut client: SpiffeWorkloadApiClient<Channel>, seen: &Mutex<Seen>) {
    let Ok(stream) = client.fetch_jwt_bundles(request(JwtBundlesRequest {})).await else { return };
    let mut stream = stream.into_inner();
    while let Ok(Some(message)) = stream.message().await {
        seen.lock().unwrap().jwks = serde_json::from_slice(&message.bundles[DOMAIN]).ok();
    }
}

async fn tokens(mut client: SpiffeWorkloadApiClient<Channel>, seen: &Mutex<Seen>, counts: &Counts) {
    // Not one moment later than it can: the last key set may be from the run before.
    loop {
        let asked = JwtsvidRequest { audience: vec!["aud".to_owned()], ..JwtsvidRequest::default() };
        let answer = match client.fetch_jwtsvid(request(asked)).await {
            Ok(answer) => answer,
            Err(status) => return counts.end(&status),
        };
        for svid in answer.into_inner().svids {
            counts.tokens.fetch_add(1, Ordering::AcqRel);
            let checked = seen.lock().unwrap().jwks.as_ref().map(|jwks| token(&svid.svid, jwks));
            match checked {
                Some(Err(why)) => counts.fail(format!("a token: {why}")),
                Some(Ok(())) if counts.x509() > 0 => counts.under_way.store(true, Ordering::Release),
                _ => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn token(text: &str, jwks: &Value) -> Result<(), String> {
    let header = jsonwebtoken::decode_header(text).map_err(|error| error.to_string())?;
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(jwks.clone()).map_err(|e| e.to_string())?;
    let kid = header.kid.ok_or("no kid")?;
    let key = set.find(&kid).ok_or_else(|| format!("the key set lacks {kid}"))?;
    let key = jsonwebtoken::DecodingKey::from_jwk(key).map_err(|error| error.to_string())?;
    let mut rules = jsonwebtoken::Validation::new(header.alg);
    rules.set_audience(&["aud"]);
    jsonwebtoken::decode::<Value>(text, &key, &rules).map(drop).map_err(|error| error.to_string())
}

/// Full chain, unknown status refused, `nextUpdate` enforced.
fn verify(chain: &[u8], bundle: &[u8], crls: &[Vec<u8>], now: Duration) -> Result<(), String> {
    let certificates = |ders| -> Vec<_> { split(ders).into_iter().map(CertificateDer::from).collect() };
    let (chain, roots) = (certificates(chain), certificates(bundle));
    let anchors: Vec<_> = roots.iter().map(|root| anchor_from_trusted_cert(root).unwrap()).collect();
    let crls: Vec<_> =
        crls.iter().map(|der| OwnedCertRevocationList::from_der(der).unwrap().into()).collect();
    let crls: Vec<_> = crls.iter().collect();
    let options = RevocationOptionsBuilder::new(&crls).map_err(|_none| "no CRL at all")?;
    let options = options
        .with_depth(RevocationCheckDepth::Chain)
        .with_status_policy(UnknownStatusPolicy::Deny)
        .with_expiration_policy(ExpirationPolicy::Enforce)
        .build();
    EndEntityCert::try_from(&chain[0])
        .and_then(|leaf| {
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &chain[1..],
                UnixTime::since_unix_epoch(now),
                KeyUsage::client_auth(),
                Some(options),
                None,
            )
            .map(drop)
        })
        .map_err(|error| format!("{error:?}"))
}
