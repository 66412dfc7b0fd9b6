//! Random changes of a table of pods.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::pod::Owner;
use super::super::table::{PodTable, Touched};
use super::*;

fn small_pod() -> impl Strategy<Value = Pod> {
    let ids = prop::collection::vec((0..3_u8, prop::option::of(0..6_u8)), 0..3);
    (0..4_u8, 0..4_u8, prop::option::of(0..4_u8), ids, 0..2_u8).prop_map(|(name, own, hash, ids, label)| {
        Pod {
            namespace: "n".into(),
            name: format!("p{name}").into(),
            uid: uid(own.into()).into(),
            node: NODE.into(),
            labels: vec![("l".into(), label.to_string().into())],
            static_hash: hash.map(|n| uid(n.into()).into()),
            containers: ids
                .into_iter()
                .map(|(kind, n)| Container {
                    kind: [Kind::Init, Kind::Main, Kind::Ephemeral][usize::from(kind)],
                    name: "c".into(),
                    image: "i".into(),
                    image_id: "d".into(),
                    id: n.and_then(|n| pod::container_id(&format!("containerd://{}", id(n)))),
                })
                .collect(),
            owners: vec![Owner { kind: "Node".into(), name: NODE.into(), uid: "u".into() }],
            ..Pod::default()
        }
    })
}

#[derive(Clone, Debug)]
enum Step {
    Put(Pod),
    Remove(u8, u8),
    Replace(Vec<Pod>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => small_pod().prop_map(Step::Put),
        2 => (0..4_u8, 0..4_u8).prop_map(|(name, uid)| Step::Remove(name, uid)),
        1 => prop::collection::vec(small_pod(), 0..5).prop_map(Step::Replace),
    ]
}

/// Everything that can be asked, and its answer, as text.
fn everything(table: &PodTable) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for pod in [None, Some(0), Some(1), Some(2), Some(3)] {
        for n in 0..6 {
            let who = container(pod.map(uid).as_deref(), &id(n));
            all.insert(format!("{pod:?} {n}"), format!("{:?}", table.find(&who, NODE, false)));
        }
    }
    all
}

proptest! {
    /// The table is what its pods say, however it came to be; and every answer that changed belongs to a name that was
    /// touched.
    #[test]
    fn a_table_is_its_pods_whatever_happened_before(steps in prop::collection::vec(step(), 0..30)) {
        let mut table = PodTable::new(false);
        let mut pods: BTreeMap<Box<str>, Pod> = BTreeMap::new();
        for step in steps {
            let before = everything(&table);
            let touched: Touched = match step {
                Step::Put(pod) => {
                    pods.insert(pod.name.clone(), pod.clone());
                    table.put(pod)
                }
                Step::Remove(name, n) => {
                    let (name, uid) = (format!("p{name}"), uid(n.into()));
                    if pods.get(&*name).is_some_and(|pod| *pod.uid == *uid) {
                        pods.remove(&*name);
                    }
                    table.remove("n", &name, &uid)
                }
                Step::Replace(all) => {
                    pods = all.iter().map(|pod| (pod.name.clone(), pod.clone())).collect();
                    table.replace(all)
                }
            };
            let mut fresh = PodTable::new(false);
            fresh.replace(pods.values().cloned().collect());
            let after = everything(&table);
            prop_assert_eq!(&after, &everything(&fresh));
            prop_assert_eq!(table.len(), pods.len());
            for (who, verdict) in &after {
                if before[who] != *verdict {
                    let (pod, n) = who.split_once(' ').unwrap();
                    let pod = pod.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')'));
                    let by_pod = pod.map(|n| Wanted::Pod(uid(n.parse().unwrap()).into()));
                    let by_id = Wanted::Container(ContainerId::parse(id(n.parse().unwrap()).as_bytes()).unwrap());
                    prop_assert!(
                        by_pod.is_some_and(|wanted| touched.contains(&wanted)) || touched.contains(&by_id),
                        "{} became {} and only {:?} was told", before[who], verdict, touched
                    );
                }
            }
        }
    }
}
