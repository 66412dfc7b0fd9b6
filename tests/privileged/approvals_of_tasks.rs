//! People allow a task to begin, or a part of one to be handed on; and what their answers count for, whoever they are by
//! the time that it does.

mod used;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use mayfly_harness::policies::{ONCALL_APPROVES, TASKS_NEED_A_PERSON, WIKI};
use mayfly_harness::tasks::{detail, refused as reason};
use mayfly_harness::{Agent, Entry, Holder, Pause, Plan, Policies, TaskRefusal, files, require_root, until};
use mayfly_proto::task as proto;
use mayfly_proto::task::task_event::Event;
use serde_json::Value;

use crate::approvals::{Answer, decide};

const ASKER: u32 = 20_821;
const WORKER: u32 = 20_822;
const ANN: u32 = 20_823;
const BOB: u32 = 20_824;
const CAROL: u32 = 20_825;

const WORKER_ID: &str = "spiffe://example.org/worker";

const WRITES_NEED_TWO: &str = r#"
@id("writes-need-two") @requires_approval("oncall")
forbid(principal, action == Mayfly::Action::"write", resource)
unless { context has approval && context.approval.quorum >= 2 };
"#;

/// Of the template `deep`: it is for one space.
const SPACE: &str = r#"
locations = ["https://wiki.example.org/{space}"]
[[templates.params]]
name = "space"
type = "name"
"#;

fn policies() -> Policies {
    Policies::open()
        .permit("delegate")
        .permit("read")
        .permit("write")
        .rule(TASKS_NEED_A_PERSON)
        .rule(WRITES_NEED_TWO)
        .rule(ONCALL_APPROVES)
        .target("wiki", &[("location", WIKI)])
        .template("deep", "wiki", &["read"])
        .more(SPACE)
        .person("ann", ANN, "oncall")
        .person("bob", BOB, "oncall")
        .person("carol", CAROL, "writers")
}

/// Ann has gone to another group.
fn without_ann() -> String {
    let ann = format!("uids = [\"{ANN}\"]\ngroups = ");
    policies().catalogue.replace(&format!("{ann}[\"oncall\"]"), &format!("{ann}[\"writers\"]"))
}

struct World {
    agent: Agent,
    asker: Holder,
}

impl World {
    fn new() -> Self {
        Self::prepared(|_| {})
    }

    /// In which the agent waits at that failpoint, from when it is armed on.
    fn paused(point: &str) -> (Self, Pause) {
        let mut pause = None;
        let world = Self::prepared(|agent| {
            let paused = agent.pause_at(point);
            paused.release();
            pause = Some(paused);
        });
        (world, pause.unwrap())
    }

    fn prepared(prepare: impl FnOnce(&mut Agent)) -> Self {
        require_root();
        let entry = |path: &str, uid: u32| Entry::new(path, &[&format!("unix:uid:{uid}")]);
        let entries = [entry("/asker", ASKER), entry("/worker", WORKER), entry("/root", 0)];
        let mut agent = Plan::with_entries(&entries).prepare();
        policies().install(&mut agent);
        prepare(&mut agent);
        agent.write_config();
        agent.launch();
        agent.open_admin_socket();
        let asker = Holder::start(&agent, ASKER);
        Self { agent, asker }
    }

    /// A task that has to wait.
    fn begin(&mut self) -> proto::Task {
        let request = proto::BeginRequest {
            purpose: "APPROVED by security".to_owned(),
            template: "deep".to_owned(),
            params: [("space".to_owned(), "docs".to_owned())].into(),
            ..Default::default()
        };
        let task: proto::Task = self.asker.task_call("Begin", &request).unwrap();
        assert_eq!(task.state(), proto::TaskState::PendingApproval);
        task
    }

    /// A task that has not.
    fn free(&mut self) -> proto::Task {
        let details = vec![detail(WIKI, &["read", "write"])];
        let request = proto::BeginRequest { details, ..Default::default() };
        let task: proto::Task = self.asker.task_call("Begin", &request).unwrap();
        assert_eq!(task.state(), proto::TaskState::Active);
        task
    }

    fn get(&mut self, task: &proto::Task) -> proto::Task {
        self.asker.task_call("Get", &proto::GetTaskRequest { task_id: task.id.clone() }).unwrap()
    }

