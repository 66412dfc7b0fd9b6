//! The launcher's side of the launch socket: says what this process is about to become, and waits for the answer.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::api::launch::wire::{Answer, Claim, Hello, MAX_PACKET};

/// Why the agent does not know what we become.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("no agent takes launches at `{}`: {source}", path.display())]
    NoAgent { path: PathBuf, source: io::Error },
    #[error("`{}` is served by uid {uid}, which is neither root nor you: not talking to it", path.display())]
    Untrusted { path: PathBuf, uid: u32 },
    #[error("the agent speaks another version of the launch socket: use the same mayfly")]
    Version,
    #[error("the agent refuses: {0}")]
    Refused(String),
    #[error("the agent went away: {0}")]
    Lost(#[from] io::Error),
}

/// What is said.
#[derive(Debug)]
pub(super) struct Intent<'a> {
    /// Handle and path of what will be executed.
    pub(super) program: (BorrowedFd<'a>, &'a Path),
    pub(super) files: &'a [OwnedFd],
    /// Whom to believe, besides root and ourselves.
    pub(super) server_uid: Option<u32>,
}

/// The digests of the files, as the agent has taken them. From here on this process stands for the program.
pub(super) fn announce(socket: &Path, intent: &Intent<'_>) -> Result<Vec<String>, LaunchError> {
    let no_agent = |source| LaunchError::NoAgent { path: socket.to_owned(), source };
    let agent = connect(socket).map_err(no_agent)?;
    let uid = getsockopt(&agent, sockopt::PeerCredentials).map_err(|e| no_agent(e.into()))?.uid();
    let own = rustix::process::geteuid().as_raw();
    if uid != 0 && uid != own && intent.server_uid != Some(uid) {
        return Err(LaunchError::Untrusted { path: socket.to_owned(), uid });
    }
    let hello: Hello = receive(&agent)?;
    if hello.launch != Hello::VERSION {
        return Err(LaunchError::Version);
    }
    mayfly_attestors::failpoint::hit("launcher.before_hiding");
    if hello.hide {
        // From here on nobody of our user can reach into this process, until it has become the other program.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    }
    mayfly_attestors::failpoint::hit("launcher.hidden");
    send(&agent, intent)?;
    match receive(&agent)? {
        Answer::Recorded(digests) => Ok(digests),
        Answer::Refused(why) => Err(LaunchError::Refused(why)),
    }
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn send(agent: &OwnedFd, intent: &Intent<'_>) -> io::Result<()> {
    let claim = Claim { program: intent.program.1.to_owned(), files: intent.files.len() };
    let packet = serde_json::to_vec(&claim)?;
    let descriptors: Vec<BorrowedFd<'_>> =
        [intent.program.0].into_iter().chain(intent.files.iter().map(AsFd::as_fd)).collect();
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(mayfly_attestors::MAX_MEASURED_FILES + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(agent, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive<T: serde::de::DeserializeOwned>(agent: &OwnedFd) -> io::Result<T> {
    let mut polled = [PollFd::new(agent, PollFlags::IN)];
    if rustix::event::poll(&mut polled, Some(&PATIENCE))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut packet = vec![0; MAX_PACKET];
    let (got, _) = rustix::net::recv(agent, &mut *packet, RecvFlags::DONTWAIT)?;
    match packet.get(..got).filter(|words| !words.is_empty()) {
        Some(words) => Ok(serde_json::from_slice(words)?),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A little more than the agent takes.
const PATIENCE: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };
