//! Histories that show one rule each, by name.

use super::*;
use crate::task::{Ended, Key, NewTask, Past, Standing};

#[test]
fn an_ended_task_says_why_until_it_is_forgotten() {
    let mut model = Model::new(Bounds::default());
    let seat = model.seat(0, false);
    let id = TaskId::from_bytes([1; 16]);
    let grants = Grants::of(vec![detail()]);
    let new = new_task(id, Charter { grants, ..charter(0) }, seat, Some(60), model.wall);
    model.tree.begin(new, model.now).unwrap();
    let cascade = model.tree.end(id, Ending::Failed, model.now, model.wall);
    assert_eq!(cascade.ended.len(), 1);
    assert_eq!(model.tree.standing(id), Err(Refused::Ended(Ending::Failed)));
    assert!(model.tree.end(id, Ending::Admin, model.now, model.wall).is_empty(), "final");
    assert_eq!(model.tree.standing(id), Err(Refused::Ended(Ending::Failed)));
    let caller = model.caller_of(id).unwrap();
    let renewed = model.tree.renewed_until(id, Duration::from_secs(60), &caller, model.now);
    assert_eq!(renewed, Err(Refused::Ended(Ending::Failed)));
}

fn detail() -> Detail {
    Detail::read(&super::super::RawDetail {
        kind: super::super::grant::TARGET_ACCESS.to_owned(),
        locations: vec!["https://h".to_owned()],
        actions: vec!["read".to_owned()],
        ..super::super::RawDetail::default()
    })
    .unwrap()
}

fn begun(model: &mut Model, slot: u8, cgroup: bool, alone: bool) -> Result<TaskId, Refused> {
    let id = TaskId::from_bytes(model.number());
    let seat = model.seat(slot, cgroup);
    let grants = Grants::of(vec![detail()]);
    let charter = Charter { grants, require_isolated: alone, ..charter(0) };
    model.tree.begin(new_task(id, charter, seat, Some(600), model.wall), model.now)?;
    Ok(id)
}

#[test]
fn isolation_is_a_cgroup_of_ones_own_and_stays_so() {
    let mut model = Model::new(Bounds::default());
    assert_eq!(begun(&mut model, 0, false, true), Err(Refused::NotIsolated));
    let process = begun(&mut model, 0, false, false).unwrap();
    assert!(!model.tree.is_isolated(process));
    let shared = begun(&mut model, 1, true, false).unwrap();
    assert!(model.tree.is_isolated(shared));
    assert_eq!(begun(&mut model, 1, true, true), Err(Refused::NotIsolated), "not alone");
    begun(&mut model, 1, true, false).unwrap();
    assert!(!model.tree.is_isolated(shared), "two tasks in one cgroup can act as each other");
    let alone = begun(&mut model, 2, true, true).unwrap();
    assert_eq!(
        begun(&mut model, 2, true, false),
        Err(Refused::NotIsolated),
        "the first one wants to be alone"
    );
    assert!(model.tree.is_isolated(alone));
    // One that is held by a process in there can be acted in by somebody who can act in the other as well.
    let one = begun(&mut model, 3, true, false).unwrap();
    let beside = begun(&mut model, 4, false, false).unwrap();
    model.tree.note_beside(beside, Some(3));
    assert!(!model.tree.is_isolated(one) && !model.tree.is_free(3));
    assert_eq!(begun(&mut model, 3, true, true), Err(Refused::NotIsolated));
    drop(model.tree.end(beside, Ending::Completed, model.now, model.wall));
    model.tree.note_beside(beside, Some(3));
    assert!(model.tree.is_isolated(one), "who has ended is not beside it");
    assert!(model.tree.has_cgroups());
    let anywhere = begun(&mut model, 4, false, false).unwrap();
    model.tree.note_beside(anywhere, None);
    assert!(!model.tree.is_isolated(one) && !model.tree.is_free(3) && !model.tree.is_free(9));
    drop(model.tree.end(anywhere, Ending::Completed, model.now, model.wall));
    assert!(model.tree.is_isolated(one), "nobody is feared to be beside it any more");
    assert!(model.tree.is_reserved(2) && !model.tree.is_reserved(3) && model.tree.is_free(9));
}

