//! The service manager that started us: systemd, or whoever speaks its protocol.
//!
//! It is told when we serve and that we live, and it keeps descriptors for us while we restart: the listening
//! sockets, so that callers wait in the kernel's queue and nobody is refused, and the pidfds of live workloads, so
//! that exits in between are found. One thread sends; nobody else ever waits for the manager.

mod passed;
mod shelf;

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mayfly_attestors::Process;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

pub use self::passed::{Passed, Pidfds};
use self::shelf::{Shelf, pidfd_name};

/// The way to the manager. Clones share it. Without a manager every call does nothing.
#[derive(Clone, Debug, Default)]
pub struct Manager(Option<Line>);

#[derive(Clone, Debug)]
struct Line {
    jobs: mpsc::Sender<Job>,
    keeps: bool,
}

/// What the environment says of the manager.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Surroundings {
    /// `NOTIFY_SOCKET`
    pub notify_socket: Option<OsString>,
    /// `FDSTORE`: how many descriptors it keeps for us. systemd sets it from version 254 on, our unit always.
    pub fd_store: Option<OsString>,
}

enum Job {
    Say(&'static str),
    Keep(String, Kept),
    LetGo(String),
    /// The process is gone; the manager has noticed by itself.
    Gone(String),
    /// What was passed and not claimed by now is given up.
    Settle,
    Flush(mpsc::SyncSender<()>),
}

enum Kept {
    Socket(OwnedFd),
    Process(Arc<Process>),
}

impl Surroundings {
    /// Of this process.
    pub fn of_process() -> Self {
        Self { notify_socket: std::env::var_os("NOTIFY_SOCKET"), fd_store: std::env::var_os("FDSTORE") }
    }

    fn room(&self) -> usize {
        self.fd_store.as_ref().and_then(|text| text.to_str()?.parse().ok()).unwrap_or(0)
    }
}

impl Manager {
    /// Opens the line if there is a manager. What it has passed is in `passed`, and need not be sent again.
    ///
    /// # Errors
    /// When its socket cannot be reached or there can be no thread.
    pub fn connect(surroundings: &Surroundings, passed: &Passed) -> io::Result<Self> {
        let Some(path) = surroundings.notify_socket.as_deref().filter(|path| !path.is_empty()) else {
            return Ok(Self(None));
        };
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that reads nothing must not stop this thread for ever.
        socket.set_write_timeout(Some(PATIENCE))?;
        let room = surroundings.room();
        let shelf = Shelf::new(room, passed.names());
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("manager".to_owned())
            .spawn(move || Sender { socket, shelf, complained: false }.run(&queue))?;
        Ok(Self(Some(Line { jobs, keeps: room > 0 })))
    }

    /// Whether it keeps descriptors while we restart.
    pub fn keeps(&self) -> bool {
        self.0.as_ref().is_some_and(|line| line.keeps)
    }

    /// We serve.
    pub fn ready(&self) {
        self.send(Job::Say("READY=1"));
    }

    /// We are about to stop.
    pub fn stopping(&self) {
        self.send(Job::Say("STOPPING=1"));
    }

    /// The watchdog's sign of life.
    pub fn beat(&self) {
        self.send(Job::Say("WATCHDOG=1"));
    }

    /// Has a listening socket kept under `name`.
    pub fn keep_socket(&self, name: String, socket: BorrowedFd<'_>) {
        if self.keeps()
            && let Ok(socket) = socket.try_clone_to_owned()
        {
            self.send(Job::Keep(name, Kept::Socket(socket)));
        }
    }

    /// Has the process's pidfd kept; nothing where pidfds cannot be told apart (before Linux 6.9).
    pub fn keep_process(&self, process: &Arc<Process>) {
        if self.keeps()
            && let Some(inode) = process.key().pidfs_inode
        {
            self.send(Job::Keep(pidfd_name(inode), Kept::Process(Arc::clone(process))));
        }
    }

    /// The process needs no keeping any more. One that has ended the manager drops by itself.
    pub fn let_go(&self, process: &Process, ended: bool) {
        if self.keeps()
            && let Some(inode) = process.key().pidfs_inode
        {
            let name = pidfd_name(inode);
            self.send(if ended { Job::Gone(name) } else { Job::LetGo(name) });
        }
    }

    /// Everything that is still wanted has been claimed: the rest of what was passed is let go.
    pub fn settle(&self) {
        self.send(Job::Settle);
    }

