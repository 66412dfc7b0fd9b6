//! What one transaction writes.

use std::collections::{BTreeSet, HashMap};
use std::io;

use mayfly_attestors::{ProcessKey, failpoint};
use redb::{Database, ReadableTable, WriteTransaction};

use super::super::LedgerError;
use super::super::codec::{self, Key};
use super::super::row::{Note, State};
use super::{
    Applied, BARS, Change, Encoded, LEASES, MARKS, META, NOTES, Revoked, SCHEMA, SCHEMA_KEY, TRANSACTION_KEY,
};
use crate::id::LeaseId;

type Leases<'t> = redb::Table<'t, &'static Key, &'static [u8]>;

/// All changes in one durable transaction, or none of them.
pub(super) fn transact(
    database: &Database,
    index: &mut HashMap<LeaseId, u64>,
    changes: &[Change],
    number: u64,
) -> Result<Vec<Applied>, redb::Error> {
    failpoint::hit("ledger.before_begin");
    if failpoint::fails("ledger.before_begin") {
        return Err(redb::Error::Io(io::ErrorKind::StorageFull.into()));
    }
    let transaction = database.begin_write()?;
    let mut applied = Vec::with_capacity(changes.len());
    {
        let mut leases = transaction.open_table(LEASES)?;
        for change in changes {
            applied.push(match change {
                Change::Commit(rows, notes) => match insert(&mut leases, index, rows)? {
                    Applied::Done => note(&transaction, notes)?,
                    refused => refused,
                },
                Change::Revoke(revoked, notes) => {
                    revoke(&mut leases, index, revoked)?;
                    note(&transaction, notes)?
                }
                Change::Expire { before } => expire(&mut leases, index, *before)?,
                Change::Mark { issuer, mark } => {
                    let value = codec::encode_mark(issuer, *mark);
                    transaction.open_table(MARKS)?.insert(issuer.as_str(), value.as_slice())?;
                    Applied::Done
                }
                Change::Bar(bars) => bar(&transaction, bars)?,
                Change::Unbar(processes) => unbar(&transaction, processes)?,
                Change::Probe => Applied::Done,
            });
        }
        transaction.open_table(META)?.insert(TRANSACTION_KEY, number)?;
    }
    failpoint::hit("ledger.after_insert");
    transaction.commit()?;
    failpoint::hit("ledger.after_commit");
    Ok(applied)
}

fn insert(
    leases: &mut Leases<'_>,
    index: &mut HashMap<LeaseId, u64>,
    rows: &[Encoded],
) -> Result<Applied, redb::Error> {
    // All or none: look before the first row goes in.
    let mut new = BTreeSet::new();
    if !rows.iter().all(|row| !index.contains_key(&row.id) && new.insert(row.id)) {
        return Ok(Applied::Refused(LedgerError::Row("the lease ID is taken")));
    }
    for row in rows {
        leases.insert(&codec::key(row.not_after, row.id), row.value.as_slice())?;
        index.insert(row.id, row.not_after);
    }
    Ok(Applied::Done)
}

fn revoke(
    leases: &mut Leases<'_>,
    index: &HashMap<LeaseId, u64>,
    revoked: &[(LeaseId, Revoked)],
) -> Result<Applied, redb::Error> {
    for (id, Revoked { at_millis, reason }) in revoked {
        let Some(not_after) = index.get(id) else { continue };
        let key = codec::key(*not_after, *id);
        let stored = leases.get(&key)?.map(|value| codec::decode(&key, value.value()));
        let Some(Ok(mut row)) = stored else {
            // The index was made from this table: a row that is gone or unreadable is damage.
            return Err(redb::Error::Corrupted(format!("lease {id} cannot be read back")));
        };
        if row.state == State::Live {
            row.state = State::Revoked { at_millis: *at_millis, reason: *reason };
            let value = codec::encode(&row).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
            leases.insert(&key, value.as_slice())?;
        }
    }
    Ok(Applied::Done)
}

fn expire(
    leases: &mut Leases<'_>,
    index: &mut HashMap<LeaseId, u64>,
    before: u64,
) -> Result<Applied, redb::Error> {
    let end = codec::key(before, LeaseId::from_bytes([0; 16]));
    let mut count = 0;
    for item in leases.extract_from_if::<&Key, _>(..&end, |_, _| true)? {
        let (key, _) = item?;
        if let Some(id) = key.value().last_chunk() {
            index.remove(&LeaseId::from_bytes(*id));
        }
        count += 1;
    }
    Ok(Applied::Expired(count))
}

fn note(transaction: &WriteTransaction, notes: &[Note]) -> Result<Applied, redb::Error> {
    if notes.is_empty() {
        return Ok(Applied::Done);
    }
    let mut table = transaction.open_table(NOTES)?;
    for Note { key, value } in notes {
        match value {
            Some(value) => {
                let sealed = codec::encode_note(key, value);
                table.insert(key.as_slice(), sealed.as_slice())?;
            }
            None => drop(table.remove(key.as_slice())?),
        }
    }
    // A program that knows no notes must not read this ledger as if there were none.
    transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
    Ok(Applied::Done)
}

fn bar(transaction: &WriteTransaction, bars: &[(Vec<u8>, Vec<u8>)]) -> Result<Applied, redb::Error> {
    let mut table = transaction.open_table(BARS)?;
    for (key, value) in bars {
        table.insert(key.as_slice(), value.as_slice())?;
    }
    // A program that knows no bars must not read this ledger as if there were none.
    transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
    Ok(Applied::Done)
}

fn unbar(transaction: &WriteTransaction, processes: &[ProcessKey]) -> Result<Applied, redb::Error> {
    let mut table = transaction.open_table(BARS)?;
    for process in processes {
        let prefix = codec::bars_of(process);
        let mut keys = Vec::new();
        for item in table.range(prefix.as_slice()..)? {
            let (key, _) = item?;
            if !key.value().starts_with(&prefix) {
                break;
            }
            keys.push(key.value().to_vec());
        }
        for key in keys {
            table.remove(key.as_slice())?;
        }
    }
    Ok(Applied::Done)
}
