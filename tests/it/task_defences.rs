//! Defences of tasks whose absence nothing else would notice, each by a test of its own.

use mayfly_harness::holder::Who;
use mayfly_harness::tasks::detail;
use mayfly_harness::{Holder, until};
use mayfly_proto::task as proto;

use crate::approvals;
use crate::children::{ANN, World, begin, child, get, lasting, offer, policies, seconds};
use crate::run_task;
use crate::support::{client, own_uid};

/// More time is no way round the template: it lets a task live for so long at a time.
#[test]
fn a_renewal_is_for_no_longer_than_the_template_says() {
    let world = World::new();
    let brief = "\n[[templates]]\nname = \"brief\"\nowner = \"docs\"\n[templates.ceilings]\nttl = \"2m\"\n\
                 [[templates.details]]\ntarget = \"wiki\"\nactions = [\"read\"]\n";
    world.agent.write_catalogue(&policies().more(brief).catalogue);
    let mut planner = world.planner();
    let request = proto::BeginRequest { template: "brief".to_owned(), ..Default::default() };
    let task: proto::Task = until("the template is known", || planner.task_call("Begin", &request).ok());
    let lasts = |task: &proto::Task| seconds(task.deadline.as_ref()) - seconds(task.begun_at.as_ref());
    assert!(lasts(&task) <= 121, "{}", lasts(&task));
    let more = proto::RenewRequest { task_id: task.id.clone(), ttl: lasting(3600) };
    let renewed: proto::Task = planner.task_call("Renew", &more).unwrap();
    // From when it was renewed, which was soon.
    assert!(lasts(&renewed) < 600, "two minutes and no hour: {}", lasts(&renewed));
}

/// What its agent may not use any more ends, and is not renewed either.
#[test]
fn a_child_by_a_template_that_was_taken_from_its_agent_ends_and_is_not_renewed() {
    let world = World::new();
    let (mut planner, mut ann, mut twin) = (world.planner(), world.ann(), world.ann());
    let root = begin(&mut planner);
    let by_template = proto::DelegateRequest {
        details: Vec::new(),
        template: "summarise".to_owned(),
        params: [("space".to_owned(), "docs".to_owned())].into(),
        ttl: lasting(60),
        ..offer(&root, ANN, "")
    };
    let offered: proto::Delegation = planner.task_call("Delegate", &by_template).unwrap();
    let join = proto::JoinRequest { delegation_id: offered.id, ..Default::default() };
    let joined: proto::Task = ann.task_call("Join", &join).unwrap();
    let plain = child(&root, &mut planner, &mut twin, ANN, "/docs");
    let renew = proto::RenewRequest { task_id: joined.id.clone(), ttl: lasting(120) };
    ann.task_call::<proto::Task>("Renew", &renew).unwrap();
    let taken = policies().catalogue.replace("templates = [\"summarise\"]", "templates = [\"rewrite\"]");
    world.agent.write_catalogue(&taken);
    until("nobody hands it on any more", || {
        let refused = planner.task_call::<proto::Delegation>("Delegate", &by_template).err()?;
        (refused.reason == "policy_denied").then_some(())
    });
    world.agent.audited(&["decision.deny", &joined.id, "template_not_allowed"]);
    world.agent.audited(&["task.ended", &joined.id, "\"reason\":\"policy\""]);
    let longer = proto::RenewRequest { ttl: lasting(600), ..renew };
    assert_eq!(ann.task_call::<proto::Task>("Renew", &longer).unwrap_err().reason, "task_ended");
    assert_eq!(get(&mut planner, &plain).unwrap().state(), proto::TaskState::Active, "by no template");
}

/// Whoever pulls the kill switch learns that he named nothing.
#[test]
fn a_freeze_of_what_is_no_tasks_name_is_refused() {
    let world = World::new();
    let task = begin(&mut world.planner());
    for name in ["nightly", "wiki", "tsk_", "tsk_01K6", &task.id.replacen("tsk_", "dlg_", 1)] {
        let (code, _, err) = world.agent.mayfly(&["freeze", "--task", name]);
        assert_ne!(code, Some(0), "{name}");
        assert!(err.contains("no task has such a name"), "{name}: {err}");
    }
    assert_eq!(world.agent.mayfly(&["freeze", "--task", &task.id]).0, Some(0));
}

