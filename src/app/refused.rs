//! Connections that were never served, in the audit log.

use std::sync::{Arc, Mutex, PoisonError};

use mayfly_attestors::{Host, ProcessKey};

use crate::api::listener::Refused;
use crate::audit::{self, Event, Tally};
use crate::clock::{Clock, SystemClock};

/// What runs on the accept thread.
pub(super) fn recorder(audit: audit::Log, host: Arc<Host>) -> Box<dyn Fn(Refused) + Send> {
    let seen = Mutex::new(Tally::default());
    Box::new(move |refused| {
        let kind = (refused.reason, refused.uid);
        let count = seen.lock().unwrap_or_else(PoisonError::into_inner).count(kind, SystemClock.monotonic());
        let Some(count) = count else { return };
        let process = ProcessKey {
            boot_id: host.boot_id(),
            pid: refused.pid.unwrap_or_default(),
            start_time: 0,
            pidfs_inode: None,
        };
        let agent = audit::Agent::new(process, refused.uid.unwrap_or(u32::MAX));
        let decision = audit::Decision { phase: "pin", reason: audit::times(refused.reason.name(), count) };
        audit.note(vec![Event::AttestDenied { agent, decision }]);
    })
}