/// Whoever gives an operator's order is refused if it, or one above it, is one of these.
#[test]
fn whoever_began_a_task_sits_in_it_wherever_it_is_and_so_does_its_cgroup() {
    let mut model = Model::new(Bounds::default());
    let task = begun(&mut model, 1, true, false).unwrap();
    let caller = model.caller_of(task).unwrap();
    let elsewhere = ProcessKey { pid: 99, ..caller.process };
    for (process, cgroup, seated) in [
        (caller.process, Some(99), true),
        (caller.process, None, true),
        (elsewhere, caller.cgroup, true),
        (elsewhere, Some(99), false),
        (elsewhere, None, false),
    ] {
        let above = Caller { process, cgroup, identities: Vec::new() };
        assert_eq!(model.tree.seats_any(&[above]), seated, "{process:?} {cgroup:?}");
    }
}

fn offered(model: &mut Model, parent: TaskId, to: u8) -> Result<DelegationId, Refused> {
    let caller = model.caller_of(parent).unwrap();
    let own = model.tree.get(parent).unwrap().charter.grants.clone();
    let new = NewOffer {
        id: DelegationId::from_bytes(model.number()),
        parent,
        charter: charter(to),
        asked: own.details().to_vec(),
        life: None,
        drops_user: false,
        waits: None,
        key: None,
    };
    model.tree.offer(new, &own, &caller, model.now).map(|offer| offer.id)
}

fn joined(model: &mut Model, offer: DelegationId, agent: u8, slot: u8) -> Result<TaskId, Refused> {
    let id = TaskId::from_bytes(model.number());
    let seat = model.seat(slot, false);
    let grants = Grants::of(vec![detail()]);
    let new = new_task(id, Charter { grants, ..charter(agent) }, seat, None, model.wall);
    model.tree.join(offer, new, model.now).map(|task| task.id)
}

#[test]
fn an_offer_is_taken_up_once_and_by_whom_it_names() {
    let mut model = Model::new(Bounds::default());
    let parent = begun(&mut model, 0, false, false).unwrap();
    let offer = offered(&mut model, parent, 1).unwrap();
    assert_eq!(joined(&mut model, offer, 2, 2), Err(Refused::NotYours));
    let child = joined(&mut model, offer, 1, 1).unwrap();
    assert_eq!(joined(&mut model, offer, 1, 3), Err(Refused::DelegationUsed));
    assert_eq!(joined(&mut model, offer, 2, 3), Err(Refused::NotYours), "says no more than before");
    let late = offered(&mut model, parent, 1).unwrap();
    model.now += model.tree.bounds().offer;
    assert_eq!(joined(&mut model, late, 1, 3), Err(Refused::NoSuchDelegation));
    let cascade = model.tree.end(parent, Ending::Completed, model.now, model.wall);
    let endings: Vec<_> = cascade.ended.iter().map(|e| (e.task, e.ending)).collect();
    assert_eq!(endings, [(parent, Ending::Completed), (child, Ending::ParentEnded)]);
    assert_eq!(joined(&mut model, late, 1, 3), Err(Refused::NoSuchDelegation));
}

