//! A cgroup for one program: whoever runs this as root has it made below the cgroup that `mayfly run` is in, so that the
//! task is the program's and its children's, and ends with the last of them. Where that cannot be, the program runs as it
//! would have, and its task is said not to be isolated.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statfs;

/// One that was made. Whoever is left in it when the program has ended is killed, and it goes away.
#[derive(Debug)]
pub(super) struct OwnCgroup(PathBuf);

/// How it ended.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Leftovers {
    /// Processes that the program left behind.
    pub(super) killed: u64,
    /// The cgroup is still there: why.
    pub(super) stays: Option<String>,
}

impl OwnCgroup {
    /// `None` where there is no v2 hierarchy, or we may not make one.
    pub(super) fn make() -> Option<Self> {
        let made = || -> io::Result<PathBuf> {
            if !rustix::process::geteuid().is_root() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
            let own = std::fs::read_to_string("/proc/self/cgroup")?;
            let parent = place(&mounts, &own).ok_or(io::ErrorKind::NotFound)?;
            sweep(&parent);
            let mut random = [0; 8];
            aws_lc_rs::rand::fill(&mut random).map_err(io::Error::other)?;
            let path = parent.join(format!("{NAME}{}-{}", std::process::id(), crate::id::hex_text(&random)));
            std::fs::create_dir(&path)?;
            Ok(path)
        };
        made()
            .inspect_err(|error| tracing::debug!(%error, "the program gets no cgroup of its own"))
            .ok()
            .map(Self)
    }

    /// Where the program's process goes first of all.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The program has ended: nobody it left behind is to go on with its work.
    pub(super) async fn end(self) -> Leftovers {
        let killed = processes(&self.0);
        if is_populated(&self.0)
            && let Err(error) = std::fs::write(self.0.join("cgroup.kill"), "1")
        {
            return Leftovers { killed: 0, stays: Some(error.to_string()) };
        }
        let mut tries = 0;
        loop {
            match remove(&self.0) {
                Ok(()) => return Leftovers { killed, stays: None },
                Err(error) if tries == MOST_TRIES => {
                    return Leftovers { killed, stays: Some(error.to_string()) };
                }
                Err(_) => tries += 1,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Those of a `mayfly run` that was killed are still there. One with somebody in it cannot be removed.
fn sweep(parent: &Path) {
    for path in below(parent) {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(NAME));
        let pid = name.and_then(|name| name.split_once('-')).and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&path).ok();
        }
    }
}

/// Moves this very process in. Where the kernel does not let us (threaded cgroups are one reason) it stays where it is.
pub(super) fn enter(cgroup: &Path) -> io::Result<()> {
    if i128::from(statfs(cgroup)?.f_type) != CGROUP2 {
        return Err(io::Error::other("it is no cgroup"));
    }
    std::fs::write(cgroup.join("cgroup.procs"), "0")
}

/// The directory of our own cgroup in the v2 hierarchy, from the kernel's list of mounts and of our cgroups.
fn place(mounts: &str, own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    if path.split('/').any(|part| part == "..") || path.ends_with(" (deleted)") {
        return None;
    }
    // `36 35 98:0 ROOT MOUNT OPTIONS … - TYPE SOURCE …`: what is mounted is the whole hierarchy.
    let whole = |line: &&str| {
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        kind == Some("cgroup2") && line.split(' ').nth(3) == Some("/")
    };
    let mount = mounts.lines().find(whole)?.split(' ').nth(4)?;
    // Blanks and the like are escaped there, and nobody mounts cgroups at such a place.
    (!mount.contains('\\')).then(|| Path::new(mount).join(path))
}

fn is_populated(path: &Path) -> bool {
    let events = std::fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// In it and below it.
fn processes(path: &Path) -> u64 {
    let own = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines().count();
    below(path)
        .iter()
        .map(|path| processes(path))
        .fold(u64::try_from(own).unwrap_or(u64::MAX), u64::saturating_add)
}

fn remove(path: &Path) -> io::Result<()> {
    below(path).iter().try_for_each(|path| remove(path))?;
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn below(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

const NAME: &str = "mayfly-run-";
const CGROUP2: i128 = 0x6367_7270;
/// Two seconds: the dead of a kill are gone in a moment.
const MOST_TRIES: u32 = 400;
const PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_our_own_cgroup_where_the_whole_hierarchy_is_mounted() {
        let hybrid = "25 30 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      26 25 0:24 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
                      27 25 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let part = "26 25 0:24 /a /mnt rw - cgroup2 cgroup2 rw\n";
        let odd = "26 25 0:24 / /a\\040b rw - cgroup2 cgroup2 rw\n";
        for (mounts, own, place) in [
            (hybrid, "9:pids:/x\n0::/\n", Some("/sys/fs/cgroup/unified/")),
            (hybrid, "0::/system.slice/a.service\n", Some("/sys/fs/cgroup/unified/system.slice/a.service")),
            (hybrid, "0::/../up\n", None),
            (hybrid, "0::/gone (deleted)\n", None),
            (hybrid, "9:pids:/x\n", None),
            (part, "0::/b\n", None),
            (odd, "0::/b\n", None),
            ("", "0::/b\n", None),
        ] {
            assert_eq!(super::place(mounts, own).as_deref(), place.map(Path::new), "{mounts}{own}");
        }
    }

    #[test]
    fn only_a_cgroup_is_entered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        assert!(enter(dir.path()).is_err());
        assert_eq!(std::fs::read_to_string(dir.path().join("cgroup.procs")).unwrap(), "");
    }
}
