//! Cgroup paths as components, made absolute where they are relative to our own cgroup namespace.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::Refusal;

/// The components of a path that we were given, not the kernel: empty ones are passed over.
pub(crate) fn components(path: &Path) -> Vec<&[u8]> {
    path.as_os_str().as_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect()
}

/// The components from the hierarchy's root. `own` is where our namespace begins; a path of the kernel's is relative
/// to it and climbs out of it by leading `..`, nowhere else.
pub(crate) fn absolute<'a>(path: &'a [u8], own: Option<&'a Path>) -> Result<Vec<&'a [u8]>, Refusal> {
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    if parts == [b""] {
        parts.clear();
    }
    if parts.iter().any(|part| part.is_empty() || *part == b".") {
        return Err(Refusal::Malformed);
    }
    let up = parts.iter().take_while(|part| **part == b"..").count();
    if parts.iter().skip(up).any(|part| *part == b"..") {
        return Err(Refusal::Malformed);
    }
    let base = components(own.ok_or(Refusal::PrivateNamespace)?);
    if up == 0 {
        // Not below us in the machine's own namespace; everything that does not climb out is in our container.
        return if base.is_empty() { Ok(parts) } else { Err(Refusal::SameCgroupAsAgent) };
    }
    let kept = base.len().checked_sub(up).ok_or(Refusal::Malformed)?;
    Ok(base.into_iter().take(kept).chain(parts.into_iter().skip(up)).collect())
}
