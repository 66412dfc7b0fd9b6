//! SDS by hand: what a client of either protocol sees when it asks, accepts, refuses, repeats itself, changes its
//! mind, goes and comes back. What Envoy makes of it: `tests/privileged/envoy.rs`.

#![expect(clippy::disallowed_methods, reason = "compares with the certificate's own dates")]

use std::collections::BTreeMap;
use std::time::Duration;

use mayfly_harness::admin::Admin;
use mayfly_harness::xds::{Delta, Sds, Seen, World, ask, node};
use mayfly_harness::{Agent, Crl, PATIENCE, Plan};
use mayfly_proto::admin::revoke_leases_request::Target;
use mayfly_proto::xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryResponse,
};
use mayfly_proto::xds::google::rpc;
use tonic::Code;

use crate::support::{SHORT, agent, empty_agent, own_entry, own_uid};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn open(agent: &Agent) -> World {
    Sds::connect(&agent.public()).await.unwrap().world().await.unwrap()
}

async fn open_delta(agent: &Agent) -> Delta {
    Sds::connect(&agent.public()).await.unwrap().delta().await.unwrap()
}

/// The next response, with its secrets by name.
async fn next(stream: &mut World) -> (DiscoveryResponse, BTreeMap<String, Seen>) {
    let reply = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a response").unwrap().unwrap();
    assert!(!reply.resources.is_empty(), "Envoy refuses an empty response");
    let secrets = Seen::all(&reply).into_iter().map(|seen| (seen.name.clone(), seen)).collect();
    (reply, secrets)
}

async fn next_delta(stream: &mut Delta) -> (DeltaDiscoveryResponse, BTreeMap<String, Seen>) {
    let reply = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a response").unwrap().unwrap();
    assert!(!reply.resources.is_empty() && reply.removed_resources.is_empty());
    let secrets = Seen::all_delta(&reply).into_iter().map(|seen| (seen.name.clone(), seen)).collect();
    (reply, secrets)
}

fn names(secrets: &BTreeMap<String, Seen>) -> Vec<&str> {
    secrets.keys().map(String::as_str).collect()
}

fn serial(seen: &Seen) -> String {
    mayfly_harness::pki::Leaf::parse(&seen.chain[0]).serial
}

fn has_expired(seen: &Seen) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    mayfly_harness::pki::Leaf::parse(&seen.chain[0]).not_after < i64::try_from(now).unwrap()
}

fn refusal() -> Option<rpc::Status> {
    Some(rpc::Status { code: 13, message: "cannot load\nit".to_owned() })
}

