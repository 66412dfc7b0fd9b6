//! Tasks: what an agent may do is decided for each credential, and ends with the task. The calling process is the
//! agent; the resource server's side is the introspection socket.

use mayfly_harness::peers::python;
use mayfly_harness::policies::{WIKI, WRITES_NEED_A_PERSON};
use mayfly_harness::tasks::{self, detail};
use mayfly_harness::wire::channel;
use mayfly_harness::{Agent, Plan, Policies, until};
use mayfly_proto::task as proto;
use mayfly_proto::task::task_api_client::TaskApiClient;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::http::local;
use crate::support::{client, own_uid};

const VAULT: &str = "https://vault.example.org";

fn policies() -> Policies {
    Policies::open()
        .rule(
            "@id(\"read\") @max_ttl(\"60\") permit(principal, action == Mayfly::Action::\"read\", resource);",
        )
        .permit("write")
        .rule(WRITES_NEED_A_PERSON)
        .target("wiki", &[("location", "https://wiki.example.org/api")])
        .target("vault", &[("data_class", "secret"), ("binding", "mtls"), ("location", VAULT)])
        .person("bob", 4711, "oncall")
}

struct World {
    agent: Agent,
    runtime: Runtime,
}

fn world() -> World {
    configured("")
}

fn configured(settings: &str) -> World {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    agent.plan().settings += &format!("\n[wit]\nenabled = true\n{settings}");
    policies().install(&mut agent);
    agent.launch();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    World { agent, runtime }
}

fn headed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

/// The reason that a program reads.
fn reason(status: &Status) -> String {
    tasks::reason(status.details())
}

impl World {
    async fn client(&self) -> TaskApiClient<Channel> {
        TaskApiClient::new(channel(&self.agent.public()).await.unwrap())
    }

    fn begin(&self, request: proto::BeginRequest) -> Result<proto::Task, Status> {
        self.runtime
            .block_on(async { self.client().await.begin(headed(request)).await })
            .map(tonic::Response::into_inner)
    }

    fn begun(&self) -> proto::Task {
        let details = vec![detail(&format!("{WIKI}/api"), &["read", "write"]), detail(VAULT, &["read"])];
        let request = proto::BeginRequest { purpose: "summarise".to_owned(), details, ..Default::default() };
        self.begin(request).unwrap()
    }

    fn authorize(&self, request: proto::AuthorizeRequest) -> Result<proto::Decision, Status> {
        self.runtime
            .block_on(async { self.client().await.authorize(headed(request)).await })
            .map(tonic::Response::into_inner)
    }

    fn issue(&self, request: proto::IssueRequest) -> Result<proto::Credential, Status> {
        self.runtime
            .block_on(async { self.client().await.issue(headed(request)).await })
            .map(tonic::Response::into_inner)
    }

    fn end(&self, task: &proto::Task) -> Result<proto::TaskSummary, Status> {
        let request = proto::EndRequest { task_id: task.id.clone(), ..Default::default() };
        self.runtime
            .block_on(async { self.client().await.end(headed(request)).await })
            .map(tonic::Response::into_inner)
    }

    fn introspect(&self, token: &str) -> Value {
        local(&self.agent, "/introspect", &["-d", &format!("token={token}")]).json()
    }
}

fn wanted(task: &proto::Task, format: proto::Format, audience: &[&str]) -> proto::IssueRequest {
    proto::IssueRequest {
        task_id: task.id.clone(),
        format: format.into(),
        audience: audience.iter().map(|&one| one.to_owned()).collect(),
        ..Default::default()
    }
}

#[test]
fn a_credential_is_for_one_audience_says_what_it_is_for_and_ends_with_its_task() {
    let world = world();
    let task = world.begun();
    assert_eq!((task.state(), task.isolated), (proto::TaskState::Active, false));
    let both = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI, VAULT])).unwrap_err();
    assert_eq!((both.code(), reason(&both).as_str()), (Code::InvalidArgument, "one_audience_per_credential"));
    let one = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap();
    let other = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap();
    assert_ne!(one.id, other.id, "never the same twice");
    let said = world.introspect(&one.token);
    assert_eq!(said["active"], true);
    assert_eq!(
        (said["aud"].as_str(), said["scope"].as_str()),
        (Some(WIKI), Some("read")),
        "the write needs a person"
    );
    assert_eq!(said["urn:mayfly:task"]["id"], task.id.as_str());
    assert_eq!(said["authorization_details"][0]["actions"], serde_json::json!(["read"]));
    let life = said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap();
    assert_eq!(life, 60, "policy allows a minute, and only `nbf` is set back");
    assert!(said["nbf"].as_u64() < said["iat"].as_u64(), "{said}");
    let summary = world.end(&task).unwrap();
    assert_eq!((summary.tasks, summary.credentials, summary.reason.as_str()), (1, 2, "completed"));
    assert_eq!(world.introspect(&one.token), serde_json::json!({"active": false}));
    world.agent.audited(&["credential.reuse_after_end", "task_ended, introspection", &one.id]);
    let late = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap_err();
    assert_eq!((late.code(), reason(&late).as_str()), (Code::FailedPrecondition, "task_ended"));
    world.agent.audited(&["task.ended", "\"credentials\":2", &task.id]);
    world.agent.audited(&["decision.allow", "\"action\":\"read\"", "summarise"]);
}

