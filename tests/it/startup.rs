//! What a client command costs, in counts: the time that is meant ("under 10 ms" to its work) follows from
//! them on any machine, and no machine's load changes them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use mayfly_harness::agent::mayfly;
use mayfly_harness::{Agent, Plan};

use crate::support::own_entry;

/// System calls of one run of the command, by name.
fn calls(agent: &Agent, arguments: &[&str]) -> BTreeMap<String, usize> {
    let log = agent.dir().join("strace");
    let status = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&log)
        .arg(mayfly())
        .args(arguments)
        // Set by the test runner, and searched by the dynamic linker.
        .env_remove("LD_LIBRARY_PATH")
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()))
        .env("MAYFLY_ADMIN_SOCKET", format!("unix://{}", agent.admin_socket().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("strace is installed");
    assert!(status.success(), "{arguments:?}: {status}");
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        // `1234 openat(AT_FDCWD, …`; what was interrupted goes on under `<... resumed>`.
        let call = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once('('));
        if let Some((name, _)) =
            call.filter(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || c == '_'))
        {
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

#[test]
fn client_commands_start_no_thread_and_make_few_system_calls() {
    // One that strace follows is one that is traced.
    let entry = own_entry("/w").with("allow_traced = true");
    let agent = Plan::with_entries(&[entry]).start();
    for arguments in [
        &["--help"][..],
        &["whoami"],
        &["fetch", "x509"],
        &["fetch", "jwt", "--audience", "a"],
        &["lease", "list"],
        &["status"],
        &["healthcheck"],
    ] {
        let calls = calls(&agent, arguments);
        let of = |names: &[&str]| names.iter().map(|name| calls.get(*name).unwrap_or(&0)).sum::<usize>();
        assert_eq!(of(&["clone", "clone3", "fork", "vfork"]), 0, "{arguments:?} starts a thread: {calls:?}");
        // Three libraries, their index, and what the C library reads of itself.
        assert!(of(&["open", "openat", "openat2"]) <= 6, "{arguments:?} opens files: {calls:?}");
        let all: usize = calls.values().sum();
        assert!(all <= 300, "{arguments:?}: {all} system calls: {calls:?}");
        assert_eq!(of(&["nanosleep", "clock_nanosleep"]), 0, "{arguments:?} sleeps: {calls:?}");
    }
}
