//! The listener's half of pinning: socket options, and reads that say who wrote the bytes.
//!
//! Control data is parsed here from plain bytes, so that the parser can be tested with any bytes; only the
//! `recvmsg` itself is in `sys`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use crate::launch::closes_at_once;
use crate::sys;

/// What one read brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stamped {
    /// Bytes now at the start of the buffer; 0 means the peer closed.
    pub bytes: usize,
    /// Who wrote them, as the kernel says. `None` without `SO_PASSCRED`, at the end of the stream, or when the
    /// stamp was cut off: the caller must then treat bytes as written by somebody else.
    pub writer: Option<WriterId>,
    /// Descriptors that came along and were closed.
    pub fds_dropped: usize,
}

/// The process that wrote a chunk. Root can forge pid and uid, so a match grants nothing; a mismatch counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WriterId {
    /// Process number in our own pid namespace; 0 when the writer is outside it.
    pub pid: u32,
    /// Real uid of the writer, or what it claimed with the privilege to do so.
    pub uid: u32,
    /// Unique for the boot; needs `SO_PASSPIDFD` and Linux 6.9.
    pub pidfs_inode: Option<u64>,
}

/// Options that must be set before `bind`, so that no connection escapes them.
pub mod listen_options {
    use std::io;
    use std::os::fd::AsFd;

    use crate::sys;

    /// `SO_PASSRIGHTS = 0`: senders of descriptors get EPERM, so nobody can make our read close a lingering
    /// socket for them (Linux 6.16).
    ///
    /// # Errors
    /// `ENOPROTOOPT` on older kernels.
    pub fn set_pass_rights_off(socket: impl AsFd) -> io::Result<()> {
        sys::set_flag(socket.as_fd(), super::SO_PASSRIGHTS, false)
    }

    /// `SO_PASSCRED`: each chunk carries its writer's pid and uid, and chunks of two writers are never glued.
    ///
    /// # Errors
    /// Whatever `setsockopt` says.
    pub fn set_pass_cred(socket: impl AsFd) -> io::Result<()> {
        sys::set_flag(socket.as_fd(), libc::SO_PASSCRED, true)
    }

    /// `SO_PASSPIDFD`: each chunk carries a pidfd of its writer, which is exact where a pid is not (Linux 6.5).
    ///
    /// # Errors
    /// `ENOPROTOOPT` on older kernels.
    pub fn set_pass_pidfd(socket: impl AsFd) -> io::Result<()> {
        sys::set_flag(socket.as_fd(), super::SO_PASSPIDFD, true)
    }
}

/// One non-blocking `recvmsg`. Descriptors that came along are closed on a thread of their own, because closing
/// may block for as long as their sender chose.
///
/// # Errors
/// `WouldBlock` when nothing is there, and whatever else `recvmsg` says.
pub fn stamped_recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Stamped> {
    recv_with_descriptors(socket, buffer).map(|(stamped, _passed)| stamped)
}

