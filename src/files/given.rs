//! Whom root has put in charge of the agent's sockets.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path};

/// Where the agent's sockets are on a machine that root has set up.
const SYSTEM: &str = "/run/mayfly";

/// The user to whom root gave the directory of a socket below `/run/mayfly`; `None` for any other path, and where
/// anybody else could have put the directory there. A package or a DaemonSet runs the agent as a user of its own: who
/// that is, clients learn from the directory, because nobody but root can make one below `/run`.
pub fn given_by_root(socket: &Path) -> Option<u32> {
    given_below(Path::new(SYSTEM), socket)
}

fn given_below(system: &Path, socket: &Path) -> Option<u32> {
    let directory = socket.parent()?;
    let is_plain = socket.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain || !directory.starts_with(system) {
        return None;
    }
    let owner = std::fs::symlink_metadata(directory).ok()?.uid();
    let is_sound = |path: &Path| {
        std::fs::symlink_metadata(path).is_ok_and(|found| {
            let is_theirs = found.uid() == owner && path.starts_with(system);
            found.is_dir() && found.mode() & 0o022 == 0 && (found.uid() == 0 || is_theirs)
        })
    };
    directory.ancestors().all(is_sound).then_some(owner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    const AGENT: u32 = 64_917;

    #[test]
    fn the_owner_of_the_directory_is_believed_only_where_root_alone_could_have_made_it() {
        let system = tempfile::Builder::new().prefix("mayfly-test-").tempdir_in("/run").unwrap();
        let system = system.path();
        let public = system.join("public");
        let socket = public.join("api.sock");
        fs::create_dir(&public).unwrap();
        let mode = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
        mode(system, 0o755);
        mode(&public, 0o755);
        chown(system, Some(AGENT), None).unwrap();
        chown(&public, Some(AGENT), None).unwrap();
        assert_eq!(given_below(system, &socket), Some(AGENT));
        assert_eq!(given_below(Path::new("/run/elsewhere"), &socket), None);
        assert_eq!(given_below(system, &public.join("../../tmp/api.sock")), None);
        // Others may write, or a third user has his hands in it.
        mode(&public, 0o777);
        assert_eq!(given_below(system, &socket), None);
        mode(&public, 0o755);
        chown(system, Some(AGENT + 1), None).unwrap();
        assert_eq!(given_below(system, &socket), None);
        chown(system, Some(0), None).unwrap();
        assert_eq!(given_below(system, &socket), Some(AGENT));
        symlink(&public, system.join("link")).unwrap();
        assert_eq!(given_below(system, &system.join("link/api.sock")), None);
        // Below a directory that everybody may write, anybody could have been first.
        let shared = tempfile::tempdir().unwrap();
        assert_eq!(given_below(shared.path(), &shared.path().join("api.sock")), None);
    }
}
