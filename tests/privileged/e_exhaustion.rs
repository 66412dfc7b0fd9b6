//! Threats E: what one uid does to the socket is its own problem.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Holder, Plan, until};

use crate::support::{WIDE, Watcher, entries_for, lines_of, run, socket, svids};

const ATTACKER: u32 = 20_301;
const USER: u32 = 20_302;

fn agent_with(settings: &str) -> Agent {
    Plan::with_entries(&entries_for(&[ATTACKER, USER])).settings(settings).start()
}

/// How many bombs, and how long each would hold up whoever closes it.
const BOMBS: usize = 8;
const LINGER: Duration = Duration::from_secs(12);

/// Calls that touch no disk, a hundred a second, each timed, on a thread of their own.
struct Heartbeat {
    stop: Arc<AtomicBool>,
    beats: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Heartbeat {
    #[expect(clippy::disallowed_methods, reason = "compares with the attacker's own clock")]
    fn start(agent: &Agent) -> Self {
        let mut holder = Holder::start(agent, USER);
        let token = holder.jwt("aud").unwrap().remove(0).text;
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let beats = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&beats);
        let thread = std::thread::spawn(move || {
            let mut took = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                let began = std::time::Instant::now();
                holder.validate("aud", &token).unwrap();
                took.push(began.elapsed());
                counter.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(10));
            }
            took
        });
        Self { stop, beats, thread }
    }

    /// Waits for that many more.
    fn beats(&self, more: usize) {
        let enough = self.beats.load(Ordering::Acquire) + more;
        until("heartbeats", || (self.beats.load(Ordering::Acquire) >= enough).then_some(()));
    }

    /// One close that waits would hold a call up for seconds; the bound for most of them is the design's.
    #[expect(clippy::print_stdout, reason = "a figure for whoever reads the log")]
    fn was_steady(self) {
        self.stop.store(true, Ordering::Release);
        let mut took = self.thread.join().unwrap();
        took.sort();
        let (beats, median, longest) = (took.len(), took[took.len() / 2], *took.last().unwrap());
        println!("heartbeat under E01: {beats} beats, median {median:?}, longest {longest:?}");
        assert!(median <= Duration::from_millis(50) && longest < LINGER / 4, "{median:?}, {longest:?}");
    }
}

/// Closing a lingering TCP socket blocks for as long as its sender likes. Calls and revocation go on. Where the
/// kernel lets a socket refuse descriptors (6.16), the sender gets EPERM and no bomb ever reaches the agent; on an
/// older one they arrive, and the agent must live with them.
#[expect(clippy::disallowed_methods, reason = "compares with the attacker's own clock")]
fn linger_bomb(how: &str) {
    let agent = agent_with(WIDE);
    let mut watcher = Watcher::start(&agent);
    let mut victim = Holder::start(&agent, USER);
    let serial = victim.x509().svids[0].serial().to_owned();
    let heart = Heartbeat::start(&agent);
    let args = [&socket(&agent), &LINGER.as_secs().to_string(), &BOMBS.to_string(), how];
    let start = std::time::Instant::now();
    let mut bombs = Tool::run(&agent, ATTACKER, "linger", &args);
    let mut sent = Vec::new();
    until("the bombs are sent or refused", || {
        sent.extend(bombs.expect_within("sent", Duration::ZERO));
        (sent.len() == BOMBS).then_some(())
    });
    bombs.expect("armed");
    heart.beats(30);
    let refusable =
        !agent.admin().status().platform.iter().any(|line| line.contains("can attach descriptors"));
    let expected = if refusable { "Operation not permitted" } else { "ok" };
    assert!(sent.iter().all(|outcome| outcome == expected), "{sent:?}");
    Holder::start(&agent, USER).jwt("aud").unwrap();
    victim.kill();
    watcher.sees("the victim's serial, during the attack", &[&serial]);
    bombs.tell("go");
    bombs.wait();
    heart.was_steady();
    assert!(start.elapsed() < LINGER, "waited for the bombs");
}

#[test]
fn e01_lingering_socket_in_a_read_stops_nobody() {
    linger_bomb("read");
}

#[test]
fn e01_lingering_socket_left_in_the_queue_stops_nobody() {
    linger_bomb("queue");
}

#[test]
fn e03_flood_of_connections_keeps_nobody_out() {
    let agent = agent_with("[x509]\nttl = \"15m\"\n");
    let mut flood = Tool::run(&agent, ATTACKER, "press", &["flood", &socket(&agent)]);
    flood.expect("flooding");
    // The attacker has long had more than its share when the next comes.
    for _ in 0..3 {
        Holder::start(&agent, USER).x509();
    }
    flood.tell("go");
    let flooded = flood.expect("flooded");
    let made: u32 = flooded.split_whitespace().next().unwrap().parse().unwrap();
    assert!(made > 1_000, "that was no flood: {flooded}");
}

/// One user's connections, however many it opens and keeps, leave room for everybody else's.
#[test]
fn e03_connections_that_one_user_keeps_do_not_fill_the_agent() {
    let limits = "[limits]\nconnections = 40\nconnections_per_uid = 16\nconnections_per_cgroup = 40\n";
    let agent = agent_with(limits);
    let mut fill = Tool::run(&agent, ATTACKER, "press", &["fill", &socket(&agent), "200"]);
    fill.expect("filled");
    for _ in 0..3 {
        Holder::start(&agent, USER).x509();
    }
    fill.tell("go");
}

