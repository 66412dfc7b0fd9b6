//! The agent's own X.509-SVID, shown to whoever connects. It is minted like every other, written down before it is
//! shown, and its key never leaves memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::authority::AuthoritySet;
use crate::clock::Clock;
use crate::drain;
use crate::id::SpiffeId;
use crate::issue::x509::X509Svid;
use crate::ready::Readiness;
use crate::web::der;
use crate::workload::Workloads;

/// The SVID in force. Nothing is shown before the first was minted: handshakes fail until then.
#[derive(Debug)]
pub struct OwnSvid {
    spiffe_id: SpiffeId,
    concern: &'static str,
    current: ArcSwapOption<CertifiedKey>,
}

impl OwnSvid {
    /// For that identity; trouble goes under the name `concern`.
    pub fn new(spiffe_id: SpiffeId, concern: &'static str) -> Arc<Self> {
        Arc::new(Self { spiffe_id, concern, current: ArcSwapOption::empty() })
    }

    /// Mints, renews at half of the lifetime and whenever another authority signs, until the drain starts.
    pub async fn keep(
        self: Arc<Self>,
        workloads: Workloads,
        mut authorities: watch::Receiver<Arc<AuthoritySet>>,
        clock: Arc<dyn Clock>,
        readiness: Readiness,
        mut watch: drain::Watch,
    ) {
        loop {
            let signs_now = authorities.borrow_and_update().active_x509().key_id();
            let again = match self.renew(&workloads).await {
                Ok(until) => {
                    readiness.clear(self.concern);
                    half_of(until, clock.wall())
                }
                Err(why) => {
                    readiness.raise(self.concern, why);
                    RETRY
                }
            };
            let other_signs = async {
                while authorities.changed().await.is_ok() {
                    if authorities.borrow_and_update().active_x509().key_id() != signs_now {
                        return;
                    }
                }
                std::future::pending().await
            };
            tokio::select! {
                () = tokio::time::sleep(again) => {}
                () = other_signs => {}
                () = watch.stopping() => return,
            }
        }
    }

    async fn renew(&self, workloads: &Workloads) -> Result<SystemTime, String> {
        let svid = workloads.issue_own(&self.spiffe_id).await.map_err(|refusal| refusal.to_string())?;
        let until = svid.not_after;
        self.current.store(Some(Arc::new(certified(&svid).map_err(|error| error.to_string())?)));
        Ok(until)
    }
}

impl ResolvesServerCert for OwnSvid {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

fn certified(svid: &X509Svid) -> Result<CertifiedKey, rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.expose()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(der::certificates(&svid.chain), key))
}

fn half_of(until: SystemTime, now: SystemTime) -> Duration {
    (until.duration_since(now).unwrap_or_default() / 2).max(RETRY)
}

const RETRY: Duration = Duration::from_secs(1);
