//! The netlink socket behind the watch: subscribing, reading, and proving that it tells anything at all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::ExecNotice;
use crate::{failpoint, ticks};

/// A subscribed socket.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) socket: OwnedFd,
}

impl Connector {
    pub(super) fn open(buffer: usize) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = (AddressFamily::NETLINK, SocketType::DGRAM);
        let socket = rustix::net::socket_with(kind.0, kind.1, flags, Some(netlink::CONNECTOR))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, CN_IDX_PROC))?;
        // Beyond the usual limit only with CAP_NET_ADMIN; without it, what the limit allows.
        if sockopt::set_socket_recv_buffer_size_force(&socket, buffer).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, buffer)?;
        }
        rustix::net::send(&socket, &subscription(), SendFlags::empty())?;
        Ok(Self { socket })
    }

    /// The next notice already in the socket; `None` when there is none.
    pub(super) fn next(&self) -> io::Result<Option<ExecNotice>> {
        let mut datagram = [0_u8; 256];
        loop {
            match rustix::net::recvfrom(&self.socket, &mut datagram, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Ok(Some(ExecNotice::Lost)),
                Err(error) => return Err(error.into()),
                Ok((length, _, from)) => {
                    let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                    // Only the kernel has port 0: anything else is a process talking to us.
                    if from.is_some_and(|from| from.pid() == 0)
                        && let Some(pid) = datagram.get(..length).and_then(exec_of)
                    {
                        return Ok(Some(ExecNotice::Exec { pid }));
                    }
                }
            }
        }
    }
}

/// Starts ourselves with `--version` and wants to see it. `spawn` returns after the exec, so the event is due.
pub(super) fn self_test(socket: &Connector) -> Result<(), String> {
    let quiet = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    };
    let mut child = quiet(Command::new("/proc/self/exe").arg("--version").env_clear())
        .map_err(|e| format!("the self-test cannot start a process: {e}"))?;
    let seen = saw_exec(socket, child.id(), ticks::now() + Duration::from_millis(200));
    child.kill().ok();
    child.wait().map_err(|e| format!("the self-test lost its process: {e}"))?;
    match seen {
        Ok(true) => Ok(()),
        Ok(false) => Err("the process connector did not show an exec of our own".to_owned()),
        Err(error) => Err(format!("the process connector failed: {error}")),
    }
}

fn saw_exec(socket: &Connector, pid: u32, until: Instant) -> io::Result<bool> {
    loop {
        while let Some(notice) = socket.next()? {
            if notice == (ExecNotice::Exec { pid }) {
                return Ok(true);
            }
        }
        let left = until.saturating_duration_since(ticks::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut polled = [PollFd::from_borrowed_fd(socket.socket.as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref())?;
    }
}

/// nlmsghdr, cn_msg and proc_input: listen, for exec only. Kernels before 6.6 know no filter and ignore a message
/// of this length, which the self-test then finds out.
fn subscription() -> Vec<u8> {
    let mut out = Vec::with_capacity(44);
    for word in
        [44_u32, u32::from(NLMSG_DONE), 0, 0, CN_IDX_PROC, CN_VAL_PROC, 0, 0, 8, MCAST_LISTEN, EVENT_EXEC]
    {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// The process number of an exec event; `None` for any other message.
fn exec_of(datagram: &[u8]) -> Option<u32> {
    let word = |at: usize| datagram.get(at..)?.first_chunk().map(|four| u32::from_ne_bytes(*four));
    // nlmsghdr is 16 bytes, cn_msg 20; then what, cpu, timestamp, and the exec's thread and process numbers.
    let is_exec = (word(16)?, word(20)?, word(36)?) == (CN_IDX_PROC, CN_VAL_PROC, EVENT_EXEC);
    word(56).filter(|_| is_exec)
}

/// Room for a storm of some thousand programs; little when a test wants to see it overrun.
pub(super) fn buffer() -> usize {
    if failpoint::fails("exec.small_buffer") { 64 << 10 } else { 8 << 20 }
}

const NLMSG_DONE: u16 = 3;
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const MCAST_LISTEN: u32 = 1;
const EVENT_EXEC: u32 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_overrun_buffer_is_told_as_lost() {
        let socket = Connector::open(1).unwrap();
        let lost = |socket: &Connector| {
            std::iter::from_fn(|| socket.next().unwrap()).any(|notice| notice == ExecNotice::Lost)
        };
        for _ in 0..400 {
            Command::new("/bin/true").status().unwrap();
        }
        assert!(lost(&socket));
    }

    #[test]
    fn other_events_are_no_exec() {
        let mut datagram = vec![0; 76];
        for (at, value) in [(16, 1_u32), (20, 1), (36, 2), (52, 78), (56, 77)] {
            datagram[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        assert_eq!(exec_of(&datagram), Some(77));
        datagram[36] = 1;
        assert_eq!(exec_of(&datagram), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            exec_of(&bytes);
        }
    }
}