/// Two equal requests that were both decided before either was seated.
#[test]
fn the_same_request_twice_at_once_is_one_task_and_one_offer() {
    let mut model = Model::new(Bounds::default());
    let process = model.process(0);
    let caller = Caller { process, cgroup: None, identities: Vec::new() };
    let key = |digest| Some(Key { process, text: "k".to_owned(), digest: [digest; 32] });
    let begin = |model: &mut Model, key| {
        let id = TaskId::from_bytes(model.number());
        let charter = Charter { grants: Grants::of(vec![detail()]), ..charter(0) };
        let new = new_task(id, charter, model.seat(0, false), Some(600), model.wall);
        model.tree.begin(NewTask { key, ..new }, model.now).map(|task| task.id)
    };
    let parent = begin(&mut model, key(1)).unwrap();
    assert_eq!(begin(&mut model, key(1)), Ok(parent));
    assert_eq!(begin(&mut model, key(2)), Err(Refused::Conflict));
    assert_eq!(model.tree.live(), 1);
    let key = |digest| Some(Key { process, text: "o".to_owned(), digest: [digest; 32] });
    let offer = |model: &mut Model, key| {
        let own = model.tree.get(parent).unwrap().charter.grants.clone();
        let new = NewOffer {
            id: DelegationId::from_bytes(model.number()),
            parent,
            charter: charter(1),
            asked: own.details().to_vec(),
            life: None,
            drops_user: false,
            waits: None,
            key,
        };
        model.tree.offer(new, &own, &caller, model.now).map(|offer| offer.id)
    };
    let offered = offer(&mut model, key(1)).unwrap();
    assert_eq!(offer(&mut model, key(1)), Ok(offered));
    assert_eq!(offer(&mut model, key(2)), Err(Refused::Conflict));
    assert_eq!(begin(&mut model, key(1)), Err(Refused::Conflict), "that was an offer");
    assert_eq!(model.tree.offers().count(), 1);
    let key = Some(Key { process: model.process(1), text: "j".to_owned(), digest: [1; 32] });
    let join = |model: &mut Model, key| {
        let id = TaskId::from_bytes(model.number());
        let charter = Charter { grants: Grants::of(vec![detail()]), ..charter(1) };
        let new = new_task(id, charter, model.seat(1, false), None, model.wall);
        model.tree.join(offered, NewTask { key, ..new }, model.now).map(|task| task.id)
    };
    let child = join(&mut model, key.clone()).unwrap();
    assert_eq!(join(&mut model, key), Ok(child));
    assert_eq!(join(&mut model, None), Err(Refused::DelegationUsed));
    assert_eq!(model.tree.take_back(offered), Some(child), "what has come of it");
    assert_eq!(model.tree.live(), 2);
}

#[test]
fn the_tree_is_as_deep_and_as_wide_as_it_may_be() {
    let mut model = Model::new(Bounds::default());
    let mut parent = begun(&mut model, 0, false, false).unwrap();
    for slot in 1..=3 {
        let offer = offered(&mut model, parent, slot).unwrap();
        parent = joined(&mut model, offer, slot, slot).unwrap();
    }
    let too_deep = offered(&mut model, parent, 0);
    assert_eq!(too_deep, Err(Refused::Limit(super::super::Limit::Depth)));
    let wide = begun(&mut model, 4, false, false).unwrap();
    for _ in 0..8 {
        offered(&mut model, wide, 1).unwrap();
    }
    let one_more = offered(&mut model, wide, 1);
    assert_eq!(one_more, Err(Refused::Limit(super::super::Limit::Children)));
}

#[test]
fn time_that_is_taken_back_is_taken_from_all_below_and_watched_tasks_are_told_of_once() {
    let mut model = Model::new(Bounds::default());
    let parent = begun(&mut model, 0, false, false).unwrap();
    let before = model.tree.get(parent).unwrap().deadline;
    let (caller, all) =
        (model.caller_of(parent).unwrap(), model.tree.get(parent).unwrap().charter.grants.clone());
    model.tree.watch(parent);
    let life = Duration::from_secs(3_600);
    assert!(model.tree.renew(parent, life, &all, &caller, model.now, model.wall).unwrap().is_empty());
    let offer = offered(&mut model, parent, 1).unwrap();
    let child = joined(&mut model, offer, 1, 1).unwrap();
    assert_eq!(model.tree.get(child).unwrap().deadline, model.now + life);
    assert_eq!(model.tree.take_changed(), BTreeSet::from([parent]), "nobody watches the child");
    assert!(model.tree.take_changed().is_empty());
    model.tree.curtail(parent, before);
    let deadlines = [parent, child].map(|id| model.tree.get(id).unwrap().deadline);
    assert_eq!(deadlines, [before, before]);
    model.now = before;
    let ended: usize =
        model.tree.on_timeout(model.now, model.wall).iter().map(|cascade| cascade.ended.len()).sum();
    assert_eq!(ended, 2);
    assert!(model.tree.take_changed().is_empty(), "an end is told of otherwise");
}

