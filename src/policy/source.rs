//! Where policy sets come from: a directory of `*.cedar` files and of `*.toml` files with the catalogue.

use std::path::{Path, PathBuf};

use super::PolicySet;
use crate::diag::Problems;
use crate::fileset::{self, Mount, SetRules, is_toml};
use crate::id::TrustDomain;

/// Largest file of policies, in bytes.
pub const MAX_POLICY_BYTES: u64 = 1 << 20;

/// A directory that holds a policy set. Whose it is, and who else could have written it, is looked at as for entries.
#[derive(Clone, Debug)]
pub struct PolicySource {
    dir: PathBuf,
    mount: Mount,
    own: TrustDomain,
}

impl PolicySource {
    /// Reads nothing yet.
    pub fn new(dir: impl Into<PathBuf>, mount: Mount, own: TrustDomain) -> Self {
        Self { dir: dir.into(), mount, own }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// The whole set as it is now. Blocking.
    ///
    /// # Errors
    /// Every mistake of every file.
    pub fn load(&self) -> Result<PolicySet, Problems> {
        let files = fileset::read(&self.dir, self.mount, &RULES)?;
        PolicySet::parse(&files, Some(&self.own))
    }
}

/// Makes a set of drafts on somebody's desk, files or directories: whose they are is not looked at. `own`: the only trust
/// domain that agents can be in, where it is known.
///
/// # Errors
/// Every mistake of every file.
pub fn check_policies(paths: &[PathBuf], own: Option<&TrustDomain>) -> Result<PolicySet, Problems> {
    let (files, mut problems) = fileset::read_drafts(paths, &RULES);
    if !problems.is_empty() {
        if let Err(more) = PolicySet::parse(&files, own) {
            problems.append(more);
        }
        return problems.into_result(None);
    }
    PolicySet::parse(&files, own)
}

/// Whether a file of that name belongs to a policy set.
pub fn is_policy_file(name: &[u8]) -> bool {
    !name.starts_with(b".") && is_policies(name) || is_toml(name)
}

/// Whether it holds policies, and not a part of the catalogue.
pub(super) fn is_policies(name: &[u8]) -> bool {
    name.ends_with(b".cedar")
}

const RULES: SetRules = SetRules {
    is_member: is_policy_file,
    of_what: "of policies",
    max_bytes: MAX_POLICY_BYTES,
    setting: "policy.dir",
};
