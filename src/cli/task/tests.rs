//! The commands against a stand-in that serves tasks.

use mayfly_proto::task::{Task, TaskState, TaskSummary};
use tonic::Status;

use super::super::testing::agent::Agent;
use super::super::testing::{Ran, Screen};
use super::testing::task;
use super::*;

fn agent() -> Agent {
    let agent = Agent::start();
    drop(agent.script.tasks.send_replace(Ok(vec![task("a", ""), task("b", "a")])));
    let (task_id, reason) = ("a".to_owned(), "admin".to_owned());
    let summary = TaskSummary { task_id, reason, tasks: 2, credentials: 4, micros: 1_500, used: None };
    *agent.script.summary.lock().expect("lock") = Ok(summary);
    agent
}

#[tokio::test]
async fn a_list_names_every_task_and_no_agent_draws_on_the_screen() {
    let agent = agent();
    let ran = agent.run(&["task", "list"]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    assert!(ran.out.contains("  b ") && !ran.out.contains('\u{1b}'), "{}", ran.out);
    let json = agent.run(&["task", "list", "--ended", "--output", "json"]).await.json();
    assert_eq!((&json["tasks"][1]["parent"], &json["tasks"][0]["state"]), (&"a".into(), &"active".into()));
    assert!(agent.requests().last().is_some_and(|asked| asked.contains("include_ended: true")));
}

#[tokio::test]
async fn a_tree_shows_children_below_their_parents() {
    let agent = agent();
    let ran = agent.run(&["task", "tree", "a"]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    let begins: Vec<_> = ran.out.lines().map(|line| line.split("  spiffe").next().unwrap_or("")).collect();
    assert_eq!(begins, ["a", "└─ b"]);
    assert!(agent.requests().last().is_some_and(|asked| asked.contains("task_id: \"a\"")));
    drop(agent.script.tasks.send_replace(Ok(Vec::new())));
    let ran = agent.run(&["task", "tree"]).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, ""));
    assert!(ran.err.contains("no tasks"));
}

/// Follows until the stand-in ends the stream.
async fn followed(agent: &Agent, json: bool, is_terminal: bool) -> String {
    let screen = Screen::default();
    let mut context = screen.context(super::super::client::Env { is_terminal, ..agent.env() });
    let args =
        List { client: ClientArgs::default(), output: OutputArgs::default(), agent: None, ended: false };
    let stream = ask(&args, String::new(), true, &context).await.expect("stream");
    let following = follow(stream, json, &mut context);
    let change = async {
        while screen.out().lines().count() < if is_terminal { 3 } else { 2 } {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let over = Task { state: TaskState::Ended.into(), reason: "process_exit".into(), ..task("b", "a") };
        drop(agent.script.tasks.send_replace(Ok(vec![over])));
        while !screen.out().contains("process_exit") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(agent.script.tasks.send_replace(Err(Status::unavailable("stopping"))));
    };
    let (ended, ()) = tokio::join!(following, change);
    assert_eq!(ended.expect_err("the agent stops").exit, Exit::Unreachable);
    screen.out()
}

#[tokio::test]
async fn a_live_tree_is_shown_again_at_each_change_and_keeps_what_ended_before_our_eyes() {
    let shown = followed(&agent(), false, true).await;
    assert!(shown.starts_with("\u{1b}[H\u{1b}[2J2 live tasks:\na  "), "{shown}");
    let again = shown.split("1 live task:\n").nth(1).expect("a second picture");
    assert!(again.contains("└─ b") && again.contains("ended (process_exit)"), "{shown}");
}

#[tokio::test]
async fn without_a_terminal_each_change_is_a_line() {
    let shown = followed(&agent(), false, false).await;
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[0].starts_with("a  spiffe") && lines[2].contains("ended (process_exit)"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "no terminal, no cursor: {shown}");
}

#[tokio::test]
async fn a_live_tree_in_json_is_one_change_a_line() {
    let shown = followed(&agent(), true, false).await;
    let states: Vec<String> = shown
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("json")["state"].to_string())
        .collect();
    assert_eq!(states, ["\"active\"", "\"active\"", "\"ended\""]);
}

#[tokio::test]
async fn a_page_says_what_a_task_may_do_and_whose_words_its_purpose_is() {
    let agent = agent();
    let ran = agent.run(&["task", "show", "b"]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    let expected = [
        "may         read on https://wiki.example.org/api, only space:DOCS",
        "may not     everything else",
        "this process alone, not isolated",
        "(the agent's own words)",
    ];
    for part in expected {
        assert!(ran.out.contains(part), "{part} is not in\n{}", ran.out);
    }
    let none = agent.run(&["task", "show", "nobody"]).await;
    assert_eq!(none.exit, Exit::Failed);
    assert!(none.err.contains("no such task"), "{}", none.err);
}

async fn own(agent: &Agent, args: &[&str]) -> Ran {
    let env = super::super::client::Env { task: Some("b".into()), ..agent.env() };
    super::super::testing::run(env, args).await
}

#[tokio::test]
async fn a_process_finds_its_own_task_by_its_environment() {
    let agent = agent();
    let ran = own(&agent, &["task", "show", "--own", "--output", "json"]).await;
    assert_eq!(ran.json()["id"], "b");
    let ran = own(&agent, &["task", "end", "--own", "--failed", "--reason", "no such page"]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    assert_eq!(ran.out, "2 tasks ended (admin), 4 credentials refused, in 1.500 ms\n");
    let asked = agent.requests().last().cloned().unwrap_or_default();
    assert!(asked.contains("task_id: \"b\"") && asked.contains("reason: \"failed\""), "{asked}");
    let lost = agent.run(&["task", "show", "--own"]).await;
    assert_eq!(lost.exit, Exit::Usage);
}

#[tokio::test]
async fn an_operator_ends_a_task_and_says_why() {
    let agent = agent();
    assert_eq!(agent.run(&["task", "end", "a"]).await.exit, Exit::Usage, "without a reason");
    let ran = agent.run(&["task", "end", "a", "--reason", "ticket 17", "--output", "json"]).await;
    assert_eq!(ran.json()["credentials"], 4);
    assert!(agent.requests().last().is_some_and(|asked| asked.contains("RevokeTaskRequest")));
}
