//! The upstream on disk.

use std::path::Path;

use super::super::check::Read;
use super::*;
use crate::id::TrustDomain;
use crate::pem;

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
