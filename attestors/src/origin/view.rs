//! From where we look: cgroup paths are shown relative to the reader's cgroup namespace.
//!
//! In the machine's own namespace they are absolute. In one of our own (a container with cgroup v2) it must be known
//! where it begins: our own cgroup is looked for in the machine's tree, if that is mounted for us, until a directory
//! lists us among its processes. In each v1 hierarchy our own place may be another one.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::{Hierarchies, lines};
use crate::host::Host;
use crate::process::procfs;

/// From where we look. Learned once, at start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct View {
    /// Where our cgroup namespace begins in the v2 hierarchy (and in the others, unless known otherwise); `None`: it
    /// is ours and cannot be found.
    pub own: Option<PathBuf>,
    /// Below which directory this node's containers are; empty on an ordinary host.
    pub prefix: PathBuf,
    /// The same as `own` for v1 hierarchies, by controllers.
    v1: Vec<(Vec<u8>, Option<PathBuf>)>,
}

impl View {
    /// A view from the same place in every hierarchy.
    pub fn new(own: Option<PathBuf>, prefix: PathBuf) -> Self {
        Self { own, prefix, v1: Vec::new() }
    }

    pub(crate) fn own_in(&self, controllers: &[u8]) -> Option<&Path> {
        let v1 = self.v1.iter().find(|(named, _)| named == controllers);
        v1.map_or(self.own.as_deref(), |(_, own)| own.as_deref())
    }

    /// Finds out where we are.
    pub(crate) fn learn(host: &std::sync::Arc<Host>, hierarchies: &Hierarchies, prefix: &Path) -> Self {
        if host.in_first_cgroup_namespace() {
            return Self::new(Some(PathBuf::from("/")), prefix.to_owned());
        }
        let text = procfs::read_at(host.proc(), "self/cgroup", lines::MOST_BYTES).unwrap_or_default();
        let begins = |line: &lines::Line<'_>| {
            let ours = hierarchies.find(line.controllers, std::process::id())?;
            without_end(&ours, line.path)
        };
        let (mut own, mut v1) = (None, Vec::new());
        for line in lines::lines(&text).unwrap_or_default() {
            match line.controllers {
                b"" => own = begins(&line),
                named => v1.push((named.to_vec(), begins(&line))),
            }
        }
        Self { own, prefix: prefix.to_owned(), v1 }
    }
}

/// `dir` without `end`, the part of it that our namespace shows.
fn without_end(dir: &Path, end: &[u8]) -> Option<PathBuf> {
    let text = dir.as_os_str().as_bytes();
    let own = if end == b"/" { text } else { text.strip_suffix(end)? };
    let own = if own.is_empty() { b"/" } else { own };
    Some(PathBuf::from(OsString::from_vec(own.to_vec())))
}
