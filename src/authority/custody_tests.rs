//! What is kept and found again, and what a crash or a stranger's hand does to it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::keys::{SignatureForm, SigningPair};
use super::life::{Moment, Refused};
use super::testing::{NOW, settings};
use super::x509::self_sign;
use super::*;
use crate::clock::from_unix_seconds;
use crate::id::LeaseId;
use crate::pem;
use crate::secret::KeyBytes;

const WEEK: u64 = 7 * 86_400;

fn open_with(
    dir: &Path,
    settings: &AuthoritySettings,
    protection: Protection,
    now: u64,
) -> Result<(Custody, Vec<Change>), LoadError> {
    let keys = Arc::new(Disk::new(dir, protection));
    Custody::open(keys, Journal::on_disk(dir), settings.clone(), now)
}

fn open(dir: &Path, now: u64) -> Custody {
    open_with(dir, &settings("example.org", KeyType::EcP256), Protection::Plain, now).unwrap().0
}

fn fails(dir: &Path, settings: &AuthoritySettings, now: u64) -> LoadError {
    open_with(dir, settings, Protection::Plain, now).unwrap_err()
}

fn moment(wall: u64, up: u64) -> Moment {
    Moment { wall, up: Duration::from_secs(up) }
}

fn files(dir: &Path) -> Vec<String> {
    let list = std::fs::read_dir(dir.join("authority")).unwrap();
    let mut names: Vec<_> = list.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn key_file(dir: &Path, custody: &Custody) -> PathBuf {
    dir.join(format!("authority/x509-{}.pem", custody.set().unwrap().active_x509().key_id()))
}

#[test]
fn authorities_are_found_again_after_a_restart() {
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings("example.org", kind);
        let (first, made) = open_with(dir.path(), &settings, Protection::Plain, NOW).unwrap();
        assert_eq!(made.len(), 6, "three made, three activated");
        let (second, made) = open_with(dir.path(), &settings, Protection::Plain, NOW + 3_600).unwrap();
        assert_eq!(made, []);
        let (first, second) = (first.set().unwrap(), second.set().unwrap());
        let (old, new) = (first.active_x509(), second.active_x509());
        assert_eq!((old.certificate(), old.key_id()), (new.certificate(), new.key_id()));
        assert_eq!((old.not_before(), old.not_after()), (new.not_before(), new.not_after()));
        assert_eq!(first.active_jwt().jwk(), second.active_jwt().jwk());
        assert_eq!(first.active_jwt().not_after(), second.active_jwt().not_after());
        assert_eq!(first.active_wit().unwrap().kid(), second.active_wit().unwrap().kid());
        for file in files(dir.path()) {
            let metadata = std::fs::metadata(dir.path().join("authority").join(&file)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o600, "{file}");
        }
        let parent = std::fs::metadata(dir.path().join("authority")).unwrap();
        assert_eq!(parent.permissions().mode() & 0o7777, 0o700);
    }
}

#[test]
fn a_whole_life_leaves_no_key_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut custody = open(dir.path(), NOW);
    let first = custody.set().unwrap().active_x509().key_id().to_string();
    let change = custody.prepare(AuthorityKind::X509, NOW).unwrap();
    let second = change.record.id;
    let early = custody.activate(AuthorityKind::X509, false, moment(NOW, 1)).unwrap_err();
    assert!(matches!(early, LoadError::Refused(Refused::TooEarly { .. })));
    custody.mark_published(Duration::from_secs(1));
    custody.activate(AuthorityKind::X509, false, moment(NOW, 901)).unwrap();
    assert_eq!(custody.set().unwrap().active_x509().key_id().to_string(), second);
    assert_eq!(custody.set().unwrap().x509().len(), 2, "the old one stays in the bundle");
    custody.taint(&first, NOW).unwrap();
    custody.revoke(&first, NOW).unwrap();
    assert_eq!(custody.set().unwrap().x509().len(), 2, "until everything it signed has been replaced");
    // A crash in between: the next run goes on.
    let mut custody = open(dir.path(), NOW);
    assert!(custody.life().leaving().map(|one| one.id.as_str()).eq([first.as_str()]));
    custody.finish(&first, NOW).unwrap();
    let set = custody.set().unwrap();
    assert_eq!((set.x509().len(), set.active_x509().key_id().to_string()), (1, second));
    assert!(!files(dir.path()).contains(&format!("x509-{first}.pem")));
    let custody = open(dir.path(), NOW);
    assert_eq!(custody.set().unwrap().x509().len(), 1);
    assert!(custody.life().records().iter().any(|one| one.id == first && one.state == State::Revoked));
}

