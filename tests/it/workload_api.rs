//! The Workload API as a client sees it.

use mayfly_harness::pki::{claims, openssl_verify};
use mayfly_harness::{Plan, until};

use crate::support::{SHORT, agent, client, empty_agent, own_entry, own_uid};

#[test]
fn svid_key_bundle_and_crl_belong_together() {
    let agent = agent();
    let mut client = client(&agent);
    let update = client.x509();
    let svid = &update.svids[0];
    assert_eq!(svid.spiffe_id, format!("spiffe://example.org/uid/{}", own_uid()));
    assert_eq!(svid.leaf.uris, [svid.spiffe_id.as_str()]);
    assert_eq!(update.crls.len(), 1);
    openssl_verify(agent.dir(), &svid.leaf.der, &svid.bundle, &update.crls[0].der).unwrap();
    assert!(!svid.key.is_empty());
}

#[test]
fn bundles_carry_the_own_trust_domain_and_its_crl() {
    let agent = agent();
    let mut client = client(&agent);
    let update = client.bundles();
    assert_eq!(update.bundles.len(), 1);
    assert_eq!(update.bundles[0].0, "spiffe://example.org");
    assert_eq!(update.bundles[0].1, client.x509().svids[0].bundle);
    assert_eq!(update.crls.len(), 1);
}

#[test]
fn one_stream_sees_three_rotations_with_fresh_keys() {
    let agent = Plan::for_uids(&[own_uid()]).settings(SHORT).start();
    let mut client = client(&agent);
    let mut seen = vec![client.x509().svids.remove(0)];
    while seen.len() < 4 {
        seen.push(client.next_x509().expect("the stream goes on").svids.remove(0));
    }
    for pair in seen.windows(2) {
        assert_ne!(pair[0].serial(), pair[1].serial());
        assert_ne!(pair[0].key, pair[1].key);
        assert!(pair[1].leaf.not_after > pair[0].leaf.not_after);
        assert!(pair[1].leaf.not_before <= pair[0].leaf.not_after, "no gap");
    }
}

#[test]
fn jwt_names_its_audience_and_validates() {
    let agent = agent();
    let mut client = client(&agent);
    let token = client.jwt("payments").unwrap().remove(0);
    let claims = claims(&token.text);
    assert_eq!(claims["sub"], token.spiffe_id);
    assert!(claims["aud"] == "payments" || claims["aud"] == serde_json::json!(["payments"]), "{claims}");
    assert!(claims["exp"].as_u64() > claims["iat"].as_u64());
    assert_eq!(client.validate("payments", &token.text).unwrap(), token.spiffe_id);
    assert_eq!(client.validate("ledger", &token.text).unwrap_err().code, 3);
    let broken = format!("{}x", token.text);
    assert_eq!(client.validate("payments", &broken).unwrap_err().code, 3);
}

#[test]
fn two_processes_never_share_serial_or_key() {
    let agent = agent();
    let (mut a, mut b) = (client(&agent), client(&agent));
    let (a, b) = (a.x509().svids.remove(0), b.x509().svids.remove(0));
    assert_ne!(a.serial(), b.serial());
    assert_ne!(a.key, b.key);
}

#[test]
fn stranger_is_told_no_identity_issued() {
    let agent = empty_agent();
    let mut client = client(&agent);
    let refusal = client.x509_refused();
    assert_eq!((refusal.code, refusal.message.as_str()), (7, "no identity issued"));
    assert_eq!(client.jwt("aud").unwrap_err().code, 7);
}

#[test]
fn empty_audience_is_an_invalid_argument() {
    let agent = agent();
    let mut client = client(&agent);
    assert_eq!(client.jwt("").unwrap_err().code, 3);
}

#[test]
fn several_identities_keep_their_order() {
    let entries = [
        own_entry("/low").with("priority = 1"),
        own_entry("/high").with("priority = 9").with("hint = \"internal\""),
    ];
    let agent = Plan::with_entries(&entries).start();
    let update = client(&agent).x509();
    let ids: Vec<&str> = update.svids.iter().map(|s| s.spiffe_id.as_str()).collect();
    assert_eq!(ids, ["spiffe://example.org/high", "spiffe://example.org/low"]);
    assert_eq!(update.svids[0].hint, "internal");
}

#[test]
fn exit_puts_the_serial_on_the_crl_and_the_token_on_the_denylist() {
    let agent = agent();
    let mut watcher = client(&agent);
    watcher.bundles();
    let mut victim = client(&agent);
    let svid = victim.x509().svids.remove(0);
    let token = victim.jwt("aud").unwrap().remove(0);
    assert!(watcher.validate("aud", &token.text).is_ok());
    victim.kill();
    let crl = watcher.crl_until("the serial", |crl| crl.serials.contains(svid.serial()));
    let said = openssl_verify(agent.dir(), &svid.leaf.der, &svid.bundle, &crl.der).unwrap_err();
    assert!(said.contains("certificate revoked"), "{said}");
    let refusal = until("the token is refused", || watcher.validate("aud", &token.text).err());
    assert_eq!(refusal.code, 3);
}
