//! Tests of the ledger on a disk that fails: power cuts that lose, reorder and tear what was not synced, a
//! full disk, `fsync` that answers EIO. One fact must hold in every history: what was acknowledged is
//! there after recovery. A disk whose `fsync` does nothing is the control: there the same test must fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use redb::{Builder, Database, StorageBackend};

use super::disk::blame;
use super::row::{Note, Reason, Row, State};
use super::store::{self, Contents, Fault, Medium};
use super::testing::{Dice, effort, row};
use super::writer::Pauses;
use super::{Ledger, OpenError};
use crate::id::LeaseId;
use crate::queue::Health;

/// A disk: what a reader sees, what would survive, and how it fails next.
#[derive(Debug)]
struct Disk {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    dice: Dice,
    /// Whether `fsync` does its work.
    honest: bool,
    power: bool,
    /// The power goes at the operation after so many.
    cut_after: Option<usize>,
    /// Bytes the file may have.
    quota: usize,
    /// The next `fsync` fails.
    sync_fails: bool,
    syncs: usize,
    /// The number of the last finished transaction, as told.
    head: u64,
}

#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Disk>>);

impl Disk {
    fn shared(seed: u64, honest: bool) -> Shared {
        Shared(Arc::new(Mutex::new(Self {
            live: Vec::new(),
            durable: Vec::new(),
            unsynced: Vec::new(),
            dice: Dice::new(seed),
            honest,
            power: true,
            cut_after: None,
            quota: usize::MAX,
            sync_fails: false,
            syncs: 0,
            head: 0,
        })))
    }