#[test]
fn age_alone_turns_the_cycle() {
    let dir = tempfile::tempdir().unwrap();
    let mut custody = open(dir.path(), NOW);
    let first = custody.set().unwrap().active_jwt().kid().to_owned();
    let (half, sixth) = (NOW + WEEK / 2, NOW + WEEK * 5 / 6);
    assert!(custody.tend(moment(half - 1, 0)).unwrap().is_none());
    for _ in 0..3 {
        assert_eq!(custody.tend(moment(half, 0)).unwrap().unwrap().record.state, State::Prepared);
    }
    assert!(custody.tend(moment(half, 0)).unwrap().is_none());
    custody.mark_published(Duration::ZERO);
    for _ in 0..3 {
        let change = custody.tend(moment(sixth, WEEK / 3)).unwrap().unwrap();
        assert!(change.record.state == State::Active && !change.hurried);
    }
    let set = custody.set().unwrap();
    assert!(set.active_jwt().kid() != first && set.jwt().iter().any(|one| one.kid() == first));
    while custody.tend(moment(NOW + WEEK, WEEK / 2)).unwrap().is_some() {}
    assert!(custody.set().unwrap().jwt().iter().all(|one| one.kid() != first));
    assert!(files(dir.path()).iter().all(|name| !name.contains(&first)));
}

#[test]
fn a_new_key_type_comes_with_the_next_authority() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), NOW);
    let wanted = settings("example.org", KeyType::EcP384);
    let (mut custody, _) = open_with(dir.path(), &wanted, Protection::Plain, NOW).unwrap();
    assert_eq!(custody.set().unwrap().active_x509().algorithm(), KeyType::EcP256);
    custody.prepare(AuthorityKind::X509, NOW).unwrap();
    custody.mark_published(Duration::ZERO);
    custody.activate(AuthorityKind::X509, true, moment(NOW, 0)).unwrap();
    assert_eq!(custody.set().unwrap().active_x509().algorithm(), KeyType::EcP384);
}

#[test]
fn an_agent_that_was_off_for_too_long_makes_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), NOW).set().unwrap();
    let later = open(dir.path(), NOW + WEEK).set().unwrap();
    assert_ne!(first.active_x509().subject(), later.active_x509().subject());
    assert_eq!(later.x509().len(), 1);
}

#[test]
fn a_lost_ledger_gets_new_keys_and_new_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut custody = open(dir.path(), NOW);
    let first = custody.set().unwrap();
    custody.condemn(NOW).unwrap();
    let anew = custody.set().unwrap();
    assert_ne!(first.active_x509().subject(), anew.active_x509().subject());
    assert_ne!(first.active_jwt().kid(), anew.active_jwt().kid());
    assert_eq!((anew.x509().len(), anew.jwt().len()), (1, 1));
    let found = open(dir.path(), NOW).set().unwrap();
    assert_eq!(found.active_x509().key_id(), anew.active_x509().key_id());
}