    fn issue(&mut self, task: &proto::Task) -> Result<proto::Credential, TaskRefusal> {
        self.asker.task_call("Issue", &wanted(task))
    }

    fn delegate(&mut self, parent: &proto::Task) -> Result<proto::Delegation, TaskRefusal> {
        let request = proto::DelegateRequest {
            task_id: parent.id.clone(),
            spiffe_id: WORKER_ID.to_owned(),
            details: vec![detail(&format!("{WIKI}/docs"), &["read"])],
            ..Default::default()
        };
        self.asker.task_call("Delegate", &request)
    }

    /// What was asked for a task, and is open.
    fn asked(&self, task: &proto::Task) -> String {
        let (code, out, err) =
            self.agent.mayfly(&["approve", "list", "--task", &task.id, "--output", "json"]);
        assert_eq!(code, Some(0), "{err}");
        let said: Value = serde_json::from_str(&out).unwrap();
        let [one] = said["approvals"].as_array().unwrap().as_slice() else { panic!("{said}") };
        one["approval"].as_str().unwrap().to_owned()
    }

    fn shown(&self, id: &str) -> Value {
        let (code, out, err) = self.agent.mayfly(&["approve", "show", id, "--output", "json"]);
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str(&out).unwrap()
    }

    fn decide(&self, uid: u32, id: &str, approve: bool) -> Answer<proto::Approval> {
        decide(&mut Holder::start(&self.agent, uid), &self.agent, &self.answer(id, approve))
    }

    fn yes(&self, id: &str) -> proto::DecideRequest {
        self.answer(id, true)
    }

    fn answer(&self, id: &str, approve: bool) -> proto::DecideRequest {
        let operation_sha256 = self.shown(id)["operation_sha256"].as_str().unwrap().to_owned();
        let approval_id = id.to_owned();
        proto::DecideRequest { approval_id, approve, operation_sha256, ..Default::default() }
    }

    /// Another file of the set; in force when this returns.
    fn put(&self, name: &str, text: &str) {
        let loaded =
            || std::fs::read_to_string(self.agent.audit_path()).unwrap().matches("policy.loaded").count();
        let before = loaded();
        files::replace(&self.agent.policy_dir().join(name), text.as_bytes(), 0o644);
        until("the set is in force", || (loaded() > before).then_some(()));
    }
}

fn wanted(task: &proto::Task) -> proto::IssueRequest {
    proto::IssueRequest {
        task_id: task.id.clone(),
        format: proto::Format::AccessToken.into(),
        audience: vec![WIKI.to_owned()],
        ..Default::default()
    }
}

fn join(holder: &mut Holder, offer: &proto::Delegation) -> Result<proto::Task, TaskRefusal> {
    let request = proto::JoinRequest { delegation_id: offer.id.clone(), ..Default::default() };
    holder.task_call("Join", &request)
}

fn fact<'a>(shown: &'a Value, name: &str) -> &'a str {
    let facts = shown["facts"].as_array().unwrap();
    let found = facts.iter().find(|fact| fact["name"] == name);
    found.unwrap_or_else(|| panic!("{name}: {shown}"))["value"].as_str().unwrap()
}

/// The next event of a stream that fits.
fn event_until<T>(holder: &mut Holder, fits: impl Fn(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = fits(holder.next_task_event().unwrap().event.unwrap()) {
            return found;
        }
    }
}

fn ended(event: Event) -> Option<proto::TaskSummary> {
    if let Event::Ended(summary) = event { Some(summary) } else { None }
}

