//! What an agent wants to do is on record by one name, wherever it is told of: the target's, and that of the operation,
//! without what it carries; and what it says at its end is there as its own words.

use mayfly_harness::policies::{WIKI, WRITES_NEED_A_PERSON};
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Holder, Plan, Policies, TaskRefusal};
use mayfly_proto::task as proto;
use proto::operation::Kind;
use serde_json::{Value, json};

use crate::support::{client, own_uid};

const TOOLS: &str = "https://tools.example.org";

/// What a task may have, and is never given a credential for.
const ADMIN_IN_NAME: &str = r#"
@id("admin-in-name") permit(principal, action == Mayfly::Action::"admin", resource) when { context.phase == "begin" };
"#;

/// Nobody needs to know it who reads the record.
const CANARY: &str = "canary-4711";

/// Writes to the wiki need a person; of what is executed with tools, and deleted in the wiki, the record must say more.
fn world() -> Agent {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let logged = |id: &str, action: &str| {
        format!(
            "@id({id:?}) @log(\"body-hash\")\npermit(principal, action == Mayfly::Action::{action:?}, resource);"
        )
    };
    Policies::open()
        .permit("read")
        .permit("write")
        .rule(WRITES_NEED_A_PERSON)
        .rule(ADMIN_IN_NAME)
        .rule(&logged("runs", "execute"))
        .rule(&logged("deletes", "delete"))
        .target("wiki", &[])
        .target("tools", &[("kind", "mcp")])
        .more("[targets.actions]\nread = [\"search\"]\nexecute = [\"run\"]")
        .target("crm", &[("kind", "sql")])
        .install(&mut agent);
    agent.launch();
    agent
}

fn begin(holder: &mut Holder) -> proto::Task {
    let details = [WIKI, TOOLS, "https://crm.example.org"]
        .map(|place| detail(place, &["read", "write", "delete", "execute", "admin"]));
    let request = proto::BeginRequest { details: details.to_vec(), ..Default::default() };
    holder.task_call("Begin", &request).unwrap()
}

fn http(method: &str, path: &str, bytes: u64, digest: &[u8]) -> Kind {
    let (method, path, body_sha256) = (method.to_owned(), path.to_owned(), digest.to_vec().into());
    Kind::Http(proto::HttpCall { method, host: "wiki.example.org".to_owned(), path, bytes, body_sha256 })
}

fn tool(name: &str, arguments: &str) -> Kind {
    let (server, tool, arguments) = ("kb".to_owned(), name.to_owned(), arguments.to_owned());
    Kind::Mcp(proto::McpCall { server, tool, arguments })
}

fn issue(
    holder: &mut Holder,
    task: &proto::Task,
    (audience, action): (&str, &str),
    operation: Option<Kind>,
) -> Result<proto::Credential, TaskRefusal> {
    let request = proto::IssueRequest {
        task_id: task.id.clone(),
        format: proto::Format::AccessToken.into(),
        audience: vec![audience.to_owned()],
        details: vec![detail(audience, &[action])],
        operation: operation.map(|kind| proto::Operation { kind: Some(kind) }),
        ..Default::default()
    };
    holder.task_call("Issue", &request)
}

fn authorize(
    holder: &mut Holder,
    task: &proto::Task,
    (target, action): (&str, &str),
    operation: Option<Kind>,
    ask: bool,
) -> Result<proto::Decision, TaskRefusal> {
    let request = proto::AuthorizeRequest {
        task_id: task.id.clone(),
        action: action.to_owned(),
        target: target.to_owned(),
        operation: operation.map(|kind| proto::Operation { kind: Some(kind) }),
        request_approval: ask,
        ..Default::default()
    };
    holder.task_call("Authorize", &request)
}

