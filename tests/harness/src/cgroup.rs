//! Cgroups as a kubelet makes them, and plain ones, made by root.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::PATIENCE;

/// A plain cgroup at the top of the v2 hierarchy, in root's hands; gone with the value, and everybody in it.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// With that and a number in its name.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let path = root().join(format!("mayfly-{name}-{}-{}", std::process::id(), next()));
        std::fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    /// As `/proc/PID/cgroup` has it.
    pub fn path(&self) -> String {
        format!("/{}", self.0.file_name().unwrap_or_default().display())
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// One of its files.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).expect("a file of the cgroup")
    }

    /// Moves a process in.
    ///
    /// # Panics
    /// When it is gone.
    pub fn take(&self, pid: u32) {
        enter(&self.0, pid);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        end(&self.0);
    }
}

/// The cgroup of one container of one pod, gone with the value.
#[derive(Debug)]
pub struct PodGroup {
    pod: PathBuf,
    uid: String,
    container: String,
}

impl PodGroup {
    /// Of a pod and a container with names of their own.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
        Self::of(&Self::new_uid(), &Self::new_id())
    }

    /// Of that pod and container.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn of(uid: &str, container: &str) -> Self {
        let pod = root().join("kubepods/burstable").join(format!("pod{uid}"));
        std::fs::create_dir_all(pod.join(container)).expect("a cgroup for a pod");
        Self { pod, uid: uid.to_owned(), container: container.to_owned() }
    }

    /// A uid that nobody has.
    pub fn new_uid() -> String {
        format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), next())
    }

    /// A container id that nobody has.
    pub fn new_id() -> String {
        format!("{:032x}{:032x}", std::process::id(), next())
    }

    /// The pod's uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The container's id.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Moves a process in.
    ///
    /// # Panics
    /// When it is gone.
    pub fn take(&self, pid: u32) {
        enter(&self.pod.join(&self.container), pid);
    }

    /// A cgroup below the container's, as a process that owns it can make.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn below(&self, path: &str) -> PathBuf {
        let path = self.pod.join(&self.container).join(path);
        std::fs::create_dir_all(&path).expect("a cgroup below the container");
        path
    }
}

impl Default for PodGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        end(&self.pod);
    }
}

/// Moves a process out of every cgroup below the top of the hierarchy.
///
/// # Panics
/// When it is gone.
pub fn leave(pid: u32) {
    enter(&root(), pid);
}

/// Moves a process into the cgroup of that directory.
///
/// # Panics
/// When either is gone.
pub fn enter(dir: &Path, pid: u32) {
    std::fs::write(dir.join("cgroup.procs"), pid.to_string()).expect("move a process");
}

/// Whoever is still inside goes with it.
fn end(dir: &Path) {
    std::fs::write(dir.join("cgroup.kill"), "1").ok();
    let end = std::time::Instant::now() + PATIENCE;
    while dir.exists() && std::time::Instant::now() < end {
        remove(dir);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn remove(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    std::fs::remove_dir(dir).ok();
}

/// The v2 hierarchy.
pub fn root() -> PathBuf {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.exists() { hybrid.to_owned() } else { PathBuf::from("/sys/fs/cgroup") }
}

fn next() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
