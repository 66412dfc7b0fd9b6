//! Facts about processes for people, by `sysinfo`: names, sizes, start times. Never evidence: nothing
//! here reaches a decision.

use std::collections::HashMap;

use mayfly_proto::admin as proto;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// What `sysinfo` says of one process; `None` when it is gone.
pub fn of_process(pid: u32) -> Option<proto::ProcessFacts> {
    let refresh = ProcessRefreshKind::nothing()
        .with_memory()
        .with_exe(UpdateKind::Always)
        .with_user(UpdateKind::Always);
    let system = look([Pid::from_u32(pid)].as_slice(), refresh);
    let process = system.process(Pid::from_u32(pid))?;
    Some(proto::ProcessFacts {
        pid,
        uid: process.user_id().map_or(u32::MAX, |uid| **uid),
        name: process.name().to_string_lossy().into_owned(),
        executable: process.exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resident_bytes: process.memory(),
        started_at: i64::try_from(process.start_time()).unwrap_or(i64::MAX),
        parent_pid: process.parent().map_or(0, Pid::as_u32),
    })
}

/// Names of those of `pids` that live.
pub fn names(pids: impl Iterator<Item = u32>) -> HashMap<u32, String> {
    let mut pids: Vec<Pid> = pids.map(Pid::from_u32).collect();
    pids.sort_unstable();
    pids.dedup();
    let system = look(&pids, ProcessRefreshKind::nothing());
    let name = |pid: &Pid| Some((pid.as_u32(), system.process(*pid)?.name().to_string_lossy().into_owned()));
    pids.iter().filter_map(name).collect()
}

/// The agent's own resident memory in bytes.
pub fn own_resident_bytes() -> u64 {
    let pid = Pid::from_u32(std::process::id());
    look(&[pid], ProcessRefreshKind::nothing().with_memory()).process(pid).map_or(0, sysinfo::Process::memory)
}

fn look(pids: &[Pid], refresh: ProcessRefreshKind) -> System {
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(pids), true, refresh.without_tasks());
    system
}

/// How many descriptors the agent has open.
pub fn own_descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |open| u64::try_from(open.count()).unwrap_or(u64::MAX))
}
