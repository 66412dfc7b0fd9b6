//! Upstreams that dawdle and leave. Those that lie are in `answers`, the one on disk in `disk`.

mod answers;
mod disk;

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::CertificateSigningRequestDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::authority::life::{AuthorityKind, Moment};
use crate::authority::testing::{NOW, now, settings};
use crate::authority::x509::date;
use crate::authority::{AuthoritySet, Custody, Journal, KeyStore, KeyType, LoadError, Memory, State};

const DAY: u64 = 86_400;

/// A root, and what it is told to do wrong.
struct Fake {
    root: Bytes,
    issuer: Issuer<'static, KeyPair>,
    key_id: Vec<u8>,
    mood: Mutex<Mood>,
}

type Lie = fn(&Fake, &Wanted, CertificateParams) -> Signed;

enum Mood {
    Honest,
    Lying(Lie),
    Gone,
    Silent(mpsc::Receiver<()>),
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

fn root_params(name: &str, until: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date(now() - Duration::from_secs(60)).unwrap();
    params.not_after = date(crate::clock::from_unix_seconds(until)).unwrap();
    params
}

impl Fake {
    fn new(name: &str) -> Arc<Self> {
        let (key, params) = (KeyPair::generate().unwrap(), root_params(name, NOW + 10 * DAY));
        let root = Bytes::from(params.self_signed(&key).unwrap().der().to_vec());
        let key_id = {
            let (_, parsed) = X509Certificate::from_der(&root).unwrap();
            crate::authority::x509::subject_key_id(&parsed).unwrap().to_vec()
        };
        Arc::new(Self { root, issuer: Issuer::new(params, key), key_id, mood: Mutex::new(Mood::Honest) })
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn crl(&self, number: u64, life: Duration, key_id: &[u8]) -> Bytes {
        let params = CertificateRevocationListParams {
            this_update: date(now() - Duration::from_secs(10)).unwrap(),
            next_update: date(now() - Duration::from_secs(10) + life).unwrap(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::PreSpecified(key_id.to_vec()),
        };
        Bytes::from(params.signed_by(&self.issuer).unwrap().der().to_vec())
    }

    fn signed(&self, wanted: &Wanted, params: &CertificateParams) -> Signed {
        let csr = request_of(wanted);
        let leaf = params.signed_by(&csr.public_key, &self.issuer).unwrap();
        let crl = self.crl(1, Duration::from_secs(2 * DAY), &self.key_id);
        Signed {
            chain: vec![Bytes::from(leaf.der().to_vec())],
            roots: vec![self.root.clone()],
            parent_crls: vec![crl],
        }
    }
}

fn request_of(wanted: &Wanted) -> CertificateSigningRequestParams {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(wanted.csr.to_vec()))
        .unwrap()
}

impl Upstream for Fake {
    fn sign(&self, wanted: &Wanted) -> Result<Signed, UpstreamError> {
        let mut params = request_of(wanted).params;
        params.not_before = date(wanted.now - Duration::from_secs(10)).unwrap();
        params.not_after = date(wanted.now + wanted.ttl).unwrap();
        params.serial_number = Some(SerialNumber::from(7_u64));
        params.use_authority_key_identifier_extension = true;
        match &*self.mood.lock().unwrap() {
            Mood::Honest => Ok(self.signed(wanted, &params)),
            Mood::Lying(lie) => Ok(lie(self, wanted, params)),
            Mood::Gone => Err(UpstreamError::Gone("no route".to_owned())),
            Mood::Silent(until) => {
                until.recv().ok();
                Err(UpstreamError::Gone("late".to_owned()))
            }
        }
    }

    fn offer(&self, _crls: &[Bytes], _now: SystemTime) -> Result<Offer, UpstreamError> {
        match &*self.mood.lock().unwrap() {
            Mood::Gone => Err(UpstreamError::Gone("no route".to_owned())),
            _ => Ok(Offer {
                roots: vec![self.root.clone()],
                parent_crls: vec![self.crl(1, Duration::from_secs(2 * DAY), &self.key_id)],
                remark: None,
            }),
        }
    }

