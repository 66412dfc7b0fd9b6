//! Parts of tasks for others: offered, taken up, and gone with what they are part of. Every agent here is a real
//! process; which identity it has is decided by its program's path.

use mayfly_harness::holder::Who;
pub(crate) use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Entry, Holder, Pause, Plan, Policies, TaskRefusal, files, until};
use mayfly_proto::task as proto;
use serde_json::{Value, json};

use crate::http::local;
use crate::support::own_uid;

pub(crate) const POLICY: &str = r#"
@id("fetch") permit(principal, action == Mayfly::Action::"fetch", resource);
@id("begin") permit(principal in Mayfly::Group::"planners", action == Mayfly::Action::"begin", resource);
@id("hand-on") permit(principal, action == Mayfly::Action::"delegate", resource in Mayfly::Group::"workers");
@id("read") permit(principal, action == Mayfly::Action::"read", resource);
@id("write") permit(principal in Mayfly::Group::"planners", action == Mayfly::Action::"write", resource);
"#;

const TEMPLATES: &str = r#"
[[templates]]
name = "summarise"
owner = "docs"
[[templates.params]]
name = "space"
type = "name"
[templates.ceilings]
credential_ttl = "1m"
[[templates.details]]
target = "wiki"
actions = ["read"]
locations = ["https://wiki.example.org/{space}"]

[[templates]]
name = "rewrite"
owner = "docs"
[[templates.details]]
target = "wiki"
actions = ["write"]
"#;

pub(crate) fn policies() -> Policies {
    Policies::of(POLICY)
        .agents("planner", "planners", &["*"])
        .agents("worker/*", "workers", &["summarise"])
        .target("wiki", &[("location", WIKI)])
        .more(TEMPLATES)
}

const PLANNER: &str = "spiffe://example.org/planner";
pub(crate) const ANN: &str = "spiffe://example.org/worker/ann";
pub(crate) const BEN: &str = "spiffe://example.org/worker/ben";

pub(crate) struct World {
    pub(crate) agent: Agent,
}

pub(crate) fn entries(agent: &Agent) -> Vec<Entry> {
    ["planner", "worker/ann", "worker/ben"]
        .iter()
        .map(|name| {
            let program = program(agent, name);
            let path = format!("unix:path:{}", program.display());
            Entry::new(&format!("/{name}"), &[&format!("unix:uid:{}", own_uid()), &path])
        })
        .collect()
}

/// Where the program of that agent is.
fn program(agent: &Agent, name: &str) -> std::path::PathBuf {
    agent.dir().join(name.replace('/', "-"))
}

impl World {
    fn start(failpoints: impl Fn(&Agent) -> String) -> Self {
        Self::prepared(|agent| {
            let spec = failpoints(agent);
            agent.failpoints(&spec);
        })
    }

    /// With something else that is done to the agent before it is launched.
    pub(crate) fn prepared(prepare: impl FnOnce(&mut Agent)) -> Self {
        let mut agent = Plan::with_entries(&[]).prepare();
        policies().install(&mut agent);
        agent.write_entries(&entries(&agent));
        prepare(&mut agent);
        agent.launch();
        Self { agent }
    }

    pub(crate) fn new() -> Self {
        Self::start(|_| String::new())
    }

    pub(crate) fn planner(&self) -> Holder {
        self.agent_of("planner")
    }

    pub(crate) fn ann(&self) -> Holder {
        self.agent_of("worker/ann")
    }

    pub(crate) fn ben(&self) -> Holder {
        self.agent_of("worker/ben")
    }

    fn agent_of(&self, name: &str) -> Holder {
        let program = program(&self.agent, name);
        if !program.exists() {
            // By another process: a test that forks just now would keep our descriptor, and the program from running.
            let copied =
                std::process::Command::new("cp").arg(files::built("mayfly-holder")).arg(&program).status();
            assert!(copied.unwrap().success());
        }
        Who::uid(own_uid()).program(&program).start(&self.agent)
    }

