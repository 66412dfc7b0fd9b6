//! A starter set as it is delivered, on tasks with and without a cgroup of their own.

use std::path::Path;

use mayfly_harness::{Entry, Plan, files, require_root};
use serde_json::Value;

/// C08: whoever shares a cgroup could act for the agent, so that a task there may change nothing, asked people or not.
#[test]
fn c08_a_task_without_a_cgroup_of_its_own_may_read_and_not_write() {
    require_root();
    let mut agent = Plan::with_entries(&[Entry::new("/agent/editor/a", &["unix:uid:0"])]).prepare();
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policy/writes-need-a-human");
    let dir = agent.policy_dir();
    std::fs::create_dir(&dir).unwrap();
    for file in std::fs::read_dir(set).unwrap() {
        let file = file.unwrap();
        files::replace(&dir.join(file.file_name()), &std::fs::read(file.path()).unwrap(), 0o644);
    }
    agent.plan().settings += &format!("\n[policy]\ndir = {dir:?}\n");
    agent.write_config();
    agent.launch();
    for (flags, is_isolated, actions) in
        [(&[][..], true, &["read", "write", "delete"][..]), (&["--no-cgroup"][..], false, &["read"][..])]
    {
        let say = ["--task", "edit", "--", "sh", "-c", "echo $MAYFLY_TASK"];
        let (code, out, err) = agent.mayfly(&[&["run"][..], flags, &say].concat());
        assert_eq!(code, Some(0), "{flags:?}: {err}");
        let (_, shown, err) = agent.mayfly(&["task", "show", out.trim(), "--output", "json"]);
        let shown: Value = serde_json::from_str(&shown).expect(&err);
        assert_eq!(shown["isolated"], is_isolated, "{flags:?}: {shown}");
        assert_eq!(shown["details"][0]["actions"], serde_json::json!(actions), "{flags:?}: {shown}");
    }
}
