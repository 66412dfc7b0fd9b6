//! Custody under an upstream: getting a certificate for a new key, following what the upstream publishes, living
//! through its outages.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, Custody, Held, Line};
use crate::authority::check::LoadError;
use crate::authority::journal::to_text;
use crate::authority::keys::SigningKey;
use crate::authority::life::{AuthorityKind, Life, Moment, Record};
use crate::authority::set::ParentCrl;
use crate::authority::store::name_of;
use crate::authority::upstream::{
    Asked, Timed, Upstream, UpstreamError, Wanted, check_crls, check_signed, crl_issuer, crl_order, is_by_any,
};
use crate::authority::x509::{AuthorityError, X509Authority, request};
use crate::clock::from_unix_seconds;

/// The upstream, and how things stand with it.
#[derive(Debug)]
pub(super) struct Under {
    upstream: Timed,
    /// What it signed under when it was last asked; nothing before the first answer.
    roots: Vec<Bytes>,
    /// Why there is no new certificate, or no news.
    unsigned: Option<String>,
    unheard: Option<String>,
    failures: u32,
    /// By uptime: no earlier is it asked to sign again, and for news.
    sign_at: Duration,
    look_at: Duration,
}

/// How things stand with an upstream that does not do what it should.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// What is amiss.
    pub why: String,
    /// Until when this node can sign all the same, Unix seconds.
    pub until: u64,
    /// The last third of the certificate's life has begun.
    pub late: bool,
}

impl Under {
    pub(super) fn new(upstream: Arc<dyn Upstream>) -> Self {
        Self {
            upstream: Timed::new(upstream, LIMIT),
            roots: Vec::new(),
            unsigned: None,
            unheard: None,
            failures: 0,
            sign_at: Duration::ZERO,
            look_at: Duration::ZERO,
        }
    }

    fn failed(&mut self, why: String, up: Duration) {
        tracing::warn!(why, "this node's certificate was not renewed");
        self.unsigned = Some(why);
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(10)).min(LONGEST_WAIT);
        self.failures += 1;
        self.sign_at = up.saturating_add(wait);
    }

    fn succeeded(&mut self) {
        (self.unsigned, self.failures, self.sign_at) = (None, 0, Duration::ZERO);
    }
}

impl Custody {
    /// What is amiss with the upstream, if there is one and anything is.
    pub fn trouble(&self, now: u64) -> Option<Trouble> {
        let under = self.under.as_ref()?;
        let why = under.unsigned.as_ref().or(under.unheard.as_ref())?.clone();
        let active = self.life.active(AuthorityKind::X509);
        let until = active.map_or(0, |active| active.not_after);
        let third = active.map_or(0, |active| active.not_after.saturating_sub(active.prepared_at) / 3);
        Some(Trouble { why, until, late: under.unsigned.is_some() && until.saturating_sub(now) <= third })
    }

    /// How long nothing is due; `None`: for ever.
    pub fn next(&self, now: Moment) -> Option<Duration> {
        let by_life = self.life.next_without(now, self.kept_back(now));
        let Some(under) = &self.under else { return by_life };
        let look = under.look_at.saturating_sub(now.up);
        let retry = self.kept_back(now).map(|_| under.sign_at.saturating_sub(now.up));
        [by_life, Some(look), retry].into_iter().flatten().min()
    }

    /// Asks the upstream for news when it is time. Whether verifiers are to be told something: publish then.
    ///
    /// # Errors
    /// [`LoadError`] when the journal cannot be written. An upstream without an answer is no error, but
    /// [`Custody::trouble`].
    pub fn follow(&mut self, now: Moment) -> Result<bool, LoadError> {
        let Some(under) = self.under.as_mut().filter(|under| under.look_at <= now.up) else {
            return Ok(false);
        };
        under.look_at = now.up.saturating_add(LOOK);
        let offer = under.upstream.offer(self.parent_crls.clone(), from_unix_seconds(now.wall));
        let offer = offer.and_then(|offer| {
            check_crls(&offer.parent_crls, self.above(&offer.roots).iter(), from_unix_seconds(now.wall))?;
            Ok(offer)
        });
        let Some(under) = self.under.as_mut() else { return Ok(false) };
        let offer = match offer {
            Ok(offer) => offer,
            Err(error) => {
                under.unheard = Some(error.to_string());
                return Ok(false);
            }
        };
        under.unheard = offer.remark;
        if under.roots != offer.roots {
            // Whatever it refused before, it may do now.
            under.sign_at = now.up;
            under.roots = offer.roots;
        }
        if self.newer(&offer.parent_crls) == self.parent_crls {
            return Ok(false);
        }
        self.write_with(&offer.parent_crls, |_| Ok(())).map(|()| true)
    }

