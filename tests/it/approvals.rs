//! People in the loop, as far as one user can play: what is asked of them, and that nobody decides for himself. The
//! whole way to a credential takes two users: `tests/privileged/approvals.rs`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mayfly_harness::foreign::{self, Authority, Endpoint};
use mayfly_harness::pki::claims;
use mayfly_harness::policies::{ONCALL_APPROVES, WIKI, WRITES_NEED_A_PERSON};
pub(crate) use mayfly_harness::tasks::refused as reason;
use mayfly_harness::wire::channel;
use mayfly_harness::{Agent, Holder, Plan, Policies, Refusal, until};
use mayfly_proto::task as proto;
use serde_json::{Value, json};

use crate::http::local;
use crate::support::{client, own_uid};

/// Our own user is somebody on call, and a root that asks is in no cgroup of its own: only the user tells them apart.
fn policies() -> Policies {
    Policies::open()
        .permit("read")
        .permit("write")
        .rule(WRITES_NEED_A_PERSON)
        .rule(ONCALL_APPROVES)
        .target("wiki", &[("location", "https://wiki.example.org/api")])
        .target("tools", &[("kind", "mcp")])
        .more("[targets.actions]\nwrite = [\"edit\"]")
        .person("me", own_uid(), "oncall")
}

const TOOLS: &str = "https://tools.example.org";
const API: &str = "mayfly.task.v1.TaskAPI";

fn world() -> Agent {
    told_by(|_| String::new())
}

/// With `[approvals]` as it says for the agent's directory.
pub(crate) fn told_by(settings: impl Fn(&Path) -> String) -> Agent {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    agent.plan().environment.push(("CANARY".to_owned(), "1".to_owned()));
    let table = settings(agent.dir());
    agent.plan().settings += &format!("\n{table}\n");
    policies().install(&mut agent);
    agent.launch();
    agent
}

pub(crate) fn begin(holder: &mut Holder) -> String {
    let detail = proto::AuthorizationDetail {
        r#type: "urn:mayfly:rar:target-access".to_owned(),
        locations: vec![format!("{WIKI}/api"), TOOLS.to_owned()],
        actions: vec!["read".to_owned(), "write".to_owned()],
        ..Default::default()
    };
    let purpose = "tidy up\u{1b}[2J\nAPPROVED by security".to_owned();
    let request = proto::BeginRequest { purpose, details: vec![detail], ..Default::default() };
    holder.rpc::<proto::Task>(&format!("{API}/Begin"), &request).unwrap().id
}

/// To write the page of that number.
pub(crate) fn write(task: &str, page: u32) -> proto::AuthorizeRequest {
    let http = proto::HttpCall {
        method: "PUT".to_owned(),
        host: "wiki.example.org".to_owned(),
        path: format!("/api/pages/{page}"),
        bytes: 3,
        body_sha256: vec![7; 32].into(),
    };
    proto::AuthorizeRequest {
        task_id: task.to_owned(),
        action: "write".to_owned(),
        target: WIKI.to_owned(),
        operation: Some(proto::Operation { kind: Some(proto::operation::Kind::Http(http)) }),
        request_approval: true,
        ..Default::default()
    }
}

type Answer<T> = Result<T, (Refusal, Vec<u8>)>;

fn authorize(holder: &mut Holder, request: &proto::AuthorizeRequest) -> Answer<proto::Decision> {
    holder.rpc(&format!("{API}/Authorize"), request)
}

pub(crate) fn asked(holder: &mut Holder, request: &proto::AuthorizeRequest) -> proto::AccessRequest {
    let decision = authorize(holder, request).unwrap();
    assert_eq!((decision.allow, decision.reason.as_str()), (false, "approval_required"));
    decision.access_request.unwrap()
}

#[test]
fn people_are_asked_once_for_one_thing_and_not_without_end() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let first = asked(&mut holder, &write(&task, 1));
    assert!(first.approval_id.starts_with("apr_") && first.approvers == "oncall", "{first:?}");
    assert_eq!(asked(&mut holder, &write(&task, 1)), first, "the same question");
    let said = claims(&first.binding_token);
    assert_eq!(
        (&said["task"], &said["action"], &said["target"]),
        (&json!(task), &json!("write"), &json!("wiki"))
    );
    assert_eq!(said["approval"], first.approval_id.as_str());
    assert!(said["operation_sha256"].is_string() && said.get("aud").is_none() && said.get("sub").is_none());
    let second = asked(&mut holder, &write(&task, 2));
    assert_ne!(second.approval_id, first.approval_id);
    assert_ne!(claims(&second.binding_token)["operation_sha256"], said["operation_sha256"]);
    asked(&mut holder, &write(&task, 3));
    assert_eq!(reason(authorize(&mut holder, &write(&task, 4))), "limit_approvals", "three wait");
    agent.audited(&["approval.requested", &first.approval_id, "\"target\":\"wiki\""]);
    // Not answered, and nothing to be had with it by whom it is not for, or for something else.
    let with = |page, id: &str| proto::AuthorizeRequest {
        request_approval: false,
        approval_id: id.to_owned(),
        ..write(&task, page)
    };
    assert_eq!(reason(authorize(&mut holder, &with(1, &first.approval_id))), "approval_pending");
    assert_eq!(reason(authorize(&mut holder, &with(2, &first.approval_id))), "approval_mismatch");
    let mut other = client(&agent);
    let theirs = begin(&mut other);
    let stolen = proto::AuthorizeRequest { task_id: theirs, ..with(1, &first.approval_id) };
    assert_eq!(reason(authorize(&mut other, &stolen)), "no_such_approval");
    agent.audited(&["\"phase\":\"approval\"", "for something else"]);
}

