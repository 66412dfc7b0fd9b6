//! Recorded pods, said by a kubelet.

use proptest::prelude::*;
use serde_json::Value;

use super::super::decode;
use super::*;

const LIST: &str = include_str!("../../../tests/vectors/kubernetes/podlist.json");

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn list<T>(value: &Value, of: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(of).collect()
}

fn texts(value: &Value) -> std::collections::BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn container(value: &Value) -> RawContainer {
    RawContainer {
        name: text(value, "name"),
        image: text(value, "image"),
        image_id: text(value, "imageID"),
        container_id: text(value, "containerID"),
    }
}

fn wire(pod: &Value) -> Bytes {
    let (meta, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    let owner =
        |one: &Value| RawOwner { kind: text(one, "kind"), name: text(one, "name"), uid: text(one, "uid") };
    let raw = RawPod {
        metadata: Some(RawMeta {
            name: text(meta, "name"),
            namespace: text(meta, "namespace"),
            uid: text(meta, "uid"),
            labels: texts(&meta["labels"]),
            annotations: texts(&meta["annotations"]),
            owners: list(&meta["ownerReferences"], owner),
        }),
        spec: Some(RawSpec {
            service_account: text(spec, "serviceAccountName"),
            node: text(spec, "nodeName"),
            ephemeral: list(&spec["ephemeralContainers"], |_| Skipped {}),
        }),
        status: Some(RawStatus {
            main: list(&status["containerStatuses"], container),
            init: list(&status["initContainerStatuses"], container),
            ephemeral: list(&status["ephemeralContainerStatuses"], container),
        }),
    };
    raw.encode_to_vec().into()
}

fn event(kind: i32, pod: &Bytes) -> WatchEvent {
    WatchEvent { kind, pod: pod.clone() }
}

#[test]
fn the_kubelet_and_the_api_server_say_the_same_of_every_recorded_pod() {
    let recorded: Value = serde_json::from_str(LIST).unwrap();
    let mut feed = Feed::default();
    for pod in recorded["items"].as_array().unwrap() {
        assert_eq!(feed.take(&event(ADDED, &wire(pod))).unwrap(), Step::Nothing);
    }
    let expected = decode::page::<Pod>(LIST.as_bytes()).unwrap().items;
    assert!(expected.len() > 5);
    let all = feed.take(&event(INITIAL_SYNC_COMPLETE, &Bytes::new())).unwrap();
    assert_eq!(all, Step::All(expected));
}

/// Field numbers, byte for byte, as a kubelet would write them: not by the same declarations that read them.
#[test]
fn a_pod_is_read_by_the_field_numbers_of_its_api() {
    fn varint(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = u8::try_from(number % 128).unwrap();
            number /= 128;
            bytes.push(if number == 0 { low } else { low + 128 });
            if number == 0 {
                return bytes;
            }
        }
    }
    fn field(number: usize, content: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2).as_slice(), &varint(content.len()), content].concat()
    }
    let label = [field(1, b"app"), field(2, b"web")].concat();
    let owner = [field(1, b"ReplicaSet"), field(3, b"web-1"), field(4, b"o"), field(5, b"apps/v1")].concat();
    let meta = [
        field(1, b"web"),
        field(2, b"web-"),
        field(3, b"shop"),
        field(5, b"u"),
        field(11, &label),
        field(13, &owner),
    ];
    let env = field(2, &field(7, &field(2, b"secret")));
    let spec = [env, field(8, b"teller"), field(10, b"node-1"), field(34, &field(1, b"debug"))];
    let id = format!("cri-o://{}", "0b".repeat(32));
    let status = field(
        8,
        &[field(1, b"app"), field(6, b"i:1"), field(7, b"i@sha256:1"), field(8, id.as_bytes())].concat(),
    );
    let pod = [field(1, &meta.concat()), field(2, &spec.concat()), field(3, &status)].concat();
    let mut feed = Feed { listed: None };
    let Step::Is(pod) = feed.take(&event(MODIFIED, &pod.into())).unwrap() else { panic!() };
    assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("shop", "web", "u"));
    assert_eq!((&*pod.service_account, &*pod.node, pod.debuggers), ("teller", "node-1", 1));
    assert_eq!(pod.labels, [("app".into(), "web".into())]);
    assert_eq!(pod.owners, [Owner { kind: "ReplicaSet".into(), name: "web-1".into(), uid: "o".into() }]);
    let [app] = &pod.containers[..] else { panic!("{pod:?}") };
    assert_eq!((app.kind, &*app.name, &*app.image, &*app.image_id), (Kind::Main, "app", "i:1", "i@sha256:1"));
    assert_eq!(app.id, container_id(&id));
}

proptest! {
    /// Whatever comes, nothing counts before everything was told, and that is told once.
    #[test]
    fn nothing_counts_before_everything_was_told(
        events in prop::collection::vec((-1..7_i32, prop_oneof![Just(true), Just(false)]), 0..12),
    ) {
        let pod = wire(&serde_json::json!({"metadata": {"name": "n", "namespace": "s", "uid": "u"}}));
        let (mut feed, mut added, mut complete) = (Feed::default(), 0, false);
        for (kind, filled) in events {
            let pod = if filled { pod.clone() } else { Bytes::new() };
            match feed.take(&event(kind, &pod)) {
                Ok(Step::Nothing) => {
                    prop_assert!(!complete && kind == ADDED && filled);
                    added += 1;
                }
                Ok(Step::All(all)) => {
                    prop_assert!(!complete && kind == INITIAL_SYNC_COMPLETE && !filled);
                    prop_assert_eq!(all.len(), added);
                    complete = true;
                }
                Ok(Step::Is(_)) => prop_assert!(complete && filled && [ADDED, MODIFIED].contains(&kind)),
                Ok(Step::Gone(_)) => prop_assert!(complete && filled && kind == DELETED),
                Err(_) => break,
            }
        }
    }

    #[test]
    fn no_bytes_panic(pod in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(Feed { listed: None }.take(&event(ADDED, &pod.into())));
    }
}