    /// No successor of that kind for now: the upstream has just failed.
    pub(super) fn kept_back(&self, now: Moment) -> Option<AuthorityKind> {
        self.under.as_ref().filter(|under| under.sign_at > now.up).map(|_| AuthorityKind::X509)
    }

    /// The upstream signs under other roots than the one that our certificate leads to, and nothing is prepared.
    pub(super) fn has_moved(&self, now: Moment) -> bool {
        let Some(under) = self.under.as_ref().filter(|under| under.sign_at <= now.up) else { return false };
        let Some(active) = self.life.active(AuthorityKind::X509).and_then(|one| self.x509(&one.id)) else {
            return false;
        };
        !under.roots.is_empty()
            && self.life.prepared(AuthorityKind::X509).is_none()
            && !active.anchors().iter().any(|anchor| under.roots.contains(anchor))
    }

    /// What the upstream's failure to sign comes to: an error only while there is nothing to sign with.
    pub(super) fn endure(&mut self, error: LoadError, up: Duration) -> Result<(), LoadError> {
        let is_upstreams = matches!(error, LoadError::Upstream(_));
        match &mut self.under {
            Some(under) if is_upstreams => under.failed(error.to_string(), up),
            _ => return Err(error),
        }
        if self.life.active(AuthorityKind::X509).is_some() { Ok(()) } else { Err(error) }
    }

    /// A certificate for that key from the upstream, and the CRLs that come with it; `None` without an upstream.
    pub(super) fn found_above(
        &mut self,
        key: &Arc<dyn SigningKey>,
        now: u64,
    ) -> Result<Option<(Held, Vec<Bytes>)>, LoadError> {
        let Some(under) = &self.under else { return Ok(None) };
        let (trust_domain, at) = (&self.settings.trust_domain, from_unix_seconds(now));
        let ttl = self.settings.ttl.min(NODE_CA_TTL);
        let csr = request(key, trust_domain)?;
        let crls = self.parent_crls.clone();
        let wanted = Wanted { csr, trust_domain: trust_domain.clone(), ttl, now: at, crls };
        let signed = under.upstream.sign(wanted)?;
        let held = self.held.values().filter_map(|held| match &held.authority {
            Authority::X509(one) => Some(Bytes::copy_from_slice(one.subject())),
            Authority::Jws(_) => None,
        });
        let taken: Vec<Bytes> = held.collect();
        let asked = Asked { key, trust_domain, now: at, ttl, taken: &taken };
        let (path, (not_before, not_after)) =
            check_signed(&signed, &asked).map_err(|fault| LoadError::Upstream(fault.into()))?;
        let record =
            Record::prepared(AuthorityKind::X509, name_of(AuthorityKind::X509, key)?, not_after, now);
        let (chain, roots) = (to_text(&path.chain), to_text(&path.roots));
        let line = Line { record, not_before, chain, roots };
        let held = self.assemble(Arc::clone(key), line)?.ok_or(LoadError::Make(AuthorityError::Time))?;
        if let Some(under) = &mut self.under {
            under.succeeded();
            if under.roots.is_empty() {
                under.roots = path.roots;
            }
        }
        Ok(Some((held, signed.parent_crls)))
    }

