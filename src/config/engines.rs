//! `[attest.cgroup]` and `[attest.docker]`: where containers are told from, and who is asked about them.

use std::fmt;
use std::path::PathBuf;

use super::show::Quoted;
use crate::diag::{Found, Problems, Shown, Table};

/// `[attest.cgroup]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CgroupSettings {
    /// Where the machine's cgroups are mounted.
    pub mount: PathBuf,
    /// Below which cgroup this node's containers and units are; empty on an ordinary host.
    pub prefix: PathBuf,
}

/// `[attest.docker]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DockerSettings {
    /// Whether engines are asked at all.
    pub enabled: bool,
    /// The Docker engine's socket.
    pub socket: PathBuf,
    /// The socket of Podman as root.
    pub podman_socket: PathBuf,
    /// Environment variables of containers that become selectors.
    pub env_selectors: Vec<String>,
}

/// As written.
#[derive(Debug)]
pub(super) struct RawCgroup {
    mount: Option<Found<PathBuf>>,
    prefix: Option<Found<PathBuf>>,
}

/// As written.
#[derive(Debug)]
pub(super) struct RawDocker {
    enabled: Option<Found<bool>>,
    socket: Option<Found<PathBuf>>,
    podman_socket: Option<Found<PathBuf>>,
    env_selectors: Option<Found<Vec<Option<Found<String>>>>>,
}

impl RawCgroup {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self { mount: table.path("mount"), prefix: table.path("prefix") }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> CgroupSettings {
        let prefix = self.prefix.map(|found| {
            let plain = found.value.components().all(|part| part.as_os_str() != "..");
            if !plain {
                problems.push(found.place.problem("has `..` in it: write the cgroup's path from the root"));
            }
            found.value
        });
        CgroupSettings {
            mount: self.mount.map_or_else(|| PathBuf::from("/sys/fs/cgroup"), |found| found.value),
            prefix: prefix.filter(|prefix| *prefix != *"/").unwrap_or_default(),
        }
    }
}

impl RawDocker {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            enabled: table.boolean("enabled"),
            socket: table.path("socket"),
            podman_socket: table.path("podman_socket"),
            env_selectors: table.texts("env_selectors"),
        }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> DockerSettings {
        let path = |found: Option<Found<PathBuf>>, usual: &str| {
            found.map_or_else(|| usual.into(), |found| found.value)
        };
        let names = self.env_selectors.map(|found| found.value).unwrap_or_default();
        let mut env_selectors = Vec::new();
        for found in names.into_iter().flatten() {
            if is_variable(&found.value) {
                env_selectors.push(found.value);
            } else {
                let message = format!(
                    "`{}` is no variable's name: write one such as `SERVICE_ROLE`",
                    Shown(&found.value)
                );
                problems.push(found.place.problem(message));
            }
        }
        DockerSettings {
            enabled: self.enabled.is_some_and(|found| found.value),
            socket: path(self.socket, "/run/docker.sock"),
            podman_socket: path(self.podman_socket, "/run/podman/podman.sock"),
            env_selectors,
        }
    }
}

/// As a shell would have it, of a length that nobody means by mistake.
fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    begins && name.len() <= 256 && name.bytes().all(plain)
}

impl fmt::Display for CgroupSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n[attest.cgroup]\nmount = {}", Quoted(&self.mount))?;
        if self.prefix.as_os_str().is_empty() {
            Ok(())
        } else {
            writeln!(f, "prefix = {}", Quoted(&self.prefix))
        }
    }
}

impl fmt::Display for DockerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, socket, podman_socket, env_selectors } = self;
        writeln!(f, "\n[attest.docker]\nenabled = {enabled}\nsocket = {}", Quoted(socket))?;
        writeln!(f, "podman_socket = {}\nenv_selectors = {env_selectors:?}", Quoted(podman_socket))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AttestSettings, from_text};
    use super::*;

    fn attest(text: &str) -> Result<AttestSettings, String> {
        let text = format!("trust_domain = \"example.org\"\n{text}\n");
        let config = from_text("f", text.as_bytes()).map_err(|problems| problems.to_string())?;
        let shown = from_text("f", config.to_string().as_bytes()).unwrap();
        assert_eq!(shown, config, "it is shown as it is read");
        Ok(config.attest)
    }

    #[test]
    fn engines_are_asked_only_if_somebody_says_so() {
        let usual = attest("").unwrap();
        assert!(!usual.docker.enabled && usual.docker.env_selectors.is_empty());
        assert_eq!(usual.cgroup, CgroupSettings { mount: "/sys/fs/cgroup".into(), prefix: PathBuf::new() });
        let text = "[attest.docker]\nenabled = true\nsocket = \"/run/d.sock\"\nenv_selectors = [\"ROLE\", \"_x1\"]\n\
                    [attest.cgroup]\nmount = \"/host/cgroup\"\nprefix = \"/payload\"";
        let written = attest(text).unwrap();
        assert_eq!(written.docker.env_selectors, ["ROLE", "_x1"]);
        assert_eq!(written.docker.podman_socket, PathBuf::from("/run/podman/podman.sock"));
        assert_eq!(written.cgroup.prefix, PathBuf::from("/payload"));
        assert_eq!(attest("[attest.cgroup]\nprefix = \"/\"").unwrap().cgroup.prefix, PathBuf::new());
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        for (text, expected) in [
            (
                "[attest.docker]\nenv_selectors = [\"A\", \"1B\"]",
                "f:3:23: attest.docker.env_selectors[1]: `1B` is no",
            ),
            ("[attest.docker]\nenv_selectors = [\"A=B\"]", "attest.docker.env_selectors[0]"),
            (
                "[attest.docker]\nsocket = \"docker.sock\"",
                "attest.docker.socket: `docker.sock` is not an absolute",
            ),
            ("[attest.docker]\npodman = \"/x\"", "attest.docker.podman: is not a known key"),
            ("[attest.cgroup]\nprefix = \"/a/../b\"", "attest.cgroup.prefix: has `..`"),
        ] {
            let report = attest(text).unwrap_err();
            assert!(report.contains(expected), "{text}: {report}");
        }
    }
}
