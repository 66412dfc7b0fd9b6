//! Recorded pods, and what must be said of each of their containers.

mod decoding;
mod tables;

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::decode::{self, Event, Namespace};
use super::pod::{Container, Kind, Pod};
use super::table::Refused;
use super::*;
use crate::backend::News;
use crate::origin::{ContainerId, PodUid};

const LIST: &str = include_str!("../../../tests/vectors/kubernetes/podlist.json");
const EXPECTED: &str = include_str!("../../../tests/vectors/kubernetes/expected_selectors.json");
const NODE: &str = "node-1";

fn settings() -> KubernetesSettings {
    KubernetesSettings {
        node: NODE.to_owned(),
        source: SourceSettings::Api(ApiServer {
            address: ([127, 0, 0, 1], 1).into(),
            token_file: "/".into(),
            ca_file: "/".into(),
        }),
        wait_pod: Duration::from_secs(5),
        wait_status: Duration::from_secs(10),
        namespace_labels: false,
        ephemeral: false,
    }
}

fn recorded() -> Vec<Pod> {
    decode::page::<Pod>(LIST.as_bytes()).unwrap().items
}

fn kubernetes(change: impl FnOnce(&mut KubernetesSettings)) -> Kubernetes {
    let mut settings = settings();
    change(&mut settings);
    let kubernetes = Kubernetes::new(settings);
    kubernetes.pods.replace(recorded());
    kubernetes.pods.synced(store::PODS);
    kubernetes
}

fn container(pod: Option<&str>, id: &str) -> ContainerRef {
    ContainerRef {
        runtime: Runtime::Unknown,
        id: ContainerId::parse(id.as_bytes()).unwrap(),
        pod: pod.map(|uid| PodUid::parse(uid.as_bytes()).unwrap()),
        qos: None,
        root_owned: Vec::new(),
    }
}

fn uid(n: u64) -> String {
    format!("a0000000-0000-0000-0000-{n:012}")
}

