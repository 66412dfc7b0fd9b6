//! WIT-SVIDs as a workload sees them (Workload API section 7, WIT-SVID).

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly::authority::{JwsUse, JwtBundle, JwtBundles};
use mayfly::issue::wit::{Rules, Unproven, validate};
use mayfly_harness::pki::claims;
use mayfly_harness::{Agent, Holder, Plan, Wit, files};
use mayfly_proto::admin::ListLeasesRequest;
use mayfly_proto::admin::order_authority_request::Order;
use mayfly_proto::admin::revoke_leases_request::Target;
use serde_json::Value;

use crate::support::{agent, client, empty_agent, own_entry, own_uid};

const ON: &str = "[wit]\nenabled = true\n";
const ON_AND_SHORT: &str = "[wit]\nenabled = true\nttl = \"10s\"\n";

fn switched_on() -> Agent {
    Plan::for_uids(&[own_uid()]).settings(ON).start()
}

/// Checked by the validator that a Rust program would use, with the bundle that the agent gave.
fn checked(wit: &Wit, bundles: &Value) -> Unproven {
    let set: Value = serde_json::from_str(bundles["spiffe://example.org"].as_str().unwrap()).unwrap();
    let mut keys = JwtBundles::default();
    let own = JwtBundle::of_keys(JwsUse::WitSvid, set["keys"].as_array().unwrap());
    keys.insert("example.org".parse().unwrap(), Arc::new(own));
    #[expect(clippy::disallowed_methods, reason = "the agent under test lives in real time")]
    let now = SystemTime::now();
    validate(&wit.token, &Rules { bundles: &keys, revoked: &|_| false, longest: None, now }).unwrap()
}

fn only(client: &mut Holder) -> Wit {
    let mut wits = client.wits("").unwrap();
    assert_eq!(wits.len(), 1);
    wits.remove(0)
}

#[test]
fn off_by_default_they_are_unimplemented_for_everybody() {
    // STB-01, WAPI-46.
    for agent in [agent(), empty_agent()] {
        let mut client = client(&agent);
        assert_eq!(client.wits("").unwrap_err().code, 12);
        assert_eq!(client.wit_bundles().unwrap_err().code, 12);
        assert!(!agent.data_dir().join("authority/wit.pem").exists(), "no key for what is off");
    }
}

#[test]
fn a_token_verifies_by_the_bundle_and_confirms_its_key() {
    // WIT-09, WIT-10, WIT-30, WAPI-49, WAPI-53.
    let agent = switched_on();
    let mut client = client(&agent);
    let wit = only(&mut client);
    let bundles = client.wit_bundles().unwrap();
    let unproven = checked(&wit, &bundles);
    assert_eq!(unproven.named().as_str(), format!("spiffe://example.org/uid/{}", own_uid()));
    assert_eq!(wit.spiffe_id, unproven.named().as_str());
    let mut key: Value = serde_json::from_str(&wit.key).unwrap();
    assert!(key.as_object_mut().unwrap().remove("d").is_some());
    assert_eq!(key, unproven.claims()["cnf"]["jwk"]);
    let set: Value = serde_json::from_str(bundles["spiffe://example.org"].as_str().unwrap()).unwrap();
    assert_eq!(
        (set["keys"][0]["use"].as_str(), set["keys"].as_array().unwrap().len()),
        (Some("wit-svid"), 1)
    );
    assert!(set.get("spiffe_sequence").is_none());
}

#[test]
fn a_wit_is_no_jwt_svid() {
    // WIT-37.
    let agent = switched_on();
    let mut client = client(&agent);
    let wit = only(&mut client);
    for audience in ["spiffe://example.org", "db"] {
        assert_eq!(client.validate(audience, &wit.token).unwrap_err().code, 3);
    }
}

#[test]
fn no_identity_and_somebody_elses_are_refused() {
    // WAPI-55, AMB-33.
    let agent = Plan::with_entries(&[]).settings(ON).start();
    let mut stranger = client(&agent);
    let refusal = stranger.wits("").unwrap_err();
    assert_eq!((refusal.code, refusal.message.as_str()), (7, "no identity issued"));
    assert_eq!(stranger.wit_bundles().unwrap_err().code, 7);
    let agent = switched_on();
    let mut client = client(&agent);
    assert_eq!(client.wits("spiffe://example.org/somebody").unwrap_err().code, 7);
    assert_eq!(client.wits("not an id").unwrap_err().code, 3);
}