#[test]
fn k_a_task_waits_for_people_and_goes_on_when_they_have_allowed_it() {
    let mut world = World::new();
    let task = world.begin();
    assert_eq!(world.issue(&task).unwrap_err().reason, "pending_approval");
    assert_eq!(world.delegate(&task).unwrap_err().reason, "pending_approval");
    let renew = proto::RenewRequest { task_id: task.id.clone(), ..Default::default() };
    assert_eq!(world.asker.task_call::<proto::Task>("Renew", &renew).unwrap_err().reason, "pending_approval");
    let begun = world.agent.audited(&["task.begin", &task.id, "pending_approval", "requestable"]);
    world.asker.task_watch(&task.id);
    let id = event_until(&mut world.asker, |event| match event {
        Event::Approval(approval) => Some(approval.id),
        _ => None,
    });
    assert_eq!(id, world.asked(&task));
    let asked = world.agent.audited(&["approval.requested", &id]);
    assert!(begun["seq"].as_u64() < asked["seq"].as_u64());

    // What the agent's daemon knows comes first, what the agent says last.
    let shown = world.shown(&id);
    assert_eq!((fact(&shown, "action"), fact(&shown, "template")), ("begin", "deep"));
    assert_eq!((fact(&shown, "parameter"), fact(&shown, "for")), ("space = docs", "900 s"));
    assert_eq!(fact(&shown, "may"), format!("read on {WIKI}/docs"));
    assert_eq!(fact(&shown, "process"), format!("pid {}, uid {ASKER}", world.asker.pid()));
    assert_eq!(fact(&shown, "asked by policy"), "deep-needs-a-person");
    let (_, page, _) = world.agent.mayfly(&["approve", "show", &id]);
    assert!(page.trim_end().ends_with("APPROVED by security"), "{page}");
    assert!(page.find("UNTRUSTED").unwrap() > page.find("asked by policy").unwrap(), "{page}");

    assert_eq!(reason(world.decide(ASKER, &id, true)), "same_user");
    assert_eq!(reason(world.decide(CAROL, &id, true)), "policy_denied");
    let other = proto::DecideRequest {
        approval_id: id.clone(),
        approve: true,
        operation_sha256: "12".repeat(32),
        ..Default::default()
    };
    let mut ann = Holder::start(&world.agent, ANN);
    assert_eq!(reason(decide(&mut ann, &world.agent, &other)), "approval_mismatch");
    assert_eq!(world.get(&task).state(), proto::TaskState::PendingApproval, "none of that counted");

    world.decide(ANN, &id, true).unwrap();
    let active = event_until(&mut world.asker, |event| match event {
        Event::Task(task) if task.state() == proto::TaskState::Active => Some(task),
        _ => None,
    });
    assert_eq!(active.details, task.details);
    assert_eq!(active.deadline.unwrap().seconds - task.deadline.unwrap().seconds, 0, "waiting is time, too");
    assert!(world.issue(&task).is_ok());
    assert_eq!(world.shown(&id)["state"], "used");
    let granted = world.agent.audited(&["approval.granted", &id, "(ann)"]);
    let on = world.agent.audited(&["task.resume", &task.id, "\"state\":\"active\"", "\"result\":\"allow\""]);
    world.agent.audited(&["approval.used", &id]);
    assert!(granted["seq"].as_u64() < on["seq"].as_u64());
    assert_eq!(reason(world.decide(BOB, &id, true)), "approval_used");
}

#[test]
fn k_a_no_is_the_end_of_a_task_that_waits() {
    let mut world = World::new();
    let task = world.begin();
    let id = world.asked(&task);
    world.asker.task_watch(&task.id);
    world.decide(ANN, &id, false).unwrap();
    let summary = event_until(&mut world.asker, ended);
    assert_eq!((summary.reason.as_str(), summary.tasks), ("policy", 1));
    assert_eq!(world.get(&task).state(), proto::TaskState::Ended);
    assert_eq!(world.shown(&id)["state"], "denied");
    assert_eq!(world.issue(&task).unwrap_err().reason, "task_ended");
    world.agent.audited(&["task.ended", &task.id, "\"reason\":\"policy\""]);
}

#[test]
fn k_policy_has_the_last_word_about_a_task_that_people_allowed() {
    let mut world = World::new();
    let task = world.begin();
    let id = world.asked(&task);
    let never = "@id(\"never\") forbid(principal, action == Mayfly::Action::\"begin\", resource == Mayfly::Template::\"deep\");";
    world.put("a.cedar", &policies().rule(never).rules);
    world.decide(ANN, &id, true).unwrap();
    let ended = world.agent.audited(&["task.ended", &task.id, "\"reason\":\"policy\""]);
    let denied = world.agent.audited(&["decision.deny", &task.id, "never"]);
    assert!(denied["seq"].as_u64() < ended["seq"].as_u64());
    assert_eq!(world.get(&task).reason, "policy");
    assert_eq!(world.shown(&id)["state"], "cancelled");
}

