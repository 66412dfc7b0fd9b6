//! In a user's name: an issuer of the test's own vouches for its users, and an agent that says so in any other way works
//! for nobody.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use mayfly_harness::holder::Who;
pub(crate) use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Entry, Holder, Idp, Pause, Plan, Policies, TaskRefusal, files};
use mayfly_proto::task as proto;
use serde_json::{Value, json};

use crate::children::{get, issue, offer};
use crate::http::local;
use crate::support::own_uid;

/// Nobody begins for himself, and only ann's agents write.
const POLICY: &str = r#"
@id("fetch") permit(principal, action == Mayfly::Action::"fetch", resource);
@id("for-users") permit(principal, action == Mayfly::Action::"begin", resource) when { context has on_behalf_of };
@id("hand-on") permit(principal, action == Mayfly::Action::"delegate", resource) when { context has on_behalf_of };
@id("read") permit(principal, action == Mayfly::Action::"read", resource);
@id("write") permit(principal, action == Mayfly::Action::"write", resource)
when { context has on_behalf_of && context.on_behalf_of in Mayfly::Group::"editors" };
"#;

const ANN: &str = r#"
[[people]]
name = "ann"
subjects = ["https://idp.example.org#00u1"]
groups = ["editors"]
"#;

pub(crate) fn policies() -> Policies {
    Policies::of(POLICY).agents("**", "agents", &["*"]).target("wiki", &[("location", WIKI)]).more(ANN)
}

const ISS: &str = Idp::ISSUER;
pub(crate) const PLANNER: &str = "spiffe://example.org/planner";
pub(crate) const WORKER: &str = "spiffe://example.org/worker";

pub(crate) struct World {
    pub(crate) agent: Agent,
    pub(crate) idp: Idp,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    /// One that waits there.
    pub(crate) fn paused(point: &str) -> (Self, Pause) {
        let mut pause = None;
        let world = Self::prepared("", |agent| {
            let (there, spec) = Pause::at(agent.dir(), point);
            let plan = agent.plan().clone().failpoints(&spec);
            *agent.plan() = plan;
            pause = Some(there);
        });
        (world, pause.unwrap())
    }

    /// With more settings.
    pub(crate) fn with(settings: &str) -> Self {
        Self::prepared(settings, |_| {})
    }

    fn prepared(settings: &str, prepare: impl FnOnce(&mut Agent)) -> Self {
        let (mut agent, idp) = (Plan::with_entries(&[]).prepare(), Idp::new());
        let jwks = agent.dir().join("idp.json");
        files::replace(&jwks, &idp.jwks(), 0o644);
        agent.plan().settings += &format!("\n{settings}{}\n", Idp::table(&jwks));
        policies().install(&mut agent);
        let uid = format!("unix:uid:{}", own_uid());
        let entry = |name: &str, at: PathBuf| {
            Entry::new(&format!("/{name}"), &[&uid, &format!("unix:path:{}", at.display())])
        };
        let entries = ["planner", "worker"].map(|name| entry(name, agent.dir().join(name)));
        agent.write_entries(&entries);
        prepare(&mut agent);
        agent.launch();
        Self { agent, idp }
    }

    pub(crate) fn start(&self, name: &str) -> Holder {
        let program = self.agent.dir().join(name);
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

    fn said(&self, credential: &proto::Credential) -> Value {
        self.introspect(&credential.token)
    }
}

pub(crate) fn request(token: &str) -> proto::BeginRequest {
    let details = vec![detail(WIKI, &["read", "write"])];
    proto::BeginRequest { details, on_behalf_of: token.to_owned(), ..Default::default() }
}

pub(crate) fn begin(holder: &mut Holder, token: &str) -> Result<proto::Task, TaskRefusal> {
    holder.task_call("Begin", &request(token))
}

#[test]
fn a_task_is_in_the_name_of_the_user_that_an_issuer_vouches_for() {
    let world = World::new();
    let mut planner = world.start("planner");
    let token = world.idp.token("00u1");
    let task = begin(&mut planner, &token).unwrap();
    let user = proto::OnBehalfOf { iss: ISS.to_owned(), sub: "00u1".to_owned() };
    assert_eq!(task.on_behalf_of, Some(user.clone()));
    assert_eq!(get(&mut planner, &task).unwrap().on_behalf_of, Some(user));
    let said = world.said(&issue(&mut planner, &task).unwrap());
    assert_eq!((said["sub"].as_str(), said["sub_profile"].as_str()), (Some("00u1"), Some("user")));
    assert_eq!(said["sub_id"], json!({"format": "iss_sub", "iss": ISS, "sub": "00u1"}));
    assert_eq!(said["act"], json!({"sub": PLANNER, "sub_profile": "ai_agent"}));
    assert_eq!((said["client_id"].as_str(), said["scope"].as_str()), (Some(PLANNER), Some("read write")));
    let more = proto::RenewRequest { task_id: task.id.clone(), ..Default::default() };
    planner.task_call::<proto::Task>("Renew", &more).unwrap();
    let stranger = begin(&mut planner, &world.idp.token("ann")).unwrap();
    let said = world.said(&issue(&mut planner, &stranger).unwrap());
    assert_eq!((said["sub"].as_str(), said["scope"].as_str()), (Some("ann"), Some("read")), "no editor");
    let line = world.agent.audited(&["task.begin", &task.id, "for-users"]);
    assert_eq!(line["on_behalf_of"]["iss"], ISS);
    assert!(line["on_behalf_of"]["sub_hash"].is_string() && !line.to_string().contains("00u1"), "{line}");
    let kept = [world.agent.audit_path(), world.agent.log_path()].map(|path| std::fs::read(path).unwrap());
    let secret = token.rsplit('.').next().unwrap();
    assert!(
        kept.iter().all(|bytes| !String::from_utf8_lossy(bytes).contains(secret)),
        "nothing of it is kept"
    );
}

#[test]
fn whoever_proves_no_user_works_for_nobody() {
    let world = World::new();
    let mut planner = world.start("planner");
    assert_eq!(begin(&mut planner, "").unwrap_err().reason, "policy_denied", "in its own name");
    let with = |name: &str, value: Value| {
        let mut claims = Idp::claims("00u1");
        claims[name] = value;
        world.idp.sign(&claims)
    };
    let svid = planner.jwt(Idp::AUDIENCE).unwrap().remove(0).text;
    let good = world.idp.token("00u1");
    for (token, why) in [
        ("00u1".to_owned(), "not a compact jws"),
        (Idp::new().token("00u1"), "does not verify"),
        (with("aud", json!([Idp::AUDIENCE, WIKI])), "another audience"),
        (with("iss", json!("https://idp2.example.org")), "without a table"),
        (with("exp", json!(1)), "has expired"),
        (with("iat", json!(1)), "longer ago than `max_age`"),
        (with("sub", json!(PLANNER)), "a workload's credential"),
        (svid, "without a table"),
        (format!("{}.", good.rsplit_once('.').unwrap().0), "not a compact jws"),
    ] {
        let refused = begin(&mut planner, &token).unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (7, "user_not_verified"), "{why}");
        assert!(!refused.message.contains(why), "for operators only: {refused:?}");
        world.agent.audited(&["agent.attest_denied", "\"user\"", why]);
    }
    let long = begin(&mut planner, &"a".repeat(8193)).unwrap_err();
    assert_eq!((long.code, long.reason.as_str()), (3, "malformed"));
    let task = begin(&mut planner, &good).unwrap();
    let own = issue(&mut planner, &task).unwrap().token;
    assert_eq!(begin(&mut planner, &own).unwrap_err().reason, "user_not_verified", "nor by a task's own");
}

