//! The identity of a file behind a handle that was never opened, and whether its file system may be asked at all.
//!
//! A stalled FUSE or network file system holds every `stat`, `open` and `statfs` in a sleep that not even SIGKILL
//! ends. Three calls never wait for it: `open(O_PATH)`, `statx` with `AT_STATX_DONT_SYNC`, and `statmount`. Only they
//! are used here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Statx, StatxFlags};

use crate::sys;

/// Which file, and which content as far as metadata tells. The birth time stands in for the inode generation, which
/// only a real open could read; with the ctime, which no user can set, a recycled inode number does not pass.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct FileId {
    /// Unique for the boot where the kernel has that (6.8).
    pub(crate) mount: u64,
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified: i128,
    pub(crate) changed: i128,
    pub(crate) born: Option<i128>,
}

/// A file's identity and what else decides whether to read it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileFacts {
    pub(crate) id: FileId,
    /// No directory names it any more, or ever did.
    pub(crate) anonymous: bool,
    pub(crate) regular: bool,
    /// Owner is root and neither group nor others may write.
    pub(crate) root_only: bool,
    /// The file system knows the attribute "immutable": one of the kernel's own, not FUSE and no network.
    pub(crate) kernel_own: bool,
}

/// Whether a file system may be asked for content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Gate {
    /// On the list.
    Open(FileSystem),
    /// The mount cannot be named from here (another mount namespace without CAP_SYS_ADMIN, or an old kernel), but
    /// it behaves like one of the kernel's own: the helper, which may be lost, looks again before it opens.
    Ajar,
    /// Not on the list.
    Shut(u64),
    /// It cannot be named, and it behaves like FUSE or a network.
    Unnamed,
}

/// File systems whose content may be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FileSystem {
    /// ext2/3/4, xfs, btrfs: content of a file that only root can write does not change without its ctime.
    Disk,
    /// All others on the list: nothing learned about one process's file holds for another's.
    Other,
}

impl FileFacts {
    /// # Errors
    /// `EACCES` on a FUSE mount that admits only its owner; otherwise what `statx` says.
    pub(crate) fn of(handle: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
        let stat = rustix::fs::statx(handle, "", flags, mask)?;
        Ok(Self::from_stat(&stat))
    }

    fn from_stat(stat: &Statx) -> Self {
        let nanos =
            |t: rustix::fs::StatxTimestamp| i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec);
        let mode = u32::from(stat.stx_mode);
        Self {
            id: FileId {
                mount: stat.stx_mnt_id,
                device: (stat.stx_dev_major, stat.stx_dev_minor),
                inode: stat.stx_ino,
                size: stat.stx_size,
                modified: nanos(stat.stx_mtime),
                changed: nanos(stat.stx_ctime),
                born: (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| nanos(stat.stx_btime)),
            },
            anonymous: stat.stx_nlink == 0,
            regular: mode & libc::S_IFMT == libc::S_IFREG,
            root_only: stat.stx_uid == 0 && mode & 0o022 == 0,
            kernel_own: stat.stx_attributes_mask.bits() & ATTR_IMMUTABLE != 0,
        }
    }

    /// Asks which file system the mount is of: in our own mount namespace, then in that of the process.
    pub(crate) fn gate(&self, namespace: impl FnOnce() -> Option<u64>) -> Gate {
        let ask = |request: &[u64; 4]| sys::statmount(request).ok().and_then(|answer| magic_of(&answer));
        let here = ask(&[SIZE_0, self.id.mount, SB_BASIC, 0]);
        let magic = here.or_else(|| ask(&[SIZE_1, self.id.mount, SB_BASIC, namespace()?]));
        match magic.map(|magic| (magic, named(magic))) {
            Some((_, Some(system))) => Gate::Open(system),
            Some((magic, None)) => Gate::Shut(magic),
            None if self.kernel_own => Gate::Ajar,
            None => Gate::Unnamed,
        }
    }
}

