//! Trust from other domains: both endpoint profiles against a server of our own making, bundles by hand, and what
//! workloads get of it.

use std::path::PathBuf;

use mayfly_harness::foreign::{Answer, Authority, Endpoint, Identity, document};
use mayfly_harness::{Agent, Plan, files};
use serde_json::Value;

use crate::support::{client, own_entry};

const OTHER: &str = "other.test";
const ENDPOINT: &str = "spiffe://other.test/endpoint";

/// An agent whose one entry federates with `other.test`, not started, with these further settings.
fn agent() -> Agent {
    Plan::with_entries(&[own_entry("/w").with("federates_with = [\"other.test\"]")]).prepare()
}

fn put(agent: &Agent, name: &str, text: &str) -> PathBuf {
    let path = agent.dir().join(name);
    files::replace(&path, text.as_bytes(), 0o644);
    path
}

fn launch(agent: &mut Agent, settings: &str) {
    agent.plan().settings = settings.to_owned();
    agent.write_config();
    agent.launch();
}

fn web(agent: &mut Agent, url: &str, ca: &Authority) {
    let ca = put(agent, "ca.pem", &ca.pem());
    let settings = format!(
        "[[federation]]\ntrust_domain = \"{OTHER}\"\nurl = {url:?}\nprofile = \"https_web\"\nca_file = {ca:?}\n"
    );
    launch(agent, &settings);
}

fn spiffe(agent: &mut Agent, url: &str, bootstrap: &str) {
    let bootstrap = put(agent, "bootstrap.json", bootstrap);
    let settings = format!(
        "[[federation]]\ntrust_domain = \"{OTHER}\"\nurl = {url:?}\nprofile = \"https_spiffe\"\n\
         endpoint_spiffe_id = \"{ENDPOINT}\"\nbootstrap_bundle = {bootstrap:?}\n"
    );
    launch(agent, &settings);
}

/// Fetches now: what was refused, if it was.
fn refresh(agent: &Agent) -> Result<(), String> {
    let (code, _, said) = agent.mayfly(&["bundle", "refresh", OTHER]);
    if code == Some(0) { Ok(()) } else { Err(said) }
}

fn refused(agent: &Agent, why: &str) {
    let said = refresh(agent).expect_err("it was taken");
    assert!(said.contains(why), "{said}");
}

