//! The tables, and one transaction over them. Used by one thread at a time; knows nothing of queues.

mod transact;

use std::collections::{BTreeMap, HashMap};
use std::io;

use mayfly_attestors::ProcessKey;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};

use self::transact::transact;
use super::codec::{self, Key};
use super::row::{Bar, Note, Reason, Row};
use super::{CrlMark, LedgerError, OpenError};
use crate::id::LeaseId;

/// Where the database comes from; asked again after every failed write.
pub(super) trait Medium: Send {
    /// Opens it and reads everything in it.
    fn open(&mut self) -> Result<(Database, Contents), OpenError>;

    /// Told of each finished transaction, before anybody else is; must make a later `open` refuse a database
    /// that has forgotten it.
    fn finished(&mut self, transaction: u64) -> io::Result<()>;
}

/// Everything that is in the ledger.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) rows: Vec<Row>,
    pub(super) marks: BTreeMap<String, CrlMark>,
    pub(super) bars: Vec<Bar>,
    pub(super) notes: Vec<Note>,
    /// Number of the last finished transaction.
    pub(super) transaction: u64,
}

/// Why a database cannot be used, before anybody knows its path.
#[derive(Debug)]
pub(super) enum Fault {
    Busy,
    Io(io::Error),
    Damaged(String),
    Schema(u64),
}

/// A row ready to be stored.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) id: LeaseId,
    pub(super) not_after: u64,
    pub(super) issued_at: u64,
    pub(super) value: Vec<u8>,
}

/// One change of the tables.
#[derive(Debug)]
pub(super) enum Change {
    /// Rows, and what is noted with them.
    Commit(Vec<Encoded>, Vec<Note>),
    /// Leases, and what is noted with their end.
    Revoke(Vec<(LeaseId, Revoked)>, Vec<Note>),
    Expire {
        before: u64,
    },
    Mark {
        issuer: String,
        mark: CrlMark,
    },
    /// Keys and values.
    Bar(Vec<(Vec<u8>, Vec<u8>)>),
    /// Every bar of these processes goes.
    Unbar(Vec<ProcessKey>),
    /// Nothing, to see whether the store takes writes again.
    Probe,
}

/// When and why a lease was taken back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revoked {
    pub(super) at_millis: u64,
    pub(super) reason: Reason,
}

/// What became of a change in a transaction that was committed.
#[derive(Debug)]
pub(super) enum Applied {
    Done,
    Expired(usize),
    Refused(LedgerError),
}

/// The open database, or none after a failure.
pub(super) struct Store {
    medium: Box<dyn Medium>,
    database: Option<Database>,
    /// `not_after` of each row: the other half of its key. Only right while `database` is some.
    index: HashMap<LeaseId, u64>,
    transaction: u64,
}

impl Store {
    /// Opens the medium for the first time.
    pub(super) fn open(medium: Box<dyn Medium>) -> Result<(Self, Contents), OpenError> {
        let mut store = Self { medium, database: None, index: HashMap::new(), transaction: 0 };
        let contents = store.reopen()?;
        Ok((store, contents))
    }

    /// Applies all changes in one durable transaction. An error leaves the handle dead and says nothing of
    /// what is on the disk: all, or nothing, of the transaction may be there.
    pub(super) fn apply(&mut self, changes: &[Change]) -> Result<Vec<Applied>, String> {
        if self.database.is_none() {
            self.reopen().map_err(|error| error.to_string())?;
        }
        let Some(database) = &self.database else { return Err("not open".to_owned()) };
        let next = self.transaction + 1;
        let result = transact(database, &mut self.index, changes, next).and_then(|applied| {
            self.medium.finished(next).map_err(redb::Error::Io)?;
            self.transaction = next;
            Ok(applied)
        });
        result.map_err(|error| {
            // The index may hold rows that were never stored: it goes with the handle.
            self.close();
            error.to_string()
        })
    }

    /// Every row.
    pub(super) fn rows(&mut self) -> Result<Vec<Row>, String> {
        match &self.database {
            None => self.reopen().map(|contents| contents.rows).map_err(|error| error.to_string()),
            Some(database) => load(database).map(|contents| contents.rows).map_err(|fault| {
                self.close();
                fault.to_string()
            }),
        }
    }

