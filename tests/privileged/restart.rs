//! Restarts under a service manager that keeps descriptors: nobody is refused, nobody's exit is missed, and the
//! watchdog hears the core itself.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use mayfly_harness::manager::Manager;
use mayfly_harness::{Agent, Holder, Plan, until};

use crate::support::{Pause, WIDE, Watcher, entries_for};

const STAYS: u32 = 20_601;
const LEAVES: u32 = 20_602;
const ROOM: u32 = 64;

fn prepared() -> Agent {
    Plan::with_entries(&entries_for(&[STAYS, LEAVES])).settings(WIDE).prepare()
}

fn pidfds(manager: &mut Manager) -> usize {
    manager.names().iter().filter(|name| name.starts_with('p') && !name.contains('.')).count()
}

#[test]
fn callers_that_come_while_the_agent_restarts_wait_and_are_served() {
    let mut agent = prepared();
    let mut manager = Manager::of(&mut agent, ROOM, None);
    manager.start();
    let roles: Vec<String> =
        manager.names().iter().map(|name| name.split('.').next().unwrap().to_owned()).collect();
    assert_eq!(roles, ["admin", "http", "public"]);
    assert_eq!(manager.stop(), "0");
    // With nobody there: connect succeeds, and the answer comes from the next agent.
    let mut caller = Holder::start(&agent, STAYS);
    caller.open_x509();
    let bare: Vec<UnixStream> = (0..50).map(|_| UnixStream::connect(agent.public()).unwrap()).collect();
    assert!(caller.wait_any(&["x509", "x509_end"], Duration::from_millis(300)).is_none());
    drop(bare);
    manager.start();
    let update = caller.next_x509().expect("the one who waited is served");
    assert_eq!(update.svids[0].spiffe_id, format!("spiffe://example.org/uid/{STAYS}"));
    // Nothing is kept twice.
    let public = manager.names().iter().filter(|name| name.starts_with("public.")).count();
    assert_eq!(public, 1);
}

/// What the defence is worth: without a store the same caller is refused.
#[test]
fn without_a_store_a_caller_between_two_agents_is_refused() {
    let mut agent = prepared();
    let mut manager = Manager::of(&mut agent, 0, None);
    manager.start();
    assert_eq!(manager.names(), Vec::<String>::new());
    manager.stop();
    assert!(UnixStream::connect(agent.public()).is_err());
    manager.start();
    assert!(UnixStream::connect(agent.public()).is_ok());
}

fn exits_in_between(stop: fn(&mut Manager)) {
    let mut agent = prepared();
    let mut manager = Manager::of(&mut agent, ROOM, None);
    manager.start();
    let (mut stays, mut leaves) = (Holder::start(&agent, STAYS), Holder::start(&agent, LEAVES));
    let (kept, lost) = (stays.x509(), leaves.x509());
    until("both pidfds are kept", || (pidfds(&mut manager) == 2).then_some(()));
    stop(&mut manager);
    leaves.kill();
    manager.start();
    let mut watcher = Watcher::start(&agent);
    watcher.sees("the one who died in between", &[lost.svids[0].serial()]);
    assert!(!watcher.crl.serials.contains(kept.svids[0].serial()), "the living one keeps what it has");
    assert_eq!(agent.admin().live_leases_of(stays.pid()).len(), 1);
    assert_eq!(agent.admin().live_leases_of(leaves.pid()).len(), 0);
    // The one that lives, and the watcher: the same pidfd as before, not another of the same process.
    until("the pidfds of the living", || (pidfds(&mut manager) == 2).then_some(()));
    // And it is still watched.
    stays.kill();
    watcher.sees("the one who died afterwards", &[kept.svids[0].serial()]);
}

#[test]
fn an_exit_during_a_restart_is_found_and_the_living_keep_their_leases() {
    exits_in_between(|manager| drop(manager.stop()));
}

#[test]
fn an_exit_while_a_killed_agent_is_down_is_found_too() {
    exits_in_between(Manager::kill);
}

#[test]
fn a_socket_that_was_replaced_in_between_is_bound_anew() {
    let mut agent = prepared();
    let mut manager = Manager::of(&mut agent, ROOM, None);
    manager.start();
    manager.stop();
    std::fs::remove_file(agent.public()).unwrap();
    manager.start();
    Holder::start(&agent, STAYS).x509();
    let public = manager.names().iter().filter(|name| name.starts_with("public.")).count();
    assert_eq!(public, 1, "the deaf one is given up");
}

