//! People in the loop, with users of their own: an agent asks, somebody else answers, and what the yes buys. The set is
//! the starter set `writes-need-a-human`. Threats K03 (the screen) is in the tests of the command; K04 is here.

use std::path::Path;

use mayfly_harness::cgroup::Group;
use mayfly_harness::pki::claims;
use mayfly_harness::policies::WIKI;
pub(crate) use mayfly_harness::tasks::refused as reason;
use mayfly_harness::{Agent, Entry, Holder, Idp, Jam, Plan, Policies, Refusal, files, require_root, until};
use mayfly_proto::task as proto;
use serde_json::{Value, json};

const ASKER: u32 = 20_811;
const ANN: u32 = 20_812;
const BOB: u32 = 20_813;
const CAROL: u32 = 20_814;
const STRANGER: u32 = 20_815;

const API: &str = "mayfly.task.v1.TaskAPI";

struct World {
    agent: Agent,
    asker: Holder,
    task: String,
}

fn starter(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/policy/writes-need-a-human");
    std::fs::read_to_string(Path::new(path).join(name)).unwrap()
}

/// With our users, and a target that takes tokens as they are.
fn catalogue() -> String {
    let text = starter("catalogue.toml");
    let users = [("1001", ANN), ("1002", BOB), ("1003", CAROL)];
    let text = users.iter().fold(text, |text, (from, to)| {
        text.replace(&format!("uids = [\"{from}\"]"), &format!("uids = [\"{to}\"]"))
    });
    text.replace("data_class = \"internal\"", "data_class = \"internal\"\nbinding = \"none\"")
}

fn world(more: &str) -> World {
    world_with(more, &catalogue(), |_| String::new())
}

/// With `tables` of the agent's directory at the end of its configuration.
fn world_with(more: &str, catalogue: &str, tables: impl FnOnce(&Agent) -> String) -> World {
    require_root();
    let entry = Entry::new("/agent/editor/a", &[&format!("unix:uid:{ASKER}")]);
    let mut agent = Plan::with_entries(&[entry]).prepare();
    let tables = tables(&agent);
    agent.plan().settings += &format!("\n{tables}\n{more}\n");
    Policies { rules: starter("policy.cedar"), catalogue: catalogue.to_owned() }.install(&mut agent);
    agent.launch();
    agent.open_admin_socket();
    let mut asker = Holder::start(&agent, ASKER);
    let task = begin(&mut asker);
    World { agent, asker, task }
}

fn begin(asker: &mut Holder) -> String {
    let request = proto::BeginRequest { template: "edit".to_owned(), ..Default::default() };
    asker.rpc::<proto::Task>(&format!("{API}/Begin"), &request).unwrap().id
}

pub(crate) type Answer<T> = Result<T, (Refusal, Vec<u8>)>;

fn call(method: &str, page: u32) -> proto::Operation {
    let http = proto::HttpCall {
        method: method.to_owned(),
        host: "wiki.example.org".to_owned(),
        path: format!("/pages/{page}"),
        bytes: 3,
        body_sha256: vec![7; 32].into(),
    };
    proto::Operation { kind: Some(proto::operation::Kind::Http(http)) }
}

impl World {
    fn authorize(
        &mut self,
        action: &str,
        operation: proto::Operation,
        id: Option<&str>,
    ) -> Answer<proto::Decision> {
        let request = proto::AuthorizeRequest {
            task_id: self.task.clone(),
            action: action.to_owned(),
            target: "wiki".to_owned(),
            operation: Some(operation),
            request_approval: id.is_none(),
            approval_id: id.unwrap_or_default().to_owned(),
            ..Default::default()
        };
        self.asker.rpc(&format!("{API}/Authorize"), &request)
    }

    /// Asks people; the approval's name.
    fn ask(&mut self, action: &str, operation: proto::Operation) -> String {
        self.authorize(action, operation, None).unwrap().access_request.unwrap().approval_id
    }

    fn issue(
        &mut self,
        format: proto::Format,
        operation: proto::Operation,
        id: &str,
    ) -> Answer<proto::Credential> {
        let request = proto::IssueRequest {
            task_id: self.task.clone(),
            format: format.into(),
            audience: vec![WIKI.to_owned()],
            operation: Some(operation),
            approval_id: id.to_owned(),
            ..Default::default()
        };
        self.asker.rpc(&format!("{API}/Issue"), &request)
    }

