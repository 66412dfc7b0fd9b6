//! How rows are stored: a version, the fields, and a check sum over key and value.
//!
//! Key: `not_after` (8 bytes, big endian, so that what expires first sorts first) and lease ID. Value:
//! version byte, fields in order (numbers big endian, texts with a 2-byte length), then the first 8 bytes
//! of SHA-256 over table name, key and value. The check sum finds what the store's own page sums cannot:
//! a row under another key, and any fault of the store itself.
//!
//! A bar is all key: the process, and the entry if it is not about everything; its value is a sealed date. A note is
//! sealed as it is.

use aws_lc_rs::digest::{Context, SHA256};
use mayfly_attestors::{BootId, ProcessKey};

use super::row::{Bar, Kind, Reason, Row, State, StatusIndex};
use super::{CrlMark, LedgerError};
use crate::id::{EntryId, LeaseId, TaskId};

/// Key in the table of leases.
pub(super) type Key = [u8; 24];

/// What is wrong with a stored value.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("check sum does not match")]
    Sum,
    #[error("unknown version {0}")]
    Version(u8),
    #[error("field out of range")]
    Field,
}

/// The key of a lease.
pub(super) fn key(not_after: u64, id: LeaseId) -> Key {
    let mut key = [0; 24];
    let (time, name) = key.split_at_mut(8);
    time.copy_from_slice(&not_after.to_be_bytes());
    name.copy_from_slice(id.as_bytes());
    key
}

/// The value of a row; refuses texts and lists that do not fit their length field.
pub(super) fn encode(row: &Row) -> Result<Vec<u8>, LedgerError> {
    let mut out = Writer(Vec::with_capacity(256));
    out.byte(VERSION);
    out.byte(kind_code(row.kind));
    out.text(&row.issuer)?;
    out.text(&row.spiffe_id)?;
    out.text(row.entry.as_str())?;
    out.process(&row.process);
    out.bytes(&row.uid.to_be_bytes());
    out.count(row.audience.len())?;
    for audience in &row.audience {
        out.text(audience)?;
    }
    out.number(row.issued_at);
    out.option(match row.state {
        State::Live => None,
        State::Revoked { at_millis, .. } => Some(at_millis),
    });
    if let State::Revoked { reason, .. } = row.state {
        out.byte(reason_code(reason));
    }
    out.option(row.status.map(|status| status.list));
    if let Some(status) = row.status {
        out.bytes(&status.index.to_be_bytes());
    }
    out.byte(u8::from(row.task.is_some()));
    if let Some(task) = &row.task {
        out.bytes(task.as_bytes());
    }
    Ok(out.sealed(LEASES, &key(row.not_after, row.id)))
}

/// The row under `key`.
pub(super) fn decode(key: &Key, value: &[u8]) -> Result<Row, DecodeError> {
    let (mut input, version) = Reader::unseal(LEASES, key, value)?;
    let kind = match input.byte()? {
        0 => Kind::X509,
        1 => Kind::Jwt,
        2 => Kind::Wit,
        3 => Kind::Access,
        _ => return Err(DecodeError::Field),
    };
    let (issuer, spiffe_id, entry) = (input.text()?, input.text()?, EntryId::new(input.text()?));
    let process = input.process()?;
    let uid = u32::from_be_bytes(input.array()?);
    let audience = (0..input.count()?).map(|_| input.text()).collect::<Result<_, _>>()?;
    let issued_at = input.number()?;
    let state = match input.option()? {
        None => State::Live,
        Some(at_millis) => {
            let code = usize::from(input.byte()?);
            State::Revoked { at_millis, reason: *Reason::ALL.get(code).ok_or(DecodeError::Field)? }
        }
    };
    let list = if version >= WITH_STATUS { input.option()? } else { None };
    let status = match list {
        None => None,
        Some(list) => Some(StatusIndex { list, index: u32::from_be_bytes(input.array()?) }),
    };
    let has_task = version >= WITH_TASK && input.flag()?;
    let task = if has_task { Some(TaskId::from_bytes(input.array()?)) } else { None };
    input.end()?;
    let mut name = Reader(key);
    let not_after = name.number()?;
    let id = LeaseId::from_bytes(name.array()?);
    Ok(Row {
        id,
        kind,
        issuer,
        spiffe_id,
        entry,
        process,
        uid,
        audience,
        issued_at,
        not_after,
        state,
        status,
        task,
    })
}

