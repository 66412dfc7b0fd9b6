//! What notes hold: tasks and offers as texts and numbers, to and fro.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use mayfly_attestors::{BootId, ProcessKey};
use serde::{Deserialize, Serialize};

use super::{Epoch, millis};
use crate::clock::unix_millis;
use crate::id::{DelegationId, EntryId, SpiffeId, TaskId};
use crate::lease::WorkloadId;
use crate::task::{
    Charter, Detail, Grants, Key, Limits, Offer, RawDetail, Scope, Seat, Standing, Task, Usage, User,
};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskRecord {
    root: String,
    parent: Option<String>,
    depth: u32,
    charter: CharterRecord,
    process: ProcessRecord,
    uid: u32,
    cgroup: Option<(u64, String)>,
    standing: String,
    begun: u64,
    begun_at: u64,
    deadline: u64,
    latest: u64,
    children_ever: u32,
    key: Option<KeyRecord>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CharterRecord {
    spiffe_id: String,
    entry: String,
    purpose: String,
    template: Option<String>,
    params: BTreeMap<String, String>,
    details: Vec<RawDetail>,
    calls: Option<u64>,
    bytes: Option<u64>,
    cost_microusd: Option<u64>,
    children: Option<u32>,
    depth: Option<u32>,
    idle: Option<u64>,
    require_isolated: bool,
    user: Option<(String, String)>,
    credential_ttl: Option<u64>,
    evaluation: String,
    policy_version: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageRecord {
    pub(super) calls: u64,
    pub(super) bytes: u64,
    pub(super) cost_microusd: u64,
    pub(super) audiences: BTreeSet<String>,
    pub(super) denials: u32,
    pub(super) last_call: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfferRecord {
    pub(super) parent: String,
    pub(super) charter: CharterRecord,
    pub(super) life: Option<u64>,
    pub(super) expires: u64,
    pub(super) taken_by: Option<String>,
    /// Whoever was asked was asked by a run that is over: nothing comes of it.
    #[serde(default)]
    pub(super) pending: bool,
    /// What whoever allowed it said is not kept: it has to be asked for again, unless it was taken up.
    #[serde(default)]
    pub(super) by_people: bool,
    pub(super) key: Option<KeyRecord>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessRecord {
    boot_id: String,
    pid: u32,
    start_time: u64,
    pidfs_inode: Option<u64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRecord {
    process: ProcessRecord,
    text: String,
    digest: [u8; 32],
}

impl TaskRecord {
    pub(super) fn of(task: &Task, epoch: &Epoch) -> Self {
        Self {
            root: task.root.to_string(),
            parent: task.parent.map(|parent| parent.to_string()),
            depth: task.depth,
            charter: CharterRecord::of(&task.charter),
            process: ProcessRecord::of(&task.seat.process),
            uid: task.seat.uid,
            cgroup: match &task.seat.scope {
                Scope::Process => None,
                Scope::Cgroup { id, path } => Some((*id, path.clone())),
            },
            standing: standing(task.standing),
            begun: epoch.millis(task.begun),
            begun_at: unix_millis(task.begun_at),
            deadline: epoch.millis(task.deadline),
            latest: epoch.millis(task.latest),
            children_ever: task.children_ever,
            key: task.key.as_ref().map(KeyRecord::of),
        }
    }

    pub(super) fn task(self, id: TaskId, epoch: &Epoch) -> Option<Task> {
        let begun = epoch.moment(self.begun);
        Some(Task {
            id,
            root: self.root.parse().ok()?,
            parent: parsed(self.parent.as_deref())?,
            depth: self.depth,
            charter: self.charter.charter()?,
            seat: Seat {
                holder: WorkloadId(0),
                process: self.process.key()?,
                uid: self.uid,
                scope: self.cgroup.map_or(Scope::Process, |(id, path)| Scope::Cgroup { id, path }),
            },
            standing: standing_of(&self.standing)?,
            begun,
            begun_at: UNIX_EPOCH + Duration::from_millis(self.begun_at),
            deadline: epoch.moment(self.deadline),
            latest: epoch.moment(self.latest),
            last_call: begun,
            used: Usage::default(),
            audiences: BTreeSet::new(),
            denials: 0,
            children: BTreeSet::new(),
            children_ever: self.children_ever,
            leases: BTreeSet::new(),
            ended_at: None,
            key: match self.key {
                Some(key) => Some(key.key()?),
                None => None,
            },
        })
    }
}

impl CharterRecord {
    pub(super) fn of(charter: &Charter) -> Self {
        let Limits { calls, bytes, cost_microusd, children, depth, idle } = charter.limits;
        Self {
            spiffe_id: charter.spiffe_id.to_string(),
            entry: charter.entry.to_string(),
            purpose: charter.purpose.clone(),
            template: charter.template.clone(),
            params: charter.params.clone(),
            details: charter.grants.details().iter().map(Detail::raw).collect(),
            calls,
            bytes,
            cost_microusd,
            children,
            depth,
            idle: idle.map(millis),
            require_isolated: charter.require_isolated,
            user: charter.user.as_ref().map(|user| (user.iss.clone(), user.sub.clone())),
            credential_ttl: charter.credential_ttl.map(millis),
            evaluation: charter.evaluation.clone(),
            policy_version: charter.policy_version.clone(),
        }
    }

    fn charter(self) -> Option<Charter> {
        let details: Vec<Detail> = self.details.iter().map(Detail::read).collect::<Result<_, _>>().ok()?;
        Some(Charter {
            spiffe_id: SpiffeId::parse(self.spiffe_id.as_bytes()).ok()?,
            entry: EntryId::new(self.entry),
            purpose: self.purpose,
            template: self.template,
            params: self.params,
            grants: Grants::of(details),
            limits: Limits {
                calls: self.calls,
                bytes: self.bytes,
                cost_microusd: self.cost_microusd,
                children: self.children,
                depth: self.depth,
                idle: self.idle.map(Duration::from_millis),
            },
            require_isolated: self.require_isolated,
            user: self.user.map(|(iss, sub)| User { iss, sub }),
            credential_ttl: self.credential_ttl.map(Duration::from_millis),
            evaluation: self.evaluation,
            policy_version: self.policy_version,
        })
    }
}

impl OfferRecord {
    pub(super) fn offer(self, id: DelegationId, epoch: &Epoch) -> Option<Offer> {
        if self.pending || (self.by_people && self.taken_by.is_none()) {
            return None;
        }
        Some(Offer {
            id,
            parent: self.parent.parse().ok()?,
            charter: self.charter.charter()?,
            life: self.life.map(Duration::from_millis),
            expires: epoch.moment(self.expires),
            taken_by: parsed(self.taken_by.as_deref())?,
            pending: false,
            by_people: self.by_people,
            key: match self.key {
                Some(key) => Some(key.key()?),
                None => None,
            },
        })
    }
}

impl ProcessRecord {
    pub(super) fn of(key: &ProcessKey) -> Self {
        let ProcessKey { boot_id, pid, start_time, pidfs_inode } = *key;
        Self { boot_id: boot_id.to_string(), pid, start_time, pidfs_inode }
    }

    pub(super) fn key(&self) -> Option<ProcessKey> {
        let boot_id = BootId::from_str(&self.boot_id).ok()?;
        Some(ProcessKey {
            boot_id,
            pid: self.pid,
            start_time: self.start_time,
            pidfs_inode: self.pidfs_inode,
        })
    }
}

impl KeyRecord {
    pub(super) fn of(key: &Key) -> Self {
        Self { process: ProcessRecord::of(&key.process), text: key.text.clone(), digest: key.digest }
    }

    pub(super) fn key(self) -> Option<Key> {
        Some(Key { process: self.process.key()?, text: self.text, digest: self.digest })
    }
}

/// `Some(None)` where nothing was written; `None` where what was written is no name.
fn parsed<T: FromStr>(text: Option<&str>) -> Option<Option<T>> {
    match text {
        None => Some(None),
        Some(text) => text.parse().ok().map(Some),
    }
}

fn standing(standing: Standing) -> String {
    match standing {
        Standing::Pending => "pending".to_owned(),
        Standing::Active => "active".to_owned(),
        Standing::Ended(why) => format!("ended:{}", why.as_str()),
    }
}

/// One that has ended is not kept, so it is not read either.
fn standing_of(text: &str) -> Option<Standing> {
    match text.split_once(':') {
        None if text == "pending" => Some(Standing::Pending),
        None if text == "active" => Some(Standing::Active),
        _ => None,
    }
}
