//! Names of users and groups, from `/etc/passwd` and `/etc/group` alone: the agent is one static binary, and a name
//! service that asks the network would let the network name processes.
//!
//! A file is read again when its identity (inode, size, times) has changed. The first line for a number wins, as it
//! does for everybody else; lines that do not parse are passed over.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};

use crate::measure::{FileFacts, FileId};
use crate::process::procfs;
use crate::text;

/// One of the two files.
#[derive(Debug)]
pub(crate) struct Names {
    path: PathBuf,
    known: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    id: FileId,
    names: Arc<HashMap<u32, String>>,
}

impl Names {
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), known: Mutex::default() }
    }

    /// Escaped names by number, as the file is now.
    pub(crate) fn current(&self) -> io::Result<Arc<HashMap<u32, String>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::openat(CWD, &self.path, flags, Mode::empty())?;
        let id = FileFacts::of(file.as_fd())?.id;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.id == id) {
            return Ok(Arc::clone(&known.names));
        }
        let names = Arc::new(parse(&procfs::read_all(&file, MOST_BYTES)?));
        *known = Some(Known { id, names: Arc::clone(&names) });
        Ok(names)
    }
}

/// `name:password:number:…`; both files begin alike.
fn parse(text: &[u8]) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.split(|&b| b == b'\n') {
        let mut fields = line.split(|&b| b == b':');
        if let (Some(name), Some(_), Some(number)) = (fields.next(), fields.next(), fields.next())
            && !name.is_empty()
            && let Some(number) = procfs::integer(number).and_then(|n| u32::try_from(n).ok())
        {
            names.entry(number).or_insert_with(|| text::of_bytes(name));
        }
    }
    names
}

const MOST_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_line_for_a_number_wins_and_bad_lines_are_passed_over() {
        let names = parse(b"root:x:0:0::/:/bin/sh\ntoor:x:0:0\n\n#c:x:\n+nis\nbad:x:-1:\n:x:7:\nweb:x:33:33");
        assert_eq!(names.len(), 2);
        assert_eq!((names[&0].as_str(), names[&33].as_str()), ("root", "web"));
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        std::fs::write(&path, "old:x:5:5\n").unwrap();
        let names = Names::at(&path);
        assert_eq!(names.current().unwrap()[&5], "old");
        std::fs::write(&path, "new:x:5:5\n").unwrap();
        assert_eq!(names.current().unwrap()[&5], "new");
        assert_eq!(names.current().unwrap().get(&6), None);
        std::fs::remove_file(&path).unwrap();
        assert!(names.current().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