    pub(crate) fn introspect(&self, token: &str) -> Value {
        local(&self.agent, "/introspect", &["-d", &format!("token={token}")]).json()
    }

    pub(crate) fn is_active(&self, token: &str) -> bool {
        self.introspect(token)["active"] == true
    }
}

pub(crate) fn begin(holder: &mut Holder) -> proto::Task {
    let details = vec![detail(WIKI, &["read", "write"])];
    holder.task_call("Begin", &proto::BeginRequest { details, ..Default::default() }).unwrap()
}

/// An offer to read somewhere below the wiki.
pub(crate) fn offer(parent: &proto::Task, to: &str, place: &str) -> proto::DelegateRequest {
    proto::DelegateRequest {
        task_id: parent.id.clone(),
        spiffe_id: to.to_owned(),
        details: vec![detail(&format!("{WIKI}{place}"), &["read"])],
        ..Default::default()
    }
}

fn delegate(holder: &mut Holder, request: &proto::DelegateRequest) -> Result<proto::Delegation, TaskRefusal> {
    holder.task_call("Delegate", request)
}

fn join(holder: &mut Holder, offer: &proto::Delegation) -> Result<proto::Task, TaskRefusal> {
    let request = proto::JoinRequest { delegation_id: offer.id.clone(), ..Default::default() };
    holder.task_call("Join", &request)
}

/// The child that one agent hands to another.
pub(crate) fn child(
    parent: &proto::Task,
    from: &mut Holder,
    to: &mut Holder,
    name: &str,
    place: &str,
) -> proto::Task {
    let offered = delegate(from, &offer(parent, name, place)).unwrap();
    join(to, &offered).unwrap()
}

pub(crate) fn wanted(task: &proto::Task, format: proto::Format) -> proto::IssueRequest {
    proto::IssueRequest {
        task_id: task.id.clone(),
        format: format.into(),
        audience: vec![WIKI.to_owned()],
        ..Default::default()
    }
}

pub(crate) fn issue(holder: &mut Holder, task: &proto::Task) -> Result<proto::Credential, TaskRefusal> {
    holder.task_call("Issue", &wanted(task, proto::Format::AccessToken))
}

pub(crate) fn end(holder: &mut Holder, task: &proto::Task) -> Result<proto::TaskSummary, TaskRefusal> {
    holder.task_call("End", &proto::EndRequest { task_id: task.id.clone(), ..Default::default() })
}

pub(crate) fn get(holder: &mut Holder, task: &proto::Task) -> Result<proto::Task, TaskRefusal> {
    holder.task_call("Get", &proto::GetTaskRequest { task_id: task.id.clone() })
}

pub(crate) fn seconds(at: Option<&prost_types::Timestamp>) -> i64 {
    at.expect("a moment").seconds
}

pub(crate) fn lasting(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[test]
fn a_child_is_what_was_offered_and_its_tokens_say_by_whom() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let offered = delegate(&mut planner, &offer(&root, ANN, "/docs")).unwrap();
    assert!(offered.id.starts_with("dlg_") && offered.spiffe_id == ANN && offered.parent == root.id);
    assert_eq!(
        seconds(offered.deadline.as_ref()),
        seconds(root.deadline.as_ref()),
        "what is left of the parent"
    );
    assert_eq!(get(&mut planner, &root).unwrap().live_children, 0, "nothing exists yet");
    let child = join(&mut ann, &offered).unwrap();
    assert_eq!(
        (child.parent.as_str(), child.root.as_str(), child.depth),
        (root.id.as_str(), root.id.as_str(), 1)
    );
    assert_eq!(child.chain, [PLANNER, ANN]);
    assert_eq!(child.details, offered.details);
    assert_eq!(child.pid, ann.pid());
    assert!(child.evaluation_id.starts_with("evl_"));
    let token = issue(&mut ann, &child).unwrap();
    let said = world.introspect(&token.token);
    assert_eq!(said["active"], true);
    assert_eq!(said["act"], json!({"sub": ANN, "sub_profile": "ai_agent"}), "{said}");
    assert_eq!((said["sub"].as_str(), said["txn"].as_str()), (Some(PLANNER), Some(root.id.as_str())));
    assert_eq!(said["authorization_details"][0]["locations"], json!([format!("{WIKI}/docs")]));
    let seen = get(&mut planner, &root).unwrap();
    assert_eq!((seen.live_children, seen.used.unwrap().calls), (1, 1), "a parent spends with its children");
    assert_eq!(get(&mut planner, &child).unwrap().live_credentials, 1, "and sees them");
    assert_eq!(get(&mut ann, &root).unwrap_err().reason, "no_such_task", "they do not see it");
    world.agent.audited(&["task.delegate", &root.id, ANN, "hand-on"]);
    world.agent.audited(&["task.join", &child.id, &root.id, "hand-on"]);
}