/// People are asked about what policy would give at most, and policy may give less by the time that they have answered.
#[test]
fn k_a_task_that_waits_lives_no_longer_than_policy_lets_it() {
    let mut world = World::new();
    let lasts = |task: &proto::Task| {
        task.deadline.as_ref().unwrap().seconds - task.begun_at.as_ref().unwrap().seconds
    };
    let capped = |most: &str| {
        policies().rules.replace("@id(\"begin\")", &format!("@id(\"begin\") @max_ttl(\"{most}\")"))
    };
    world.put("a.cedar", &capped("300s"));
    let task = world.begin();
    assert!((299..=301).contains(&lasts(&task)), "{}", lasts(&task));
    let id = world.asked(&task);
    assert_eq!(fact(&world.shown(&id), "for"), "300 s");
    world.put("a.cedar", &capped("120s"));
    world.decide(ANN, &id, true).unwrap();
    world.agent.audited(&["task.resume", &task.id]);
    let active = until("it goes on", || {
        Some(world.get(&task)).filter(|task| task.state() == proto::TaskState::Active)
    });
    assert!((119..=121).contains(&lasts(&active)), "{}", lasts(&active));
}

/// Whoever allowed it is not on call any more when it counts.
#[test]
fn k_the_yes_of_somebody_who_has_left_begins_no_task() {
    let mut world = World::new();
    let two =
        policies().rules.replace("context.approval.until > context.now", "context.approval.quorum >= 2");
    world.put("a.cedar", &two);
    let task = world.begin();
    let id = world.asked(&task);
    assert_eq!(world.shown(&id)["quorum"], 2);
    world.decide(ANN, &id, true).unwrap();
    world.put("b.toml", &without_ann());
    world.decide(BOB, &id, true).unwrap();
    world.agent.audited(&["task.ended", &task.id, "\"reason\":\"policy\""]);
    assert_eq!(world.get(&task).state(), proto::TaskState::Ended);
}

/// The same for one operation: of two who said yes one has left the group, or is nobody any more.
#[test]
fn k_a_quorum_is_of_those_who_are_still_in_the_group_when_it_is_used() {
    let mut world = World::new();
    let task = world.free();
    let ask = proto::AuthorizeRequest {
        task_id: task.id.clone(),
        action: "write".to_owned(),
        target: "wiki".to_owned(),
        request_approval: true,
        ..Default::default()
    };
    let decision: proto::Decision = world.asker.task_call("Authorize", &ask).unwrap();
    let id = decision.access_request.unwrap().approval_id;
    for uid in [ANN, BOB] {
        world.decide(uid, &id, true).unwrap();
    }
    let check = proto::AuthorizeRequest { request_approval: false, approval_id: id.clone(), ..ask };
    assert!(world.asker.task_call::<proto::Decision>("Authorize", &check).unwrap().allow);
    let gone = policies().catalogue.replace("name = \"ann\"", "name = \"anna\"");
    for left in [without_ann(), gone] {
        world.put("b.toml", &left);
        let said = world.asker.task_call::<proto::Decision>("Authorize", &check).unwrap();
        assert_eq!((said.allow, said.reason.as_str()), (false, "approval_required"));
    }
    let issue = proto::IssueRequest { approval_id: id, ..wanted(&task) };
    assert_eq!(
        world.asker.task_call::<proto::Credential>("Issue", &issue).unwrap_err().reason,
        "approval_required"
    );
}