#[test]
fn several_identities_come_in_order_with_their_hints_and_one_can_be_asked_for() {
    // WAPI-47, WAPI-49.
    let entries = [
        own_entry("/low").with("priority = 1").with("hint = \"external\""),
        own_entry("/high").with("priority = 9").with("hint = \"internal\""),
    ];
    let agent = Plan::with_entries(&entries).settings(ON).start();
    let mut client = client(&agent);
    let all = client.wits("").unwrap();
    let shown: Vec<(&str, &str)> = all.iter().map(|w| (w.spiffe_id.as_str(), w.hint.as_str())).collect();
    let expected = [("spiffe://example.org/high", "internal"), ("spiffe://example.org/low", "external")];
    assert_eq!(shown, expected);
    assert_ne!(all[0].key, all[1].key, "a key for each entry");
    let one = client.wits("spiffe://example.org/low").unwrap();
    assert_eq!(one, all[1..], "the streams of one process share what it has");
}

#[test]
fn two_processes_never_share_token_or_key() {
    // WIT-24.
    let agent = switched_on();
    let (mut a, mut b) = (client(&agent), client(&agent));
    let (a, b) = (only(&mut a), only(&mut b));
    assert_ne!(a.jti(), b.jti());
    let part = |wit: &Wit| serde_json::from_str::<Value>(&wit.key).unwrap()["d"].clone();
    assert_ne!(part(&a), part(&b));
}

#[test]
fn one_stream_sees_three_renewals_with_fresh_keys() {
    let agent = Plan::for_uids(&[own_uid()]).settings(ON_AND_SHORT).start();
    let mut client = client(&agent);
    let bundles = client.wit_bundles().unwrap();
    let mut seen = vec![only(&mut client)];
    while seen.len() < 4 {
        let next = client.next_wits().expect("the stream goes on").remove(0);
        checked(&next, &bundles);
        seen.push(next);
    }
    for pair in seen.windows(2) {
        assert_ne!((pair[0].jti(), &pair[0].key), (pair[1].jti(), &pair[1].key));
        let (before, after) = (claims(&pair[0].token), claims(&pair[1].token));
        assert!(after["exp"].as_u64() > before["exp"].as_u64());
        assert!(after["iat"].as_u64() <= before["exp"].as_u64(), "no gap");
    }
}

#[test]
fn exit_revokes_the_token() {
    let agent = switched_on();
    let mut victim = client(&agent);
    let wit = only(&mut victim);
    let jti = wit.jti();
    let lease = agent.admin().live_leases_of(victim.pid()).into_iter().find(|l| l.id == jti).unwrap();
    assert_eq!((lease.kind.as_str(), lease.spiffe_id.as_str()), ("wit", wit.spiffe_id.as_str()));
    agent.audited(&["credential.issue", &jti, "\"wit\""]);
    victim.kill();
    agent.audited(&["credential.revoke", &jti, "exited"]);
    let live = agent.admin().leases(ListLeasesRequest::default());
    assert!(live.iter().all(|lease| lease.id != jti));
}

#[test]
fn a_process_that_died_while_the_agent_was_down_has_lost_its_token() {
    let mut agent = switched_on();
    let (mut gone, mut lives) = (client(&agent), client(&agent));
    let (dead, alive) = (only(&mut gone).jti(), only(&mut lives).jti());
    agent.kill();
    gone.kill();
    agent.launch();
    agent.audited(&["credential.revoke", &dead, "restart"]);
    let live = agent.admin().live_leases_of(lives.pid());
    assert!(live.iter().any(|lease| lease.id == alive), "taken over: {live:?}");
}

#[test]
fn an_operator_takes_one_back_and_the_stream_ends() {
    let agent = switched_on();
    let mut client = client(&agent);
    let jti = only(&mut client).jti();
    let answer = agent.admin().revoke(Target::LeaseId(jti.clone())).unwrap();
    assert_eq!(answer.lease_ids, [jti.as_str()]);
    let end = client.next_wits().unwrap_err();
    assert_eq!((end.code, end.message.as_str()), (7, "no identity issued"));
}

#[test]
fn a_withdrawn_entry_leaves_the_stream_and_the_last_one_ends_it() {
    // WAPI-51.
    let (a, b) = (own_entry("/a").with("priority = 2"), own_entry("/b"));
    let agent = Plan::with_entries(&[a.clone(), b]).settings(ON).start();
    let mut client = client(&agent);
    assert_eq!(client.wits("").unwrap().len(), 2);
    agent.write_entries(&[a]);
    let left = client.next_wits().unwrap();
    assert_eq!(left.iter().map(|w| w.spiffe_id.as_str()).collect::<Vec<_>>(), ["spiffe://example.org/a"]);
    agent.write_entries(&[]);
    assert_eq!(client.next_wits().unwrap_err().code, 7);
}

#[test]
fn the_authority_survives_a_restart_and_its_kid_is_its_own() {
    // WIT-03, WIT-31: one key, one name, and it is no JWT key's.
    let mut agent = switched_on();
    let kids = |agent: &Agent| {
        let status = agent.admin().status();
        let named = |kind: &str| {
            let mut rows = status.authorities.iter().filter(|row| row.kind == kind);
            rows.next().unwrap_or_else(|| panic!("no {kind} authority: {status:?}")).key_id.clone()
        };
        (named("wit"), named("jwt"))
    };
    let before = kids(&agent);
    assert_ne!(before.0, before.1);
    agent.stop();
    agent.launch();
    assert_eq!(kids(&agent), before);
}

