//! `[policy]`: where the policy set is. Without it a matched entry is enough for the Workload API, and tasks are denied
//! everything.

use std::fmt;
use std::path::{Path, PathBuf};

use super::show::Quoted;
use crate::diag::{Found, Problems, Table};

/// Where policies and the catalogue come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PolicyFrom {
    /// There are none.
    Nowhere,
    /// The `*.cedar` and `*.toml` files of that directory, followed as they change.
    Directory(PathBuf),
    /// The same, in a volume that Kubernetes projects: read through its links (see [`crate::files::Projected`]).
    Projected(PathBuf),
    /// The set that is built in, for processes of that user (`--dev`).
    User {
        /// The user's id.
        uid: u32,
        /// The user's name, or the id in digits where it has none.
        name: String,
    },
}

/// As written.
#[derive(Debug)]
pub(super) struct RawPolicy {
    dir: Option<Found<PathBuf>>,
    projected: Option<Found<bool>>,
}

impl RawPolicy {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self { dir: table.path("dir"), projected: table.boolean("projected") }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> PolicyFrom {
        let projected = self.projected.as_ref().is_some_and(|found| found.value);
        match (self.dir, self.projected) {
            (Some(dir), _) if projected => PolicyFrom::Projected(dir.value),
            (Some(dir), _) => PolicyFrom::Directory(dir.value),
            (None, Some(alone)) => {
                let message = "says how `policy.dir` is mounted, and there is none: write it, or remove this";
                problems.push(alone.place.problem(message));
                PolicyFrom::Nowhere
            }
            (None, None) => PolicyFrom::Nowhere,
        }
    }
}

impl fmt::Display for PolicyFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = |dir: &Path, f: &mut fmt::Formatter<'_>| writeln!(f, "\n[policy]\ndir = {}", Quoted(dir));
        match self {
            Self::Nowhere => Ok(()),
            Self::Directory(path) => dir(path, f),
            Self::Projected(path) => {
                dir(path, f)?;
                writeln!(f, "projected = true")
            }
            Self::User { uid, .. } => writeln!(f, "\n# the built-in policies, for uid {uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, from_text};
    use super::*;

    fn policy(text: &str) -> Result<PolicyFrom, String> {
        let text = format!("trust_domain = \"example.org\"\n{text}");
        let config = from_text("mayfly.toml", text.as_bytes());
        config.map(|config| config.policy).map_err(|problems| problems.to_string())
    }

    #[test]
    fn there_is_no_set_unless_one_is_named() {
        assert_eq!(policy(""), Ok(PolicyFrom::Nowhere));
        assert_eq!(policy("[policy]\n"), Ok(PolicyFrom::Nowhere));
        let dir = PathBuf::from("/etc/mayfly/policy.d");
        assert_eq!(policy("policy.dir = \"/etc/mayfly/policy.d\""), Ok(PolicyFrom::Directory(dir.clone())));
        let projected = "[policy]\ndir = \"/etc/mayfly/policy.d\"\nprojected = true";
        assert_eq!(policy(projected), Ok(PolicyFrom::Projected(dir)));
    }

    #[test]
    fn a_set_that_is_nowhere_cannot_be_mounted_and_a_misspelt_key_is_no_default() {
        let report = policy("[policy]\nprojected = true").unwrap_err();
        assert!(report.starts_with("mayfly.toml:3:13: policy.projected: says how `policy.dir`"), "{report}");
        let report = policy("[policy]\ndirectory = \"/x\"").unwrap_err();
        assert!(report.starts_with("mayfly.toml:3:1: policy.directory: is not a known key"), "{report}");
        assert!(policy("policy.dir = \"policy.d\"").unwrap_err().contains("is not an absolute path"));
    }

    #[test]
    fn what_is_printed_says_the_same_again() {
        for text in ["policy.dir = \"/a b/\\\"c\\\"\"", "[policy]\ndir = \"/x\"\nprojected = true", ""] {
            let config = |text: &str| -> Config { from_text("f", text.as_bytes()).unwrap() };
            let first = config(&format!("trust_domain = \"example.org\"\n{text}"));
            assert_eq!(config(&first.to_string()), first);
        }
    }
}