fn printed(agent: &Agent, arguments: &[&str]) -> String {
    let (code, out, err) = agent.mayfly(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}

fn log(agent: &Agent) -> String {
    agent.audit_path().display().to_string()
}

/// Whoever asks what was denied of a target finds it by the word by which he finds what was allowed.
#[test]
fn denials_are_filed_under_the_name_of_the_target_as_what_is_allowed_is() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    issue(&mut holder, &task, (WIKI, "read"), None).unwrap();
    // By policy, by the task, and by an answer alone; each time by the audience.
    assert_eq!(issue(&mut holder, &task, (WIKI, "admin"), None).unwrap_err().reason, "policy_denied");
    let narrow = proto::BeginRequest { details: vec![detail(WIKI, &["read"])], ..Default::default() };
    let narrow: proto::Task = holder.task_call("Begin", &narrow).unwrap();
    assert_eq!(issue(&mut holder, &narrow, (WIKI, "write"), None).unwrap_err().reason, "not_granted");
    assert!(!authorize(&mut holder, &task, (WIKI, "admin"), None, false).unwrap().allow);
    for (task, reason) in [(&task, "no_permit"), (&narrow, "not_granted")] {
        agent.audited(&["decision.deny", &format!("\"reason\":{reason:?}"), "\"target\":\"wiki\"", &task.id]);
    }
    let of_target = |name: &str| {
        let arguments = [
            "audit",
            "query",
            "--target",
            name,
            "--action",
            "admin",
            "--result",
            "deny",
            "--output",
            "json",
            &log(&agent),
        ];
        printed(&agent, &arguments).lines().count()
    };
    assert_eq!((of_target("wiki"), of_target(WIKI)), (2, 0));
    // Where there is no such target, what was said is all there is.
    let nowhere = "https://nowhere.example.org";
    assert_eq!(issue(&mut holder, &task, (nowhere, "read"), None).unwrap_err().reason, "policy_denied");
    agent.audited(&["decision.deny", "unknown_target", &format!("\"target\":{nowhere:?}")]);
}

#[test]
fn what_was_decided_approved_and_issued_says_which_operation_it_was_and_not_what_it_carries() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let page = json!({"proto": "http", "method": "PUT", "host": "wiki.example.org", "path": "/api/pages/7"});
    let put = || http("PUT", "/api/pages/7", 3, &[7; 32]);
    let asked = authorize(&mut holder, &task, (WIKI, "write"), Some(put()), true).unwrap();
    let id = asked.access_request.unwrap().approval_id;
    for event in ["decision.requestable", "approval.requested"] {
        assert_eq!(agent.audited(&[event, &task.id])["request"], page, "{event}");
    }
    let get = json!({"proto": "http", "method": "GET", "host": "wiki.example.org", "path": "/api/pages/8"});
    issue(&mut holder, &task, (WIKI, "read"), Some(http("GET", "/api/pages/8", 0, &[]))).unwrap();
    for event in ["decision.allow", "credential.issue"] {
        assert_eq!(agent.audited(&[event, "/api/pages/8"])["request"], get, "{event}");
    }
    let search = json!({"proto": "mcp", "server": "kb", "tool": "search"});
    let arguments = format!("{{\"secret\":\"{CANARY}\"}}");
    issue(&mut holder, &task, (TOOLS, "read"), Some(tool("search", &arguments))).unwrap();
    assert_eq!(agent.audited(&["decision.allow", "\"mcp\""])["request"], search);
    let sql = proto::SqlCall {
        db: "sales".to_owned(),
        role: "reader".to_owned(),
        statement_sha256: vec![9; 32].into(),
    };
    authorize(&mut holder, &task, ("crm", "read"), Some(Kind::Sql(sql)), false).unwrap();
    let line = agent.audited(&["decision.allow", "\"sql\""]);
    assert_eq!(line["request"], json!({"proto": "sql", "db": "sales", "role": "reader"}));
    // A refusal by the task itself, too.
    let delete = tool("purge\u{2028}", "");
    assert!(issue(&mut holder, &task, (TOOLS, "read"), Some(delete)).is_err(), "no plain name");
    assert_eq!(
        issue(&mut holder, &task, (TOOLS, "read"), Some(tool("purge", ""))).unwrap_err().reason,
        "not_granted"
    );
    assert_eq!(agent.audited(&["decision.deny", "not_granted"])["request"]["tool"], "purge");
    // For people, in the timeline and before they decide.
    let timeline = printed(&agent, &["audit", "task", &task.id, &log(&agent)]);
    for words in [
        "write on wiki: PUT wiki.example.org/api/pages/7",
        "read on wiki: GET wiki.example.org/api/pages/8",
        "read on tools: tool search of kb",
        "read on crm: a statement in sales as reader",
    ] {
        assert!(timeline.contains(words), "{words}: {timeline}");
    }
    assert!(printed(&agent, &["approve", "show", &id]).contains("PUT wiki.example.org/api/pages/7"));
    let all = std::fs::read_to_string(log(&agent)).unwrap();
    assert!(!all.contains(CANARY) && !timeline.contains(CANARY), "arguments are nobody's business");
    assert!(!all.contains("body_sha256"), "no policy asked for it");
}