#[test]
fn e05_half_open_connections_are_closed() {
    let agent = agent_with("[x509]\nttl = \"15m\"\n");
    for part in ["nothing", "preface", "settings"] {
        let mut client = Tool::run(&agent, ATTACKER, "press", &["half", &socket(&agent), part]);
        client.expect("waiting");
        client.expect("closed");
    }
    // One that asked in time stays, however quiet it is.
    let mut holder = Holder::start(&agent, USER);
    holder.x509();
    assert!(holder.wait_any(&["x509_end"], Duration::from_secs(7)).is_none());
}

/// Each call costs us an attestation; a uid has a share of those, and only its own calls are refused.
#[test]
fn e10_attestations_are_rationed_per_uid() {
    let agent = agent_with("[x509]\nttl = \"15m\"\n[attest]\nper_second = 2\nburst = 4\nin_flight = 4\n");
    let sock = socket(&agent);
    let tools: Vec<Tool> = (0..16).map(|_| Tool::run(&agent, ATTACKER, "peer", &["call", &sock])).collect();
    let mut served = 0;
    let mut refused = 0;
    for mut tool in tools {
        until("an answer", || {
            let short = Duration::from_millis(5);
            if tool.expect_within("svid", short).is_some() {
                served += 1;
                return Some(());
            }
            let status = tool.expect_within("status", short)?;
            assert_eq!(status, "14");
            refused += 1;
            Some(())
        });
    }
    assert!(served >= 4 && refused >= 4, "{served} served, {refused} refused");
    // The share of another uid is untouched.
    for _ in 0..4 {
        assert_eq!(svids(&short_call(&agent)).len(), 1);
    }
}

fn short_call(agent: &Agent) -> Vec<String> {
    let mut tool = Tool::run(agent, USER, "peer", &["call", &socket(agent)]);
    let serial = tool.expect("svid");
    tool.kill();
    vec![format!("svid {serial}")]
}

/// CPU time of a process so far, in clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Everything a stranger can take is taken; who was there before keeps what it has and gets its next certificate.
#[test]
fn e13_without_descriptors_streams_live_on_and_nothing_spins() {
    let settings = "[x509]\nttl = \"10s\"\n[limits]\nconnections_per_uid = 4096\n";
    let wrapper = ["prlimit", "--nofile=160:160", "--"];
    let plan = Plan::with_entries(&entries_for(&[ATTACKER, USER])).settings(settings).wrapped(&wrapper);
    let agent = plan.start();
    let mut watcher = Watcher::start(&agent);
    let mut holders: Vec<Holder> = (0..4).map(|_| Holder::start(&agent, USER)).collect();
    for holder in &mut holders {
        holder.x509();
    }
    let mut press = Tool::run(&agent, ATTACKER, "press", &["fill", &socket(&agent), "200"]);
    press.expect("filled");
    until("the agent says that it is not ready", || agent.log().contains("not ready").then_some(()));
    let before = cpu_ticks(agent.pid());
    std::thread::sleep(Duration::from_secs(2));
    let spent = cpu_ticks(agent.pid()) - before;
    assert!(spent < 100, "{spent} ticks of CPU in two idle seconds: a busy loop");
    let mut newest = String::new();
    for holder in &mut holders {
        for _ in 0..2 {
            let next = holder.next_x509().expect("the stream rotates although no descriptor is free");
            newest = next.svids[0].serial().to_owned();
        }
    }
    holders.last_mut().unwrap().kill();
    watcher.sees("a revocation without a free descriptor", &[&newest]);
    press.tell("go");
    press.wait();
    until("new clients again", || {
        let mut fresh = Holder::start(&agent, USER);
        fresh.open_x509();
        fresh.next_x509().ok()
    });
    until("ready again", || agent.admin().status().ready.then_some(()));
}

/// Not one file can be opened: nobody is found changed, nothing is sent, and what can be done without goes on.
#[test]
fn e13_a_look_that_cannot_be_had_takes_nothing_away() {
    let agent = agent_with(WIDE);
    let mut watcher = Watcher::start(&agent);
    let mut victim = Holder::start(&agent, USER);
    let dead = victim.x509().svids[0].serial().to_owned();
    let mut holder = Holder::start(&agent, USER);
    let held = holder.x509().svids[0].serial().to_owned();
    let pid = agent.pid().to_string();
    let limit = |soft: &str| run("prlimit", &["--pid", &pid, &format!("--nofile={soft}:")]);
    limit("1");
    victim.kill();
    watcher.sees("a revocation without a descriptor", &[&dead]);
    assert_eq!(holder.jwt("aud").expect_err("issued unseen").code, 14);
    let pushed = holder.wait_any(&["x509", "x509_end"], Duration::from_millis(500));
    assert!(pushed.is_none(), "unseen: {pushed:?}");
    limit("1024");
    let next = holder.next_x509().expect("the stream lives on");
    assert_eq!(next.svids[0].serial(), held);
    assert!(next.crls[0].serials.contains(&dead) && !next.crls[0].serials.contains(&held));
    holder.jwt("aud").unwrap();
}

/// An answer for a stranger is a refusal, not silence.
#[test]
fn e10_stranger_without_identity_is_told_so() {
    let agent = agent_with(WIDE);
    let lines = lines_of(&agent, 20_399, "peer", &["call", &socket(&agent)]);
    assert!(lines.contains(&"status 7".to_owned()), "{lines:?}");
}