/// A holder below `mayfly run`: as its program, or as that program's child.
fn below(agent: &mayfly_harness::Agent, more: &[&str]) -> Holder {
    let socket = format!("SPIFFE_ENDPOINT_SOCKET=unix://{}", agent.public().display());
    let token = format!("WIKI_FILE={}", run_task::WIKI);
    let binary = agent.binary().display().to_string();
    let run = [
        "env",
        socket.as_str(),
        binary.as_str(),
        "run",
        "--task",
        "restless",
        "--token",
        token.as_str(),
        "--",
    ];
    Who::uid(own_uid()).wrapped(&[&run[..], more].concat()).start(agent)
}

/// K01: `mayfly run` is above a program's children too, and keeps nothing for them.
#[test]
fn k01_a_keeper_is_the_parent_itself_and_nobody_above() {
    let agent = run_task::agent();
    let request = proto::BeginRequest {
        details: vec![detail(run_task::WIKI, &["read"])],
        keeper: Some(proto::Keeper { audiences: vec![run_task::WIKI.to_owned()] }),
        ..Default::default()
    };
    let mut program = below(&agent, &[]);
    program.task_call::<proto::Task>("Begin", &request).unwrap();
    // The shell stays between them.
    let mut child = below(&agent, &["sh", "-c", "\"$@\"; exit $?", "sh"]);
    let refused = child.task_call::<proto::Task>("Begin", &request).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (7, "not_granted"));
    agent.audited(&["\"phase\":\"keeper\"", "not the file that the agent runs"]);
    let alone = proto::BeginRequest { keeper: None, ..request };
    child.task_call::<proto::Task>("Begin", &alone).unwrap();
}

/// People who cannot be told at once are told later, and not of what is over by then.
#[test]
fn nobody_is_told_of_what_was_asked_and_is_void_by_the_time_its_turn_comes() {
    let agent = approvals::told_by(|dir| {
        let (out, go) = (dir.join("told"), dir.join("go"));
        std::fs::create_dir(&out).unwrap();
        let text = format!(
            "#!/bin/sh\n/bin/cat > {go:?}.$$ && /bin/mv {go:?}.$$ {out:?}/$$\n\
             while [ ! -e {go:?} ]; do /bin/sleep 0.02; done\n"
        );
        format!("[approvals]\nnotify_exec = [{:?}]\n", approvals::script(dir, "tell", &text))
    });
    let told = || -> Vec<String> {
        let all = std::fs::read_dir(agent.dir().join("told")).unwrap();
        all.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    };
    let mut holder = client(&agent);
    let [stays, ends] = [(); 2].map(|()| approvals::begin(&mut holder));
    let mut ask = |task: &str, page| approvals::asked(&mut holder, &approvals::write(task, page)).approval_id;
    // Four are told at once, and stay with it.
    let first: Vec<String> =
        [(&stays, 1), (&stays, 2), (&stays, 3), (&ends, 4)].map(|(task, page)| ask(task, page)).to_vec();
    until("four are told", || (told().len() == 4).then_some(()));
    let void = [ask(&ends, 5), ask(&ends, 6)];
    let end = proto::EndRequest { task_id: ends.clone(), ..Default::default() };
    holder.rpc::<proto::TaskSummary>("mayfly.task.v1.TaskAPI/End", &end).unwrap();
    let later = approvals::begin(&mut holder);
    let last = approvals::asked(&mut holder, &approvals::write(&later, 7)).approval_id;
    std::fs::write(agent.dir().join("go"), "").unwrap();
    until("the last is told", || told().iter().any(|text| text.contains(&last)).then_some(()));
    let told = told().join("\n");
    assert!(first.iter().all(|id| told.contains(id)));
    assert!(void.iter().all(|id| !told.contains(id)), "{void:?}: {told}");
}
