//! Policy edited in the middle of a task: what would not begin any more ends, and nothing else does.

use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Holder, Pause, Plan, Policies, TaskRefusal, until};
use mayfly_proto::task as proto;

use crate::children::{ANN, BEN, POLICY, WIKI, World, begin, child, get, issue};
use crate::support::{client, own_uid};

/// Everybody may begin what is not forbidden here.
fn rules(more: &str) -> String {
    let usual = ["fetch", "begin", "read", "delegate"];
    let usual = usual.map(|action| {
        format!("@id(\"{action}\") permit(principal, action == Mayfly::Action::\"{action}\", resource);")
    });
    format!("{}\n{more}\n", usual.join("\n"))
}

const TEMPLATES: &str = r#"
[[templates]]
name = "one"
owner = "docs"
[[templates.details]]
target = "wiki"
actions = ["read"]
[[templates]]
name = "other"
owner = "docs"
[[templates.details]]
target = "wiki"
actions = ["read"]
"#;

fn agent() -> Agent {
    prepared(|_| {})
}

fn prepared(prepare: impl FnOnce(&mut Agent)) -> Agent {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let policies =
        Policies::of(&rules("")).agents("**", "agents", &["*"]).target("wiki", &[("location", WIKI)]);
    let policies = policies.person("ann", 20_831, "oncall");
    let witness = |n| TEMPLATES.split("[[templates]]").nth(1).unwrap().replace("one", &format!("w{n}"));
    let witnesses: String = (1..5).map(|n| format!("\n[[templates]]{}", witness(n))).collect();
    policies.more(TEMPLATES).more(&witnesses).install(&mut agent);
    prepare(&mut agent);
    agent.launch();
    agent
}

fn begin_by(holder: &mut Holder, template: &str) -> Result<proto::Task, TaskRefusal> {
    holder.task_call("Begin", &proto::BeginRequest { template: template.to_owned(), ..Default::default() })
}

fn goes_on(holder: &mut Holder, task: &proto::Task) -> bool {
    let is: proto::Task =
        holder.task_call("Get", &proto::GetTaskRequest { task_id: task.id.clone() }).unwrap();
    is.state() == proto::TaskState::Active
}

/// Puts rules in force, and is back when everybody has been judged by them: a task that they forbid, begun after all
/// others, has ended. Its template is another each time.
fn in_force(agent: &Agent, holder: &mut Holder, witness: &str, more: &str) {
    let task = begin_by(holder, witness).unwrap();
    let not_it = NOT_ONE.replace("\"one\"", &format!("{witness:?}")).replace("not-one", "not-the-witness");
    agent.write_policies(&rules(&format!("{more}\n{not_it}")));
    until("the witness has ended", || (!goes_on(holder, &task)).then_some(()));
}

const NOT_ONE: &str = "@id(\"not-one\") forbid(principal, action == Mayfly::Action::\"begin\", resource == Mayfly::Template::\"one\");";

#[test]
fn a_task_ends_when_policy_would_not_let_it_begin_any_more() {
    let agent = agent();
    let mut holder = client(&agent);
    let [one, other] = ["one", "other"].map(|template| begin_by(&mut holder, template).unwrap());
    let token = issue(&mut holder, &one).unwrap();
    agent.write_policies(&rules(NOT_ONE));
    agent.audited(&["task.ended", &one.id, "\"reason\":\"policy\"", "\"initiator\":\"policy\""]);
    let line = agent.audited(&["decision.deny", &one.id, "not-one", "\"action\":\"begin\""]);
    assert_eq!(line["decision"]["reason"], "forbidden", "{line}");
    agent.audited(&["credential.revoke", "task_ended", &token.id]);
    assert_eq!(issue(&mut holder, &one).unwrap_err().reason, "task_ended");
    assert!(goes_on(&mut holder, &other));
    issue(&mut holder, &other).unwrap();
    let ended = agent.audit().into_iter().filter(|line| line["event"] == "task.ended").count();
    assert_eq!(ended, 1);
}

/// What is no clear no ends nothing: it bites at the next use, or when somebody can say what it is.
#[test]
fn a_question_that_fails_or_a_yes_that_people_can_give_or_a_freeze_ends_no_task() {
    let agent = agent();
    let mut holder = client(&agent);
    let one = begin_by(&mut holder, "one").unwrap();
    let needs = "@id(\"needs-a-person\") @requires_approval(\"oncall\") forbid(principal, action == Mayfly::Action::\"begin\", resource == Mayfly::Template::\"one\") unless { context has approval };";
    in_force(&agent, &mut holder, "w1", needs);
    assert!(goes_on(&mut holder, &one), "people could allow it");
    // More than a number can hold: the policy fails, and whoever asks is denied.
    let fails = "@id(\"fails\") forbid(principal, action == Mayfly::Action::\"begin\", resource == Mayfly::Template::\"one\") when { context.task.depth + 9223372036854775807 + 1 > 0 };";
    in_force(&agent, &mut holder, "w2", fails);
    assert_eq!(begin_by(&mut holder, "one").unwrap_err().reason, "policy_denied", "nothing begins by it");
    assert!(goes_on(&mut holder, &one), "nobody has said no");
    let (code, out, err) = agent.mayfly(&["freeze", "--target", "wiki"]);
    assert_eq!(code, Some(0), "{out}{err}");
    in_force(&agent, &mut holder, "w3", "");
    assert!(goes_on(&mut holder, &one));
    in_force(&agent, &mut holder, "w4", NOT_ONE);
    assert!(!goes_on(&mut holder, &one));
}