fn row(agent: &Agent) -> Value {
    let (code, out, said) = agent.mayfly(&["bundle", "list", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let list: Value = serde_json::from_str(&out).unwrap();
    list["bundles"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["trust_domain"] == OTHER)
        .cloned()
        .unwrap_or_default()
}

/// The authorities of `other.test` that a workload is given, concatenated; `None` when there is no such key.
fn given(agent: &Agent) -> Option<Vec<u8>> {
    let bundles = client(agent).bundles().bundles;
    bundles.into_iter().find(|(domain, _)| domain == "spiffe://other.test").map(|(_, der)| der)
}

fn pki() -> (Authority, Authority) {
    (Authority::new("web"), Authority::new("other"))
}

#[test]
fn fed_21_web_servers_are_checked_by_host_time_and_ca() {
    let (web_ca, other) = pki();
    let server = Endpoint::start(web_ca.server("127.0.0.1"), Answer::Ok(document(1, &[&other])));
    let mut agent = agent();
    web(&mut agent, &server.url(), &web_ca);
    refresh(&agent).unwrap();
    assert_eq!(given(&agent).as_deref(), Some(other.certificate.as_ref()));
    let request = &server.requests()[0];
    assert!(
        request.starts_with("GET /bundle HTTP/1.1\r\n") && !request.contains("uthorization"),
        "{request}"
    );
    server.answer(Answer::Ok(document(2, &[])));
    server.become_(web_ca.server("elsewhere.test"));
    refused(&agent, "not valid for name");
    server.become_(Authority::new("nobody").server("127.0.0.1"));
    refused(&agent, "invalid peer certificate");
    server.become_(web_ca.leaf(|leaf| {
        leaf.subject_alt_names = vec![rcgen::SanType::IpAddress([127, 0, 0, 1].into())];
        leaf.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }));
    refused(&agent, "expired");
    // Neither profile stands in for the other (FED-36).
    server.become_(other.svid(ENDPOINT));
    refused(&agent, "invalid peer certificate");
    assert_eq!(row(&agent)["sequence"], 1, "the one from before stays");
    let status = agent.admin().status();
    assert!(status.ready, "an outage of others is not ours: {:?}", status.concerns);
    assert!(status.concerns.iter().any(|c| c.contains("other.test")), "{:?}", status.concerns);
    server.become_(web_ca.server("127.0.0.1"));
    refresh(&agent).unwrap();
    assert_eq!(given(&agent), None, "TDB-09: an empty document revokes all");
    assert_eq!(row(&agent)["error"], "");
    agent.audited(&["bundle.fetch", "other.test", "\"result\":\"ok\"", "\"sequence\":2"]);
}

#[test]
fn fed_30_spiffe_servers_are_checked_by_their_id_alone() {
    let (_, other) = pki();
    let server = Endpoint::start(other.svid(ENDPOINT), Answer::Ok(document(1, &[&other])));
    let mut agent = agent();
    spiffe(&mut agent, &server.url_at("localhost"), &document(1, &[&other]));
    refresh(&agent).unwrap();
    let wrong: [(Identity, &str); 5] = [
        (
            other.svid("spiffe://other.test/another"),
            "spiffe://other.test/another, not the configured endpoint",
        ),
        (Authority::new("third").svid(ENDPOINT), "no authority of its trust domain"),
        (other.server("localhost"), "has 0 URI names"),
        (
            other.leaf(|leaf| {
                leaf.subject_alt_names = vec![rcgen::SanType::URI(ENDPOINT.try_into().unwrap())];
                leaf.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }),
            "does not verify",
        ),
        (
            other.leaf(|leaf| {
                leaf.subject_alt_names = vec![rcgen::SanType::URI(ENDPOINT.try_into().unwrap())];
                leaf.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign);
            }),
            "allows to sign certificates",
        ),
    ];
    for (identity, why) in wrong {
        server.become_(identity);
        refused(&agent, why);
    }
    assert_eq!(given(&agent).as_deref(), Some(other.certificate.as_ref()));
}

#[test]
fn fed_31_the_stored_bundle_authenticates_later_fetches_and_restarts() {
    let (first, second, third) = (Authority::new("first"), Authority::new("second"), Authority::new("third"));
    let server = Endpoint::start(first.svid(ENDPOINT), Answer::Ok(document(1, &[&first, &second])));
    let mut agent = agent();
    spiffe(&mut agent, &server.url(), &document(1, &[&first]));
    refresh(&agent).unwrap();
    std::fs::remove_file(agent.dir().join("bootstrap.json")).unwrap();
    server.become_(second.svid(ENDPOINT));
    server.answer(Answer::Ok(document(2, &[&second, &third])));
    refresh(&agent).unwrap();
    server.become_(third.svid(ENDPOINT));
    server.answer(Answer::Ok(document(3, &[&third])));
    refresh(&agent).unwrap();
    // The bootstrap bundle is of no more use, and neither is what was valid two fetches ago.
    put(&agent, "bootstrap.json", &document(1, &[&first]));
    server.become_(first.svid(ENDPOINT));
    refused(&agent, "no authority of its trust domain");
    server.answer(Answer::Status(503));
    agent.crash_and_restart();
    assert_eq!(given(&agent).as_deref(), Some(third.certificate.as_ref()), "offline, from the disk");
    server.become_(third.svid(ENDPOINT));
    server.answer(Answer::Ok(document(4, &[&third])));
    refresh(&agent).unwrap();
    assert_eq!(row(&agent)["sequence"], 4);
}

#[test]
fn fed_27_an_endpoint_of_a_domain_without_a_bundle_is_not_believed() {
    let (_, other) = pki();
    let server = Endpoint::start(other.svid("spiffe://third.test/e"), Answer::Ok(document(1, &[&other])));
    let mut agent = agent();
    let settings = format!(
        "[[federation]]\ntrust_domain = \"{OTHER}\"\nurl = {:?}\nprofile = \"https_spiffe\"\n\
         endpoint_spiffe_id = \"spiffe://third.test/e\"\n",
        server.url()
    );
    launch(&mut agent, &settings);
    refused(&agent, "no bundle of `third.test` is known");
    let third = put(&agent, "third.json", &document(1, &[&other]));
    assert_eq!(agent.mayfly(&["bundle", "set", "third.test", third.to_str().unwrap()]).0, Some(0));
    refresh(&agent).unwrap();
    assert!(given(&agent).is_some());
}

#[test]
fn fed_23_redirects_are_checked_anew_bounded_and_forgotten() {
    let (web_ca, other) = pki();
    let target = Endpoint::start(web_ca.server("127.0.0.1"), Answer::Ok(document(1, &[&other])));
    let front = Endpoint::start(web_ca.server("127.0.0.1"), Answer::Redirect(308, target.url()));
    let mut agent = agent();
    web(&mut agent, &front.url(), &web_ca);
    refresh(&agent).unwrap();
    let seen = front.requests().len();
    refresh(&agent).unwrap();
    assert_eq!(front.requests().len(), seen + 1, "a permanent redirect is not remembered");
    target.become_(Authority::new("nobody").server("127.0.0.1"));
    refused(&agent, "invalid peer certificate");
    for (to, why) in [
        (target.url().replace("https", "http"), "does not begin with `https://`"),
        (target.url().replace("https://", "https://user@"), "has user information"),
        (String::new(), "is not an absolute URL"),
        ("//127.0.0.1/".to_owned(), "does not begin with `https://`"),
    ] {
        front.answer(Answer::Redirect(302, to));
        refused(&agent, why);
    }
    let seen = front.requests().len();
    front.answer(Answer::Redirect(307, "/bundle".to_owned()));
    refused(&agent, "redirected more than 5 times");
    assert_eq!(front.requests().len(), seen + 6);
}

#[test]
fn fed_33_a_redirect_ends_at_the_same_spiffe_id_or_nowhere() {
    let (_, other) = pki();
    let target = Endpoint::start(other.svid("spiffe://other.test/b"), Answer::Ok(document(1, &[&other])));
    let front = Endpoint::start(other.svid(ENDPOINT), Answer::Redirect(302, target.url()));
    let mut agent = agent();
    spiffe(&mut agent, &front.url(), &document(1, &[&other]));
    refused(&agent, "not the configured endpoint");
    assert!(target.requests().is_empty(), "nothing is asked of a stranger");
    target.become_(other.svid(ENDPOINT));
    refresh(&agent).unwrap();
}

#[test]
fn bad_answers_change_nothing_and_say_what_they_are() {
    let (web_ca, other) = pki();
    let server = Endpoint::start(web_ca.server("127.0.0.1"), Answer::Ok(document(9, &[&other])));
    let mut agent = agent();
    web(&mut agent, &server.url(), &web_ca);
    refresh(&agent).unwrap();
    let raw = |text: &str| Answer::Raw(text.as_bytes().to_vec());
    let many_headers = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    for (answer, why) in [
        (Answer::Status(500), "status 500"),
        (Answer::Status(204), "status 204"),
        (Answer::Status(304), "status 304"),
        (Answer::Endless, "longer than"),
        (Answer::Ok("not json".to_owned()), "not strict JSON"),
        (Answer::Ok("{}".to_owned()), "keys: is missing"),
        (Answer::Ok("{\"keys\":null}".to_owned()), "keys: is not an array"),
        (Answer::Ok(other.pem()), "not strict JSON"),
        (raw("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"keys\":[]}"), "broke off"),
        (raw("\0\0\0\0"), "broke off"),
        (raw(&many_headers), "broke off"),
    ] {
        server.answer(answer);
        refused(&agent, why);
        assert_eq!(row(&agent)["sequence"], 9, "{why}");
    }
    assert_eq!(given(&agent).as_deref(), Some(other.certificate.as_ref()));
    server.answer(Answer::Ok(document(3, &[&other])));
    refresh(&agent).unwrap();
    assert_eq!(row(&agent)["sequence"], 3, "AMB-27: the latest fetch wins");
    agent.audited(&["bundle.fetch", "sequence_went_back"]);
    agent.audited(&["bundle.fetch", "status 500"]);
}

#[test]
fn a_server_that_says_nothing_is_given_up_and_holds_up_nobody() {
    let (web_ca, other) = pki();
    let server = Endpoint::start(web_ca.server("127.0.0.1"), Answer::Silence);
    let mut agent = agent();
    web(&mut agent, &server.url(), &web_ca);
    let set = put(&agent, "other.json", &document(1, &[&other]));
    assert_eq!(agent.mayfly(&["bundle", "set", OTHER, set.to_str().unwrap()]).0, Some(0));
    assert!(given(&agent).is_some());
    agent.audited(&["bundle.fetch", "no whole answer within 10 seconds"]);
}

#[test]
fn bundles_set_by_hand_last_and_refused_ones_leave_them() {
    let (_, other) = pki();
    let mut agent = agent();
    launch(&mut agent, "");
    let unknown = agent.admin().status().concerns;
    assert!(unknown.iter().any(|c| c.contains("entries federate with other.test")), "{unknown:?}");
    let file = put(&agent, "f", &document(u64::MAX, &[&other]));
    let set = |agent: &Agent| agent.mayfly(&["bundle", "set", OTHER, file.to_str().unwrap()]);
    let (code, out, _) = set(&agent);
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "in force: other.test, sequence 18446744073709551615, 1 authority, 0 JWT keys\n")
    );
    assert!(agent.admin().status().concerns.is_empty());
    put(&agent, "f", "{\"keys\":[{\"kty\":\"EC\",\"use\":\"x509-svid\",\"x5c\":\"MII\"}]}");
    let (code, _, said) = set(&agent);
    assert!(code == Some(1) && said.contains("keys[0].x5c: is not an array"), "{said}");
    let own = agent.mayfly(&["bundle", "set", "example.org", file.to_str().unwrap()]);
    assert!(own.0 == Some(1) && own.2.contains("own trust domain"), "{}", own.2);
    agent.crash_and_restart();
    assert_eq!(given(&agent).as_deref(), Some(other.certificate.as_ref()));
    // Nearly as long as may be: our own limits let it through.
    let padded = format!("{{\"keys\":[],\"x\":\"{}\"}}", "y".repeat((1 << 20) - 100));
    put(&agent, "f", &padded);
    assert_eq!(set(&agent).0, Some(0), "{}", set(&agent).2);
    put(&agent, "f", &other.pem());
    assert_eq!(set(&agent).0, Some(0));
    let (_, pem, _) = agent.mayfly(&["bundle", "show", OTHER, "--format", "pem"]);
    assert_eq!(pem, other.pem());
    let (_, shown, _) = agent.mayfly(&["bundle", "show", OTHER]);
    put(&agent, "f", &shown);
    assert_eq!(set(&agent).0, Some(0), "what is shown can be set");
    let (_, jwks, _) = agent.mayfly(&["bundle", "show", "example.org", "--format", "jwks"]);
    assert!(jwks.contains("jwt-svid"), "{jwks}");
    agent.audited(&["bundle.order", "set", "other.test"]);
}

