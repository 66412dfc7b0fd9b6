//! Stock verifiers that judge while authorities rotate: OpenSSL, the crate `spiffe`, `spiffe` for Python. None of
//! them is told what to expect; each says how much it verified, what failed, and which authorities it knows.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mayfly_harness::peers;
use mayfly_harness::pki::{Case, openssl_judge, subject_key_ids};
use serde_json::Value;
use spiffe::{JwtSource, JwtSvid, TrustDomain, X509Source};

use crate::mtls::{source, talk};
use crate::support::own_uid;

/// What one judge has to say.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    x509: AtomicUsize,
    tokens: AtomicUsize,
    /// Replaced while it was looked at: no verdict.
    superseded: AtomicUsize,
    failures: Mutex<Vec<String>>,
    knows: Mutex<BTreeSet<String>>,
}

impl Tally {
    pub(crate) fn x509(&self) -> usize {
        self.x509.load(Ordering::Acquire)
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens.load(Ordering::Acquire)
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// Whether all these authorities are in the bundles that it has now.
    pub(crate) fn knows(&self, authorities: &[String]) -> bool {
        let knows = self.knows.lock().unwrap();
        authorities.iter().all(|one| knows.contains(one))
    }

    fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }
}

/// OpenSSL judges every case until there are no more.
pub(crate) fn openssl(scratch: &Path, cases: &Receiver<Case>, tally: &Tally) {
    for case in cases {
        match openssl_judge(scratch, &case) {
            Ok(()) => drop(tally.x509.fetch_add(1, Ordering::AcqRel)),
            Err(why) => tally.fail(why),
        }
    }
}

/// The crate `spiffe`, with `spiffe-rustls` for handshakes: until told to stop.
pub(crate) fn crate_spiffe(socket: &Path, stop: &AtomicBool, tally: &Tally) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let x509 = source(socket).await;
        let jwt = JwtSource::builder().endpoint(format!("unix:{}", socket.display())).build().await.unwrap();
        let mut kids = BTreeSet::new();
        while !stop.load(Ordering::Acquire) {
            handshake(&x509, tally).await;
            token(&jwt, &mut kids, tally).await;
            let mut knows = kids_of(&jwt);
            knows.extend(anchors_of(&x509));
            *tally.knows.lock().unwrap() = knows;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        x509.shutdown().await;
        jwt.shutdown().await;
    });
}

/// A peer with the same SVID and the same bundle: one handshake. It counts only when neither changed meanwhile.
async fn handshake(source: &X509Source, tally: &Tally) {
    let id = format!("spiffe://example.org/uid/{}", own_uid());
    let Ok(before) = source.x509_context() else { return };
    let verdict = talk(source, source, (&id, &id)).await;
    let is_same = source.x509_context().is_ok_and(|after| Arc::ptr_eq(&before, &after));
    match verdict {
        Ok(()) => drop(tally.x509.fetch_add(1, Ordering::AcqRel)),
        Err(_) if !is_same => drop(tally.superseded.fetch_add(1, Ordering::AcqRel)),
        Err(why) => tally.fail(format!("crate spiffe, handshake: {why}")),
    }
}

/// A token and the key set beside it. One whose key was there and has gone since was revoked on the way.
async fn token(source: &JwtSource, known: &mut BTreeSet<String>, tally: &Tally) {
    known.extend(kids_of(source));
    // A killed agent gives none.
    let Ok(token) = source.fetch_jwt_svid(["interop"]).await else { return };
    let Ok(bundles) = source.bundle_set() else { return };
    let verdict = JwtSvid::parse_and_validate(token.token(), bundles.as_ref(), &["interop"]);
    let now = kids_of(source);
    match verdict {
        Ok(_) => drop(tally.tokens.fetch_add(1, Ordering::AcqRel)),
        Err(_) if known.contains(token.key_id()) && !now.contains(token.key_id()) => {
            tally.superseded.fetch_add(1, Ordering::AcqRel);
        }
        Err(why) => tally.fail(format!("crate spiffe, token: {why}")),
    }
}

fn kids_of(source: &JwtSource) -> BTreeSet<String> {
    let domain = TrustDomain::new("example.org").unwrap();
    let bundle = source.bundle_set().ok().and_then(|set| set.get(&domain));
    bundle.iter().flat_map(|one| one.jwt_authorities()).map(|key| key.key_id().to_owned()).collect()
}

fn anchors_of(source: &X509Source) -> BTreeSet<String> {
    let domain = TrustDomain::new("example.org").unwrap();
    let bundle = source.bundle_set().ok().and_then(|set| set.get(&domain));
    bundle.iter().flat_map(|one| one.authorities()).flat_map(|der| subject_key_ids(der.as_ref())).collect()
}

/// `spiffe` for Python, in a process of its own that ends with this value.
#[derive(Debug)]
pub(crate) struct PySpiffe(Child);

impl PySpiffe {
    pub(crate) fn start(socket: &Path, tally: &Arc<Tally>) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/rotation_judge.py");
        let mut child = Command::new(peers::python())
            .arg(program)
            .arg(socket)
            .arg(format!("spiffe://example.org/uid/{}", own_uid()))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start Python");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let tally = Arc::clone(tally);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                take(&line, &tally);
            }
        });
        Self(child)
    }

    /// Ends it when it has said its last.
    pub(crate) fn stop(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("wait");
        assert!(status.success(), "the judge ended with {status}");
    }
}

impl Drop for PySpiffe {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn take(line: &str, tally: &Tally) {
    let Ok(said) = serde_json::from_str::<Value>(line) else {
        return tally.fail(format!("the judge in Python: {line}"));
    };
    let count = |name: &str| usize::try_from(said[name].as_u64().unwrap_or(0)).unwrap();
    tally.x509.store(count("x509"), Ordering::Release);
    tally.tokens.store(count("tokens"), Ordering::Release);
    tally.superseded.store(count("superseded"), Ordering::Release);
    let texts = |name: &str| -> Vec<String> {
        let list = said[name].as_array().cloned().unwrap_or_default();
        list.iter().map(|one| one.as_str().unwrap_or_default().to_owned()).collect()
    };
    *tally.failures.lock().unwrap() = texts("failures");
    *tally.knows.lock().unwrap() = texts("knows").into_iter().collect();
}
