//! Which socket a client command talks to: the flag, then the environment, then the usual places.
//!
//! The environment is read once, in [`Env::of_process`]; everything else takes it as a value.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::endpoint::{Endpoint, EndpointError};

/// Which of the agent's two sockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Which {
    /// The Workload API, health, who-am-I.
    Public,
    /// Status, leases, entries, explain.
    Admin,
}

/// What the surroundings say: environment, own uid, and where system sockets live.
#[derive(Clone, Debug, Default)]
pub(crate) struct Env {
    /// `SPIFFE_ENDPOINT_SOCKET`.
    pub(crate) public: Option<OsString>,
    /// `MAYFLY_ADMIN_SOCKET`.
    pub(crate) admin: Option<OsString>,
    /// `MAYFLY_SERVER_UID`.
    pub(crate) server_uid: Option<OsString>,
    /// `MAYFLY_TASK`: the task that this process works in.
    pub(crate) task: Option<OsString>,
    /// Whether standard output is a terminal.
    pub(crate) is_terminal: bool,
    /// `XDG_RUNTIME_DIR`.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// Own effective uid.
    pub(crate) uid: u32,
    /// `/run/mayfly`.
    pub(crate) run: PathBuf,
    /// `/tmp`.
    pub(crate) tmp: PathBuf,
    /// `/var/lib/mayfly`.
    pub(crate) state: PathBuf,
}

impl Env {
    /// Of this process.
    pub(crate) fn of_process() -> Self {
        Self {
            public: std::env::var_os(Which::Public.variable()),
            admin: std::env::var_os(Which::Admin.variable()),
            server_uid: std::env::var_os("MAYFLY_SERVER_UID"),
            task: std::env::var_os("MAYFLY_TASK"),
            is_terminal: io::IsTerminal::is_terminal(&io::stdout()),
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute()),
            uid: rustix::process::geteuid().as_raw(),
            run: PathBuf::from("/run/mayfly"),
            tmp: PathBuf::from("/tmp"),
            state: PathBuf::from("/var/lib/mayfly"),
        }
    }

    /// Where an agent is that had no runtime directory. Nobody has named this place: it is looked at because it might
    /// be. `/tmp` belongs to everybody: anything but a 0700 directory of our own is somebody's trap there (A15).
    pub(crate) fn private_tmp(&self) -> Option<PathBuf> {
        let dir = self.guessed();
        let found = fs::symlink_metadata(&dir).ok()?;
        (found.is_dir() && found.uid() == self.uid && found.mode() & 0o7777 == 0o700).then_some(dir)
    }

    fn guessed(&self) -> PathBuf {
        self.tmp.join(format!("mayfly-{}", self.uid))
    }
}

impl Which {
    /// The environment variable that names the socket.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Public => "SPIFFE_ENDPOINT_SOCKET",
            Self::Admin => "MAYFLY_ADMIN_SOCKET",
        }
    }

    /// Where the socket is below a runtime directory.
    pub(crate) fn below(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Public => "public/api.sock",
            Self::Admin => "admin/admin.sock",
        })
    }
}

/// Where to look: a place somebody named, or the usual places in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Places {
    /// From the flag or the environment.
    Named(PathBuf),
    /// `/run/mayfly`, `$XDG_RUNTIME_DIR/mayfly`, `/tmp/mayfly-UID`.
    Usual(Vec<PathBuf>),
}

impl Places {
    /// All paths that may become the socket, for waiting.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Named(path) => std::slice::from_ref(path),
            Self::Usual(paths) => paths,
        }
    }

    /// The named place, or the first usual one where a socket exists now.
    pub(crate) fn pick(&self, env: &Env) -> Option<&Path> {
        match self {
            Self::Named(path) => Some(path),
            Self::Usual(paths) => paths.iter().map(PathBuf::as_path).find(|path| {
                (!path.starts_with(env.guessed()) || env.private_tmp().is_some()) && is_socket(path)
            }),
        }
    }
}

