//! Where a process is kept: on the host, or in which container of which pod. From the kernel-owned cgroup path and
//! nothing else: the process cannot write it, and what it could write is refused.
//!
//! The rules, each of them a defence: the **outermost** component that names a container decides, read from the left
//! (whoever owns a subtree can make any path he likes below it, so a search from the right finds what he wrote);
//! all lines of the file agree; anything that merely resembles a container is refused and not taken for the host; and
//! every directory above the container's own must be root's (`keepers`), or anybody could have made it.

mod keepers;
mod lines;
mod path;
mod shapes;
mod view;

use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

pub(crate) use self::keepers::{Hierarchies, Keeper, descend, walk};
pub(crate) use self::lines::MOST_BYTES;
pub(crate) use self::path::absolute;
use self::shapes::Shape;
pub use self::view::View;

/// Where a process is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// In no container.
    Host,
    /// In this one.
    Container(ContainerRef),
    /// Somewhere that cannot be told, or must not be believed.
    Refused(Refusal),
}

/// A container, as the cgroup path names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContainerRef {
    /// Who made it, where the name tells.
    pub runtime: Runtime,
    /// Its id.
    pub id: ContainerId,
    /// The Kubernetes pod it belongs to.
    pub pod: Option<PodUid>,
    /// The pod's class, where there is a pod.
    pub qos: Option<Qos>,
    /// Every directory above the container's own, in order; the answer counts only if all of them are root's.
    pub root_owned: Vec<PathBuf>,
}

/// Who made a container.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Runtime {
    /// containerd, by its CRI plug-in or nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// The Docker engine.
    Docker,
    /// Podman.
    Podman,
    /// The path does not say (kubelet and runtime with the `cgroupfs` driver).
    Unknown,
}

/// 64 hex digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ContainerId([u8; 32]);

/// A pod's uid: a UUID in lower case with dashes or, for a static pod, the 32 hex digits of its configuration's hash.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PodUid(Box<str>);

/// A pod's class.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Qos {
    /// Every container has limits that are its requests.
    Guaranteed,
    /// Something in between.
    Burstable,
    /// No requests, no limits.
    BestEffort,
}

/// Why the origin of a process is not told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Not what a kernel writes.
    Malformed,
    /// More than 64 KiB of it.
    TooLarge,
    /// The cgroup was removed.
    Deleted,
    /// We are in a cgroup namespace of our own and do not know where it begins.
    PrivateNamespace,
    /// It shares our own container.
    SameCgroupAsAgent,
    /// Its lines name different containers or pods.
    Conflict,
    /// It watches over a container (conmon) and is not in it.
    Monitor,
    /// In a pod and in none of its containers.
    PodWithoutContainer,
    /// Below the cgroup of that user's own service manager, where the user makes what he likes.
    DelegatedToUser(u32),
    /// A sandbox in which an image is built.
    BuildSandbox,
    /// LXC or systemd-nspawn.
    UnsupportedRuntime,
    /// Looks like a container, and like none that is known.
    UnknownShape,
    /// This directory above it is not in root's hands, or could not be looked at.
    NotRootOwned(PathBuf),
}

/// What the text of `/proc/PID/cgroup` says, as seen from `view`. Whether the directories on the way are root's is
/// another question ([`ContainerRef::root_owned`]); [`crate::AttestorSet`] asks it of the machine.
pub fn origin(raw: &[u8], view: &View) -> Origin {
    match locate(raw, view) {
        Ok(Some(found)) => Origin::Container(found.container),
        Ok(None) => Origin::Host,
        Err(why) => Origin::Refused(why),
    }
}

/// A container, and for each hierarchy that names it how many directories stand above its own.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) container: ContainerRef,
    pub(crate) places: Vec<Place>,
}

/// The way to a container in one hierarchy.
#[derive(Debug)]
pub(crate) struct Place {
    /// Empty for the v2 hierarchy.
    pub(crate) controllers: Vec<u8>,
    /// Directories from the root of the hierarchy to the one above the container's own.
    pub(crate) above: Vec<Vec<u8>>,
}

/// `None` for the host.
pub(crate) fn locate(raw: &[u8], view: &View) -> Result<Option<Located>, Refusal> {
    let mut found: Vec<(Shape, Place)> = Vec::new();
    for line in lines::lines(raw)? {
        let components = absolute(line.path, view.own_in(line.controllers))?;
        let prefix = path::components(&view.prefix);
        let Some(shape) = shapes::shape(&components, &prefix)? else { continue };
        let above = components.iter().take(prefix.len() + shape.depth).map(|part| part.to_vec()).collect();
        found.push((shape, Place { controllers: line.controllers.to_vec(), above }));
    }
    let Some((first, _)) = found.first() else { return Ok(None) };
    let first = first.clone();
    let agrees = |shape: &Shape| (shape.id, &shape.pod, shape.qos) == (first.id, &first.pod, first.qos);
    if !found.iter().all(|(shape, _)| agrees(shape)) {
        return Err(Refusal::Conflict);
    }
    let mut runtimes = found.iter().map(|(shape, _)| shape.runtime).filter(|one| *one != Runtime::Unknown);
    let runtime = runtimes.next().unwrap_or(Runtime::Unknown);
    if runtimes.any(|other| other != runtime) {
        return Err(Refusal::Conflict);
    }
    let places: Vec<Place> = found.into_iter().map(|(_, place)| place).collect();
    let container =
        ContainerRef { runtime, id: first.id, pod: first.pod, qos: first.qos, root_owned: parents(&places) };
    Ok(Some(Located { container, places }))
}

