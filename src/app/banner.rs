//! `mayfly agent --dev`: a configuration from nothing, and what to type next.

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::StartError;
use crate::config::Config;

/// Sockets under `$XDG_RUNTIME_DIR/mayfly`, else under a private `/tmp/mayfly-UID`.
pub(super) fn dev_config(runtime_dir: Option<PathBuf>) -> Result<Config, StartError> {
    let uid = rustix::process::getuid().as_raw();
    let dir = match runtime_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
            Some(dir) => Path::new(&dir).join("mayfly"),
            None => std::env::temp_dir().join(format!("mayfly-{uid}")),
        },
    };
    private_dir(&dir, uid)?;
    Config::dev(&dir, uid, &user_name(uid)).map_err(StartError::Config)
}

/// The directory is the whole protection of the sockets in it: nobody else may own or enter it.
fn private_dir(dir: &Path, uid: u32) -> Result<(), StartError> {
    let wrong = |why: String| StartError::RuntimeDir { path: dir.to_owned(), why };
    if let Err(error) = std::fs::DirBuilder::new().mode(0o700).recursive(false).create(dir)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(wrong(format!("cannot be made ({error})")));
    }
    let found = std::fs::symlink_metadata(dir).map_err(|error| wrong(error.to_string()))?;
    if !found.is_dir() || found.uid() != uid {
        return Err(wrong("belongs to somebody else or is no directory".to_owned()));
    }
    if found.mode() & 0o077 != 0 {
        return Err(wrong(format!(
            "can be entered by others (mode {:o}); chmod 700 it",
            found.mode() & 0o777
        )));
    }
    Ok(())
}

fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Says where the agent listens and what to type next. A closed stdout is nobody's fault.
pub(super) fn announce(config: &Config) {
    let public = config.sockets.public.display();
    // As it can be typed: a fresh build is on nobody's PATH.
    let mayfly =
        std::env::current_exe().map_or_else(|_| "mayfly".to_owned(), |path| path.display().to_string());
    let text = format!(
        "mayfly: development agent for {domain}, keys in memory, one entry for your own user\n\
         \n\
         \x20 workload socket  {public}\n\
         \x20 admin socket     {admin}\n\
         \n\
         In another terminal:\n\
         \n\
         \x20 export SPIFFE_ENDPOINT_SOCKET=unix://{public}\n\
         \x20 {mayfly} whoami\n\
         \x20 {mayfly} fetch x509\n\
         \x20 {mayfly} demo\n\
         \x20 {mayfly} run --task demo --token TOKEN=https://demo.mayfly.internal -- sh -c 'cat $TOKEN'\n\
         \n\
         {asking}\n\
         \n\
         Every identity ends with its process. Ctrl-C stops the agent. `mayfly freeze --all` stops what it gives, and your\n\
         word alone lets it go on (`thaw --all`), since nobody else is served.\n",
        domain = config.trust_domain,
        admin = config.sockets.admin.display(),
        asking = asking(config, &mayfly, rustix::process::getuid().as_raw()),
    );
    io::stdout().write_all(text.as_bytes()).ok();
    io::stdout().flush().ok();
}

/// How to try what people are asked. Whoever asks cannot be the one who allows.
fn asking(config: &Config, mayfly: &str, uid: u32) -> String {
    if uid == 0 {
        return "Nobody can allow what root's agents ask people: for that, start this as an ordinary user."
            .to_owned();
    }
    format!(
        "A task that waits until somebody else allows it, and how to, from another login session:\n\
         \n\
         \x20 {mayfly} run --task demo-asks --token TOKEN=https://demo.mayfly.internal -- sh -c 'cat $TOKEN'\n\
         \x20 sudo {mayfly} approve --socket unix://{admin} --server-uid {uid}",
        admin = config.sockets.admin.display(),
    )
}
