//! Signing under a root that lies in files: the chain in others' hands, a revoked leaf, a revoked node, another root.

use std::path::Path;
use std::process::Command;

use mayfly_harness::pki::{Case, hex, openssl_judge, split};
use mayfly_harness::{Agent, Plan, until};
use mayfly_proto::admin::order_authority_request::Order;
use spiffe::WorkloadApiClient;

use crate::support::{client, own_uid};

const SETTINGS: &str = "[x509]\nttl = \"20s\"\n[authority]\nttl = \"1h\"\nlead = \"100ms\"\n";

/// A root by OpenSSL in the agent's directory.
fn write_root(dir: &Path, name: &str) {
    let key = dir.join("root.key.new");
    let certificate = dir.join("root.pem.new");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ])
        .args(["-subj", &format!("/CN={name}"), "-addext", "keyUsage=critical,keyCertSign,cRLSign"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::rename(key, dir.join("root.key")).unwrap();
    std::fs::rename(certificate, dir.join("root.pem")).unwrap();
}

fn under_a_root() -> Agent {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    let dir = agent.dir().to_owned();
    write_root(&dir, "one");
    agent.plan().settings = format!(
        "{SETTINGS}[upstream.disk]\ncertificate = {:?}\nkey = {:?}\n",
        dir.join("root.pem"),
        dir.join("root.key")
    );
    agent.write_config();
    agent.launch();
    agent
}

/// Leaf and intermediates as the crate `spiffe` takes them, which checks them by its own rules.
fn chain(agent: &Agent) -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = format!("unix:{}", agent.public().display());
        let client = WorkloadApiClient::connect_to(endpoint).await.unwrap();
        let context = client.fetch_x509_context().await.unwrap();
        let svid = context.default_svid().unwrap();
        svid.cert_chain().iter().map(|one| one.as_ref().to_vec()).collect()
    })
}

/// What a verifier is told: every CRL, and the bundle.
fn told(agent: &Agent) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut holder = client(agent);
    holder.open_x509();
    let update = holder.x509();
    (update.crls.into_iter().map(|crl| crl.der).collect(), update.svids[0].bundle.clone())
}

/// `openssl verify -crl_check_all` of leaf and node certificate; what it says otherwise.
fn verify(dir: &Path, leaf: &[u8], node: &[u8], bundle: &[u8], crls: &[Vec<u8>]) -> Result<(), String> {
    let (chain, bundle, crls) = ([leaf, node].concat(), bundle.to_vec(), crls.to_vec());
    openssl_judge(dir, &Case { chain, bundle, crls, at: None })
}

/// The root as it lies in the file, DER.
fn root(agent: &Agent) -> Vec<u8> {
    let text = std::fs::read(agent.dir().join("root.pem")).unwrap();
    x509_parser::pem::parse_x509_pem(&text).unwrap().1.contents
}

fn active(agent: &Agent) -> String {
    let all = agent.admin().authorities().unwrap();
    all.into_iter().find(|one| one.kind == "x509" && one.state == "active").unwrap().id
}

#[test]
fn openssl_accepts_the_good_and_refuses_a_revoked_leaf_and_a_revoked_node() {
    let mut agent = under_a_root();
    let dir = agent.dir().to_owned();
    let good = chain(&agent);
    assert_eq!(good.len(), 2, "leaf and node");
    let mut holder = client(&agent);
    holder.open_x509();
    let leaf = holder.x509().svids[0].leaf.clone();
    let (crls, _) = told(&agent);
    assert_eq!(crls.len(), 2, "the node's and its parent's");
    verify(&dir, &good[0], &good[1], &root(&agent), &crls).unwrap();
    verify(&dir, &leaf.der, &good[1], &root(&agent), &crls).unwrap();
    assert!(
        verify(&dir, &good[0], &good[1], &root(&agent), &crls[..1]).is_err(),
        "either alone is not enough"
    );
    drop(holder);
    until("the leaf of the dead is refused", || {
        let refused = verify(&dir, &leaf.der, &good[1], &root(&agent), &told(&agent).0).err()?;
        refused.contains("error 23 at 0 depth").then_some(())
    });
    // A restart keeps the node's certificate.
    let former = active(&agent);
    agent.crash_and_restart();
    assert_eq!(active(&agent), former);
    assert_eq!(chain(&agent)[1], good[1]);
    let mine = chain(&agent);
    let of_former = told(&agent).0;
    // The node is revoked: its successor goes on under the same root.
    agent.admin().order(Order::Prepare("x509".to_owned()), false).expect("prepare");
    until("the successor signs, without a lead", || (active(&agent) != former).then_some(()));
    agent.admin().order(Order::Revoke(former.clone()), false).expect("revoke");
    until("the node is refused", || {
        let crls = [told(&agent).0, of_former.clone()].concat();
        let refused = verify(&dir, &mine[0], &mine[1], &root(&agent), &crls).err()?;
        refused.contains("error 23 at 1 depth").then_some(())
    });
    let fresh = chain(&agent);
    assert_ne!(hex(&fresh[1]), hex(&mine[1]));
    verify(&dir, &fresh[0], &fresh[1], &root(&agent), &told(&agent).0).unwrap();
}

/// One process that keeps its stream open sees the whole of it: each message verifies on its own, by OpenSSL with
/// every CRL, and none brings an SVID beside a bundle that lacks its root.
#[test]
fn another_root_replaces_the_first_and_every_message_verifies_on_its_own() {
    let agent = under_a_root();
    let first = root(&agent);
    let mut holder = client(&agent);
    let mut update = holder.x509();
    let former = update.svids[0].serial().to_owned();
    write_root(agent.dir(), "two");
    let second = root(&agent);
    let scratch = agent.dir().join("v");
    std::fs::create_dir(&scratch).unwrap();
    let mut roots_seen = Vec::new();
    loop {
        let svid = &update.svids[0];
        let crls: Vec<_> = update.crls.iter().map(|crl| crl.der.clone()).collect();
        let (chain, bundle) = (svid.chain.clone(), svid.bundle.clone());
        openssl_judge(
            &scratch,
            &Case { chain: chain.clone(), bundle: bundle.clone(), crls: crls.clone(), at: None },
        )
        .unwrap_or_else(|why| panic!("message {}: {why}", roots_seen.len()));
        roots_seen.push(split(&bundle));
        if openssl_judge(&scratch, &Case { chain, bundle: second.clone(), crls, at: None }).is_ok() {
            assert_ne!(svid.serial(), former);
            break;
        }
        update = holder.next_x509().expect("the stream goes on");
    }
    roots_seen.dedup();
    assert_eq!(roots_seen, [vec![first.clone()], vec![first, second]], "published first, then used");
}

#[test]
fn without_its_root_a_node_goes_on_and_says_so() {
    let agent = under_a_root();
    std::fs::remove_file(agent.dir().join("root.key")).unwrap();
    until("status tells", || {
        let status = agent.admin().status();
        status
            .concerns
            .iter()
            .any(|one| one.starts_with("upstream: ") && one.contains("root.key"))
            .then_some(())
    });
    assert!(agent.admin().status().ready, "an outage of others is not ours");
    assert_eq!(chain(&agent).len(), 2);
}