fn own_id() -> String {
    format!("spiffe://example.org/uid/{}", own_uid())
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node("test", 40)),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn every_name_in_any_mix_and_unknown_ones_in_silence() {
    let agent = agent();
    block_on(async {
        let mut stream = open(&agent).await;
        let id = own_id();
        let all = [
            "default",
            &id,
            "ROOTCA",
            "ALL",
            "spiffe://example.org",
            "file-root:/x~y",
            "spiffe://other.test",
        ];
        stream.ask(ask(&all, "", "")).await;
        let (reply, secrets) = next(&mut stream).await;
        assert_eq!(names(&secrets), ["ALL", "ROOTCA", "default", "spiffe://example.org", &id]);
        assert_eq!(reply.type_url, "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
        assert_eq!(serial(&secrets["default"]), serial(&secrets[&id]));
        assert_eq!(secrets["default"].chain.len(), 1, "leaf only, the authority is the anchor");
        for name in ["ROOTCA", "ALL", "spiffe://example.org"] {
            let context = &secrets[name];
            assert_eq!(
                (context.judged.as_slice(), context.anchors.len()),
                (&["example.org".to_owned()][..], 1)
            );
            assert_eq!(Crl::parse(&context.crls[0]).serials.len(), 0, "{name}");
        }
        // No name at all means everything, each under its own name.
        let mut everything = open(&agent).await;
        everything.ask(ask(&[], "", "")).await;
        assert_eq!(names(&next(&mut everything).await.1), ["spiffe://example.org", &id]);
    });
}

#[test]
fn an_old_envoy_and_one_that_declines_get_the_plain_form() {
    let agent = agent();
    block_on(async {
        for minor in [17, 40] {
            let mut stream = open(&agent).await;
            let mut first = ask(&["ROOTCA"], "", "");
            first.node = Some(node("old", minor));
            first.resource_names.push("ALL".to_owned());
            stream.ask(first).await;
            let mut secrets = next(&mut stream).await.1;
            assert_eq!(
                secrets.contains_key("ALL"),
                minor == 40,
                "the default validator cannot keep domains apart"
            );
            let context = secrets.remove("ROOTCA").unwrap();
            assert_eq!(context.judged.is_empty(), minor == 17);
            assert_eq!((context.anchors.len(), context.crls.len(), context.leaf_only), (1, 1, false));
        }
    });
}

#[test]
fn sotw_nack_stale_nonce_and_names_added_and_removed() {
    let agent = agent();
    block_on(async {
        let mut stream = open(&agent).await;
        stream.ask(ask(&["default"], "", "")).await;
        let (first, secrets) = next(&mut stream).await;
        assert_eq!(names(&secrets), ["default"]);
        // Refused: it is counted and logged, and not sent again.
        let mut nack = ask(&["default"], "", &first.nonce);
        nack.error_detail = refusal();
        stream.ask(nack).await;
        // Stale: must be ignored. Were it answered, the next response would carry ROOTCA alone or be out of order.
        stream.ask(ask(&["ROOTCA"], "", "no-such-nonce")).await;
        stream.ask(ask(&["default", "spiffe://example.org"], "", &first.nonce)).await;
        let (second, secrets) = next(&mut stream).await;
        assert_eq!(names(&secrets), ["default", "spiffe://example.org"]);
        assert_ne!((&first.nonce, &first.version_info), (&second.nonce, &second.version_info));
        // The answer to the first comes late: ignored, too.
        stream.ask(ask(&["ALL"], "", &first.nonce)).await;
        stream.ask(ask(&["ROOTCA"], &second.version_info, &second.nonce)).await;
        let (third, secrets) = next(&mut stream).await;
        assert_eq!(names(&secrets), ["ROOTCA"], "what was removed is not sent");
        stream.ask(ask(&["ROOTCA", "default"], &third.version_info, &third.nonce)).await;
        assert_eq!(
            names(&next(&mut stream).await.1),
            ["ROOTCA", "default"],
            "what was added again is sent again"
        );
        let status = tokio::task::spawn_blocking({
            let socket = agent.admin_socket();
            move || {
                let admin = Admin::new(&socket);
                (admin.status().sds.unwrap(), drop(admin)).0
            }
        });
        let status = status.await.unwrap();
        assert_eq!((status.streams, status.refused, status.responses), (1, 1, 4), "{status:?}");
        assert_eq!(status.last_refusal, "cannot load\\nit (code 13)");
    });
    assert!(agent.log().contains("cannot load"), "a refusal is logged with the client's reason");
}

#[test]
fn sotw_reconnect_with_the_old_version_and_two_streams_of_one_node() {
    let agent = Plan::for_uids(&[own_uid()]).start();
    block_on(async {
        let (mut one, mut two) = (open(&agent).await, open(&agent).await);
        one.ask(ask(&["default"], "", "")).await;
        two.ask(ask(&["default"], "", "")).await;
        let ((a, at_one), (b, at_two)) = (next(&mut one).await, next(&mut two).await);
        assert_eq!(serial(&at_one["default"]), serial(&at_two["default"]), "one identity, one certificate");
        assert_eq!((&a.version_info, a.nonce == b.nonce), (&b.version_info, false));
        drop((one, two));
        let mut again = open(&agent).await;
        // It has exactly this: nothing is said until something else is asked.
        again.ask(ask(&["default"], &a.version_info, &a.nonce)).await;
        again.ask(ask(&["default", "ROOTCA"], &a.version_info, "")).await;
        assert_eq!(names(&next(&mut again).await.1), ["ROOTCA", "default"]);
        let mut older = open(&agent).await;
        older.ask(ask(&["default"], "0123456789abcdef", "")).await;
        assert_eq!(serial(&next(&mut older).await.1["default"]), serial(&at_one["default"]));
    });
}

#[test]
fn delta_changes_only_and_the_same_rules() {
    let agent = Plan::for_uids(&[own_uid()]).settings(SHORT).start();
    block_on(async {
        let mut stream = open_delta(&agent).await;
        stream.ask(subscribe(&["default", "ROOTCA", "file-root:x"])).await;
        let (first, secrets) = next_delta(&mut stream).await;
        assert_eq!(names(&secrets), ["ROOTCA", "default"]);
        let nack = DeltaDiscoveryRequest {
            response_nonce: first.nonce.clone(),
            error_detail: refusal(),
            ..DeltaDiscoveryRequest::default()
        };
        stream.ask(nack).await;
        // A stale nonce does not keep the subscription from changing.
        let change = DeltaDiscoveryRequest {
            response_nonce: "no-such-nonce".to_owned(),
            resource_names_subscribe: vec!["ALL".to_owned()],
            resource_names_unsubscribe: vec!["ROOTCA".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        stream.ask(change).await;
        let mut seen = next_delta(&mut stream).await.1;
        if names(&seen) == ["default"] {
            seen = next_delta(&mut stream).await.1; // a rotation came in between
        }
        assert_eq!(names(&seen), ["ALL"]);
        // Rotation: the certificate alone.
        let (_, rotated) = next_delta(&mut stream).await;
        assert_eq!(names(&rotated), ["default"]);
        assert_ne!(serial(&rotated["default"]), serial(&secrets["default"]));
    });
    assert!(agent.log().contains("cannot load"));
}

#[test]
fn delta_reconnect_brings_what_changed_and_closes_what_ended() {
    let agent = agent();
    block_on(async {
        let mut first = open_delta(&agent).await;
        first.ask(subscribe(&["default", "ROOTCA"])).await;
        let (reply, _) = next_delta(&mut first).await;
        let mut held: std::collections::HashMap<String, String> =
            reply.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
        held.insert("spiffe://example.org/gone".to_owned(), "0123".to_owned());
        held.insert("ROOTCA".to_owned(), "older".to_owned());
        let mut again = open_delta(&agent).await;
        let mut request = subscribe(&["default", "ROOTCA", "spiffe://example.org/gone"]);
        request.initial_resource_versions = held;
        again.ask(request).await;
        let (_, secrets) = next_delta(&mut again).await;
        assert_eq!(names(&secrets), ["ROOTCA", "spiffe://example.org/gone"]);
        assert!(has_expired(&secrets["spiffe://example.org/gone"]));
    });
}

#[test]
fn a_caller_without_an_entry_waits_and_an_identity_that_ends_is_replaced() {
    let agent = empty_agent();
    block_on(async {
        let (mut world, mut delta) = (open(&agent).await, open_delta(&agent).await);
        world.ask(ask(&["default", "ROOTCA"], "", "")).await;
        delta.ask(subscribe(&["default", "ROOTCA"])).await;
        let admin = agent.admin_socket();
        let waiting = tokio::task::spawn_blocking(move || {
            mayfly_harness::until("both wait", || {
                (Admin::new(&admin).status().sds.unwrap().waiting == 2).then_some(())
            });
        });
        waiting.await.unwrap();
        agent.write_entries(&[own_entry("/late")]);
        let (_, first) = next(&mut world).await;
        assert_eq!((names(&first), has_expired(&first["default"])), (vec!["ROOTCA", "default"], false));
        let (_, same) = next_delta(&mut delta).await;
        assert_eq!(serial(&same["default"]), serial(&first["default"]));
        agent.write_entries(&[]);
        let closed = loop {
            // The CRL with the revoked serial may come first.
            let (_, secrets) = next(&mut world).await;
            if serial(&secrets["default"]) != serial(&first["default"]) {
                break secrets;
            }
        };
        assert!(has_expired(&closed["default"]), "nobody accepts the replacement");
        assert!(!closed.contains_key("ROOTCA"), "bundles are for those with an identity");
        assert_ne!(closed["default"].key, first["default"].key);
        let closed = loop {
            let (_, mut secrets) = next_delta(&mut delta).await;
            if let Some(closed) = secrets.remove("default") {
                break closed;
            }
        };
        assert!(has_expired(&closed));
        agent.write_entries(&[own_entry("/late")]);
        let reopened = loop {
            let (_, secrets) = next(&mut world).await;
            if !has_expired(&secrets["default"]) {
                break secrets;
            }
        };
        assert!(Crl::parse(&reopened["ROOTCA"].crls[0]).serials.contains(&serial(&first["default"])));
    });
}

/// It held a certificate when it lost the agent, and has no identity when it comes back.
#[test]
fn a_stranger_that_brings_an_old_version_is_closed() {
    let agent = empty_agent();
    block_on(async {
        let mut stream = open(&agent).await;
        stream.ask(ask(&["default", "ROOTCA"], "0123456789abcdef", "")).await;
        let (_, secrets) = next(&mut stream).await;
        assert_eq!(names(&secrets), ["default"]);
        assert!(has_expired(&secrets["default"]));
    });
}

#[test]
fn an_operators_revocation_replaces_the_certificate() {
    let agent = agent();
    block_on(async {
        let mut stream = open(&agent).await;
        stream.ask(ask(&["default"], "", "")).await;
        assert!(!has_expired(&next(&mut stream).await.1["default"]));
        let admin = agent.admin_socket();
        let order = move || Admin::new(&admin).revoke(Target::SpiffeId(own_id())).unwrap();
        tokio::task::spawn_blocking(order).await.unwrap();
        assert!(has_expired(&next(&mut stream).await.1["default"]));
    });
}

#[test]
fn bundles_without_identity_are_a_choice() {
    let settings = "[sds]\nbundles_without_identity = true\ndefault_bundle_name = \"mine\"\ncrl = \"off\"\n";
    let agent = Plan::with_entries(&[]).settings(settings).start();
    block_on(async {
        let mut stream = open(&agent).await;
        stream.ask(ask(&["default", "mine", "ROOTCA"], "", "")).await;
        let (_, secrets) = next(&mut stream).await;
        assert_eq!((names(&secrets), secrets["mine"].crls.len()), (vec!["mine"], 0));
    });
}

#[test]
fn fetch_answers_once_and_wrong_types_are_refused() {
    let agent = agent();
    block_on(async {
        let client = Sds::connect(&agent.public()).await.unwrap();
        let reply = client.fetch(ask(&["default", "nobody"], "", "")).await.unwrap();
        assert_eq!(Seen::all(&reply).len(), 1);
        let mut wrong = ask(&["default"], "", "");
        wrong.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
        assert_eq!(client.fetch(wrong.clone()).await.unwrap_err().code(), Code::InvalidArgument);
        let mut stream = open(&agent).await;
        stream.ask(wrong).await;
        assert_eq!(stream.next().await.unwrap_err().code(), Code::InvalidArgument);
        agent.write_entries(&[]);
        let refused = loop {
            match client.fetch(ask(&["default"], "", "")).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(status) => break status,
            }
        };
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "no identity issued"));
    });
}

