//! The log as a file: found again after a crash, appended to, synced, followed through rotations.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::LogOpenError;
use super::chain::{self, Head};
use crate::files;

/// Where lines go.
pub(super) trait Sink: Send {
    /// Gets ready to append. `known`: where the chain was when the last append succeeded; none at the start.
    fn open(&mut self, known: Option<Head>) -> Result<Opened, LogOpenError>;

    /// Whether somebody took the file away, so that it must be opened again.
    fn is_gone(&self) -> bool;

    /// Appends whole lines, durably. After an error nobody knows what is there: open again.
    fn append(&mut self, lines: &[u8]) -> io::Result<()>;
}

/// What [`Sink::open`] found.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) head: Head,
    /// Bytes of a torn last line that were cut off.
    pub(super) cut_bytes: u64,
    /// Where a file went whose lines did not add up.
    pub(super) moved_to: Option<PathBuf>,
}

/// A file, mode 0640.
#[derive(Debug)]
pub(super) struct FileSink {
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Length after the last line that is known to be written.
    good: u64,
}

/// Nowhere; the chain lives in memory only.
#[derive(Debug)]
pub(super) struct Nowhere;

/// The end of a file: what its last lines say.
struct Tail {
    head: Head,
    /// Length up to the last line feed.
    whole: u64,
    /// Whether the lines looked at continue one another.
    sound: bool,
}

impl FileSink {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None }
    }

    fn io(&self) -> impl Fn(io::Error) -> LogOpenError + '_ {
        |source| LogOpenError::Io { path: self.path.clone(), source }
    }

    fn open_file(&self) -> Result<File, LogOpenError> {
        files::ensure_dir(self.path.parent().unwrap_or_else(|| Path::new("/")), 0o750)?;
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits()).unwrap_or(0);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640).custom_flags(flags);
        let file = options.open(&self.path).map_err(self.io())?;
        let meta = file.metadata().map_err(self.io())?;
        let own = meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_file() || meta.nlink() != 1 || meta.mode() & 0o027 != 0 || !own {
            let why = "it must be a regular file of the agent's user, mode 0640 or less, with one name";
            return Err(LogOpenError::Untrusted { path: self.path.clone(), why: why.to_owned() });
        }
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(LogOpenError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(self.io()(source)),
        }
    }

    /// Takes back what a failed append left behind; its callers were told that it was not written.
    fn withdraw(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some(open) if open.file.metadata()?.len() > open.good => open.file.set_len(open.good),
            _ => Ok(()),
        }
    }

    /// Puts the file aside under a name that is free.
    fn set_aside(&self) -> io::Result<PathBuf> {
        for n in 1..=MAX_SET_ASIDE {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".damaged-{n}"));
            let aside = PathBuf::from(name);
            if !aside.try_exists()? {
                std::fs::rename(&self.path, &aside)?;
                return Ok(aside);
            }
        }
        Err(io::Error::other("too many damaged logs lie beside it already"))
    }

    fn settle(&self, file: File, good: u64) -> io::Result<Open> {
        if file.metadata()?.len() > good {
            file.set_len(good)?;
        }
        file.sync_all()?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(Open { file, good })
    }
}

impl Sink for FileSink {
    fn open(&mut self, known: Option<Head>) -> Result<Opened, LogOpenError> {
        self.withdraw().map_err(self.io())?;
        let mut file = self.open_file()?;
        // After a failed sync the cache may show lines that are not on the disk.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| self.io()(e.into()))?;
        let length = file.metadata().map_err(self.io())?.len();
        let tail = read_tail(&mut file, length).map_err(self.io())?;
        let mut opened = Opened { head: tail.head, cut_bytes: length - tail.whole, moved_to: None };
        let mut good = tail.whole;
        // A file that is empty is a new one: after a rotation it goes on with the chain of the old one.
        let expected = known.is_none_or(|known| known == tail.head || length == 0);
        if !tail.sound || !expected {
            opened.moved_to = Some(self.set_aside().map_err(self.io())?);
            opened.cut_bytes = 0;
            file = self.open_file()?;
            good = 0;
        }
        opened.head = known.unwrap_or(opened.head);
        self.open = Some(self.settle(file, good).map_err(self.io())?);
        Ok(opened)
    }

    fn is_gone(&self) -> bool {
        // A file without a name; one that was renamed has one, and goes on until the next `reopen`.
        self.open.as_ref().is_none_or(|open| open.file.metadata().is_ok_and(|meta| meta.nlink() == 0))
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let open = self.open.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        open.file.write_all(lines)?;
        open.file.sync_data()?;
        open.good = open.good.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

impl Sink for Nowhere {
    fn open(&mut self, known: Option<Head>) -> Result<Opened, LogOpenError> {
        Ok(Opened { head: known.unwrap_or_default(), ..Opened::default() })
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn append(&mut self, _lines: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the last lines: as far back as one batch can reach, which is what a crash can have torn.
fn read_tail(file: &mut File, length: u64) -> io::Result<Tail> {
    let start = length.saturating_sub(WINDOW_BYTES);
    let mut window = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    (&*file).take(WINDOW_BYTES).read_to_end(&mut window)?;
    let Some(end) = window.iter().rposition(|byte| *byte == b'\n') else {
        // Not one whole line. Nothing was ever finished, unless the file is longer than any line may be.
        return Ok(Tail { head: Head::default(), whole: 0, sound: start == 0 });
    };
    let whole = length - u64::try_from(window.len() - end - 1).unwrap_or(0);
    let mut lines = window.get(..end).unwrap_or_default().split(|byte| *byte == b'\n');
    if start > 0 {
        // The first one began before the window.
        lines.next();
    }
    let mut tail = Tail { head: Head::default(), whole, sound: true };
    for (at, line) in lines.enumerate() {
        let followed = match at {
            0 => chain::read(line).map(|(head, _)| tail.head = head),
            _ => tail.head.follow(line).map(|_| ()),
        };
        if followed.is_err() {
            tail.sound = false;
            break;
        }
    }
    Ok(tail)
}

/// The most that is written at once; a batch is cut into pieces of about this size.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// One batch and the line that went over its limit, with room to spare.
const WINDOW_BYTES: u64 = 2 << 20;
const MAX_SET_ASIDE: u32 = 1000;
