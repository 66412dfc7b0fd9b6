//! Test support: a real agent in a directory of its own, real client processes under any uid, and readers
//! for what they exchange. Everything is started by this process, ended by its process id, and waited for
//! by an event or a bounded wait that says what it was waiting for.

pub mod admin;
pub mod agent;
pub mod cgroup;
pub mod clock;
pub mod cluster;
pub mod engine;
pub mod envoy;
pub mod files;
pub mod foreign;
pub mod holder;
pub mod idp;
pub mod kubelet;
pub mod manager;
pub mod pause;
pub mod peers;
pub mod pki;
pub mod policies;
#[cfg(test)]
mod stand_in;
pub mod tasks;
pub mod tools;
pub mod wire;
pub mod xds;

use std::time::{Duration, Instant};

pub use agent::{Agent, Entry, Plan};
pub use clock::WallClock;
pub use holder::{Holder, Refusal, Svid, Token, Wit};
pub use idp::Idp;
pub use pause::{Jam, Pause};
pub use pki::Crl;
pub use policies::Policies;
pub use tasks::TaskRefusal;

/// How long anything may take before a test gives up. Not a performance bound: nothing is asserted about
/// time but that it comes to an end.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until `found` answers, every 2 ms, for at most [`PATIENCE`].
///
/// # Panics
/// When it never does; `what` says what was awaited.
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = found() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the process runs: one that is dead and not waited for does not.
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Prints what a test measured: `tests/run` shows the lines that begin with `FIGURE`. Nothing is asserted about
/// such a time.
pub fn figure(text: &str) {
    println!("FIGURE {text}");
}

/// The machine's monotonic clock: tests measure in real time.
pub fn now() -> Instant {
    Instant::now()
}

/// Whether the long version of a test was asked for (`tests/run` without `--quick`).
pub fn full() -> bool {
    std::env::var_os("MAYFLY_FULL").is_some_and(|v| v == "1")
}

/// Fails, never skips, without root.
///
/// # Panics
/// When the effective uid is not 0.
pub fn require_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: other uids, namespaces, mounts");
}