#[test]
fn h04_each_form_passes_only_for_what_it_is() {
    let world = world();
    let task = world.begun();
    let only_read = || vec![detail(&format!("{WIKI}/api"), &["read"])];
    let ask = |format| {
        let request = proto::IssueRequest { details: only_read(), ..wanted(&task, format, &[WIKI]) };
        world.issue(request).unwrap()
    };
    let access = ask(proto::Format::AccessToken);
    let jwt = ask(proto::Format::JwtSvid);
    let wit = ask(proto::Format::WitSvid);
    let x509 = ask(proto::Format::X509Svid);
    assert!(!x509.x509_svid.is_empty() && !x509.private_key.is_empty() && !x509.bundle.is_empty());
    let mut svids = client(&world.agent);
    assert_eq!(svids.validate(WIKI, &access.token).unwrap_err().code, 3);
    assert_eq!(svids.validate(WIKI, &wit.token).unwrap_err().code, 3);
    assert!(svids.validate(WIKI, &jwt.token).is_ok());
    assert_eq!(world.introspect(&wit.token)["active"], false);
    let flat = world.introspect(&jwt.token);
    assert_eq!(
        (flat["active"].as_bool(), flat["mayfly_task"].as_str()),
        (Some(true), Some(task.id.as_str()))
    );
    assert!(flat.get("act").is_none() && flat["mayfly_action_class"] == "read");
    world.end(&task).unwrap();
    assert_eq!(svids.validate(WIKI, &jwt.token).unwrap_err().code, 3, "ended with its task");
    assert_eq!(world.introspect(&jwt.token)["active"], false);
}

#[test]
fn what_is_not_granted_not_allowed_or_not_bound_is_not_issued() {
    let world = world();
    let task = world.begun();
    let refused = |request| {
        let status = world.issue(request).unwrap_err();
        (status.code(), reason(&status))
    };
    let of = |details, audience: &str| proto::IssueRequest {
        details,
        ..wanted(&task, proto::Format::AccessToken, &[audience])
    };
    let write = of(vec![detail(&format!("{WIKI}/api"), &["write"])], WIKI);
    assert_eq!(refused(write), (Code::FailedPrecondition, "approval_required".to_owned()));
    let delete = of(vec![detail(&format!("{WIKI}/api"), &["delete"])], WIKI);
    assert_eq!(refused(delete), (Code::PermissionDenied, "not_granted".to_owned()));
    let elsewhere = of(Vec::new(), "https://payroll.example.org");
    assert_eq!(refused(elsewhere), (Code::PermissionDenied, "policy_denied".to_owned()));
    assert_eq!(refused(of(Vec::new(), VAULT)), (Code::FailedPrecondition, "binding_required".to_owned()));
    let x509 = world.issue(wanted(&task, proto::Format::X509Svid, &[VAULT])).unwrap();
    let bound = proto::IssueRequest {
        binding: Some(proto::issue_request::Binding::X509CredentialId(x509.id.clone())),
        ..of(Vec::new(), VAULT)
    };
    let bound = world.issue(bound).unwrap();
    assert!(world.introspect(&bound.token)["cnf"]["x5t#S256"].is_string());
    world.agent.audited(&["decision.requestable", "writes-need-a-person"]);
    // A task of somebody else, and none at all, look the same from outside.
    let foreign = proto::Task { id: "tsk_01K6000000000000000000000A".to_owned(), ..task };
    assert_eq!(
        refused(wanted(&foreign, proto::Format::AccessToken, &[WIKI])),
        (Code::NotFound, "no_such_task".to_owned())
    );
}

