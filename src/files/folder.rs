//! A directory whose files always belong together: a reader, or a crash, never finds a new certificate
//! beside an old key.
//!
//! The way the kubelet does it. Each set of files is written and synced into a fresh directory
//! `..v-XXXXXX`; `..data` (or `current`, see [`Layout`]) is a symbolic link to the current one; what readers
//! open (`svid.0.pem`) are
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
pub struct Item {
    /// File name, no directory.
    pub name: String,
    /// Permissions: 0o600 for what is secret, 0o644 for the rest.
    pub mode: u32,
    /// Owner and group, where they are not the writer's.
    pub owner: Owner,
    /// Content.
    pub bytes: zeroize::Zeroizing<Vec<u8>>,
}

/// Whose a file is; `None` leaves it to the writer's own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Owner {
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

impl Owner {
    /// Gives an open file to them.
    ///
    /// # Errors
    /// The kernel's: only root gives files away.
    pub(super) fn take(self, file: &File) -> io::Result<()> {
        if self.uid.is_none() && self.gid.is_none() {
            return Ok(());
        }
        let (uid, gid) = (self.uid.map(rustix::fs::Uid::from_raw), self.gid.map(rustix::fs::Gid::from_raw));
        Ok(rustix::fs::fchown(file, uid, gid)?)
    }
}

impl Item {
    /// Anybody who may enter the directory may read it.
    pub fn public(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), mode: 0o644, owner: Owner::default(), bytes: bytes.into().into() }
    }

    /// Only the owner may read it; wiped from memory afterwards.
    pub fn secret(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), mode: 0o600, owner: Owner::default(), bytes: bytes.into().into() }
    }
}

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The user chose a place where the files would not be safe.
    #[error("`{}` is not a place for keys: {why}", .path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Another command writes there.
    #[error("another `mayfly` writes to `{}`", .path.display())]
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
pub struct Folder {
    path: PathBuf,
    lock: File,
    layout: Layout,
}

/// How a [`Folder`] looks from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Layout {
    /// Name of the link to the current set.
    pub current: &'static str,
    /// Permissions of the directory when it has to be made.
    pub mode: u32,
    /// Whether the set before stays, so that who is still reading it can finish.
    pub keep_previous: bool,
}

impl Layout {
    /// For one reader: `..data`, nobody else may enter, nothing old stays.
    pub const PRIVATE: Self = Self { current: "..data", mode: 0o700, keep_previous: false };
    /// For servers: `current`, the files' own permissions rule, the set before stays until the next.
    pub const SHARED: Self = Self { current: "current", mode: 0o755, keep_previous: true };
}

impl Folder {
    /// Opens `path`, made if it does not exist. It must be owned by the caller or root and writable by nobody
    /// else.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn open(path: &Path, layout: Layout) -> Result<Self, WriteError> {
        let io = |source| WriteError::Io { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(layout.mode).create(path).map_err(io)?;
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
        Ok(Self { path: path.to_owned(), lock, layout })
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes exactly these files visible, all at once.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn replace(&self, items: &[Item]) -> Result<(), WriteError> {
        self.switch(items, self.layout.keep_previous)
            .map_err(|source| WriteError::Io { path: self.path.clone(), source })
    }

    /// As [`Folder::replace`], and nothing of any set before stays: for the end of an identity.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn reduce(&self, items: &[Item]) -> Result<(), WriteError> {
        self.switch(items, false).map_err(|source| WriteError::Io { path: self.path.clone(), source })
    }

