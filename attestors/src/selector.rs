//! Selectors: what an attestor learned, as `kind:key:value`, and how much each is worth.

use std::fmt;

use crate::{kubernetes, systemd};

/// How hard it is for an unprivileged process to get a selector that it was not given.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Strength {
    /// Any process can arrange it (`/proc/PID/exe` can be forged): it narrows, and never suffices.
    Advisory,
    /// A container engine or orchestrator says so.
    Controller,
    /// The kernel keeps it: ids, cgroups that only root can enter.
    Kernel,
}

/// One fact about a process. Values are escaped text: see the crate's rule for odd bytes in [`Selector::value`].
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Selector {
    kind: &'static str,
    key: &'static str,
    value: String,
    strength: Strength,
}

impl Selector {
    /// Names one fact; `value` must be escaped already where it comes from outside.
    pub fn new(kind: &'static str, key: &'static str, value: impl Into<String>) -> Self {
        Self::weighed(kind, key, value.into(), strength_of(kind, key))
    }

    /// One whose worth somebody else says.
    pub(crate) fn weighed(kind: &'static str, key: &'static str, value: String, strength: Strength) -> Self {
        Self { kind, key, value, strength }
    }

    /// The attestor, such as `unix`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The fact, such as `uid`.
    pub fn key(&self) -> &'static str {
        self.key
    }

    /// Its value. In paths and names `%`, bytes that are not UTF-8, control characters and invisible or
    /// text-turning characters are written as `%XX`, byte by byte; everything else is itself.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What it is worth.
    pub fn strength(&self) -> Strength {
        self.strength
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.kind, self.key, self.value)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({self})")
    }
}

/// What a selector of this kind and key is worth, also for entries. What is not known is worth nothing more than
/// advice. `no_new_privs` is told by the kernel, but any process can set it.
pub fn strength_of(kind: &str, key: &str) -> Strength {
    match (kind, key) {
        ("unix", "uid" | "user" | "gid" | "group" | "supplementary_gid" | "supplementary_group")
        | ("cgroup", "path") => Strength::Kernel,
        ("docker", _) => Strength::Controller,
        ("k8s", key) if kubernetes::gives(key) => Strength::Controller,
        ("systemd", key) if systemd::vouches(key) => Strength::Controller,
        _ => Strength::Advisory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_prints_as_kind_key_value() {
        assert_eq!(Selector::new("unix", "path", "/a:b").to_string(), "unix:path:/a:b");
    }

    #[test]
    fn files_and_unknown_things_are_advice() {
        for (kind, key) in [
            ("unix", "sha256"),
            ("unix", "path"),
            ("cgroup", "delegated_path"),
            ("process", "no_new_privs"),
            ("launch", "sha256"),
            ("systemd", "user_id"),
            ("new", "uid"),
        ] {
            assert_eq!(strength_of(kind, key), Strength::Advisory, "{kind}:{key}");
        }
        assert_eq!(Selector::new("unix", "uid", "0").strength(), Strength::Kernel);
        assert!(Strength::Advisory < Strength::Controller && Strength::Controller < Strength::Kernel);
    }
}
