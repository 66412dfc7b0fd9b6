//! The ledger as a file: one agent per data directory, and no file is believed before it was checked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database};
use rustix::fs::OFlags;

use super::check;
use super::head::{self, Head};
use super::store::{self, Contents, Fault, Medium, SCHEMA};
use super::{IntegrityCheck, OpenError};
use crate::files;

/// `DIR/ledger.redb`, with the directory's lock held as long as this lives.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    path: PathBuf,
    check: IntegrityCheck,
    /// Once it was there, a file that is gone is never replaced by an empty one.
    known: bool,
    head: Option<Head>,
    _lock: File,
}

/// The ledger in memory, for `--dev`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory;

impl Disk {
    /// Checks the directory and takes its lock.
    pub(super) fn claim(dir: &Path, check: IntegrityCheck) -> Result<Self, OpenError> {
        Ok(Self {
            dir: dir.to_owned(),
            path: dir.join(FILE),
            check,
            known: false,
            head: None,
            _lock: lock(dir)?,
        })
    }

    /// Makes the file under another name first: a crash never leaves half a ledger under the right one.
    fn create(&self) -> Result<(), Fault> {
        let unfinished = self.dir.join(UNFINISHED);
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Fault::Io(error)),
            _ => {}
        }
        let file = private().create_new(true).open(&unfinished).map_err(Fault::Io)?;
        let database = open_file(file, false)?;
        store::format(&database)?;
        database.close()?;
        std::fs::rename(&unfinished, &self.path).map_err(Fault::Io)?;
        sync_dir(&self.dir).map_err(Fault::Io)
    }

    fn try_open(&mut self) -> Result<(Database, Contents), Fault> {
        if !exists(&self.path)? {
            if self.known || exists(&self.dir.join(head::NAME))? || has_files(&self.dir.join(KEYS))? {
                return Err(Fault::Damaged("it is gone".to_owned()));
            }
            self.create()?;
        }
        forget_clean_pages(&self.path).map_err(Fault::Io)?;
        check::run(&self.check, &self.path)?;
        let database = open_file(open_private(&self.path)?, false)?;
        let contents = store::load(&database)?;
        self.compare_head(contents.transaction)?;
        self.known = true;
        Ok((database, contents))
    }

    /// Refuses a ledger that has forgotten a transaction it had finished.
    fn compare_head(&mut self, transaction: u64) -> Result<(), Fault> {
        let path = self.dir.join(head::NAME);
        if transaction == 0 && !exists(&path)? {
            self.head = Some(Head::create(&private(), &path).map_err(Fault::Io)?);
            return sync_dir(&self.dir).map_err(Fault::Io);
        }
        if !exists(&path)? {
            return Err(Fault::Damaged(format!("{} is gone", head::NAME)));
        }
        let (head, noted) = Head::open(&private(), &path).map_err(Fault::Io)?;
        match noted {
            Some(noted) if noted <= transaction => self.head = Some(head),
            Some(noted) => {
                let why = format!("it has {transaction} transactions, of {noted} that were finished");
                return Err(Fault::Damaged(why));
            }
            None => return Err(Fault::Damaged(format!("{} cannot be read", head::NAME))),
        }
        Ok(())
    }
}

impl Medium for Disk {
    fn open(&mut self) -> Result<(Database, Contents), OpenError> {
        self.try_open().map_err(|fault| blame(fault, &self.path))
    }

    fn finished(&mut self, transaction: u64) -> io::Result<()> {
        self.head.as_ref().map_or(Ok(()), |head| head.note(transaction))
    }
}

impl Medium for Memory {
    fn open(&mut self) -> Result<(Database, Contents), OpenError> {
        let made = Builder::new().create_with_backend(redb::backends::InMemoryBackend::new());
        let formatted = made.map_err(redb::Error::from).and_then(|database| {
            store::format(&database)?;
            Ok((database, Contents::default()))
        });
        formatted.map_err(|error| blame(error.into(), Path::new("memory")))
    }

    fn finished(&mut self, _transaction: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Takes the lock of a data directory, which is made if it is missing; it is released when the file is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    files::ensure_private_dir(dir)?;
    let path = dir.join(LOCK);
    let file = private().create(true).open(&path);
    let file = file.map_err(|source| OpenError::Unwritable { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Unwritable { path, source }),
    }
}

/// Opens the existing ledger without following a link, and refuses what others could have changed.
pub(super) fn open_private(path: &Path) -> Result<File, Fault> {
    let file = private().open(path).map_err(Fault::Io)?;
    let meta = file.metadata().map_err(Fault::Io)?;
    let own = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_file() || meta.nlink() != 1 || meta.mode() & 0o077 != 0 || !own {
        let why = "it must be a regular file of the agent's user, mode 0600, with one name";
        return Err(Fault::Io(io::Error::new(io::ErrorKind::PermissionDenied, why)));
    }
    if meta.len() == 0 {
        return Err(Fault::Damaged("it is empty".to_owned()));
    }
    Ok(file)
}

/// Opens the database in `file`; `verify` reads every page and compares its sum.
pub(super) fn open_file(file: File, verify: bool) -> Result<Database, Fault> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(verify);
    Ok(builder.create_with_backend(FileBackend::new(file)?)?)
}

/// Makes readers see what is on the disk. After a failed `fsync` the kernel keeps the pages it could not
/// write, marked as clean: read back they look whole, and are gone after a power cut.
fn forget_clean_pages(path: &Path) -> io::Result<()> {
    let file = private().open(path)?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Makes renames in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The error for the operator.
pub(super) fn blame(fault: Fault, path: &Path) -> OpenError {
    let path = path.to_owned();
    match fault {
        Fault::Busy => OpenError::InUse { dir: path.parent().unwrap_or(&path).to_owned() },
        Fault::Schema(found) => OpenError::Schema { path, found, known: SCHEMA },
        Fault::Damaged(why) => OpenError::Corrupt { path, why },
        Fault::Io(source) => match source.kind() {
            // How the store reports bytes that are no database.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                OpenError::Corrupt { path, why: source.to_string() }
            }
            _ => OpenError::Unwritable { path, source },
        },
    }
}

/// Whether `dir` exists and has anything in it.
fn has_files(dir: &Path) -> Result<bool, Fault> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Fault::Io(error)),
    }
}

fn exists(path: &Path) -> Result<bool, Fault> {
    path.try_exists().map_err(Fault::Io)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits()).unwrap_or(0);
    options.read(true).write(true).mode(0o600).custom_flags(flags);
    options
}

/// The ledger's name in the data directory.
pub(super) const FILE: &str = "ledger.redb";
/// Where the signing keys are; keys without a ledger mean that the ledger was lost.
pub(super) const KEYS: &str = "authority";
const UNFINISHED: &str = "ledger.redb.new";
const LOCK: &str = "lock";
/// A ledger is some megabytes; the default (1 GiB) would be the agent's whole memory budget ten times over.
const CACHE_BYTES: usize = 8 << 20;