#[test]
fn k_nobody_takes_up_an_offer_before_people_have_allowed_it() {
    let mut world = World::new();
    let mut worker = Holder::start(&world.agent, WORKER);
    let root = world.free();
    let offer = world.delegate(&root).unwrap();
    assert_eq!(offer.approval_id, world.asked(&root));
    assert_eq!(join(&mut worker, &offer).unwrap_err().reason, "pending_approval");
    let shown = world.shown(&offer.approval_id);
    assert_eq!((fact(&shown, "action"), fact(&shown, "to")), ("delegate", WORKER_ID));
    assert_eq!(fact(&shown, "may"), format!("read on {WIKI}/docs"));
    assert_eq!(shown["target"], WORKER_ID);
    world.decide(ANN, &offer.approval_id, true).unwrap();
    world.agent.audited(&["task.delegate", &root.id, "\"result\":\"allow\""]);
    let lines = world.agent.audit();
    assert_eq!(lines.iter().filter(|line| line["event"] == "task.delegate").count(), 1, "one for one offer");
    world.agent.audited(&["decision.", &root.id, "\"result\":\"requestable\"", "delegate"]);
    let child = join(&mut worker, &offer).unwrap();
    assert_eq!(
        (child.parent.as_str(), child.details.as_slice()),
        (root.id.as_str(), offer.details.as_slice())
    );
    assert_eq!(join(&mut worker, &offer).unwrap_err().reason, "delegation_used");
    let token: proto::Credential = worker.task_call("Issue", &wanted(&child)).unwrap();
    assert!(!token.token.is_empty());
    // One yes is for one offer.
    let next = world.delegate(&root).unwrap();
    assert_ne!(next.approval_id, offer.approval_id);
    assert_eq!(join(&mut worker, &next).unwrap_err().reason, "pending_approval");
    // A no takes it away, and the task that it was part of goes on.
    world.decide(BOB, &next.approval_id, false).unwrap();
    until("the offer is gone", || {
        (join(&mut worker, &next).unwrap_err().reason == "no_such_task").then_some(())
    });
    assert!(world.issue(&root).is_ok());
    // Who has left by the time that it is taken up has not allowed it.
    let last = world.delegate(&root).unwrap();
    world.decide(ANN, &last.approval_id, true).unwrap();
    let nobody = policies().catalogue.replace("groups = [\"oncall\"]", "groups = [\"writers\"]");
    world.put("b.toml", &nobody);
    assert_eq!(join(&mut worker, &last).unwrap_err().reason, "approval_required");
}

/// An answer counts when it is on record, and not a moment before.
#[test]
fn k_an_answer_that_is_not_on_record_yet_counts_for_nothing() {
    let (mut world, pause) = World::paused("audit.before_write");
    let task = world.begin();
    let id = world.asked(&task);
    let (request, mut ann) = (world.yes(&id), Holder::start(&world.agent, ANN));
    pause.arm();
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| decide(&mut ann, &world.agent, &request));
        pause.hit();
        assert_eq!(world.shown(&id)["state"], "pending", "nobody could say who allowed it");
        pause.release();
        answering.join().unwrap().unwrap();
    });
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));

    // A record that takes nothing: nobody has answered, and can again.
    let mut jam = None;
    let mut world = World::prepared(|agent| jam = Some(agent.jam_at("audit.before_write")));
    let jam = jam.unwrap();
    let task = world.begin();
    let id = world.asked(&task);
    jam.set();
    assert!(reason(world.decide(ANN, &id, true)).contains("nobody has answered"));
    assert_eq!(world.shown(&id)["state"], "pending");
    assert_eq!(world.shown(&id)["votes"].as_array().unwrap().len(), 0);
    jam.clear();
    until("the record takes lines again", || world.decide(ANN, &id, true).ok());
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
}

/// `mayfly run` begins the program when people have allowed its task, or not at all.
#[test]
fn k_a_program_whose_task_waits_for_people_is_not_begun_before_they_answer() {
    let world = World::new();
    for approve in [true, false] {
        let marker = world.agent.dir().join(format!("ran-{approve}"));
        let mut program = Command::new(world.agent.binary())
            .args(["run", "--task", "deep", "--param", "space=docs", "--", "touch"])
            .arg(&marker)
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", world.agent.public().display()))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(program.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("apr_")).expect("what to look at");
        let id = line.split('`').nth(1).and_then(|words| words.split(' ').next_back()).unwrap().to_owned();
        assert!(!marker.exists());
        world.decide(ANN, &id, approve).unwrap();
        let code = program.wait().unwrap().code();
        assert_eq!((code, marker.exists()), (Some(if approve { 0 } else { 125 }), approve));
        let rest: Vec<String> = lines.collect();
        assert_eq!(rest.iter().any(|line| line.contains("people did not allow")), !approve, "{rest:?}");
    }
}

