//! `mayfly run --task`: a program that knows nothing of tasks works in one, with token files that are kept for it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

pub(crate) use mayfly_harness::policies::WIKI;
use mayfly_harness::{Agent, Plan, Policies, until};
use mayfly_proto::task as proto;
use serde_json::Value;

use crate::http::local;
use crate::support::{client, own_uid};

const TEMPLATES: &str = r#"
[[templates]]
name = "look-up"
description = "Reads one space"
owner = "docs"
[templates.ceilings]
credential_ttl = "300s"
[[templates.params]]
name = "space"
type = "name"
[[templates.details]]
target = "wiki"
actions = ["read"]
identifier = "space:{space}"

[[templates]]
name = "restless"
description = "Reads for moments"
owner = "docs"
[templates.ceilings]
credential_ttl = "2s"
[[templates.details]]
target = "wiki"
actions = ["read"]
"#;

pub(crate) fn agent() -> Agent {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    Policies::open().permit("read").target("wiki", &[]).more(TEMPLATES).install(&mut agent);
    agent.launch();
    agent
}

fn command(agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = Command::new(agent.binary());
    command.arg("run").args(arguments);
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()));
    command
}

fn run(agent: &Agent, arguments: &[&str]) -> Output {
    command(agent, arguments).stdin(Stdio::null()).output().unwrap()
}

