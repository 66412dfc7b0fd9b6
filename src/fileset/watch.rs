//! Noticing that a directory changed: kernel events, no polling.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::IsMember;

/// Tells when the files of a set may have changed. Dropping it ends the watch.
#[derive(Debug)]
pub struct SetWatch {
    dir: PathBuf,
    watcher: RecommendedWatcher,
    changes: mpsc::Receiver<()>,
    /// The directory itself came or went: what is watched may not be what stands at its path.
    replaced: Arc<AtomicBool>,
    /// A change was heard and not told yet.
    pending: bool,
}

/// Starts to watch `dir`, and its parent for the directory being replaced as a whole. Fails when either does
/// not exist or the kernel's watches are used up (`fs.inotify.max_user_watches`). `is_member` tells by its name
/// whether a file of the directory matters.
pub fn watch(dir: &Path, is_member: IsMember) -> notify::Result<SetWatch> {
    // One waiting notice says it all: whoever hears it reads everything again.
    let (sender, changes) = mpsc::channel(1);
    let replaced = Arc::new(AtomicBool::new(false));
    let (watched, flag) = (dir.to_path_buf(), Arc::clone(&replaced));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let Some(change) = change(&watched, is_member, event.as_ref()) else { return };
        if change == Change::Directory {
            flag.store(true, Ordering::Release);
        }
        // Full means that a notice is waiting already.
        sender.try_send(()).ok();
    })?;
    if let Some(parent) = dir.parent() {
        watcher.watch(parent, RecursiveMode::NonRecursive)?;
    }
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok(SetWatch { dir: dir.to_path_buf(), watcher, changes, replaced, pending: false })
}

impl SetWatch {
    /// Waits until something changed and then until nothing has for 50 ms, but no longer than a second.
    /// `None` when the watch is lost: read everything again then, and watch anew. A call that is dropped
    /// loses no change: the next one tells it.
    pub async fn changed(&mut self) -> Option<()> {
        if !self.pending {
            self.changes.recv().await?;
            self.pending = true;
        }
        let settle =
            async { while timeout(QUIET, self.changes.recv()).await.is_ok_and(|change| change.is_some()) {} };
        timeout(PATIENCE, settle).await.ok();
        if self.replaced.swap(false, Ordering::AcqRel) {
            // The old watch went with the old directory. Failing means that there is none now; the parent's
            // watch tells when there is one again.
            self.watcher.unwatch(&self.dir).ok();
            self.watcher.watch(&self.dir, RecursiveMode::NonRecursive).ok();
        }
        self.pending = false;
        Some(())
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    /// Some file of the set came, went or changed.
    Files,
    /// The directory itself did, or events were lost.
    Directory,
}

fn change(dir: &Path, is_member: IsMember, event: Result<&Event, &notify::Error>) -> Option<Change> {
    let Ok(event) = event else { return Some(Change::Directory) };
    if event.need_rescan() {
        return Some(Change::Directory);
    }
    // Our own reading makes access events; only the end of a write matters.
    if matches!(event.kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write)) {
        return None;
    }
    if event.paths.iter().any(|path| path == dir) {
        return Some(Change::Directory);
    }
    let member = |path: &PathBuf| {
        path.parent() == Some(dir)
            && path.file_name().is_some_and(|name| {
                is_member(name.as_encoded_bytes()) || name == crate::files::Projected::LINK
            })
    };
    event.paths.iter().any(member).then_some(Change::Files)
}

/// How long nothing may happen before a change counts as finished.
const QUIET: Duration = Duration::from_millis(50);
/// How long changes may go on before they are looked at all the same.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fileset::is_toml;

    async fn told(watch: &mut SetWatch) -> bool {
        timeout(Duration::from_secs(10), watch.changed()).await.is_ok_and(|change| change.is_some())
    }

    async fn silent(watch: &mut SetWatch) -> bool {
        timeout(Duration::from_millis(300), watch.changed()).await.is_err()
    }

    #[tokio::test]
    async fn changes_of_files_of_the_set_are_told_once_and_reading_is_not_one() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("entries.d");
        fs::create_dir(&dir).unwrap();
        let mut watch = watch(&dir, is_toml).unwrap();
        for round in 0..20 {
            fs::write(dir.join("a.toml"), format!("entries = [] # {round}")).unwrap();
        }
        assert!(told(&mut watch).await, "written");
        assert!(silent(&mut watch).await, "twenty writes are one change");
        fs::read(dir.join("a.toml")).unwrap();
        fs::read_dir(&dir).unwrap().for_each(|entry| drop(entry.unwrap()));
        fs::write(dir.join("notes.txt"), "x").unwrap();
        fs::write(dir.join(".a.toml.swp"), "x").unwrap();
        assert!(silent(&mut watch).await, "neither reading nor other files matter");
        fs::rename(dir.join("notes.txt"), dir.join("b.toml")).unwrap();
        assert!(told(&mut watch).await, "renamed into place");
        fs::remove_file(dir.join("a.toml")).unwrap();
        assert!(told(&mut watch).await, "removed");
    }

    #[tokio::test]
    async fn a_directory_replaced_as_a_whole_is_still_watched() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, next) = (parent.path().join("entries.d"), parent.path().join("next"));
        fs::create_dir(&dir).unwrap();
        let mut watch = watch(&dir, is_toml).unwrap();
        fs::create_dir(&next).unwrap();
        fs::rename(&dir, parent.path().join("old")).unwrap();
        fs::rename(&next, &dir).unwrap();
        assert!(told(&mut watch).await, "replaced");
        fs::write(dir.join("a.toml"), "entries = []").unwrap();
        assert!(told(&mut watch).await, "a file in the new one");
        fs::remove_dir_all(&dir).unwrap();
        assert!(told(&mut watch).await, "removed");
        fs::create_dir(&dir).unwrap();
        assert!(told(&mut watch).await, "made again");
        fs::write(dir.join("b.toml"), "entries = []").unwrap();
        assert!(told(&mut watch).await, "a file in that one");
    }

    #[tokio::test]
    async fn a_dropped_wait_loses_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("entries.d");
        fs::create_dir(&dir).unwrap();
        let mut watch = watch(&dir, is_toml).unwrap();
        fs::write(dir.join("a.toml"), "entries = []").unwrap();
        while !watch.pending {
            timeout(Duration::from_millis(1), watch.changed()).await.ok();
        }
        assert!(told(&mut watch).await);
    }

    #[test]
    fn an_absent_directory_is_an_error() {
        let parent = tempfile::tempdir().unwrap();
        assert!(watch(&parent.path().join("absent"), is_toml).is_err());
    }
}
