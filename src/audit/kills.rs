//! Kills a writing process at any moment, many times over: what it was told is written must be found again,
//! in the ledger and in the log, and the log must still be one chain.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::testing::FixedClock;
use super::{Event, Expected, Log, LogSettings, verify};
use crate::ledger::testing::{Dice, data_dir, effort, id, row};
use crate::ledger::{IntegrityCheck, Ledger, LedgerPlace, Reason};
use mayfly_attestors::BootId;

const DIR: &str = "MAYFLY_TEST_KILLS_DIR";
const FIRST: &str = "MAYFLY_TEST_KILLS_FIRST";

fn open(dir: &Path) -> (Ledger, BTreeSet<u64>, Log) {
    let place = LedgerPlace::Disk(dir.to_owned());
    let (ledger, rows) = Ledger::open(&place, IntegrityCheck::InProcess).unwrap();
    let settings = LogSettings {
        path: Some(dir.join("audit.jsonl")),
        node: "n".to_owned(),
        boot_id: BootId::from_bytes([1; 16]),
    };
    let log = Log::open(settings, Arc::new(FixedClock)).unwrap();
    let number = |id: crate::id::LeaseId| u64::from_be_bytes(*id.as_bytes().last_chunk().unwrap());
    (ledger, rows.iter().map(|row| number(row.id)).collect(), log)
}

/// Commits, records and says so, until it is killed.
fn write_until_killed(dir: &Path, first: u64) {
    let (ledger, _, log) = open(dir);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for n in first.. {
            drop(ledger.commit(vec![row(n, n)]).await.unwrap());
            log.record(vec![Event::AgentStop { reason: n.to_string() }]).await.unwrap();
            writeln!(std::io::stdout(), "written {n}").unwrap();
            if n % 7 == 0 {
                ledger.revoke(&[(id(n), Reason::Exited)], 1).await.unwrap();
                log.note(vec![Event::Gap { lost: 0 }]);
            }
        }
    });
}

/// Runs the child for `patience` after its first line; answers the numbers it said.
fn run_and_kill(dir: &Path, first: u64, patience: Duration) -> BTreeSet<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "audit::kills::tests::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = said.map_while(Result::ok).filter_map(|line| line.strip_prefix("written ")?.parse().ok());
    let mut numbers: BTreeSet<u64> = said.next().into_iter().collect();
    std::thread::sleep(patience);
    child.kill().unwrap();
    numbers.extend(said);
    child.wait().unwrap();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "the process that `a_killed_agent_loses_nothing_it_was_told` kills"]
    fn child() {
        if let (Some(dir), Ok(first)) = (std::env::var_os(DIR), std::env::var(FIRST)) {
            write_until_killed(Path::new(&dir), first.parse().unwrap());
        }
    }

    #[test]
    fn a_killed_agent_loses_nothing_it_was_told() {
        let dir = data_dir();
        let mut dice = Dice::new(7);
        let mut told = BTreeSet::new();
        for round in 0..effort(10, 300) {
            let patience = Duration::from_micros(u64::try_from(dice.roll(15_000)).unwrap());
            told.extend(run_and_kill(dir.path(), 1 + round * 1_000_000, patience));
            let (_ledger, rows, log) = open(dir.path());
            assert!(told.is_subset(&rows), "round {round}: missing {:?}", told.difference(&rows));
            drop(log);
            let path = dir.path().join("audit.jsonl");
            verify(&[&path], Expected::default()).unwrap();
        }
        let log = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
        let recorded: BTreeSet<u64> = log
            .lines()
            .filter_map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                value["detail"]["reason"].as_str()?.parse().ok()
            })
            .collect();
        assert!(told.is_subset(&recorded) && told.len() > 10, "{} told", told.len());
    }
}
