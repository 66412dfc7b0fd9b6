//! Upstreams that lie, dawdle and leave; and the one on disk.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateSigningRequestDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::check::Read;
use super::*;
use crate::authority::life::{AuthorityKind, Moment};
use crate::authority::testing::{NOW, now, settings};
use crate::authority::x509::date;
use crate::authority::{AuthoritySet, Custody, Journal, KeyStore, KeyType, LoadError, Memory, State};
use crate::id::TrustDomain;
use crate::pem;

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

fn refused(lie: Lie) -> AnswerFault {
    let fake = Fake::new("root");
    fake.be(Mood::Lying(lie));
    match open(fake) {
        Err(LoadError::Upstream(UpstreamError::Answer(fault))) => fault,
        other => panic!("{:?}", other.map(|custody| custody.set())),
    }
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
fn an_honest_answer_is_used_and_the_root_is_the_bundle() {
    let fake = Fake::new("root");
    let set = open(Arc::clone(&fake) as Arc<dyn Upstream>).unwrap().set().unwrap();
    let authority = set.active_x509();
    assert_eq!(set.anchors(), vec![fake.root.clone()]);
    assert_eq!(authority.intermediates(), authority.certificate());
    assert_eq!(set.parent_crls().len(), 1);
    assert_eq!(authority.not_after(), now() + Duration::from_secs(DAY), "a day, whatever `authority.ttl` is");
}

/// Vault repeats the certificate and appends the root.
#[test]
fn what_an_upstream_repeats_is_left_out() {
    let fake = Fake::new("root");
    fake.be(Mood::Lying(|fake, wanted, params| {
        let mut signed = fake.signed(wanted, &params);
        signed.chain = [signed.chain.clone(), signed.chain, signed.roots.clone()].concat();
        signed
    }));
    let set = open(fake).unwrap().set().unwrap();
    assert_eq!(set.active_x509().intermediates(), set.active_x509().certificate());
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn each_lie_has_its_name() {
    type Change = fn(&mut CertificateParams);
    fn changed(fake: &Fake, wanted: &Wanted, mut params: CertificateParams, change: Change) -> Signed {
        change(&mut params);
        fake.signed(wanted, &params)
    }
    let cases: Vec<(Lie, AnswerFault)> = vec![
        (|f, w, p| Signed { chain: vec![], ..f.signed(w, &p) }, AnswerFault::Size("no certificate")),
        (|f, w, p| Signed { roots: vec![], ..f.signed(w, &p) }, AnswerFault::Size("no root")),
        (
            |f, w, p| Signed { roots: vec![Bytes::from(vec![0; 5 << 20])], ..f.signed(w, &p) },
            AnswerFault::Size("too many bytes"),
        ),
        (
            |f, w, p| Signed { chain: vec![Bytes::from_static(b"x"); 9], ..f.signed(w, &p) },
            AnswerFault::Size("too many certificates"),
        ),
        (
            |f, w, p| Signed { chain: vec![Bytes::from_static(b"x")], ..f.signed(w, &p) },
            AnswerFault::Unreadable("certificate"),
        ),
        (
            |f, w, p| {
                let leaf = p.signed_by(&KeyPair::generate().unwrap(), &f.issuer).unwrap();
                Signed { chain: vec![Bytes::from(leaf.der().to_vec())], ..f.signed(w, &p) }
            },
            AnswerFault::Key,
        ),
        (|f, w, p| changed(f, w, p, |p| p.is_ca = IsCa::ExplicitNoCa), AnswerFault::NotCa),
        (
            |f, w, p| changed(f, w, p, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            AnswerFault::PathLength,
        ),
        (|f, w, p| changed(f, w, p, |p| p.key_usages.truncate(1)), AnswerFault::Usage),
        (
            |f, w, p| changed(f, w, p, |p| p.key_usages.push(KeyUsagePurpose::DigitalSignature)),
            AnswerFault::Usage,
        ),
        (|f, w, p| changed(f, w, p, |p| p.subject_alt_names.clear()), AnswerFault::Name),
        (
            |f, w, p| {
                changed(f, w, p, |p| {
                    let other = "spiffe://other.org".try_into().unwrap();
                    p.subject_alt_names = vec![SanType::URI(other)];
                })
            },
            AnswerFault::Name,
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.distinguished_name = root_params("root", 0).distinguished_name),
            AnswerFault::Subject,
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.distinguished_name = rcgen::DistinguishedName::new()),
            AnswerFault::Subject,
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.not_after = date(now() + Duration::from_secs(3 * DAY)).unwrap()),
            AnswerFault::Validity("is longer than was asked for"),
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.not_after = date(now() + Duration::from_secs(30)).unwrap()),
            AnswerFault::Validity("is over or ends within a minute"),
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.not_before = date(now() + Duration::from_secs(30)).unwrap()),
            AnswerFault::Validity("has not begun: compare the clocks"),
        ),
        (
            |f, w, p| Signed { roots: vec![Fake::new("root").root.clone()], ..f.signed(w, &p) },
            AnswerFault::Crl("is by nobody above us"),
        ),
        (
            |f, w, p| {
                let roots = vec![Fake::new("root").root.clone()];
                Signed { roots, parent_crls: vec![], ..f.signed(w, &p) }
            },
            AnswerFault::Path(webpki::Error::UnknownIssuer),
        ),
        (
            |f, w, p| Signed {
                parent_crls: vec![f.crl(1, Duration::from_secs(5), &f.key_id)],
                ..f.signed(w, &p)
            },
            AnswerFault::Crl("is not in force"),
        ),
        (
            |f, w, p| Signed { parent_crls: vec![Bytes::from_static(b"x")], ..f.signed(w, &p) },
            AnswerFault::Crl("cannot be used by verifiers"),
        ),
        (
            |f, w, p| {
                let one = f.signed(w, &p);
                Signed {
                    parent_crls: vec![
                        one.parent_crls[0].clone(),
                        f.crl(2, Duration::from_secs(DAY), &f.key_id),
                    ],
                    ..one
                }
            },
            AnswerFault::Crl("is there twice of one issuer"),
        ),
    ];
    for (at, (lie, expected)) in cases.into_iter().enumerate() {
        let found = refused(lie);
        let same = match (&found, &expected) {
            (AnswerFault::Path(_), AnswerFault::Path(_)) => true,
            (found, expected) => found == expected,
        };
        assert!(same, "case {at}: {found:?}, not {expected:?}");
    }
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