/// A freeze takes nothing back: what waits goes on waiting, and no yes is lost.
#[test]
fn k_a_yes_to_what_is_frozen_does_not_count_and_ends_nothing() {
    let mut world = World::new();
    let task = world.begin();
    let id = world.asked(&task);
    let order = |world: &World, word: &str, what: &[&str]| {
        let arguments = [&[word, "--reason", "incident 4711"], what].concat();
        let (code, out, err) = world.agent.mayfly(&arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
    };
    for what in [["--agent", "spiffe://example.org/asker"], ["--task", &task.id]] {
        order(&world, "freeze", &what);
        assert_eq!(reason(world.decide(ANN, &id, true)), "frozen", "{what:?}");
        assert_eq!(world.shown(&id)["state"], "pending");
        assert_eq!(world.get(&task).state(), proto::TaskState::PendingApproval);
        order(&world, "thaw", &what);
    }
    world.decide(ANN, &id, true).unwrap();
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
    // So it is for whom a part is offered to; and a no counts at once.
    let root = world.free();
    let offer = world.delegate(&root).unwrap();
    order(&world, "freeze", &["--agent", WORKER_ID]);
    assert_eq!(reason(world.decide(ANN, &offer.approval_id, true)), "frozen");
    world.decide(BOB, &offer.approval_id, false).unwrap();
    assert_eq!(world.shown(&offer.approval_id)["state"], "denied");
}

/// Frozen between the answer and what comes of it: the yes counts when it is thawed.
#[test]
fn k_a_yes_that_a_freeze_overtakes_counts_when_it_is_thawed() {
    let (mut world, pause) = World::paused("task.before_judge");
    let task = world.begin();
    let id = world.asked(&task);
    let agent = ["--agent", "spiffe://example.org/asker", "--reason", "incident 4711"];
    let (request, mut ann) = (world.yes(&id), Holder::start(&world.agent, ANN));
    let running = &world.agent;
    pause.arm();
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| decide(&mut ann, running, &request));
        pause.hit();
        assert_eq!(running.mayfly(&[&["freeze"][..], &agent].concat()).0, Some(0));
        pause.release();
        answering.join().unwrap().unwrap();
    });
    assert_eq!(world.shown(&id)["state"], "approved");
    assert_eq!(world.get(&task).state(), proto::TaskState::PendingApproval);
    assert_eq!(world.agent.mayfly(&[&["thaw"][..], &agent].concat()).0, Some(0));
    until("the task goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
    assert_eq!(world.shown(&id)["state"], "used");
}

/// What people said does not outlive the agent, so that what they allowed must not either: the same request asks again.
#[test]
fn k_an_offer_that_people_allowed_does_not_come_back_as_a_dead_one() {
    let mut world = World::new();
    let root = world.free();
    let request = proto::DelegateRequest {
        task_id: root.id.clone(),
        spiffe_id: WORKER_ID.to_owned(),
        details: vec![detail(&format!("{WIKI}/docs"), &["read"])],
        idempotency_key: "once".to_owned(),
        ..Default::default()
    };
    let offer: proto::Delegation = world.asker.task_call("Delegate", &request).unwrap();
    world.decide(ANN, &offer.approval_id, true).unwrap();
    world.agent.audited(&["task.delegate", &root.id, "\"result\":\"allow\""]);
    // After that it is on the disk.
    world.issue(&root).unwrap();
    world.agent.crash_and_restart();
    world.agent.open_admin_socket();
    world.asker.connect();
    let mut worker = Holder::start(&world.agent, WORKER);
    assert_eq!(join(&mut worker, &offer).unwrap_err().reason, "no_such_task");
    let again: proto::Delegation = world.asker.task_call("Delegate", &request).unwrap();
    assert_ne!(again.id, offer.id);
    world.decide(ANN, &again.approval_id, true).unwrap();
    until("it can be taken up", || join(&mut worker, &again).ok());
}

