//! The operator's side of tasks: the real commands against a real agent. The agents that hold tasks are processes of
//! their own; the calling process is the operator, and is refused as soon as it is in a task itself.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use mayfly_harness::policies::{WIKI, WRITES_NEED_A_PERSON};
use mayfly_harness::tasks::detail;
use mayfly_harness::wire::channel;
use mayfly_harness::{Agent, Entry, Holder, Plan, Policies, is_running, until};
use mayfly_proto::task as proto;
use mayfly_proto::task::task_admin_client::TaskAdminClient;
use mayfly_proto::task::task_api_client::TaskApiClient;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::http::local;
use crate::support::own_uid;

fn policies() -> Policies {
    Policies::open()
        .permit("delegate")
        .rule(
            "@id(\"read\") @max_ttl(\"60\") permit(principal, action == Mayfly::Action::\"read\", resource);",
        )
        .permit("write")
        .rule(WRITES_NEED_A_PERSON)
        .target("wiki", &[("location", "https://wiki.example.org/api")])
        .target("vault", &[("data_class", "secret"), ("location", "https://vault.example.org")])
        .target("selftest", &[("audience", "https://selftest.mayfly.internal")])
        .person("bob", 4711, "oncall")
}

fn agent() -> Agent {
    start(&[Entry::for_uid(own_uid())])
}

fn start(entries: &[Entry]) -> Agent {
    let mut agent = Plan::with_entries(entries).prepare();
    policies().install(&mut agent);
    agent.launch();
    agent
}

fn worker(agent: &Agent) -> (Holder, String, String) {
    let mut holder = Holder::start(agent, own_uid());
    let (task, token) = holder.task(&format!("{WIKI}/api"), WIKI).unwrap();
    (holder, task, token)
}

