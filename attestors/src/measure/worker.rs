//! The hash helper: a process of its own, because a file system that stalls takes the thread that asked with it.
//!
//! It holds its socket (fd 0) and the file it is reading, nothing else; it cannot be dumped; it ends when its parent
//! closes the socket. Each request carries a handle that was never opened; the file system behind it is looked at
//! once more before the open.

use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use aws_lc_rs::digest;
use rustix::fs::{Advice, CWD, Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use super::file::{FileFacts, named};
use super::wire::{Reply, Request};
use crate::launch::{Code, CodeMap};
use crate::process::procfs;

/// Body of the hidden subcommand `measure-worker`: serves the socket on fd 0 until its other end is closed.
/// Succeeds then; fails when fd 0 is not such a socket.
pub fn measure_worker() -> ExitCode {
    // Before anything is read: its memory will hold other people's programs.
    if rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).is_err() {
        return ExitCode::FAILURE;
    }
    close_all_but_standard();
    let stdin = io::stdin();
    match serve(stdin.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    while let Some((request, handle)) = receive(socket)? {
        let reply = match request {
            Request::Hash { max_bytes } => measure(handle.as_fd(), max_bytes, &mut buffer),
            Request::Code => look_at_code(handle.as_fd()),
        };
        let reply =
            reply.unwrap_or_else(|error| Reply::Unreadable(error.raw_os_error().unwrap_or(libc::EIO)));
        drop(handle);
        rustix::net::send(socket, &reply.encode(), SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// `None` once the parent has closed its end.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Request, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 10];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = loop {
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?.bytes,
        }
    };
    let mut handles = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    match (got, bytes.get(..got).and_then(Request::decode), handles.next()) {
        (0, _, _) => Ok(None),
        (_, Some(request), Some(handle)) => Ok(Some((request, handle))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn measure(handle: BorrowedFd<'_>, max_bytes: u64, buffer: &mut [u8]) -> io::Result<Reply> {
    // May hang, as may all that follows: that is what this process is for.
    let kind = rustix::fs::fstatfs(handle)?.f_type;
    let magic = u64::try_from(kind).map_or(u64::MAX, |magic| magic & 0xFFFF_FFFF);
    if named(magic).is_none() {
        return Ok(Reply::Shut(magic));
    }
    // A device or FIFO must not even be opened.
    if !FileFacts::of(handle)?.regular {
        return Ok(Reply::NotRegular);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file =
        rustix::fs::openat(CWD, format!("/proc/self/fd/{}", handle.as_raw_fd()), flags, Mode::empty())?;
    let before = FileFacts::of(file.as_fd())?.id;
    if before.size > max_bytes {
        return Ok(Reply::TooLarge(before.size));
    }
    let (total, sha256) = match digest_of(&file, max_bytes, buffer)? {
        Ok(read) => read,
        Err(too_large) => return Ok(Reply::TooLarge(too_large)),
    };
    let after = FileFacts::of(file.as_fd())?.id;
    if before == after && total != before.size {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Reply::Hashed { before, after, sha256 })
}

/// Whether the process behind a `/proc` directory has the code that we have: we are the same program.
fn look_at_code(process: BorrowedFd<'_>) -> io::Result<Reply> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = rustix::fs::openat(CWD, "/proc/self", flags, Mode::empty())?;
    let read = |dir: BorrowedFd<'_>| procfs::read_at(dir, "smaps", MOST_MAPPINGS);
    let (theirs, ours) = (read(process)?, read(own.as_fd())?);
    let both = CodeMap::parse(&theirs).zip(CodeMap::parse(&ours));
    Ok(Reply::Code(both.map_or(Code::Unreadable, |(theirs, ours)| theirs.judge(&ours))))
}

/// Bytes read and their hash; the inner error is a size beyond `max_bytes`.
fn digest_of(file: &OwnedFd, max_bytes: u64, buffer: &mut [u8]) -> io::Result<Result<(u64, [u8; 32]), u64>> {
    advise(file, Advice::NoReuse);
    let mut context = digest::Context::new(&digest::SHA256);
    let mut total = 0_u64;
    loop {
        let got = match rustix::io::read(file, &mut *buffer) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        let Some(filled) = buffer.get(..got).filter(|filled| !filled.is_empty()) else { break };
        total = total.saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
        if total > max_bytes {
            return Ok(Err(total));
        }
        context.update(filled);
    }
    if total > LARGE {
        // A big program must not push others out of the page cache; pages in use stay.
        advise(file, Advice::DontNeed);
    }
    let sha256 = context.finish().as_ref().try_into().or(Err(io::ErrorKind::InvalidData))?;
    Ok(Ok((total, sha256)))
}

/// Advice is only advice: a file system that refuses it is read all the same.
fn advise(file: &OwnedFd, advice: Advice) {
    rustix::fs::fadvise(file, 0, None, advice).ok();
}

/// Whatever the parent forgot to mark close-on-exec ends here, before the first request.
fn close_all_but_standard() {
    let Ok(list) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = list
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The directory's own descriptor is among them, and closed already.
        nix::unistd::close(fd).ok();
    }
}

const READ_BYTES: usize = 256 << 10;
/// Bytes of `smaps`: some thousand mappings, and we have some dozens.
const MOST_MAPPINGS: usize = 1 << 20;
const LARGE: u64 = 64 << 20;
