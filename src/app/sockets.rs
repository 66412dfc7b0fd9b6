//! The agent's Unix sockets: taken back from the service manager or bound anew, given a second name where somebody
//! wants one, and put back when somebody removes or replaces them (threats A16, G13).

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mayfly_attestors::Host;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::api::listener::{Access, BindError, Bound, FileId, Replacer};
use crate::audit::{self, Event};
use crate::drain::Watch;
use crate::manager::{Manager, Passed};
use crate::ready::Readiness;

/// One socket of the agent.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    /// What the service manager calls it; also its `FileDescriptorName=` in a socket unit.
    pub(super) role: &'static str,
    pub(super) path: PathBuf,
    pub(super) access: Access,
    /// Further names of it, in the same directory.
    pub(super) aliases: Vec<String>,
}

impl Socket {
    /// As the manager kept it, as a socket unit made it, or anew. Kept from now on, where that can be had.
    pub(super) fn open(
        &self,
        host: &Host,
        passed: &mut Passed,
        manager: &Manager,
    ) -> Result<Bound, BindError> {
        let mut bound = match self.take_back(host, passed) {
            Some(bound) => bound,
            None => match passed.socket(self.role) {
                Some(socket) => Bound::from_passed(socket, host.features())?,
                None => Bound::bind(&self.path, self.access, host.features())?,
            },
        };
        self.keep(&mut bound, manager);
        self.name_again();
        Ok(bound)
    }

    fn take_back(&self, host: &Host, passed: &mut Passed) -> Option<Bound> {
        let file = FileId::at(&self.path)?;
        let socket = passed.socket(&self.kept_name(file))?;
        let taken = Bound::take_back(socket, &self.path, file, host.features());
        taken.inspect_err(|error| tracing::warn!(%error, socket = self.role, "bound anew")).ok()
    }

    /// What its trouble is called.
    pub(super) fn role_concern(&self) -> &'static str {
        match self.role {
            "admin" => "admin socket's file",
            "http" => "http socket's file",
            _ => "public socket's file",
        }
    }

    /// The name says which file the socket was bound to: if another is there at the next start, it is no use.
    fn kept_name(&self, file: FileId) -> String {
        format!("{}.{file}", self.role)
    }

    fn keep(&self, bound: &mut Bound, manager: &Manager) {
        if let Some(file) = bound.file_id().filter(|_| manager.keeps()) {
            manager.keep_socket(self.kept_name(file), bound.as_fd());
            bound.leave_standing();
        }
    }

    /// Relative links, so that they hold wherever the directory is mounted.
    fn name_again(&self) {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else { return };
        for alias in &self.aliases {
            let link = directory.join(alias);
            if std::fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
                continue;
            }
            if let Err(error) = symlink(name, &link) {
                tracing::warn!(%error, link = %link.display(), "the socket has not got this other name");
            }
        }
    }

    /// Sees to it that the file stays ours, until the drain starts. Whoever may write in the directory (root, root of a
    /// container that was given it writable) could otherwise listen in our place, and nobody would notice.
    pub(super) async fn guard(self, guarded: Guarded, mut drain: Watch) {
        let (sender, mut changes) = mpsc::channel(1);
        let mut watcher = match self.watch(sender) {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::warn!(%error, socket = self.role, "nobody notices if this socket is replaced");
                return;
            }
        };
        let mut file = guarded.file;
        // Looked at before the first event, too: it may have gone before it was watched.
        loop {
            if file.is_none() || FileId::at(&self.path) != file {
                file = self.put_back(&guarded).await;
                self.watch_directory(&mut watcher);
            }
            tokio::select! {
                () = drain.stopping() => return,
                _ = changes.recv() => {}
                // While it could not be put back, no event may come.
                () = tokio::time::sleep(AGAIN), if file.is_none() => {}
            }
        }
    }

    async fn put_back(&self, guarded: &Guarded) -> Option<FileId> {
        let found = if FileId::at(&self.path).is_some() { "replaced" } else { "removed" };
        let path = self.path.display().to_string();
        guarded.readiness.raise(guarded.name, format!("{path} was {found}; it is bound again"));
        let (socket, host) = (self.clone(), Arc::clone(&guarded.host));
        let bind = move || Bound::bind_again(&socket.path, socket.access, host.features());
        let bound = match tokio::task::spawn_blocking(bind).await {
            Ok(Ok(bound)) => bound,
            Ok(Err(error)) => {
                guarded.readiness.raise(guarded.name, format!("{path} was {found}, and stays so: {error}"));
                return None;
            }
            Err(_panicked) => return None,
        };
        let mut bound = bound;
        self.keep(&mut bound, &guarded.manager);
        self.name_again();
        let file = bound.file_id();
        guarded.replacer.replace(bound);
        guarded.audit.note(vec![Event::SocketReplaced { path, found }]);
        guarded.readiness.clear(guarded.name);
        file
    }

    fn watch(&self, sender: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
        let directory = self.path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let path = self.path.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let concerns_us = event.as_ref().map_or(true, |event| {
                event.need_rescan() || event.paths.iter().any(|at| *at == path || *at == directory)
            });
            if concerns_us {
                // One waiting notice says it all.
                sender.try_send(()).ok();
            }
        })?;
        // For the directory itself coming and going.
        if let Some(above) = self.path.parent().and_then(Path::parent) {
            watcher.watch(above, RecursiveMode::NonRecursive)?;
        }
        self.watch_directory(&mut watcher);
        Ok(watcher)
    }

    /// Anew: the directory at that path may be another one now.
    fn watch_directory(&self, watcher: &mut RecommendedWatcher) {
        let Some(directory) = self.path.parent() else { return };
        watcher.unwatch(directory).ok();
        if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
            tracing::warn!(%error, socket = self.role, "its directory cannot be watched");
        }
    }
}

/// What guarding a socket needs of the rest.
pub(super) struct Guarded {
    /// Of the concern.
    pub(super) name: &'static str,
    /// The file as it was bound; `None`: a manager's, which is not ours to put back.
    pub(super) file: Option<FileId>,
    pub(super) replacer: Replacer,
    pub(super) host: Arc<Host>,
    pub(super) readiness: Readiness,
    pub(super) audit: audit::Log,
    pub(super) manager: Manager,
}

/// What was passed at start; what is wrong with it is no reason not to start.
pub(super) fn passed() -> (Passed, Option<io::Error>) {
    match Passed::take() {
        Ok(passed) => (passed, None),
        Err(error) => (Passed::default(), Some(error)),
    }
}

const AGAIN: Duration = Duration::from_secs(1);