fn run(agent: &Agent, arguments: &[&str]) -> String {
    let (code, out, err) = agent.mayfly(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    out
}

fn json(agent: &Agent, arguments: &[&str]) -> Value {
    serde_json::from_str(&run(agent, &[arguments, &["--output", "json"]].concat())).unwrap()
}

fn is_active(agent: &Agent, token: &str) -> bool {
    local(agent, "/introspect", &["-d", &format!("token={token}")]).json()["active"] == true
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn operator(agent: &Agent) -> TaskAdminClient<Channel> {
    TaskAdminClient::new(channel(&agent.admin_socket()).await.unwrap())
}

#[test]
fn an_operator_finds_a_task_reads_what_it_may_do_and_ends_it() {
    let agent = agent();
    let (holder, task, token) = worker(&agent);
    let (_other, second, others) = worker(&agent);
    let listed = json(&agent, &["task", "list"]);
    let tasks = listed["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), 2, "{listed:#}");
    let found = tasks.iter().find(|one| one["id"] == task.as_str()).unwrap();
    assert_eq!((found["pid"].as_u64(), &found["state"]), (Some(holder.pid().into()), &"active".into()));
    assert_eq!(json(&agent, &["status"])["live_tasks"], 2);
    assert!(run(&agent, &["task", "tree"]).contains(&task));
    let page = run(&agent, &["task", "show", &task]);
    for line in ["may         read on https://wiki.example.org/api", "used        1 calls", "1 credential"] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(is_active(&agent, &token) && is_active(&agent, &others));

    let said = run(&agent, &["task", "end", &task, "--reason", "ticket 17"]);
    assert!(said.starts_with("1 task ended (admin), 1 credential refused"), "{said}");
    assert!(!is_active(&agent, &token), "refused when the answer is there");
    assert!(is_active(&agent, &others), "the other task has nothing to do with it");
    agent.audited(&["admin.revoke", "ticket 17", &task]);
    agent.audited(&["task.ended", "\"reason\":\"admin\"", &format!("operator uid {}", own_uid()), &task]);
    let page = run(&agent, &["task", "show", &task]);
    assert!(page.contains("an operator ended it"), "{page}");
    let (code, _, err) = agent.mayfly(&["task", "end", &task, "--reason", "again"]);
    assert!(code == Some(1) && err.contains("has ended"), "{err}");
    let left = json(&agent, &["task", "list"]);
    assert_eq!(left["tasks"].as_array().unwrap().len(), 1, "{left:#}");
    assert_eq!(left["tasks"][0]["id"], second.as_str());
    let all = json(&agent, &["task", "list", "--ended"]);
    assert_eq!(all["tasks"].as_array().unwrap().len(), 2, "{all:#}");
    let none = json(&agent, &["task", "list", "--agent", "spiffe://example.org/nobody"]);
    assert_eq!(none["tasks"].as_array().unwrap().len(), 0);
}

#[test]
fn a_process_that_is_in_a_task_gives_no_operators_orders_nor_do_its_children() {
    let agent = agent();
    let (_holder, task, token) = worker(&agent);
    let runtime = runtime();
    // This process becomes an agent at work.
    let own = runtime.block_on(async {
        let details = vec![detail(&format!("{WIKI}/api"), &["read"])];
        let mut begin = Request::new(proto::BeginRequest { details, ..Default::default() });
        begin.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        TaskApiClient::new(channel(&agent.public()).await.unwrap()).begin(begin).await.unwrap().into_inner()
    });
    let refused = |status: Status| {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains("works in a task"), "{status}");
    };
    runtime.block_on(async {
        let mut operator = operator(&agent).await;
        refused(operator.list(proto::ListTasksRequest::default()).await.unwrap_err());
        let revoke = proto::RevokeTaskRequest { task_id: task.clone(), ..Default::default() };
        refused(operator.revoke(revoke).await.unwrap_err());
        refused(operator.explain(proto::ExplainRequest::default()).await.unwrap_err());
        refused(operator.tail_audit(proto::TailAuditRequest::default()).await.unwrap_err());
        refused(operator.list_approvals(proto::ListApprovalsRequest::default()).await.unwrap_err());
        refused(operator.decide(proto::DecideRequest::default()).await.unwrap_err());
        let kill = proto::FreezeRequest {
            what: Some(proto::freeze_request::What::All(true)),
            kill: true,
            ..Default::default()
        };
        refused(operator.freeze(kill).await.unwrap_err());
        let what = Some(proto::thaw_request::What::All(true));
        refused(operator.thaw(proto::ThawRequest { what, ..Default::default() }).await.unwrap_err());
    });
    // The commands are children of this process: an agent's tools are.
    let orders: [&[&str]; 4] = [
        &["task", "end", &task, "--reason", "x"],
        &["task", "list"],
        &["freeze", "--all"],
        &["thaw", "--all"],
    ];
    for order in orders {
        let (code, out, err) = agent.mayfly(order);
        assert!(code == Some(7) && err.contains("works in a task"), "{order:?}: {code:?} {out}{err}");
    }
    assert!(is_active(&agent, &token), "and nothing happened");
    agent.audited(&["agent.attest_denied", "\"phase\":\"operator\"", "in_task"]);
    runtime.block_on(async {
        let mut end = Request::new(proto::EndRequest { task_id: own.id.clone(), ..Default::default() });
        end.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        TaskApiClient::new(channel(&agent.public()).await.unwrap()).end(end).await.unwrap();
    });
    assert!(run(&agent, &["task", "list"]).contains(&task), "after its task it is an operator again");
}

#[test]
fn a_live_tree_tells_each_change_as_a_line_where_there_is_no_terminal() {
    let agent = agent();
    let mut tree = Command::new(agent.binary())
        .args(["task", "tree", "--follow"])
        .env("MAYFLY_ADMIN_SOCKET", format!("unix://{}", agent.admin_socket().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tree.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (holder, task, _token) = worker(&agent);
    let first = lines.find(|line| line.starts_with(&task)).unwrap();
    assert!(first.contains("active"), "{first}");
    run(&agent, &["freeze", "--task", &task]);
    lines.find(|line| line.starts_with(&task) && line.contains("suspended")).unwrap();
    run(&agent, &["thaw", "--task", &task]);
    lines.find(|line| line.starts_with(&task) && line.contains("active")).unwrap();
    drop(holder);
    let last = lines.find(|line| line.contains("ended")).unwrap();
    assert!(last.starts_with(&task) && last.contains("process_exit"), "{last}");
    tree.kill().unwrap();
    tree.wait().unwrap();
}

#[test]
fn an_operator_learns_what_policy_would_decide_and_the_task_pays_nothing() {
    let agent = agent();
    let (_holder, task, _token) = worker(&agent);
    let before = json(&agent, &["task", "show", &task]);
    let decisions = agent.audit().iter().filter(|line| line["decision"]["action"] == "write").count();
    let ask = |task_id: &str, spiffe_id: &str, action: &str, target: &str| {
        let (action, target) = (action.to_owned(), target.to_owned());
        let request =
            proto::AuthorizeRequest { task_id: task_id.to_owned(), action, target, ..Default::default() };
        let asked = proto::ExplainRequest { spiffe_id: spiffe_id.to_owned(), request: Some(request) };
        runtime()
            .block_on(async { operator(&agent).await.explain(asked).await.map(tonic::Response::into_inner) })
    };
    let read = ask(&task, "", "read", "wiki").unwrap();
    let decision = read.decision.unwrap();
    assert!(decision.allow && decision.policy_ids == ["read"], "{decision:?}");
    assert_eq!(decision.max_ttl.map(|ttl| ttl.seconds), Some(60));
    let asked: Value = serde_json::from_str(&read.request).unwrap();
    assert_eq!(asked["context"]["task"]["id"], task.as_str());
    assert_eq!((&asked["action"], &asked["resource"]["target"]), (&"read".into(), &"wiki".into()));

    let write = ask(&task, "", "write", WIKI).unwrap();
    let decision = write.decision.unwrap();
    assert!(!decision.allow, "{decision:?}");
    assert_eq!(decision.reason, "not_granted", "it began with `read` alone");
    assert_eq!(decision.policy_ids, ["writes-need-a-person"], "and policy wants a person");
    assert!(write.would_help[0].contains("details"), "{:?}", write.would_help);
    assert!(write.would_help.len() > 1, "what policy would need is said, too: {:?}", write.would_help);

    // An identity that has begun nothing.
    let own = format!("spiffe://example.org/uid/{}", own_uid());
    let write = ask("", &own, "write", "wiki").unwrap().decision.unwrap();
    assert_eq!((write.allow, write.reason.as_str()), (false, "approval_required"));
    assert!(ask("", &own, "read", "vault").unwrap().decision.unwrap().allow);
    let unknown = ask("", &own, "read", "nowhere").unwrap();
    assert!(!unknown.decision.unwrap().allow);
    assert_eq!(
        ask(&task, "spiffe://example.org/other", "read", "wiki").unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(ask("", "", "read", "wiki").unwrap_err().code(), Code::InvalidArgument);
    let said = run(&agent, &["task", "explain", &task, "--action", "read", "--target", WIKI]);
    assert_eq!(
        said,
        "allowed (allowed)\ndecided by  read\nobligation  max_ttl 60\nobligation  binding none\n"
    );
    let (code, out, _) =
        agent.mayfly(&["task", "explain", "--as", &own, "--action", "write", "--target", "wiki"]);
    assert!(code == Some(7) && out.contains("would help  "), "{out}");

    let after = json(&agent, &["task", "show", &task]);
    assert_eq!((&before["calls"], &before["denials"]), (&after["calls"], &after["denials"]));
    let later = agent.audit().iter().filter(|line| line["decision"]["action"] == "write").count();
    assert_eq!(decisions, later, "and nothing is recorded of it");
    run(&agent, &["task", "end", &task, "--reason", "x"]);
    let ended = ask(&task, "", "read", "wiki");
    let reason =
        ended.map_or_else(|status| status.message().to_owned(), |said| said.decision.unwrap().reason);
    assert!(reason.contains("ended"), "{reason}");
}

#[test]
fn an_operator_follows_the_audit_log_until_the_agent_stops() {
    let mut agent = agent();
    // With a thread of its own, so that the connection is read while the agent stops.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut lines, first) = runtime.block_on(async {
        let asked = proto::TailAuditRequest {
            events: vec!["task".to_owned(), "agent.start".to_owned()],
            last: 5,
            follow: true,
            ..Default::default()
        };
        let mut lines = operator(&agent).await.tail_audit(asked).await.unwrap().into_inner();
        let first = lines.message().await.unwrap().unwrap();
        (lines, first)
    });
    assert!(first.line.contains("\"agent.start\""), "{}", first.line);
    let (_holder, task, _token) = worker(&agent);
    let next = runtime.block_on(lines.message()).unwrap().unwrap();
    let line: Value = serde_json::from_str(&next.line).unwrap();
    assert_eq!((&line["event"], &line["task"]["id"]), (&"task.begin".into(), &task.as_str().into()));
    assert_eq!(line["seq"].as_u64(), Some(next.seq));
    let once = proto::TailAuditRequest { task_id: task.clone(), last: 1, ..Default::default() };
    let last = runtime.block_on(async {
        let mut lines = operator(&agent).await.tail_audit(once).await.unwrap().into_inner();
        let last = lines.message().await.unwrap().unwrap();
        assert!(lines.message().await.unwrap().is_none(), "without follow there is an end");
        last
    });
    assert!(last.line.contains(&task), "{}", last.line);
    agent.stop();
    let end = runtime.block_on(async {
        loop {
            match lines.message().await {
                Ok(Some(_line)) => {}
                other => break other,
            }
        }
    });
    assert_eq!(
        end.unwrap_err().code(),
        Code::Unavailable,
        "the stop ends the stream, not the other way round"
    );
}

#[test]
fn what_is_killed_is_frozen_ends_and_dies_and_nobody_else_does() {
    let agent = agent();
    let (doomed, task, token) = worker(&agent);
    let (mut other, others_task, others) = worker(&agent);
    let (pid, other_pid) = (doomed.pid(), other.pid());
    let said = run(&agent, &["kill", "--task", &task, "--reason", "incident 4711"]);
    assert!(
        said.contains("1 task ended (kill_switch), 1 credential refused, 1 process or cgroup killed"),
        "{said}"
    );
    until("the process is gone", || (!is_running(pid)).then_some(()));
    assert!(!is_active(&agent, &token));
    let frozen = agent.audited(&["\"event\":\"freeze\"", "incident 4711", &task]);
    let ended = agent.audited(&["task.ended", "kill_switch", "\"credentials\":1", &task]);
    assert!(frozen["seq"].as_u64() < ended["seq"].as_u64(), "{frozen} {ended}");
    // The one beside it, with the same identity, works on.
    assert!(is_running(other_pid) && is_active(&agent, &others));
    assert!(other.task(&format!("{WIKI}/api"), WIKI).is_ok());
    assert!(run(&agent, &["task", "list"]).contains(&others_task));
    assert!(agent.admin().status().concerns.join("\n").contains(&task), "it stays frozen");

    let own = format!("spiffe://example.org/uid/{}", own_uid());
    let said = json(&agent, &["kill", "--agent", &own]);
    assert_eq!((&said["tasks"], &said["processes"], &said["not_killed"]), (&2.into(), &1.into(), &0.into()));
    until("the other process is gone", || (!is_running(other_pid)).then_some(()));
    let mut third = Holder::start(&agent, own_uid());
    let refused = third.task(&format!("{WIKI}/api"), WIKI).unwrap_err();
    assert_eq!(refused.code, 9, "frozen, which is no verdict of policy: {refused:?}");
    run(&agent, &["thaw", "--agent", &own]);
    assert!(third.task(&format!("{WIKI}/api"), WIKI).is_ok());
}

/// A task of the holder, begun or taken up.
struct Seat {
    holder: Holder,
    task: String,
}

impl Seat {
    fn root(agent: &Agent) -> Self {
        let mut holder = Holder::start(agent, own_uid());
        let details = vec![detail(&format!("{WIKI}/api"), &["read"])];
        let begin = proto::BeginRequest { details, ..Default::default() };
        let task: proto::Task = holder.task_call("Begin", &begin).unwrap();
        Self { holder, task: task.id }
    }

    fn child(&mut self, agent: &Agent) -> Self {
        let offer = proto::DelegateRequest {
            task_id: self.task.clone(),
            spiffe_id: format!("spiffe://example.org/uid/{}", own_uid()),
            details: vec![detail(&format!("{WIKI}/api"), &["read"])],
            ..Default::default()
        };
        let offer: proto::Delegation = self.holder.task_call("Delegate", &offer).unwrap();
        let mut holder = Holder::start(agent, own_uid());
        let join = proto::JoinRequest { delegation_id: offer.id, ..Default::default() };
        let task: proto::Task = holder.task_call("Join", &join).unwrap();
        Self { holder, task: task.id }
    }

    /// A token, or the reason for none.
    fn issue(&mut self) -> Result<String, String> {
        let issue = proto::IssueRequest {
            task_id: self.task.clone(),
            format: proto::Format::AccessToken.into(),
            audience: vec![WIKI.to_owned()],
            ..Default::default()
        };
        let issued: Result<proto::Credential, _> = self.holder.task_call("Issue", &issue);
        issued.map(|one| one.token).map_err(|refused| refused.reason)
    }
}

#[test]
fn a_task_in_the_middle_is_frozen_and_killed_with_all_below_it_and_nothing_above() {
    let agent = agent();
    let mut root = Seat::root(&agent);
    let mut middle = root.child(&agent);
    let mut leaf = middle.child(&agent);
    let listed = json(&agent, &["task", "list"]);
    let order: Vec<&str> =
        listed["tasks"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(order, [&root.task, &middle.task, &leaf.task], "parents before their children");
    let below = json(&agent, &["task", "tree", &middle.task]);
    assert_eq!(below["tasks"].as_array().unwrap().len(), 2, "{below:#}");

    run(&agent, &["freeze", "--task", &middle.task]);
    assert!(root.issue().is_ok());
    for seat in [&mut middle, &mut leaf] {
        assert_eq!(seat.issue(), Err("frozen".to_owned()));
    }
    run(&agent, &["thaw", "--task", &middle.task]);
    let (above, below) = (root.issue().unwrap(), leaf.issue().unwrap());
    let said = json(&agent, &["kill", "--task", &middle.task]);
    assert_eq!((&said["tasks"], &said["credentials"], &said["processes"]), (&2.into(), &1.into(), &2.into()));
    for pid in [middle.holder.pid(), leaf.holder.pid()] {
        until("the process is gone", || (!is_running(pid)).then_some(()));
    }
    assert!(!is_active(&agent, &below) && is_active(&agent, &above));
    assert!(is_running(root.holder.pid()) && root.issue().is_ok());
    agent.audited(&["task.ended", "parent_ended", &leaf.task]);
}

#[test]
fn a_kill_by_target_takes_back_what_is_for_it_and_kills_nobody() {
    let agent = agent();
    let (mut holder, task, wiki) = worker(&agent);
    let (_, vault) = holder.task("https://vault.example.org", "https://vault.example.org").unwrap();
    let said = json(&agent, &["kill", "--target", "vault"]);
    assert_eq!((&said["tasks"], &said["credentials"], &said["processes"]), (&0.into(), &1.into(), &0.into()));
    assert!(!is_active(&agent, &vault) && is_active(&agent, &wiki));
    assert!(is_running(holder.pid()) && run(&agent, &["task", "list"]).contains(&task));
    let refused = holder.task("https://vault.example.org", "https://vault.example.org").unwrap_err();
    assert_eq!(refused.code, 9, "what is frozen may go on one day: {refused:?}");
}

#[test]
fn a_freeze_that_revokes_takes_back_what_tasks_were_given_and_ends_none() {
    let agent = agent();
    let (holder, task, token) = worker(&agent);
    let said = json(&agent, &["freeze", "--task", &task]);
    assert_eq!(said["credentials"], 1, "what it is about is counted");
    let live = |agent: &Agent| json(agent, &["task", "show", &task])["live_credentials"].clone();
    assert_eq!(live(&agent), 1, "a freeze alone takes nothing back");
    assert!(!is_active(&agent, &token), "but suspends it");
    run(&agent, &["thaw", "--task", &task]);
    assert!(is_active(&agent, &token));
    run(&agent, &["freeze", "--task", &task, "--revoke"]);
    run(&agent, &["thaw", "--task", &task]);
    assert!(!is_active(&agent, &token));
    let left = json(&agent, &["task", "show", &task]);
    assert_eq!((&left["state"], &left["live_credentials"]), (&"active".into(), &0.into()));
    assert!(is_running(holder.pid()));
}

#[test]
fn the_self_test_tries_tasks_where_policy_lets_it() {
    let agent = agent();
    let report = json(&agent, &["selftest", "containment"]);
    let attempts = report["attempts"].as_array().unwrap();
    let of_tasks: Vec<(&str, &str)> = attempts
        .iter()
        .filter(|one| one["what"].as_str().unwrap().contains("task"))
        .map(|one| (one["kind"].as_str().unwrap(), one["verdict"].as_str().unwrap()))
        .collect();
    let want =
        [("copy", "held"), ("copy", "limit"), ("copy", "limit"), ("reuse", "held"), ("outlive", "held")];
    assert_eq!(of_tasks, want, "{report:#}");
    assert_eq!(report["ok"], true);
    assert_eq!(json(&agent, &["status"])["live_tasks"], 0, "it leaves nothing behind");
    let elsewhere = json(&agent, &["selftest", "containment", "--audience", "https://nowhere.example.org"]);
    let tried = elsewhere["attempts"].as_array().unwrap().iter().filter(|one| one["verdict"] == "not_tried");
    assert_eq!(tried.count(), 1, "and says when it has no task: {elsewhere:#}");
}
