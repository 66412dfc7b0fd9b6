//! Readers of procfs text. Pure over bytes, and they never panic: names in these files are chosen by strangers and
//! may hold any byte but NUL (newline and `)` included), so each parser says what it relies on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Real, effective and saved ids of a process.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
}

/// Fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) parent: u32,
    pub(crate) start_time: u64,
}

/// Fields of `/proc/PID/status`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Status {
    pub(crate) uids: Ids,
    pub(crate) gids: Ids,
    pub(crate) groups: Vec<u32>,
    pub(crate) tracer: u32,
    pub(crate) no_new_privs: bool,
}

/// One line of `/proc/PID/cgroup`. The path is as the kernel shows it: relative to the reader's cgroup namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct CgroupLine<'a> {
    pub(crate) hierarchy: u32,
    pub(crate) controllers: &'a [u8],
    pub(crate) path: &'a [u8],
}

impl Ids {
    pub(crate) fn agree(self) -> bool {
        self.real == self.effective && self.effective == self.saved
    }
}

/// Everything after the *last* `)`: the name before it may hold parentheses of its own.
pub(crate) fn stat(text: &[u8]) -> Option<Stat> {
    let after = text.iter().rposition(|&b| b == b')')?;
    let mut fields = text.get(after + 1..)?.split(|b| b.is_ascii_whitespace()).filter(|f| !f.is_empty());
    let state = fields.next()?.first().copied()?;
    let parent = u32::try_from(integer(fields.next()?)?).ok()?;
    // Fields 5 to 21 lie between the parent (4) and the start time (22).
    let start_time = u64::try_from(integer(fields.nth(17)?)?).ok()?;
    Some(Stat { state, parent, start_time })
}

/// The name comes first and its newline is escaped by the kernel; every field after it is the kernel's own.
pub(crate) fn status(text: &[u8]) -> Option<Status> {
    let number = |key: &[u8]| field(text, key).and_then(integer);
    let ids = |key: &[u8]| {
        let mut ids = field(text, key)?.split(u8::is_ascii_whitespace).filter_map(id);
        Some(Ids { real: ids.next()?, effective: ids.next()?, saved: ids.next()? })
    };
    let groups = field(text, b"Groups")?.split(u8::is_ascii_whitespace).filter(|g| !g.is_empty());
    Some(Status {
        uids: ids(b"Uid")?,
        gids: ids(b"Gid")?,
        groups: groups.map(id).collect::<Option<_>>()?,
        tracer: u32::try_from(number(b"TracerPid")?).ok()?,
        no_new_privs: number(b"NoNewPrivs")? != 0,
    })
}

/// Lines that are not `number:controllers:path` are left out. A cgroup name never holds a newline, but may hold
/// anything else: only the first two colons separate.
pub(crate) fn cgroups(text: &[u8]) -> impl Iterator<Item = CgroupLine<'_>> {
    text.split(|&b| b == b'\n').filter_map(|line| {
        let mut parts = line.splitn(3, |&b| b == b':');
        let hierarchy = u32::try_from(integer(parts.next()?)?).ok()?;
        let (controllers, path) = (parts.next()?, parts.next()?);
        path.starts_with(b"/").then_some(CgroupLine { hierarchy, controllers, path })
    })
}

/// The value of `key:` at the start of a line, without surrounding blanks.
pub(crate) fn field<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let line = text.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(key)?.strip_prefix(b":"))?;
    Some(line.trim_ascii())
}

/// A decimal number that fills the text.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `0 0 4294967295` and nothing else.
pub(crate) fn is_identity_map(text: &[u8]) -> bool {
    let mut words = text.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    let mut next = || words.next().and_then(integer);
    (next(), next(), next(), next()) == (Some(0), Some(0), Some(i64::from(u32::MAX)), None)
}

/// Reads a whole procfs file below `dir`, or as much of it as `limit` bytes.
pub(crate) fn read_at(dir: BorrowedFd<'_>, path: &str, limit: usize) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat(dir, path, flags, Mode::empty())?;
    read_all(&file, limit)
}

pub(crate) fn read_all(file: &OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let mut text = vec![0; limit.min(4096)];
    let mut filled = 0;
    while let Some(free) = text.get_mut(filled..).filter(|free| !free.is_empty()) {
        let got = rustix::io::read(file.as_fd(), free)?;
        if got == 0 {
            break;
        }
        filled += got;
        if filled == text.len() && filled < limit {
            text.resize((filled * 2).min(limit), 0);
        }
    }
    text.truncate(filled);
    Ok(text)
}

fn id(text: &[u8]) -> Option<u32> {
    u32::try_from(integer(text)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let hostile = b"41 (x) S 1 (evil) R 7 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9\n";
        assert_eq!(stat(hostile), Some(Stat { state: b'R', parent: 7, start_time: 123_456 }));
    }

    #[test]
    fn a_name_that_looks_like_fields_is_only_a_name() {
        let text = b"Name:\tUid:\\n0\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \nTracerPid:\t0\nNoNewPrivs:\t1\n";
        let status = status(text).unwrap();
        assert_eq!(status.uids, Ids { real: 1, effective: 2, saved: 3 });
        assert!(!status.uids.agree());
        assert_eq!(status.groups, [10, 20]);
        assert!(status.no_new_privs);
    }

    #[test]
    fn a_missing_field_is_not_a_default() {
        assert_eq!(status(b"Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t\nNoNewPrivs:\t0\n"), None);
        assert_eq!(stat(b"1 (init) S"), None);
    }

    #[test]
    fn cgroup_names_may_hold_colons_blanks_and_escapes() {
        let text = b"12:cpu,cpuacct:/a\n1:name=systemd:/user.slice/x:y \x1b[31m (deleted)\n0::/../..\nrubbish\n3:memory:no-slash\n";
        let lines: Vec<_> = cgroups(text).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].path, b"/user.slice/x:y \x1b[31m (deleted)");
        assert_eq!((lines[2].hierarchy, lines[2].path), (0, &b"/../.."[..]));
    }

    #[test]
    fn only_the_whole_identity_map_counts() {
        assert!(is_identity_map(b"         0          0 4294967295\n"));
        for bad in [&b"0 0 4294967294"[..], b"0 1000 1", b"0 0 4294967295\n1 1 1\n", b"", b"x"] {
            assert!(!is_identity_map(bad));
        }
    }

    #[test]
    fn our_own_files_parse() {
        let proc = std::fs::File::open("/proc/self").unwrap();
        let read = |name: &str| read_at(proc.as_fd(), name, 1 << 16).unwrap();
        assert_eq!(
            stat(&read("stat")).unwrap().parent,
            rustix::process::getppid().unwrap().as_raw_nonzero().get().cast_unsigned()
        );
        assert_eq!(status(&read("status")).unwrap().uids.effective, rustix::process::geteuid().as_raw());
        assert!(cgroups(&read("cgroup")).count() > 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            stat(&bytes);
            status(&bytes);
            cgroups(&bytes).count();
            is_identity_map(&bytes);
        }

        #[test]
        fn any_name_leaves_the_stat_fields_alone(name in "[^\0]{0,15}", start in 0_u64..i64::MAX as u64) {
            let text = format!("7 ({name}) S 3 7 7 0 -1 1 2 3 4 5 6 7 8 9 10 11 12 13 {start} 99 1\n");
            let text = text.as_bytes();
            prop_assert_eq!(stat(text), Some(Stat { state: b'S', parent: 3, start_time: start }));
        }
    }
}
