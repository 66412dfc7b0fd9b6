//! What a development agent is good for without any file: `mayfly selftest containment`, and a task.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mayfly_harness::until;

/// An agent, and what it says; a test that fails shows that.
struct Agent(Child, PathBuf);

impl Drop for Agent {
    #[expect(clippy::print_stderr, reason = "what a test prints is shown when it fails")]
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
        if std::thread::panicking() {
            eprintln!("the agent said: {}", std::fs::read_to_string(&self.1).unwrap_or_default());
        }
    }
}

/// A development agent, and its public socket.
fn developing(runtime: &Path) -> (Agent, PathBuf) {
    let log = runtime.with_extension("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
    command.args(["agent", "--dev", "--runtime-dir"]).arg(runtime);
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut agent = Agent(command.spawn().unwrap(), log);
    let socket = runtime.join("public/api.sock");
    until("the agent serves", || {
        let ended = agent.0.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {ended:?}");
        UnixStream::connect(&socket).ok()
    });
    (agent, socket)
}

#[test]
fn a_program_works_in_a_task_as_the_banner_says_and_the_record_tells_of_it() {
    let home = tempfile::tempdir().unwrap();
    let runtime = home.path().join("mayfly");
    let (_agent, socket) = developing(&runtime);
    let mayfly = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        command.args(arguments).env("XDG_RUNTIME_DIR", home.path()).env_remove("SPIFFE_ENDPOINT_SOCKET");
        command.output().unwrap()
    };
    let socket = format!("unix://{}", socket.display());
    let ran = mayfly(&[
        "run",
        "--socket",
        &socket,
        "--task",
        "demo",
        "--token",
        "TOKEN=https://demo.mayfly.internal",
        "--",
        "sh",
        "-c",
        "test -s $TOKEN && echo $MAYFLY_TASK",
    ]);
    let (said, complained) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    assert!(ran.status.success() && said.starts_with("tsk_"), "{said}{complained}");
    // Found without a name, as the log of this user's own agent.
    let told = mayfly(&["audit", "task", said.trim()]);
    let told = String::from_utf8(told.stdout).unwrap();
    for word in ["allowed: read on demo", "https://demo.mayfly.internal", "ends: "] {
        assert!(told.contains(word), "{told}");
    }
    let refused = mayfly(&["run", "--socket", &socket, "--task", "unheard-of", "--", "true"]);
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("policy_denied"), "{refused}");
    let evaluation = refused.split(['(', ')']).find(|word| word.starts_with("evl_")).expect("names it");
    let found = mayfly(&["audit", "query", "--evaluation", evaluation]);
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("unknown_template") && found.lines().count() == 1, "{found}");
}

#[test]
fn the_self_test_says_what_held_and_what_no_agent_can_hold() {
    let mayfly = env!("CARGO_BIN_EXE_mayfly");
    let home = tempfile::tempdir().unwrap();
    let runtime = home.path().join("agent");
    let (_agent, socket) = developing(&runtime);
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
    assert!(!verdicts.iter().any(|(_, verdict)| *verdict == "not_tried"), "tasks are tried, too: {report:#}");
    assert!(verdicts.iter().filter(|(kind, _)| *kind == "outlive").count() >= 2, "{report:#}");
}

/// Two people must agree where there are two. Here there is one, who must not be locked out by his own kill switch.
#[test]
fn whoever_develops_alone_thaws_everything_alone() {
    let home = tempfile::tempdir().unwrap();
    let runtime = home.path().join("mayfly");
    let (_agent, socket) = developing(&runtime);
    let mayfly = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        command.args(arguments).env("XDG_RUNTIME_DIR", home.path());
        let ran =
            command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display())).output().unwrap();
        (
            ran.status.code(),
            format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr)),
        )
    };
    assert_eq!(mayfly(&["freeze", "--all"]).0, Some(0));
    assert_eq!(mayfly(&["fetch", "jwt", "--audience", "a"]).0, Some(7), "nobody is given anything");
    let (code, said) = mayfly(&["thaw", "--all"]);
    assert!(code == Some(0) && said.contains("thawed: everything"), "{said}");
    assert_eq!(mayfly(&["fetch", "jwt", "--audience", "a"]).0, Some(0));
    let (code, said) = mayfly(&["thaw", "--all"]);
    assert!(code == Some(1) && said.contains("is not frozen"), "{said}");
}