fn write_root(dir: &Path, name: &str, until: u64) -> Bytes {
    let (key, params) = (KeyPair::generate().unwrap(), root_params(name, until));
    let root = Bytes::from(params.self_signed(&key).unwrap().der().to_vec());
    put(dir, &root, &key.serialize_der());
    root
}

fn put(dir: &Path, root: &[u8], key: &[u8]) {
    crate::files::write_atomic(&dir.join("root.pem"), 0o644, pem::encode(pem::CERTIFICATE, root).as_bytes())
        .unwrap();
    crate::files::write_atomic(&dir.join("root.key"), 0o600, pem::encode(pem::PRIVATE_KEY, key).as_bytes())
        .unwrap();
}

fn disk(dir: &Path) -> Arc<dyn Upstream> {
    let paths = DiskPaths {
        certificate: dir.join("root.pem"),
        key: dir.join("root.key"),
        revoked: dir.join("revoked-nodes"),
    };
    let domain: TrustDomain = "example.org".parse().unwrap();
    Arc::new(DiskUpstream::new(paths, domain))
}

#[test]
fn a_root_on_disk_signs_and_bounds_what_it_signs() {
    let dir = tempfile::tempdir().unwrap();
    let root = write_root(dir.path(), "root", NOW + 3_600);
    let set = open(disk(dir.path())).unwrap().set().unwrap();
    assert_eq!(set.anchors(), [root]);
    assert_eq!(
        set.active_x509().not_after(),
        now() + Duration::from_secs(3_600),
        "never longer than the root"
    );
}

#[test]
fn bad_files_are_told_by_name_and_a_bad_reload_keeps_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let told = |dir: &Path| open(disk(dir)).unwrap_err().to_string();
    assert!(told(dir.path()).contains("root.pem"));
    write_root(dir.path(), "root", NOW - 1);
    assert!(told(dir.path()).contains("is expired"), "{}", told(dir.path()));
    let root = write_root(dir.path(), "root", NOW + 10 * DAY);
    put(dir.path(), &root, &KeyPair::generate().unwrap().serialize_der());
    assert!(told(dir.path()).contains("is another key's than"), "{}", told(dir.path()));
    let key = KeyPair::generate().unwrap();
    let mut params = root_params("root", NOW + DAY);
    params.key_usages.clear();
    put(dir.path(), params.self_signed(&key).unwrap().der(), &key.serialize_der());
    assert!(told(dir.path()).contains("keyUsage"), "{}", told(dir.path()));

    let root = write_root(dir.path(), "root", NOW + 10 * DAY);
    let mut custody = open(disk(dir.path())).unwrap();
    keep(&mut custody, NOW);
    crate::files::write_atomic(&dir.path().join("root.pem"), 0o644, b"rubbish").unwrap();
    keep(&mut custody, NOW + DAY / 2 + 10);
    let set = custody.set().unwrap();
    assert_eq!((set.x509().len(), set.anchors()), (2, vec![root]), "the root read before signs");
    let trouble = custody.trouble(NOW + DAY / 2 + 10).unwrap();
    assert!(trouble.why.contains("the root read before stays in use") && !trouble.late, "{trouble:?}");
}

