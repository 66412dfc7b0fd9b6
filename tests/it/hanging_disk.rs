//! Orders and calls while something that is read or written does not answer: the kill switch works, and whoever has nothing to
//! do with it is served.

use std::path::Path;
use std::thread::scope;

use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Entry, Holder, Pause, Plan, Policies, is_running, until};
use mayfly_proto::task as proto;

use crate::support::own_uid;
use crate::users;

fn paused(point: &str) -> (Agent, Pause) {
    let mut agent = Plan::with_entries(&[Entry::for_uid(own_uid())]).prepare();
    let (pause, spec) = Pause::at(agent.dir(), point);
    let plan = agent.plan().clone().failpoints(&spec);
    *agent.plan() = plan;
    Policies::open()
        .permit("read")
        .target("wiki", &[("location", "https://wiki.example.org/api")])
        .install(&mut agent);
    agent.launch();
    (agent, pause)
}

fn request() -> proto::BeginRequest {
    proto::BeginRequest {
        details: vec![detail(&format!("{WIKI}/api"), &["read"])],
        process_scope: proto::Scope::Process.into(),
        ..Default::default()
    }
}

fn worker(agent: &Agent) -> (Holder, String) {
    let mut holder = Holder::start(agent, own_uid());
    let task: proto::Task = holder.task_call("Begin", &request()).unwrap();
    (holder, task.id)
}

fn get(holder: &mut Holder, task: &str) -> proto::Task {
    holder.task_call("Get", &proto::GetTaskRequest { task_id: task.to_owned() }).unwrap()
}

/// Nobody who serves waits.
fn serves(agent: &Agent) {
    for words in [&["healthcheck"][..], &["status"], &["task", "list"]] {
        let (code, out, err) = agent.mayfly(words);
        assert_eq!(code, Some(0), "{words:?}: {out}{err}");
    }
}

/// The disk hangs in the first order; more orders than threads serve come after it.
#[test]
fn a_disk_that_hangs_keeps_no_order_from_killing_and_nobody_from_an_answer() {
    let (agent, pause) = paused("freezes.before_write");
    let agent = &agent;
    let (first, first_task) = worker(agent);
    let others: Vec<(Holder, String)> = (0..4).map(|_| worker(agent)).collect();
    let (mut last, last_task) = worker(agent);
    let order = |words: &'static str, name: &str| {
        let name = name.to_owned();
        move || agent.mayfly(&[words, "--task", &name, "--reason", "incident"])
    };
    scope(|scope| {
        // Dropped, and with that released, before anybody is waited for.
        let pause = pause;
        let mut orders = vec![scope.spawn(order("kill", &first_task))];
        pause.hit();
        assert!(!is_running(first.pid()), "killed before it is written down");
        for (_, task) in &others {
            orders.push(scope.spawn(order("kill", task)));
        }
        for (holder, task) in &others {
            until(&format!("{task} is killed"), || (!is_running(holder.pid())).then_some(()));
        }
        // A freeze, and a thaw that waits for its turn.
        orders.push(scope.spawn(order("freeze", &last_task)));
        until("it is frozen", || (get(&mut last, &last_task).reason == "kill_switch").then_some(()));
        orders.push(scope.spawn(order("thaw", &last_task)));
        serves(agent);
        assert_eq!(
            get(&mut last, &last_task).reason,
            "kill_switch",
            "thawed when that is written down, not before"
        );
        assert!(!orders.iter().any(std::thread::ScopedJoinHandle::is_finished), "nothing is answered before");
        pause.release();
        for order in orders {
            let (code, out, err) = order.join().unwrap();
            assert_eq!(code, Some(0), "{out}{err}");
        }
    });
    assert_eq!(get(&mut last, &last_task).state(), proto::TaskState::Active);
    let written = std::fs::read_to_string(agent.data_dir().join("freezes.json")).unwrap();
    assert!(
        written.contains(&first_task) && others.iter().all(|(_, task)| written.contains(task)),
        "{written}"
    );
    assert!(!written.contains(&last_task), "{written}");
}

