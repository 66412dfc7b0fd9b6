//! The product's promise, whole: many processes, several users, deaths, and a restart in the middle.

use std::collections::BTreeSet;

use mayfly_harness::pki::openssl_verify;
use mayfly_harness::{Agent, Holder, Plan, Svid, Token, until};

use crate::support::{WIDE, Watcher, entries_for};

const USERS: [u32; 3] = [20_801, 20_802, 20_803];
const PROCESSES: usize = 50;

struct Member {
    holder: Holder,
    svid: Svid,
    token: Token,
}

impl Member {
    fn start(agent: &Agent, n: usize) -> Self {
        let mut holder = Holder::start(agent, USERS[n % USERS.len()]);
        let svid = holder.x509().svids.remove(0);
        let token = holder.jwt("peer").unwrap().remove(0);
        assert!(svid.spiffe_id.ends_with(&USERS[n % USERS.len()].to_string()));
        Self { holder, svid, token }
    }
}

/// Everybody's serial and token, alive or dead, are what they should be.
fn check(agent: &Agent, watcher: &mut Watcher, living: &[Member], dead: &[Member]) {
    let expected: BTreeSet<String> = dead.iter().map(|m| m.svid.serial().to_owned()).collect();
    let serials: Vec<&str> = expected.iter().map(String::as_str).collect();
    let crl = watcher.sees("the serials of the dead", &serials);
    assert_eq!(crl.serials, expected, "exactly the dead are listed");
    let bundle = watcher.bundle.clone();
    for member in living {
        openssl_verify(agent.dir(), &member.svid.leaf.der, &bundle, &crl.der).unwrap();
        let id = watcher.holder().validate("peer", &member.token.text).unwrap();
        assert_eq!(id, member.token.spiffe_id);
    }
    for member in dead {
        let said = openssl_verify(agent.dir(), &member.svid.leaf.der, &bundle, &crl.der).unwrap_err();
        assert!(said.contains("certificate revoked"), "{said}");
        let refusal = watcher.holder().validate("peer", &member.token.text).unwrap_err();
        assert_eq!(refusal.code, 3, "{refusal:?}");
    }
}

fn nobody_noticed(living: &mut [Member]) {
    for member in living {
        assert!(!member.holder.x509_has_ended(), "a stream ended that had nothing to do with it");
    }
}

#[test]
fn fifty_processes_of_three_uids_die_alone() {
    let mut agent = Plan::with_entries(&entries_for(&USERS)).settings(WIDE).start();
    let mut watcher = Watcher::start(&agent);
    let mut living: Vec<Member> = (0..PROCESSES).map(|n| Member::start(&agent, n)).collect();
    let all: BTreeSet<&str> = living.iter().map(|m| m.svid.serial()).collect();
    assert_eq!(all.len(), PROCESSES, "no two processes share a serial");
    let keys: BTreeSet<&[u8]> = living.iter().map(|m| m.svid.key.as_slice()).collect();
    assert_eq!(keys.len(), PROCESSES, "no two processes share a key");
    let mut dead: Vec<Member> = Vec::new();
    check(&agent, &mut watcher, &living, &dead);
    // One at a time, from all over the list.
    for n in [0, 17, 40] {
        let mut victim = living.swap_remove(n);
        victim.holder.kill();
        dead.push(victim);
        check(&agent, &mut watcher, &living, &dead);
        nobody_noticed(&mut living);
    }
    // A handful at once.
    let mut victims: Vec<Member> = living.drain(5..12).collect();
    for victim in &mut victims {
        victim.holder.kill_unreaped();
    }
    dead.append(&mut victims);
    check(&agent, &mut watcher, &living, &dead);
    nobody_noticed(&mut living);
    // The agent is killed; some die while nobody looks; it comes back and has lost nothing.
    agent.kill();
    for _ in 0..5 {
        let mut victim = living.swap_remove(3);
        victim.holder.kill();
        dead.push(victim);
    }
    agent.launch();
    let mut watcher = Watcher::start(&agent);
    assert_eq!(watcher.crl.serials.len(), dead.len(), "complete in the first message after the restart");
    check(&agent, &mut watcher, &living, &dead);
    // The living hold on to what they have, and can ask again.
    for member in &mut living {
        member.holder.x509_end();
        member.holder.connect();
        let again = member.holder.x509().svids.remove(0);
        assert_eq!(again.spiffe_id, member.svid.spiffe_id);
    }
    // Deaths after the restart are seen as before; a process that asked again has two serials by now.
    let mut victim = living.swap_remove(0);
    victim.holder.kill();
    watcher.sees("a death after the restart", &[victim.svid.serial()]);
    until("its token is refused", || watcher.holder().validate("peer", &victim.token.text).err());
    for member in &mut living {
        let id = watcher.holder().validate("peer", &member.token.text).unwrap();
        assert_eq!(id, member.token.spiffe_id);
    }
}

/// A stop in good order changes nothing of that.
#[test]
fn orderly_restart_loses_nothing() {
    let mut agent = Plan::with_entries(&entries_for(&USERS)).settings(WIDE).start();
    let mut watcher = Watcher::start(&agent);
    let mut living: Vec<Member> = (0..6).map(|n| Member::start(&agent, n)).collect();
    let mut victim = living.swap_remove(0);
    victim.holder.kill();
    let number = watcher.sees("the serial", &[victim.svid.serial()]).number;
    agent.stop();
    agent.launch();
    let mut watcher = Watcher::start(&agent);
    assert!(watcher.crl.number > number);
    check(&agent, &mut watcher, &living, &[victim]);
}