/// H10 for trees: nothing of a task outlives the process that holds what it is part of.
#[test]
fn a_killed_root_takes_every_descendant_and_all_that_they_were_given_along() {
    let world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let access = [issue(&mut ann, &below).unwrap(), issue(&mut ben, &deepest).unwrap()];
    let whole = child(&root, &mut planner, &mut ben, BEN, "");
    let svid: proto::Credential = ben.task_call("Issue", &wanted(&whole, proto::Format::JwtSvid)).unwrap();
    assert!(access.iter().all(|one| world.is_active(&one.token)));
    assert!(ann.validate(WIKI, &svid.token).is_ok());
    planner.kill();
    for one in &access {
        until("refused with its root", || (!world.is_active(&one.token)).then_some(()));
    }
    assert_eq!(ann.validate(WIKI, &svid.token).unwrap_err().code, 3);
    let gone = get(&mut ben, &deepest).unwrap();
    assert_eq!((gone.state(), gone.reason.as_str()), (proto::TaskState::Ended, "parent_ended"));
    assert_eq!(issue(&mut ben, &deepest).unwrap_err().reason, "task_ended");
    world.agent.audited(&["task.ended", "\"reason\":\"process_exit\"", &root.id, "\"descendants\":3"]);
    world.agent.audited(&["task.ended", "\"reason\":\"parent_ended\"", &deepest.id]);
    for one in access.iter().chain([&svid]) {
        world.agent.audited(&["credential.revoke", "task_ended", &one.id]);
    }
}

#[test]
fn a_child_that_exits_ends_itself_and_what_is_below_and_nothing_else() {
    let world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let token = issue(&mut ben, &deepest).unwrap();
    let own = issue(&mut planner, &root).unwrap();
    ann.kill();
    until("refused with its parent", || (!world.is_active(&token.token)).then_some(()));
    assert!(world.is_active(&own.token), "what is above stays");
    let seen = get(&mut planner, &root).unwrap();
    assert_eq!((seen.state(), seen.live_children), (proto::TaskState::Active, 0));
    assert_eq!(get(&mut planner, &below).unwrap().reason, "process_exit");
    let summary = end(&mut planner, &root).unwrap();
    assert_eq!((summary.tasks, summary.credentials), (1, 1));
}

/// One process holds two roots: what each took along is counted for it, not for the first.
#[test]
fn a_process_with_several_roots_ends_them_all_and_each_is_counted_by_itself() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let (one, other) = (begin(&mut planner), begin(&mut planner));
    let children =
        [child(&one, &mut planner, &mut ann, ANN, "/a"), child(&other, &mut planner, &mut ann, ANN, "/b")];
    issue(&mut planner, &one).unwrap();
    issue(&mut ann, &children[0]).unwrap();
    let last = issue(&mut ann, &children[1]).unwrap();
    planner.kill();
    until("refused", || (!world.is_active(&last.token)).then_some(()));
    world.agent.audited(&["task.ended", "process_exit", &one.id, "\"credentials\":2", "\"descendants\":1"]);
    world.agent.audited(&["task.ended", "process_exit", &other.id, "\"credentials\":1", "\"descendants\":1"]);
    assert_eq!(get(&mut ann, &children[1]).unwrap().reason, "parent_ended");
}