    /// Takes newer CRLs in with a step, written down together.
    pub(super) fn write_with(
        &mut self,
        crls: &[Bytes],
        step: impl FnOnce(&mut Life) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let newer = self.newer(crls);
        let before = std::mem::replace(&mut self.parent_crls, newer);
        let written = self.write(step);
        if written.is_err() {
            self.parent_crls = before;
        }
        written
    }

    /// Our CRLs with those among `crls` that are newer. One that is older than what verifiers have is left out:
    /// going back would take revocations back.
    fn newer(&self, crls: &[Bytes]) -> Vec<Bytes> {
        let mut all = self.parent_crls.clone();
        for crl in crls {
            let issuer = crl_issuer(crl);
            if all.iter().any(|one| crl_issuer(one) == issuer && crl_order(one) >= crl_order(crl)) {
                continue;
            }
            all.retain(|one| crl_issuer(one) != issuer);
            all.push(crl.clone());
        }
        all
    }

    /// Before an authority leaves the bundle by order: the upstream names its certificate in its CRL. Its root stays
    /// in the bundle, and nothing else would tell verifiers.
    pub(super) fn disown(&mut self, id: &str, now: u64) -> Result<(), LoadError> {
        let Some(under) = &mut self.under else { return Ok(()) };
        let Some(Held { authority: Authority::X509(one), line }) = self.held.get(id) else { return Ok(()) };
        if line.roots.is_empty() || line.record.not_after <= now {
            return Ok(());
        }
        let (_, certificate) = X509Certificate::from_der(one.certificate())
            .map_err(|_error| LoadError::Make(AuthorityError::Time))?;
        under.upstream.revoke(certificate.raw_serial().to_vec(), from_unix_seconds(now))?;
        // The CRL with it is wanted at once.
        under.look_at = Duration::ZERO;
        Ok(())
    }

    /// The CRLs that go with what is in the bundle.
    pub(super) fn parents(&self) -> Vec<ParentCrl> {
        let above = self.above(&[]);
        let wanted = self.parent_crls.iter().filter(|crl| is_by_any(crl, above.iter()));
        wanted.filter_map(|der| Some(ParentCrl { issuer: crl_issuer(der)?, der: der.clone() })).collect()
    }

    /// A prepared authority whose anchors verifiers have from another needs no lead.
    pub(super) fn mark_trusted(&mut self) {
        let Some(prepared) = self.life.prepared(AuthorityKind::X509).map(|one| one.id.clone()) else {
            return;
        };
        let Some(own) = self.x509(&prepared).map(|one| one.anchors().to_vec()) else { return };
        let others = self.life.records().iter().filter(|one| one.in_bundle() && one.id != prepared);
        let others: Vec<&X509Authority> = others.filter_map(|one| self.x509(&one.id)).collect();
        if own.iter().all(|anchor| others.iter().any(|one| one.anchors().contains(anchor))) {
            self.life.mark_trusted(&prepared);
        }
    }

    fn x509(&self, id: &str) -> Option<&X509Authority> {
        match &self.held.get(id)?.authority {
            Authority::X509(one) => Some(one),
            Authority::Jws(_) => None,
        }
    }

    /// Every certificate above ours, and `more`.
    fn above(&self, more: &[Bytes]) -> Vec<Bytes> {
        let texts = self.held.values().filter(|held| !held.line.roots.is_empty());
        let texts = texts.flat_map(|held| held.line.chain.iter().skip(1).chain(&held.line.roots));
        let ours = texts.filter_map(|text| STANDARD.decode(text).ok().map(Bytes::from));
        let mut all: Vec<Bytes> = Vec::new();
        for one in ours.chain(more.iter().cloned()) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }
}

impl From<UpstreamError> for LoadError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error)
    }
}

/// How long a certificate of this node's lives under an upstream.
const NODE_CA_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long the keeper waits for an answer.
const LIMIT: Duration = Duration::from_secs(if cfg!(feature = "failpoints") { 1 } else { 10 });
/// How often the upstream is asked for news.
const LOOK: Duration = Duration::from_millis(if cfg!(feature = "failpoints") { 100 } else { 5_000 });
/// After a failure to sign the wait doubles, from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
