//! Processes as they stand in a line.

use serde::Serialize;

use crate::audit::event::{Agent, Pod};
use crate::audit::text::capped;

#[derive(Serialize)]
pub(super) struct AgentPart {
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    pid: u32,
    start_time: u64,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s: Option<PodPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    selectors_hash: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    posture: Vec<&'static str>,
}

#[derive(Serialize)]
struct PodPart {
    #[serde(skip_serializing_if = "Option::is_none")]
    ns: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sa: Option<String>,
}

impl From<&Agent> for AgentPart {
    fn from(agent: &Agent) -> Self {
        Self {
            // A SPIFFE ID was parsed: plain ASCII, at most 2048 bytes, and cut it would be another one.
            spiffe_id: agent.spiffe_id.clone(),
            instance: agent.process.pidfs_inode.map(|inode| inode.to_string()),
            pid: agent.process.pid,
            start_time: agent.process.start_time,
            uid: agent.uid,
            cgroup: agent.cgroup.as_deref().map(capped),
            exe_sha256: agent.exe_sha256.as_deref().map(capped),
            image_digest: agent.image_digest.as_deref().map(capped),
            k8s: agent.k8s.as_deref().map(Into::into),
            selectors_hash: agent.selectors_hash.as_deref().map(capped),
            posture: agent.posture.clone(),
        }
    }
}

impl From<&Pod> for PodPart {
    fn from(Pod { ns, pod, sa }: &Pod) -> Self {
        let cut = |text: &Option<String>| text.as_deref().map(capped);
        Self { ns: cut(ns), pod: cut(pod), sa: cut(sa) }
    }
}
