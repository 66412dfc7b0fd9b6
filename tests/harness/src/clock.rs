//! A wall clock of its own for an agent.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crate::Agent;
use crate::tools::compile_preload;

/// A wall clock that a test can put forward and back. The monotonic one goes on as it does.
#[derive(Debug)]
pub struct WallClock(PathBuf);

impl WallClock {
    /// Gives one to an agent that is not launched yet.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn give(agent: &mut Agent) -> Self {
        let preload = compile_preload("clockshift");
        let file = agent.dir().join("clock");
        std::fs::write(&file, 0i64.to_ne_bytes()).expect("write the shift");
        let text = |path: &PathBuf| path.to_str().expect("a path in UTF-8").to_owned();
        let environment = &mut agent.plan().environment;
        environment.push(("LD_PRELOAD".to_owned(), text(&preload)));
        environment.push(("MAYFLY_TEST_CLOCK".to_owned(), text(&file)));
        Self(file)
    }

    /// Shifts it, in place: the agent has the file mapped.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn shift(&self, seconds: i64) {
        let file = std::fs::File::options().write(true).open(&self.0).expect("open the shift");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("write the shift");
    }
}
