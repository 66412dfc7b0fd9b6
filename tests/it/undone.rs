//! What could not be recorded has not happened, and has used nothing up.

use mayfly_harness::pause::Jam;
use mayfly_harness::{Holder, TaskRefusal};
use mayfly_proto::task as proto;

use crate::children::{ANN, World, begin, get, issue, offer};

fn delegate(holder: &mut Holder, root: &proto::Task) -> proto::Delegation {
    holder.task_call("Delegate", &offer(root, ANN, "/docs")).unwrap()
}

fn join(holder: &mut Holder, offer: &proto::Delegation, key: &str) -> Result<proto::Task, TaskRefusal> {
    let (delegation_id, idempotency_key) = (offer.id.clone(), key.to_owned());
    holder.task_call("Join", &proto::JoinRequest { delegation_id, idempotency_key, ..Default::default() })
}

fn jammed() -> (World, Jam) {
    let mut jam = None;
    let world = World::prepared(|agent| {
        let (made, spec) = Jam::at(agent.dir(), "task.record");
        agent.plan().environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec));
        jam = Some(made);
    });
    (world, jam.unwrap())
}

/// Fail closed, and lose nothing: whoever was to have a part of a task need not ask for another.
#[test]
fn an_offer_is_good_again_when_taking_it_up_could_not_be_recorded() {
    let (mut world, jam) = jammed();
    let (mut planner, mut ann, mut twin) = (world.planner(), world.ann(), world.ann());
    let root = begin(&mut planner);
    let offers = [(); 3].map(|()| delegate(&mut planner, &root));
    jam.set();
    for (key, offered) in ["a", "b", ""].into_iter().zip(&offers) {
        let refused = join(&mut ann, offered, key).unwrap_err();
        assert_eq!(refused.code, 14, "{refused:?}");
    }
    assert_eq!(get(&mut planner, &root).unwrap().live_children, 0);
    jam.clear();
    let joined = join(&mut ann, &offers[0], "a").unwrap();
    assert_eq!(join(&mut ann, &offers[0], "a").unwrap().id, joined.id);
    issue(&mut ann, &joined).unwrap();
    assert_eq!(join(&mut twin, &offers[0], "").unwrap_err().reason, "delegation_used", "once, and no more");
    // Nor does a restart know better.
    world.agent.crash_and_restart();
    [&mut planner, &mut ann, &mut twin].into_iter().for_each(Holder::connect);
    let again = join(&mut twin, &offers[1], "").unwrap();
    issue(&mut twin, &again).unwrap();
    assert_eq!(join(&mut twin, &offers[0], "").unwrap_err().reason, "delegation_used");
    issue(&mut ann, &joined).unwrap();
    // Somebody else of that identity, by another request.
    join(&mut ann, &offers[2], "c").unwrap();
}
