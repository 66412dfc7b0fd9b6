//! The `k8s` attestor: real processes in the cgroups of pods, and an API server that lists, watches, expires, breaks
//! off and lies.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mayfly_harness::cgroup::PodGroup;
use mayfly_harness::cluster::{Asked, Cluster, Manner, NODE, pod};
use mayfly_harness::{Agent, Entry, Holder, Pause, Plan, figure, now, require_root, until};
use serde_json::{Value, json};

use crate::support::{WIDE, Watcher, entries_and_watcher};

pub(crate) const UNAVAILABLE: i64 = 14;
pub(crate) const PERMISSION_DENIED: i64 = 7;
/// Whoever runs in the pods.
pub(crate) const USER: u32 = 20_060;

/// By namespace alone.
pub(crate) fn by_namespace() -> Entry {
    Entry::new("/ns", &["k8s:ns:shop"])
}

pub(crate) fn by_container() -> Entry {
    Entry::new("/container", &["k8s:ns:shop", "k8s:container-name:app"])
}

pub(crate) fn agent(cluster: &Cluster, entries: &[Entry], more: &str) -> Agent {
    agent_with(WIDE, cluster, entries, more)
}

fn agent_with(limits: &str, cluster: &Cluster, entries: &[Entry], more: &str) -> Agent {
    require_root();
    let mut agent = Plan::with_entries(&entries_and_watcher(entries)).prepare();
    let settings = format!("{limits}{}{more}", cluster.settings(agent.dir()));
    let plan = agent.plan().clone().settings(&settings);
    *agent.plan() = plan;
    agent.write_config();
    agent.launch();
    cluster.watched_by(1);
    agent
}

/// A pod with a real process in its cgroup.
pub(crate) struct Running {
    pub(crate) pod: Value,
    pub(crate) group: PodGroup,
    pub(crate) holder: Holder,
}

impl Running {
    /// The pod is not known to anybody yet, its container not reported.
    pub(crate) fn new(agent: &Agent, name: &str) -> Self {
        let group = PodGroup::new();
        let holder = Holder::start(agent, USER);
        group.take(holder.pid());
        Self { pod: pod("shop", name, group.uid(), ""), group, holder }
    }

    pub(crate) fn reported(&self) -> Value {
        pod("shop", self.pod["metadata"]["name"].as_str().unwrap(), self.group.uid(), self.group.container())
    }
}

#[test]
fn every_selector_of_every_recorded_container_reaches_explain() {
    let cluster = Cluster::recorded();
    every_recorded_selector(&agent(&cluster, &[], "ephemeral = \"attest\"\n"));
}

/// Of the recorded pods, whoever told the agent of them.
pub(crate) fn every_recorded_selector(agent: &Agent) {
    let expected: Vec<Value> =
        serde_json::from_str(include_str!("../vectors/kubernetes/expected_selectors.json")).unwrap();
    for case in expected {
        let text = |name: &str| case[name].as_str().unwrap().to_owned();
        let group = PodGroup::of(&text("cgroup_pod_uid"), &text("container_id"));
        let holder = Holder::start(agent, USER);
        group.take(holder.pid());
        let explained = agent.admin().explain(holder.pid()).unwrap();
        let found: BTreeSet<String> = explained
            .selectors
            .iter()
            .filter(|one| one.text.starts_with("k8s:"))
            .inspect(|one| assert_eq!(one.strength, "controller"))
            .map(|one| one.text.clone())
            .collect();
        let kind = text("kind").replace("container", "main");
        let mut want: BTreeSet<String> =
            case["selectors"].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect();
        want.insert(format!("k8s:container-type:{kind}"));
        assert_eq!(found, want);
    }
}