#[test]
fn an_offer_is_for_one_identity_and_good_once() {
    let world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let offered = delegate(&mut planner, &offer(&root, ANN, "/docs")).unwrap();
    let made_up = proto::Delegation { id: "dlg_01K6000000000000000000000A".to_owned(), ..offered.clone() };
    let of_none = join(&mut ben, &made_up).unwrap_err();
    assert_eq!((of_none.code, of_none.reason.as_str()), (5, "no_such_task"));
    assert_eq!(join(&mut ben, &offered).unwrap_err(), of_none, "a stranger does not learn that there is one");
    assert_eq!(join(&mut planner, &offered).unwrap_err(), of_none);
    let request = proto::JoinRequest {
        delegation_id: offered.id.clone(),
        idempotency_key: "once".to_owned(),
        ..Default::default()
    };
    let joined: proto::Task = ann.task_call("Join", &request).unwrap();
    let again: proto::Task = ann.task_call("Join", &request).unwrap();
    assert_eq!(again.id, joined.id, "the same request gives the same task");
    assert_eq!(join(&mut ann, &offered).unwrap_err().reason, "delegation_used");
    assert_eq!(join(&mut ben, &offered).unwrap_err(), of_none, "says no more than before");
    let mut second = world.ann();
    assert_eq!(join(&mut second, &offered).unwrap_err().reason, "delegation_used", "nor for a twin");
    assert_eq!(join(&mut ann, &made_up).unwrap_err(), of_none);
    // What ends takes its offers along.
    let open = delegate(&mut planner, &offer(&root, BEN, "/docs")).unwrap();
    end(&mut planner, &root).unwrap();
    assert_eq!(join(&mut ben, &open).unwrap_err().reason, "no_such_task");
    assert_eq!(delegate(&mut planner, &offer(&root, BEN, "/docs")).unwrap_err().reason, "task_ended");
}

#[test]
fn a_child_never_has_more_or_longer_than_its_parent() {
    let world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let details = vec![detail(&format!("{WIKI}/docs"), &["read", "write"])];
    let limits = Some(proto::Limits { max_calls: 2, ..Default::default() });
    let request = proto::BeginRequest { details, ttl: lasting(60), limits, ..Default::default() };
    let root: proto::Task = planner.task_call("Begin", &request).unwrap();
    let refused = |planner: &mut Holder, details| {
        let request = proto::DelegateRequest { details, ..offer(&root, ANN, "") };
        delegate(planner, &request).unwrap_err().reason
    };
    assert_eq!(refused(&mut planner, vec![detail(WIKI, &["read"])]), "exceeds_parent");
    let deleting = vec![detail(&format!("{WIKI}/docs"), &["read", "delete"])];
    assert_eq!(refused(&mut planner, deleting), "exceeds_parent", "refused, not cut");
    assert_eq!(refused(&mut planner, Vec::new()), "malformed", "nothing is inherited that was not named");
    // Longer and more than the parent: as long and as much as the parent.
    let greedy = proto::DelegateRequest {
        ttl: lasting(3600),
        limits: Some(proto::Limits { max_calls: 100, max_children: 100, ..Default::default() }),
        ..offer(&root, ANN, "/docs")
    };
    let offered = delegate(&mut planner, &greedy).unwrap();
    let below = join(&mut ann, &offered).unwrap();
    assert!(seconds(below.deadline.as_ref()) <= seconds(root.deadline.as_ref()));
    assert!(seconds(below.latest_deadline.as_ref()) <= seconds(root.latest_deadline.as_ref()));
    assert_eq!(below.limits.as_ref().unwrap().max_calls, 2);
    issue(&mut ann, &below).unwrap();
    issue(&mut planner, &root).unwrap();
    assert_eq!(issue(&mut ann, &below).unwrap_err().reason, "limit_calls", "one budget for the tree");
    // A child's child is held to the child's.
    assert_eq!(delegate(&mut ann, &offer(&below, BEN, "")).unwrap_err().reason, "exceeds_parent");
    let deeper = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    assert_eq!(deeper.details[0].locations, [format!("{WIKI}/docs/one")]);
}

