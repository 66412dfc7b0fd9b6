//! What is kept of a pod: the facts that selectors are made of, and what ties a container to it.
//!
//! Everything else (environment, volumes, `managedFields`, annotations) is dropped where it is decoded: it would
//! cost ten times the memory, and may hold secrets.

use crate::origin::{ContainerId, Runtime};

/// One pod, from whichever source.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Pod {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) uid: Box<str>,
    pub(crate) service_account: Box<str>,
    pub(crate) node: Box<str>,
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
    pub(crate) owners: Vec<Owner>,
    /// What the cgroup of a static pod is named after. The API server knows such a pod by a mirror of it, which has
    /// a uid of its own.
    pub(crate) static_hash: Option<Box<str>>,
    /// Every container that has a status, whether or not it was started.
    pub(crate) containers: Vec<Container>,
    /// Ephemeral containers (`kubectl debug`) that the pod's specification names.
    pub(crate) debuggers: usize,
}

/// Who made a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    pub(crate) kind: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) uid: Box<str>,
}

/// One container status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Container {
    pub(crate) kind: Kind,
    pub(crate) name: Box<str>,
    pub(crate) image: Box<str>,
    pub(crate) image_id: Box<str>,
    /// Absent until the runtime has made it.
    pub(crate) id: Option<(Runtime, ContainerId)>,
}

/// In which list of the pod a container stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Init,
    Main,
    /// Put into a running pod by somebody who debugs it.
    Ephemeral,
}

impl Pod {
    /// Ephemeral containers of the specification of which no status tells the id yet: a container that no status
    /// names may be one of them.
    pub(crate) fn has_unseen_debugger(&self) -> bool {
        let seen = self.containers.iter().filter(|one| one.kind == Kind::Ephemeral && one.id.is_some());
        seen.count() < self.debuggers
    }
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Main => "main",
            Self::Ephemeral => "ephemeral",
        }
    }
}

/// Reads `containerd://<64 hex digits>`; any other text names no container that a cgroup could belong to. A runtime we
/// know nothing of is [`Runtime::Unknown`].
pub(crate) fn container_id(text: &str) -> Option<(Runtime, ContainerId)> {
    let (scheme, digits) = text.split_once("://")?;
    let runtime = match scheme {
        "containerd" => Runtime::Containerd,
        "cri-o" => Runtime::CriO,
        "docker" => Runtime::Docker,
        _ => Runtime::Unknown,
    };
    Some((runtime, ContainerId::parse(digits.as_bytes())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_container_ids_count() {
        let digits = "0a".repeat(32);
        let id = ContainerId::parse(digits.as_bytes()).unwrap();
        assert_eq!(container_id(&format!("cri-o://{digits}")), Some((Runtime::CriO, id)));
        assert_eq!(container_id(&format!("mock://{digits}")), Some((Runtime::Unknown, id)));
        for bad in [String::new(), digits.to_uppercase(), "0a".repeat(31), format!("{digits}0")] {
            assert_eq!(container_id(&format!("docker://{bad}")), None, "{bad}");
            assert_eq!(container_id(&bad), None, "{bad}");
        }
    }
}