    /// Waits until everything has been sent, but not for ever.
    pub fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        self.send(Job::Flush(done));
        if self.0.is_some() {
            wait.recv_timeout(PATIENCE).ok();
        }
    }

    fn send(&self, job: Job) {
        if let Some(line) = &self.0 {
            // The thread lives as long as any line does.
            line.jobs.send(job).ok();
        }
    }
}

/// How often the manager's watchdog wants a sign of life, if it does.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

struct Sender {
    socket: UnixDatagram,
    shelf: Shelf,
    complained: bool,
}

impl Sender {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        for job in jobs {
            let sent = match job {
                Job::Say(words) => self.say(words, &[]),
                Job::Keep(name, kept) => self.keep(&name, &kept),
                Job::LetGo(name) => self.let_go(&name),
                Job::Gone(name) => {
                    self.shelf.let_go(&name);
                    Ok(())
                }
                Job::Settle => self.shelf.unclaimed().iter().try_for_each(|name| self.let_go(name)),
                Job::Flush(done) => {
                    done.send(()).ok();
                    Ok(())
                }
            };
            match sent {
                Ok(()) => self.complained = false,
                // Once: it is the manager's trouble, and may come with every message.
                Err(error) if !std::mem::replace(&mut self.complained, true) => {
                    tracing::warn!(%error, "the service manager takes no messages");
                }
                Err(_) => {}
            }
        }
    }

    fn keep(&mut self, name: &str, kept: &Kept) -> io::Result<()> {
        let descriptor = match kept {
            Kept::Socket(socket) => socket.as_fd(),
            Kept::Process(process) => process.pidfd(),
        };
        match self.shelf.keep(name) {
            shelf::Answer::Send => self.say(&format!("FDSTORE=1\nFDNAME={name}"), &[descriptor]),
            shelf::Answer::Known => Ok(()),
            shelf::Answer::Full { first } => {
                if first {
                    tracing::warn!(
                        "the service manager keeps no more descriptors (FileDescriptorStoreMax): further processes are \
                         found by their numbers after a restart"
                    );
                }
                Ok(())
            }
        }
    }

    fn let_go(&mut self, name: &str) -> io::Result<()> {
        if self.shelf.let_go(name) {
            self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
        } else {
            Ok(())
        }
    }

    fn say(&self, words: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&self.socket, &[IoSlice::new(words.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(dir: &tempfile::TempDir, room: Option<&str>) -> (Manager, UnixDatagram) {
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let surroundings =
            Surroundings { notify_socket: Some(path.into()), fd_store: room.map(OsString::from) };
        (Manager::connect(&surroundings, &Passed::default()).unwrap(), socket)
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut text = [0; 512];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(text.get(..length).unwrap()).into_owned()
    }

    #[test]
    fn words_come_in_order_and_descriptors_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (manager, socket) = manager(&dir, Some("2"));
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        manager.keep_socket("public.1-2".to_owned(), one.as_fd());
        manager.keep_socket("public.1-2".to_owned(), one.as_fd());
        manager.ready();
        manager.send(Job::LetGo("public.1-2".to_owned()));
        manager.send(Job::LetGo("public.1-2".to_owned()));
        manager.beat();
        manager.flush();
        let all: Vec<String> = (0..4).map(|_| heard(&socket)).collect();
        let wanted =
            ["FDSTORE=1\nFDNAME=public.1-2", "READY=1", "FDSTOREREMOVE=1\nFDNAME=public.1-2", "WATCHDOG=1"];
        assert_eq!(all, wanted);
    }

    #[test]
    fn a_manager_that_keeps_nothing_is_given_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (manager, socket) = manager(&dir, None);
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!manager.keeps());
        manager.keep_socket("public.1-2".to_owned(), one.as_fd());
        manager.stopping();
        assert_eq!(heard(&socket), "STOPPING=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let manager = Manager::connect(&Surroundings::default(), &Passed::default()).unwrap();
        manager.ready();
        manager.settle();
        manager.flush();
        assert!(!manager.keeps());
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let name = format!("mayfly-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let surroundings =
            Surroundings { notify_socket: Some(format!("@{name}").into()), ..Surroundings::default() };
        Manager::connect(&surroundings, &Passed::default()).unwrap().ready();
        assert_eq!(heard(&socket), "READY=1");
    }
}
