//! Threats G: killed anywhere, and clocks that jump.

use std::path::Path;

use mayfly_harness::tools::compile_preload;
use mayfly_harness::{Agent, Holder, Plan, WallClock, full, until};

use crate::support::{SHORT, WIDE, Watcher, entries_for, utf8};

const USER: u32 = 20_501;
const OTHER: u32 = 20_502;

/// Points on the way of an issue: a kill there must leave no credential outside the ledger.
const ISSUE: &[&str] = &[
    "ledger.before_begin",
    "ledger.after_insert",
    "ledger.after_commit",
    "issue.before_commit",
    "issue.after_commit",
    "issue.before_release",
];

/// Points on the way of a revocation: a kill there must not let a dead serial slip.
const REVOKE: &[&str] = &[
    "revoke.after_memory",
    "revoke.after_ledger",
    "revoke.after_sign",
    "revoke.before_witness",
    "revoke.after_witness",
    "revoke.before_audit",
    "audit.before_write",
    "audit.after_write",
];

fn plan() -> Plan {
    Plan::with_entries(&entries_for(&[USER, OTHER])).settings(WIDE)
}

fn relaunch_with(agent: &mut Agent, failpoints: &str) {
    let with = agent.plan().clone().failpoints(failpoints);
    *agent.plan() = with;
    agent.launch();
}

fn rounds() -> usize {
    if full() { 25 } else { 2 }
}

/// Waits for the agent to be killed by its failpoint.
fn killed(agent: &mut Agent, point: &str) {
    until(&format!("the kill at {point}"), || (!agent.is_running()).then_some(()));
    agent.kill();
}

#[test]
fn g01_kill_during_issue_leaves_nothing_outside_the_ledger() {
    let mut agent = plan().start();
    agent.stop();
    for point in ISSUE {
        let mut last = 0;
        for _ in 0..rounds() {
            let with = agent.plan().clone().failpoints(&format!("{point}=kill"));
            *agent.plan() = with;
            if agent.try_launch().is_err() {
                continue; // it goes through that point while it starts: killed there, it comes back below
            }
            let mut holder = Holder::start(&agent, USER);
            holder.open_x509();
            killed(&mut agent, point);
            let delivered = holder.next_x509().ok();
            holder.kill();
            relaunch_with(&mut agent, "");
            let watcher = Watcher::start(&agent);
            if let Some(update) = delivered {
                let serial = update.svids[0].serial();
                assert!(watcher.crl.serials.contains(serial), "{point}: released, dead, and not listed");
            }
            assert!(watcher.crl.number > last, "{point}: the CRL number fell");
            last = watcher.crl.number;
            assert!(agent.admin().live_leases_of(holder.pid()).is_empty(), "{point}");
            agent.stop();
        }
    }
}

#[test]
fn g01_kill_during_revocation_loses_no_dead_serial() {
    let mut agent = plan().start();
    let mut living = Holder::start(&agent, OTHER);
    let alive = living.x509().svids[0].serial().to_owned();
    agent.stop();
    let mut dead: Vec<String> = Vec::new();
    let mut last = 0;
    for point in REVOKE {
        for _ in 0..rounds() {
            relaunch_with(&mut agent, "");
            let mut holder = Holder::start(&agent, USER);
            dead.push(holder.x509().svids[0].serial().to_owned());
            agent.kill();
            // Adopted at start, then its death is what meets the failpoint. Where the start itself goes
            // through the point, the death comes first and the restart revokes.
            let with = agent.plan().clone().failpoints(&format!("{point}=kill"));
            *agent.plan() = with;
            let started = agent.try_launch().is_ok();
            holder.kill();
            if started {
                killed(&mut agent, point);
            } else {
                agent.try_launch().expect_err("killed at start again");
            }
            relaunch_with(&mut agent, "");
            let watcher = Watcher::start(&agent);
            for serial in &dead {
                assert!(watcher.crl.serials.contains(serial), "{point}: a dead serial is missing");
            }
            assert!(!watcher.crl.serials.contains(&alive), "{point}: a living serial is listed");
            assert!(watcher.crl.number > last, "{point}: the CRL number fell");
            last = watcher.crl.number;
            let (code, out, err) = agent.mayfly(&["audit", "verify", utf8(&agent.audit_path())]);
            assert_eq!(code, Some(0), "{point}: {out}{err}");
            agent.kill();
        }
    }
}

/// The machine stopped in the middle of an audit line.
#[test]
fn g01_torn_audit_line_is_told_from_tampering() {
    let mut agent = plan().start();
    Holder::start(&agent, USER).x509();
    agent.kill();
    let path = agent.audit_path();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
    agent.launch();
    Holder::start(&agent, USER).x509();
    agent.stop();
    let (code, out, err) = agent.mayfly(&["audit", "verify", utf8(&path)]);
    assert_eq!(code, Some(0), "{out}{err}");
}