#[test]
fn a_parent_spends_with_its_children() {
    let mut model = Model::new(Bounds::default());
    let parent = begun(&mut model, 0, false, false).unwrap();
    let offer = offered(&mut model, parent, 1).unwrap();
    let child = joined(&mut model, offer, 1, 1).unwrap();
    // As if it had been begun with a budget of three.
    let mut tasks: Vec<Task> =
        [parent, child].iter().map(|id| model.tree.get(*id).unwrap().clone()).collect();
    tasks[0].charter.limits.calls = Some(3);
    let mut tree = Tree::new(Bounds::default());
    let holders: BTreeMap<TaskId, WorkloadId> =
        tasks.iter().map(|task| (task.id, task.seat.holder)).collect();
    tasks[1].charter.limits.calls = Some(3);
    let past = Past { tasks, ..Past::default() };
    let (now, wall) = (model.now, model.wall);
    assert!(tree.restore(past, |task| holders.get(&task.id).copied(), now, wall).is_empty());
    let mut ask = |id| tree.take_off(id, "a", now).map(drop);
    assert_eq!([ask(child), ask(parent), ask(child)], [Ok(()), Ok(()), Ok(())]);
    let over = Err(Refused::Limit(super::super::Limit::Calls));
    assert_eq!([ask(child), ask(parent)], [over, over]);
    assert_eq!(tree.get(parent).unwrap().used.calls, 3);
    assert_eq!(tree.get(child).unwrap().used.calls, 2);
}

/// One thing amiss with what was noted, and the child ends; as it is, it goes on.
#[test]
fn what_is_wider_than_what_is_above_it_does_not_outlive_a_restart() {
    type Spoil = fn(&mut Task);
    let mut model = Model::new(Bounds::default());
    let parent = begun(&mut model, 0, false, false).unwrap();
    let offer = offered(&mut model, parent, 1).unwrap();
    let child = joined(&mut model, offer, 1, 1).unwrap();
    let spoils: [Spoil; 10] = [
        |_| {},
        |task| task.deadline += Duration::from_secs(1),
        |task| task.latest += Duration::from_secs(1),
        |task| task.depth = 2,
        |task| task.root = task.id,
        |task| task.standing = Standing::Pending,
        |task| task.begun += Duration::from_secs(1),
        |task| task.charter.grants = Grants::default(),
        |task| {
            let more = super::super::RawDetail { actions: vec!["write".to_owned()], ..detail().raw() };
            task.charter.grants = Grants::of(vec![Detail::read(&more).unwrap()]);
        },
        |task| task.charter.user = Some(super::super::User { iss: "i".to_owned(), sub: "s".to_owned() }),
    ];
    for (at, spoil) in spoils.into_iter().enumerate() {
        let mut tasks: Vec<Task> =
            [parent, child].iter().map(|id| model.tree.get(*id).unwrap().clone()).collect();
        tasks.iter_mut().for_each(|task| task.children.clear());
        spoil(&mut tasks[1]);
        let past = Past { tasks, ..Past::default() };
        let mut tree = Tree::new(Bounds::default());
        let ended: Vec<Ended> = tree
            .restore(past, |task| Some(task.seat.holder), model.now, model.wall)
            .into_iter()
            .flat_map(|cascade| cascade.ended)
            .collect();
        let expected = Ended { task: child, ending: Ending::Restart, leases: Vec::new() };
        assert_eq!(ended, if at == 0 { Vec::new() } else { vec![expected] }, "{at}");
        assert_eq!(tree.live(), if at == 0 { 2 } else { 1 });
    }
}

#[test]
fn idle_is_measured_from_the_last_call_of_anybody_below() {
    let mut model = Model::new(Bounds::default());
    let id = TaskId::from_bytes([1; 16]);
    let seat = model.seat(0, false);
    let limits = Limits { idle: Some(Duration::from_secs(60)), ..Limits::default() };
    let charter = Charter { grants: Grants::of(vec![detail()]), limits, ..charter(0) };
    model.tree.begin(new_task(id, charter, seat, Some(600), model.wall), model.now).unwrap();
    let offer = offered(&mut model, id, 1).unwrap();
    let child = joined(&mut model, offer, 1, 1).unwrap();
    let caller = model.caller_of(child).unwrap();
    for _ in 0..3 {
        model.now += Duration::from_secs(50);
        assert!(model.tree.on_timeout(model.now, model.wall).is_empty());
        model.tree.enter(child, &caller, model.now).unwrap();
    }
    model.now += Duration::from_secs(60);
    let cascades = model.tree.on_timeout(model.now, model.wall);
    let endings: Vec<_> = cascades.iter().flat_map(|c| &c.ended).map(|e| (e.task, e.ending)).collect();
    assert!(endings.contains(&(id, Ending::Idle)), "{endings:?}");
    assert_eq!(endings.len(), 2);
}
