//! `mayfly selftest containment` against an agent that runs.

use std::process::{Child, Command, Stdio};

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_self_test_says_what_held_and_what_no_agent_can_hold() {
    let mayfly = env!("CARGO_BIN_EXE_mayfly");
    let home = tempfile::tempdir().unwrap();
    let runtime = home.path().join("agent");
    let _agent = Agent(
        Command::new(mayfly)
            .args(["agent", "--dev", "--runtime-dir"])
            .arg(&runtime)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let socket = std::iter::repeat_with(|| find(&runtime)).flatten().next().unwrap();
    let ran = Command::new(mayfly)
        .args(["selftest", "containment", "--output", "json", "--socket"])
        .arg(socket)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{said}"));
    assert!(ran.status.success() && report["ok"] == true, "{report:#}\n{said}");
    let verdicts: Vec<_> = report["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| (attempt["kind"].as_str().unwrap(), attempt["verdict"].as_str().unwrap()))
        .collect();
    assert_eq!(verdicts[0], ("copy", "held"), "{report:#}");
    assert_eq!(verdicts[1], ("copy", "limit"), "a bearer token can be copied, and that must be said");
    assert_eq!(verdicts[3..5], [("reuse", "held"), ("reuse", "held")], "{report:#}");
    assert_eq!(verdicts[6], ("outlive", "held"), "{report:#}");
    assert!(verdicts.contains(&("outlive", "not_tried")), "{report:#}");
}

/// The public socket, once the agent serves.
fn find(runtime: &std::path::Path) -> Option<std::path::PathBuf> {
    std::thread::sleep(std::time::Duration::from_millis(20));
    let socket = runtime.join("public/api.sock");
    std::os::unix::net::UnixStream::connect(&socket).ok().map(|_| socket)
}
