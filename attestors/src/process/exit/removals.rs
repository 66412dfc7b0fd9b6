//! Cgroups that are removed. The kernel tells of a cgroup that has become empty at most once in ten milliseconds, and what
//! it has put off until then is lost when the cgroup is removed meanwhile, which whoever made it does as soon as it is
//! empty. That it was removed the directory above tells, at once and always.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::scope::CgroupEvents;

/// The directories above the cgroups that are watched.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// Made for the first cgroup: most agents watch none.
    inotify: Option<OwnedFd>,
    above: HashMap<i32, Above>,
    place: HashMap<u64, (i32, Vec<u8>)>,
}

/// One directory: who is watched there, by name.
type Above = HashMap<Vec<u8>, BTreeSet<u64>>;

impl Removals {
    /// From now on it is told when the cgroup is removed.
    pub(super) fn watch(&mut self, epoll: &OwnedFd, cgroup: &CgroupEvents, id: u64) -> io::Result<()> {
        let inotify = match &self.inotify {
            Some(inotify) => inotify,
            None => self.inotify.insert(start(epoll)?),
        };
        let above = format!("/proc/self/fd/{}", cgroup.above.as_raw_fd());
        // Of a directory that is watched already this is the same number again.
        let number = inotify::add_watch(inotify, above, WatchFlags::DELETE | WatchFlags::ONLYDIR)
            .map_err(|errno| wanting(errno, "fs.inotify.max_user_watches"))?;
        let name = cgroup.name.to_vec();
        self.above.entry(number).or_default().entry(name.clone()).or_default().insert(id);
        self.place.insert(id, (number, name));
        Ok(())
    }

    pub(super) fn forget(&mut self, id: u64) {
        let Some((number, name)) = self.place.remove(&id) else { return };
        let Some(above) = self.above.get_mut(&number) else { return };
        if let Some(ids) = above.get_mut(&name) {
            ids.remove(&id);
            if ids.is_empty() {
                above.remove(&name);
            }
        }
        if above.is_empty() {
            self.above.remove(&number);
            // Fails only if the directory is gone, and its watch with it.
            self.inotify.as_ref().map(|inotify| inotify::remove_watch(inotify, number).ok());
        }
    }

    /// Whom it is time to look at.
    pub(super) fn read(&mut self) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let Some(inotify) = &self.inotify else { return found };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify.as_fd(), &mut buffer);
        // Until there are no more, or the kernel says something that it does not say: then all are looked at.
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    found.extend(self.place.keys());
                }
                Ok(event) => found.extend(told(&self.above, event.wd(), event.file_name())),
                Err(rustix::io::Errno::AGAIN) => return found,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    found.extend(self.place.keys());
                    return found;
                }
            }
        }
    }
}

/// Those of that name; of a directory that is gone itself, all.
fn told<'a>(
    above: &'a HashMap<i32, Above>,
    number: i32,
    name: Option<&CStr>,
) -> impl Iterator<Item = &'a u64> + use<'a> {
    let named = name.map(|name| name.to_bytes().to_vec());
    let of = above.get(&number).into_iter().flatten();
    of.filter(move |(name, _)| named.as_ref().is_none_or(|named| named == *name)).flat_map(|(_, ids)| ids)
}

fn start(epoll: &OwnedFd) -> io::Result<OwnedFd> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .map_err(|errno| wanting(errno, "fs.inotify.max_user_instances"))?;
    let fd: BorrowedFd<'_> = inotify.as_fd();
    epoll::add(epoll, fd, EventData::new_u64(super::REMOVED), EventFlags::IN)?;
    Ok(inotify)
}

/// What an operator can do about it.
fn wanting(errno: rustix::io::Errno, limit: &str) -> io::Error {
    use rustix::io::Errno;
    match errno {
        Errno::MFILE | Errno::NOSPC => io::Error::other(format!("{errno}: raise {limit}")),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_is_who_is_named_or_everybody_below_what_is_gone() {
        let one: Above = [(b"a".to_vec(), [1, 2].into()), (b"b".to_vec(), [3].into())].into();
        let other: Above = [(b"a".to_vec(), [4].into())].into();
        let above = HashMap::from([(1, one), (2, other)]);
        let told = |number, name| -> BTreeSet<u64> { told(&above, number, name).copied().collect() };
        assert_eq!(told(1, Some(c"a")), [1, 2].into());
        assert_eq!(told(1, Some(c"c")), [].into());
        assert_eq!(told(2, None), [4].into());
        assert_eq!(told(1, None), [1, 2, 3].into());
        assert_eq!(told(3, Some(c"a")), [].into());
    }
}