/// It ends while people's yes is looked at: nothing is on record as used, and nothing goes on after its end.
#[test]
fn k_what_has_ended_before_it_could_go_on_is_not_on_record_as_used() {
    let (mut world, pause) = World::paused("task.before_go_on");
    let task = world.begin();
    let id = world.asked(&task);
    let (request, mut ann) = (world.yes(&id), Holder::start(&world.agent, ANN));
    pause.arm();
    let (agent, asker) = (&world.agent, &mut world.asker);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| decide(&mut ann, agent, &request));
        pause.hit();
        let end = proto::EndRequest { task_id: task.id.clone(), ..Default::default() };
        asker.task_call::<proto::TaskSummary>("End", &end).unwrap();
        pause.release();
        answering.join().unwrap().unwrap();
    });
    world.agent.audited(&["task.ended", &task.id]);
    world.agent.audited(&["approval.cancelled", &id]);
    let events: Vec<String> =
        world.agent.audit().iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
    assert!(!events.iter().any(|event| event == "approval.used" || event == "task.resume"), "{events:?}");
}

/// It is frozen while people's yes is looked at: the yes stands, and counts when it is thawed.
#[test]
fn k_what_is_frozen_before_it_could_go_on_waits_for_the_thaw() {
    let mut pause = None;
    let mut world = World::prepared(|agent| {
        let (paused, spec) = Pause::at(agent.dir(), "task.before_go_on");
        paused.release();
        pause = Some(paused);
        agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
    });
    let pause = pause.take().unwrap();
    let task = world.begin();
    let id = world.asked(&task);
    let (request, mut ann) = (world.yes(&id), Holder::start(&world.agent, ANN));
    pause.arm();
    let order = |agent: &Agent, words: &str| {
        let (code, out, err) = agent.mayfly(&[words, "--agent", "spiffe://example.org/asker"]);
        assert_eq!(code, Some(0), "{out}{err}");
    };
    let agent = &world.agent;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| decide(&mut ann, agent, &request));
        pause.hit();
        order(agent, "freeze");
        pause.release();
        answering.join().unwrap().unwrap();
    });
    let count =
        |agent: &Agent, event: &str| agent.audit().iter().filter(|line| line["event"] == event).count();
    assert_eq!((count(&world.agent, "approval.used"), count(&world.agent, "task.resume")), (0, 0));
    assert_eq!(world.get(&task).state(), proto::TaskState::PendingApproval);
    assert_eq!(world.shown(&id)["state"], "approved", "the yes is not spent");
    order(&world.agent, "thaw");
    until("it goes on", || (world.get(&task).state() == proto::TaskState::Active).then_some(()));
    assert_eq!((count(&world.agent, "approval.used"), count(&world.agent, "task.resume")), (1, 1));
    world.issue(&task).unwrap();
}

/// Who asks again because the answer was lost on the way learns it, and people are not asked again.
#[test]
fn k_a_repeated_delegate_learns_that_people_said_no() {
    let mut world = World::new();
    let root = world.free();
    let request = proto::DelegateRequest {
        task_id: root.id.clone(),
        spiffe_id: WORKER_ID.to_owned(),
        details: vec![detail(&format!("{WIKI}/docs"), &["read"])],
        idempotency_key: "once".to_owned(),
        ..Default::default()
    };
    let offer: proto::Delegation = world.asker.task_call("Delegate", &request).unwrap();
    world.decide(ANN, &offer.approval_id, false).unwrap();
    for _ in 0..2 {
        let refused = world.asker.task_call::<proto::Delegation>("Delegate", &request).unwrap_err();
        assert_eq!(refused.reason, "approval_denied");
    }
    let lines = world.agent.audit();
    assert_eq!(lines.iter().filter(|line| line["event"] == "approval.requested").count(), 1);
}

/// Whoever froze did not find it among those that go on: it is found when it does, and the record says so.
#[test]
fn k_what_is_frozen_while_it_goes_on_is_on_record_as_suspended() {
    let (mut world, pause) = World::paused("task.before_spend");
    let task = world.begin();
    let id = world.asked(&task);
    let (request, mut ann) = (world.yes(&id), Holder::start(&world.agent, ANN));
    pause.arm();
    let agent = &world.agent;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| decide(&mut ann, agent, &request));
        pause.hit();
        let (code, out, err) = agent.mayfly(&["freeze", "--agent", "spiffe://example.org/asker"]);
        assert_eq!(code, Some(0), "{out}{err}");
        pause.release();
        answering.join().unwrap().unwrap();
    });
    let resumed = world.agent.audited(&["\"task.resume\"", &task.id]);
    let suspended = world.agent.audited(&["\"task.suspend\"", &task.id]);
    assert!(resumed["seq"].as_u64() < suspended["seq"].as_u64(), "{resumed} {suspended}");
    assert!(world.issue(&task).is_err(), "it is frozen");
}