    fn token(&mut self, operation: proto::Operation, id: &str) -> Answer<proto::Credential> {
        self.issue(proto::Format::AccessToken, operation, id)
    }

    /// As the command line has it, asked by root.
    fn shown(&self, id: &str) -> Value {
        let (code, out, err) = self.agent.mayfly(&["approve", "show", id, "--output", "json"]);
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str(&out).unwrap()
    }

    fn decide_as(&self, who: &mut Holder, id: &str, approve: bool) -> Answer<proto::Approval> {
        let operation_sha256 = self.shown(id)["operation_sha256"].as_str().unwrap().to_owned();
        let request = proto::DecideRequest {
            approval_id: id.to_owned(),
            approve,
            operation_sha256,
            ..Default::default()
        };
        decide(who, &self.agent, &request)
    }

    fn decide(&self, uid: u32, id: &str, approve: bool) -> Answer<proto::Approval> {
        self.decide_as(&mut Holder::start(&self.agent, uid), id, approve)
    }

    fn introspect(&self, token: &str) -> Value {
        let socket = self.agent.dir().join("http/http.sock");
        let output = std::process::Command::new("curl")
            .args(["-sS", "--max-time", "20", "--unix-socket"])
            .arg(socket)
            .args(["-d", &format!("token={token}"), "http://localhost/introspect"])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

pub(crate) fn decide(
    who: &mut Holder,
    agent: &Agent,
    request: &proto::DecideRequest,
) -> Answer<proto::Approval> {
    who.rpc_at(&agent.admin_socket(), "mayfly.task.v1.TaskAdmin/Decide", request)
}

fn yes(state: &proto::Approval) -> proto::ApprovalState {
    state.state()
}

#[test]
fn k_a_yes_is_for_exactly_what_was_shown_and_by_those_who_may_give_it() {
    let mut world = world("");
    let id = world.ask("write", call("PUT", 7));
    let shown = world.shown(&id);
    let fact = |name: &str| {
        let facts = shown["facts"].as_array().unwrap();
        let found =
            facts.iter().find(|fact| fact["name"] == name).unwrap_or_else(|| panic!("{name}: {shown}"));
        found["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(fact("request"), "PUT wiki.example.org/pages/7");
    assert_eq!(fact("process"), format!("pid {}, uid {ASKER}", world.asker.pid()));
    assert_eq!(
        (fact("asked by policy"), fact("data class")),
        ("writes-need-human".to_owned(), "internal".to_owned())
    );
    // Who is not on call, or nobody whom the catalogue knows.
    assert_eq!(reason(world.decide(CAROL, &id, true)), "policy_denied");
    assert_eq!(reason(world.decide(CAROL, &id, false)), "not_an_approver");
    assert_eq!(reason(world.decide(STRANGER, &id, true)), "not_an_approver");
    let other = proto::DecideRequest {
        approval_id: id.clone(),
        approve: true,
        operation_sha256: "12".repeat(32),
        ..Default::default()
    };
    let mut ann = Holder::start(&world.agent, ANN);
    assert_eq!(
        reason(decide(&mut ann, &world.agent, &other)),
        "approval_mismatch",
        "something else was shown"
    );
    assert_eq!(reason(world.token(call("PUT", 7), &id)), "approval_pending");
    assert_eq!(yes(&world.decide_as(&mut ann, &id, true).unwrap()), proto::ApprovalState::Approved);
    world.agent.audited(&["approval.granted", &id, &format!("uid:{ANN} (ann)")]);
    // Nothing else can be had for it.
    assert_eq!(reason(world.token(call("PUT", 8), &id)), "approval_mismatch");
    let mut tampered = call("PUT", 7);
    if let Some(proto::operation::Kind::Http(http)) = &mut tampered.kind {
        http.body_sha256 = vec![8; 32].into();
    }
    assert_eq!(reason(world.token(tampered, &id)), "approval_mismatch");
    assert_eq!(
        reason(world.issue(proto::Format::JwtSvid, call("PUT", 7), &id)),
        "approval_needs_access_token"
    );
    assert_eq!(
        reason(world.issue(proto::Format::X509Svid, call("PUT", 7), &id)),
        "approval_needs_access_token"
    );
}

#[test]
fn k_a_yes_buys_one_use_and_a_token_for_that_alone() {
    let mut world = world("");
    let id = world.ask("write", call("PUT", 7));
    let shown = world.shown(&id);
    world.decide(ANN, &id, true).unwrap();
    // To look at it uses nothing.
    assert!(world.authorize("write", call("PUT", 7), Some(&id)).unwrap().allow);
    let token = world.token(call("PUT", 7), &id).unwrap();
    let said = claims(&token.token);
    let life = said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap();
    assert!(life <= 120, "two minutes: {life}");
    assert_eq!((&said["scope"], &said["urn:mayfly:task"]["max_calls"]), (&json!("write"), &json!(1)));
    assert_eq!(
        (&said["urn:mayfly:task"]["approval"], &said["urn:mayfly:task"]["operation_sha256"]),
        (&json!(id), &shown["operation_sha256"])
    );
    let detail = &said["authorization_details"][0];
    assert_eq!(
        (&detail["methods"], &detail["paths"]),
        (&json!(["PUT"]), &json!(["/pages/7"])),
        "not the whole wiki"
    );
    assert_eq!(world.introspect(&token.token)["active"], true);
    assert_eq!(world.introspect(&token.token), json!({"active": false}), "used up");
    assert_eq!(reason(world.token(call("PUT", 7), &id)), "approval_used");
    assert_eq!(world.shown(&id)["state"], "used");
    world.agent.audited(&["approval.used", &id]);
    world.agent.audited(&["credential.revoke", &token.id, "\"reason\":\"used\""]);
    assert_eq!(reason(world.token(call("PUT", 7), "")), "approval_required", "the task is no wider");
}

/// Four eyes: an issuer calls her otherwise than her own machine does, and she is the same person.
#[test]
fn k_nobody_approves_what_is_done_in_their_own_name() {
    let idp = Idp::new();
    let known = format!("uids = [\"{ANN}\"]");
    let named = format!("{known}\nsubjects = [\"{}#00u1\"]", Idp::ISSUER);
    let mut world = world_with("", &catalogue().replace(&known, &named), |agent| {
        let jwks = agent.dir().join("idp.json");
        files::replace(&jwks, &idp.jwks(), 0o644);
        Idp::table(&jwks)
    });
    let request = proto::BeginRequest {
        template: "edit".to_owned(),
        on_behalf_of: idp.token("00u1"),
        ..Default::default()
    };
    world.task = world.asker.rpc::<proto::Task>(&format!("{API}/Begin"), &request).unwrap().id;
    let id = world.ask("write", call("PUT", 7));
    assert_eq!(reason(world.decide(ANN, &id, false)), "own_work");
    assert_eq!(reason(world.decide(ANN, &id, true)), "policy_denied", "four-eyes");
    world.agent.audited(&["agent.attest_denied", "approval", "policy does not let this person approve"]);
    assert_eq!(yes(&world.decide(BOB, &id, true).unwrap()), proto::ApprovalState::Approved);
    let said = claims(&world.token(call("PUT", 7), &id).unwrap().token);
    assert_eq!((&said["sub"], &said["sub_profile"]), (&json!("00u1"), &json!("user")));
}

#[test]
fn k_two_people_have_to_agree_where_policy_says_so_and_one_no_is_final() {
    let mut world = world("");
    let id = world.ask("delete", call("DELETE", 7));
    assert_eq!(world.shown(&id)["quorum"], 2);
    assert_eq!(yes(&world.decide(ANN, &id, true).unwrap()), proto::ApprovalState::Pending);
    assert_eq!(reason(world.decide(ANN, &id, true)), "decided_already");
    assert_eq!(reason(world.decide(0, &id, true)), "root_among_many", "root may be ann");
    assert_eq!(reason(world.token(call("DELETE", 7), &id)), "approval_pending");
    assert_eq!(yes(&world.decide(BOB, &id, true).unwrap()), proto::ApprovalState::Approved);
    let token = world.token(call("DELETE", 7), &id).unwrap().token;
    assert_eq!(claims(&token)["scope"], "delete");
    let id = world.ask("delete", call("DELETE", 8));
    world.decide(ANN, &id, true).unwrap();
    assert_eq!(yes(&world.decide(BOB, &id, false).unwrap()), proto::ApprovalState::Denied);
    world.agent.audited(&["approval.denied", &id, "(bob)"]);
    assert_eq!(reason(world.token(call("DELETE", 8), &id)), "approval_denied");
    assert_eq!(reason(world.decide(ANN, &id, true)), "approval_denied");
}

/// Whoever answers what is answered already, or is not asked any more, is told which.
#[test]
fn an_answer_that_comes_too_late_is_told_why_it_does_not_count() {
    let mut world = world("");
    let id = world.ask("write", call("PUT", 7));
    assert_eq!(yes(&world.decide(ANN, &id, true).unwrap()), proto::ApprovalState::Approved);
    assert_eq!(reason(world.decide(BOB, &id, false)), "approval_approved");
    let id = world.ask("write", call("PUT", 8));
    let end = proto::EndRequest { task_id: world.task.clone(), ..Default::default() };
    world.asker.rpc::<proto::TaskSummary>(&format!("{API}/End"), &end).unwrap();
    assert_eq!(reason(world.decide(ANN, &id, true)), "approval_cancelled");
}

#[test]
fn k_root_decides_where_one_answer_is_enough() {
    let mut world = world("");
    let id = world.ask("write", call("PUT", 7));
    let (code, out, err) = world.agent.mayfly(&["approve", "grant", &id, "--reason", "ticket 17"]);
    assert_eq!(
        (code, out.as_str()),
        (Some(0), format!("approved: write on wiki ({id})\n").as_str()),
        "{err}"
    );
    world.agent.audited(&["approval.granted", "uid:0 (root)", "ticket 17"]);
    assert!(world.token(call("PUT", 7), &id).is_ok());
}

#[test]
fn k_policy_decides_again_when_a_yes_is_used() {
    let mut world = world("");
    let id = world.ask("write", call("PUT", 7));
    world.decide(ANN, &id, true).unwrap();
    assert!(world.authorize("write", call("PUT", 7), Some(&id)).unwrap().allow);
    // Ann is not on call any more.
    let name = format!("uids = [\"{ANN}\"]\ngroups = [");
    let moved = catalogue().replace(&format!("{name}\"oncall\"]"), &format!("{name}\"writers\"]"));
    assert_ne!(moved, catalogue());
    world.agent.write_catalogue(&moved);
    until("the catalogue bites", || {
        let said = world.authorize("write", call("PUT", 7), Some(&id)).unwrap();
        (!said.allow && said.reason == "approval_required").then_some(())
    });
    world.agent.write_catalogue(&catalogue());
    until("ann is back", || world.authorize("write", call("PUT", 7), Some(&id)).unwrap().allow.then_some(()));
    // Nobody writes any more, whoever approves.
    let closed = starter("policy.cedar")
        + "\n@id(\"closed\") @owner(\"security\") forbid(principal, action == Mayfly::Action::\"write\", resource);\n";
    world.agent.write_policies(&closed);
    until("the policy bites", || {
        let said = world.authorize("write", call("PUT", 7), Some(&id)).unwrap();
        (said.reason == "policy_denied").then_some(())
    });
    assert_eq!(reason(world.token(call("PUT", 7), &id)), "policy_denied");
    assert_eq!(reason(world.token(call("PUT", 7), &id)), "approval_used", "it is gone whatever came of it");
}

/// Policy may say nothing itself of who approved: what it asks for when a yes is used is held against who gave it.
#[test]
fn k_a_yes_of_others_than_policy_asks_for_now_is_not_enough() {
    let mut world = world("");
    let id = world.ask("write", call("PUT", 7));
    world.decide(ANN, &id, true).unwrap();
    assert!(world.authorize("write", call("PUT", 7), Some(&id)).unwrap().allow);
    let asks = |group: &str| format!("@id(\"writes-need-human\")\n@requires_approval(\"{group}\")");
    let by = "  context.approval.by in Mayfly::Group::\"oncall\" &&\n";
    let anybody = starter("policy.cedar").replacen(by, "", 1);
    let others = anybody.replacen(&asks("oncall"), &asks("editors"), 1);
    assert!(others != anybody && anybody != starter("policy.cedar"));
    world.agent.write_policies(&others);
    until("policy asks others", || {
        let said = world.authorize("write", call("PUT", 7), Some(&id)).unwrap();
        (!said.allow).then_some(())
    });
    assert_eq!(reason(world.token(call("PUT", 7), &id)), "approval_required");
}

#[test]
fn k_nothing_is_good_for_long() {
    let mut world = world("[approvals]\nuse_within = \"1s\"\n");
    let id = world.ask("write", call("PUT", 7));
    world.decide(ANN, &id, true).unwrap();
    world.agent.audited(&["approval.expired", &id]);
    assert_eq!(reason(world.token(call("PUT", 7), &id)), "approval_expired");
    let mut world = self::world("[approvals]\nanswer_within = \"1s\"\n");
    let id = world.ask("write", call("PUT", 7));
    world.agent.audited(&["approval.expired", &id]);
    assert_eq!(reason(world.decide(ANN, &id, true)), "approval_expired");
}

/// K04: the agent does not approve for itself: not as its own user, not from its cgroup, not from its task or another.
#[test]
fn k04_nobody_decides_from_where_the_agent_is() {
    let mut world = world("");
    // The agent's user is somebody on call, which must not help.
    let text = catalogue()
        + &format!("\n[[people]]\nname = \"agent\"\nuids = [\"{ASKER}\"]\ngroups = [\"oncall\"]\n");
    world.agent.write_catalogue(&text);
    let cgroup = Group::new("approvals");
    cgroup.take(world.asker.pid());
    until("the agent is where it is now", || {
        let task = world.task.clone();
        let get = proto::GetTaskRequest { task_id: task };
        world.asker.rpc::<proto::Task>(&format!("{API}/Get"), &get).ok()
    });
    let id = world.ask("write", call("PUT", 7));
    let operation_sha256 = world.shown(&id)["operation_sha256"].as_str().unwrap().to_owned();
    let request = proto::DecideRequest {
        approval_id: id.clone(),
        approve: true,
        operation_sha256,
        ..Default::default()
    };
    let admin = world.agent.admin_socket();
    // Itself.
    let own = world.asker.rpc_at::<proto::Approval>(&admin, "mayfly.task.v1.TaskAdmin/Decide", &request);
    assert_eq!(reason(own), "in_task");
    // Another process of its user.
    assert_eq!(reason(world.decide(ASKER, &id, true)), "same_user");
    // Somebody on call, by a process in its cgroup, or below it; and root.
    let mut ann = Holder::start(&world.agent, ANN);
    cgroup.take(ann.pid());
    assert_eq!(reason(decide(&mut ann, &world.agent, &request)), "same_cgroup");
    let mut root = Holder::start(&world.agent, 0);
    cgroup.take(root.pid());
    assert_eq!(reason(decide(&mut root, &world.agent, &request)), "same_cgroup");
    world.agent.audited(&["\"phase\":\"approval\"", "cgroup of the agent"]);
    assert_eq!(world.shown(&id)["state"], "pending", "none of that counted");
    let away = Group::new("approvals");
    away.take(ann.pid());
    assert_eq!(yes(&decide(&mut ann, &world.agent, &request).unwrap()), proto::ApprovalState::Approved);
    drop((ann, root));
}

/// Nobody is told "active" of it before it is written down that this was it: a crash would make it good for one more use.
#[test]
fn k04_a_token_for_one_use_is_good_for_none_while_its_use_cannot_be_written_down() {
    let mut jam = None;
    let mut world = world_with("", &catalogue(), |agent| {
        jam = Some(Jam::at(agent.dir(), "ledger.before_begin"));
        String::new()
    });
    let (jam, spec) = jam.take().unwrap();
    let plan = world.agent.plan().clone().failpoints(&spec);
    *world.agent.plan() = plan;
    world.agent.crash_and_restart();
    world.asker.connect();
    let id = world.ask("write", call("PUT", 7));
    world.agent.open_admin_socket();
    world.decide(ANN, &id, true).unwrap();
    let token = world.token(call("PUT", 7), &id).unwrap().token;
    jam.set();
    assert_eq!(world.introspect(&token)["active"], false, "its use is not certain");
    jam.clear();
    until("all is well", || world.agent.admin().status().ready.then_some(()));
    assert_eq!(world.introspect(&token)["active"], false, "it was used up for nothing");
    world.agent.crash_and_restart();
    assert_eq!(world.introspect(&token)["active"], false);
}
