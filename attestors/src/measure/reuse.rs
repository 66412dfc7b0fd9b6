//! Which hash may serve for another process. Pure: liveness is asked of the caller.
//!
//! Two tables. For other processes a hash is kept under the file's identity, and only while at least one process that
//! was measured under it still runs; what may be kept there at all is decided in [`may_keep`]. For the very process
//! it was taken for, a hash is kept on any file system: whoever could change the file without a trace is then that
//! process itself, which needs no file to run other code.

use std::collections::{HashMap, VecDeque};

use super::file::{FileFacts, FileId, FileSystem, Gate};

/// Hashes by file; `H` is whatever keeps a process pinned.
#[derive(Debug)]
pub(super) struct Reuse<H> {
    entries: HashMap<FileId, Entry<H>>,
    clock: u64,
}

#[derive(Debug)]
struct Entry<H> {
    sha256: [u8; 32],
    holders: Vec<H>,
    used: u64,
}

/// Only ext4, xfs and btrfs, where no content changes without its ctime but by tricks that need write access; only
/// files that root alone can write, which closes those tricks (swapped extents, a mapping kept over the exec); and
/// only when the ctime is at least two seconds old and not in the future, so that a change within one tick of the
/// clock cannot hide. Overlays, tmpfs and images are read anew for each process.
pub(super) fn may_keep(facts: &FileFacts, gate: Gate, now: i128) -> bool {
    gate == Gate::Open(FileSystem::Disk) && facts.root_only && is_settled(facts, now)
}

/// Whether a later change must show in the ctime.
pub(super) fn is_settled(facts: &FileFacts, now: i128) -> bool {
    now - facts.id.changed >= SETTLED
}

/// Hashes by process. The pidfs inode is never used again within a boot, so nothing need be held for it.
#[derive(Debug, Default)]
pub(super) struct Own {
    hashes: HashMap<u64, (FileId, [u8; 32])>,
    order: VecDeque<u64>,
}

impl Own {
    pub(super) fn find(&self, process: u64, id: &FileId) -> Option<[u8; 32]> {
        self.hashes.get(&process).filter(|(known, _)| known == id).map(|(_, sha256)| *sha256)
    }

    /// The newest file of a process replaces the one before it; the oldest process makes room.
    pub(super) fn keep(&mut self, process: u64, id: FileId, sha256: [u8; 32]) {
        if self.hashes.insert(process, (id, sha256)).is_none() {
            self.order.push_back(process);
        }
        if self.order.len() > PROCESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
    }
}

impl<H> Default for Reuse<H> {
    fn default() -> Self {
        Self { entries: HashMap::new(), clock: 0 }
    }
}

impl<H> Reuse<H> {
    /// The hash, if one of its processes still runs. `holder` joins them.
    pub(super) fn find(
        &mut self,
        id: &FileId,
        holder: impl FnOnce() -> H,
        alive: impl Fn(&H) -> bool,
    ) -> Option<[u8; 32]> {
        let entry = self.entries.get_mut(id)?;
        entry.holders.retain(&alive);
        if entry.holders.is_empty() {
            self.entries.remove(id);
            return None;
        }
        if entry.holders.len() < HOLDERS {
            entry.holders.push(holder());
        }
        self.clock += 1;
        entry.used = self.clock;
        Some(entry.sha256)
    }

    /// Keeps a hash that was just read for the process `holder`.
    pub(super) fn keep(&mut self, id: FileId, sha256: [u8; 32], holder: H, alive: impl Fn(&H) -> bool) {
        if self.entries.len() >= ENTRIES {
            self.entries.retain(|_, entry| entry.holders.iter().any(&alive));
        }
        if self.entries.len() >= ENTRIES
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id)
        {
            self.entries.remove(&oldest);
        }
        self.clock += 1;
        self.entries.insert(id, Entry { sha256, holders: vec![holder], used: self.clock });
    }
}

const SETTLED: i128 = 2_000_000_000;
const ENTRIES: usize = 256;
const PROCESSES: usize = 8192;
/// Each costs a descriptor; more than one so that a short-lived first process does not take the hash with it.
const HOLDERS: usize = 3;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn id(inode: u64) -> FileId {
        FileId { mount: 1, device: (8, 1), inode, size: 10, modified: 0, changed: 0, born: None }
    }

    #[test]
    fn only_settled_root_files_on_disk_are_kept() {
        let file =
            rustix::fs::open("/bin/sleep", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let facts = FileFacts::of(std::os::fd::AsFd::as_fd(&file)).unwrap();
        let disk = Gate::Open(FileSystem::Disk);
        let changed = facts.id.changed;
        assert!(may_keep(&facts, disk, changed + SETTLED));
        assert!(!may_keep(&facts, disk, changed + SETTLED - 1), "too young");
        assert!(!may_keep(&facts, disk, changed - 1), "in the future");
        assert!(!may_keep(&FileFacts { root_only: false, ..facts }, disk, changed + SETTLED));
        for gate in [Gate::Open(FileSystem::Other), Gate::Ajar, Gate::Shut(1), Gate::Unnamed] {
            assert!(!may_keep(&facts, gate, changed + SETTLED));
        }
    }

    proptest! {
        /// Histories of keep, find and exit against the rule itself.
        #[test]
        fn a_hash_is_found_only_while_one_of_its_processes_lives(ops in proptest::collection::vec((0_u8..3, 0_u64..6, 0_usize..40), 1..200)) {
            let mut reuse = Reuse::default();
            let mut dead: HashSet<usize> = HashSet::new();
            let mut measured: HashMap<u64, HashSet<usize>> = HashMap::new();
            for (next, (op, inode, who)) in ops.into_iter().enumerate() {
                match op {
                    0 => {
                        reuse.keep(id(inode), [u8::try_from(inode).unwrap(); 32], next, |h| !dead.contains(h));
                        measured.insert(inode, HashSet::from([next]));
                    }
                    1 => {
                        dead.insert(who);
                    }
                    _ => {
                        let lived = measured.get(&inode).is_some_and(|m| m.iter().any(|h| !dead.contains(h)));
                        let found = reuse.find(&id(inode), || next, |h| !dead.contains(h));
                        prop_assert!(found.is_none() || lived);
                        if let Some(found) = found {
                            prop_assert_eq!(found, [u8::try_from(inode).unwrap(); 32]);
                            measured.entry(inode).or_default().insert(next);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_process_has_its_own_hash_for_its_newest_file_only() {
        let mut own = Own::default();
        own.keep(1, id(7), [7; 32]);
        assert_eq!(own.find(1, &id(7)), Some([7; 32]));
        assert_eq!((own.find(2, &id(7)), own.find(1, &id(8))), (None, None));
        own.keep(1, id(8), [8; 32]);
        assert_eq!((own.find(1, &id(7)), own.find(1, &id(8))), (None, Some([8; 32])));
        for process in 2..20_000 {
            own.keep(process, id(8), [8; 32]);
        }
        assert_eq!((own.hashes.len(), own.order.len()), (PROCESSES, PROCESSES));
        assert_eq!(own.find(1, &id(8)), None);
    }

    #[test]
    fn the_table_never_grows_beyond_its_bound() {
        let mut reuse = Reuse::default();
        for inode in 0..1000 {
            reuse.keep(id(inode), [0; 32], (), |()| true);
        }
        assert_eq!(reuse.entries.len(), ENTRIES);
        assert!(reuse.find(&id(999), || (), |()| true).is_some());
        assert!(reuse.find(&id(0), || (), |()| true).is_none());
    }
}
