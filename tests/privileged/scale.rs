//! A thousand SDS streams and a thousand Workload API streams of two hundred processes on one agent: everybody's
//! certificate rotates, then half of the processes die at once.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mayfly_harness::{Entry, Holder, Plan, require_root};
use mayfly_proto::admin::ListLeasesRequest;
use serde_json::json;

const CROWD: u32 = 20_961;
const PROCESSES: usize = 200;
const DYING: usize = 100;
/// For each process: five SDS streams of both protocols, five of the Workload API.
const KINDS: [&str; 10] =
    ["world", "world", "world", "delta", "delta", "x509", "x509", "x509", "x509", "x509"];
/// Two thousand streams on two shared cores, in a debug build.
const PATIENCE: Duration = Duration::from_secs(120);

const SETTINGS: &str = "[x509]\nttl = \"30s\"\n\
    [attest]\nper_second = 100000\nburst = 100000\nin_flight = 1024\n\
    [limits]\nconnections = 16384\nconnections_per_uid = 16384\nconnections_per_cgroup = 16384\n";

/// What one stream last reported.
#[derive(Clone, Debug, Default)]
struct Stream {
    first: String,
    serial: String,
    rotated_at: u64,
    revoked: u64,
    revoked_at: u64,
}

struct Member {
    holder: Holder,
    streams: Vec<Stream>,
}

impl Member {
    fn start(agent: &mayfly_harness::Agent) -> Self {
        let mut holder = Holder::start(agent, CROWD);
        holder.order(&json!({"do": "follow", "kinds": KINDS}));
        Self { holder, streams: vec![Stream::default(); KINDS.len()] }
    }

    /// Takes in reports until every stream satisfies `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Stream) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !self.streams.iter().all(&done) {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.holder.wait_any(&["whole", "mixed", "lost"], left);
            let event = event.unwrap_or_else(|| panic!("{what}: {:#?}", self.streams));
            self.take_in(&event);
        }
    }

    fn take_in(&mut self, event: &serde_json::Value) {
        assert_eq!(event["event"], "whole", "{event}");
        let number = |field: &str| event[field].as_u64().unwrap();
        let stream = &mut self.streams[usize::try_from(number("tag")).unwrap()];
        let serial = event["serial"].as_str().unwrap();
        if stream.first.is_empty() {
            serial.clone_into(&mut stream.first);
        } else if stream.rotated_at == 0 && serial != stream.first {
            stream.rotated_at = number("micros");
        }
        serial.clone_into(&mut stream.serial);
        (stream.revoked, stream.revoked_at) = (number("revoked"), number("micros"));
    }
}

fn micros_now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn figure(what: &str, samples: &mut [u64]) {
    samples.sort_unstable();
    let at = |percent: usize| samples[(samples.len() - 1) * percent / 100];
    let [p50, p99, most] =
        [at(50), at(99), at(100)].map(|micros| Duration::from_micros(micros).as_secs_f64() * 1e3);
    let line =
        format!("FIGURE {what}: p50 {p50:.1} ms, p99 {p99:.1} ms, max {most:.1} ms (n = {})", samples.len());
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
}

#[test]
fn two_thousand_streams_see_rotations_and_a_hundred_exits_whole() {
    require_root();
    let agent = Plan::with_entries(&[Entry::for_uid(CROWD)]).settings(SETTINGS).start();
    // One after the other: a start of all at once is another test's subject.
    let mut crowd: Vec<Member> = Vec::new();
    for _ in 0..PROCESSES {
        let mut member = Member::start(&agent);
        member.until("a first message", |stream| !stream.first.is_empty());
        crowd.push(member);
    }
    let sds = agent.admin().status().sds.unwrap();
    assert_eq!((sds.streams, sds.waiting), (1_000, 0));

    for member in &mut crowd {
        member.until("a second certificate", |stream| stream.rotated_at > 0);
    }
    let spread = |member: &Member| {
        let times = member.streams.iter().map(|stream| stream.rotated_at);
        times.clone().max().unwrap() - times.min().unwrap()
    };
    figure(
        "rotation, first to last of a process's ten streams",
        &mut crowd.iter().map(spread).collect::<Vec<_>>(),
    );

    let mut dying = crowd.split_off(PROCESSES - DYING);
    let leases = agent.admin().leases(ListLeasesRequest::default());
    let pids: Vec<u32> = dying.iter().map(|member| member.holder.pid()).collect();
    let theirs = u64::try_from(leases.iter().filter(|lease| pids.contains(&lease.pid)).count()).unwrap();
    assert!(theirs >= 100);
    let since = micros_now();
    for member in &mut dying {
        member.holder.kill_unreaped();
    }
    let killed = micros_now();
    let expected = u64::try_from(DYING).unwrap();
    for member in &mut crowd {
        member.until("the CRL with the dead", |stream| {
            stream.revoked >= expected && stream.revoked_at >= since
        });
    }
    let all: Vec<u64> =
        crowd.iter().flat_map(|m| &m.streams).map(|s| s.revoked_at.saturating_sub(since)).collect();
    figure("100 exits → CRL with at least 100 serials, each surviving stream", &mut all.clone());
    figure("the kills themselves took", &mut [killed - since]);
    let sds = agent.admin().status().sds.unwrap();
    assert_eq!(sds.streams, 500, "the streams of the living");
    assert_eq!(sds.refused, 0);
}

/// Ends a load however the test ends.
struct Load(Arc<AtomicBool>);

impl Load {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {});
        }
        Self(stop)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All at once, on cores that are busy besides, with a program that is too young for its hash to be kept: whoever has
/// an entry may have to ask again, and is never told that it has no identity.
#[test]
fn a_storm_of_starts_refuses_nobody_who_has_an_entry() {
    require_root();
    let agent = Plan::with_entries(&[Entry::for_uid(CROWD)]).settings(SETTINGS).start();
    mayfly_harness::holder::holder_program(&agent);
    let load = Load::start();
    let began = Instant::now();
    let start = || (0..PROCESSES / 10).map(|_| Member::start(&agent)).collect::<Vec<_>>();
    let mut crowd: Vec<Member> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..10).map(|_| scope.spawn(start)).collect();
        starters.into_iter().flat_map(|starter| starter.join().unwrap()).collect()
    });
    for member in &mut crowd {
        member.until("a first message", |stream| !stream.first.is_empty());
    }
    drop(load);
    let line = format!("figure: 200 starts at once → all served: {:.1} s", began.elapsed().as_secs_f64());
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
    assert_eq!(agent.admin().status().sds.unwrap().waiting, 0);
    let audit = std::fs::read_to_string(agent.audit_path()).unwrap();
    let denied = audit.lines().filter(|line| line.contains("\"phase\":\"match\""));
    assert_eq!(denied.collect::<Vec<_>>(), Vec::<&str>::new());
}