/// Envoy 1.40 says 61 KiB about itself; with a mesh's metadata it is more.
#[test]
fn a_talkative_node_is_heard() {
    let agent = agent();
    block_on(async {
        let mut stream = open(&agent).await;
        let mut first = ask(&["default"], "", "");
        first.node = Some(node(&"x".repeat(200 * 1024), 40));
        stream.ask(first).await;
        assert_eq!(names(&next(&mut stream).await.1), ["default"]);
    });
}

#[test]
fn too_many_names_end_the_stream_and_no_other() {
    let agent = agent();
    block_on(async {
        let (mut greedy, mut modest) = (open(&agent).await, open(&agent).await);
        let many: Vec<String> = (0..300).map(|n| format!("name-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        greedy.ask(ask(&many, "", "")).await;
        assert_eq!(greedy.next().await.unwrap_err().code(), Code::ResourceExhausted);
        modest.ask(ask(&["default"], "", "")).await;
        assert_eq!(names(&next(&mut modest).await.1), ["default"]);
    });
}

#[test]
fn a_foreign_trust_domain_appears_is_judged_apart_and_ends_in_nothing() {
    let foreign = Plan { trust_domain: "other.test".to_owned(), ..Plan::with_entries(&[]) }.start();
    let (code, pem, said) = foreign.mayfly(&["bundle", "show", "other.test", "--format", "pem"]);
    assert_eq!(code, Some(0), "{said}");
    let federated = own_entry("/federated").with("federates_with = [\"other.test\"]");
    let agent = Plan::with_entries(&[federated]).start();
    let file = agent.dir().join("other.pem");
    std::fs::write(&file, pem).unwrap();
    block_on(async {
        let mut stream = open(&agent).await;
        let wanted = ["spiffe://other.test", "ALL", "spiffe://third.test"];
        stream.ask(ask(&wanted, "", "")).await;
        let (_, first) = next(&mut stream).await;
        assert_eq!((names(&first), first["ALL"].judged.len()), (vec!["ALL"], 1));
        let set = agent.mayfly(&["bundle", "set", "other.test", file.to_str().unwrap()]);
        assert_eq!(set.0, Some(0), "{}", set.2);
        let (_, both) = next(&mut stream).await;
        assert_eq!(names(&both), ["ALL", "spiffe://other.test"]);
        assert_eq!(both["ALL"].judged, ["example.org", "other.test"]);
        let other = &both["spiffe://other.test"];
        assert_eq!((other.judged.as_slice(), other.crls.len()), (&["other.test".to_owned()][..], 0));
        assert_eq!(both["ALL"].crls.len(), 1, "ours has one, and the other domain is none the worse for it");
        let (_, status, _) = agent.mayfly(&["status"]);
        assert!(status.contains("no CRL in SDS for other.test: authority"), "{status}");
        assert_eq!(agent.mayfly(&["bundle", "delete", "other.test"]).0, Some(0));
        let (_, without) = next(&mut stream).await;
        assert_eq!(without["ALL"].judged, ["example.org"]);
        let closed = &without["spiffe://other.test"];
        assert_eq!(
            (closed.anchors.len(), closed.anchors == other.anchors),
            (1, false),
            "nothing hangs from it"
        );
    });
}
