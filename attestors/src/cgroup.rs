//! The `cgroup` attestor: `cgroup:path:/system.slice/web.service`, the cgroup of the v2 hierarchy or, on a machine
//! without one, of the hierarchy named `systemd`.
//!
//! A cgroup says who put a process there only if nobody but root could. So every directory from the hierarchy's root
//! to the cgroup itself, and the files by which processes are moved into it, must belong to root and not be writable
//! for others; if one is not (a delegated subtree, where any user may make `docker-<id>.scope`), the same text is
//! `cgroup:delegated_path`, which is advice. The directory reached must be the very cgroup the kernel names for the
//! process, where it names one.

use crate::backend::{Found, Silent};
use crate::origin::{self, Hierarchies, Keeper, View};
use crate::process::procfs::{self, CgroupLine};
use crate::target::Target;
use crate::text;

/// Reads kernel memory only: no file system waits.
pub(crate) fn attest(
    target: &Target<'_>,
    raw: &[u8],
    hierarchies: &Hierarchies,
    view: &View,
) -> Result<Found, Silent> {
    let controllers =
        believed(hierarchies).ok_or("neither a v2 hierarchy nor one named systemd is mounted")?;
    let root = hierarchies.root(controllers).ok_or("the hierarchy is gone")?;
    let line = line_of(raw, controllers).ok_or("the process is in no such cgroup")?;
    let mut found = Found::default();
    let Ok(parts) = origin::absolute(line.path, view.own_in(controllers)) else {
        found.note("path", "the cgroup is outside our cgroup namespace, or in our own container");
        return Ok(found);
    };
    let path = [b"/", parts.join(&b'/').as_slice()].concat();
    let (keeper, leaf) =
        origin::walk(root, &parts).map_err(|error| Silent::of(&text::of_bytes(&path), &error))?;
    if controllers.is_empty() && target.live.cgroup_id.is_some_and(|id| id != leaf.st_ino) {
        return Err("the process is being moved, or our cgroups are not the machine's".into());
    }
    let key = match keeper {
        Keeper::Root => "path",
        Keeper::Somebody => {
            found.note("path", "cgroup_not_root_owned (a directory above it or itself is in other hands)");
            "delegated_path"
        }
    };
    found.add("cgroup", key, text::of_bytes(&path));
    Ok(found)
}

/// The path alone, as `raw` has it.
pub(crate) fn path_of(raw: &[u8], hierarchies: &Hierarchies) -> Option<String> {
    let line = line_of(raw, believed(hierarchies)?)?;
    Some(String::from_utf8_lossy(line.path).into_owned())
}

fn believed(hierarchies: &Hierarchies) -> Option<&'static [u8]> {
    [&b""[..], b"name=systemd"].into_iter().find(|controllers| hierarchies.root(controllers).is_some())
}

fn line_of<'a>(raw: &'a [u8], controllers: &[u8]) -> Option<CgroupLine<'a>> {
    let is_ours = |line: &CgroupLine<'_>| {
        line.controllers == controllers && (line.hierarchy == 0) == controllers.is_empty()
    };
    procfs::cgroups(raw).find(is_ours)
}
