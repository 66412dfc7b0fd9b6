//! Replacing a file in one step.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::folder::Owner;

/// Puts `bytes` at `path` so that every reader sees the old content or the new, whole, and so that after a
/// power cut it is one of the two: written under another name in the same directory, synced, renamed over
/// the old one, directory synced. The file gets exactly the permission bits `mode`. A symbolic link at
/// `path` is replaced, not followed. On an error the old content stands, unless the last sync failed: then
/// the new content stands and may be lost in a power cut.
pub fn write_atomic(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    write_atomic_for(path, mode, Owner::default(), bytes)
}

/// As [`write_atomic`], for somebody else: the file is theirs before it has its name.
pub fn write_atomic_for(path: &Path, mode: u32, owner: Owner, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let dir = openat(CWD, parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let (temporary, file) = create_temporary(&dir, name)?;
    let written = fill(file, mode, owner, bytes).and_then(|()| Ok(renameat(&dir, &temporary, &dir, name)?));
    if written.is_err() {
        // The first error is the one to report.
        unlinkat(&dir, &temporary, AtFlags::empty()).ok();
        return written;
    }
    Ok(fsync(&dir)?)
}

/// Removes what [`write_atomic`] left in `dir` when a process died in the middle: files named as its temporary ones
/// are. Only for a directory that one process writes to. Answers how many went; a directory that is not there has
/// none.
pub fn sweep(dir: &Path) -> io::Result<usize> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut swept = 0;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() && is_temporary(&entry.file_name()) {
            std::fs::remove_file(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// `.NAME.PID.COUNT.tmp`
fn is_temporary(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".tmp"));
    let mut parts = parts.unwrap_or_default().rsplit('.');
    let mut number = || parts.next().is_some_and(|part| part.parse::<u64>().is_ok());
    number() && number() && parts.next().is_some_and(|name| !name.is_empty())
}

fn fill(mut file: File, mode: u32, owner: Owner, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    owner.take(&file)?;
    fchmod(&file, Mode::from_raw_mode(mode))?;
    file.sync_all()
}

/// A new file of a name that nobody else uses: several processes may write the same path at once, and a
/// crash may have left one behind.
fn create_temporary(dir: &OwnedFd, name: &OsStr) -> io::Result<(OsString, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!(".{}.{count}.tmp", std::process::id()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(dir, &temporary, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => {}
            opened => return Ok((temporary, opened?.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn g14_a_reader_never_sees_half_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        let contents = [vec![b'a'; 300_000], vec![b'b'; 200_000]];
        write_atomic(&path, 0o644, &contents[0]).unwrap();
        let done = AtomicBool::new(false);
        let reads = std::thread::scope(|scope| {
            let reader = || {
                let mut reads = 0_usize;
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    let seen = fs::read(&path).unwrap();
                    assert!(contents.contains(&seen), "{} bytes", seen.len());
                    reads += 1;
                }
                reads
            };
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            // Two writers at once, as two commands writing to the same directory.
            let writers = contents.each_ref().map(|content| {
                scope.spawn(|| (0..100).for_each(|_| write_atomic(&path, 0o644, content).unwrap()))
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            done.store(true, Ordering::Relaxed);
            readers.map(|reader| reader.join().unwrap())
        });
        assert!(reads.iter().all(|reads| *reads > 0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn the_mode_is_exact_and_links_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (key, link) = (dir.path().join("key"), dir.path().join("link"));
        write_atomic(&key, 0o600, b"secret").unwrap();
        symlink(&key, &link).unwrap();
        write_atomic(&link, 0o666, b"public").unwrap();
        assert_eq!(fs::read(&key).unwrap(), b"secret");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&key), mode(&link)), (0o600, 0o666));
    }

    #[test]
    fn what_a_crash_left_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let left = create_temporary(
            &openat(CWD, dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap(),
            "x509.key".as_ref(),
        );
        drop(left.unwrap());
        let kept = [".x.tmp", ".x.1.tmp", "x.1.2.tmp", ".x.1.2", ".x.a.2.tmp", "x509.key", "..1.2.tmp"];
        for name in kept {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join(".d.1.2.tmp")).unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), kept.len() + 1);
        assert_eq!(sweep(&dir.path().join("absent")).unwrap(), 0);
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        assert!(write_atomic(&target, 0o600, b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomic(&dir.path().join("absent/file"), 0o600, b"x").is_err());
        assert!(write_atomic(Path::new("/"), 0o600, b"x").is_err());
    }
}
