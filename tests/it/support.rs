//! What these tests share.

use mayfly_harness::{Agent, Entry, Holder, Plan};

/// Our own uid: every client of these tests has it.
pub(crate) fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// Certificates that rotate every five seconds.
pub(crate) const SHORT: &str = "[x509]\nttl = \"10s\"\n[jwt]\nttl = \"10s\"\n";

/// An agent that knows our own uid as `/uid/N`.
pub(crate) fn agent() -> Agent {
    Plan::for_uids(&[own_uid()]).start()
}

/// An agent that knows nobody.
pub(crate) fn empty_agent() -> Agent {
    Plan::with_entries(&[]).start()
}

/// A client.
pub(crate) fn client(agent: &Agent) -> Holder {
    Holder::start(agent, own_uid())
}

/// An entry for our own uid.
pub(crate) fn own_entry(path: &str) -> Entry {
    Entry::new(path, &[&format!("unix:uid:{}", own_uid())])
}