/// Whoever gave the order need not wait for the disk: it is written down all the same.
#[test]
fn an_order_whose_giver_has_gone_is_written_down() {
    let (agent, pause) = paused("freezes.before_write");
    let ((_holder, task), (mut other, later)) = (worker(&agent), worker(&agent));
    let socket = format!("unix://{}", agent.admin_socket().display());
    let order = |task: &str| {
        let words = ["freeze", "--task", task, "--socket", socket.as_str()];
        std::process::Command::new(agent.binary()).args(words).spawn().unwrap()
    };
    let mut orders = vec![order(&task)];
    pause.hit();
    // One more, which waits for its turn.
    orders.push(order(&later));
    until("it is frozen", || (get(&mut other, &later).reason == "kill_switch").then_some(()));
    for order in &mut orders {
        order.kill().unwrap();
        order.wait().unwrap();
    }
    // The agent has seen that they are gone.
    serves(&agent);
    pause.release();
    let freezes = agent.data_dir().join("freezes.json");
    let written = |path: &Path, task: &str| std::fs::read_to_string(path).unwrap_or_default().contains(task);
    for task in [&task, &later] {
        until("it is written down", || written(&freezes, task).then_some(()));
    }
}

/// A thaw is written down, and while that takes long somebody freezes again: the thaw is void, and says so.
#[test]
fn whoever_freezes_while_it_is_thawed_has_the_last_word() {
    let (agent, pause) = paused("freezes.before_lift");
    let (agent, (mut holder, task)) = (&agent, worker(&agent));
    let order = |words: &'static str| {
        let task = task.clone();
        move || agent.mayfly(&[words, "--task", &task, "--reason", "incident"])
    };
    assert_eq!(order("freeze")().0, Some(0));
    let frozen = || agent.audit().iter().filter(|line| line["event"] == "freeze").count();
    scope(|scope| {
        // Dropped, and with that released, before anybody is waited for.
        let pause = pause;
        let thaw = scope.spawn(order("thaw"));
        pause.hit();
        assert_eq!(get(&mut holder, &task).reason, "kill_switch", "it goes on when that is certain");
        let freeze = scope.spawn(order("freeze"));
        until("it is frozen again", || (frozen() == 2).then_some(()));
        pause.release();
        let (code, out, err) = thaw.join().unwrap();
        assert!(code != Some(0) && err.contains("somebody froze it again meanwhile"), "{out}{err}");
        assert_eq!(freeze.join().unwrap().0, Some(0));
    });
    assert_eq!(get(&mut holder, &task).reason, "kill_switch");
    let written = std::fs::read_to_string(agent.data_dir().join("freezes.json")).unwrap();
    assert!(written.contains(&task), "{written}");
    assert!(!agent.audit().iter().any(|line| line["event"] == "thaw"), "nothing was thawed");
    assert_eq!(order("thaw")().0, Some(0));
    assert_eq!(get(&mut holder, &task).state(), proto::TaskState::Active);
}

/// How much there is to look at in a cgroup says whoever begins.
#[test]
fn nobody_waits_while_the_cgroup_of_others_is_looked_at() {
    let (agent, pause) = paused("task.look_at_scope");
    let mut holders: Vec<Holder> = (0..4).map(|_| Holder::start(&agent, own_uid())).collect();
    let mut other = Holder::start(&agent, own_uid());
    for holder in &mut holders {
        holder.task_begin_call("Begin", &request());
    }
    pause.hit();
    serves(&agent);
    // Nor does whoever is given something.
    other.x509();
    pause.release();
    for holder in &mut holders {
        holder.task_answer::<proto::Task>().unwrap();
    }
}

/// An issuer's keys may be on a file system that hangs.
#[test]
fn nobody_waits_while_the_keys_of_an_issuer_of_users_are_read() {
    let (world, pause) = users::World::paused("user.read_keys");
    let token = world.idp.token("00u1");
    let mut holders: Vec<Holder> = (0..4).map(|_| world.start("planner")).collect();
    for holder in &mut holders {
        holder.task_begin_call("Begin", &users::request(&token));
    }
    pause.hit();
    serves(&world.agent);
    world.start("worker").x509();
    pause.release();
    for holder in &mut holders {
        holder.task_answer::<proto::Task>().unwrap();
    }
}
