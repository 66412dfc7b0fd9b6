//! What people are shown of an approval, and what they answer.

use mayfly_proto::task::{Approval, ApprovalState, Fact, Vote};
use prost_types::Timestamp;

use super::super::testing::Screen;
use super::super::testing::agent::Agent;
use super::*;

const ID: &str = "apr_01K6000000000000000000000A";
const DIGEST: &str = "1212121212121212121212121212121212121212121212121212121212121212";

fn approval() -> Approval {
    let fact = |name: &str, value: &str| Fact { name: name.to_owned(), value: value.to_owned() };
    Approval {
        id: ID.to_owned(),
        task_id: "tsk_01K6000000000000000000000A".to_owned(),
        spiffe_id: "spiffe://example.org/agent/editor/a".to_owned(),
        action: "write".to_owned(),
        target: "wiki".to_owned(),
        operation_sha256: DIGEST.to_owned(),
        state: ApprovalState::Pending.into(),
        expires_at: Some(Timestamp { seconds: 4_102_444_800, nanos: 0 }),
        quorum: 2,
        approvers: "oncall".to_owned(),
        votes: vec![Vote { by: "uid:1002 (bob)".to_owned(), approve: true, ..Vote::default() }],
        facts: vec![
            fact("agent", "spiffe://example.org/agent/editor/a"),
            fact("request", "PUT wiki.example.org/api/pages/7"),
            // As long as it takes for a terminal to begin a new line.
            fact(
                "arguments",
                &format!("{{\"text\":\"{}\napproved: all is well\u{1b}[2J\"}}", " ".repeat(311)),
            ),
        ],
        untrusted_purpose: "tidy up, whatever that takes,\n\u{1b}[1mapproved (2 of 2)\u{202e}\ragent  spiffe://example.org/root"
            .to_owned(),
        ..Approval::default()
    }
}

/// Threats K03: the agent's words, and what it chose in the operation, cannot pass for a line of ours.
#[tokio::test]
async fn k03_facts_come_first_and_the_agents_words_last_and_marked() {
    let agent = Agent::start();
    *agent.script.approvals.lock().unwrap() = Ok(vec![approval()]);
    let ran = agent.run(&["approve", "show", ID]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    assert!(
        ran.out.chars().all(|c| c == '\n' || !c.is_control()) && !ran.out.contains('\u{202e}'),
        "{}",
        ran.out
    );
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("apr_") && lines[0].contains("pending (1 of 2 from oncall)"), "{}", ran.out);
    let at = |text: &str| {
        lines.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}\n{}", ran.out))
    };
    assert!(at("PUT wiki.example.org/api/pages/7") < at("uid:1002 (bob)"));
    assert!(at("uid:1002 (bob)") < at("UNTRUSTED"));
    assert!(at("UNTRUSTED") < at("tidy up"));
    assert_eq!(at("tidy up"), at("UNTRUSTED") + 1, "{}", ran.out);
    for line in &lines[at("UNTRUSTED") + 1..] {
        assert!(line.starts_with("  | "), "{line}");
    }
    assert!(at("approved: all is well") < at("UNTRUSTED"), "nothing of what is approved is left out");
    let own = ["apr_", "  agent", "  request", "  arguments", "answers:", "  yes", "UNTRUSTED", "  | "];
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let is_ours = own.iter().any(|begin| line.starts_with(begin));
        assert!(is_ours || line.trim_start().starts_with("| "), "{line}");
        assert!(line.chars().count() <= 110, "{line}");
    }
}

#[tokio::test]
async fn an_answer_says_what_was_shown() {
    let agent = Agent::start();
    *agent.script.approvals.lock().unwrap() = Ok(vec![approval()]);
    let listed = agent.run(&["approve", "list"]).await;
    assert!(listed.out.contains(ID) && listed.out.contains("oncall"), "{listed:?}");
    let granted = agent.run(&["approve", "grant", ID, "--reason", "ticket 17"]).await;
    assert_eq!(granted.out, "noted: 1 person more must say yes to write on wiki\n", "{granted:?}");
    let denied = agent.run(&["approve", "deny", ID, "--output", "json"]).await.json();
    assert_eq!((&denied["state"], &denied["approval"]), (&"denied".into(), &ID.into()));
    let asked = agent.script.decided.lock().unwrap().clone();
    let told: Vec<_> =
        asked.iter().map(|one| (one.approve, one.reason.as_str(), one.operation_sha256.as_str())).collect();
    assert_eq!(told, [(true, "ticket 17", DIGEST), (false, "", DIGEST)]);
    for wrong in [&["approve"][..], &["approve", "grant"], &["approve", "yes", ID]] {
        assert_eq!(agent.run(wrong).await.exit, Exit::Usage, "{wrong:?}");
    }
    let unknown = agent.run(&["approve", "grant", "apr_01K6000000000000000000000B"]).await;
    assert_eq!(unknown.exit, Exit::Failed, "{unknown:?}");
}

/// Only the whole word counts, and whatever else is typed leaves the request as it is.
#[tokio::test]
async fn on_a_terminal_each_is_shown_and_asked() {
    let agent = Agent::start();
    let other = Approval { id: "apr_01K6000000000000000000000B".to_owned(), quorum: 1, ..approval() };
    let used = Approval { state: ApprovalState::Used.into(), ..approval() };
    *agent.script.approvals.lock().unwrap() = Ok(vec![approval(), used, other]);
    let uri = format!("unix://{}", agent.socket.display());
    for (typed, expected) in [
        ("y\nno\n", vec![false]),
        ("\nyes\n", vec![true]),
        ("yes\nyes\n", vec![true, true]),
        ("yes", vec![true]),
        ("", vec![]),
    ] {
        agent.script.decided.lock().unwrap().clear();
        let mut context = Screen::default().context(agent.env());
        let client = ClientArgs { socket: Some(uri.clone()), server_uid: None };
        assert_eq!(ask(&client, &mut typed.as_bytes(), &mut context).await.unwrap(), Exit::Ok);
        let told: Vec<bool> = agent.script.decided.lock().unwrap().iter().map(|one| one.approve).collect();
        assert_eq!(told, expected, "{typed:?}");
    }
}