    fn reopen(&mut self) -> Result<Contents, OpenError> {
        self.close();
        let (database, contents) = self.medium.open()?;
        self.index = contents.rows.iter().map(|row| (row.id, row.not_after)).collect();
        self.transaction = contents.transaction;
        self.database = Some(database);
        Ok(contents)
    }

    fn close(&mut self) {
        // Dropping releases the file's lock, so that it can be opened again.
        self.database = None;
        self.index = HashMap::new();
    }
}

/// Makes the tables of an empty database.
pub(super) fn format(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(LEASES)?;
    transaction.open_table(MARKS)?;
    transaction.open_table(BARS)?;
    transaction.open_table(NOTES)?;
    transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
    transaction.commit()?;
    Ok(())
}

/// Reads and checks every row and mark.
pub(super) fn load(database: &Database) -> Result<Contents, Fault> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let meta = transaction.open_table(META).map_err(redb::Error::from)?;
    match meta.get(SCHEMA_KEY)?.map(|schema| schema.value()) {
        Some(OLDEST_SCHEMA..=SCHEMA) => {}
        Some(other) => return Err(Fault::Schema(other)),
        None => return Err(Fault::Damaged("no schema".to_owned())),
    }
    let transactions = meta.get(TRANSACTION_KEY)?.map_or(0, |number| number.value());
    let mut contents = Contents { transaction: transactions, ..Contents::default() };
    for item in transaction.open_table(LEASES).map_err(redb::Error::from)?.iter()? {
        let (key, value) = item?;
        let row = codec::decode(key.value(), value.value());
        contents.rows.push(row.map_err(|error| Fault::Damaged(format!("a lease: {error}")))?);
    }
    for item in transaction.open_table(MARKS).map_err(redb::Error::from)?.iter()? {
        let (issuer, value) = item?;
        let mark = codec::decode_mark(issuer.value(), value.value());
        let mark = mark.map_err(|error| Fault::Damaged(format!("a CRL number: {error}")))?;
        contents.marks.insert(issuer.value().to_owned(), mark);
    }
    contents.bars = load_bars(&transaction)?;
    contents.notes = load_notes(&transaction)?;
    Ok(contents)
}

fn load_bars(transaction: &ReadTransaction) -> Result<Vec<Bar>, Fault> {
    let table = match transaction.open_table(BARS) {
        // A ledger of schema 1 that never had one.
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table.map_err(redb::Error::from)?,
    };
    let mut bars = Vec::new();
    for item in table.iter()? {
        let (key, value) = item?;
        let bar = codec::decode_bar(key.value(), value.value());
        bars.push(bar.map_err(|error| Fault::Damaged(format!("a bar: {error}")))?);
    }
    Ok(bars)
}

fn load_notes(transaction: &ReadTransaction) -> Result<Vec<Note>, Fault> {
    let table = match transaction.open_table(NOTES) {
        // A ledger of an older schema that never had one.
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table.map_err(redb::Error::from)?,
    };
    let mut notes = Vec::new();
    for item in table.iter()? {
        let (key, value) = item?;
        let note = codec::decode_note(key.value(), value.value());
        let value = note.map_err(|error| Fault::Damaged(format!("a note: {error}")))?;
        notes.push(Note { key: key.value().to_vec(), value: Some(value) });
    }
    Ok(notes)
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::Busy,
            redb::Error::Io(source) => Self::Io(source),
            // Everything else is something that a ledger written by us never is.
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        redb::Error::from(error).into()
    }
}

impl From<DatabaseError> for Fault {
    fn from(error: DatabaseError) -> Self {
        redb::Error::from(error).into()
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy => f.write_str("in use"),
            Self::Io(source) => source.fmt(f),
            Self::Damaged(why) => f.write_str(why),
            Self::Schema(found) => write!(f, "schema {found}"),
        }
    }
}

const LEASES: TableDefinition<'static, &'static Key, &'static [u8]> = TableDefinition::new(codec::LEASES);
const MARKS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new(codec::MARKS);
const BARS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new(codec::BARS);
const NOTES: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new(codec::NOTES);
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";
const TRANSACTION_KEY: &str = "transaction";
/// The schema this program writes: 2 has bars, 3 has notes.
pub(super) const SCHEMA: u64 = 3;
/// The oldest it reads.
const OLDEST_SCHEMA: u64 = 1;