    /// Removes every file this module put there.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn clear(&self) -> Result<(), WriteError> {
        self.reduce(&[])
    }

    fn switch(&self, items: &[Item], keep_previous: bool) -> io::Result<()> {
        let data = self.layout.current;
        let previous = fs::read_link(self.path.join(data)).ok().filter(|_| keep_previous);
        let version = tempfile::Builder::new().prefix(VERSION).tempdir_in(&self.path)?;
        // Entering is ruled by the directory above, which the owner chose.
        fs::set_permissions(version.path(), fs::Permissions::from_mode(0o755))?;
        for item in items {
            let path = version.path().join(&item.name);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(&item.bytes)?;
            item.owner.take(&file)?;
            // After the owner: changing that may clear bits, and a umask plays no part here.
            file.set_permissions(fs::Permissions::from_mode(item.mode))?;
            file.sync_all()?;
        }
        File::open(version.path())?.sync_all()?;
        let name = version.path().file_name().unwrap_or_default().to_owned();
        self.link(Path::new(&name), data)?;
        // From here on the new set is the truth; the rest is tidying.
        let _kept: PathBuf = version.keep();
        self.lock.sync_all()?;
        for item in items {
            let wanted = Path::new(data).join(&item.name);
            let there = self.path.join(&item.name);
            if fs::read_link(&there).ok().as_deref() != Some(wanted.as_path()) {
                self.link(&wanted, &item.name)?;
            }
        }
        self.sweep(items, &[Some(PathBuf::from(&name)), previous])?;
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

    /// Removes links to files that are no more, and all generations but these.
    fn sweep(&self, items: &[Item], kept: &[Option<PathBuf>]) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let text = name.to_string_lossy();
            if text.starts_with(VERSION) {
                if !kept.iter().flatten().any(|kept| kept.as_os_str() == name) {
                    fs::remove_dir_all(path)?;
                }
            } else if fs::read_link(&path).is_ok_and(|target| target.starts_with(self.layout.current))
                && !items.iter().any(|item| *item.name == *text)
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

const VERSION: &str = "..v-";

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = Layout::PRIVATE.current;

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
        let folder = Folder::open(&place, Layout::PRIVATE).expect("open");
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
        let folder = Folder::open(&place, Layout::PRIVATE).expect("open");
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
        Folder::open(&place, Layout::PRIVATE).expect("open").replace(&pair("old")).expect("write");
        fs::create_dir(place.join("..v-half")).expect("mkdir");
        fs::write(place.join("..v-half/svid.0.pem"), "half").expect("write");
        symlink("..v-half", place.join("..fresh")).expect("symlink");
        assert_eq!(fs::read_to_string(place.join("svid.0.pem")).expect("read"), "old");
        Folder::open(&place, Layout::PRIVATE).expect("open").replace(&pair("new")).expect("write");
        assert_eq!(fs::read_to_string(place.join("svid.0.pem")).expect("read"), "new");
        assert_eq!(fs::read_dir(&place).expect("read").count(), 4, "..data, one generation, two links");
    }

    #[test]
    fn withdrawn_files_go_and_strangers_stay() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("p");
        let folder = Folder::open(&place, Layout::PRIVATE).expect("open");
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
            assert!(
                matches!(Folder::open(dir.path(), Layout::PRIVATE), Err(WriteError::Unsafe { .. })),
                "{mode:o}"
            );
        }
    }

    #[test]
    fn two_writers_are_kept_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("p");
        let first = Folder::open(&place, Layout::PRIVATE).expect("open");
        assert!(matches!(Folder::open(&place, Layout::PRIVATE), Err(WriteError::Busy { .. })));
        drop(first);
        Folder::open(&place, Layout::PRIVATE).expect("free again");
    }

    #[test]
    fn a_shared_folder_keeps_one_set_for_late_readers_until_the_identity_ends() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("p");
        let folder = Folder::open(&place, Layout::SHARED).expect("open");
        assert_eq!(fs::metadata(&place).expect("stat").mode() & 0o777, 0o755);
        for generation in ["1", "2", "3"] {
            folder.replace(&pair(generation)).expect("write");
        }
        assert_eq!(fs::read_to_string(place.join("current/svid.0.pem")).expect("read"), "3");
        let sets = || {
            let names = fs::read_dir(&place).expect("read").map(|entry| entry.expect("entry").file_name());
            names.filter(|name| name.to_string_lossy().starts_with(VERSION)).count()
        };
        assert_eq!(sets(), 2);
        folder.reduce(&pair("3")[1..]).expect("write");
        assert_eq!(sets(), 1, "no old key stays");
        assert_eq!(names(&place), ["current", "svid.0.pem"]);
    }
}