#[test]
fn there_is_no_wit_key_while_it_is_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), NOW);
    let off = AuthoritySettings { wit_key: None, ..settings("example.org", KeyType::EcP256) };
    let (custody, _) = open_with(dir.path(), &off, Protection::Plain, NOW).unwrap();
    let set = custody.set().unwrap();
    assert!(set.wit().is_empty() && set.active_wit().is_none());
    assert!(files(dir.path()).iter().all(|name| !name.starts_with("wit-")));
    let again = open(dir.path(), NOW).set().unwrap();
    assert!(again.active_wit().is_some(), "switched on again: a new one");
}

#[test]
fn keys_are_encrypted_when_a_passphrase_is_given_and_stay_shut_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let secret = || Protection::Passphrase(KeyBytes::new(b"secret".to_vec()));
    let settings = settings("example.org", KeyType::EcP256);
    // Plain ones are encrypted as soon as there is a passphrase.
    let plain = open(dir.path(), NOW);
    let path = key_file(dir.path(), &plain);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("-----BEGIN PRIVATE KEY"));
    let (custody, made) = open_with(dir.path(), &settings, secret(), NOW).unwrap();
    assert_eq!(made, []);
    assert_eq!(key_file(dir.path(), &custody), path);
    for file in files(dir.path()).iter().filter(|name| name.ends_with(".pem")) {
        let text = std::fs::read_to_string(dir.path().join("authority").join(file)).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY"), "{file}");
    }
    let locked = fails(dir.path(), &settings, NOW).to_string();
    assert!(locked.contains("passphrase_file") && locked.contains(".pem"), "{locked}");
    let other = Protection::Passphrase(KeyBytes::new(b"other".to_vec()));
    let wrong = open_with(dir.path(), &settings, other, NOW).unwrap_err().to_string();
    assert!(wrong.contains("does not open"), "{wrong}");
}

#[test]
fn what_cannot_be_used_is_refused_with_the_way_out_and_left_as_it_is() {
    let good = settings("example.org", KeyType::EcP256);
    let elsewhere = settings("example.com", KeyType::EcP256);
    let dir = tempfile::tempdir().unwrap();
    let custody = open(dir.path(), NOW);
    let path = key_file(dir.path(), &custody);
    let (journal, key) = (dir.path().join("authority/journal.json"), std::fs::read(&path).unwrap());
    let kept = std::fs::read(&journal).unwrap();
    let why = |error: LoadError| match error {
        LoadError::Unusable { why, .. } => why,
        error => panic!("{error}"),
    };
    assert!(matches!(why(fails(dir.path(), &elsewhere, NOW)), Unusable::TrustDomain(_)));
    assert_eq!(why(fails(dir.path(), &good, NOW - 60)), Unusable::NotYetValid(50));
    let stranger = SigningPair::generate(KeyType::EcP256, SignatureForm::X509).unwrap();
    let stranger = pem::encode(pem::PRIVATE_KEY, stranger.pkcs8().unwrap().expose());
    std::fs::write(&path, stranger.as_bytes()).unwrap();
    assert_eq!(why(fails(dir.path(), &good, NOW)), Unusable::KeyMismatch);
    std::fs::write(&path, b"rubbish").unwrap();
    assert!(fails(dir.path(), &good, NOW).to_string().contains("no private key"));
    std::fs::remove_file(&path).unwrap();
    assert!(fails(dir.path(), &good, NOW).to_string().contains("is gone"));
    std::fs::write(&path, &key).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let readable = fails(dir.path(), &good, NOW);
    assert!(
        matches!(readable, LoadError::Store(StoreError::Untrusted(_)))
            && readable.to_string().contains("x509-")
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&journal, b"{}").unwrap();
    assert!(fails(dir.path(), &good, NOW).to_string().contains("move the directory away"));
    std::fs::remove_file(&journal).unwrap();
    assert!(matches!(fails(dir.path(), &good, NOW), LoadError::JournalLost(_)));
    assert_eq!(std::fs::read(&path).unwrap(), key, "nothing was touched");
    std::fs::write(&journal, kept).unwrap();
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o600)).unwrap();
    open(dir.path(), NOW);
}

