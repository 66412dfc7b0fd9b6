//! Failpoints that pause the agent, or fail it for a while.

use std::path::{Path, PathBuf};

use crate::{Agent, until};

/// A directory of failpoints that pause: `hit` waits for one, `release` lets it go on.
#[derive(Debug)]
pub struct Pause {
    dir: PathBuf,
    name: String,
}

impl Pause {
    /// The pause and the words for `MAYFLY_FAILPOINTS`.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn at(dir: &Path, name: &str) -> (Self, String) {
        let dir = dir.join("pauses");
        std::fs::create_dir_all(&dir).expect("directory of pauses");
        let spec = format!("{name}=pause:{}", dir.display());
        (Self { dir, name: name.to_owned() }, spec)
    }

    /// Waits until the agent is there.
    ///
    /// # Panics
    /// When it never is.
    pub fn hit(&self) {
        let file = self.dir.join(format!("{}.hit", self.name));
        until(&format!("failpoint {}", self.name), || file.exists().then_some(()));
    }

    /// Forgets who is there: the next [`Self::hit`] waits for one more.
    ///
    /// # Panics
    /// When nobody has been there.
    pub fn forget(&self) {
        std::fs::remove_file(self.dir.join(format!("{}.hit", self.name))).expect("somebody was there");
    }

    /// Makes the agent wait there again, after a release.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn arm(&self) {
        let _ = std::fs::remove_file(self.dir.join(format!("{}.hit", self.name)));
        std::fs::remove_file(self.dir.join(format!("{}.go", self.name))).expect("arm");
    }

    /// Lets the agent go on, and through from now on.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn release(&self) {
        std::fs::write(self.dir.join(format!("{}.go", self.name)), "").expect("release");
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.release();
    }
}

/// A failpoint that fails for as long as it is jammed.
#[derive(Debug)]
pub struct Jam(PathBuf);

impl Jam {
    /// The jam, not set yet, and the words for `MAYFLY_FAILPOINTS`.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn at(dir: &Path, name: &str) -> (Self, String) {
        let dir = dir.join("jams");
        std::fs::create_dir_all(&dir).expect("directory of jams");
        let spec = format!("{name}=fail:{}", dir.display());
        (Self(dir.join(format!("{name}.fail"))), spec)
    }

    /// From now on it fails.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn set(&self) {
        std::fs::write(&self.0, "").expect("jam");
    }

    /// From now on it does not.
    ///
    /// # Panics
    /// When it was not set.
    pub fn clear(&self) {
        std::fs::remove_file(&self.0).expect("a jam");
    }
}

impl Agent {
    /// Sets failpoints from the next launch on, in place of any others.
    pub fn failpoints(&mut self, spec: &str) {
        let plan = self.plan().clone().failpoints(spec);
        *self.plan() = plan;
    }

    /// Pauses at that failpoint from the next launch on.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn pause_at(&mut self, name: &str) -> Pause {
        let (pause, spec) = Pause::at(self.dir(), name);
        self.failpoints(&spec);
        pause
    }

    /// Fails at that failpoint, from the next launch on and while it is jammed.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn jam_at(&mut self, name: &str) -> Jam {
        let (jam, spec) = Jam::at(self.dir(), name);
        self.failpoints(&spec);
        jam
    }
}
