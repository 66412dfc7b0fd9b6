//! The CRL as a whole: signed, read back, kept, and compared with the ledger at the next start.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::authority::testing::{NOW, authorities, now};
use crate::authority::{KeyType, RevokedSerial, X509Authority};
use crate::id::LeaseId;
use crate::ledger::CrlMark;

const HOUR: Duration = Duration::from_secs(3_600);

fn serial(n: u8, at: u64) -> RevokedSerial {
    RevokedSerial { serial: LeaseId::from_random([n; 16]), at }
}

fn signed(authority: &X509Authority, number: u64, revoked: &[RevokedSerial]) -> Crl {
    sign_and_lint(authority, revoked, (number, NOW - 600), HOUR, now()).unwrap()
}

#[test]
fn a_crl_is_read_back_as_it_was_meant() {
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let set = authorities("example.org", kind);
        let revoked = [serial(1, NOW - 3), serial(2, NOW - 2)];
        let crl = signed(set.active_x509(), 7, &revoked);
        assert_eq!((crl.number, crl.this_update, crl.entries), (7, NOW - 600, 2));
        assert_eq!(crl.next_update, NOW + 3_600, "counted from now, not from the backdated issue date");
        assert_eq!(lint(set.active_x509(), &crl, &revoked), Ok(()));
        assert_eq!(signed(set.active_x509(), u64::MAX, &[]).entries, 0);
    }
}

#[test]
fn a_wrong_crl_is_never_published() {
    let set = authorities("example.org", KeyType::EcP256);
    let authority = set.active_x509();
    let (one, two, three) = (serial(1, NOW), serial(2, NOW), serial(3, NOW));
    let crl = signed(authority, 7, &[one, two]);
    let verdict = |crl: &Crl, revoked: &[RevokedSerial]| lint(authority, crl, revoked);
    assert_eq!(verdict(&crl, &[one, two, three]), Err(CrlFault::Missing(1)));
    assert_eq!(verdict(&crl, &[one, three]), Err(CrlFault::Missing(1)));
    assert_eq!(verdict(&crl, &[one]), Err(CrlFault::Surplus(1)));
    assert_eq!(verdict(&crl, &[one, RevokedSerial { at: NOW + 1, ..two }]), Err(CrlFault::Header));
    let with = |change: fn(&mut Crl)| {
        let mut changed = crl.clone();
        change(&mut changed);
        verdict(&changed, &[one, two])
    };
    assert_eq!(with(|crl| crl.number += 1), Err(CrlFault::Header));
    assert_eq!(with(|crl| crl.this_update += 1), Err(CrlFault::Header));
    assert_eq!(with(|crl| crl.next_update += 1), Err(CrlFault::Header));
    assert_eq!(with(|crl| crl.der = crl.der.slice(..crl.der.len() - 1)), Err(CrlFault::Unparsable));
    assert_eq!(with(|crl| crl.der = Bytes::new()), Err(CrlFault::Unparsable));
    let other = authorities("example.org", KeyType::EcP256);
    assert_eq!(lint(other.active_x509(), &crl, &[one, two]), Err(CrlFault::Issuer));
}

#[test]
fn no_flipped_bit_gets_past_the_lint() {
    let set = authorities("example.org", KeyType::EcP256);
    let revoked = [serial(1, NOW), serial(2, NOW)];
    let crl = signed(set.active_x509(), 7, &revoked);
    let (_, parsed) = x509_parser::parse_x509_crl(&crl.der).unwrap();
    let signed = parsed.tbs_cert_list.as_ref().len() + 4;
    for at in (0..signed).chain(crl.der.len() - 64..crl.der.len()) {
        let mut flipped = crl.der.to_vec();
        flipped[at] ^= 1;
        let flipped = Crl { der: flipped.into(), ..crl.clone() };
        assert!(lint(set.active_x509(), &flipped, &revoked).is_err(), "byte {at}");
    }
}