    fn revoke(&self, _serial: &[u8], _now: SystemTime) -> Result<(), UpstreamError> {
        Ok(())
    }
}

fn open(upstream: Arc<dyn Upstream>) -> Result<Custody, LoadError> {
    let keys: Arc<dyn KeyStore> = Arc::new(Memory::default());
    open_again(keys, Journal::in_memory(), upstream, NOW)
}

fn open_again(
    keys: Arc<dyn KeyStore>,
    journal: Journal,
    upstream: Arc<dyn Upstream>,
    now: u64,
) -> Result<Custody, LoadError> {
    let settings = settings("example.org", KeyType::EcP256);
    Custody::open_under(keys, journal, settings, Some(upstream), now).map(|(custody, _)| custody)
}

fn moment(wall: u64) -> Moment {
    Moment { wall, up: Duration::from_secs(wall - NOW) }
}

/// Everything that is due, as the keeper does it.
fn keep(custody: &mut Custody, at: u64) {
    custody.follow(moment(at)).unwrap();
    custody.mark_published(moment(at).up);
    while custody.tend(moment(at)).unwrap().is_some() {
        custody.mark_published(moment(at).up);
    }
}

fn active(custody: &Custody) -> crate::id::KeyId {
    custody.set().unwrap().active_x509().key_id()
}

#[test]
fn an_upstream_that_is_gone_stops_only_the_first_start() {
    let fake = Fake::new("root");
    fake.be(Mood::Gone);
    let error = open(Arc::clone(&fake) as Arc<dyn Upstream>).unwrap_err();
    assert!(error.to_string().contains("does not answer: no route"), "{error}");
    fake.be(Mood::Honest);
    let mut custody = open(Arc::clone(&fake) as Arc<dyn Upstream>).unwrap();
    keep(&mut custody, NOW);
    let first = active(&custody);
    assert_eq!(custody.trouble(NOW), None);
    fake.be(Mood::Gone);
    let half = NOW + DAY / 2 + 1;
    keep(&mut custody, half);
    let trouble = custody.trouble(half).unwrap();
    assert_eq!((active(&custody), trouble.until, trouble.late), (first, NOW + DAY, false), "{trouble:?}");
    let last_third = NOW + DAY * 2 / 3 + 1;
    keep(&mut custody, last_third);
    assert!(custody.trouble(last_third).unwrap().late);
    fake.be(Mood::Honest);
    let back = last_third + 61;
    keep(&mut custody, back);
    assert_ne!(active(&custody), first, "renewed, and in force without a wait: the root was known");
    assert_eq!(custody.trouble(back), None);
}

/// Keys for tokens live by other dates and need no upstream.
#[test]
fn token_keys_go_on_while_the_upstream_is_gone() {
    let fake = Fake::new("root");
    let mut custody = open(Arc::clone(&fake) as Arc<dyn Upstream>).unwrap();
    keep(&mut custody, NOW);
    fake.be(Mood::Gone);
    keep(&mut custody, NOW + 4 * DAY);
    assert!(custody.life().prepared(AuthorityKind::Jwt).is_some());
    assert_eq!(
        custody.life().active(AuthorityKind::X509).unwrap().not_after,
        NOW + DAY,
        "over, and still there"
    );
}

#[test]
fn a_renewal_at_half_life_takes_over_at_once() {
    let mut custody = open(Fake::new("root")).unwrap();
    keep(&mut custody, NOW);
    let first = active(&custody);
    keep(&mut custody, NOW + DAY / 2 - 60);
    assert_eq!(active(&custody), first);
    keep(&mut custody, NOW + DAY / 2 + 10);
    assert_ne!(active(&custody), first);
    let set = custody.set().unwrap();
    assert_eq!((set.x509().len(), set.anchors().len()), (2, 1), "two keys under one root");
    assert_eq!(set.x509()[0].state(), State::Old);
}

#[test]
fn an_upstream_that_hangs_is_waited_for_once() {
    let (release, hang) = mpsc::channel();
    let fake = Fake::new("root");
    fake.be(Mood::Silent(hang));
    let timed = Timed::new(fake, Duration::from_millis(20));
    let wanted = || {
        let set = open(Fake::new("other")).unwrap().set().unwrap();
        Wanted {
            csr: csr(&set),
            trust_domain: "example.org".parse().unwrap(),
            ttl: Duration::from_secs(DAY),
            now: now(),
            crls: vec![],
        }
    };
    assert!(matches!(timed.sign(wanted()), Err(UpstreamError::Slow(_))));
    assert!(matches!(timed.sign(wanted()), Err(UpstreamError::Busy)));
    drop(release);
    let mut answered = timed.sign(wanted());
    while matches!(answered, Err(UpstreamError::Busy | UpstreamError::Slow(_))) {
        std::thread::yield_now();
        answered = timed.sign(wanted());
    }
    assert!(matches!(answered, Err(UpstreamError::Gone(_))));
}

/// Any request will do.
fn csr(set: &AuthoritySet) -> Bytes {
    assert!(set.wit().len() < 9);
    let key = crate::authority::keys::SigningPair::generate(
        KeyType::EcP256,
        crate::authority::keys::SignatureForm::X509,
    );
    let key: Arc<dyn crate::authority::SigningKey> = Arc::new(key.unwrap());
    crate::authority::x509::request(&key, &"example.org".parse().unwrap()).unwrap()
}