/// Flag, environment, usual places. The flag may be a plain absolute path; the variable is a URI, as the
/// specification has it.
pub(crate) fn places(flag: Option<&str>, which: Which, env: &Env) -> Result<Places, EndpointError> {
    if let Some(value) = flag {
        return match value.starts_with('/') {
            true => Ok(Places::Named(PathBuf::from(value))),
            false => Endpoint::parse(value, "--socket")?.into_path("--socket").map(Places::Named),
        };
    }
    let variable = match which {
        Which::Public => &env.public,
        Which::Admin => &env.admin,
    };
    if let Some(value) = variable {
        let from = which.variable();
        // The admin socket's variable is ours alone, so a plain path will do there, too.
        if which == Which::Admin && Path::new(value).is_absolute() {
            return Ok(Places::Named(PathBuf::from(value)));
        }
        return Endpoint::parse(&value.to_string_lossy(), from)?.into_path(from).map(Places::Named);
    }
    let mut usual = vec![which.below(&env.run)];
    usual.extend(env.runtime_dir.as_ref().map(|dir| which.below(&dir.join("mayfly"))));
    usual.push(which.below(&env.guessed()));
    Ok(Places::Usual(usual))
}

/// A path we may not look at counts as there: connecting to it then says so.
fn is_socket(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(found) => found.file_type().is_socket(),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn env(dir: &Path) -> Env {
        Env {
            runtime_dir: Some(dir.join("xdg")),
            uid: rustix::process::geteuid().as_raw(),
            run: dir.join("run"),
            tmp: dir.join("tmp"),
            ..Env::default()
        }
    }

    fn listen(path: &Path) {
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        drop(UnixListener::bind(path).expect("bind"));
    }

    #[test]
    fn the_flag_wins_over_the_environment_and_the_environment_over_the_usual_places() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut env = env(dir.path());
        listen(&Which::Public.below(&env.run));
        env.public = Some("unix:///env.sock".into());
        env.admin = Some("/admin.sock".into());
        let pick = |flag, which| places(flag, which, &env).expect("places").pick(&env).map(Path::to_owned);
        assert_eq!(pick(Some("/flag.sock"), Which::Public), Some("/flag.sock".into()));
        assert_eq!(pick(Some("unix:///uri.sock"), Which::Public), Some("/uri.sock".into()));
        assert_eq!(pick(None, Which::Public), Some("/env.sock".into()));
        assert_eq!(pick(None, Which::Admin), Some("/admin.sock".into()));
    }

    #[test]
    fn the_spec_variable_must_be_a_uri_and_not_empty() {
        let dir = tempfile::tempdir().expect("tempdir");
        for bad in ["", "/run/a.sock", "tcp://127.0.0.1:1"] {
            let env = Env { public: Some(bad.into()), ..env(dir.path()) };
            let error = places(None, Which::Public, &env).expect_err(bad).to_string();
            assert!(error.contains("SPIFFE_ENDPOINT_SOCKET"), "{error}");
        }
    }

    #[test]
    fn the_first_existing_usual_place_is_taken() {
        let dir = tempfile::tempdir().expect("tempdir");
        let env = env(dir.path());
        let usual = places(None, Which::Admin, &env).expect("places");
        assert_eq!(usual.pick(&env), None);
        let user = dir.path().join("xdg/mayfly/admin/admin.sock");
        listen(&user);
        assert_eq!(usual.pick(&env), Some(user.as_path()));
        let system = dir.path().join("run/admin/admin.sock");
        listen(&system);
        assert_eq!(usual.pick(&env), Some(system.as_path()));
    }

    #[test]
    fn a_runtime_directory_is_taken_wherever_it_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut env = env(dir.path());
        env.runtime_dir = Some(env.tmp.join("xdg"));
        let socket = env.tmp.join("xdg/mayfly/admin/admin.sock");
        listen(&socket);
        let usual = places(None, Which::Admin, &env).expect("places");
        assert_eq!(usual.pick(&env), Some(socket.as_path()));
    }

    #[test]
    fn a_directory_in_tmp_that_others_may_enter_is_ignored() {
        let dir = tempfile::tempdir().expect("tempdir");
        let env = env(dir.path());
        let home = env.tmp.join(format!("mayfly-{}", env.uid));
        let socket = Which::Public.below(&home);
        listen(&socket);
        let usual = places(None, Which::Public, &env).expect("places");
        for (mode, found) in [(0o755, false), (0o1777, false), (0o700, true)] {
            fs::set_permissions(&home, fs::Permissions::from_mode(mode)).expect("chmod");
            assert_eq!(usual.pick(&env).is_some(), found, "{mode:o}");
        }
        // A link to a private directory is not a private directory.
        let real = env.tmp.join("real");
        fs::rename(&home, &real).expect("rename");
        std::os::unix::fs::symlink(&real, &home).expect("symlink");
        assert_eq!(usual.pick(&env), None);
    }
}