#[test]
fn a_process_that_needs_no_keeping_is_let_go() {
    let mut agent = Plan::with_entries(&entries_for(&[STAYS]))
        .settings("[x509]\nttl = \"10s\"\n[jwt]\nttl = \"10s\"\n")
        .prepare();
    let mut manager = Manager::of(&mut agent, ROOM, None);
    manager.start();
    let mut holder = Holder::start(&agent, STAYS);
    holder.jwt("someone").unwrap();
    until("its pidfd is kept", || (pidfds(&mut manager) == 1).then_some(()));
    // It lives; its one token runs out.
    until("its pidfd is let go", || (pidfds(&mut manager) == 0).then_some(()));
    assert!(std::path::Path::new(&format!("/proc/{}", holder.pid())).exists());
}

#[test]
fn the_watchdog_hears_the_core_and_not_a_timer() {
    let mut agent = prepared();
    let (pause, spec) = Pause::at(agent.dir(), "revoke.after_memory");
    let with = agent.plan().clone().failpoints(&spec);
    *agent.plan() = with;
    pause.release();
    let mut manager = Manager::of(&mut agent, ROOM, Some(Duration::from_millis(900)));
    manager.start();
    manager.event("note WATCHDOG=1");
    // The revoker's thread hangs from now on; every other thread runs.
    pause.arm();
    pause.hit();
    let concerns = || agent.admin().status().concerns.join("; ");
    until("the concern", || concerns().contains("the revoker does not answer").then_some(()));
    // It answered once before it hung, and that beat may still be on its way. What goes the same way after the concern
    // comes after it: a pidfd to keep.
    let mut stays = Holder::start(&agent, STAYS);
    stays.x509();
    until("what was said before has come", || (pidfds(&mut manager) == 1).then_some(()));
    manager.discard();
    assert!(
        manager.event_within("note WATCHDOG=1", Duration::from_secs(2)).is_none(),
        "a stuck revoker beats"
    );
    pause.release();
    for _ in 0..3 {
        manager.event("note WATCHDOG=1");
    }
    until("no concern", || (!concerns().contains("revoker")).then_some(()));
}

/// To start again would not mend the disk, and memory would forget what it refuses.
#[test]
fn a_revoker_that_waits_for_the_disk_goes_on_living() {
    let mut agent = prepared();
    let (pause, spec) = Pause::at(agent.dir(), "ledger.before_begin");
    let with = agent.plan().clone().failpoints(&spec);
    *agent.plan() = with;
    pause.release();
    let mut manager = Manager::of(&mut agent, ROOM, Some(Duration::from_millis(900)));
    manager.start();
    let mut leaves = Holder::start(&agent, LEAVES);
    leaves.x509();
    pause.arm();
    leaves.kill();
    pause.hit();
    manager.discard();
    for _ in 0..3 {
        manager.event("note WATCHDOG=1");
    }
    // The first of them may have been on its way since before.
    until("the concern", || {
        agent.admin().status().concerns.join("; ").contains("waits for the disk").then_some(())
    });
}

/// Threats A16 and G13.
#[test]
fn a16_a_socket_that_somebody_takes_away_is_put_back() {
    let agent = Plan::with_entries(&entries_for(&[STAYS])).settings(WIDE).start();
    let public = agent.public();
    let aside = public.with_extension("aside");
    // Root of a container that was given the directory writable: it listens in the agent's place.
    let impostor = UnixListener::bind(&aside).unwrap();
    std::fs::rename(&aside, &public).unwrap();
    agent.audited(&["agent.socket_replaced", "replaced", public.to_str().unwrap()]);
    Holder::start(&agent, STAYS).x509();
    impostor.set_nonblocking(true).unwrap();
    assert!(impostor.accept().is_err(), "nobody came to the impostor after that");
    until("ready again", || agent.admin().status().ready.then_some(()));
    std::fs::remove_file(&public).unwrap();
    agent.audited(&["agent.socket_replaced", "removed"]);
    Holder::start(&agent, STAYS).x509();
    // The whole directory, as a careless clean-up takes it.
    // The agent may have put a socket back between the two steps of it.
    let whole = public.parent().unwrap();
    until("the directory is gone", || std::fs::remove_dir_all(whole).ok());
    until("a socket in a new directory", || UnixStream::connect(&public).ok());
    Holder::start(&agent, STAYS).x509();
}