/// The value of an issuer's CRL mark.
pub(super) fn encode_mark(issuer: &str, mark: CrlMark) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(32));
    out.byte(VERSION);
    out.number(mark.number);
    out.number(mark.this_update);
    out.sealed(MARKS, issuer.as_bytes())
}

/// The CRL mark stored for `issuer`.
pub(super) fn decode_mark(issuer: &str, value: &[u8]) -> Result<CrlMark, DecodeError> {
    let (mut input, _) = Reader::unseal(MARKS, issuer.as_bytes(), value)?;
    let mark = CrlMark { number: input.number()?, this_update: input.number()? };
    input.end()?;
    Ok(mark)
}

/// What the key of every bar of `process` begins with.
pub(super) fn bars_of(process: &ProcessKey) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(64));
    out.process(process);
    out.0
}

/// Key and value of a bar that was set at `at_millis`.
pub(super) fn encode_bar(bar: &Bar, at_millis: u64) -> Result<(Vec<u8>, Vec<u8>), LedgerError> {
    let mut key = Writer(bars_of(&bar.process));
    if let Some(entry) = &bar.entry {
        key.text(entry.as_str())?;
    }
    let mut out = Writer(Vec::with_capacity(32));
    out.byte(VERSION);
    out.number(at_millis);
    let value = out.sealed(BARS, &key.0);
    Ok((key.0, value))
}

/// The bar under `key`.
pub(super) fn decode_bar(key: &[u8], value: &[u8]) -> Result<Bar, DecodeError> {
    let (mut input, _) = Reader::unseal(BARS, key, value)?;
    let _at_millis = input.number()?;
    input.end()?;
    let mut name = Reader(key);
    let process = name.process()?;
    let entry = if name.0.is_empty() { None } else { Some(EntryId::new(name.text()?)) };
    name.end()?;
    Ok(Bar { process, entry })
}

/// The value of a note, sealed under its key.
pub(super) fn encode_note(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(value.len() + 16));
    out.byte(VERSION);
    out.bytes(value);
    out.sealed(NOTES, key)
}

/// The value stored under `key`.
pub(super) fn decode_note(key: &[u8], value: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Reader::unseal(NOTES, key, value).map(|(input, _)| input.0.to_vec())
}

struct Writer(Vec<u8>);

impl Writer {
    fn process(&mut self, process: &ProcessKey) {
        self.bytes(process.boot_id.as_bytes());
        self.bytes(&process.pid.to_be_bytes());
        self.number(process.start_time);
        self.option(process.pidfs_inode);
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_be_bytes());
    }

    fn option(&mut self, number: Option<u64>) {
        self.byte(u8::from(number.is_some()));
        if let Some(number) = number {
            self.number(number);
        }
    }

    fn count(&mut self, count: usize) -> Result<(), LedgerError> {
        let count = u16::try_from(count).map_err(|_too_many| LedgerError::Row("a field is too long"))?;
        self.bytes(&count.to_be_bytes());
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), LedgerError> {
        self.count(text.len())?;
        self.bytes(text.as_bytes());
        Ok(())
    }

    fn sealed(mut self, table: &str, key: &[u8]) -> Vec<u8> {
        let sum = sum(table, key, &self.0);
        self.bytes(&sum);
        self.0
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn unseal(table: &str, key: &[u8], value: &'a [u8]) -> Result<(Self, u8), DecodeError> {
        let (body, have) = value.split_last_chunk::<SUM>().ok_or(DecodeError::Sum)?;
        if sum(table, key, body) != *have {
            return Err(DecodeError::Sum);
        }
        let mut input = Self(body);
        match input.byte()? {
            version @ 1..=VERSION => Ok((input, version)),
            other => Err(DecodeError::Version(other)),
        }
    }

    fn process(&mut self) -> Result<ProcessKey, DecodeError> {
        Ok(ProcessKey {
            boot_id: BootId::from_bytes(self.array()?),
            pid: u32::from_be_bytes(self.array()?),
            start_time: self.number()?,
            pidfs_inode: self.option()?,
        })
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Field)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Field)?;
        self.0 = rest;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_be_bytes)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    fn count(&mut self) -> Result<usize, DecodeError> {
        self.array().map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    fn option(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.flag()? { self.number().map(Some) } else { Ok(None) }
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field),
        }
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let length = self.count()?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_not_text| DecodeError::Field)?;
        Ok(text.to_owned())
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Field) }
    }
}