#[test]
fn a_flipped_bit_in_the_certificate_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let set = open(dir.path(), NOW).set().unwrap();
    let authority = set.active_x509();
    let domain = authority.trust_domain();
    let path = dir.path().join(format!("authority/x509-{}.pem", authority.key_id()));
    let pkcs8 = pem::decode(pem::PRIVATE_KEY, &std::fs::read(path).unwrap()).unwrap();
    let key: Arc<dyn SigningKey> = Arc::new(SigningPair::parse(&pkcs8, SignatureForm::X509).unwrap());
    let der = authority.certificate();
    assert!(check::certificate(der, &key, true, domain).is_ok());
    for at in (4..der.len()).step_by(3) {
        let mut flipped = der.to_vec();
        flipped[at] ^= 0x10;
        assert!(check::certificate(&flipped, &key, true, domain).is_err(), "byte {at}");
    }
}

/// What agents before 0.2 left behind.
fn old_layout(dir: &Path) -> (String, String) {
    std::fs::create_dir(dir.join("authority")).unwrap();
    std::fs::set_permissions(dir.join("authority"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let write = |name: &str| {
        let pair = SigningPair::generate(KeyType::EcP256, SignatureForm::X509).unwrap();
        let pkcs8 = pair.pkcs8().unwrap();
        let key: Arc<dyn SigningKey> = Arc::new(pair);
        let validity = (from_unix_seconds(NOW - 10), from_unix_seconds(NOW + WEEK));
        let domain = "example.org".parse().unwrap();
        let der = self_sign(&key, &domain, validity, LeaseId::from_random([1; 16])).unwrap();
        let path = dir.join("authority").join(name);
        let text = format!(
            "{}{}",
            pem::encode(pem::PRIVATE_KEY, pkcs8.expose()).as_str(),
            pem::encode(pem::CERTIFICATE, &der).as_str()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        name_of(AuthorityKind::X509, &key).unwrap()
    };
    (write("x509.pem"), write("other.pem"))
}

#[test]
fn the_old_layout_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (id, _) = old_layout(dir.path());
    let text = std::fs::read(dir.path().join("authority/x509.pem")).unwrap();
    let der = pem::decode(pem::CERTIFICATE, &text).unwrap();
    let (custody, made) =
        open_with(dir.path(), &settings("example.org", KeyType::EcP256), Protection::Plain, NOW).unwrap();
    assert!(
        made.iter().all(|change| change.record.kind != AuthorityKind::X509),
        "made only what was missing"
    );
    let set = custody.set().unwrap();
    assert_eq!(set.active_x509().key_id().to_string(), id);
    assert_eq!(set.active_x509().certificate().as_ref(), der.as_slice());
    assert!(!files(dir.path()).contains(&"x509.pem".to_owned()));
    // A crash before the old file was removed, and one before the journal was written.
    std::fs::write(dir.path().join("authority/x509.pem"), &text).unwrap();
    std::fs::set_permissions(dir.path().join("authority/x509.pem"), std::fs::Permissions::from_mode(0o600))
        .unwrap();
    let again = open(dir.path(), NOW).set().unwrap();
    assert_eq!(again.active_x509().key_id().to_string(), id);
    assert!(!files(dir.path()).contains(&"x509.pem".to_owned()));
}

#[test]
fn keys_of_steps_that_were_never_finished_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let custody = open(dir.path(), NOW);
    let id = custody.set().unwrap().active_x509().key_id();
    Disk::new(dir.path(), Protection::Plain).generate(AuthorityKind::X509, KeyType::EcP256).unwrap();
    assert_eq!(files(dir.path()).len(), 5);
    let again = open(dir.path(), NOW).set().unwrap();
    assert_eq!((again.active_x509().key_id(), files(dir.path()).len()), (id, 4));
}