#[test]
fn another_root_is_published_for_its_lead_before_it_signs_and_the_old_one_ends_with_its_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let old = write_root(dir.path(), "one", NOW + 10 * DAY);
    let mut custody = open(disk(dir.path())).unwrap();
    keep(&mut custody, NOW);
    let first = active(&custody);
    let new = write_root(dir.path(), "two", NOW + 10 * DAY);
    keep(&mut custody, NOW + 10);
    let set = custody.set().unwrap();
    assert_eq!(set.anchors(), [old.clone(), new.clone()]);
    assert_eq!(set.parent_crls().len(), 2, "each root's own");
    assert_eq!(active(&custody), first, "verifiers have not had the time to learn it");
    keep(&mut custody, NOW + 10 + 901);
    assert_ne!(active(&custody), first);
    assert_eq!(custody.set().unwrap().active_x509().anchors(), vec![new.clone()]);
    assert_eq!(custody.set().unwrap().anchors(), [old, new.clone()]);
    keep(&mut custody, NOW + DAY + 10);
    assert_eq!(custody.set().unwrap().anchors(), [new]);
    assert_eq!(custody.set().unwrap().parent_crls().len(), 1);
}

#[test]
fn a_restart_finds_everything_without_the_upstream() {
    let dir = tempfile::tempdir().unwrap();
    write_root(dir.path(), "root", NOW + 10 * DAY);
    let keys = || Arc::new(crate::authority::Disk::new(dir.path(), crate::authority::Protection::Plain));
    let journal = || Journal::on_disk(dir.path());
    let before = open_again(keys(), journal(), disk(dir.path()), NOW).unwrap().set().unwrap();
    std::fs::remove_file(dir.path().join("root.pem")).unwrap();
    let mut custody = open_again(keys(), journal(), disk(dir.path()), NOW + DAY / 2 + 60).unwrap();
    let after = custody.set().unwrap();
    assert_eq!(after.active_x509().certificate(), before.active_x509().certificate());
    assert_eq!((after.anchors(), after.parent_crls()), (before.anchors(), before.parent_crls()));
    keep(&mut custody, NOW + DAY / 2 + 60);
    assert!(custody.trouble(NOW + DAY / 2 + 60).is_some());
}

#[test]
fn a_revoked_node_is_named_from_then_on_and_numbers_rise_through_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    write_root(dir.path(), "root", NOW + 10 * DAY);
    let keys = || Arc::new(crate::authority::Disk::new(dir.path(), crate::authority::Protection::Plain));
    let mut custody = open_again(keys(), Journal::on_disk(dir.path()), disk(dir.path()), NOW).unwrap();
    keep(&mut custody, NOW);
    let read = |custody: &Custody| Read::of(&custody.set().unwrap().parent_crls()[0].der).unwrap();
    let (first, before) = (active(&custody), read(&custody));
    assert!(before.revoked.is_empty());
    custody.prepare(AuthorityKind::X509, NOW).unwrap();
    keep(&mut custody, NOW);
    custody.revoke(&first.to_string(), NOW).unwrap();
    keep(&mut custody, NOW);
    assert!(read(&custody).revoked.is_empty(), "not while anybody holds what it signed");
    custody.finish(&first.to_string(), NOW).unwrap();
    keep(&mut custody, NOW + 1);
    let after = read(&custody);
    assert_eq!(after.revoked.len(), 1);
    assert!(after.number > before.number && after.this_update > before.this_update);
    drop(custody);
    // An operator's line, a lost list, a clock that went back.
    let list = dir.path().join("revoked-nodes");
    let text = std::fs::read_to_string(&list).unwrap();
    crate::files::write_atomic(&list, 0o600, format!("{text}ab:cd\n").as_bytes()).unwrap();
    let mut custody = open_again(keys(), Journal::on_disk(dir.path()), disk(dir.path()), NOW + 2).unwrap();
    keep(&mut custody, NOW + 2);
    let third = read(&custody);
    assert_eq!(third.revoked.len(), 2);
    assert!(third.number > after.number && third.this_update > after.this_update);
    std::fs::remove_file(&list).unwrap();
    keep(&mut custody, NOW + 20_000);
    let fourth = read(&custody);
    assert_eq!(fourth.revoked.len(), 2, "a list that is gone takes nothing back");
    assert!(fourth.number > third.number);
    assert!(custody.trouble(NOW + 20_000).unwrap().why.contains("is gone"));
}