/// Requested, inside the parent's, and what policy gives the child: workers may not write, whoever asks them to.
#[test]
fn policy_decides_who_may_hand_on_and_what_is_left_for_a_child() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let to_planner = delegate(&mut planner, &offer(&root, PLANNER, "/docs")).unwrap_err();
    assert_eq!((to_planner.code, to_planner.reason.as_str()), (7, "policy_denied"));
    world.agent.audited(&["decision.deny", "\"action\":\"delegate\"", &root.id, PLANNER]);
    let writing = proto::DelegateRequest {
        details: vec![detail(&format!("{WIKI}/docs"), &["read", "write"])],
        ..offer(&root, ANN, "")
    };
    let offered = delegate(&mut planner, &writing).unwrap();
    assert_eq!(offered.details[0].actions, ["read", "write"]);
    let joined = join(&mut ann, &offered).unwrap();
    assert_eq!(joined.details[0].actions, ["read"], "the write is ruled out for good");
    let only = proto::DelegateRequest {
        details: vec![detail(&format!("{WIKI}/docs"), &["write"])],
        ..offer(&root, ANN, "")
    };
    let offered = delegate(&mut planner, &only).unwrap();
    assert_eq!(join(&mut ann, &offered).unwrap_err().reason, "not_granted", "nothing is left");
    // Workers begin nothing; what they have comes from others.
    let request = proto::BeginRequest { details: vec![detail(WIKI, &["read"])], ..Default::default() };
    assert_eq!(ann.task_call::<proto::Task>("Begin", &request).unwrap_err().reason, "policy_denied");
    // The set changed between the offer and its taking up.
    let offered = delegate(&mut planner, &offer(&root, ANN, "/docs")).unwrap();
    let closed = POLICY.replace("@id(\"hand-on\") permit", "@id(\"hand-on\") forbid");
    let closed = closed.replace("@id(\"write\") permit", "@id(\"write\") forbid");
    world.agent.write_policies(&closed);
    let asked = proto::AuthorizeRequest {
        task_id: root.id.clone(),
        action: "write".to_owned(),
        target: "wiki".to_owned(),
        ..Default::default()
    };
    until("the new set bites", || {
        let said: proto::Decision = planner.task_call("Authorize", &asked).unwrap();
        (!said.allow).then_some(())
    });
    assert_eq!(join(&mut ann, &offered).unwrap_err().reason, "policy_denied");
}

#[test]
fn a_childs_template_is_filled_like_a_roots_and_must_be_the_childs_to_use() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let by = |template: &str, params: &[(&str, &str)]| proto::DelegateRequest {
        details: Vec::new(),
        template: template.to_owned(),
        params: params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..offer(&root, ANN, "")
    };
    let offered = delegate(&mut planner, &by("summarise", &[("space", "docs")])).unwrap();
    let joined = join(&mut ann, &offered).unwrap();
    assert_eq!(joined.template, "summarise");
    assert_eq!(joined.details[0].locations, [format!("{WIKI}/docs")]);
    let token = issue(&mut ann, &joined).unwrap();
    let said = world.introspect(&token.token);
    assert!(said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap() <= 60, "{said}");
    assert_eq!(delegate(&mut planner, &by("summarise", &[])).unwrap_err().reason, "malformed");
    assert_eq!(delegate(&mut planner, &by("rewrite", &[])).unwrap_err().reason, "policy_denied");
    assert_eq!(delegate(&mut planner, &by("unknown", &[])).unwrap_err().reason, "policy_denied");
}