fn id(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

fn texts(found: &Found) -> BTreeSet<String> {
    found.selectors.iter().map(ToString::to_string).collect()
}

/// What both back-ends say together, without waiting.
async fn now(kubernetes: &Kubernetes, who: &ContainerRef) -> Result<Found, String> {
    let mut all = Found::default();
    for stage in [Stage::Spec, Stage::Status] {
        match kubernetes.answer(who, stage).await {
            Ok(found) => {
                all.selectors.extend(found.selectors);
                all.notes.extend(found.notes);
            }
            Err(Silent::Because(why)) => return Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }
    Ok(all)
}

fn reason(found: &Found) -> &str {
    assert_eq!(found.selectors, []);
    &found.notes[0]
}

#[tokio::test(start_paused = true)]
async fn every_recorded_container_has_spires_selectors_and_its_type() {
    let kubernetes = kubernetes(|settings| settings.ephemeral = true);
    let expected: Vec<Value> = serde_json::from_str(EXPECTED).unwrap();
    assert_eq!(expected.len(), 9);
    for case in expected {
        let who = container(case["cgroup_pod_uid"].as_str(), case["container_id"].as_str().unwrap());
        let mut want: BTreeSet<String> =
            case["selectors"].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect();
        let kind = match case["kind"].as_str().unwrap() {
            "container" => "main",
            other => other,
        };
        want.insert(format!("k8s:container-type:{kind}"));
        assert_eq!(texts(&now(&kubernetes, &who).await.unwrap()), want);
    }
}

#[test]
fn every_selector_has_a_key_that_its_back_end_names() {
    for pod in recorded() {
        let spec = selectors::of_spec(&pod, &[("team".into(), "a".into())]);
        assert!(spec.iter().all(|one| selectors::SPEC_LEVEL.contains(&one.key())), "{spec:?}");
        for own in &pod.containers {
            let status = selectors::of_status(&pod, own);
            assert!(status.iter().all(|one| selectors::STATUS_LEVEL.contains(&one.key())), "{status:?}");
            let empty = status.iter().find(|one| one.key().ends_with("image") && one.value().is_empty());
            assert_eq!(empty, None, "an image that is not pulled yet has no selector");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_nobody_knows_is_waited_for_and_then_there_is_no_answer() {
    let kubernetes = kubernetes(|_| ());
    let began = Instant::now();
    let why = now(&kubernetes, &container(Some(&uid(99)), &id(99))).await.unwrap_err();
    assert_eq!(why, format!("pod {}: it is not yet known to the API server", uid(99)));
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    kubernetes.pods.lost(store::PODS, "connection refused".to_owned());
    let why = now(&kubernetes, &container(Some(&uid(99)), &id(99))).await.unwrap_err();
    assert!(why.ends_with("API server; pods: connection refused"), "{why}");
    assert_eq!(kubernetes.status().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_answered_when_the_pod_comes() {
    let kubernetes = kubernetes(|_| ());
    let mut late = recorded().remove(0);
    (late.name, late.uid) = ("late".into(), uid(50).into());
    late.containers.clear();
    let who = container(Some(&uid(50)), &id(50));
    let waits = kubernetes.answer(&who, Stage::Spec);
    let comes = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(kubernetes.status().waiting, 1);
        kubernetes.pods.put(late.clone());
    };
    let (found, ()) = tokio::join!(waits, comes);
    assert!(texts(&found.unwrap()).contains("k8s:ns:shop"));
}

#[tokio::test(start_paused = true)]
async fn what_the_specification_says_needs_no_report_and_the_rest_waits_for_it() {
    let kubernetes = kubernetes(|_| ());
    let who = container(Some(&uid(4)), &id(8));
    let began = Instant::now();
    let spec = kubernetes.answer(&who, Stage::Spec).await.unwrap();
    assert!(texts(&spec).contains("k8s:pod-name:not-listed-yet"));
    assert!(spec.selectors.iter().all(|one| !selectors::STATUS_LEVEL.contains(&one.key())));
    assert_eq!(began.elapsed(), Duration::ZERO);
    let why = kubernetes.answer(&who, Stage::Status).await.unwrap_err();
    assert!(format!("{why:?}").contains("its container is not yet known"), "{why:?}");
    assert_eq!(began.elapsed(), Duration::from_secs(10), "as long as a report may take, and no false answer");
    let mut reported = recorded().remove(3);
    reported.containers[0].id = pod::container_id(&format!("containerd://{}", id(8)));
    let report = async { kubernetes.pods.put(reported) };
    let (status, ()) = tokio::join!(kubernetes.answer(&who, Stage::Status), report);
    assert!(texts(&status.unwrap()).contains("k8s:container-name:web"));
}

#[tokio::test(start_paused = true)]
async fn c07_a_debugger_gets_nothing_unless_it_may() {
    let kubernetes = kubernetes(|_| ());
    let debugger = container(Some(&uid(3)), &id(7));
    assert!(reason(&now(&kubernetes, &debugger).await.unwrap()).starts_with("ephemeral-container"));
    assert!(!now(&kubernetes, &container(Some(&uid(3)), &id(6))).await.unwrap().selectors.is_empty());
}

/// Its report comes as late as any other's: until then it must not pass for a container of the pod.
#[tokio::test(start_paused = true)]
async fn c07_a_debugger_that_is_not_reported_yet_gets_nothing_either() {
    let kubernetes = kubernetes(|_| ());
    let mut pod = recorded().remove(0);
    pod.debuggers = 1;
    kubernetes.pods.put(pod.clone());
    let new = container(Some(&uid(1)), &id(77));
    let why = kubernetes.answer(&new, Stage::Spec).await.unwrap_err();
    assert!(format!("{why:?}").contains("its container is not yet known"), "{why:?}");
    let debugger = Container {
        kind: Kind::Ephemeral,
        name: "d".into(),
        id: pod::container_id(&format!("containerd://{}", id(77))),
        ..pod.containers[0].clone()
    };
    pod.containers.push(debugger);
    let report = async { kubernetes.pods.put(pod.clone()) };
    let (found, ()) = tokio::join!(kubernetes.answer(&new, Stage::Spec), report);
    assert!(reason(&found.unwrap()).starts_with("ephemeral-container"));
    // With every debugger accounted for, a container that was started anew is the pod's again at once.
    let spec = kubernetes.answer(&container(Some(&uid(1)), &id(78)), Stage::Spec).await.unwrap();
    assert!(!spec.selectors.is_empty());
}

#[tokio::test(start_paused = true)]
async fn c09_what_two_sources_say_differently_is_believed_of_neither() {
    let kubernetes = kubernetes(|_| ());
    let mut all = recorded();
    // Another pod says that the container of the first is its own.
    all[5].containers[0].id = pod::container_id(&format!("containerd://{}", id(1)));
    kubernetes.pods.replace(all);
    let found = now(&kubernetes, &container(Some(&uid(1)), &id(1))).await.unwrap();
    assert_eq!(reason(&found), Refused::TwoContainers.to_string());
    kubernetes.pods.replace(recorded());
    // The cgroup says one pod, the report another.
    let found = now(&kubernetes, &container(Some(&uid(2)), &id(1))).await.unwrap();
    assert_eq!(reason(&found), Refused::OtherPod.to_string());
    // The cgroup says one runtime, the report another.
    let who = |runtime| ContainerRef { runtime, ..container(Some(&uid(6)), &id(10)) };
    let found = now(&kubernetes, &who(Runtime::Containerd)).await.unwrap();
    assert_eq!(reason(&found), Refused::OtherRuntime.to_string());
    assert!(!now(&kubernetes, &who(Runtime::CriO)).await.unwrap().selectors.is_empty());
    // A server that did not keep to this node.
    let mut strange = recorded().remove(0);
    strange.node = "node-2".into();
    kubernetes.pods.put(strange);
    let found = now(&kubernetes, &container(Some(&uid(1)), &id(1))).await.unwrap();
    assert_eq!(reason(&found), Refused::OtherNode.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_is_found_by_its_hash_and_only_the_kubelets_mirror_counts() {
    let hash = "2732ca68f6358eba7703fb6f82a25c94";
    let who = container(Some(hash), &id(9));
    let kubernetes = kubernetes(|_| ());
    assert!(texts(&now(&kubernetes, &who).await.unwrap()).contains("k8s:ns:kube-system"));
    // Whoever may create pods can write the annotations, and even name the node as owner: then nobody has it.
    let mut thief = recorded().remove(0);
    thief.static_hash = Some(hash.into());
    kubernetes.pods.put(thief);
    assert_eq!(reason(&now(&kubernetes, &who).await.unwrap()), Refused::TwoPods.to_string());
    let read = |owners: Value, mirror: bool| {
        let mut annotations = json!({"kubernetes.io/config.hash": hash});
        if mirror {
            annotations["kubernetes.io/config.mirror"] = hash.into();
        }
        let metadata = json!({"name": "p", "namespace": "n", "uid": uid(1), "resourceVersion": "1",
            "annotations": annotations, "ownerReferences": owners});
        let line = json!({"type": "ADDED", "object": {"metadata": metadata}}).to_string();
        let Event::Is(pod, _) = decode::event::<Pod>(line.as_bytes()).unwrap() else { panic!() };
        pod.static_hash
    };
    let owner = |kind: &str| json!({"apiVersion": "v1", "kind": kind, "name": NODE, "uid": "u"});
    assert!(read(json!([owner("Node")]), true).is_some());
    assert_eq!(read(json!([owner("ReplicaSet")]), true), None);
    assert_eq!(read(json!([owner("Node"), owner("ReplicaSet")]), true), None);
    assert_eq!(read(json!(null), true), None);
    assert_eq!(read(json!([owner("Node")]), false), None);
}

#[tokio::test(start_paused = true)]
async fn a_container_without_a_pod_in_its_cgroup_is_looked_up_by_its_id() {
    let kubernetes = kubernetes(|_| ());
    let crio = |n| ContainerRef { runtime: Runtime::CriO, ..container(None, &id(n)) };
    assert!(texts(&now(&kubernetes, &crio(10)).await.unwrap()).contains("k8s:pod-name:crio-pod"));
    assert!(now(&kubernetes, &crio(99)).await.is_err(), "CRI-O makes nothing but pods: it will be known");
    let docker = ContainerRef { runtime: Runtime::Docker, ..container(None, &id(99)) };
    assert_eq!(now(&kubernetes, &docker).await, Ok(Found::default()), "no pod, and no wait");
}

#[tokio::test(start_paused = true)]
async fn labels_of_namespaces_are_waited_for_where_they_are_asked_for() {
    let kubernetes = kubernetes(|settings| settings.namespace_labels = true);
    assert_eq!(kubernetes.status().source, SourceState::Starting(None));
    let who = container(Some(&uid(1)), &id(1));
    let why = now(&kubernetes, &who).await.unwrap_err();
    assert!(why.contains("its namespace is not yet known"), "{why}");
    let label = |value: &str| Namespace { name: "shop".into(), labels: vec![("team".into(), value.into())] };
    kubernetes.pods.replace_namespaces(vec![label("a")]);
    kubernetes.pods.synced(store::NAMESPACES);
    assert_eq!(kubernetes.status().source, SourceState::InSync);
    assert!(texts(&now(&kubernetes, &who).await.unwrap()).contains("k8s:ns-label:team:a"));
    kubernetes.pods.put_namespace(label("b"));
    assert!(texts(&now(&kubernetes, &who).await.unwrap()).contains("k8s:ns-label:team:b"));
}

#[test]
fn whoever_a_change_is_about_is_named_as_cgroups_name_him() {
    let kubernetes = kubernetes(|settings| settings.namespace_labels = true);
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = Arc::clone(&told);
    kubernetes.tell(Arc::new(move |news| teller.lock().unwrap().push(news)));
    let heard = || std::mem::take(&mut *told.lock().unwrap());
    let pod = |text: &str| PodUid::parse(text.as_bytes()).unwrap();
    kubernetes.pods.replace(recorded());
    assert_eq!(heard(), [], "nothing changed");
    let mut relabelled = recorded().remove(0);
    relabelled.labels[0].1 = "other".into();
    kubernetes.pods.put(relabelled);
    let containers = [1, 2].map(|n| News::Container(ContainerId::parse(id(n).as_bytes()).unwrap()));
    let mut want = vec![News::Pod(pod(&uid(1)))];
    want.extend(containers);
    assert_eq!(heard(), want);
    kubernetes.pods.remove("kube-system", "kube-apiserver-node-1", "another uid");
    assert_eq!(heard(), [], "a later pod of the same name stays");
    kubernetes.pods.remove("kube-system", "kube-apiserver-node-1", "e0000000-0000-0000-0000-000000000005");
    let gone = heard();
    for name in ["2732ca68f6358eba7703fb6f82a25c94", "e0000000-0000-0000-0000-000000000005"] {
        assert!(gone.contains(&News::PodGone(pod(name))), "{gone:?}");
    }
    kubernetes.pods.put_namespace(Namespace { name: "shop".into(), labels: Vec::new() });
    assert!(heard().contains(&News::Pod(pod(&uid(2)))), "its namespace has other labels");
}

/// Names that cannot stand in a selector as they are.
#[test]
fn what_a_lying_server_puts_into_names_is_escaped() {
    let pod = Pod { name: "a\n\u{202e}b%".into(), ..recorded().remove(0) };
    let spec = selectors::of_spec(&pod, &[]);
    assert!(spec.iter().any(|one| one.to_string() == "k8s:pod-name:a%0A%E2%80%AEb%25"), "{spec:?}");
}
