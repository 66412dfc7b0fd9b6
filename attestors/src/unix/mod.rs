//! The `unix` attestor: who runs what.
//!
//! `uid`, `user`, `gid`, `group`, `supplementary_gid`, `supplementary_group`: effective ids, from the pidfd where the
//! kernel tells. None for the overflow id, which stands for everybody; no `uid` or `user` unless real, effective and
//! saved uid are one (a setuid program acts for its caller), and the same for `gid` and `group`.
//!
//! `path`: of the program, only in our own mount namespace; elsewhere the same text is `ns_path`, because anybody
//! can mount anything there. Not for a program without a name. `sha256`: of its content; of a program without a name
//! it is `anonymous_sha256`, so that an entry must ask for that by name. All four are advice.

mod names;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::attestation::Posture;
use crate::backend::{Found, Silent};
use crate::host::Host;
use crate::measure::{Gate, MeasureError};
use crate::target::Target;
use crate::text;
use names::Names;

/// Knows the names of users and groups.
#[derive(Debug)]
pub(crate) struct Unix {
    users: Names,
    groups: Names,
}

impl Unix {
    pub(crate) fn new(passwd: &Path, group: &Path) -> Self {
        Self { users: Names::at(passwd), groups: Names::at(group) }
    }

    /// Ids and names. A name that cannot be looked up is left out, the number stands; without a descriptor to look it
    /// up with there is no answer at all.
    pub(crate) fn ids(&self, target: &Target<'_>, found: &mut Found) -> Result<(), Silent> {
        let host = target.process.host();
        let (uids, gids) = (target.live.uids, target.live.gids);
        let (users, groups) = (known(&self.users, "user", found)?, known(&self.groups, "group", found)?);
        if uids.agree() {
            pair(host, &users, uids.effective, ("uid", "user"), found);
        } else {
            found.note("uid", "mixed_uid (real, effective and saved uid differ)");
        }
        if gids.agree() {
            pair(host, &groups, gids.effective, ("gid", "group"), found);
        } else {
            found.note("gid", "mixed_gid (real, effective and saved gid differ)");
        }
        for gid in &target.status.groups {
            pair(host, &groups, *gid, ("supplementary_gid", "supplementary_group"), found);
        }
        Ok(())
    }

    /// The program: its path, and the hash if there is one. `hash` is `None` when it was not asked for.
    pub(crate) fn program(
        target: &Target<'_>,
        posture: &mut Posture,
        hash: Option<Result<[u8; 32], MeasureError>>,
        found: &mut Found,
    ) {
        let exe = match &target.exe {
            Ok(exe) => exe,
            Err(error) => {
                found.note(
                    "path, sha256",
                    &format!("exe_unreadable (not for us, or a mount that admits only its owner: {error})"),
                );
                return;
            }
        };
        posture.exe_fs_not_trusted |= matches!(hash, Some(Err(MeasureError::NotTrusted(_))));
        let trusted = matches!(exe.gate, Gate::Open(_) | Gate::Ajar) && !posture.exe_fs_not_trusted;
        match &exe.path {
            _ if exe.facts.anonymous => found.note("path", "the program has no name (deleted or in memory)"),
            _ if !trusted => found.note("path", "exe_fs_not_trusted"),
            Ok(path) => {
                let key = if posture.foreign_mount_ns { "ns_path" } else { "path" };
                found.add("unix", key, text::of_bytes(path));
            }
            Err(error) => found.note("path", &error.to_string()),
        }
        match hash {
            Some(Ok(sha256)) => {
                let key = if exe.facts.anonymous { "anonymous_sha256" } else { "sha256" };
                found.add("unix", key, text::hex(&sha256));
            }
            Some(Err(error)) => found.note("sha256", &error.to_string()),
            None => {}
        }
    }
}

fn known(names: &Names, what: &str, found: &mut Found) -> Result<Arc<HashMap<u32, String>>, Silent> {
    names.current().or_else(|error| match Silent::of(what, &error) {
        Silent::Because(_) => {
            found.note(what, &error.to_string());
            Ok(Arc::default())
        }
        ours @ Silent::Descriptors => Err(ours),
    })
}

fn pair(
    host: &Host,
    names: &HashMap<u32, String>,
    number: u32,
    (id, name): (&'static str, &'static str),
    found: &mut Found,
) {
    if host.is_overflow(number) {
        return found.note(id, "the overflow id stands for everybody");
    }
    found.add("unix", id, number.to_string());
    if let Some(text) = names.get(&number) {
        found.add("unix", name, text.clone());
    }
}