/// A child rests on who may hand on to it; what is above it on its own begin.
#[test]
fn a_part_ends_when_it_would_not_be_handed_on_any_more_and_all_below_it() {
    let world = World::new();
    let (mut planner, mut ann, mut ben) = (world.planner(), world.ann(), world.ben());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    let deepest = child(&below, &mut ann, &mut ben, BEN, "/docs/one");
    let other = child(&root, &mut planner, &mut ben, BEN, "/docs");
    let not_ann = format!(
        "@id(\"not-ann\") forbid(principal, action == Mayfly::Action::\"delegate\", resource == Mayfly::Agent::\"{ANN}\");"
    );
    world.agent.write_policies(&format!("{POLICY}\n{not_ann}\n"));
    world.agent.audited(&["task.ended", &below.id, "\"reason\":\"policy\""]);
    world.agent.audited(&["decision.deny", &below.id, "not-ann", "\"action\":\"delegate\""]);
    world.agent.audited(&["task.ended", &deepest.id, "parent_ended"]);
    assert_eq!(get(&mut planner, &root).unwrap().state(), proto::TaskState::Active);
    assert_eq!(get(&mut ben, &other).unwrap().state(), proto::TaskState::Active);
    world.agent.write_policies(&POLICY.replace("@id(\"begin\") permit", "@id(\"begin\") forbid"));
    world.agent.audited(&["task.ended", &root.id, "\"reason\":\"policy\""]);
    world.agent.audited(&["task.ended", &other.id, "parent_ended"]);
}

/// What a task has done since it began, and what is below it now, is no reason that it should not have begun: a reload for
/// another reason ends nobody who keeps to the rules.
#[test]
fn what_a_task_has_done_since_it_began_ends_it_at_no_reload() {
    let world = World::new();
    let (mut planner, mut ann) = (world.planner(), world.ann());
    let root = begin(&mut planner);
    let below = child(&root, &mut planner, &mut ann, ANN, "/docs");
    issue(&mut planner, &root).unwrap();
    issue(&mut ann, &below).unwrap();
    // As starter policies have it: no more than two children; and as long as nothing was asked for.
    let fuses = "\n@id(\"two-children\") forbid(principal, action == Mayfly::Action::\"delegate\", resource) \
                 when { context.task.children >= 2 };\n\
                 @id(\"fuse\") forbid(principal, action, resource) \
                 when { context has task && context.task.calls >= 1 };\n\
                 @id(\"fresh\") forbid(principal, action in [Mayfly::Action::\"begin\", Mayfly::Action::\"delegate\"], resource) \
                 when { principal is Mayfly::Workload && context.now.durationSince(principal.attested_at) > duration(\"1s\") };\n";
    let ben = format!(
        "@id(\"not-ben\") forbid(principal, action == Mayfly::Action::\"delegate\", resource == Mayfly::Agent::\"{BEN}\");"
    );
    let mut witness = world.ben();
    let last = child(&root, &mut planner, &mut witness, BEN, "/docs");
    std::thread::sleep(std::time::Duration::from_secs(2));
    world.agent.write_policies(&format!("{POLICY}\n{fuses}\n{ben}\n"));
    world.agent.audited(&["task.ended", &last.id, "\"reason\":\"policy\""]);
    assert_eq!(get(&mut planner, &root).unwrap().state(), proto::TaskState::Active);
    assert_eq!(get(&mut ann, &below).unwrap().state(), proto::TaskState::Active);
}

/// A set that came while nobody ran is another set as well.
#[test]
fn what_was_forbidden_while_the_agent_was_down_ends_when_it_starts() {
    let mut agent = agent();
    let mut holder = client(&agent);
    let [one, other] = ["one", "other"].map(|template| begin_by(&mut holder, template).unwrap());
    agent.kill();
    agent.write_policies(&rules(NOT_ONE));
    agent.launch();
    agent.audited(&["task.ended", &one.id, "\"reason\":\"policy\""]);
    holder.connect();
    assert!(goes_on(&mut holder, &other));
    // Another agent, of another catalogue, may have no such template: that is a clear no, too.
    let details = vec![detail(WIKI, &["read"])];
    let bare: proto::Task =
        holder.task_call("Begin", &proto::BeginRequest { details, ..Default::default() }).unwrap();
    agent.write_catalogue(
        &Policies::default().agents("**", "agents", &["*"]).target("wiki", &[("location", WIKI)]).catalogue,
    );
    agent.audited(&["decision.deny", &other.id, "unknown_template"]);
    agent.audited(&["task.ended", &other.id, "\"reason\":\"policy\""]);
    assert!(goes_on(&mut holder, &bare));
}

/// Everybody was judged while it had no seat yet.
#[test]
fn a_task_that_the_old_set_let_begin_and_that_took_its_seat_under_the_new_one_ends_as_well() {
    let mut seat = None;
    let agent = prepared(|agent| {
        let (pause, spec) = Pause::at(agent.dir(), "task.before_seat");
        agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
        pause.release();
        seat = Some(pause);
    });
    let (seat, mut witness, mut holder) = (seat.unwrap(), client(&agent), client(&agent));
    let task = begin_by(&mut witness, "w1").unwrap();
    seat.arm();
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| begin_by(&mut holder, "one").unwrap());
        seat.hit();
        agent.write_policies(&rules(&format!("{NOT_ONE}\n{}", NOT_ONE.replace("one\"", "w1\""))));
        until("the witness has ended", || (!goes_on(&mut witness, &task)).then_some(()));
        seat.release();
        let one = begun.join().unwrap();
        agent.audited(&["decision.deny", &one.id, "not-one"]);
        agent.audited(&["task.ended", &one.id, "\"reason\":\"policy\""]);
    });
}