#[test]
fn fed_35_deletion_reaches_open_streams_and_outlives_restarts() {
    let (web_ca, other) = pki();
    let server = Endpoint::start(web_ca.server("127.0.0.1"), Answer::Ok(document(1, &[&other])));
    let mut agent = agent();
    web(&mut agent, &server.url(), &web_ca);
    refresh(&agent).unwrap();
    let mut watcher = client(&agent);
    assert_eq!(watcher.bundles().bundles.len(), 2);
    assert_eq!(agent.mayfly(&["bundle", "delete", OTHER]).0, Some(0));
    let next = watcher.next_bundles().unwrap();
    assert_eq!(next.bundles.len(), 1, "the next message is without it");
    assert_eq!(next.bundles[0].0, "spiffe://example.org");
    assert_eq!(row(&agent)["origin"], "deleted");
    refused(&agent, "rests since its bundle was deleted");
    let asked = server.requests().len();
    agent.crash_and_restart();
    assert_eq!(given(&agent), None);
    assert_eq!(server.requests().len(), asked, "and nothing is fetched");
    // Taken up again from an operator's bundle; and from scratch when the configuration drops it between.
    let set = put(&agent, "other.json", &document(1, &[&other]));
    assert_eq!(agent.mayfly(&["bundle", "set", OTHER, set.to_str().unwrap()]).0, Some(0));
    refresh(&agent).unwrap();
    let settings = agent.plan().settings.clone();
    agent.kill();
    launch(&mut agent, "");
    assert_eq!((given(&agent), row(&agent)), (None, Value::Null), "no relationship, no bundle");
    server.answer(Answer::Status(500));
    agent.kill();
    launch(&mut agent, &settings);
    assert_eq!(given(&agent), None, "nothing is left of the time before");
}

#[test]
fn only_entries_that_ask_get_federated_bundles() {
    let (_, other) = pki();
    let mut agent = agent();
    launch(&mut agent, "");
    let file = put(&agent, "f", &document(1, &[&other]));
    assert_eq!(agent.mayfly(&["bundle", "set", OTHER, file.to_str().unwrap()]).0, Some(0));
    let mut watcher = client(&agent);
    assert_eq!(watcher.bundles().bundles.len(), 2);
    agent.write_entries(&[own_entry("/w")]);
    assert_eq!(watcher.next_bundles().unwrap().bundles.len(), 1, "the entry no longer asks");
    agent.write_entries(&[own_entry("/w").with("federates_with = [\"other.test\", \"third.test\"]")]);
    assert_eq!(watcher.next_bundles().unwrap().bundles.len(), 2);
    let (code, out, _) = agent.mayfly(&["fetch", "x509", "--output", "json"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("spiffe://other.test"), "{out}");
}
