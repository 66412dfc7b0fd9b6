//! What the audit log costs for each event: the chain alone, chain and file with one sync for each caller who waits,
//! and with the syncs shared, as they are when several wait at once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use mayfly::audit::{Agent, Credential, Event, Log, LogSettings};
use mayfly::clock::SystemClock;
use mayfly::id::{EntryId, LeaseId, TaskId};
use mayfly::ledger::Kind;
use mayfly_attestors::{BootId, ProcessKey};
use tokio::task::JoinSet;

use crate::{count, line};

/// A credential of a task was issued: a line of usual length.
fn event(n: u64) -> Event {
    let boot_id = BootId::from_bytes([1; 16]);
    let process = ProcessKey { boot_id, pid: 4711, start_time: 1, pidfs_inode: None };
    let agent = Agent {
        spiffe_id: Some("spiffe://example.org/team/agent".to_owned()),
        cgroup: Some("/agent.slice/agent-1.scope".to_owned()),
        exe_sha256: Some("4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce".to_owned()),
        ..Agent::new(process, 1000)
    };
    let credential = Credential {
        kind: Kind::Access,
        id: LeaseId::from_bytes((1 << 120 | u128::from(n)).to_be_bytes()),
        issuer: "0123456789abcdef".to_owned(),
        entry: EntryId::new("agent"),
        audience: vec!["https://wiki.example.org".to_owned()],
        ttl: Duration::from_secs(300),
        token: None,
        grant: None,
        task: Some(TaskId::from_bytes(u128::from(n / 8).to_be_bytes())),
    };
    Event::CredentialIssue { agent, credential }
}

fn open(path: Option<&Path>) -> Result<Log> {
    let boot_id = BootId::from_bytes([1; 16]);
    let settings = LogSettings { path: path.map(Path::to_owned), node: "node".to_owned(), boot_id };
    Ok(Log::open(settings, Arc::new(SystemClock))?)
}

/// So many callers at once, each of whom waits for each of its events.
async fn record(log: &Log, callers: usize, events: usize) -> Result<Duration> {
    let begin = Instant::now();
    let mut working = JoinSet::new();
    for caller in 0..callers {
        let (log, each) = (log.clone(), events / callers);
        let first = u64::try_from(caller * each)?;
        working.spawn(async move {
            for n in 0..u64::try_from(each)? {
                log.record(vec![event(first + n)]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = working.join_next().await {
        done??;
    }
    Ok(begin.elapsed())
}

pub(crate) async fn measure(quick: bool) -> Result<()> {
    let most = if quick { 6_400 } else { 64_000 };
    let dir = tempfile::tempdir()?;
    for (what, file, callers, events) in [
        ("chain alone, 64 callers wait", false, 64, most),
        ("chain and file, one caller waits: a sync each", true, 1, most / 32),
        ("chain and file, 64 callers wait: syncs shared", true, 64, most),
        ("chain and file, 1,024 callers wait: syncs shared", true, 1_024, most),
    ] {
        let path = dir.path().join(format!("{callers}.jsonl"));
        let log = open(file.then_some(&*path))?;
        let took = record(&log, callers, events).await?;
        let events = usize::try_from(log.head().seq)?;
        let bytes = if file { std::fs::metadata(&path)?.len() } else { 0 };
        report(what, took, events, bytes)?;
    }
    let path = dir.path().join("noted.jsonl");
    let log = open(Some(&path))?;
    let begin = Instant::now();
    for n in 0..10_000 {
        log.note(vec![event(n)]);
    }
    let noted = begin.elapsed();
    // Whoever drops the last handle waits until everything is on the disk.
    tokio::task::block_in_place(|| drop(log));
    let (took, bytes) = (begin.elapsed(), std::fs::metadata(&path)?.len());
    report("chain and file, 10,000 events at once, nobody waits", took, 10_000, bytes)?;
    line("  until those who noted them went on", &format!("{:.2} us an event", micros(noted, 10_000)))
}

fn micros(took: Duration, events: usize) -> f64 {
    took.as_secs_f64() * 1e6 / count(events)
}

fn report(what: &str, took: Duration, events: usize, bytes: u64) -> Result<()> {
    let rate = count(events) / took.as_secs_f64();
    let size = bytes.checked_div(u64::try_from(events)?).unwrap_or_default();
    line(
        &format!("audit: {what}"),
        &format!(
            "{:.1} us an event, {rate:.0} /s  (n = {events}, {size} bytes a line)",
            micros(took, events)
        ),
    )
}
