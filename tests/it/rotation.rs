//! Signing keys that change under a running agent: no verifier ever meets what its bundle does not cover, and a
//! crash at any point leaves something consistent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use mayfly_harness::pki::{Case, openssl_judge};
use mayfly_harness::{Agent, Plan, figure, until};
use mayfly_proto::admin::AuthorityRecord;
use mayfly_proto::admin::order_authority_request::Order;
use tonic::{Code, Status};

use crate::rotation_client::{Counts, follow};
use crate::rotation_judges::{self as judges, PySpiffe, Tally};
use crate::support::{agent, client, own_uid};

/// A successor is known for a tenth of a second before it signs: every stream has long been told.
const FAST: &str = "[x509]\nttl = \"60s\"\n[jwt]\nttl = \"10s\"\n[limits]\njwt_leases_per_workload = 10000\n\
                    [attest]\nper_second = 10000\nburst = 10000\n[authority]\nttl = \"1h\"\nlead = \"100ms\"\n";

fn active(all: &[AuthorityRecord], kind: &str) -> String {
    let mut active = all.iter().filter(|one| one.kind == kind && one.state == "active");
    let id = active.next().expect("an active one").id.clone();
    assert!(active.next().is_none(), "two are active");
    id
}

/// Asks again while the agent is down or the order is too early.
fn insist(agent: &Agent, order: &Order) -> Result<AuthorityRecord, Status> {
    loop {
        match agent.admin().order(order.clone(), false) {
            Err(status) if status.message().contains("has been published for") => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// One whole turn: a successor, the hand-over, the former one out of the bundle.
fn rotate(agent: &Agent, kind: &str) {
    let admin = agent.admin();
    let all = admin.authorities().expect("list");
    let former = active(&all, kind);
    if !all.iter().any(|one| one.kind == kind && one.state == "prepared") {
        admin.order(Order::Prepare(kind.to_owned()), false).expect("prepare");
    }
    insist(agent, &Order::Activate(kind.to_owned())).expect("activate");
    insist(agent, &Order::Revoke(former.clone())).expect("revoke");
    for left in agent.admin().authorities().expect("list") {
        // What a kill left half-way.
        if left.kind == kind && (left.state == "old" || left.state == "tainted") {
            insist(agent, &Order::Revoke(left.id)).expect("revoke");
        }
    }
}

fn rounds() -> usize {
    std::env::var("MAYFLY_ROTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// How many rotations lie between two kills.
const KILL_EVERY: usize = 20;

/// Every judge of what a rotating agent sends, at work.
struct Judges {
    stop: Arc<AtomicBool>,
    own: (Arc<Counts>, JoinHandle<()>),
    openssl: (Arc<Tally>, JoinHandle<()>),
    crate_spiffe: (Arc<Tally>, JoinHandle<()>),
    py_spiffe: (Arc<Tally>, PySpiffe),
}

impl Judges {
    fn start(agent: &Agent) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let socket = agent.public();
        let (cases, queue) = channel();
        let counts = Arc::new(Counts::new(cases));
        let own = {
            let (stop, counts, socket) = (Arc::clone(&stop), Arc::clone(&counts), socket.clone());
            std::thread::spawn(move || follow(&socket, &stop, &counts))
        };
        let openssl = Arc::new(Tally::default());
        let scratch = agent.dir().join("openssl");
        std::fs::create_dir(&scratch).unwrap();
        let judge = {
            let tally = Arc::clone(&openssl);
            std::thread::spawn(move || judges::openssl(&scratch, &queue, &tally))
        };
        let library = Arc::new(Tally::default());
        let handshakes = {
            let (stop, tally, socket) = (Arc::clone(&stop), Arc::clone(&library), socket.clone());
            std::thread::spawn(move || judges::crate_spiffe(&socket, &stop, &tally))
        };
        let python = Arc::new(Tally::default());
        let process = PySpiffe::start(&socket, &python);
        Self {
            stop,
            own: (counts, own),
            openssl: (openssl, judge),
            crate_spiffe: (library, handshakes),
            py_spiffe: (python, process),
        }
    }

    /// Waits until everybody who verifies has heard of every authority that there is.
    fn catch_up(&self, agent: &Agent) {
        let all = agent.admin().authorities().expect("list");
        let alive: Vec<_> = all.into_iter().filter(|one| one.state != "revoked").map(|one| one.id).collect();
        until("the verifiers know every authority", || {
            let all = [&self.crate_spiffe.0, &self.py_spiffe.0].iter().all(|one| one.knows(&alive));
            (all && self.own.0.is_under_way()).then_some(())
        });
    }

    /// Lets everybody finish; what each verified.
    fn verdicts(self) -> Vec<(&'static str, usize, usize, Vec<String>)> {
        self.stop.store(true, Ordering::Release);
        self.own.1.join().expect("our own verifier");
        self.own.0.no_more();
        self.openssl.1.join().expect("OpenSSL");
        self.crate_spiffe.1.join().expect("the crate");
        self.py_spiffe.1.stop();
        let own = self.own.0;
        let verdict = |name, tally: &Tally| (name, tally.x509(), tally.tokens(), tally.failures());
        vec![
            ("webpki and jsonwebtoken", own.x509(), own.tokens(), own.failures()),
            verdict("OpenSSL", &self.openssl.0),
            verdict("crate spiffe", &self.crate_spiffe.0),
            verdict("py-spiffe", &self.py_spiffe.0),
        ]
    }
}

#[test]
fn no_verifier_ever_meets_what_its_bundle_lacks() {
    let mut agent = Plan::for_uids(&[own_uid()]).settings(FAST).start();
    let judges = Judges::start(&agent);
    judges.catch_up(&agent);
    for round in 1..=rounds() {
        rotate(&agent, if round % 2 == 0 { "jwt" } else { "x509" });
        if round % KILL_EVERY == 0 {
            let before = judges.own.0.epoch();
            // In the middle of something.
            let killed = if round % (2 * KILL_EVERY) == 0 { "x509" } else { "jwt" };
            agent.admin().order(Order::Prepare(killed.to_owned()), false).expect("prepare");
            agent.crash_and_restart();
            until("the verifier is back", || (judges.own.0.epoch() > before).then_some(()));
            // A successor of each kind, so that whoever knows them all has been connected since.
            for kind in ["x509", "jwt"] {
                let all = agent.admin().authorities().expect("list");
                if !all.iter().any(|one| one.kind == kind && one.state == "prepared") {
                    agent.admin().order(Order::Prepare(kind.to_owned()), false).expect("prepare");
                }
            }
            judges.catch_up(&agent);
        }
    }
    judges.catch_up(&agent);
    for (name, x509, tokens, failures) in judges.verdicts() {
        figure(&format!("{} rotations, {name}: {x509} X.509-SVIDs, {tokens} tokens verified", rounds()));
        assert_eq!(failures, Vec::<String>::new(), "{name}");
        // One X.509 authority follows another in every second round; the latest state wins over one unread.
        assert!(x509 >= rounds() / 4, "{name}: {x509}");
        assert!(name == "OpenSSL" || tokens >= rounds() / 4, "{name}: {tokens}");
    }
}

#[test]
fn a_crash_at_any_point_of_a_step_leaves_something_consistent() {
    let mut agent = Plan::for_uids(&[own_uid()]).settings(FAST).start();
    for point in ["life.after_key", "life.before_journal", "life.after_journal", "life.after_publish"] {
        for step in ["prepare", "activate", "revoke"] {
            let former = active(&agent.admin().authorities().unwrap(), "x509");
            let order = match step {
                "prepare" => Order::Prepare("x509".to_owned()),
                "activate" => {
                    agent.admin().order(Order::Prepare("x509".to_owned()), false).unwrap();
                    Order::Activate("x509".to_owned())
                }
                _ => {
                    rotate_only(&agent);
                    Order::Revoke(former.clone())
                }
            };
            agent.stop();
            agent.plan().environment = vec![("MAYFLY_FAILPOINTS".to_owned(), format!("{point}=kill"))];
            agent.launch();
            let told = insist(&agent, &order);
            let dies = step == "prepare" || point != "life.after_key";
            assert_eq!(told.is_err(), dies, "{step} at {point}: {told:?}");
            if dies {
                until("the agent is gone", || (!agent.is_running()).then_some(()));
            }
            agent.kill();
            agent.plan().environment.clear();
            agent.launch();
            consistent(&agent, &format!("{step} at {point}"));
            settle(&agent);
        }
    }
}

fn rotate_only(agent: &Agent) {
    agent.admin().order(Order::Prepare("x509".to_owned()), false).unwrap();
    insist(agent, &Order::Activate("x509".to_owned())).unwrap();
}

/// One active of each kind, a key for each and no key beside them, an SVID that verifies.
fn consistent(agent: &Agent, what: &str) {
    let all = agent.admin().authorities().unwrap();
    for kind in ["x509", "jwt"] {
        active(&all, kind);
    }
    // An authority that was leaving goes on leaving by itself.
    let mut wanted: Vec<String> = until(what, || {
        let all = agent.admin().authorities().unwrap();
        let settled = all.iter().all(|one| one.revoking_since == 0);
        settled.then(|| {
            let held = all.iter().filter(|one| one.state != "revoked");
            held.map(|one| format!("{}-{}.pem", one.kind, one.id)).collect()
        })
    });
    wanted.push("journal.json".to_owned());
    wanted.sort();
    let names = || {
        let list = std::fs::read_dir(agent.data_dir().join("authority")).unwrap();
        let mut names: Vec<_> = list.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), wanted, "{what}");
    let svid = client(agent).x509().svids.remove(0);
    let signer = active(&agent.admin().authorities().unwrap(), "x509");
    assert_eq!(svid.leaf.authority, signer, "{what}");
}

/// Back to one X.509 authority.
fn settle(agent: &Agent) {
    for one in agent.admin().authorities().unwrap() {
        if one.kind == "x509" && ["prepared", "old", "tainted"].contains(&one.state.as_str()) {
            insist(agent, &Order::Revoke(one.id)).unwrap();
        }
    }
}

#[test]
fn an_operator_walks_an_authority_through_its_life() {
    let agent = Plan::for_uids(&[own_uid()]).settings(FAST).start();
    let ran = |args: &[&str]| agent.mayfly(args);
    let mut holder = client(&agent);
    let before = holder.x509().svids.remove(0);
    let (code, out, err) = ran(&["authority", "prepare", "x509"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let update = holder.next_x509().expect("the bundle grew");
    assert_eq!(update.crls.len(), 2, "the new authority came with its list");
    assert_eq!(update.svids[0].serial(), before.serial(), "and nothing else changed");
    let (code, _, err) = ran(&["authority", "prepare", "x509"]);
    assert!(code == Some(1) && err.contains("prepared already"), "{code:?} {err}");
    let (code, _, err) = ran(&["authority", "revoke", &before.leaf.authority]);
    assert!(code == Some(1) && err.contains("successor first"), "{code:?} {err}");
    let (code, out, err) = ran(&["authority", "activate", "x509", "--now"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, out, err) = ran(&["authority", "taint", &before.leaf.authority]);
    assert_eq!(code, Some(0), "{out}{err}");
    let after = holder.next_x509().expect("a new one at once").svids.remove(0);
    assert_ne!(after.leaf.authority, before.leaf.authority);
    assert!(after.bundle.len() > after.leaf.der.len(), "both authorities are still trusted");
    let (code, out, err) = ran(&["authority", "revoke", &before.leaf.authority]);
    assert!(code == Some(0) && out.contains("is revoked"), "{out}{err}");
    let last =
        until("the bundle shrinks", || holder.next_x509().ok().filter(|update| update.crls.len() == 1));
    assert_eq!(last.svids[0].serial(), after.serial());
    let (_, out, _) = ran(&["authority", "show", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    let states: Vec<_> = shown["authorities"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["revoked", "active", "active"], "{out}");
    agent.audited(&["authority.step", &before.leaf.authority, "revoked"]);
}

/// The crate `spiffe` and OpenSSL, as strangers use them, over some turns.
#[test]
fn the_crate_spiffe_and_openssl_follow_every_rotation() {
    let agent = Plan::for_uids(&[own_uid()]).settings(FAST).start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let endpoint = format!("unix:{}", agent.public().display());
    let (source, library) = runtime.block_on(async {
        let source = spiffe::X509Source::builder().endpoint(endpoint.clone()).build().await.unwrap();
        (source, spiffe::WorkloadApiClient::connect_to(endpoint).await.unwrap())
    });
    let domain = spiffe::TrustDomain::new("example.org").unwrap();
    let mut holder = client(&agent);
    let mut update = holder.x509();
    for round in 0..8 {
        rotate(&agent, if round % 2 == 0 { "x509" } else { "jwt" });
        let signer = active(&agent.admin().authorities().unwrap(), "x509");
        while update.svids[0].leaf.authority != signer || update.crls.len() != 1 {
            update = holder.next_x509().expect("the stream goes on");
            let svid = &update.svids[0];
            let crls = update.crls.iter().map(|crl| crl.der.clone()).collect();
            let (chain, bundle) = (svid.chain.clone(), svid.bundle.clone());
            openssl_judge(agent.dir(), &Case { chain, bundle, crls, at: None }).unwrap();
        }
        until("the library has the new authority alone", || {
            let bundle = source.bundle_set().ok()?.get(&domain)?;
            let (have, want) = (bundle.authorities().len(), update.svids[0].bundle.as_slice());
            (have == 1 && bundle.authorities()[0].as_ref() == want).then_some(())
        });
        runtime.block_on(async {
            let bundles = library.fetch_jwt_bundles().await.unwrap();
            let token = library.fetch_jwt_svid(["interop"], None).await.unwrap();
            spiffe::JwtSvid::parse_and_validate(token.token(), &bundles, &["interop"]).unwrap();
        });
    }
    runtime.block_on(source.shutdown());
}

#[test]
fn a_token_of_a_revoked_key_is_refused() {
    let agent = Plan::for_uids(&[own_uid()]).settings(FAST).start();
    let mut holder = client(&agent);
    let token = holder.jwt("aud").unwrap().remove(0);
    let former = active(&agent.admin().authorities().unwrap(), "jwt");
    agent.admin().order(Order::Prepare("jwt".to_owned()), false).unwrap();
    insist(&agent, &Order::Activate("jwt".to_owned())).unwrap();
    agent.admin().order(Order::Taint(former.clone()), false).unwrap();
    assert!(holder.validate("aud", &token.text).is_ok(), "tainted is still trusted");
    assert_ne!(holder.jwt("aud").unwrap()[0].text.split('.').next(), token.text.split('.').next());
    insist(&agent, &Order::Revoke(former)).unwrap();
    assert_eq!(holder.validate("aud", &token.text).unwrap_err().code, 3);
}

#[test]
fn orders_that_do_not_fit_are_failed_preconditions() {
    let agent = agent();
    let admin = agent.admin();
    let refused = |order: Order| admin.order(order, false).unwrap_err();
    assert_eq!(refused(Order::Activate("x509".to_owned())).code(), Code::FailedPrecondition);
    assert_eq!(refused(Order::Prepare("wit".to_owned())).code(), Code::FailedPrecondition);
    assert_eq!(refused(Order::Taint("nobody".to_owned())).code(), Code::FailedPrecondition);
    assert_eq!(refused(Order::Prepare("dsa".to_owned())).code(), Code::InvalidArgument);
}

#[test]
fn keys_can_be_encrypted_and_a_lost_passphrase_is_said_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("passphrase");
    std::fs::write(&file, "correct horse\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let settings = format!("{FAST}passphrase_file = {file:?}\n");
    let mut agent = Plan::for_uids(&[own_uid()]).settings(&settings).start();
    let before = client(&agent).x509().svids.remove(0);
    agent.stop();
    agent.launch();
    assert_eq!(client(&agent).x509().svids[0].bundle, before.bundle);
    agent.stop();
    std::fs::write(&file, "battery staple\n").unwrap();
    let ended = agent.refused();
    assert!(ended.code == Some(5) && ended.log.contains("configured passphrase"), "{}", ended.log);
}