#[test]
fn the_witness_remembers_the_last_crl_and_checks_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let set = authorities("example.org", KeyType::EcP256);
    let authority = set.active_x509();
    let witness = Witness::on_disk(dir.path(), authority.key_id());
    assert_eq!(witness.read(authority).unwrap(), None);
    witness.publish(&signed(authority, 7, &[serial(1, NOW)])).unwrap();
    let crl = signed(authority, 8, &[serial(1, NOW), serial(2, NOW)]);
    witness.publish(&crl).unwrap();
    let last = witness.read(authority).unwrap().unwrap();
    assert_eq!((last.number, last.this_update, last.next_update), (8, NOW - 600, NOW + 3_600));
    assert_eq!(last.revoked, [serial(1, NOW), serial(2, NOW)]);
    let path = dir.path().join(format!("crl/{}.crl", authority.key_id()));
    assert_eq!(std::fs::read(&path).unwrap(), crl.der);
    let pem = std::fs::read_to_string(path.with_extension("pem")).unwrap();
    assert!(pem.starts_with("-----BEGIN X509 CRL-----\n"));
    assert_eq!(std::fs::read_dir(dir.path().join("crl")).unwrap().count(), 2, "nothing left over");
    let other = authorities("example.org", KeyType::EcP256);
    std::fs::write(&path, &signed(other.active_x509(), 9, &[]).der).unwrap();
    assert!(matches!(witness.read(authority), Err(WitnessError::Damaged { fault: CrlFault::Issuer, .. })));
    std::fs::write(&path, &crl.der[..40]).unwrap();
    assert!(matches!(witness.read(authority), Err(WitnessError::Damaged { .. })));
    let none = Witness::none(authority.key_id());
    none.publish(&crl).unwrap();
    assert_eq!(none.read(authority).unwrap(), None);
}

#[test]
fn a_ledger_older_than_the_last_crl_is_a_rollback() {
    let number = NOW * 1_000;
    let witness = LastCrl {
        number,
        this_update: NOW - 600,
        next_update: NOW + 3_600,
        revoked: vec![serial(1, NOW - ROW_RETENTION_SECONDS - 1), serial(2, NOW - 60)],
    };
    let mark = |number| Some(CrlMark { number, this_update: NOW - 600 });
    let knows = |old: Recorded, young: Recorded| {
        move |lease: LeaseId| if lease == serial(1, 0).serial { old } else { young }
    };
    use Recorded::{Live, Revoked, Unknown};
    use RollbackSign::{CrlAhead, RevokedIsLive, RevokedIsUnknown};
    let verdict = |mark, old, young, at| match judge(
        Some(&witness),
        mark,
        &knows(old, young),
        crate::clock::from_unix_seconds(at),
    ) {
        Verdict::Sound => None,
        Verdict::Rollback(sign) => Some(sign),
    };
    let young = serial(2, 0).serial;
    assert_eq!(verdict(mark(number), Revoked, Revoked, NOW), None);
    assert_eq!(verdict(mark(number + 9), Revoked, Revoked, NOW), None, "killed between ledger and witness");
    assert_eq!(verdict(mark(number), Unknown, Revoked, NOW), None, "its row was dropped in time");
    let ahead = |ledger| Some(CrlAhead { witness: number, ledger });
    assert_eq!(verdict(mark(number - 1), Revoked, Revoked, NOW), ahead(number - 1));
    assert_eq!(verdict(None, Revoked, Revoked, NOW), ahead(0), "an empty ledger beside a published crl");
    assert_eq!(verdict(mark(number), Revoked, Live, NOW), Some(RevokedIsLive(young)));
    assert_eq!(verdict(mark(number), Live, Revoked, NOW), Some(RevokedIsLive(serial(1, 0).serial)));
    assert_eq!(verdict(mark(number), Revoked, Unknown, NOW), Some(RevokedIsUnknown(young)));
    let set_back = NOW - 86_400;
    assert_eq!(verdict(mark(number), Unknown, Revoked, set_back), None, "whatever the clock says");
    assert_eq!(judge(None, None, &knows(Unknown, Unknown), now()), Verdict::Sound, "the first start");
}
