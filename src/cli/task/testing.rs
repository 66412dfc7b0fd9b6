//! Tasks for tests.

use mayfly_proto::task::{AuthorizationDetail, Scope, Task, TaskState};
use prost_types::Timestamp;

/// An active task with nothing special about it.
pub(super) fn task(id: &str, parent: &str) -> Task {
    Task {
        id: id.to_owned(),
        root: "a".to_owned(),
        parent: parent.to_owned(),
        depth: u32::from(!parent.is_empty()),
        spiffe_id: "spiffe://example.org/agents/planner".to_owned(),
        purpose: "look \u{1b}[31maround".to_owned(),
        details: vec![AuthorizationDetail {
            r#type: "urn:mayfly:rar:target-access".to_owned(),
            locations: vec!["https://wiki.example.org/api".to_owned()],
            actions: vec!["read".to_owned()],
            identifier: "space:DOCS".to_owned(),
            ..AuthorizationDetail::default()
        }],
        state: TaskState::Active.into(),
        deadline: Some(Timestamp { seconds: 4_102_444_800, nanos: 0 }),
        process_scope: Scope::Process.into(),
        pid: 42,
        uid: 1000,
        live_credentials: 2,
        ..Task::default()
    }
}