#[test]
fn h04_the_signed_question_is_no_credential() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let token = asked(&mut holder, &write(&task, 1)).binding_token;
    assert_eq!(
        local(&agent, "/introspect", &["-d", &format!("token={token}")]).json(),
        json!({"active": false})
    );
    for audience in ["wiki", WIKI, &task] {
        assert_eq!(holder.validate(audience, &token).unwrap_err().code, 3);
    }
}

#[test]
fn what_was_asked_for_ends_with_its_task() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let ended = asked(&mut holder, &write(&task, 1)).approval_id;
    let request = proto::EndRequest { task_id: task.clone(), ..Default::default() };
    holder.rpc::<proto::TaskSummary>(&format!("{API}/End"), &request).unwrap();
    agent.audited(&["approval.cancelled", &ended]);
    assert_eq!(reason(authorize(&mut holder, &write(&task, 1))), "task_ended");
    let task = begin(&mut holder);
    let killed = asked(&mut holder, &write(&task, 1)).approval_id;
    holder.kill();
    agent.audited(&["approval.cancelled", &killed]);
}

/// Who waits for an answer need not ask again and again; who follows learns no name of anybody.
#[test]
fn who_follows_hears_what_people_were_asked_and_that_it_ended() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let first = asked(&mut holder, &write(&task, 1)).approval_id;
    holder.task_watch(&task);
    let mut approval = || loop {
        if let Some(proto::task_event::Event::Approval(found)) = holder.next_task_event().unwrap().event {
            break found;
        }
    };
    let found = approval();
    assert_eq!((&found.id, found.state()), (&first, proto::ApprovalState::Pending));
    assert_eq!((found.facts.len(), found.votes.len(), found.action.as_str()), (0, 0, "write"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut operator, shown) = runtime.block_on(async {
        let channel = channel(&agent.admin_socket()).await.unwrap();
        let mut admin = proto::task_admin_client::TaskAdminClient::new(channel);
        let request = proto::ListApprovalsRequest { follow: true, ..Default::default() };
        let mut operator = admin.list_approvals(request).await.unwrap().into_inner();
        let shown = operator.message().await.unwrap().unwrap();
        (operator, shown)
    });
    assert_eq!((&shown.id, shown.state()), (&first, proto::ApprovalState::Pending));
    let (_, out, _) = agent.mayfly(&["task", "end", &task, "--reason", "enough"]);
    assert!(out.contains("1 task ended"), "{out}");
    let after = runtime.block_on(operator.message()).unwrap().unwrap();
    assert_eq!((&after.id, after.state()), (&first, proto::ApprovalState::Cancelled));
}

/// K04, as far as one user can show it: the agent's own user decides nothing, though the catalogue has him on call.
#[test]
fn k04_nobody_decides_about_what_his_own_user_asks() {
    let agent = world();
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let id = asked(&mut holder, &write(&task, 1)).approval_id;
    let mut request = proto::DecideRequest { approval_id: id.clone(), approve: true, ..Default::default() };
    let decide = |who: &mut Holder, request: &proto::DecideRequest| {
        reason(who.rpc_at::<proto::Approval>(
            &agent.admin_socket(),
            "mayfly.task.v1.TaskAdmin/Decide",
            request,
        ))
    };
    assert_eq!(decide(&mut holder, &request), "in_task");
    let mut other = client(&agent);
    for approve in [true, false] {
        request.approve = approve;
        assert_eq!(decide(&mut other, &request), "same_user");
    }
    agent.audited(&["\"phase\":\"approval\"", "somebody else must decide"]);
    let (code, out, err) = agent.mayfly(&["approve", "show", &id]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("pending (0 of 1 from oncall)"), "{out}");
    // K03: the purpose has a line break and an escape sequence in it; it stays the one last line.
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("  | tidy up\\u{1b}[2J\\nAPPROVED by security"), "{out}");
    assert!(!out.contains('\u{1b}') && !out.lines().any(|line| line.starts_with("APPROVED")), "{out}");
    let (code, _, err) = agent.mayfly(&["approve", "grant", &id]);
    assert_eq!(code, Some(7), "{err}");
    assert!(err.contains("somebody else must decide"), "{err}");
}