#[test]
fn a_policy_edited_in_the_middle_of_a_task_bites_at_the_next_call() {
    let world = world();
    let task = world.begun();
    assert!(world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).is_ok());
    let closed = policies().rules.replace("@id(\"read\") @max_ttl(\"60\") permit", "@id(\"read\") forbid");
    world.agent.write_policies(&closed);
    let denied =
        until("the new set bites", || world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).err());
    assert_eq!((denied.code(), reason(&denied).as_str()), (Code::PermissionDenied, "policy_denied"));
}

#[test]
fn budgets_are_spent_and_a_repeated_begin_is_the_same_task() {
    let world = world();
    let request = proto::BeginRequest {
        details: vec![detail(&format!("{WIKI}/api"), &["read"])],
        limits: Some(proto::Limits { max_calls: 2, ..Default::default() }),
        idempotency_key: "k".to_owned(),
        ..Default::default()
    };
    let task = world.begin(request.clone()).unwrap();
    assert_eq!(world.begin(request.clone()).unwrap().id, task.id);
    let other = proto::BeginRequest { purpose: "else".to_owned(), ..request };
    assert_eq!(reason(&world.begin(other).unwrap_err()), "idempotency_conflict");
    for _ in 0..2 {
        world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap();
    }
    let over = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap_err();
    assert_eq!((over.code(), reason(&over).as_str()), (Code::ResourceExhausted, "limit_calls"));
}

#[test]
fn no_credential_of_a_task_outlives_its_deadline_and_a_restart_ends_and_revives_nothing() {
    let mut world = world();
    let brief = proto::BeginRequest {
        details: vec![detail(&format!("{WIKI}/api"), &["read"])],
        ttl: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        ..Default::default()
    };
    let brief = world.begin(brief).unwrap();
    let short = world.issue(wanted(&brief, proto::Format::AccessToken, &[WIKI])).unwrap();
    let task = world.begun();
    let token = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap();
    until("the deadline", || (world.introspect(&short.token)["active"] == false).then_some(()));
    world.agent.audited(&["task.ended", "\"reason\":\"deadline\""]);
    assert_eq!(world.introspect(&token.token)["active"], true);
    world.agent.kill();
    world.agent.launch();
    assert_eq!(world.introspect(&token.token)["active"], true, "its holder is still there");
    assert_eq!(world.introspect(&short.token)["active"], false);
    world.end(&task).unwrap();
    assert_eq!(world.introspect(&token.token)["active"], false);
}

/// H10, K07: nothing of a task outlives the process that held it, and another process cannot act as the task.
#[test]
fn h10_k07_what_a_killed_agent_held_is_refused_everywhere_and_recorded_when_shown() {
    let world = world();
    let mut holder = client(&world.agent);
    let (task, token) = holder.task(&format!("{WIKI}/api"), WIKI).unwrap();
    assert_eq!(world.introspect(&token)["active"], true);
    let stolen = proto::Task { id: task.clone(), ..Default::default() };
    let refused = world.issue(wanted(&stolen, proto::Format::AccessToken, &[WIKI])).unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "no_such_task"));
    holder.kill();
    until("the token is refused", || (world.introspect(&token)["active"] == false).then_some(()));
    world.agent.audited(&["task.ended", "\"reason\":\"process_exit\"", &task]);
    world.agent.audited(&["credential.revoke", "task_ended", &task]);
    world.agent.audited(&["credential.reuse_after_end", &task]);
    let gone = world.issue(wanted(&stolen, proto::Format::AccessToken, &[WIKI])).unwrap_err();
    assert_eq!(reason(&gone), "no_such_task");
}