#[test]
fn whoever_must_be_isolated_stays_so_and_a_cgroup_is_not_promised() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let alone = proto::DelegateRequest { require_isolated: true, ..offer(&root, ANN, "/docs") };
    let offered = delegate(&mut planner, &alone).unwrap();
    assert_eq!(join(&mut ann, &offered).unwrap_err().reason, "scope_unavailable");
    let offered = delegate(&mut planner, &offer(&root, ANN, "/docs")).unwrap();
    let request = proto::JoinRequest {
        delegation_id: offered.id.clone(),
        process_scope: proto::Scope::Cgroup.into(),
        ..Default::default()
    };
    assert_eq!(ann.task_call::<proto::Task>("Join", &request).unwrap_err().reason, "scope_unavailable");
    assert!(join(&mut ann, &offered).is_ok(), "a refused join uses up nothing");
}

/// Begins a call twice; both wait at the same point before either goes on.
fn twice(planner: &mut Holder, method: &str, request: &impl prost::Message, pause: &Pause) {
    for _ in 0..2 {
        planner.task_begin_call(method, request);
        pause.hit();
        pause.forget();
    }
    pause.release();
}

/// Two equal requests, both past the look at the keys before either is seated: one task, one offer.
#[test]
fn equal_requests_at_the_same_moment_make_one_task_and_one_offer() {
    let world = std::cell::RefCell::new(None);
    let started = World::start(|agent| {
        let (begin, one) = Pause::at(agent.dir(), "task.before_seat");
        let (offer, other) = Pause::at(agent.dir(), "task.before_offer");
        *world.borrow_mut() = Some((begin, offer));
        format!("{one};{other}")
    });
    let (seat, hand_on) = world.into_inner().unwrap();
    let mut planner = started.planner();
    let request = proto::BeginRequest {
        details: vec![detail(WIKI, &["read"])],
        idempotency_key: "k".to_owned(),
        ..Default::default()
    };
    twice(&mut planner, "Begin", &request, &seat);
    let both = [planner.task_answer::<proto::Task>().unwrap(), planner.task_answer().unwrap()];
    assert_eq!(both[0].id, both[1].id);
    let request = proto::DelegateRequest { idempotency_key: "d".to_owned(), ..offer(&both[0], ANN, "/docs") };
    twice(&mut planner, "Delegate", &request, &hand_on);
    let both = [planner.task_answer::<proto::Delegation>().unwrap(), planner.task_answer().unwrap()];
    assert_eq!(both[0].id, both[1].id);
    let other = proto::DelegateRequest { purpose: "else".to_owned(), ..request };
    assert_eq!(delegate(&mut planner, &other).unwrap_err().reason, "idempotency_conflict");
    let count = std::fs::read_to_string(started.agent.audit_path()).unwrap();
    assert_eq!(count.matches("\"task.begin\"").count(), 1, "and one record");
}

#[test]
fn whoever_loses_the_identity_of_a_task_loses_the_task_and_all_below_it() {
    let world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let (own, theirs) = (issue(&mut planner, &root).unwrap(), issue(&mut ben, &deepest).unwrap());
    let without_ann: Vec<Entry> =
        entries(&world.agent).into_iter().filter(|entry| entry.path != "/worker/ann").collect();
    world.agent.write_entries(&without_ann);
    until("refused with its parent", || (!world.is_active(&theirs.token)).then_some(()));
    let seen = get(&mut planner, &below).unwrap();
    assert_eq!((seen.state(), seen.reason.as_str()), (proto::TaskState::Ended, "policy"));
    assert_eq!(get(&mut ben, &deepest).unwrap().reason, "parent_ended");
    assert!(world.is_active(&own.token), "the planner has lost nothing");
    world.agent.audited(&["task.ended", "\"reason\":\"policy\"", &below.id, "\"descendants\":1"]);
    // Back again is another task.
    world.agent.write_entries(&entries(&world.agent));
    let offered = delegate(&mut planner, &offer(&root, ANN, "/docs")).unwrap();
    let again = until("the entry is back", || join(&mut ann, &offered).ok());
    assert_ne!(again.id, below.id);
}