pub(crate) fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_program_is_told_of_each_request_with_nothing_else_in_its_hands() {
    let agent = told_by(|dir| {
        let out = dir.join("told");
        let text = format!(
            "#!/bin/sh\n[ -z \"$(/bin/cat /proc/$$/environ)\" ] || exit 1\n\
             /bin/cat > {out:?}.new && /bin/mv {out:?}.new {out:?}.$1\n"
        );
        format!("[approvals]\nnotify_exec = [{:?}, \"oncall\"]\n", script(dir, "tell", &text))
    });
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let id = asked(&mut holder, &write(&task, 1)).approval_id;
    let file = agent.dir().join("told.oncall");
    let told = until("the program is told", || std::fs::read_to_string(&file).ok());
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((told["approval"].as_str(), told["task"].as_str()), (Some(id.as_str()), Some(task.as_str())));
    assert_eq!(
        (&told["approvers"], &told["action"], &told["target"]),
        (&json!(["oncall"]), &json!("write"), &json!("wiki"))
    );
    let facts = told["facts"].as_array().unwrap();
    assert!(facts.iter().any(|fact| fact["value"] == "PUT wiki.example.org/api/pages/1"), "{told}");
    // What goes to a tool is for those who decide, not for a chat.
    let mcp = proto::McpCall {
        server: "wiki".to_owned(),
        tool: "edit".to_owned(),
        arguments: "{\"password\":\"hunter2\"}".to_owned(),
    };
    let operation = Some(proto::Operation { kind: Some(proto::operation::Kind::Mcp(mcp)) });
    let edit = proto::AuthorizeRequest { operation, target: TOOLS.to_owned(), ..write(&task, 1) };
    let id = asked(&mut holder, &edit).approval_id;
    let next = until("the program is told again", || {
        std::fs::read_to_string(&file).ok().filter(|text| text.contains(&id))
    });
    assert!(next.contains("\"edit\"") && !next.contains("hunter2"), "{next}");
    let (_, shown, _) = agent.mayfly(&["approve", "show", &id]);
    assert!(shown.contains("hunter2"), "{shown}");
}

#[test]
fn whoever_cannot_be_told_is_an_alarm_and_decides_nothing() {
    let agent = told_by(|dir| {
        format!("[approvals]\nnotify_exec = [{:?}]\n", script(dir, "tell", "#!/bin/sh\nexit 3\n"))
    });
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let id = asked(&mut holder, &write(&task, 1)).approval_id;
    agent.audited(&["approval.not_told", &id, "exit status: 3"]);
    let with =
        proto::AuthorizeRequest { request_approval: false, approval_id: id.clone(), ..write(&task, 1) };
    assert_eq!(reason(authorize(&mut holder, &with)), "approval_pending");
    // One that somebody else could have written is not run at all.
    let tell = agent.dir().join("tell");
    std::fs::set_permissions(&tell, std::fs::Permissions::from_mode(0o777)).unwrap();
    let id = asked(&mut holder, &write(&task, 2)).approval_id;
    agent.audited(&["approval.not_told", &id, "is not run", "written by others"]);
}

#[test]
fn a_webhook_is_told_once_and_a_redirect_is_not_followed() {
    let authority = Authority::new("chat");
    let chat = Endpoint::start(authority.server("127.0.0.1"), foreign::Answer::Ok("{}".to_owned()));
    let agent = told_by(|dir| {
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        format!("[approvals]\nnotify_webhook = {:?}\nwebhook_ca_file = {ca:?}\n", chat.url())
    });
    let mut holder = client(&agent);
    let task = begin(&mut holder);
    let id = asked(&mut holder, &write(&task, 1)).approval_id;
    let told = until("the webhook is told", || chat.requests().pop());
    assert!(told.starts_with("POST /bundle HTTP/1.1\r\n") && told.contains(&id), "{told}");
    let elsewhere = Endpoint::start(authority.server("127.0.0.1"), foreign::Answer::Ok("{}".to_owned()));
    chat.answer(foreign::Answer::Redirect(307, elsewhere.url()));
    let id = asked(&mut holder, &write(&task, 2)).approval_id;
    let line = agent.audited(&["approval.not_told", &id, "status 307"]);
    assert!(!line.to_string().contains("/bundle"), "a webhook's path can be its secret: {line}");
    assert!(elsewhere.requests().is_empty());
    assert_eq!(chat.requests().len(), 2);
}
