//! A certificate from files, shown by an `https_web` bundle endpoint: followed as the files change. A pair that
//! cannot be used is never put in the place of one that works.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;
use tokio::time::timeout;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::provider;
use crate::clock::{Clock, from_unix_seconds, unix_seconds};
use crate::drain;
use crate::files::{FileError, TrustRules, read_trusted};
use crate::ready::Readiness;

/// Why a pair of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read, or somebody else could have written or, of the key, read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not PEM, or not what it should be.
    #[error("{path:?} holds no {what} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The two do not belong together, or the key is of a kind that is not known.
    #[error("{path:?} cannot be used: {source}")]
    Key {
        /// The file of the key.
        path: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// Readers would refuse it.
    #[error("{path:?} is not a certificate for `{name}`: readers that were given this name would refuse it")]
    Name {
        /// The file of the certificate.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Its time is over, or has not come.
    #[error("{path:?} is not valid now: {when}")]
    Time {
        /// The file of the certificate.
        path: PathBuf,
        /// What is wrong.
        when: &'static str,
    },
}

/// The pair in force.
#[derive(Debug)]
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    names: Vec<String>,
    current: ArcSwap<CertifiedKey>,
}

impl CertificateFiles {
    /// Reads both. `names` are host names and addresses that the certificate must have. Blocking.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn load(
        certificate: &Path,
        key: &Path,
        names: &[String],
        now: SystemTime,
    ) -> Result<Arc<Self>, FilesError> {
        let current = ArcSwap::from_pointee(read(certificate, key, names, now)?);
        let (certificate, key, names) = (certificate.to_owned(), key.to_owned(), names.to_vec());
        Ok(Arc::new(Self { certificate, key, names, current }))
    }

    /// Reads both again. On an error the earlier pair stays in force. Blocking.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn reload(&self, now: SystemTime) -> Result<(), FilesError> {
        let next = read(&self.certificate, &self.key, &self.names, now)?;
        if next.cert != self.current.load().cert {
            tracing::info!(path = %self.certificate.display(), "the bundle endpoint shows a new certificate");
            self.current.store(Arc::new(next));
        }
        Ok(())
    }

    /// Reloads whenever something changes beside the files, and once a day for the certificate's own end, until
    /// the drain starts.
    pub async fn follow(
        self: Arc<Self>,
        clock: Arc<dyn Clock>,
        readiness: Readiness,
        mut watch: drain::Watch,
    ) {
        let (sender, mut changes) = mpsc::channel(1);
        let watching = self.watch(sender);
        if let Err(error) = &watching {
            readiness.raise(CONCERN, format!("cannot be followed, only looked at now and then: {error}"));
        }
        loop {
            tokio::select! {
                Some(()) = changes.recv() => {
                    // Both files are written one after the other.
                    let more = async { while changes.recv().await.is_some() {} };
                    timeout(SETTLE, more).await.ok();
                }
                () = tokio::time::sleep(LOOK) => {}
                () = watch.stopping() => return,
            }
            let (files, now) = (Arc::clone(&self), clock.wall());
            match tokio::task::spawn_blocking(move || files.reload(now)).await {
                Ok(Ok(())) => readiness.clear(CONCERN),
                Ok(Err(error)) => readiness.raise(CONCERN, format!("{error}; the earlier one is shown")),
                Err(_stopping) => return,
            }
        }
    }

    /// Tells of everything in the directories of the two files: a file may be replaced by a rename, or be a
    /// link that is set to another place.
    fn watch(&self, sender: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            // Full means that a notice is waiting already.
            sender.try_send(()).ok();
        })?;
        for file in [&self.certificate, &self.key] {
            if let Some(directory) = file.parent() {
                watcher.watch(directory, RecursiveMode::NonRecursive)?;
            }
        }
        Ok(watcher)
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn read(
    certificate: &Path,
    key: &Path,
    names: &[String],
    now: SystemTime,
) -> Result<CertifiedKey, FilesError> {
    let not_pem = |path: &Path, what| FilesError::Pem { path: path.to_owned(), what };
    let text = read_trusted(certificate, &TrustRules::public(MAX_BYTES))?;
    let chain: Option<Vec<_>> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().ok();
    let chain = chain.filter(|chain: &Vec<_>| !chain.is_empty());
    let chain = chain.ok_or_else(|| not_pem(certificate, "certificate"))?;
    let text = Zeroizing::new(read_trusted(key, &TrustRules::private(MAX_BYTES))?);
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|_error| not_pem(key, "private key"))?;
    check(certificate, chain.first(), names, now)?;
    CertifiedKey::from_der(chain, private, &provider())
        .map_err(|source| FilesError::Key { path: key.to_owned(), source })
}

/// That readers will take the leaf (Federation §5.2.1.3).
fn check(
    path: &Path,
    leaf: Option<&CertificateDer<'static>>,
    names: &[String],
    now: SystemTime,
) -> Result<(), FilesError> {
    let not_one = || FilesError::Pem { path: path.to_owned(), what: "certificate" };
    let leaf = leaf.ok_or_else(not_one)?;
    let end_entity = webpki::EndEntityCert::try_from(leaf).map_err(|_error| not_one())?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_error| not_one())?;
    let at = |seconds: i64| from_unix_seconds(u64::try_from(seconds).unwrap_or_default());
    let time = |when| Err(FilesError::Time { path: path.to_owned(), when });
    let now = from_unix_seconds(unix_seconds(now));
    if at(parsed.validity().not_after.timestamp()) < now {
        return time("it has expired");
    }
    if at(parsed.validity().not_before.timestamp()) > now {
        return time("its time has not come");
    }
    for name in names {
        let fits = ServerName::try_from(name.as_str())
            .is_ok_and(|name| end_entity.verify_is_valid_for_subject_name(&name).is_ok());
        if !fits {
            return Err(FilesError::Name { path: path.to_owned(), name: name.clone() });
        }
    }
    Ok(())
}

const CONCERN: &str = "bundle endpoint's certificate";
const MAX_BYTES: u64 = 1 << 20;
const SETTLE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_secs(86_400);