#[test]
fn once_a_parent_has_ended_nothing_is_issued_to_a_child_that_was_asking_all_the_time() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    ann.task_loop("Issue", &wanted(&below, proto::Format::AccessToken));
    let mut tokens: Vec<String> =
        (0..5).map(|_| ann.task_answer::<proto::Credential>().unwrap().token).collect();
    let summary = end(&mut planner, &root).unwrap();
    assert_eq!(summary.tasks, 2);
    let refused = loop {
        match ann.task_answer::<proto::Credential>() {
            Ok(more) => tokens.push(more.token),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.reason, "task_ended");
    for token in &tokens {
        assert!(!world.is_active(token));
    }
    assert_eq!(get(&mut ann, &below).unwrap().live_credentials, 0);
}

/// What was decided before a freeze or a kill, and is not yet there, does not come to be after it.
#[test]
fn a_freeze_finds_what_is_under_way() {
    let pauses = std::cell::RefCell::new(None);
    let world = World::start(|agent| {
        let (seat, one) = Pause::at(agent.dir(), "task.before_seat");
        let (land, other) = Pause::at(agent.dir(), "task.before_land");
        *pauses.borrow_mut() = Some((seat, land));
        format!("{one};{other}")
    });
    let (seat, land) = pauses.into_inner().unwrap();
    let mut planner = world.planner();
    let begin = proto::BeginRequest { details: vec![detail(WIKI, &["read"])], ..Default::default() };
    planner.task_begin_call("Begin", &begin);
    seat.hit();
    seat.release();
    let task = planner.task_answer::<proto::Task>().unwrap();
    // A credential.
    let issue = proto::IssueRequest {
        task_id: task.id.clone(),
        format: proto::Format::AccessToken.into(),
        audience: vec![WIKI.to_owned()],
        ..Default::default()
    };
    planner.task_begin_call("Issue", &issue);
    land.hit();
    let (code, _, err) = world.agent.mayfly(&["freeze", "--task", &task.id, "--revoke"]);
    assert_eq!(code, Some(0), "{err}");
    land.release();
    assert_eq!(planner.task_answer::<proto::Credential>().unwrap_err().reason, "frozen");
    world.agent.audited(&["credential.revoke", "\"reason\":\"operator\"", &task.id]);
    let (code, _, err) = world.agent.mayfly(&["thaw", "--task", &task.id]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(get(&mut planner, &task).unwrap().live_credentials, 0);
    // A task.
    seat.arm();
    planner.task_begin_call("Begin", &begin);
    seat.hit();
    let (code, _, err) = world.agent.mayfly(&["freeze", "--agent", PLANNER]);
    assert_eq!(code, Some(0), "{err}");
    seat.release();
    assert_eq!(planner.task_answer::<proto::Task>().unwrap_err().reason, "frozen");
}

/// What a caller names and this agent does not know could be a limit: it is refused, not passed over.
#[test]
fn a_field_that_nobody_knows_is_refused_wherever_it_is() {
    let world = World::new();
    let mut planner = world.planner();
    let request = proto::BeginRequest { details: vec![detail(WIKI, &["read"])], ..Default::default() };
    let request = prost::Message::encode_to_vec(&request);
    assert!(planner.task_call_raw::<proto::Task>("Begin", &request).is_ok());
    // A detail with a ninth field.
    let ninth = [&request[..], &[0x22, 3, 0x4a, 1, b'x']].concat();
    // A request with a field of its own.
    let fifteenth = [&request[..], &[0x78, 1]].concat();
    for (request, place) in [(ninth, "details.#9"), (fifteenth, "#15")] {
        let refused = planner.task_call_raw::<proto::Task>("Begin", &request).unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (3, "malformed"));
        assert!(refused.message.contains(place), "{refused:?}");
    }
}
