//! Where the log is that somebody asks about without a name: beside the sockets that `mayfly status` would find.

use std::path::PathBuf;

use crate::cli::client::Env;

/// The files that were named, or the one log of the first usual place that has one.
pub(super) fn files(named: &[PathBuf], env: &Env) -> Vec<PathBuf> {
    if named.is_empty() { vec![log(env)] } else { named.to_vec() }
}

/// A packaged agent's log, else that of a development agent of our own.
pub(super) fn log(env: &Env) -> PathBuf {
    let own = env.runtime_dir.as_ref().map(|dir| dir.join("mayfly")).into_iter().chain(env.private_tmp());
    let own = own.map(|dir| dir.join("audit.jsonl"));
    let mut places = std::iter::once(env.state.join("audit.jsonl")).chain(own);
    places.find(|path| path.exists()).unwrap_or_else(|| env.state.join("audit.jsonl"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_log_is_found_where_an_agent_of_ours_keeps_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let env = Env {
            runtime_dir: Some(dir.path().join("run")),
            uid: rustix::process::geteuid().as_raw(),
            tmp: dir.path().join("tmp"),
            state: dir.path().join("lib"),
            ..Env::default()
        };
        let packaged = env.state.join("audit.jsonl");
        assert_eq!(log(&env), packaged, "named in the error when there is none");
        let home = env.tmp.join(format!("mayfly-{}", env.uid));
        let of_run = dir.path().join("run/mayfly/audit.jsonl");
        for path in [&home.join("audit.jsonl"), &of_run, &packaged] {
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::set_permissions(path.parent().expect("parent"), fs::Permissions::from_mode(0o700))
                .expect("chmod");
            fs::write(path, "").expect("write");
            assert_eq!(log(&env), *path);
        }
        fs::remove_file(&of_run).expect("remove");
        fs::remove_file(&packaged).expect("remove");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(log(&env), packaged, "what others may write to is nobody's log");
        assert_eq!(files(&["a".into(), "b".into()], &env), [PathBuf::from("a"), "b".into()]);
    }
}
