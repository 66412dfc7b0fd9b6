//! Tasks as tests want them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mayfly_attestors::{BootId, ProcessKey};

use super::{Charter, Grants, Limits, NewTask, Scope, Seat};
use crate::id::{EntryId, SpiffeId, TaskId};
use crate::lease::WorkloadId;

pub(super) fn charter(agent: u8) -> Charter {
    Charter {
        spiffe_id: SpiffeId::parse(format!("spiffe://example.org/agent/{agent}").as_bytes()).unwrap(),
        entry: EntryId::new(format!("agent-{agent}")),
        purpose: "try".to_owned(),
        template: None,
        params: BTreeMap::new(),
        grants: Grants::default(),
        limits: Limits::default(),
        require_isolated: false,
        user: None,
        credential_ttl: None,
        evaluation: String::new(),
        policy_version: String::new(),
    }
}

/// Of one process.
pub(super) fn seat() -> Seat {
    let process =
        ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid: 7, start_time: 1, pidfs_inode: None };
    Seat { holder: WorkloadId(1), process, uid: 0, scope: Scope::Process }
}

pub(super) fn new_task(
    id: TaskId,
    charter: Charter,
    seat: Seat,
    life: Option<u64>,
    begun_at: SystemTime,
) -> NewTask {
    NewTask { id, charter, seat, life: life.map(Duration::from_secs), pending: false, begun_at, key: None }
}
