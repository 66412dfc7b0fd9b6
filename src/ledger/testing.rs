//! Rows and directories for tests.

use std::os::unix::fs::PermissionsExt as _;

use mayfly_attestors::{BootId, ProcessKey};
use proptest::prelude::*;

use super::row::{Kind, Reason, Row, State};
use crate::id::{EntryId, LeaseId, TaskId};

/// A lease ID that is the number.
pub(crate) fn id(n: u64) -> LeaseId {
    let mut bytes = [0x40; 16];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    LeaseId::from_bytes(bytes)
}

/// A live X.509 lease.
pub(crate) fn row(n: u64, not_after: u64) -> Row {
    Row {
        id: id(n),
        kind: Kind::X509,
        issuer: "aa".repeat(20),
        spiffe_id: "spiffe://example.org/web".to_owned(),
        entry: EntryId::new("web"),
        process: ProcessKey {
            boot_id: BootId::from_bytes([7; 16]),
            pid: 4242,
            start_time: 99,
            pidfs_inode: Some(1 << 40),
        },
        uid: 1000,
        audience: Vec::new(),
        issued_at: not_after.saturating_sub(900),
        not_after,
        state: State::Live,
        status: None,
        task: None,
    }
}

/// A data directory as the agent wants it.
pub(crate) fn data_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

prop_compose! {
    /// Any row at all.
    pub(crate) fn any_row()(
        (id, kind, issuer, spiffe_id) in (any::<[u8; 16]>(), 0..4u8, ".{0,40}", ".{0,80}"),
        (entry, boot, pid, start_time) in (".{0,20}", any::<[u8; 16]>(), any::<u32>(), any::<u64>()),
        (pidfs_inode, uid) in (any::<Option<u64>>(), any::<u32>()),
        audience in prop::collection::vec(".{0,20}", 0..4),
        (issued_at, not_after) in (any::<u64>(), any::<u64>()),
        revoked in any::<Option<(u64, prop::sample::Index)>>(),
        status in any::<Option<(u64, u32)>>(),
        task in any::<Option<[u8; 16]>>(),
    ) -> Row {
        Row {
            id: LeaseId::from_bytes(id),
            kind: [Kind::X509, Kind::Jwt, Kind::Wit, Kind::Access][usize::from(kind)],
            issuer, spiffe_id,
            entry: EntryId::new(entry),
            process: ProcessKey { boot_id: BootId::from_bytes(boot), pid, start_time, pidfs_inode },
            uid, audience, issued_at, not_after,
            state: revoked.map_or(State::Live, |(at_millis, reason)| {
                State::Revoked { at_millis, reason: *reason.get(&Reason::ALL) }
            }),
            status: status.map(|(list, index)| crate::ledger::StatusIndex { list, index }),
            task: task.map(TaskId::from_bytes),
        }
    }
}

/// A small random source: the same seed gives the same history.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// Below `n`.
    pub(crate) fn roll(&mut self, n: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(n).unwrap()).unwrap()
    }

    /// True once in `n`.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }
}

/// How much to do: `full` with `MAYFLY_FULL=1`, else `quick`.
pub(crate) fn effort(quick: u64, full: u64) -> u64 {
    if std::env::var_os("MAYFLY_FULL").is_some() { full } else { quick }
}