/// A stock library checks the signature, the type, the issuer and the audience by the published keys; introspection
/// says the rest.
#[test]
fn a_resource_server_with_a_stock_library_takes_a_token_until_its_task_ends() {
    const PROGRAM: &str = "
import sys
sys.path.insert(0, sys.argv[1])
import resource_server as example
checker = example.Checker(example.AgentHttp(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5])
try:
    checker.check(sys.argv[8], sys.argv[6], sys.argv[7])
    print(200)
except example.Refused as refused:
    print(refused.status)
";
    let world = world();
    let task = world.begun();
    let token = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap().token;
    let jwt = world.issue(wanted(&task, proto::Format::JwtSvid, &[WIKI])).unwrap().token;
    let issuer = world.introspect(&token)["iss"].as_str().unwrap().to_owned();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/examples/agents");
    let socket = world.agent.dir().join("http/http.sock");
    let ask = |audience: &str, method: &str, path: &str, token: &str| {
        let output = std::process::Command::new(python())
            .args(["-c", PROGRAM, example])
            .arg(&socket)
            .args([&issuer, audience, "https://wiki.example.org/api", method, path, token])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    assert_eq!(ask(WIKI, "GET", "/pages/7", &token), "200");
    assert_eq!(ask(WIKI, "POST", "/pages/7", &token), "403", "it is for reading");
    assert_eq!(ask("https://vault.example.org", "GET", "/pages/7", &token), "401", "another audience");
    assert_eq!(ask(WIKI, "GET", "/pages/7", &jwt), "401", "an SVID is no access token");
    world.end(&task).unwrap();
    assert_eq!(ask(WIKI, "GET", "/pages/7", &token), "401");
}

/// A decision without a credential. What people could lift says whom it takes, and asks nobody by itself.
#[test]
fn an_action_is_decided_and_a_denial_says_who_could_lift_it() {
    let world = world();
    let task = world.begun();
    let ask = |action: &str| proto::AuthorizeRequest {
        task_id: task.id.clone(),
        action: action.to_owned(),
        target: WIKI.to_owned(),
        ..Default::default()
    };
    let read = world.authorize(ask("read")).unwrap();
    assert!(read.allow && read.policy_ids.is_empty() && read.access_request.is_none(), "{read:?}");
    let write = world.authorize(ask("write")).unwrap();
    assert_eq!((write.allow, write.reason.as_str()), (false, "approval_required"));
    let possible = write.access_request.unwrap();
    assert_eq!((possible.approvers.as_str(), possible.approval_id.as_str()), ("oncall", ""));
    for wrong in ["a", "tsk_01K6000000000000000000000A"] {
        let shown = proto::AuthorizeRequest { approval_id: wrong.to_owned(), ..ask("write") };
        assert_eq!(world.authorize(shown).unwrap_err().code(), Code::InvalidArgument);
    }
}

/// Which action it was that policy refused, not the one that happens to come first.
#[test]
fn a_refused_credential_is_recorded_with_the_action_that_was_refused() {
    let world = world();
    let task = world.begun();
    let request = proto::IssueRequest {
        details: vec![detail(&format!("{WIKI}/api"), &["write"])],
        ..wanted(&task, proto::Format::AccessToken, &[WIKI])
    };
    assert_eq!(reason(&world.issue(request).unwrap_err()), "approval_required");
    world.agent.audited(&["decision.", "\"action\":\"write\"", "writes-need-a-person", &task.id]);
    let log = world.agent.audit();
    let blamed = log.iter().filter(|line| line["decision"]["policy_ids"][0] == "writes-need-a-person");
    assert!(
        blamed.clone().count() > 0 && blamed.into_iter().all(|line| line["decision"]["action"] == "write")
    );
}

#[test]
fn what_never_began_and_what_a_task_does_not_cover_are_on_record_with_their_intent() {
    let world = world();
    let (purpose, template) = ("sell the silver".to_owned(), "burglary".to_owned());
    let request = proto::BeginRequest { purpose, template, ..Default::default() };
    let refused = world.begin(request).unwrap_err();
    assert_eq!(reason(&refused), "policy_denied");
    world.agent.audited(&[
        "decision.deny",
        "\"reason\":\"unknown_template\"",
        "\"purpose\":\"sell the silver\"",
        "\"state\":\"refused\"",
        "\"action\":\"begin\"",
        "\"target\":\"burglary\"",
    ]);
    let task = world.begun();
    let wide = proto::IssueRequest {
        details: vec![detail(VAULT, &["delete"])],
        ..wanted(&task, proto::Format::AccessToken, &[VAULT])
    };
    assert_eq!(reason(&world.issue(wide).unwrap_err()), "not_granted");
    let of_task = task.id.as_str();
    world.agent.audited(&[
        "decision.deny",
        "\"reason\":\"not_granted\"",
        "\"action\":\"delete\"",
        "\"target\":\"vault\"",
        of_task,
    ]);
    let probe = proto::AuthorizeRequest {
        task_id: task.id.clone(),
        action: "admin".to_owned(),
        target: "wiki".to_owned(),
        ..Default::default()
    };
    assert_eq!(reason(&world.authorize(probe).unwrap_err()), "not_granted");
    world.agent.audited(&[
        "decision.deny",
        "\"reason\":\"not_granted\"",
        "\"action\":\"admin\"",
        "wiki",
        of_task,
    ]);
    let request = proto::BeginRequest {
        details: vec![detail(WIKI, &["read"])],
        limits: Some(proto::Limits { max_calls: 1, ..Default::default() }),
        ..Default::default()
    };
    let task = world.begin(request).unwrap();
    world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap();
    let more = world.issue(wanted(&task, proto::Format::AccessToken, &[WIKI])).unwrap_err();
    assert_eq!(reason(&more), "limit_calls");
    world.agent.audited(&["decision.deny", "\"reason\":\"limit_calls\"", &task.id]);
}

#[test]
fn what_the_configuration_lowers_is_lower_for_everybody() {
    let limits = "\n[tasks]\nlife = \"10m\"\nper_agent = 2\ndetails = 2\ndetails_bytes = 1500\n\
                  purpose_bytes = 20\nissues_per_minute = 1\n\
                  default_credential = \"20s\"\ntoken_bytes = 1024\n";
    let world = configured(limits);
    let refused = |request: proto::BeginRequest| reason(&world.begin(request).unwrap_err());
    let read = || vec![detail(WIKI, &["read"])];
    let wordy = proto::BeginRequest { purpose: "x".repeat(21), details: read(), ..Default::default() };
    assert_eq!(refused(wordy), "limit_purpose");
    let long = Some(prost_types::Duration { seconds: 601, nanos: 0 });
    assert_eq!(
        refused(proto::BeginRequest { ttl: long, details: read(), ..Default::default() }),
        "limit_life"
    );
    let many = ["a", "b", "c"].map(|page| detail(&format!("{WIKI}/api/{page}"), &["read"])).to_vec();
    assert_eq!(refused(proto::BeginRequest { details: many, ..Default::default() }), "limit_details");
    let deep = detail(&format!("{WIKI}/api/{}", "a".repeat(900)), &["read"]);
    let twice = vec![deep.clone(), detail(&format!("{WIKI}/api/{}", "b".repeat(900)), &["read"])];
    assert_eq!(refused(proto::BeginRequest { details: twice, ..Default::default() }), "limit_details");
    let begin = |details| world.begin(proto::BeginRequest { details, ..Default::default() });
    let (first, second) = (begin(vec![deep]).unwrap(), begin(read()).unwrap());
    assert_eq!(reason(&begin(read()).unwrap_err()), "limit_tasks");
    // By default no longer than the longest: 10 minutes, not 15.
    let (begun, deadline) = (first.begun_at.unwrap().seconds, first.deadline.unwrap().seconds);
    assert!((599..=601).contains(&(deadline - begun)), "{begun} {deadline}");
    let long = world.issue(wanted(&first, proto::Format::AccessToken, &[WIKI])).unwrap_err();
    assert_eq!(reason(&long), "limit_token", "it says what it is for, which takes more than a kilobyte");
    assert_eq!(
        reason(&world.issue(wanted(&first, proto::Format::JwtSvid, &[WIKI])).unwrap_err()),
        "limit_rate"
    );
    let token = world.issue(wanted(&second, proto::Format::JwtSvid, &[WIKI])).unwrap();
    let life = token.expires_at.unwrap().seconds - token.issued_at.unwrap().seconds;
    assert!(life <= 31, "20 s, and everything is backdated: {life}");
}

#[test]
fn who_is_attested_as_nobody_is_told_that_and_nothing_else() {
    let mut agent = Plan::with_entries(&[]).prepare();
    policies().install(&mut agent);
    agent.launch();
    let mut stranger = client(&agent);
    let id = "tsk_01K6000000000000000000000A".to_owned();
    let begin = proto::BeginRequest { details: vec![detail(WIKI, &["read"])], ..Default::default() };
    let issue = proto::IssueRequest {
        task_id: id.clone(),
        format: proto::Format::AccessToken.into(),
        audience: vec![WIKI.to_owned()],
        ..Default::default()
    };
    for refused in [
        stranger.task_call::<proto::Task>("Begin", &begin).unwrap_err(),
        stranger.task_call::<proto::Task>("Get", &proto::GetTaskRequest { task_id: id }).unwrap_err(),
        stranger.task_call::<proto::Credential>("Issue", &issue).unwrap_err(),
    ] {
        assert_eq!((refused.code, refused.reason.as_str()), (16, "not_attested"), "{refused:?}");
    }
    assert_eq!(stranger.x509_refused().code, 7, "the Workload API has its own words");
    let (code, _, err) = agent.mayfly(&["run", "--task", "look-up", "--", "true"]);
    assert!(code == Some(125) && err.contains("there is no identity for this process"), "{code:?} {err}");
}