#[test]
fn each_authority_has_a_name_of_its_own_and_what_a_tainted_one_signed_is_replaced_at_once() {
    // WIT-03, WIT-31: five rotations, and no name comes twice, nor is one a JWT key's.
    let agent = switched_on();
    let mut client = client(&agent);
    let mut wit = only(&mut client);
    let admin = agent.admin();
    let kid = |wit: &Wit| header(wit)["kid"].as_str().unwrap().to_owned();
    let mut names = vec![kid(&wit)];
    for _ in 0..5 {
        admin.order(Order::Prepare("wit".to_owned()), false).unwrap();
        let next = admin.order(Order::Activate("wit".to_owned()), true).unwrap();
        let former = names.last().unwrap().clone();
        admin.order(Order::Taint(former.clone()), false).unwrap();
        wit = client.next_wits().expect("the stream goes on").remove(0);
        names.push(kid(&wit));
        assert_eq!(names.last(), Some(&next.id), "signed by the successor");
        let mut watcher = crate::support::client(&agent);
        checked(&wit, &watcher.wit_bundles().unwrap());
        let out = admin.order(Order::Revoke(former.clone()), false).unwrap();
        assert_eq!((out.id.as_str(), out.state.as_str()), (former.as_str(), "revoked"));
        let bundles = watcher.wit_bundles().unwrap();
        assert!(!bundles.to_string().contains(&former), "out of the bundle: {bundles}");
    }
    let status = admin.status();
    names.extend(status.authorities.iter().filter(|row| row.kind == "jwt").map(|row| row.key_id.clone()));
    let unique: std::collections::BTreeSet<&String> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "{names:?}");
}

#[test]
fn both_forms_of_many_new_entries_reach_their_streams() {
    // One workload is owed both at once: they are minted in the same groups.
    let agent = Plan::with_entries(&[own_entry("/0")]).settings(ON).start();
    let mut client = client(&agent);
    assert_eq!((client.x509().svids.len(), client.wits("").unwrap().len()), (1, 1));
    agent.write_entries(&(0..20).map(|n| own_entry(&format!("/{n}"))).collect::<Vec<_>>());
    let (mut x509, mut wit) = (1, 1);
    while (x509, wit) != (20, 20) {
        let event = client.expect_any(&["x509", "x509_end", "wit", "wit_end"]);
        let count = event["svids"].as_array().unwrap_or_else(|| panic!("the streams go on: {event}")).len();
        if event["event"] == "wit" { wit = count } else { x509 = count }
    }
    let live = agent.admin().live_leases_of(client.pid());
    let of = |kind: &str| live.iter().filter(|lease| lease.kind == kind).count();
    assert_eq!((of("x509"), of("wit")), (20, 20));
}

#[test]
fn wit_keys_of_other_domains_go_to_those_whose_entries_name_them() {
    let named = own_entry("/w").with("federates_with = [\"other.test\"]");
    let agent = Plan::with_entries(&[named]).settings(ON).start();
    let mut watcher = client(&agent);
    let before = watcher.wit_bundles().unwrap();
    assert_eq!(before.as_object().unwrap().len(), 1, "nothing is known of it yet");
    let own: Value = serde_json::from_str(before["spiffe://example.org"].as_str().unwrap()).unwrap();
    let (mut wit, mut jwt) = (own["keys"][0].clone(), own["keys"][0].clone());
    wit["kid"] = "theirs".into();
    jwt["kid"] = "for-jwt".into();
    jwt["use"] = "jwt-svid".into();
    for (domain, keys) in [("other.test", vec![&wit, &jwt]), ("third.test", vec![&wit])] {
        let path = agent.dir().join(format!("{domain}.json"));
        files::replace(&path, serde_json::json!({ "keys": keys }).to_string().as_bytes(), 0o644);
        assert_eq!(agent.mayfly(&["bundle", "set", domain, path.to_str().unwrap()]).0, Some(0));
    }
    let after = client(&agent).wit_bundles().unwrap();
    assert_eq!(after.as_object().unwrap().len(), 2, "not that of `third.test`: {after}");
    assert_eq!(after["spiffe://example.org"], before["spiffe://example.org"]);
    let theirs: Value = serde_json::from_str(after["spiffe://other.test"].as_str().unwrap()).unwrap();
    assert_eq!(theirs["keys"], serde_json::json!([wit]), "and no key of another use");
    // The open stream is told as well; and again when the entry no longer asks.
    assert_eq!(watcher.expect("wit_bundles")["bundles"], after);
    agent.write_entries(&[own_entry("/w")]);
    assert_eq!(watcher.expect("wit_bundles")["bundles"], before);
}

/// The header of a token, unverified.
fn header(wit: &Wit) -> Value {
    let part = wit.token.split('.').next().unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}