/// A shell that says `SAYS`, and then does what it is told line by line.
struct Program {
    child: Child,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Program {
    fn start(agent: &Agent, arguments: &[&str]) -> Self {
        let script =
            "echo $$; echo $MAYFLY_TASK; echo $WIKI_FILE; while read -r line; do eval \"$line\"; done";
        let arguments: Vec<&str> = [arguments, &["--", "sh", "-c", script]].concat();
        let mut command = command(agent, &arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        Self { child, lines: Box::new(lines) }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the program ended")
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn introspect(agent: &Agent, token: &str) -> Value {
    local(agent, "/introspect", &["--data-urlencode", &format!("token={token}")]).json()
}

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap())
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_program_finds_its_task_and_its_token_and_both_end_with_it() {
    let agent = agent();
    let token = format!("WIKI_FILE={WIKI}");
    let arguments =
        ["--task", "look-up", "--purpose", "find page 7", "--param", "space=DOCS", "--token", &token];
    let mut program = Program::start(&agent, &arguments);
    let pid = program.line();
    let task = program.line();
    let file = PathBuf::from(program.line());
    let token = std::fs::read_to_string(&file).unwrap();
    let said = claims(&token);
    assert_eq!(said["aud"], WIKI);
    assert_eq!(said["urn:mayfly:task"]["id"], task.as_str());
    assert_eq!(said["authorization_details"][0]["identifier"], "space:DOCS");
    assert_eq!(introspect(&agent, &token)["active"], true);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o400, 0o700));
    agent.audited(&["task.begin", "find page 7", &task, &format!("\"pid\":{pid}")]);
    program.tell("exit 7");
    assert_eq!(program.child.wait().unwrap().code(), Some(7));
    assert!(!file.parent().unwrap().exists(), "nothing is left of it");
    until("the token is refused", || (introspect(&agent, &token)["active"] == false).then_some(()));
    agent.audited(&["task.ended", "\"reason\":\"process_exit\"", &task]);
}

/// Old or new, and never without: the file is read as fast as can be while it is written again and again.
#[test]
fn a_token_file_is_renewed_before_it_expires() {
    let agent = agent();
    let token = format!("WIKI_FILE={WIKI}");
    let mut program = Program::start(&agent, &["--task", "restless", "--token", &token]);
    let (_, _, file) = (program.line(), program.line(), PathBuf::from(program.line()));
    let mut seen = std::collections::BTreeSet::new();
    until("the third token", || {
        let token = std::fs::read_to_string(&file).unwrap();
        assert_eq!(token.split('.').count(), 3, "{token:?}");
        seen.insert(claims(&token)["jti"].as_str().unwrap().to_owned());
        (seen.len() == 3).then_some(())
    });
    assert_eq!(introspect(&agent, &std::fs::read_to_string(&file).unwrap())["active"], true);
}

/// A freeze takes nothing away that was given, and it goes on one day.
#[test]
fn a_freeze_holds_renewals_up_and_a_thaw_lets_them_go_on() {
    let agent = agent();
    let token = format!("WIKI_FILE={WIKI}");
    let mut program = Program::start(&agent, &["--task", "restless", "--token", &token]);
    let (_, task, file) = (program.line(), program.line(), PathBuf::from(program.line()));
    let run = |arguments: &[&str]| assert_eq!(agent.mayfly(arguments).0, Some(0), "{arguments:?}");
    run(&["freeze", "--task", &task]);
    until("the token has expired, and its file is gone", || (!file.exists()).then_some(()));
    run(&["thaw", "--task", &task]);
    until("a new token", || std::fs::read_to_string(&file).ok());
}

/// An agent that was restarted knows the task no more. Neither does `mayfly run` then, though nobody is left to tell it.
#[test]
fn after_a_restart_of_the_agent_the_files_go() {
    let mut agent = agent();
    let token = format!("WIKI_FILE={WIKI}");
    let mut program = Program::start(&agent, &["--task", "restless", "--token", &token]);
    let (_, _, file) = (program.line(), program.line(), PathBuf::from(program.line()));
    agent.crash_and_restart();
    until("the file is gone", || (!file.exists()).then_some(()));
    program.tell("echo still here");
    assert_eq!(program.line(), "still here");
}

/// The program may go on; what it was given may not.
#[test]
fn when_an_operator_ends_the_task_its_files_go_and_the_program_stays() {
    let agent = agent();
    let token = format!("WIKI_FILE={WIKI}");
    let mut program = Program::start(&agent, &["--task", "restless", "--token", &token]);
    let (_, task, file) = (program.line(), program.line(), PathBuf::from(program.line()));
    assert!(file.exists());
    let (code, _, err) = agent.mayfly(&["task", "end", &task, "--reason", "ticket 17"]);
    assert_eq!(code, Some(0), "{err}");
    until("the file is gone", || (!file.exists()).then_some(()));
    program.tell("echo still here");
    assert_eq!(program.line(), "still here");
}

#[test]
fn a_jwt_svid_is_kept_for_services_that_federate() {
    let agent = agent();
    let token = format!("WIKI_FILE={WIKI}");
    let mut program = Program::start(&agent, &["--task", "restless", "--jwt-svid", &token]);
    let (_, task, file) = (program.line(), program.line(), program.line());
    let said = claims(&std::fs::read_to_string(file).unwrap());
    assert_eq!((&said["mayfly_task"], &said["aud"]), (&Value::from(task), &serde_json::json!([WIKI])));
}

#[test]
fn a_program_whose_task_is_refused_does_not_run() {
    let agent = agent();
    let marker = agent.dir().join("it-ran");
    let touch = marker.to_str().unwrap();
    let token = format!("A_FILE={WIKI}");
    for (arguments, says) in [
        (vec!["--task", "no-such-template"], "cannot begin the task"),
        (vec!["--task", "look-up"], "cannot begin the task"),
        (vec!["--task", "restless", "--token", "A_FILE=https://else.example.org"], "policy does not allow"),
        (vec!["--join", "dlg_01K6E4ZQ7M0000000000000000", "--token", &token], "cannot begin the task"),
    ] {
        let output = run(&agent, &[&arguments[..], &["--", "touch", touch]].concat());
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
        assert!(!marker.exists());
    }
    for wrong in [
        vec!["--token", &token],
        vec!["--task", "restless", "--token", "a=b"],
        vec!["--task", "restless", "--token", &token, "--jwt-svid", &token],
        vec!["--purpose", "x"],
    ] {
        assert_eq!(
            run(&agent, &[&wrong[..], &["--", "touch", touch]].concat()).status.code(),
            Some(2),
            "{wrong:?}"
        );
    }
    assert!(!marker.exists());
}

/// K01: another process of the same user, with the same identity, is neither the program nor its keeper.
#[test]
fn k01_only_its_keeper_acts_in_the_stead_of_a_program() {
    let agent = agent();
    let token = format!("WIKI_FILE={WIKI}");
    let mut program = Program::start(&agent, &["--task", "restless", "--token", &token]);
    let (_, task, file) = (program.line(), program.line(), PathBuf::from(program.line()));
    let mut other = client(&agent);
    let issue = proto::IssueRequest {
        task_id: task.clone(),
        format: proto::Format::AccessToken.into(),
        audience: vec![WIKI.to_owned()],
        ..Default::default()
    };
    let refused = other.task_call::<proto::Credential>("Issue", &issue).unwrap_err();
    assert_eq!(refused.reason, "not_in_task");
    let get = proto::GetTaskRequest { task_id: task.clone() };
    assert_eq!(other.task_call::<proto::Task>("Get", &get).unwrap_err().reason, "not_in_task");
    let end = proto::EndRequest { task_id: task, ..Default::default() };
    assert_eq!(other.task_call::<proto::TaskSummary>("End", &end).unwrap_err().reason, "not_in_task");
    assert_eq!(introspect(&agent, &std::fs::read_to_string(&file).unwrap())["active"], true);
}
