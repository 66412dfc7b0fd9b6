//! A directory whose files always belong together: a reader, or a crash, never finds a new certificate
//! beside an old key.
//!
//! The way the kubelet does it. Each set of files is written and synced into a fresh directory
//! `..v-XXXXXX`; `..data` is a symbolic link to the current one; what readers open (`svid.0.pem`) are
//! symbolic links through `..data`. One `rename` of `..data` switches all files at once. A reader that
//! wants two files of the same generation across a switch opens them below the directory `..data` leads
//! to. Names that are in the new set no more lose their link, so a withdrawn identity leaves nothing.
//!
//! A lock on the directory keeps two writers apart; directories others may write to are refused, because
//! whoever can rename there can swap the files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// One file of a set.
#[derive(Debug)]
pub(crate) struct Item {
    /// File name, no directory.
    pub(crate) name: String,
    /// Permissions: 0o600 for what is secret, 0o644 for the rest.
    pub(crate) mode: u32,
    /// Content.
    pub(crate) bytes: zeroize::Zeroizing<Vec<u8>>,
}

impl Item {
    /// Anybody who may enter the directory may read it.
    pub(crate) fn public(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), mode: 0o644, bytes: bytes.into().into() }
    }

    /// Only the owner may read it; wiped from memory afterwards.
    pub(crate) fn secret(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), mode: 0o600, bytes: bytes.into().into() }
    }
}

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The user chose a place where the files would not be safe.
    #[error("`{}` is not a place for keys: {why}", .path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Another command writes there.
    #[error("another `mayfly fetch --write` is using `{}`", .path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot write to `{}`: {source}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// An open, locked, checked directory.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    lock: File,
}

impl Folder {
    /// Opens `path`, made with mode 0700 if it does not exist. It must be owned by the caller or root and
    /// writable by nobody else.
    pub(crate) fn open(path: &Path) -> Result<Self, WriteError> {
        let io = |source| WriteError::Io { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let lock = File::open(path).map_err(io)?;
        let found = lock.metadata().map_err(io)?;
        let refuse = |why| Err(WriteError::Unsafe { path: path.to_owned(), why });
        if ![0, rustix::process::geteuid().as_raw()].contains(&found.uid()) {
            return refuse("it belongs to another user");
        }
        if found.mode() & 0o022 != 0 {
            return refuse("others may write to it (try `chmod go-w`)");
        }
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(WriteError::Busy { path: path.to_owned() }),
            Err(error) => return Err(io(error.into())),
        }
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Where.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes exactly these files visible, all at once.
    pub(crate) fn replace(&self, items: &[Item]) -> Result<(), WriteError> {
        self.switch(items).map_err(|source| WriteError::Io { path: self.path.clone(), source })
    }

    /// Removes every file this module put there.
    pub(crate) fn clear(&self) -> Result<(), WriteError> {
        self.replace(&[])
    }

    fn switch(&self, items: &[Item]) -> io::Result<()> {
        let version = tempfile::Builder::new().prefix(VERSION).tempdir_in(&self.path)?;
        // Entering is ruled by the directory above, which the owner chose.
        fs::set_permissions(version.path(), fs::Permissions::from_mode(0o755))?;
        for item in items {
            let path = version.path().join(&item.name);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(item.mode).open(path)?;
            file.write_all(&item.bytes)?;
            file.sync_all()?;
        }
        File::open(version.path())?.sync_all()?;
        let name = version.path().file_name().unwrap_or_default().to_owned();
        self.link(Path::new(&name), DATA)?;
        // From here on the new set is the truth; the rest is tidying.
        let _kept: PathBuf = version.keep();
        self.lock.sync_all()?;
        for item in items {
            let wanted = Path::new(DATA).join(&item.name);
            let there = self.path.join(&item.name);
            if fs::read_link(&there).ok().as_deref() != Some(wanted.as_path()) {
                self.link(&wanted, &item.name)?;
            }
        }
        self.sweep(items, Path::new(&name))?;
        self.lock.sync_all()
    }

    /// Puts a symbolic link in place, over whatever file is there, without a moment of absence.
    fn link(&self, target: &Path, name: &str) -> io::Result<()> {
        let fresh = self.path.join("..fresh");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(target, &fresh)?;
        fs::rename(&fresh, self.path.join(name))
    }

    /// Removes links to files that are no more, and all generations but this one.
    fn sweep(&self, items: &[Item], current: &Path) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let text = name.to_string_lossy();
            if text.starts_with(VERSION) && name != current.as_os_str() {
                fs::remove_dir_all(path)?;
            } else if fs::read_link(&path).is_ok_and(|target| target.starts_with(DATA))
                && !items.iter().any(|item| *item.name == *text)
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

const DATA: &str = "..data";
const VERSION: &str = "..v-";

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("read")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    fn pair(generation: &str) -> [Item; 2] {
        [Item::secret("svid.0.key", generation), Item::public("svid.0.pem", generation)]
    }

    #[test]
    fn keys_are_for_the_owner_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("new/place");
        let folder = Folder::open(&place).expect("open");
        folder.replace(&pair("1")).expect("write");
        let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o777;
        assert_eq!(mode(&place), 0o700);
        assert_eq!(mode(&place.join("svid.0.key")), 0o600);
        assert_eq!(mode(&place.join("svid.0.pem")), 0o644);
    }