#[test]
fn a_report_that_comes_late_is_waited_for_only_where_an_entry_needs_it() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace()], "wait_pod = \"300ms\"\n");
    let mut early = Running::new(&agent, "early");
    // Nobody knows the pod: try again, and never "no identity".
    assert_eq!(early.holder.x509_refused().code, UNAVAILABLE);
    cluster.put(&early.pod);
    let ns = format!("spiffe://{}/ns", agent.trust_domain());
    until("the pod is known", || {
        early.holder.open_x509();
        early.holder.next_x509().ok().map(|update| assert_eq!(update.svids[0].spiffe_id, ns))
    });
    // Now somebody asks for the container's name.
    agent.write_entries(&entries_and_watcher(&[by_namespace(), by_container()]));
    until("the entries are in force", || (agent.admin().entries().entries.len() == 3).then_some(()));
    let mut late = Running::new(&agent, "late");
    cluster.put(&late.pod);
    late.holder.open_x509();
    until("the attestation waits", || (agent.admin().status().pods?.waiting > 0).then_some(()));
    cluster.put(&late.reported());
    let svids = late.holder.next_x509().unwrap().svids;
    let mut ids: Vec<String> = svids.into_iter().map(|svid| svid.spiffe_id).collect();
    ids.sort();
    assert_eq!(ids, [format!("spiffe://{}/container", agent.trust_domain()), ns]);
}

/// The pod becomes known after an attestation has looked for it and before it waits: nobody would wake it.
#[test]
fn a_pod_that_comes_between_the_look_and_the_wait_is_found() {
    let cluster = Cluster::start();
    require_root();
    let mut agent = Plan::with_entries(&entries_and_watcher(&[by_namespace()])).prepare();
    let (pause, spec) = Pause::at(agent.dir(), "kubernetes.before_wait");
    let settings = format!("{WIDE}{}wait_pod = \"60s\"\n", cluster.settings(agent.dir()));
    let plan = agent.plan().clone().settings(&settings).failpoints(&spec);
    *agent.plan() = plan;
    agent.write_config();
    agent.launch();
    cluster.watched_by(1);
    let mut running = Running::new(&agent, "p");
    running.holder.open_x509();
    pause.hit();
    cluster.put(&running.reported());
    until("the pod is known", || (agent.admin().status().pods?.known == 1).then_some(()));
    pause.release();
    let svids = running.holder.next_x509().unwrap().svids;
    assert_eq!(svids.len(), 1);
}

#[test]
fn a_report_that_never_comes_is_no_denial() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_container()], "wait_status = \"300ms\"\n");
    let mut running = Running::new(&agent, "p");
    cluster.put(&running.pod);
    until("the pod is known", || (agent.admin().status().pods?.known == 1).then_some(()));
    assert_eq!(running.holder.x509_refused().code, UNAVAILABLE);
    // One that no entry could be for is denied, and at once.
    let mut other = Running::new(&agent, "q");
    cluster.put(&pod("other", "q", other.group.uid(), ""));
    until("the pod is known", || (agent.admin().status().pods?.known == 2).then_some(()));
    assert_eq!(other.holder.x509_refused().code, PERMISSION_DENIED);
}