/// The same, with the descriptors; [`Stamped::fds_dropped`] says how many.
///
/// # Errors
/// As [`stamped_recv`].
pub fn recv_with_descriptors(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(Stamped, Passed)> {
    let mut control = [0_u8; CONTROL_BYTES];
    let (bytes, length) = sys::recvmsg(socket.as_fd(), buffer, &mut control)?;
    let seen = parse(control.get(..length).unwrap_or(&control));
    let rights: Vec<OwnedFd> = seen.rights.into_iter().map(sys::adopt).collect();
    let pidfd = seen.pidfd.map(sys::adopt);
    let fds_dropped = rights.len();
    let pidfs_inode = pidfd.and_then(|fd| pidfs_inode(fd.as_fd()));
    let writer = seen.credentials.map(|(pid, uid)| WriterId { pid, uid, pidfs_inode });
    Ok((Stamped { bytes, writer, fds_dropped }, Passed(rights)))
}

/// Descriptors from a stranger. Dropping them never waits for anybody.
#[derive(Debug)]
pub struct Passed(Vec<OwnedFd>);

impl Passed {
    /// All of them, if every one is a memory file or a handle that was never opened: those close at once, wherever.
    pub fn harmless(mut self) -> Option<Vec<OwnedFd>> {
        self.0.iter().all(closes_at_once).then(|| std::mem::take(&mut self.0))
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        discard(std::mem::take(&mut self.0));
    }
}

/// The pidfs inode behind a pidfd: unique for the boot. `None` before Linux 6.9, where all pidfds share one.
pub(crate) fn pidfs_inode(pidfd: BorrowedFd<'_>) -> Option<u64> {
    static ON_PIDFS: OnceLock<bool> = OnceLock::new();
    let on_pidfs = ON_PIDFS
        .get_or_init(|| rustix::fs::fstatfs(pidfd).is_ok_and(|fs| i128::from(fs.f_type) == PID_FS_MAGIC));
    if !on_pidfs {
        return None;
    }
    rustix::fs::fstat(pidfd).ok().map(|stat| stat.st_ino)
}

/// What the control messages of one read say. Descriptors are plain numbers here: each must be closed once.
#[derive(Debug, Default, Eq, PartialEq)]
struct Seen {
    credentials: Option<(u32, u32)>,
    pidfd: Option<RawFd>,
    rights: Vec<RawFd>,
}

/// Walks `struct cmsghdr`s: length (usize, header included), level, type, then data, each padded to a usize.
fn parse(mut control: &[u8]) -> Seen {
    let mut seen = Seen::default();
    while let Some((header, _)) = control.split_at_checked(HEADER) {
        let Some(length) = word(header).filter(|&length| length >= HEADER) else { break };
        let kind = (number(header, LEVEL_AT), number(header, LEVEL_AT + 4));
        // A truncated last message still owns the descriptors that did fit.
        let data = control.get(HEADER..length).or_else(|| control.get(HEADER..)).unwrap_or_default();
        if kind.0 == Some(libc::SOL_SOCKET) {
            seen.take(kind.1, data);
        }
        let next = length.checked_next_multiple_of(size_of::<usize>());
        control = next.and_then(|next| control.get(next..)).unwrap_or_default();
    }
    seen
}

impl Seen {
    fn take(&mut self, kind: Option<i32>, data: &[u8]) {
        match kind {
            Some(libc::SCM_CREDENTIALS) => {
                let field = |at| number(data, at).map(i32::cast_unsigned);
                self.credentials = field(0).zip(field(4)).filter(|_| data.len() >= 12);
            }
            Some(SCM_PIDFD) => {
                // A negative number is an errno: the writer could not be pinned.
                let fd = number(data, 0).filter(|&fd| fd >= 0);
                self.rights.extend(std::mem::replace(&mut self.pidfd, fd));
            }
            Some(libc::SCM_RIGHTS) => {
                let numbers = data.chunks_exact(4).filter_map(|four| number(four, 0));
                self.rights.extend(numbers.filter(|&fd| fd >= 0));
            }
            _ => {}
        }
    }
}

fn word(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk().map(|word| usize::from_ne_bytes(*word))
}

fn number(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|four| i32::from_ne_bytes(*four))
}

/// Closing a passed socket can block for as long as its sender asked (SO_LINGER): never on the caller's thread,
/// unless that thread cannot be had.
fn discard(descriptors: Vec<OwnedFd>) {
    static CLOSER: OnceLock<Option<Sender<Vec<OwnedFd>>>> = OnceLock::new();
    if descriptors.is_empty() {
        return;
    }
    let closer = CLOSER.get_or_init(|| {
        let (sender, receiver) = channel::<Vec<OwnedFd>>();
        let thread = std::thread::Builder::new().name("mayfly-closer".to_owned());
        thread.spawn(move || receiver.into_iter().for_each(drop)).ok().map(|_| sender)
    });
    match closer {
        // Without a limit of its own: what waits is bounded by our descriptor table, and a full queue would have
        // to be closed here, which is what its sender is after.
        Some(closer) => drop(closer.send(descriptors)),
        None => drop(descriptors),
    }
}