/// The origin of whoever that text is about, believed only if the directories above its container are root's. The
/// error is want of a descriptor.
pub(crate) fn believed(raw: &[u8], view: &View, hierarchies: &Hierarchies) -> std::io::Result<Origin> {
    let found = match locate(raw, view) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Origin::Host),
        Err(why) => return Ok(Origin::Refused(why)),
    };
    Ok(match hierarchies.check(&found)? {
        Ok(()) => Origin::Container(found.container),
        Err(why) => Origin::Refused(why),
    })
}

/// Every directory above the container's own, of all hierarchies, in order and once.
fn parents(places: &[Place]) -> Vec<PathBuf> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for place in places {
        all.push(b"/".to_vec());
        let mut path = Vec::new();
        for part in &place.above {
            path.push(b'/');
            path.extend_from_slice(part);
            all.push(path.clone());
        }
    }
    all.sort();
    all.dedup();
    all.into_iter().map(|path| PathBuf::from(std::ffi::OsString::from_vec(path))).collect()
}

impl Origin {
    /// The container, where there is one.
    pub fn container(&self) -> Option<&ContainerRef> {
        match self {
            Self::Container(container) => Some(container),
            Self::Host | Self::Refused(_) => None,
        }
    }
}

impl ContainerId {
    /// From 64 lower-case hex digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: &[u8; 64] = text.try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let &[high, low] = pair else { return None };
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Some(Self(bytes))
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl PodUid {
    /// From a UUID with one separator throughout, `-` or `_`, or from 32 hex digits; lower case.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let hex = |part: &[u8]| part.iter().all(|byte| digit(*byte).is_some());
        if text.len() == 32 && hex(text) {
            return Some(Self(std::str::from_utf8(text).ok()?.into()));
        }
        let separator = *text.get(8).filter(|byte| matches!(byte, b'-' | b'_'))?;
        let groups: Vec<&[u8]> = text.split(|byte| *byte == separator).collect();
        let lengths = groups.iter().map(|group| group.len());
        if !lengths.eq([8, 4, 4, 4, 12]) || !groups.iter().all(|group| hex(group)) {
            return None;
        }
        Some(Self(std::str::from_utf8(&groups.join(&b'-')).ok()?.into()))
    }

    /// A UUID with dashes, or 32 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::text::hex(&self.0))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContainerId({self})")
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodUid({self})")
    }
}

impl Runtime {
    /// A stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Unknown => "unknown",
        }
    }
}

impl Qos {
    /// As Kubernetes writes it in a path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "guaranteed",
            Self::Burstable => "burstable",
            Self::BestEffort => "besteffort",
        }
    }
}

impl Refusal {
    /// The stable names, one for each reason, in the order of `Refusal::number`.
    pub const REASONS: [&str; 13] = [
        "malformed",
        "too-large",
        "deleted",
        "private-cgroup-namespace",
        "same-cgroup-as-agent",
        "conflict",
        "monitor",
        "pod-without-container",
        "delegated-to-user",
        "build-sandbox",
        "unsupported-runtime",
        "unknown-shape",
        "not-root-owned",
    ];

    /// The stable name of the reason.
    pub fn reason(&self) -> &'static str {
        Self::REASONS.get(self.number()).copied().unwrap_or_default()
    }

    pub(crate) fn number(&self) -> usize {
        match self {
            Self::Malformed => 0,
            Self::TooLarge => 1,
            Self::Deleted => 2,
            Self::PrivateNamespace => 3,
            Self::SameCgroupAsAgent => 4,
            Self::Conflict => 5,
            Self::Monitor => 6,
            Self::PodWithoutContainer => 7,
            Self::DelegatedToUser(_) => 8,
            Self::BuildSandbox => 9,
            Self::UnsupportedRuntime => 10,
            Self::UnknownShape => 11,
            Self::NotRootOwned(_) => 12,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::os::unix::ffi::OsStrExt as _;
        match self {
            Self::DelegatedToUser(uid) => write!(f, "{}({uid})", self.reason()),
            Self::NotRootOwned(path) => {
                write!(f, "{}({})", self.reason(), crate::text::of_bytes(path.as_os_str().as_bytes()))
            }
            _ => f.write_str(self.reason()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Container(ContainerRef { runtime, id, pod, qos, .. }) => {
                write!(f, "{} {id}", runtime.as_str())?;
                pod.iter().try_for_each(|pod| write!(f, " of pod {pod}"))?;
                qos.iter().try_for_each(|qos| write!(f, " ({})", qos.as_str()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