#[test]
fn whatever_breaks_the_watch_new_pods_are_noticed() {
    let cluster = Cluster::start();
    let mut agent = agent(&cluster, &[by_namespace()], "");
    let mut count = 0;
    let mut comes = |agent: &Agent, what: &str| {
        count += 1;
        let mut running = Running::new(agent, &format!("p{count}"));
        cluster.put(&running.reported());
        running.holder.open_x509();
        let answer = running.holder.next_x509();
        assert!(answer.is_ok(), "after {what}: {answer:?}");
        // A list may have brought that one. A watch that tells of another is over its failures: without it the pauses
        // of the next steps would add up, to more than a newcomer waits.
        count += 1;
        cluster.put(&pod(&format!("told{count}"), "q", &format!("told-{count}"), ""));
        until("the watch tells", || (agent.admin().status().pods?.known == count).then_some(()));
    };
    comes(&agent, "the first list");
    cluster.bookmark();
    comes(&agent, "a bookmark");
    let lists = cluster.asked().lists;
    cluster.close();
    comes(&agent, "an orderly end");
    assert_eq!(cluster.asked().lists, lists, "it went on where it was");
    cluster.expire();
    comes(&agent, "410 within the watch");
    assert_eq!(cluster.asked().lists, lists + 1);
    // The next watch begins before what is kept: 410 as an answer.
    cluster.compact();
    cluster.close();
    comes(&agent, "410 as an answer");
    assert_eq!(cluster.asked().lists, lists + 2);
    for rubbish in
        ["{\"type\":\"ADDED\",\"object\":{}}\n", "no JSON\n", "{\"type\":\"CHANGED\",\"object\":{}}\n"]
    {
        cluster.say_bytes(rubbish.as_bytes(), false);
        comes(&agent, rubbish);
    }
    cluster.say(&json!({"type": "ERROR", "object": {"code": 500, "message": "broken"}}), true);
    comes(&agent, "an error within the watch");
    cluster.behave(Manner::Pages(2));
    cluster.expire();
    comes(&agent, "a list of several pages");
    assert!(agent.is_running());
    assert_eq!(agent.admin().status().pods.unwrap().known, count);
}

#[test]
fn a_list_of_a_server_that_lags_takes_nothing_from_the_living() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace()], "");
    let mut running = Running::new(&agent, "p");
    cluster.put(&running.reported());
    running.holder.x509();
    // A server that has not heard of the pod answers the list.
    cluster.behave(Manner::Lags(3));
    cluster.expire();
    until("it listed again", || (cluster.asked().lists >= 2).then_some(()));
    until("it watches", || (cluster.open() == 1).then_some(()));
    assert_eq!(agent.admin().status().pods.unwrap().known, 1);
    assert!(!running.holder.x509_has_ended());
    let lists: Vec<String> = cluster.heads().into_iter().filter(|head| head.contains("limit=")).collect();
    assert!(lists[0].contains("resourceVersion=0") && lists[1].contains("NotOlderThan"), "{lists:?}");
}

#[test]
fn nobody_is_asked_while_nothing_changes() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace(), by_container()], "");
    let running = Running::new(&agent, "p");
    cluster.put(&running.reported());
    until("the pod is known", || (agent.admin().status().pods?.known == 1).then_some(()));
    assert_eq!(cluster.asked(), Asked { lists: 1, watches: 1, strangers: 0 });
    for _ in 0..50 {
        let mut holder = Holder::start(&agent, USER);
        running.group.take(holder.pid());
        assert_eq!(holder.x509().svids.len(), 2);
    }
    assert_eq!(cluster.asked(), Asked { lists: 1, watches: 1, strangers: 0 });
    let head = &cluster.heads()[0];
    assert!(head.contains(&format!("fieldSelector=spec.nodeName%3D{NODE}&")), "{head}");
}

#[test]
fn an_api_server_that_is_away_takes_nothing_from_known_pods() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace()], "wait_pod = \"300ms\"\n");
    let mut known = Running::new(&agent, "known");
    cluster.put(&known.reported());
    known.holder.x509();
    cluster.behave(Manner::Status(503));
    cluster.close();
    let status = until("it is said", || {
        let status = agent.admin().status();
        status.concerns.iter().any(|one| one.contains("new pods are not noticed")).then_some(status)
    });
    assert!(status.ready, "there is nowhere else to send them: {:?}", status.concerns);
    let mut second = Holder::start(&agent, USER);
    known.group.take(second.pid());
    second.x509();
    let mut new = Running::new(&agent, "new");
    cluster.put(&new.reported());
    assert_eq!(new.holder.x509_refused().code, UNAVAILABLE);
    assert!(!known.holder.x509_has_ended());
    cluster.behave(Manner::Honest);
    cluster.watched_by(1);
    until("the new pod is served", || {
        new.holder.open_x509();
        new.holder.next_x509().ok()
    });
    assert_eq!(agent.admin().status().concerns, Vec::<String>::new());
}