const SO_PASSPIDFD: libc::c_int = 76;
const SO_PASSRIGHTS: libc::c_int = 83;
const SCM_PIDFD: libc::c_int = 4;
pub(crate) const PID_FS_MAGIC: i128 = 0x5049_4446;
const LEVEL_AT: usize = size_of::<usize>();
const HEADER: usize = LEVEL_AT + 8;
/// Room for 253 descriptors (the kernel's most), a pidfd and credentials, so that nothing is ever cut off.
const CONTROL_BYTES: usize = 1152;

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut out = (HEADER + data.len()).to_ne_bytes().to_vec();
        out.extend(level.to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(data);
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }

    fn stamped_pair() -> (UnixStream, UnixStream) {
        let (reader, writer) = UnixStream::pair().unwrap();
        listen_options::set_pass_cred(&reader).unwrap();
        listen_options::set_pass_pidfd(&reader).unwrap();
        (reader, writer)
    }

    #[test]
    fn control_messages_are_read_whatever_their_order() {
        let mut control =
            message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &[7_i32.to_ne_bytes(), 8_i32.to_ne_bytes()].concat());
        control.extend(message(libc::SOL_SOCKET, SCM_PIDFD, &9_i32.to_ne_bytes()));
        let creds = [41_u32, 1000, 1000].map(u32::to_ne_bytes).concat();
        control.extend(message(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &creds));
        control.extend(message(libc::SOL_TCP, libc::SCM_RIGHTS, &1_i32.to_ne_bytes()));
        assert_eq!(
            parse(&control),
            Seen { credentials: Some((41, 1000)), pidfd: Some(9), rights: vec![7, 8] }
        );
    }

    #[test]
    fn a_truncated_rights_message_still_gives_up_what_fitted() {
        let whole =
            message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &[5_i32, 6, 7].map(i32::to_ne_bytes).concat());
        assert_eq!(parse(&whole[..HEADER + 8]).rights, [5, 6]);
    }

    #[test]
    fn an_unpinnable_writer_has_no_pidfd() {
        assert_eq!(parse(&message(libc::SOL_SOCKET, SCM_PIDFD, &(-3_i32).to_ne_bytes())), Seen::default());
    }

    #[test]
    fn a_read_names_its_writer_exactly() {
        let (reader, mut writer) = stamped_pair();
        writer.write_all(b"hello").unwrap();
        let mut buffer = [0; 16];
        let got = stamped_recv(&reader, &mut buffer).unwrap();
        assert_eq!((got.bytes, got.fds_dropped), (5, 0));
        let stamp = got.writer.unwrap();
        assert_eq!(stamp.pid, std::process::id());
        let me = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        assert_eq!(stamp.pidfs_inode, pidfs_inode(me.unwrap().as_fd()));
        assert!(stamp.pidfs_inode.is_some(), "this kernel has pidfs");
    }

    #[test]
    fn two_writers_are_never_glued_into_one_read() {
        let (reader, mut writer) = stamped_pair();
        writer.write_all(b"parent").unwrap();
        let child_end = writer.try_clone().unwrap();
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "printf child"]).stdout(std::process::Stdio::from(OwnedFd::from(child_end)));
        assert!(shell.status().unwrap().success());
        let mut buffer = [0; 64];
        let first = stamped_recv(&reader, &mut buffer).unwrap();
        assert_eq!(&buffer[..first.bytes], b"parent");
        let second = stamped_recv(&reader, &mut buffer).unwrap();
        assert_eq!(&buffer[..second.bytes], b"child");
        assert_ne!(first.writer.unwrap().pidfs_inode, second.writer.unwrap().pidfs_inode);
        assert_ne!(second.writer.unwrap().pid, std::process::id());
    }

    #[test]
    fn an_empty_socket_would_block_and_a_closed_one_reads_zero() {
        let (reader, writer) = stamped_pair();
        let mut buffer = [0; 8];
        assert_eq!(stamped_recv(&reader, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(writer);
        let end = stamped_recv(&reader, &mut buffer).unwrap();
        assert_eq!((end.bytes, end.fds_dropped), (0, 0));
    }

    fn send_with(socket: &UnixStream, fd: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(socket, &[IoSlice::new(b"x")], &mut control, rustix::net::SendFlags::empty())
    }

    #[test]
    fn a_passed_descriptor_is_closed_and_counted() {
        let (reader, writer) = stamped_pair();
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_with(&writer, theirs.as_fd()).unwrap();
        drop(theirs);
        let mut buffer = [0; 8];
        let got = stamped_recv(&reader, &mut buffer).unwrap();
        assert_eq!((got.bytes, got.fds_dropped), (1, 1));
        // Once every copy of `theirs` is closed, `ours` reads the end of the stream.
        let mut ours = ours;
        assert_eq!(io::Read::read(&mut ours, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn only_what_closes_at_once_is_handed_over() {
        let (reader, writer) = stamped_pair();
        let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let received = || recv_with_descriptors(&reader, &mut [0; 8]).unwrap().1.harmless();
        send_with(&writer, memory.as_fd()).unwrap();
        assert_eq!(received().map(|fds| fds.len()), Some(1));
        send_with(&writer, writer.as_fd()).unwrap();
        assert!(received().is_none());
    }

    #[test]
    fn without_pass_rights_the_sender_is_refused() {
        let (reader, writer) = stamped_pair();
        listen_options::set_pass_rights_off(&reader).unwrap();
        assert_eq!(send_with(&writer, writer.as_fd()), Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn adopted_descriptors_are_closed_on_drop() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(sys::adopt(a.into_raw_fd()));
        let mut b = b;
        assert_eq!(io::Read::read(&mut b, &mut [0; 1]).unwrap(), 0);
        assert!(b.as_raw_fd() >= 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }

        #[test]
        fn hostile_lengths_end(lengths in proptest::collection::vec(any::<usize>(), 1..8)) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|l| [l.to_ne_bytes(), [1; 8]].concat()).collect();
            parse(&bytes);
        }
    }
}