fn on_record(agent: &Agent, words: &[&str]) -> Value {
    let line = agent.audited(words);
    assert!(line["decision"]["obligations"].to_string().contains("log=body-hash"), "{line}");
    line["request"]["body_sha256"].clone()
}

#[test]
fn a_permit_that_wants_what_is_carried_on_record_gives_nothing_without() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let run = (TOOLS, "execute");
    for unsaid in [None, Some(tool("run", ""))] {
        let refused = issue(&mut holder, &task, run, unsaid.clone()).unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (9, "body_hash_required"), "{refused:?}");
        assert!(refused.message.contains("`mcp.arguments`"), "{refused:?}");
        let decision = authorize(&mut holder, &task, ("tools", "execute"), unsaid, true).unwrap();
        assert_eq!((decision.allow, decision.reason.as_str()), (false, "body_hash_required"));
        assert!(decision.access_request.is_none());
    }
    assert!(on_record(&agent, &["decision.deny", "body_hash_required", "\"runs\""]).is_null());
    issue(&mut holder, &task, run, Some(tool("run", "{\"b\": 1, \"a\": true}"))).unwrap();
    // Of `{"a":true,"b":1}`.
    let canonical = "a3f44886ecd0b8667b0c6a4652d41e1f9e8205fb8d35d299fd20577f5268adb6";
    assert_eq!(on_record(&agent, &["decision.allow", "\"execute\""]), canonical);
    // A body, if there may be one; a request of a kind that has none need not say so.
    for (bytes, digest, given) in [(3, &[][..], false), (3, &[7; 32], true), (0, &[], true)] {
        let answer =
            issue(&mut holder, &task, (WIKI, "delete"), Some(http("DELETE", "/api/a", bytes, digest)));
        assert_eq!(answer.is_ok(), given, "{bytes} {digest:?}: {answer:?}");
    }
    on_record(&agent, &["decision.allow", "\"delete\"", &"07".repeat(32)]);
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    on_record(&agent, &["decision.allow", "\"delete\"", empty]);
    // What needs no such thing is given beside what does: without details, all that can be had.
    let all = proto::IssueRequest {
        task_id: task.id.clone(),
        format: proto::Format::AccessToken.into(),
        audience: vec![TOOLS.to_owned()],
        ..Default::default()
    };
    let credential: proto::Credential = holder.task_call("Issue", &all).unwrap();
    let actions: Vec<&str> =
        credential.details.iter().flat_map(|one| &one.actions).map(String::as_str).collect();
    assert!(actions.contains(&"read") && !actions.contains(&"execute"), "{actions:?}");
}

fn ended(holder: &mut Holder, task: &proto::Task, note: &str) {
    let request = proto::EndRequest { task_id: task.id.clone(), note: note.to_owned(), ..Default::default() };
    holder.task_call::<proto::TaskSummary>("End", &request).unwrap();
}

#[test]
fn what_is_said_at_the_end_is_on_record_by_whose_words_it_is() {
    let agent = world();
    let mut holder = client(&agent);
    let [own, silent, ordered] = [(); 3].map(|()| begin(&mut holder));
    let note = format!("incident 4711 \u{1b}[2J\n\u{202e}approved by ann {}", "x".repeat(2_000));
    ended(&mut holder, &own, &note);
    let line = agent.audited(&["task.ended", &own.id]);
    let said = line["revocation"]["untrusted_note"].as_str().unwrap();
    assert!(said.starts_with("incident 4711 \u{1b}[2J\n") && said.chars().count() == 256, "{said}");
    let raw = std::fs::read_to_string(log(&agent)).unwrap();
    assert!(!raw.contains(['\u{1b}', '\u{202e}']), "nothing of it stands for itself");
    ended(&mut holder, &silent, "");
    let line = agent.audited(&["task.ended", &silent.id]);
    assert!(line["revocation"].get("untrusted_note").is_none(), "{line}");
    printed(&agent, &["task", "end", &ordered.id, "--reason", "ticket 17"]);
    let line = agent.audited(&["task.ended", &ordered.id]);
    let (note, none) = (&line["revocation"]["operator_note"], line["revocation"].get("untrusted_note"));
    assert_eq!((note, none), (&json!("ticket 17"), None), "{line}");
    let timeline = |id: &str| printed(&agent, &["audit", "task", id, &log(&agent)]);
    let shown = timeline(&own.id);
    assert!(shown.contains("the agent says \"incident 4711 ") && !shown.contains('\u{1b}'), "{shown}");
    assert!(timeline(&ordered.id).contains("the operator says \"ticket 17\""), "{}", timeline(&ordered.id));
}
