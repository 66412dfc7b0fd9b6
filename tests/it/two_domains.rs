//! Two agents of different trust domains federate over both profiles, and processes of each complete mTLS by the
//! published crate `spiffe-rustls`, until the relationship is deleted.

use std::net::TcpListener;

use mayfly_harness::foreign::Authority;
use mayfly_harness::{Agent, Plan, files, until};

use crate::mtls::{source, talk};
use crate::support::{client, own_entry};

/// A port that nobody has at the moment; both sides must know the other's before either starts.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn agent(own: &str, other: &str) -> Agent {
    let entry = own_entry("/w").with(&format!("federates_with = [{other:?}]"));
    Plan { trust_domain: own.to_owned(), ..Plan::with_entries(&[entry]) }.prepare()
}

fn launch(agent: &mut Agent, settings: String) {
    agent.plan().settings = settings;
    agent.write_config();
    agent.launch();
}

fn ok(agent: &Agent, arguments: &[&str]) -> String {
    let (code, out, said) = agent.mayfly(arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
    out
}

/// `a.test` publishes by its own SVID, `b.test` by a certificate of a Web PKI; each takes the other's bundle.
fn federated() -> (Agent, Agent) {
    let (mut a, mut b) = (agent("a.test", "b.test"), agent("b.test", "a.test"));
    let (port_a, port_b) = (free_port(), free_port());
    let ca = Authority::new("web");
    let put = |agent: &Agent, name: &str, text: &str, mode| {
        let path = agent.dir().join(name);
        files::replace(&path, text.as_bytes(), mode);
        path
    };
    let ca_file = put(&a, "ca.pem", &ca.pem(), 0o644);
    let settings = format!(
        "[bundle_endpoint]\nlisten = \"127.0.0.1:{port_a}\"\nprofile = \"https_spiffe\"\n\
         [[federation]]\ntrust_domain = \"b.test\"\nurl = \"https://localhost:{port_b}/\"\n\
         profile = \"https_web\"\nca_file = {ca_file:?}\n"
    );
    launch(&mut a, settings);
    let bootstrap = put(&b, "a.json", &ok(&a, &["bundle", "show", "a.test"]), 0o644);
    let (certificate, key) = ca.server("localhost").pem();
    let (certificate, key) = (put(&b, "web.pem", &certificate, 0o644), put(&b, "web.key", &key, 0o600));
    let settings = format!(
        "[bundle_endpoint]\nlisten = \"127.0.0.1:{port_b}\"\nprofile = \"https_web\"\n\
         certificate = {certificate:?}\nkey = {key:?}\nnames = [\"localhost\"]\n\
         [[federation]]\ntrust_domain = \"a.test\"\nurl = \"https://127.0.0.1:{port_a}/\"\n\
         profile = \"https_spiffe\"\nendpoint_spiffe_id = \"spiffe://a.test/mayfly\"\n\
         bootstrap_bundle = {bootstrap:?}\n"
    );
    launch(&mut b, settings);
    ok(&a, &["bundle", "refresh", "b.test"]);
    until("the endpoint of a.test has its SVID", || {
        (b.mayfly(&["bundle", "refresh", "a.test"]).0 == Some(0)).then_some(())
    });
    (a, b)
}

#[test]
fn processes_of_two_domains_talk_by_mtls_until_the_relationship_is_deleted() {
    let (a, b) = federated();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (ids_ab, ids_ba) =
        (("spiffe://a.test/w", "spiffe://b.test/w"), ("spiffe://b.test/w", "spiffe://a.test/w"));
    runtime.block_on(async {
        let (of_a, of_b) = (source(&a.public()).await, source(&b.public()).await);
        talk(&of_a, &of_b, ids_ab).await.unwrap();
        talk(&of_b, &of_a, ids_ba).await.unwrap();
        // Relationships are one-way (FED-39): b.test still trusts a.test, which is not enough for either handshake.
        ok(&a, &["bundle", "delete", "b.test"]);
        let mut failing = Err(String::new());
        for _ in 0..500 {
            failing = talk(&of_a, &of_b, ids_ab).await;
            if failing.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(failing.is_err(), "a.test still believes b.test");
        assert!(talk(&of_b, &of_a, ids_ba).await.is_err());
        of_a.shutdown().await;
        of_b.shutdown().await;
    });
}

#[test]
fn tokens_of_the_other_domain_validate_while_it_is_federated_with() {
    let (a, b) = federated();
    let token = client(&a).jwt("audience").unwrap().remove(0);
    let mut asker = client(&b);
    assert_eq!(asker.validate("audience", &token.text).unwrap(), "spiffe://a.test/w");
    assert_eq!(asker.validate("other", &token.text).unwrap_err().code, 3);
    b.write_entries(&[own_entry("/w")]);
    let refusal = until("the entry no longer asks", || client(&b).validate("audience", &token.text).err());
    assert_eq!(refusal.code, 3);
    b.write_entries(&[own_entry("/w").with("federates_with = [\"a.test\"]")]);
    until("the entry asks again", || client(&b).validate("audience", &token.text).ok());
    ok(&b, &["bundle", "delete", "a.test"]);
    assert_eq!(client(&b).validate("audience", &token.text).unwrap_err().code, 3, "WAPI-45");
    // An X.509 or JWT key of b.test never vouches for a.test: its own tokens still do for itself.
    let mut alive = client(&b);
    let own = alive.jwt("audience").unwrap().remove(0);
    assert_eq!(client(&b).validate("audience", &own.text).unwrap(), "spiffe://b.test/w");
}

#[test]
fn both_sides_follow_a_change_of_the_other_through_a_restart() {
    let (mut a, b) = federated();
    let before = ok(&b, &["bundle", "show", "a.test", "--format", "pem"]);
    a.stop();
    ok(&b, &["fetch", "bundles"]);
    let (code, _, said) = b.mayfly(&["bundle", "refresh", "a.test"]);
    assert!(code == Some(1) && said.contains("cannot connect"), "{said}");
    assert_eq!(ok(&b, &["bundle", "show", "a.test", "--format", "pem"]), before, "kept through the outage");
    a.launch();
    until("a.test serves again", || (b.mayfly(&["bundle", "refresh", "a.test"]).0 == Some(0)).then_some(()));
}
