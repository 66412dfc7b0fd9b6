//! Entries come and go while streams are open.

use mayfly_harness::until;

use crate::support::{agent, client, empty_agent, own_entry};

#[test]
fn withdrawn_entry_ends_streams_and_revokes() {
    let agent = agent();
    let mut client = client(&agent);
    let serial = client.x509().svids[0].serial().to_owned();
    agent.write_entries(&[]);
    let end = client.x509_end();
    assert_eq!((end.code, end.message.as_str()), (7, "no identity issued"));
    agent.audited(&["credential.revoke", &serial, "entry_withdrawn"]);
}

#[test]
fn new_entry_reaches_an_open_stream() {
    let agent = agent();
    let mut client = client(&agent);
    let first = client.x509();
    assert_eq!(first.svids.len(), 1);
    let mut entries = vec![own_entry("/second")];
    entries.push(own_entry(first.svids[0].spiffe_id.trim_start_matches("spiffe://example.org")));
    agent.write_entries(&entries);
    let second = client.next_x509().unwrap();
    assert_eq!(second.svids.len(), 2);
}

/// Ancestors are looked at only where some entry asks for one.
#[test]
fn entry_that_asks_for_an_ancestor_reaches_an_open_stream() {
    let agent = agent();
    let mut client = client(&agent);
    let first = client.x509();
    assert_eq!(first.svids.len(), 1);
    let known = first.svids[0].spiffe_id.trim_start_matches("spiffe://example.org").to_owned();
    let hash = mayfly_harness::files::sha256(&std::env::current_exe().unwrap());
    let mut below = own_entry("/below-the-tests");
    below.selectors.push(format!("process:ancestor_sha256:{hash}"));
    agent.write_entries(&[own_entry(&known), below]);
    let second = client.next_x509().unwrap();
    assert_eq!(second.svids.len(), 2, "{:?}", second.svids);
    assert_eq!(second.svids.iter().filter(|s| s.serial() == first.svids[0].serial()).count(), 1);
    // Its certificate of before is still good: nothing was taken back on the way.
    assert!(second.crls.iter().all(|crl| crl.serials.is_empty()));
}

#[test]
fn twenty_identities_come_in_one_message() {
    let agent = empty_agent();
    agent.write_entries(&(0..20).map(|n| own_entry(&format!("/n/{n}"))).collect::<Vec<_>>());
    until("the new set", || (agent.admin().entries().entries.len() == 20).then_some(()));
    let mut client = client(&agent);
    let first = client.x509();
    assert_eq!(first.svids.len(), 20);
    let serials: std::collections::BTreeSet<&str> = first.svids.iter().map(|s| s.serial()).collect();
    assert_eq!(serials.len(), 20);
}

#[test]
fn process_that_had_nothing_is_served_as_soon_as_an_entry_matches() {
    let agent = empty_agent();
    let mut client = client(&agent);
    assert_eq!(client.x509_refused().code, 7);
    agent.write_entries(&[own_entry("/late")]);
    let update = until("an identity", || {
        client.open_x509();
        client.next_x509().ok()
    });
    assert_eq!(update.svids[0].spiffe_id, "spiffe://example.org/late");
}

#[test]
fn denial_says_in_the_audit_log_which_entry_was_held_back_and_why() {
    let agent = empty_agent();
    agent.write_entries(&[own_entry("/late").with("id = \"held\"\nuntil = 2020-01-01T00:00:00Z")]);
    until("the new set", || (agent.admin().entries().entries.len() == 1).then_some(()));
    let refusal = client(&agent).x509_refused();
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (7, "no identity issued"),
        "the caller learns nothing"
    );
    agent.audited(&["attest_denied", "entry held", "until"]);
}

#[test]
fn explaining_a_process_that_does_not_exist_says_so() {
    let agent = agent();
    // Beyond the largest number a process can have.
    for pid in [4_194_305, u32::MAX] {
        let refusal = agent.admin().explain(pid).unwrap_err();
        assert_eq!(refusal.code(), tonic::Code::NotFound, "{refusal:?}");
        let (code, out, err) = agent.mayfly(&["explain", "--pid", &pid.to_string()]);
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(err.contains(&format!("no process {pid}")), "{err}");
    }
}

#[test]
fn list_shows_what_is_in_force() {
    let agent = agent();
    let before = agent.admin().entries();
    assert_eq!(before.entries.len(), 1);
    agent.write_entries(&[own_entry("/a"), own_entry("/b")]);
    until("the new set", || (agent.admin().entries().entries.len() == 2).then_some(()));
    assert_ne!(agent.admin().entries().version, before.version);
}