/// A yes that is on record as used, and is overtaken before it counts.
fn overtaken(settings: &str, overtake: impl FnOnce(&Agent, &mut Holder, &proto::Task, &str)) -> Vec<Value> {
    let mut pause = None;
    let mut world = World::prepared(|agent| {
        let (paused, spec) = Pause::at(agent.dir(), "task.before_spend");
        paused.release();
        pause = Some(paused);
        agent.plan().settings += settings;
        agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
    });
    let pause = pause.take().unwrap();
    let task = world.begin();
    let id = world.asked(&task);
    let (request, mut ann) = (world.yes(&id), Holder::start(&world.agent, ANN));
    pause.arm();
    let (agent, asker) = (&world.agent, &mut world.asker);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| decide(&mut ann, agent, &request));
        pause.hit();
        agent.audited(&["approval.used", &id]);
        agent.audited(&["task.resume", &task.id]);
        overtake(agent, asker, &task, &id);
        pause.release();
        answering.join().unwrap().unwrap();
    });
    world.agent.audited(&["approval.cancelled", &id]);
    world.agent.audited(&["task.ended", &task.id]);
    assert_eq!(world.get(&task).state(), proto::TaskState::Ended);
    assert!(world.issue(&task).is_err(), "nothing comes of it");
    let of_it = |line: &Value| {
        line["approval"]["id"] == id.as_str()
            || line["task"]["id"] == task.id.as_str() && line["event"].as_str().unwrap().starts_with("task.")
    };
    world.agent.audit().into_iter().filter(of_it).collect()
}

fn events(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["event"].as_str().unwrap()).collect()
}

/// The record said that a yes was used, and it was not: it says so once more, once, behind that.
#[test]
fn k_the_record_takes_back_a_use_that_was_overtaken() {
    let lines = overtaken("\n[approvals]\nuse_within = \"2s\"\n", |agent, _, task, id| {
        agent.audited(&["approval.expired", id]);
        agent.audited(&["task.ended", &task.id]);
    });
    let said = events(&lines);
    let used = said.iter().position(|event| *event == "approval.used").unwrap();
    assert_eq!(said.iter().filter(|event| **event == "approval.cancelled").count(), 1, "{said:?}");
    assert_eq!(said.last(), Some(&"approval.cancelled"), "{said:?}");
    assert_eq!(said[used..used + 2], ["approval.used", "task.resume"], "{said:?}");
    let granted = lines.iter().find(|line| line["event"] == "approval.granted").unwrap();
    let (at, until) = (&granted["approval"]["at"], &granted["approval"]["until"]);
    assert!(at.as_str().unwrap() < until.as_str().unwrap(), "{granted}");
    assert!(at.as_str().unwrap() <= granted["ts"].as_str().unwrap(), "{granted}");
    let requested = lines.iter().find(|line| line["event"] == "approval.requested").unwrap();
    assert!(requested["approval"].get("at").is_none(), "nobody has decided: {requested}");

    // Where the end of the task has said it already, it is not said twice.
    let lines = overtaken("", |agent, asker, task, id| {
        let end = proto::EndRequest { task_id: task.id.clone(), ..Default::default() };
        asker.task_call::<proto::TaskSummary>("End", &end).unwrap();
        agent.audited(&["approval.cancelled", id]);
    });
    let said = events(&lines);
    let order = ["task.begin", "approval.requested", "approval.granted", "approval.used", "task.resume"];
    assert_eq!(said[..5], order);
    let rest: std::collections::BTreeSet<&str> = said[5..].iter().copied().collect();
    assert_eq!(rest, ["approval.cancelled", "task.ended"].into(), "{said:?}");
    assert_eq!(said.len(), 7, "{said:?}");
}