    #[test]
    fn a_reader_of_one_generation_never_sees_a_mixed_pair() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("p");
        let folder = Folder::open(&place).expect("open");
        folder.replace(&pair("0")).expect("write");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for generation in 1..200 {
                    folder.replace(&pair(&generation.to_string())).expect("write");
                }
            });
            while !writer.is_finished() {
                let Ok(generation) = fs::canonicalize(place.join(DATA)) else { continue };
                let read = |name: &str| fs::read_to_string(generation.join(name));
                if let (Ok(key), Ok(pem)) = (read("svid.0.key"), read("svid.0.pem")) {
                    assert_eq!(key, pem);
                }
            }
        });
        assert_eq!(fs::read_to_string(place.join("svid.0.key")).expect("read"), "199");
    }

    #[test]
    fn a_crash_before_the_switch_leaves_the_old_pair_and_the_next_write_tidies_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("p");
        Folder::open(&place).expect("open").replace(&pair("old")).expect("write");
        fs::create_dir(place.join("..v-half")).expect("mkdir");
        fs::write(place.join("..v-half/svid.0.pem"), "half").expect("write");
        symlink("..v-half", place.join("..fresh")).expect("symlink");
        assert_eq!(fs::read_to_string(place.join("svid.0.pem")).expect("read"), "old");
        Folder::open(&place).expect("open").replace(&pair("new")).expect("write");
        assert_eq!(fs::read_to_string(place.join("svid.0.pem")).expect("read"), "new");
        assert_eq!(fs::read_dir(&place).expect("read").count(), 4, "..data, one generation, two links");
    }

    #[test]
    fn withdrawn_files_go_and_strangers_stay() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("p");
        let folder = Folder::open(&place).expect("open");
        fs::write(place.join("README"), "mine").expect("write");
        fs::write(place.join("svid.0.pem"), "a plain file from another tool").expect("write");
        folder.replace(&pair("1")).expect("write");
        folder.replace(&[Item::public("svid.0.pem", "2")]).expect("write");
        assert_eq!(names(&place), ["README", "svid.0.pem"]);
        folder.clear().expect("clear");
        assert_eq!(names(&place), ["README"]);
    }

    #[test]
    fn a_directory_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        for mode in [0o777, 0o1777, 0o770, 0o702] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(matches!(Folder::open(dir.path()), Err(WriteError::Unsafe { .. })), "{mode:o}");
        }
    }

    #[test]
    fn two_writers_are_kept_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("p");
        let first = Folder::open(&place).expect("open");
        assert!(matches!(Folder::open(&place), Err(WriteError::Busy { .. })));
        drop(first);
        Folder::open(&place).expect("free again");
    }
}