    fn operate(&mut self) -> io::Result<()> {
        match &mut self.cut_after {
            Some(0) => self.power = false,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.power { Ok(()) } else { Err(io::Error::other("no power")) }
    }

    fn settle(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for (at, data) in self.unsynced.drain(..) {
            if let Some(place) = self.durable.get_mut(at..at + data.len()) {
                place.copy_from_slice(&data);
            }
        }
    }

    /// Drops clean pages from the cache: a reader sees what really is on the platter.
    fn forget_clean(&mut self) {
        let length = self.live.len();
        self.live = self.durable.clone();
        self.live.resize(length, 0);
        for (at, data) in &self.unsynced {
            self.live[*at..at + data.len()].copy_from_slice(data);
        }
    }

    /// What the platter holds after the power went: each sector as it was, or as any of the writes since
    /// the last sync left it, independently of every other; the length old or new.
    fn survive(&mut self) {
        let long = self.dice.one_in(2);
        if long || self.live.len() < self.durable.len() {
            self.durable.resize(self.live.len(), 0);
        }
        let sectors = self.durable.len() / SECTOR;
        let mut touched: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        for (at, data) in self.unsynced.drain(..) {
            for sector in at / SECTOR..(at + data.len()).div_ceil(SECTOR).min(sectors) {
                let versions = touched.entry(sector).or_default();
                let start = sector * SECTOR;
                let mut next =
                    versions.last().cloned().unwrap_or_else(|| self.durable[start..start + SECTOR].to_vec());
                let (from, to) = (at.max(start), (at + data.len()).min(start + SECTOR));
                next[from - start..to - start].copy_from_slice(&data[from - at..to - at]);
                versions.push(next);
            }
        }
        // Sometimes everything of one kind: all lost, all kept.
        let mood = self.dice.roll(4);
        for (sector, versions) in touched {
            let pick = match mood {
                0 => 0,
                1 => versions.len(),
                _ => self.dice.roll(versions.len() + 1),
            };
            if pick > 0 {
                self.durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(&versions[pick - 1]);
            }
        }
        self.live = self.durable.clone();
        (self.power, self.cut_after, self.quota, self.sync_fails) = (true, None, usize::MAX, false);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        let mut disk = self.lock();
        disk.operate()?;
        Ok(u64::try_from(disk.live.len()).unwrap())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut disk = self.lock();
        disk.operate()?;
        let at = usize::try_from(offset).unwrap();
        let data = disk.live.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.operate()?;
        let len = usize::try_from(len).unwrap();
        if len > disk.quota {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.live.resize(len, 0);
        disk.unsynced.retain(|(at, data)| at + data.len() <= len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.operate()?;
        disk.syncs += 1;
        if std::mem::take(&mut disk.sync_fails) {
            // Linux marks the pages clean and keeps them: some were written, the rest never will be, and
            // readers do not notice until the cache forgets them.
            let all = disk.unsynced.len();
            let written = disk.dice.roll(all + 1);
            disk.unsynced.truncate(written);
            disk.settle();
            return Err(io::Error::from_raw_os_error(5));
        }
        if disk.honest {
            disk.settle();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.lock();
        disk.operate()?;
        let at = usize::try_from(offset).unwrap();
        // A sparse file finds out that the disk is full when a page is written for the first time.
        if at + data.len() > disk.quota {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.live.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        disk.unsynced.push((at, data.to_vec()));
        Ok(())
    }
}

impl Medium for Shared {
    fn open(&mut self) -> Result<(Database, Contents), OpenError> {
        let open = || -> Result<(Database, Contents), Fault> {
            let fresh = self.lock().live.is_empty();
            if self.lock().honest {
                self.lock().forget_clean();
            }
            let database = Builder::new()
                .set_cache_size(1 << 20)
                .set_check_integrity_on_open(true)
                .create_with_backend(self.clone())?;
            if fresh {
                store::format(&database)?;
            }
            let contents = store::load(&database)?;
            if contents.transaction < self.lock().head {
                return Err(Fault::Damaged("it has forgotten a transaction".to_owned()));
            }
            Ok((database, contents))
        };
        open().map_err(|fault| blame(fault, std::path::Path::new("sim/ledger.redb")))
    }

    fn finished(&mut self, transaction: u64) -> io::Result<()> {
        self.lock().head = transaction;
        Ok(())
    }
}

/// What the callers were told.
#[derive(Debug, Default)]
struct Told {
    next: u64,
    committed: BTreeMap<LeaseId, Row>,
    revoked: BTreeMap<LeaseId, Reason>,
    /// Asked for, but answered with an error: may or may not have happened.
    maybe_revoked: BTreeMap<LeaseId, Reason>,
    attempted: u64,
    expired_before: u64,
}

impl Told {
    /// Compares with what recovery found.
    fn check(&self, rows: &[Row], notes: &[Note]) -> Result<(), String> {
        let noted: BTreeSet<&[u8]> = notes.iter().map(|note| note.key.as_slice()).collect();
        let found: BTreeMap<_, _> = rows.iter().map(|row| (row.id, row)).collect();
        for (id, row) in self.committed.iter().filter(|(_, row)| row.not_after >= self.expired_before) {
            let have = *found.get(id).ok_or_else(|| format!("{id} was acknowledged and is gone"))?;
            let state = have.state;
            // Written and taken back with the row, so it is there exactly as long as the row lives.
            if noted.contains(id.as_bytes().as_slice()) != (state == State::Live) {
                return Err(format!("the note on {id} does not go with it: {state:?}"));
            }
            if (Row { state: State::Live, ..have.clone() }) != *row {
                return Err(format!("{id} changed: {have:?}"));
            }
            match (state, self.revoked.get(id), self.maybe_revoked.get(id)) {
                (State::Live, Some(_), _) => return Err(format!("{id} came back to life")),
                (State::Live, None, _) => {}
                (State::Revoked { reason, .. }, told, maybe)
                    if told == Some(&reason) || maybe == Some(&reason) => {}
                (State::Revoked { reason, .. }, ..) => {
                    return Err(format!("{id} {reason} of its own accord"));
                }
            }
        }
        if u64::try_from(found.len()).unwrap() > self.attempted {
            return Err("rows nobody asked for".to_owned());
        }
        Ok(())
    }
}

fn start(disk: &Shared) -> Result<(Ledger, Vec<Row>), OpenError> {
    let never = Duration::from_secs(3600);
    Ledger::start(Box::new(disk.clone()), Pauses { gather: Duration::ZERO, idle: never })
}

/// One turn of callers: some commits at once, some revocations, now and then the garbage collector.
async fn turn(ledger: &Ledger, dice: &mut Dice, told: &mut Told) -> bool {
    let commits: Vec<Vec<Row>> = (0..=dice.roll(4))
        .map(|_| {
            let rows = (0..=dice.roll(3)).map(|_| {
                told.next += 1;
                row(told.next, 1000 + u64::try_from(dice.roll(1000)).unwrap())
            });
            rows.collect()
        })
        .collect();
    let mut done = true;
    for rows in &commits {
        told.attempted += u64::try_from(rows.len()).unwrap();
    }
    let answers = join_all(commits.iter().map(|rows| {
        let notes = rows.iter().map(|row| note(row.id, Some(b"live".to_vec())));
        ledger.commit_noting(rows, notes.collect())
    }))
    .await;
    for (rows, answer) in commits.into_iter().zip(answers) {
        done &= answer.is_ok();
        if let Ok(committed) = answer {
            for row in rows {
                assert!(committed.covers(row.id));
                told.committed.insert(row.id, row);
            }
        }
    }
    let some: Vec<_> = told.committed.keys().filter(|id| !told.revoked.contains_key(id)).copied().collect();
    let victims: Vec<_> =
        some.into_iter().filter(|_| dice.one_in(5)).map(|id| (id, Reason::Exited)).collect();
    let gone = victims.iter().map(|(id, _)| note(*id, None)).collect();
    match ledger.revoke_noting(&victims, 7, gone).await {
        Ok(()) => told.revoked.extend(victims),
        Err(_) => {
            done = false;
            told.maybe_revoked.extend(victims);
        }
    }
    if dice.one_in(8) {
        let before = 1000 + u64::try_from(dice.roll(300)).unwrap();
        told.expired_before = told.expired_before.max(before);
        done &= ledger.expire(before).await.is_ok();
    }
    done
}

fn note(id: LeaseId, value: Option<Vec<u8>>) -> Note {
    Note { key: id.as_bytes().to_vec(), value }
}

/// A life of the ledger with faults and up to three power cuts.
fn history(seed: u64, honest: bool) -> Result<u64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut dice = Dice::new(seed ^ 0xfeed);
    let disk = Disk::shared(seed, honest);
    let mut told = Told::default();
    let (mut ledger, rows) = start(&disk).map_err(|error| format!("first open: {error}"))?;
    assert!(rows.is_empty());
    for _life in 0..=dice.roll(3) {
        let turns = 1 + dice.roll(6);
        for _ in 0..turns {
            match dice.roll(6) {
                0 => disk.lock().sync_fails = true,
                1 => {
                    let mut disk = disk.lock();
                    disk.quota = disk.live.len().saturating_sub(4096 * dice.roll(4));
                }
                2 => {
                    let left = dice.roll(60);
                    disk.lock().cut_after = Some(left);
                }
                _ => {}
            }
            let done = runtime.block_on(turn(&ledger, &mut dice, &mut told));
            let mut over = disk.lock();
            (over.quota, over.sync_fails) = (usize::MAX, false);
            if !over.power {
                break;
            }
            drop(over);
            if !done && honest {
                // The fault is over: everything works again, at the latest the second time.
                let healed = (0..2).any(|_| runtime.block_on(turn(&ledger, &mut dice, &mut told)));
                if !healed && disk.lock().power {
                    return Err("the fault is over and the ledger is still dead".to_owned());
                }
            }
        }
        disk.lock().power = false;
        drop(ledger);
        disk.lock().survive();
        let (next, rows) = start(&disk).map_err(|error| format!("recovery: {error}"))?;
        told.check(&rows, next.found_notes())?;
        ledger = next;
    }
    Ok(u64::try_from(told.committed.len()).unwrap())
}

const SECTOR: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_acknowledged_row_is_ever_missing() {
        let mut rows = 0;
        for seed in 0..effort(200, 3_000) {
            rows += history(seed, true).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
        assert!(rows > 1_000, "the histories do something: {rows} rows");
    }

    #[tokio::test]
    async fn a_revocation_that_failed_goes_out_with_the_next_transaction() {
        let disk = Disk::shared(1, true);
        let (ledger, _) = start(&disk).unwrap();
        drop(ledger.commit((0..40).map(|n| row(n, 100)).collect()).await.unwrap());
        for n in 0..40 {
            disk.lock().sync_fails = true;
            assert!(ledger.revoke(&[(row(n, 100).id, Reason::Operator)], 5).await.is_err());
            assert!(matches!(*ledger.health().borrow(), Health::Failing { .. }));
            drop(ledger.commit(vec![row(100 + n, 200)]).await.unwrap());
            assert_eq!(*ledger.health().borrow(), Health::Good);
        }
        let rows = ledger.rows().await.unwrap();
        let revoked = State::Revoked { at_millis: 5, reason: Reason::Operator };
        assert_eq!(rows.iter().filter(|row| row.state == revoked).count(), 40);
    }

    #[tokio::test]
    async fn a_commit_that_failed_is_never_live() {
        let disk = Disk::shared(3, true);
        let (ledger, _) = start(&disk).unwrap();
        for n in 0..40 {
            disk.lock().sync_fails = true;
            assert!(ledger.commit(vec![row(n, 100)]).await.is_err());
            drop(ledger.commit(vec![row(1_000 + n, 100)]).await.unwrap());
        }
        let rows = ledger.rows().await.unwrap();
        assert!(rows.len() > 40, "some of those that failed are on the disk all the same");
        assert_eq!(rows.iter().filter(|row| row.state == State::Live).count(), 40);
    }

    #[test]
    fn the_same_test_fails_on_a_disk_that_does_not_sync() {
        let lost = (0..100).filter(|seed| history(*seed, false).is_err()).count();
        assert!(lost > 50, "only {lost} of 100 histories noticed");
    }
}
