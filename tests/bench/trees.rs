//! Trees greater than any agent allows, made of the cores alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Result;
use mayfly::id::{EntryId, LeaseId, TaskId};
use mayfly::lease::WorkloadId;
use mayfly::ledger::{Kind, Reason, Row};
use mayfly::task::{
    self, Bounds, Charter, Detail, Ending, Grants, Limits, NewOffer, NewTask, RawDetail, Tree,
};
use mayfly::workload::Denied;
use mayfly_attestors::{BootId, ProcessKey};
use mayfly_harness::policies::WIKI;

use crate::{line, percentiles};

/// Trees wider than any agent allows: from the order to every task ended and every lease refused in memory.
pub(crate) fn cores(sizes: &[usize]) -> Result<()> {
    for size in sizes {
        let mut took = Vec::new();
        for _ in 0..20 {
            took.push(Big::new(*size)?.end());
        }
        line(&format!("cores alone: end of a tree with {size} descendants"), &percentiles(&mut took))?;
    }
    Ok(())
}

/// One root with that many children, each with one credential.
struct Big {
    tree: Tree,
    root: TaskId,
    rows: BTreeMap<LeaseId, Row>,
    now: Instant,
}

impl Big {
    fn new(size: usize) -> Result<Self> {
        let children = u32::try_from(size)?;
        let bounds = Bounds {
            children,
            children_ever: children + 1,
            tasks_per_agent: size + 1,
            tasks: size + 1,
            ..Bounds::default()
        };
        let now = Instant::now();
        let mut big = Self { tree: Tree::new(bounds), root: name(0), rows: BTreeMap::new(), now };
        let grants = Grants::of(vec![whole()?]);
        let root = new_task(name(0), charter(grants.clone())?, 0);
        big.tree.begin(root, now)?;
        let caller = task::Caller { process: process(0), cgroup: None, identities: Vec::new() };
        for n in 1..=children {
            let offer = NewOffer {
                id: mayfly::id::DelegationId::from_bytes(u128::from(n).to_be_bytes()),
                parent: name(0),
                charter: charter(Grants::default())?,
                asked: grants.details().to_vec(),
                life: None,
                drops_user: false,
                waits: None,
                key: None,
            };
            let id = big.tree.offer(offer, &grants, &caller, now)?.id;
            big.tree.join(id, new_task(name(n), charter(grants.clone())?, n), now)?;
            let lease = LeaseId::from_bytes((1 << 120 | u128::from(n)).to_be_bytes());
            big.tree.hold(name(n), lease);
            big.rows.insert(lease, row(lease, name(n)));
        }
        Ok(big)
    }

    fn end(mut self) -> f64 {
        let mut denied = Denied::default();
        let begin = Instant::now();
        let wall = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let cascade = self.tree.end(self.root, Ending::ProcessExit, self.now, wall);
        for lease in cascade.leases() {
            if let Some(row) = self.rows.remove(&lease) {
                denied.add(row, Reason::TaskEnded, wall);
            }
        }
        let tree = &self.tree;
        std::hint::black_box(cascade.tolls(|id| tree.get(id)?.parent));
        begin.elapsed().as_secs_f64() * 1e6
    }
}

fn name(n: u32) -> TaskId {
    TaskId::from_bytes(u128::from(n).to_be_bytes())
}

fn process(n: u32) -> ProcessKey {
    ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid: n + 1, start_time: 1, pidfs_inode: None }
}

fn whole() -> Result<Detail> {
    Ok(Detail::read(&RawDetail {
        kind: task::grant::TARGET_ACCESS.to_owned(),
        locations: vec![WIKI.to_owned()],
        actions: vec!["read".to_owned()],
        ..RawDetail::default()
    })?)
}

fn charter(grants: Grants) -> Result<Charter> {
    Ok(Charter {
        spiffe_id: mayfly::id::SpiffeId::parse(b"spiffe://example.org/agent")?,
        entry: EntryId::new("agent"),
        purpose: String::new(),
        template: None,
        params: BTreeMap::new(),
        grants,
        limits: Limits::default(),
        require_isolated: false,
        user: None,
        credential_ttl: None,
        evaluation: String::new(),
        policy_version: String::new(),
    })
}

fn new_task(id: TaskId, charter: Charter, holder: u32) -> NewTask {
    let seat = task::Seat {
        holder: WorkloadId(holder.into()),
        process: process(holder),
        uid: 0,
        scope: task::Scope::Process,
    };
    NewTask { id, charter, seat, life: None, pending: false, begun_at: UNIX_EPOCH, key: None }
}

fn row(id: LeaseId, task: TaskId) -> Row {
    Row {
        id,
        kind: Kind::Access,
        issuer: "kid".to_owned(),
        spiffe_id: "spiffe://example.org/agent".to_owned(),
        entry: EntryId::new("agent"),
        uid: 0,
        process: process(0),
        issued_at: 1_800_000_000,
        not_after: 1_800_000_300,
        audience: vec![WIKI.to_owned()],
        state: mayfly::ledger::State::Live,
        status: None,
        task: Some(task),
    }
}
