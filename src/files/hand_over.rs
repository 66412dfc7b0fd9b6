//! Giving a directory, and what is in it, to the user that the agent runs as. Done by root with `CAP_CHOWN` and no
//! other capability: it may not look past permissions, so it takes a directory before it looks inside.
//!
//! Whoever owned the directory before may have put anything into it. Only directories and regular files with one name
//! are given away, by descriptor and without following links, so that no file from elsewhere changes hands.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fstat, mkdirat, openat,
};
use rustix::io::Errno;

use super::trust::{Fault, FileError, names_in, system, untrusted};

/// What a directory is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holding {
    /// Sockets, for everybody: 0755.
    Sockets,
    /// Keys and the ledger, for their owner: 0700.
    Keys,
}

impl Holding {
    fn mode(self) -> u32 {
        if self == Self::Sockets { 0o755 } else { 0o700 }
    }
}

/// Makes each a directory of `owner`. What it holds is given along if it was somebody else's.
///
/// # Errors
/// [`FileError`].
pub fn hand_over(directories: &[(PathBuf, Holding)], owner: u32) -> Result<(), FileError> {
    let mut ordered: Vec<_> = directories.iter().collect();
    ordered.sort_by_key(|(path, _)| path.components().count());
    if let Some((path, _)) = ordered.iter().find(|(path, _)| !path.is_absolute()) {
        return Err(untrusted(path, Fault::NotADirectory));
    }
    // First all of them, while the directories above are still ours; then the inner ones before the outer.
    for (path, holding) in &ordered {
        open_or_make(path, *holding)?;
    }
    ordered.iter().rev().try_for_each(|(path, holding)| give_one(path, *holding, owner))
}

fn give_one(path: &Path, holding: Holding, owner: u32) -> Result<(), FileError> {
    let dir = open_or_make(path, holding)?;
    let found = fstat(&dir).map_err(system("look at", path))?;
    let own = rustix::process::geteuid().as_raw();
    if found.st_uid == owner && owner != own {
        // It has looked after it itself; to change a mode would take another capability.
        return Ok(());
    }
    if found.st_uid != own {
        give(dir.as_fd(), own, path)?;
    }
    // Its owner now: the mode can be set, and it can be read.
    let readable = openat(&dir, ".", OPEN | OFlags::RDONLY, Mode::empty()).map_err(system("open", path))?;
    fchmod(&readable, Mode::from_raw_mode(holding.mode())).map_err(system("set the mode of", path))?;
    if found.st_uid != own {
        contents(&readable, path, owner, own, 0)?;
    }
    give(dir.as_fd(), owner, path)
}

fn open_or_make(path: &Path, holding: Holding) -> Result<OwnedFd, FileError> {
    let open = || openat(CWD, path, OPEN | OFlags::PATH, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            match mkdirat(CWD, path, Mode::from_raw_mode(holding.mode())) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(system("make", path)(errno)),
            }
            open().map_err(system("open", path))
        }
        opened => opened.map_err(system("open", path)),
    }
}

fn contents(dir: &OwnedFd, path: &Path, owner: u32, own: u32, depth: u32) -> Result<(), FileError> {
    for name in names_in(dir, path)? {
        let at: PathBuf = path.join(&name);
        one(dir.as_fd(), &name, &at, owner, own, depth)?;
    }
    Ok(())
}

fn one(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    at: &Path,
    owner: u32,
    own: u32,
    depth: u32,
) -> Result<(), FileError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let item = openat(dir, name.as_bytes(), flags, Mode::empty()).map_err(system("open", at))?;
    let found = fstat(&item).map_err(system("look at", at))?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory if depth < DEEPEST => {
            give(item.as_fd(), own, at)?;
            let flags = OPEN | OFlags::RDONLY;
            let inside = openat(&item, ".", flags, Mode::empty()).map_err(system("open", at))?;
            contents(&inside, at, owner, own, depth + 1)?;
            give(item.as_fd(), owner, at)
        }
        FileType::RegularFile if names_of(&found) == 1 => give(item.as_fd(), owner, at),
        // The links and sockets of the run before: the agent makes its own, and whoever owns the directory can
        // remove them.
        _ => Ok(()),
    }
}