#[test]
fn a_changed_label_takes_back_what_no_longer_matches() {
    let cluster = Cluster::start();
    let entries = [by_namespace(), Entry::new("/label", &["k8s:ns:shop", "k8s:pod-label:app:p"])];
    let agent = agent(&cluster, &entries, "");
    let mut watcher = Watcher::start(&agent);
    let mut running = Running::new(&agent, "p");
    cluster.put(&running.reported());
    let svids = running.holder.x509().svids;
    assert_eq!(svids.len(), 2);
    let by_label = svids.iter().find(|svid| svid.spiffe_id.ends_with("/label")).unwrap().serial().to_owned();
    let mut changed = running.reported();
    changed["metadata"]["labels"]["app"] = "q".into();
    cluster.put(&changed);
    let crl = watcher.sees("the serial of the lost identity", &[&by_label]);
    assert_eq!(crl.serials.len(), 1, "the other one stands");
    agent.audited(&["credential.revoke", &by_label, "facts_changed"]);
    until("the stream shows the rest", || {
        let svids = running.holder.next_x509().unwrap().svids;
        (svids.len() == 1 && svids[0].spiffe_id.ends_with("/ns")).then_some(())
    });
    // And back: it is earned anew.
    cluster.put(&running.reported());
    until("the stream shows both again", || {
        (running.holder.next_x509().unwrap().svids.len() == 2).then_some(())
    });
    // Each change is on record, with the pod.
    let of_it =
        |line: &Value| line["event"] == "agent.attested" && line["agent"]["pid"] == running.holder.pid();
    let lines: Vec<Value> = agent.audit().into_iter().filter(of_it).collect();
    let reasons: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["detail"]["reason"].as_str())
        .filter(|why| *why != "more")
        .collect();
    assert_eq!(reasons, ["first", "changed", "changed"], "{lines:?}");
    for line in &lines {
        assert_eq!(line["agent"]["k8s"], json!({"ns": "shop", "pod": "p", "sa": "default"}), "{line}");
    }
}

/// The reference that the kubelet reports has a digest; what a pod asks for by its name has none.
#[test]
fn the_image_of_a_pod_is_on_record_where_an_entry_waits_for_it() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_container()], "");
    let mut running = Running::new(&agent, "p");
    cluster.put(&running.reported());
    running.holder.x509();
    let issued = agent.audited(&["credential.issue", "/container\""]);
    assert_eq!(issued["agent"]["image_digest"], format!("sha256:{}", "a".repeat(64)), "{issued}");
    let mut nameless = Running::new(&agent, "q");
    let mut reported = nameless.reported();
    reported["status"]["containerStatuses"][0]["imageID"] = "registry.example/app:1".into();
    cluster.put(&reported);
    nameless.holder.x509();
    let pid = format!("\"pid\":{},", nameless.holder.pid());
    let issued = agent.audited(&["credential.issue", &pid]);
    assert!(issued["agent"].get("image_digest").is_none(), "{issued}");
    assert_eq!(issued["agent"]["k8s"]["pod"], "q");
}

#[test]
fn a_pod_that_is_deleted_by_force_loses_everything_at_once() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace()], "wait_pod = \"300ms\"\n");
    let mut watcher = Watcher::start(&agent);
    let mut running = Running::new(&agent, "p");
    cluster.put(&running.reported());
    let serial = running.holder.x509().svids[0].serial().to_owned();
    cluster.delete(&running.reported());
    watcher.sees("the serial", &[&serial]);
    agent.audited(&["credential.revoke", &serial, "pod_deleted"]);
    assert_eq!(running.holder.x509_end().code, PERMISSION_DENIED);
    // It lives, and its pod does not.
    assert_eq!(running.holder.x509_refused().code, UNAVAILABLE);
}