/// The list, by `statfs` magic number.
pub(crate) fn named(magic: u64) -> Option<FileSystem> {
    match magic {
        // ext2/3/4, xfs, btrfs
        0xEF53 | 0x5846_5342 | 0x9123_683E => Some(FileSystem::Disk),
        // tmpfs, ramfs, overlayfs, erofs, squashfs, f2fs, bcachefs, zfs, iso9660, vfat
        0x0102_1994 | 0x8584_58F6 | 0x794C_7630 | 0xE0F5_E1E2 | 0x7371_7368 | 0xF2F5_2010 | 0xCA45_1A4E
        | 0x2FC1_2FC1 | 0x9660 | 0x4D44 => Some(FileSystem::Other),
        _ => None,
    }
}

/// What people call a file system that is not on the list.
pub(crate) fn name_of(magic: u64) -> String {
    match magic {
        0x6573_5546 => "fuse".to_owned(),
        0x6969 => "nfs".to_owned(),
        0x0102_1997 => "9p".to_owned(),
        0xFF53_4D42 | 0xFE53_4D42 => "cifs".to_owned(),
        0x00C3_6400 => "ceph".to_owned(),
        other => format!("type {other:#x}"),
    }
}

/// Identifies the mount namespace of a process to `statmount` (6.11).
pub(crate) fn mount_namespace(namespace: BorrowedFd<'_>) -> Option<u64> {
    sys::mount_namespace_id(namespace.as_fd()).ok()
}

/// Words of `struct statmount`: 1 is the mask of what was filled in, 3 the magic number.
fn magic_of(answer: &[u64; 64]) -> Option<u64> {
    let [_, mask, _, magic, ..] = answer;
    (mask & SB_BASIC != 0).then_some(*magic)
}

const MNT_ID_UNIQUE: u32 = 0x4000;
const ATTR_IMMUTABLE: u64 = 0x10;
const SB_BASIC: u64 = 1;
/// `struct mnt_id_req` without and with the namespace; the upper half of the word is reserved.
const SIZE_0: u64 = 24 << SIZE_SHIFT;
const SIZE_1: u64 = 32 << SIZE_SHIFT;
const SIZE_SHIFT: u32 = if cfg!(target_endian = "big") { 32 } else { 0 };

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_disk_file_is_named_and_let_in() {
        let facts = FileFacts::of(File::open("/bin/sleep").unwrap().as_fd()).unwrap();
        assert_eq!(facts.gate(|| None), Gate::Open(FileSystem::Disk));
        assert!(facts.regular && facts.root_only && !facts.anonymous && facts.id.born.is_some());
    }

    #[test]
    fn an_unlinked_file_is_anonymous() {
        let file = tempfile::tempfile().unwrap();
        let facts = FileFacts::of(file.as_fd()).unwrap();
        assert!(facts.anonymous);
        assert_eq!(facts.gate(|| None), Gate::Open(FileSystem::Disk));
    }

    #[test]
    fn a_memfd_is_on_no_mount_but_behaves_like_the_kernels_own() {
        let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let facts = FileFacts::of(memory.as_fd()).unwrap();
        assert!(facts.anonymous);
        assert_eq!(facts.gate(|| None), Gate::Ajar);
    }

    #[test]
    fn procfs_is_shut_out() {
        let facts = FileFacts::of(File::open("/proc/version").unwrap().as_fd()).unwrap();
        assert_eq!(facts.gate(|| None), Gate::Shut(0x9fa0));
        assert_eq!(name_of(0x6573_5546), "fuse");
    }

    #[test]
    fn a_write_changes_the_identity() {
        let mut file = tempfile::tempfile().unwrap();
        let before = FileFacts::of(file.as_fd()).unwrap().id;
        assert_eq!(before, FileFacts::of(file.as_fd()).unwrap().id);
        io::Write::write_all(&mut file, b"x").unwrap();
        assert_ne!(before, FileFacts::of(file.as_fd()).unwrap().id);
    }
}
