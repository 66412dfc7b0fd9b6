//! The only unsafe code: the socket option, ioctls and syscalls that no safe crate offers. Everything that can be
//! decided without `unsafe` (numbers, parsing, meaning) is elsewhere; the listener's safe interface is re-exported.
#![expect(unsafe_code, reason = "kernel interfaces that nix 0.31 and rustix 1 do not wrap")]

use std::{io, os::fd::*};

pub use crate::socket::{Passed, Stamped, WriterId, listen_options, recv_with_descriptors, stamped_recv};

pub(crate) fn set_flag(socket: BorrowedFd<'_>, option: libc::c_int, on: bool) -> io::Result<()> {
    let (value, length) = (libc::c_int::from(on), libc::socklen_t::from(4_u8));
    let value = (&raw const value).cast();
    // SAFETY: `value` points at a live c_int and `length` is its size; the kernel only reads it.
    done(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, length) }).map(drop)
}

/// `struct pidfd_info`, version 0 (64 bytes); word 0 goes in as the mask of what is wanted.
pub(crate) fn pidfd_info(pidfd: BorrowedFd<'_>, wanted: u64) -> io::Result<[u64; 8]> {
    let mut info = [wanted, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the request carries its size, 64 bytes, which is that of `info`.
    done(unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, info.as_mut_ptr()) })?;
    Ok(info)
}

pub(crate) fn mount_namespace_id(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    let mut id = 0_u64;
    // SAFETY: the request writes one u64, to a live u64.
    done(unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_MNTNS_ID, &raw mut id) })?;
    Ok(id)
}

/// `statmount(2)`, number 457 on every architecture; word 0 of the request holds its size.
pub(crate) fn statmount(request: &[u64; 4]) -> io::Result<[u64; 64]> {
    let mut answer = [0_u64; 64];
    // SAFETY: the kernel reads at most 32 bytes of `request` and writes at most the 512 bytes of `answer`.
    done(unsafe { libc::syscall(457, request.as_ptr(), answer.as_mut_ptr(), size_of_val(&answer), 0) })?;
    Ok(answer)
}

/// One non-blocking `recvmsg`: bytes of data, bytes of control data.
pub(crate) fn recvmsg(fd: BorrowedFd<'_>, data: &mut [u8], ctl: &mut [u8]) -> io::Result<(usize, usize)> {
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: msghdr is plain old data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1_u8.into());
    (message.msg_control, message.msg_controllen) = (ctl.as_mut_ptr().cast(), ctl.len() as _);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer and length in `message` describes a live, exclusively borrowed buffer.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, flags) };
    Ok((done(got as libc::c_long)?, message.msg_controllen as _))
}

/// Owns a descriptor that the kernel has put into our table by [`recvmsg`] or at exec; nobody else knows its number.
pub(crate) fn adopt(received: RawFd) -> OwnedFd {
    // SAFETY: the callers pass each open number of a control message, or of those passed at exec, exactly once.
    unsafe { OwnedFd::from_raw_fd(received) }
}

fn done(result: impl Into<libc::c_long>) -> io::Result<usize> {
    usize::try_from(result.into()).map_err(|_negative| io::Error::last_os_error())
}