/// `st_nlink` is 64 bits wide on some architectures and 32 on others.
#[expect(clippy::useless_conversion, reason = "not useless where the field is 32 bits wide")]
fn names_of(found: &Stat) -> u64 {
    u64::from(found.st_nlink)
}

fn give(item: BorrowedFd<'_>, owner: u32, path: &Path) -> Result<(), FileError> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    chownat(item, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(system("give away", path))
}

const OPEN: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The data directory is two deep.
const DEEPEST: u32 = 8;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    use std::process::Command;

    use super::*;

    const AGENT: u32 = 64_917;

    fn owner(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.mode() & 0o777)
    }

    fn one(path: &Path, holding: Holding) -> Result<(), FileError> {
        hand_over(&[(path.to_owned(), holding)], AGENT)
    }

    #[test]
    fn a_missing_directory_is_made_and_one_of_the_agents_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (public, state) = (dir.path().join("public"), dir.path().join("state"));
        one(&public, Holding::Sockets).unwrap();
        one(&state, Holding::Keys).unwrap();
        assert_eq!((owner(&public), owner(&state)), ((AGENT, 0o755), (AGENT, 0o700)));
        fs::write(state.join("root's"), "").unwrap();
        one(&state, Holding::Keys).unwrap();
        assert_eq!(owner(&state.join("root's")).0, 0);
    }

    #[test]
    fn what_a_former_owner_left_goes_along_and_nothing_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (state, outside) = (dir.path().join("state"), dir.path().join("outside"));
        fs::write(&outside, "root's own").unwrap();
        fs::create_dir_all(state.join("authority")).unwrap();
        fs::write(state.join("authority/key.pem"), "k").unwrap();
        symlink(&outside, state.join("link")).unwrap();
        fs::hard_link(&outside, state.join("hard")).unwrap();
        for path in [&state, &state.join("authority"), &state.join("authority/key.pem")] {
            chown(path, Some(1234), Some(1234)).unwrap();
        }
        one(&state, Holding::Keys).unwrap();
        let all = [&state, &state.join("authority"), &state.join("authority/key.pem")];
        assert!(all.iter().all(|path| owner(path).0 == AGENT));
        assert_eq!((owner(&outside).0, owner(&state.join("link")).0), (0, 0));
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink(dir.path().join("real"), dir.path().join("state")).unwrap();
        assert!(one(&dir.path().join("state"), Holding::Keys).is_err());
        assert_eq!(owner(&dir.path().join("real")).0, 0);
    }

    /// As the init container: root, and `CAP_CHOWN` alone.
    #[test]
    fn one_capability_is_enough() {
        if let Some(dir) = std::env::var_os("MAYFLY_TEST_DIR") {
            let outer = Path::new(&dir).join("run");
            let all = [(outer.clone(), Holding::Sockets), (outer.join("public"), Holding::Sockets)];
            hand_over(&all, AGENT).unwrap();
            one(&Path::new(&dir).join("state"), Holding::Keys).unwrap();
            // Once more, as after each restart of the pod.
            hand_over(&all, AGENT).unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir_all(state.join("authority")).unwrap();
        fs::write(state.join("authority/key.pem"), "k").unwrap();
        for path in [&state, &state.join("authority"), &state.join("authority/key.pem")] {
            chown(path, Some(1234), Some(1234)).unwrap();
            let mode = if path.is_dir() { 0o700 } else { 0o600 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let caps = "--bounding-set=-all,+chown";
        let done = Command::new("/usr/bin/setpriv")
            .args([caps, "--inh-caps=-all"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "files::hand_over::tests::one_capability_is_enough"])
            .env("MAYFLY_TEST_DIR", dir.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        assert_eq!(owner(&state), (AGENT, 0o700));
        assert_eq!(owner(&dir.path().join("run/public")), (AGENT, 0o755));
        assert_eq!(owner(&state.join("authority/key.pem")), (AGENT, 0o600));
    }
}
