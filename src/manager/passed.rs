//! What the manager passed at start.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use mayfly_attestors::{adopt_passed, inode_of_pidfd};

/// Descriptors that the manager passed, by name.
#[derive(Debug, Default)]
pub struct Passed {
    names: Vec<String>,
    others: Vec<(String, OwnedFd)>,
    pidfds: HashMap<u64, OwnedFd>,
}

/// Pidfds that were kept over a restart, by the inode that names their process.
#[derive(Debug, Default)]
pub struct Pidfds(HashMap<u64, OwnedFd>);

impl Passed {
    /// Takes what `LISTEN_FDS` speaks of, once in a process and before anything else opens a descriptor.
    ///
    /// # Errors
    /// When the variables make no sense, or descriptors are missing.
    pub fn take() -> io::Result<Self> {
        // Also checks that they are open, and keeps them from our helpers.
        let names: Vec<String> = sd_notify::listen_fds_with_names()?.map(|(_, name)| name).collect();
        let count = u32::try_from(names.len()).map_err(io::Error::other)?;
        let descriptors = adopt_passed(count);
        if descriptors.len() != names.len() {
            return Err(io::Error::other("descriptors are missing"));
        }
        Ok(Self::new(names.into_iter().zip(descriptors)))
    }

    fn new(all: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        let mut passed = Self::default();
        for (name, descriptor) in all {
            passed.names.push(name.clone());
            match inode_of_pidfd(&descriptor) {
                Some(inode) => drop(passed.pidfds.insert(inode, descriptor)),
                None => passed.others.push((name, descriptor)),
            }
        }
        passed
    }

    /// How many came.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.names.iter().cloned()
    }

    /// Takes the first descriptor of that name, other than a pidfd.
    pub fn socket(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.others.iter().position(|(own, _)| own == name)?;
        Some(self.others.swap_remove(at).1)
    }

    /// Takes the pidfds.
    pub fn pidfds(&mut self) -> Pidfds {
        Pidfds(std::mem::take(&mut self.pidfds))
    }
}

impl Pidfds {
    /// A copy of the pidfd of that process, if it was kept.
    pub fn of(&self, inode: u64) -> Option<io::Result<OwnedFd>> {
        self.0.get(&inode).map(OwnedFd::try_clone)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn pidfds_are_known_by_what_they_are_and_sockets_by_name() {
        let own =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
                .unwrap();
        let inode = inode_of_pidfd(&own).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let listener: OwnedFd = UnixListener::bind(dir.path().join("s")).unwrap().into();
        let mut passed = Passed::new([("public.1-2".to_owned(), listener), ("pxyz".to_owned(), own)]);
        assert_eq!(passed.len(), 2);
        assert!(passed.socket("pxyz").is_none(), "a pidfd is no socket");
        assert!(passed.socket("public.1-2").is_some() && passed.socket("public.1-2").is_none());
        let pidfds = passed.pidfds();
        assert!(pidfds.of(inode).unwrap().is_ok() && pidfds.of(inode + 1).is_none());
    }
}