#[test]
fn c07_a_container_put_in_to_debug_gets_nothing() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace()], "");
    let running = Running::new(&agent, "p");
    let mut debugged = running.reported();
    let status = &mut debugged["status"];
    status["ephemeralContainerStatuses"] = status["containerStatuses"].take();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "app"}]);
    cluster.put(&debugged);
    let mut holder = running.holder;
    assert_eq!(holder.x509_refused().code, PERMISSION_DENIED);
    let explained = agent.admin().explain(holder.pid()).unwrap();
    let notes: Vec<&String> = explained.attestors.iter().flat_map(|one| &one.notes).collect();
    assert!(notes.iter().any(|note| note.contains("ephemeral-container")), "{notes:?}");
}

#[test]
fn c06_who_is_not_the_api_server_learns_no_token_and_is_not_believed() {
    let (cluster, impostor) = (Cluster::start(), Cluster::start());
    require_root();
    let mut agent = Plan::with_entries(&entries_and_watcher(&[by_namespace()])).prepare();
    let settings = format!("{WIDE}{}", impostor.settings(agent.dir()));
    // The CA is the real one's, the address the impostor's.
    std::fs::write(agent.dir().join("ca.crt"), cluster.ca()).unwrap();
    let plan = agent.plan().clone().settings(&settings);
    *agent.plan() = plan;
    agent.write_config();
    agent.launch();
    let status = agent.admin().status();
    assert!(
        !status.ready && status.concerns[0].contains("does not prove to be the API server"),
        "{:?}",
        status.concerns
    );
    assert_eq!(impostor.heads(), Vec::<String>::new(), "not one request was sent");
}

#[test]
fn c06_a_token_that_was_replaced_is_read_again() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[by_namespace()], "");
    cluster.set_token("token-2");
    cluster.close();
    until("it is refused", || (cluster.asked().strangers > 0).then_some(()));
    std::fs::write(agent.dir().join("token"), "token-2\n").unwrap();
    cluster.watched_by(1);
    let log = agent.log();
    assert!(log.contains("answers 401") && !log.contains("token-1") && !log.contains("token-2"), "{log}");
}

#[test]
fn c09_pods_of_another_node_are_not_believed() {
    let cluster = Cluster::start();
    cluster.behave(Manner::AllNodes);
    let agent_entries = [by_namespace()];
    let group = PodGroup::new();
    let mut elsewhere = pod("shop", "p", group.uid(), group.container());
    elsewhere["spec"]["nodeName"] = "node-2".into();
    cluster.put(&elsewhere);
    let agent = agent(&cluster, &agent_entries, "");
    let mut holder = Holder::start(&agent, USER);
    group.take(holder.pid());
    assert_eq!(holder.x509_refused().code, PERMISSION_DENIED);
}

#[test]
fn c01_a_process_below_its_own_container_is_not_the_pod_it_names() {
    let cluster = Cluster::start();
    let agent = agent(&cluster, &[Entry::new("/victim", &["k8s:pod-name:victim"])], "");
    let (own, victim) = (PodGroup::new(), PodGroup::new());
    cluster.put(&pod("shop", "own", own.uid(), own.container()));
    cluster.put(&pod("shop", "victim", victim.uid(), victim.container()));
    let mut holder = Holder::start(&agent, USER);
    let forged: PathBuf =
        own.below(&format!("kubepods/burstable/pod{}/{}", victim.uid(), victim.container()));
    std::fs::write(forged.join("cgroup.procs"), holder.pid().to_string()).unwrap();
    until("the pods are known", || (agent.admin().status().pods?.known == 2).then_some(()));
    assert_eq!(holder.x509_refused().code, PERMISSION_DENIED);
    let explained = agent.admin().explain(holder.pid()).unwrap();
    assert!(
        explained.selectors.iter().any(|one| one.text == "k8s:pod-name:own"),
        "{:?}",
        explained.selectors
    );
}

