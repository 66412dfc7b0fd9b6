//! Back-ends: attestors that ask somebody else (a container engine, the service manager, Kubernetes, a plug-in).
//!
//! A back-end looks up what the kernel has already said of a process ([`Subject::origin`]); it never finds out by
//! itself who the process is. All of them run at once, each under its own deadline. The three answers are different
//! things and lead to different ends:
//!
//! - selectors: what it knows;
//! - no selectors, with a note that says why: the process is none of its business, or is not believed. A process that
//!   matches nothing without them is denied;
//! - [`Silent`]: it cannot say now. Nothing is concluded from that: who might match if it answered is told to try
//!   again, and who has an identity by what it said before keeps it while nothing has changed.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use crate::origin::{self, ContainerId, ContainerRef, Hierarchies, Origin, PodUid, View};
use crate::process::{PinError, ProcDir, Process, is_want_of_ours, procfs};
use crate::selector::Selector;

/// An attestor that asks somebody else.
pub trait Backend: Send + Sync + fmt::Debug {
    /// The type of its selectors.
    fn kind(&self) -> &'static str;

    /// Its name in answers; two back-ends of one kind have different ones.
    fn name(&self) -> &'static str {
        self.kind()
    }

    /// Every key it may give. While it is silent, selectors with these keys are unknown.
    fn keys(&self) -> &'static [&'static str];

    /// How long it may take; then it is silent.
    fn deadline(&self) -> Duration;

    /// Looks the subject up. Dropped when the caller goes away, at the deadline, and when nobody needs the answer any
    /// more. Called again for each attestation: what can be remembered, and for how long, is the back-end's to know.
    fn attest<'a>(&'a self, subject: &'a Subject<'a>) -> BackendFuture<'a>;
}

/// What [`Backend::attest`] resolves to.
pub type BackendFuture<'a> = Pin<Box<dyn Future<Output = Result<Found, Silent>> + Send + 'a>>;

/// What a back-end does in the background, until the agent ends.
pub type BackendTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What changed behind the back of a back-end: whoever it is about is looked at again, and loses what it has no more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum News {
    /// Something about this container.
    Container(ContainerId),
    /// Something about this pod.
    Pod(PodUid),
    /// This pod is no more: a process that still runs in it has outlived what it was.
    PodGone(PodUid),
    /// No pod has this container any more.
    ContainerGone(ContainerId),
    /// A back-end of this kind answers again, or has forgotten what it knew: everybody with an answer of it.
    Kind(&'static str),
}

/// How a back-end tells its news. Never blocks.
pub type Tell = std::sync::Arc<dyn Fn(News) + Send + Sync>;

/// What a back-end is told of a process.
#[derive(Debug)]
pub struct Subject<'a> {
    pub(crate) process: &'a Process,
    pub(crate) origin: &'a Origin,
    pub(crate) cgroups: &'a [u8],
    pub(crate) view: &'a View,
    pub(crate) hierarchies: &'a Hierarchies,
}

/// What an attestor found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// What it knows.
    pub selectors: Vec<Selector>,
    /// What it left out, each with the reason.
    pub notes: Vec<String>,
}

/// Why an attestor has no answer.
#[derive(Debug)]
pub enum Silent {
    /// For want of a descriptor: then there is no attestation at all, because without this answer the process would
    /// look like one that lacks what it has.
    Descriptors,
    /// One plain clause, for operators.
    Because(String),
}

impl<'a> Subject<'a> {
    /// The process, pinned.
    pub fn process(&self) -> &'a Process {
        self.process
    }

    /// Where the kernel keeps it. A container here is one that is believed: its directories are root's.
    pub fn origin(&self) -> &'a Origin {
        self.origin
    }

    /// Its container, if it is in one.
    pub fn container(&self) -> Option<&'a ContainerRef> {
        self.origin.container()
    }

    /// The text of its `/proc/PID/cgroup`, as the attestation began.
    pub fn cgroups(&self) -> &'a [u8] {
        self.cgroups
    }

    /// Path of its cgroup in the v2 hierarchy (without one, in that named systemd), from the machine's root; `None`
    /// when it cannot be told.
    pub fn cgroup_path(&self) -> Option<Vec<u8>> {
        let mut known = [&b""[..], b"name=systemd"].into_iter();
        let controllers = known.find(|controllers| self.hierarchies.root(controllers).is_some())?;
        let line = procfs::cgroups(self.cgroups).find(|line| line.controllers == controllers)?;
        let parts = origin::absolute(line.path, self.view.own_in(controllers)).ok()?;
        Some([b"/", parts.join(&b'/').as_slice()].concat())
    }

    /// Where another process of the machine is kept, by its number in our procfs: to check what somebody says of it.
    /// `None` when there is no such process.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn origin_of(&self, pid: u32) -> Result<Option<Origin>, Silent> {
        let host = self.process.host();
        let pinned = match Process::of_number(host, pid) {
            Ok(pinned) => pinned,
            Err(PinError::Exited) => return Ok(None),
            Err(PinError::Descriptors) => return Err(Silent::Descriptors),
            Err(error) => return Err(format!("process {pid}: {error}").into()),
        };
        let raw = read_cgroups(&pinned.dir)?;
        let origin = origin::believed(&raw, self.view, self.hierarchies);
        let origin = origin.map_err(|error| Silent::of("cgroupfs", &error))?;
        Ok(pinned.process.is_alive().then_some(origin))
    }
}

/// All of `/proc/PID/cgroup`, or a little more than a kernel ever writes.
pub(crate) fn read_cgroups(dir: &ProcDir) -> Result<Vec<u8>, Silent> {
    dir.read("cgroup", origin::MOST_BYTES + 1).map_err(|error| Silent::of("/proc/PID/cgroup", &error))
}

impl Found {
    /// The answer of who has nothing to say of a process, with the reason.
    pub fn nothing(why: impl Into<String>) -> Self {
        Self { selectors: Vec::new(), notes: vec![why.into()] }
    }

    /// Adds a selector; its value must be escaped where it comes from outside.
    pub fn add(&mut self, kind: &'static str, key: &'static str, value: String) {
        self.selectors.push(Selector::new(kind, key, value));
    }

    /// Says why `what` is missing.
    pub fn note(&mut self, what: &str, why: &str) {
        self.notes.push(format!("{what}: {why}"));
    }
}

impl Silent {
    /// `error` came of `what`.
    pub fn of(what: &str, error: &io::Error) -> Self {
        if is_want_of_ours(error) { Self::Descriptors } else { Self::Because(format!("{what}: {error}")) }
    }

    pub(crate) fn about(self, what: &str) -> Self {
        match self {
            Self::Because(why) => Self::Because(format!("{what}: {why}")),
            Self::Descriptors => self,
        }
    }
}

impl From<String> for Silent {
    fn from(why: String) -> Self {
        Self::Because(why)
    }
}

impl From<&str> for Silent {
    fn from(why: &str) -> Self {
        Self::Because(why.to_owned())
    }
}
