//! Other processes of one user, for a warning at start.

use crate::host::Host;
use crate::process::procfs;

impl Host {
    /// Numbers of the processes that have this real, effective or saved uid, without ourselves and our children,
    /// lowest first, at most `limit`. What cannot be read is passed over: it is for a warning only.
    pub fn processes_of(&self, uid: u32, limit: usize) -> Vec<u32> {
        let own = std::process::id();
        let Ok(entries) = rustix::fs::openat(self.proc(), ".", DIRECTORY, rustix::fs::Mode::empty())
            .and_then(rustix::fs::Dir::read_from)
        else {
            return Vec::new();
        };
        let number = |entry: rustix::fs::DirEntry| entry.file_name().to_str().ok()?.parse::<u32>().ok();
        let mut found: Vec<u32> = entries.filter_map(|entry| number(entry.ok()?)).collect();
        found.sort_unstable();
        let read = |pid: &u32, file: &str| procfs::read_at(self.proc(), &format!("{pid}/{file}"), 8192).ok();
        let is_theirs = |pid: &u32| {
            let Some(status) = read(pid, "status").and_then(|text| procfs::status(&text)) else {
                return false;
            };
            let Some(stat) = read(pid, "stat").and_then(|text| procfs::stat(&text)) else { return false };
            let ids = status.uids;
            [ids.real, ids.effective, ids.saved].contains(&uid) && stat.parent != own
        };
        found.into_iter().filter(|pid| *pid != own).filter(is_theirs).take(limit).collect()
    }
}

const DIRECTORY: rustix::fs::OFlags =
    rustix::fs::OFlags::RDONLY.union(rustix::fs::OFlags::DIRECTORY).union(rustix::fs::OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use crate::testing::{end, host};

    #[test]
    fn f09_processes_of_the_same_user_are_found() {
        const UID: u32 = 20_977;
        assert_eq!(host().processes_of(UID, 8), Vec::<u32>::new());
        // Not our child: those are our own helpers.
        let child = Command::new("/bin/sleep").arg("30").uid(UID).spawn().unwrap();
        assert_eq!(host().processes_of(UID, 8), Vec::<u32>::new(), "a child of ours");
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "sleep 30 & echo $!; wait"])
            .uid(UID)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().unwrap()), &mut line)
            .unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        assert_eq!(host().processes_of(UID, 8), vec![grandchild]);
        end(child);
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(grandchild).unwrap()).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        shell.wait().unwrap();
    }
}
