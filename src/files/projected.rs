//! A directory as Kubernetes projects a ConfigMap or Secret: `NAME` is a link to `..data/NAME`, and `..data` a link
//! to the directory of the current set, which one rename replaces. Its mode lets everybody write; nobody can, because
//! it is mounted read-only here and its other place on the node is root's.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, StatVfsMountFlags, fstatvfs, readlinkat};

use super::trust::{
    Fault, FileError, TrustRules, WRITE_BY_OTHERS, absolute, check_dir, names_in, open_at, open_dirs,
    own_uid, read_in, stat, system, untrusted,
};

/// The current set of such a directory, opened once: all that is read from it belongs together.
#[derive(Debug)]
pub struct Projected {
    path: PathBuf,
    set: OwnedFd,
}

impl Projected {
    /// The link that is replaced when the set is.
    pub const LINK: &'static str = "..data";

    /// Opens the set that is current now. The parents are checked like any other; the directory itself must be
    /// root's, and on a read-only mount if its mode would let others write.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let path = absolute(path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(untrusted(&path, Fault::NotProjected("it is the root directory")));
        };
        let parent = open_dirs(parent, own_uid(), None)?;
        let volume = open_at(&parent, name, OFlags::PATH, &path)?;
        check_volume(&volume, &path)?;
        let link = path.join(Self::LINK);
        let target = readlinkat(&volume, Self::LINK, Vec::new()).map_err(system("read the link", &link))?;
        let target = OsStr::from_bytes(target.to_bytes());
        // The kubelet names it `..` and a date; nothing that leads out of the volume.
        if !target.as_bytes().starts_with(b"..") || target.len() < 3 || target.as_bytes().contains(&b'/') {
            return Err(untrusted(&link, Fault::NotProjected("`..data` leads elsewhere")));
        }
        let at = path.join(target);
        let set = open_at(&volume, target, OFlags::PATH, &at)?;
        check_dir(&stat(&set, &at)?, own_uid(), false, &at)?;
        Ok(Self { path: at, set })
    }

    /// What is in the set, sorted.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn names(&self) -> Result<Vec<OsString>, FileError> {
        names_in(&self.set, &self.path)
    }

    /// Reads one file of the set; it must be as trustworthy as any other.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(&self, name: &OsStr, rules: &TrustRules) -> Result<Vec<u8>, FileError> {
        read_in(&self.set, name, rules, &self.path.join(name))
    }
}

fn check_volume(volume: &OwnedFd, path: &Path) -> Result<(), FileError> {
    let found = stat(volume, path)?;
    if found.st_mode & WRITE_BY_OTHERS == 0 || FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return check_dir(&found, own_uid(), false, path);
    }
    if found.st_uid != 0 {
        return Err(untrusted(path, Fault::Owner(found.st_uid, 0)));
    }
    let flags = fstatvfs(volume).map_err(system("look at the mount of", path))?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        Ok(())
    } else {
        Err(untrusted(path, Fault::NotProjected("others may write in it, and it is not mounted read-only")))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    fn volume(mode: u32) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("..2026_11_30")).unwrap();
        fs::set_permissions(at("..2026_11_30"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at("..2026_11_30/a.toml"), "a").unwrap();
        fs::set_permissions(at("..2026_11_30/a.toml"), fs::Permissions::from_mode(0o644)).unwrap();
        symlink("..2026_11_30", at("..data")).unwrap();
        symlink("..data/a.toml", at("a.toml")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        dir
    }

    fn read(dir: &Path) -> Result<Vec<u8>, FileError> {
        let rules = TrustRules::public(100);
        Projected::open(dir).and_then(|volume| volume.read(OsStr::new("a.toml"), &rules))
    }

    #[test]
    fn the_current_set_is_read_through_its_link() {
        let dir = volume(0o755);
        assert_eq!(read(dir.path()).unwrap(), b"a");
        assert_eq!(Projected::open(dir.path()).unwrap().names().unwrap(), ["a.toml"]);
    }

    #[test]
    fn a_volume_that_others_could_write_is_refused() {
        let error = read(volume(0o777).path()).unwrap_err().to_string();
        assert!(error.contains("not mounted read-only"), "{error}");
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_refused() {
        for target in ["/etc", "..", "../x", "..2026_11_30/", "set"] {
            let dir = volume(0o755);
            fs::remove_file(dir.path().join("..data")).unwrap();
            symlink(target, dir.path().join("..data")).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("`..data` leads elsewhere"), "{target}: {error}");
        }
    }

    #[test]
    fn a_file_in_the_set_that_others_could_write_is_refused() {
        let dir = volume(0o755);
        let file = dir.path().join("..2026_11_30/a.toml");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("chmod go-w"));
    }

    /// As in a pod: mode 0777, mounted read-only in a mount namespace of its own.
    #[test]
    fn the_mode_that_kubernetes_gives_it_is_taken_for_what_it_is_on_a_read_only_mount() {
        if let Some(dir) = std::env::var_os("MAYFLY_TEST_VOLUME") {
            assert_eq!(read(Path::new(&dir)).unwrap(), b"a");
            return;
        }
        let dir = volume(0o777);
        let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" --exact "$3""#;
        let test = "files::projected::tests::the_mode_that_kubernetes_gives_it_is_taken_for_what_it_is_on_a_read_only_mount";
        let done = Command::new("/usr/bin/unshare")
            .args(["--mount", "/bin/sh", "-c", script, "sh"])
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env("MAYFLY_TEST_VOLUME", dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
    }
}