#[test]
fn an_issuer_may_change_its_keys_and_nobody_else_may() {
    let mut world = World::new();
    let mut planner = world.start("planner");
    let before = world.idp.token("00u1");
    assert!(begin(&mut planner, &before).is_ok());
    let jwks = world.agent.dir().join("idp.json");
    world.idp = Idp::new();
    files::replace(&jwks, &world.idp.jwks(), 0o644);
    assert_eq!(begin(&mut planner, &before).unwrap_err().reason, "user_not_verified");
    let now = world.idp.token("00u1");
    assert!(begin(&mut planner, &now).is_ok(), "read anew");
    std::fs::set_permissions(&jwks, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(begin(&mut planner, &now).unwrap_err().reason, "user_not_verified");
    world.agent.audited(&["agent.attest_denied", "keys cannot be read"]);
}

#[test]
fn a_child_works_for_the_same_user_or_for_nobody_with_less() {
    let world = World::new();
    let (mut planner, mut worker) = (world.start("planner"), world.start("worker"));
    let root = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    let mut child = |drops: bool| -> proto::Task {
        let details = vec![detail(WIKI, &["read", "write"])];
        let offer = proto::DelegateRequest { details, drop_on_behalf_of: drops, ..offer(&root, WORKER, "") };
        let offered: proto::Delegation = planner.task_call("Delegate", &offer).unwrap();
        let join = proto::JoinRequest { delegation_id: offered.id, ..Default::default() };
        worker.task_call("Join", &join).unwrap()
    };
    let (same, alone) = (child(false), child(true));
    assert_eq!(same.on_behalf_of, root.on_behalf_of);
    assert_eq!(alone.on_behalf_of, None);
    let said = world.said(&issue(&mut worker, &same).unwrap());
    let by = |name: &str| json!({"sub": name, "sub_profile": "ai_agent"});
    let mut chain = by(WORKER);
    chain["act"] = by(PLANNER);
    assert_eq!((said["sub"].as_str(), &said["act"]), (Some("00u1"), &chain));
    assert_eq!(said["scope"], "read write");
    let said = world.said(&issue(&mut worker, &alone).unwrap());
    assert_eq!((said["sub"].as_str(), &said["act"]), (Some(PLANNER), &by(WORKER)));
    assert_eq!((said.get("sub_id"), said["scope"].as_str()), (None, Some("read")), "what was ann's is gone");
    let below = proto::DelegateRequest { task_id: alone.id, ..offer(&root, PLANNER, "") };
    let refused = worker.task_call::<proto::Delegation>("Delegate", &below).unwrap_err();
    assert_eq!(refused.reason, "policy_denied", "and does not come back");
}

#[test]
fn the_same_request_gives_the_same_task_and_another_user_none() {
    let world = World::new();
    let mut planner = world.start("planner");
    let (ann, bob) = (world.idp.token("00u1"), world.idp.token("00u2"));
    let mut keyed = |token: &str| -> Result<proto::Task, TaskRefusal> {
        let request = proto::BeginRequest { idempotency_key: "once".to_owned(), ..request(token) };
        planner.task_call("Begin", &request)
    };
    let task = keyed(&ann).unwrap();
    assert_eq!(keyed(&ann).unwrap().id, task.id);
    assert_eq!(keyed(&bob).unwrap_err().reason, "idempotency_conflict");
}