const DAY: i64 = 86_400;

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

fn agent_with_clock(settings: &str) -> (Agent, WallClock) {
    let mut agent = Plan::with_entries(&entries_for(&[USER, OTHER])).settings(settings).prepare();
    let clock = WallClock::give(&mut agent);
    agent.launch();
    (agent, clock)
}

#[test]
fn g07_clock_a_day_ahead_reissues_what_looks_expired() {
    let (agent, clock) = agent_with_clock(SHORT);
    let mut watcher = Watcher::start(&agent);
    let mut holder = Holder::start(&agent, USER);
    let first = holder.x509().svids.remove(0);
    clock.shift(DAY);
    let fresh = loop {
        let next = holder.next_x509().expect("the stream goes on").svids.remove(0);
        if next.leaf.not_after > now() + DAY - 60 {
            break next;
        }
        assert!(next.leaf.not_after >= first.leaf.not_after);
    };
    assert!(fresh.leaf.not_before <= now() + DAY, "not valid yet by the agent's own clock");
    holder.kill();
    let crl = watcher.sees("the serial, by the new clock", &[fresh.serial()]);
    assert!(crl.this_update <= now() + DAY);
}

/// A day back lies before the birth of this agent's own authority: nothing that it signs now would be valid for a
/// verifier with the same clock, and what a verifier with the right clock would accept must not be dated by a wrong
/// one. So it issues nothing and says why. Revocation goes on, in order.
#[test]
fn g08_clock_a_day_back_keeps_numbers_rising_and_says_so() {
    let (agent, clock) = agent_with_clock(WIDE);
    let mut watcher = Watcher::start(&agent);
    let mut held: Vec<Holder> = (0..3).map(|_| Holder::start(&agent, USER)).collect();
    let serials: Vec<String> = held.iter_mut().map(|h| h.x509().svids[0].serial().to_owned()).collect();
    let mut survivor = Holder::start(&agent, OTHER);
    survivor.x509();
    let mut before = watcher.crl.clone();
    clock.shift(-DAY);
    until("it says so by itself", || {
        let status = agent.admin().status();
        let says = |name: &str| status.concerns.iter().any(|c| c.starts_with(name));
        (!status.ready && says("clock: ") && says("X.509 authority: ") && says("JWT authority: "))
            .then_some(())
    });
    assert_eq!(Holder::start(&agent, USER).x509_refused().code, 14);
    let refused = Holder::start(&agent, USER).jwt("aud").expect_err("a token from yesterday");
    assert_eq!(refused.code, 14, "{refused:?}");
    for (holder, serial) in held.iter_mut().zip(&serials) {
        holder.kill();
        let crl = watcher.sees("the serial", &[serial]);
        assert!(crl.number > before.number && crl.this_update > before.this_update);
        before = crl;
    }
    assert!(!survivor.x509_has_ended(), "an old certificate is as good as it was");
    clock.shift(0);
    let serial = until("it issues again", || {
        let mut fresh = Holder::start(&agent, OTHER);
        fresh.open_x509();
        let svid = fresh.next_x509().ok()?.svids.remove(0);
        Some(svid.serial().to_owned())
    });
    let crl = watcher.sees("the serial, after the clock was set right", &[&serial]);
    assert!(crl.number > before.number && crl.this_update > before.this_update);
    assert!(crl.this_update <= now());
    until("ready again", || agent.admin().status().ready.then_some(()));
}

/// Where the authority is older than the step, certificates are dated by the clock that there is: never later.
#[test]
fn g08_certificates_are_never_dated_ahead_of_the_clock() {
    let (agent, clock) = agent_with_clock(WIDE);
    clock.shift(DAY);
    Holder::start(&agent, USER).x509();
    clock.shift(0);
    let svid = Holder::start(&agent, USER).x509().svids.remove(0);
    assert!(svid.leaf.not_before <= now(), "not valid yet for a verifier with that clock");
}

/// The preload object must exist for the agent before it starts; a wrong path would silently do nothing.
#[test]
fn g07_the_clock_tool_itself_works() {
    let preload = compile_preload("clockshift");
    let dir = mayfly_harness::files::short_dir();
    let file = dir.path().join("clock");
    std::fs::write(&file, DAY.to_ne_bytes()).unwrap();
    let date = |path: &Path| {
        let output = std::process::Command::new("date")
            .arg("+%s")
            .env("LD_PRELOAD", path)
            .env("MAYFLY_TEST_CLOCK", &file)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
    };
    assert!(date(&preload) >= now() + DAY - 5);
}
