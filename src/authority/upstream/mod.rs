//! Signing under somebody else's root: the upstream signs the certificate of this node's key, and this node signs
//! leaves.
//!
//! The trait has the shape of the request forms there are: SPIRE's `NewDownstreamX509CA` (request, wished lifetime;
//! chain, roots), Vault's `sign-intermediate` (request, name, URI, lifetime; certificate, chain), cert-manager's
//! `CertificateRequest` (request, `isCA`, duration; certificate, `ca`). An upstream may block, be slow, wrong or
//! gone. It is therefore called on a thread of its own, for which the keeper waits a limited time, and what it
//! answers is checked before anybody sees it.

mod check;
mod disk;
mod revoked;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use self::check::AnswerFault;
pub(super) use self::check::{Asked, check_crls, check_signed, crl_issuer, crl_order, is_by_any};
pub use self::disk::{DiskPaths, DiskUpstream};
use crate::files::FileError;
use crate::id::TrustDomain;

/// What an upstream is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The request, PKCS#10 DER: subject, the trust domain's ID as the one URI, CA with path length 0.
    pub csr: Bytes,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// How long the certificate is to be valid.
    pub ttl: Duration,
    /// The time.
    pub now: SystemTime,
    /// The last CRLs of authorities above ours that were taken from it, DER: whoever signs CRLs itself goes on
    /// after their numbers and dates.
    pub crls: Vec<Bytes>,
}

/// A certificate, and what is needed to believe it. All DER.
#[derive(Clone, Debug, Default)]
pub struct Signed {
    /// The certificate of the node's key, then those above it short of the root. The root itself may be there too,
    /// and certificates may be there twice (Vault).
    pub chain: Vec<Bytes>,
    /// The roots of the trust domain, at least the one that the chain leads to.
    pub roots: Vec<Bytes>,
    /// The CRL of each authority in the chain and of the root; none where the upstream has none.
    pub parent_crls: Vec<Bytes>,
}

/// What an upstream publishes at the moment.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// The roots it signs under, DER.
    pub roots: Vec<Bytes>,
    /// The CRLs of its authorities, DER.
    pub parent_crls: Vec<Bytes>,
    /// What is amiss although it goes on.
    pub remark: Option<String>,
}

/// Signs the certificate of this node's key.
pub trait Upstream: fmt::Debug + Send + Sync {
    /// Signs.
    ///
    /// # Errors
    /// [`UpstreamError`]; it is asked again, later and later.
    fn sign(&self, wanted: &Wanted) -> Result<Signed, UpstreamError>;

    /// What it publishes now. Asked every few seconds. `crls` as in [`Wanted::crls`].
    ///
    /// # Errors
    /// [`UpstreamError`]; what it published before stays in force.
    fn offer(&self, crls: &[Bytes], now: SystemTime) -> Result<Offer, UpstreamError>;

    /// Names a certificate that it signed in its CRL from now on, as far as it lets us. `serial` is big-endian.
    ///
    /// # Errors
    /// [`UpstreamError`]; it is asked again.
    fn revoke(&self, serial: &[u8], now: SystemTime) -> Result<(), UpstreamError>;
}

/// Why an upstream gave nothing. The text tells the operator what to do.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A file of the upstream's cannot be read, or others could have written it.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is there cannot be used.
    #[error("{place}: {why}")]
    Unusable {
        /// What.
        place: String,
        /// What is wrong, and the way out.
        why: String,
    },
    /// It cannot be reached, or said no.
    #[error("the upstream does not answer: {0}")]
    Gone(String),
    /// It took too long.
    #[error("the upstream has not answered within {} s", .0.as_secs_f32())]
    Slow(Duration),
    /// It has not answered the question before.
    #[error("the upstream has still not answered an earlier question")]
    Busy,
    /// It answered something that must not be used.
    #[error("the upstream's answer cannot be used: {0}")]
    Answer(#[from] AnswerFault),
}

/// An upstream that is waited for a limited time.
#[derive(Clone, Debug)]
pub(super) struct Timed {
    upstream: Arc<dyn Upstream>,
    limit: Duration,
    busy: Arc<AtomicBool>,
}

impl Timed {
    pub(super) fn new(upstream: Arc<dyn Upstream>, limit: Duration) -> Self {
        Self { upstream, limit, busy: Arc::default() }
    }

    pub(super) fn sign(&self, wanted: Wanted) -> Result<Signed, UpstreamError> {
        self.ask(move |upstream| upstream.sign(&wanted))
    }

    pub(super) fn offer(&self, crls: Vec<Bytes>, now: SystemTime) -> Result<Offer, UpstreamError> {
        self.ask(move |upstream| upstream.offer(&crls, now))
    }

    pub(super) fn revoke(&self, serial: Vec<u8>, now: SystemTime) -> Result<(), UpstreamError> {
        self.ask(move |upstream| upstream.revoke(&serial, now))
    }

    /// One question at a time: an upstream that hangs costs one thread and one wait, whatever is asked after.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Upstream) -> Result<T, UpstreamError> + Send + 'static,
    ) -> Result<T, UpstreamError> {
        let Some(busy) = Busy::begin(&self.busy) else { return Err(UpstreamError::Busy) };
        let (answer, answered) = mpsc::sync_channel(1);
        let upstream = Arc::clone(&self.upstream);
        let asking = move || {
            let said = question(upstream.as_ref());
            drop(busy);
            // Nobody may be waiting any more.
            answer.send(said).ok();
        };
        std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(asking)
            .map_err(|error| UpstreamError::Gone(error.to_string()))?;
        match answered.recv_timeout(self.limit) {
            Ok(said) => said,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(UpstreamError::Slow(self.limit)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(UpstreamError::Gone("it broke off".to_owned())),
        }
    }
}

/// Taken while a question is under way; given back however it ends.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn begin(busy: &Arc<AtomicBool>) -> Option<Self> {
        (!busy.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(busy)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