/// The check sum of a value: it covers the table's name and the key too.
pub(super) fn sum(table: &str, key: &[u8], body: &[u8]) -> [u8; SUM] {
    let mut context = Context::new(&SHA256);
    for part in [table.as_bytes(), &[0], key, body] {
        context.update(part);
    }
    // SHA-256 has 32 bytes, so there always is a first chunk.
    context.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::X509 => 0,
        Kind::Jwt => 1,
        Kind::Wit => 2,
        Kind::Access => 3,
    }
}

fn reason_code(reason: Reason) -> u8 {
    let at = Reason::ALL.iter().position(|known| *known == reason);
    at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

/// Name of the table of leases.
pub(super) const LEASES: &str = "leases";
/// Name of the table of CRL marks.
pub(super) const MARKS: &str = "crl_marks";
/// Name of the table of bars.
pub(super) const BARS: &str = "bars";
/// Name of the table of notes.
pub(super) const NOTES: &str = "notes";
/// Rows of version 1 have no place in a status list, those of version 2 no task.
const VERSION: u8 = 3;
const WITH_STATUS: u8 = 2;
const WITH_TASK: u8 = 3;
const SUM: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::testing::any_row;

    proptest! {
        #[test]
        fn a_row_comes_back_as_it_was(row in any_row()) {
            let value = encode(&row).unwrap();
            prop_assert_eq!(decode(&key(row.not_after, row.id), &value), Ok(row));
        }

        #[test]
        fn any_flipped_bit_is_found(row in any_row(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let (mut key, mut value) = (key(row.not_after, row.id), encode(&row).unwrap());
            let at = at.index(key.len() + value.len());
            let byte = if at < key.len() { &mut key[at] } else { &mut value[at - key.len()] };
            *byte ^= 1u8 << bit;
            prop_assert!(decode(&key, &value).is_err());
        }

        #[test]
        fn a_bar_comes_back_as_it_was_and_any_flipped_bit_is_found(
            row in any_row(), everything in any::<bool>(), at in any::<prop::sample::Index>(), bit in 0..8,
        ) {
            let bar = Bar { process: row.process, entry: (!everything).then_some(row.entry) };
            let (mut key, mut value) = encode_bar(&bar, 5).unwrap();
            prop_assert!(key.starts_with(&bars_of(&bar.process)));
            prop_assert_eq!(decode_bar(&key, &value), Ok(bar));
            let at = at.index(key.len() + value.len());
            let byte = if at < key.len() { &mut key[at] } else { &mut value[at - key.len()] };
            *byte ^= 1u8 << bit;
            prop_assert!(decode_bar(&key, &value).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(key in any::<Key>(), value in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&key, &value).is_err());
            // Past the check sum too.
            let sealed = Writer(value).sealed(LEASES, &key);
            drop(decode(&key, &sealed));
        }
    }

    #[test]
    fn rows_of_earlier_versions_are_read() {
        let row = Row { status: None, ..crate::ledger::testing::row(1, 2) };
        let key = key(row.not_after, row.id);
        let value = encode(&row).unwrap();
        // The second has no flag for a task, the first none for a place either.
        for (version, flags) in [(2, 1), (1, 2)] {
            let mut older = value[..value.len() - SUM - flags].to_vec();
            older[0] = version;
            assert_eq!(decode(&key, &Writer(older).sealed(LEASES, &key)), Ok(row.clone()), "{version}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut row = crate::ledger::testing::row(1, 2);
        row.audience = vec!["a".repeat(65_536)];
        assert_eq!(encode(&row), Err(LedgerError::Row("a field is too long")));
    }

    #[test]
    fn reason_codes_are_stable() {
        let names = Reason::ALL.map(Reason::as_str);
        assert_eq!(
            names,
            [
                "exited",
                "watch_lost",
                "exec_mismatch",
                "entry_withdrawn",
                "operator",
                "restart",
                "issue_aborted",
                "credentials_changed",
                "superseded",
                "returned",
                "facts_changed",
                "task_ended",
                "pod_deleted",
                "used",
                "policy",
            ]
        );
    }
}