#[test]
fn c11_an_api_server_that_says_nothing_holds_nobody_else_up() {
    let cluster = Cluster::start();
    cluster.behave(Manner::Silence);
    require_root();
    let host = 20_061;
    let mut agent =
        Plan::with_entries(&entries_and_watcher(&[by_namespace(), Entry::for_uid(host)])).prepare();
    let settings = format!("{WIDE}{}wait_pod = \"300ms\"\n", cluster.settings(agent.dir()));
    let plan = agent.plan().clone().settings(&settings);
    *agent.plan() = plan;
    agent.write_config();
    agent.launch();
    assert!(!agent.admin().status().ready);
    Holder::start(&agent, host).x509();
    let mut running = Running::new(&agent, "p");
    assert_eq!(running.holder.x509_refused().code, UNAVAILABLE);
}

/// 500 pods on the node, of which 110 start at the same moment.
#[test]
fn five_hundred_pods_and_a_hundred_and_ten_that_start_together() {
    start_together(WIDE, USER);
}

/// Images name their users as they like, and many name the same one. What one user may have is counted for each
/// container by itself, and the defaults are enough for a whole node: nobody is refused, not even for a moment.
#[test]
fn a_hundred_and_ten_pods_of_one_uid_need_no_wider_limits() {
    start_together("", USER);
}

fn start_together(limits: &str, uid: u32) {
    const PODS: usize = 500;
    const TOGETHER: usize = 110;
    let cluster = Cluster::start();
    let groups: Vec<PodGroup> = (0..TOGETHER).map(|_| PodGroup::new()).collect();
    for n in TOGETHER..PODS {
        cluster.put(&pod("other", &format!("p{n}"), &PodGroup::new_uid(), &PodGroup::new_id()));
    }
    let agent = agent_with(limits, &cluster, &[by_container()], "");
    until("the pods are known", || {
        (agent.admin().status().pods?.known == (PODS - TOGETHER) as u64).then_some(())
    });
    let requests = cluster.asked();
    // The hash of a file that was written a moment ago is kept for nobody; in two seconds it is shared.
    let program = mayfly_harness::holder::holder_program(&agent);
    until("the program's file has settled", || {
        let changed = std::fs::metadata(&program).ok()?.modified().ok()?;
        (changed.elapsed().ok()? > std::time::Duration::from_secs(3)).then_some(())
    });
    let mut holders: Vec<Holder> = groups
        .iter()
        .map(|group| {
            let mut holder = Holder::start(&agent, uid);
            group.take(holder.pid());
            holder.connect();
            holder
        })
        .collect();
    // Everybody asks before anybody is known; then pods and reports come in one after the other.
    let began = now();
    holders.iter_mut().for_each(Holder::open_x509);
    for (n, group) in groups.iter().enumerate() {
        cluster.put(&pod("shop", &format!("n{n}"), group.uid(), ""));
    }
    for (n, group) in groups.iter().enumerate() {
        cluster.put(&pod("shop", &format!("n{n}"), group.uid(), group.container()));
    }
    for holder in &mut holders {
        let update = holder.next_x509().unwrap_or_else(|refusal| {
            let audit = agent.audit().into_iter().map(|line| line.to_string());
            let denied: BTreeSet<String> = audit.filter(|line| line.contains("denied")).collect();
            panic!("{refusal:?}: {denied:#?}")
        });
        assert_eq!(update.svids.len(), 1);
    }
    let limits = if limits.is_empty() { "default limits" } else { "wide limits" };
    figure(&format!(
        "110 pods of one uid that start together beside 390 others ({limits}), all with their identity after {:?}",
        began.elapsed()
    ));
    assert_eq!(cluster.asked(), requests, "no request for any of them");
    let audit = agent.audit().into_iter().map(|line| line.to_string());
    let limited: Vec<String> =
        audit.filter(|line| line.contains("too_many") || line.contains("\"limit\"")).collect();
    assert_eq!(limited, Vec::<String>::new(), "nobody was told to try again");
}
