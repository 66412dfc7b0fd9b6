//! The `k8s` attestor with the kubelet of the node as its source (experimental): real processes in the cgroups of pods.

use mayfly_harness::kubelet::Kubelet;
use mayfly_harness::{Agent, Entry, Holder, Plan, until};
use tonic::Code;

use crate::kubernetes::{
    PERMISSION_DENIED, Running, UNAVAILABLE, USER, by_container, by_namespace, every_recorded_selector,
};
use crate::support::{WIDE, Watcher, entries_and_watcher};

fn agent(kubelet: &Kubelet, entries: &[Entry], more: &str) -> Agent {
    let settings = format!("{WIDE}{}{more}", kubelet.settings());
    let agent = Plan::with_entries(&entries_and_watcher(entries)).settings(&settings).start();
    kubelet.watched();
    agent
}

/// The same as from the API server.
#[test]
fn the_kubelet_tells_every_selector_of_every_recorded_container() {
    let kubelet = Kubelet::recorded();
    every_recorded_selector(&agent(&kubelet, &[], "ephemeral = \"attest\"\n"));
    assert_eq!(kubelet.begun(), 1, "one stream, and nothing is asked besides");
}

#[test]
fn a_pod_lives_from_the_kubelets_first_word_of_it_to_the_last() {
    let kubelet = Kubelet::start();
    let agent = agent(&kubelet, &[by_namespace(), by_container()], "wait_pod = \"300ms\"\n");
    let mut watcher = Watcher::start(&agent);
    let mut running = Running::new(&agent, "p");
    assert_eq!(running.holder.x509_refused().code, UNAVAILABLE, "not known yet: try again");
    kubelet.put(&running.pod);
    until("the pod is known", || (agent.admin().status().pods?.known == 1).then_some(()));
    // The container is not reported yet: that is waited for.
    running.holder.open_x509();
    until("the attestation waits", || (agent.admin().status().pods?.waiting > 0).then_some(()));
    kubelet.put(&running.reported());
    let svids = running.holder.next_x509().unwrap().svids;
    assert_eq!(svids.len(), 2);
    let serials: Vec<&str> = svids.iter().map(mayfly_harness::Svid::serial).collect();
    kubelet.delete(&running.reported());
    watcher.sees("what a pod had that is gone", &serials);
    agent.audited(&["credential.revoke", serials[0], "pod_deleted"]);
    assert_eq!(running.holder.x509_end().code, PERMISSION_DENIED);
    assert_eq!(kubelet.begun(), 1);
}

#[test]
fn a_kubelet_that_is_away_takes_nothing_from_known_pods() {
    let kubelet = Kubelet::start();
    let agent = agent(&kubelet, &[by_namespace()], "wait_pod = \"300ms\"\n");
    let mut known = Running::new(&agent, "known");
    kubelet.put(&known.reported());
    let serial = known.holder.x509().svids[0].serial().to_owned();
    kubelet.fail(Code::Unavailable);
    let status = until("it is said", || {
        let status = agent.admin().status();
        status.concerns.iter().any(|one| one.contains("kubelet")).then_some(status)
    });
    assert!(status.ready, "there is nowhere else to send them: {:?}", status.concerns);
    let mut second = Holder::start(&agent, USER);
    known.group.take(second.pid());
    second.x509();
    let mut new = Running::new(&agent, "new");
    kubelet.put(&new.reported());
    assert_eq!(new.holder.x509_refused().code, UNAVAILABLE);
    assert!(!known.holder.x509_has_ended());
    assert_eq!(agent.admin().live_leases_of(known.holder.pid())[0].id, serial);
    kubelet.mend();
    until("the new pod is served", || {
        new.holder.open_x509();
        new.holder.next_x509().ok()
    });
    assert_eq!(agent.admin().status().concerns, Vec::<String>::new());
}

/// Threat C03: whoever owns the socket could be any pod's kubelet.
#[test]
fn c03_a_kubelet_that_is_not_roots_is_not_asked() {
    let kubelet = Kubelet::start();
    std::os::unix::fs::chown(kubelet.socket(), Some(20_062), None).unwrap();
    let settings = format!("{WIDE}{}", kubelet.settings());
    let mut agent = Plan::with_entries(&entries_and_watcher(&[by_namespace()])).settings(&settings).prepare();
    agent.launch();
    let status = agent.admin().status();
    assert!(!status.ready && status.concerns[0].contains("root's hands"), "{:?}", status.concerns);
    assert_eq!(kubelet.begun(), 0);
}
