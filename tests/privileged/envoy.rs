//! Real Envoys fed by the agent, started with the bootstrap of `deploy/examples/envoy`. The workload is Envoy itself,
//! as where it runs as a sidecar with a user of its own; and a program beside it under the same user, for which the
//! same entry stands.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mayfly_harness::envoy::{Bootstrap, Envoy, PAUSE, Ports, app, free_port, get, memory_blocks, request};
use mayfly_harness::pki::Leaf;
use mayfly_harness::{Agent, Crl, Entry, Holder, PATIENCE, Plan, require_root, until, xds};
use mayfly_proto::admin::revoke_leases_request::Target;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::support::{SHORT, WIDE};

const WEB: u32 = 20_951;
const BILLING: u32 = 20_952;

fn web() -> Entry {
    Entry::new("/web", &[&format!("unix:uid:{WEB}")])
}

fn billing() -> Entry {
    Entry::new("/billing", &[&format!("unix:uid:{BILLING}")])
}

/// Which validator an Envoy uses.
#[derive(Clone, Copy, Debug)]
enum Validator {
    Spiffe,
    Plain,
}

/// Two Envoys: `web` calls, `billing` serves.
struct Pair {
    web: Envoy,
    billing: Envoy,
}

impl Pair {
    fn start(agent: &Agent, validator: Validator, requests_per_connection: u32) -> Self {
        let (app, ports) = (app(), Ports::free());
        let mut bootstrap = Bootstrap::new(agent, ports, app, 1).delta();
        if matches!(validator, Validator::Plain) {
            bootstrap = bootstrap.plain_validator();
        }
        let billing = Envoy::start(agent, BILLING, ports, &bootstrap);
        let web = Self::caller(agent, validator, ports.ingress, requests_per_connection);
        Self { web, billing }
    }

    fn caller(agent: &Agent, validator: Validator, peer: u16, requests_per_connection: u32) -> Envoy {
        let ports = Ports::free();
        let mut bootstrap =
            Bootstrap::new(agent, ports, 1, peer).requests_per_connection(requests_per_connection);
        if matches!(validator, Validator::Plain) {
            bootstrap = bootstrap.plain_validator();
        }
        Envoy::start(agent, WEB, ports, &bootstrap)
    }
}

/// A certificate and its key in the wrong hands.
struct Stolen {
    config: Arc<ClientConfig>,
    leaf: Leaf,
}

impl Stolen {
    fn new(chain: Vec<u8>, key: Vec<u8>) -> Self {
        let leaf = Leaf::parse(&chain);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Careless))
            .with_client_auth_cert(
                vec![CertificateDer::from(chain)],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key)),
            )
            .unwrap();
        config.resumption = rustls::client::Resumption::disabled();
        Self { config: Arc::new(config), leaf }
    }

    fn from_memory(envoy: &Envoy, spiffe_id: &str) -> Self {
        let (chain, key) = loot(envoy, spiffe_id);
        Self::new(chain, key)
    }

    /// One handshake and one request with it.
    fn try_it(&self, port: u16) -> std::io::Result<(u16, String)> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Otherwise each attempt takes the 40 ms of a delayed acknowledgement.
        socket.set_nodelay(true)?;
        let name = ServerName::try_from("mayfly.test").unwrap();
        let connection = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        request(&mut StreamOwned::new(connection, socket), "/")
    }

    fn is_accepted(&self, port: u16) -> bool {
        matches!(self.try_it(port), Ok((200, _)))
    }

    /// How long after `since` the first handshake was refused.
    fn refused_after(&self, port: u16, since: Instant) -> Duration {
        until("the stolen certificate is refused", || {
            let refused = !self.is_accepted(port);
            refused.then(|| since.elapsed())
        })
    }
}

/// Certificate and key out of the memory of a live Envoy, as whoever broke into it would take them.
fn loot(envoy: &Envoy, spiffe_id: &str) -> (Vec<u8>, Vec<u8>) {
    let keys = memory_blocks(envoy.pid(), "PRIVATE KEY");
    let pairs: Vec<_> = keys
        .iter()
        .filter_map(|key| Some((rcgen::KeyPair::try_from(key.as_slice()).ok()?, key)))
        .map(|(pair, key)| (rcgen::PublicKeyData::subject_public_key_info(&pair), key))
        .collect();
    for chain in memory_blocks(envoy.pid(), "CERTIFICATE") {
        let (_, read) = x509_parser::parse_x509_certificate(&chain).unwrap();
        let found = pairs.iter().find(|(public, _)| *public == read.public_key().raw);
        if let Some((_, key)) = found
            && Leaf::parse(&chain).uris == [spiffe_id]
        {
            return (chain, (*key).clone());
        }
    }
    panic!("{} keys in Envoy's memory, none of {spiffe_id}", keys.len());
}

/// The thief does not care who serves it.
#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256]
    }
}

/// A client of our own on an SDS stream, to tell what the agent takes from what Envoy takes.
struct Subscriber(Receiver<(Instant, BTreeSet<String>)>);

impl Subscriber {
    fn start(agent: &Agent) -> Self {
        let (socket, (sender, receiver)) = (agent.public(), channel());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = xds::Sds::connect(&socket).await.unwrap();
                let mut stream = client.world().await.unwrap();
                stream.ask(xds::ask(&["ROOTCA"], "", "")).await;
                // Until the agent is gone.
                while let Ok(Some(reply)) = stream.next().await {
                    let at = Instant::now();
                    let crl = Crl::parse(&xds::Seen::all(&reply)[0].crls[0]);
                    stream.ask(xds::ask(&["ROOTCA"], &reply.version_info, &reply.nonce)).await;
                    if sender.send((at, crl.serials)).is_err() {
                        return;
                    }
                }
            });
        });
        Self(receiver)
    }

    /// When the CRL with that serial came.
    fn told_of(&self, serial: &str) -> Instant {
        loop {
            let (at, serials) = self.0.recv_timeout(PATIENCE).expect("a CRL with the serial");
            if serials.contains(serial) {
                return at;
            }
        }
    }
}

/// A line of the report.
fn figure(what: &str, value: &str) {
    writeln!(std::io::stdout().lock(), "FIGURE {what}: {value}").unwrap();
}

fn spread(mut samples: Vec<Duration>) -> String {
    samples.sort_unstable();
    let [least, median, most] =
        [0, samples.len() / 2, samples.len() - 1].map(|n| samples[n].as_secs_f64() * 1e3);
    format!("median {median:.1} ms, {least:.1} to {most:.1} ms (n = {})", samples.len())
}

/// The hash and the identity that the serving Envoy saw, from `x-forwarded-client-cert`.
fn caller_of(header: &str) -> (String, String) {
    let part = |name: &str| {
        let value = header.split(';').find_map(|part| part.strip_prefix(name));
        value.unwrap_or_else(|| panic!("no {name} in {header:?}")).to_owned()
    };
    (part("hash="), part("uri="))
}

#[test]
fn two_envoys_rotate_under_load_without_a_lost_request() {
    require_root();
    let agent = Plan::with_entries(&[web(), billing()]).settings(SHORT).start();
    let pair = Pair::start(&agent, Validator::Spiffe, 3);
    pair.web.reaches_its_peer();
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let hashes = Mutex::new(BTreeSet::new());
    let port = pair.web.ports().egress;
    let load = || {
        let mut lost = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            match get(port, "/") {
                Ok((200, header)) => {
                    let (hash, id) = caller_of(&header);
                    assert_eq!(id, "spiffe://example.org/web");
                    hashes.lock().unwrap().insert(hash);
                }
                other => lost.push(format!("{other:?}")),
            }
            sent.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
        lost
    };
    let rotations = |envoy: &Envoy| envoy.stat("sds.default.update_success");
    // What an Envoy has taken over it shows only in the next handshake: the load goes on until the peer saw it.
    let shown = || hashes.lock().unwrap().len();
    let lost: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
        let begin = Instant::now();
        // Not `until`: three rotations take longer than its patience allows for.
        while (shown() < 4 || rotations(&pair.billing) < 4) && begin.elapsed() < PATIENCE * 3 {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let hashes = hashes.into_inner().unwrap();
    assert!(lost.is_empty(), "{} requests were lost: {lost:#?}", lost.len());
    assert!(hashes.len() >= 4, "the peer saw {} certificates", hashes.len());
    assert!(rotations(&pair.web) >= 4 && rotations(&pair.billing) >= 4);
    for envoy in [&pair.web, &pair.billing] {
        for name in ["default", "ROOTCA"] {
            assert_eq!(envoy.stat(&format!("sds.{name}.update_rejected")), 0);
        }
    }
    let (sent, certificates) = (sent.load(Ordering::Relaxed), hashes.len());
    let name = format!("listener.127.0.0.1_{}.ssl.handshake", pair.billing.ports().ingress);
    let handshakes = pair.billing.stat(&name);
    let what = format!("{sent} requests, {handshakes} handshakes, {certificates} certificates, 0 lost");
    figure("rotation under load", &what);
}

fn a_killed_envoys_certificate_is_refused_by_the_other(validator: Validator, rounds: usize) {
    require_root();
    let agent = Plan::with_entries(&[web(), billing()]).settings(WIDE).start();
    let mut pair = Pair::start(&agent, validator, 1);
    let ingress = pair.billing.ports().ingress;
    let mut samples = Vec::new();
    for round in 0..rounds {
        pair.web.reaches_its_peer();
        let stolen = Stolen::from_memory(&pair.web, "spiffe://example.org/web");
        let (status, header) = stolen.try_it(ingress).unwrap();
        assert_eq!(
            (status, caller_of(&header).1.as_str()),
            (200, "spiffe://example.org/web"),
            "round {round}"
        );
        let since = Instant::now();
        pair.web.kill_unreaped();
        samples.push(stolen.refused_after(ingress, since));
        // It stays refused, and its successor, with a certificate of its own, is let in.
        pair.web = Pair::caller(&agent, validator, ingress, 1);
        pair.web.reaches_its_peer();
        assert!(!stolen.is_accepted(ingress));
        assert!(
            agent.admin().live_leases_of(pair.web.pid()).iter().all(|lease| lease.id != stolen.leaf.serial)
        );
    }
    // The serving side as well: whoever calls it refuses its certificate.
    let rejected = pair.billing.stat("sds.ROOTCA.update_rejected");
    assert_eq!(rejected, 0, "the contexts were accepted");
    figure(&format!("kill of Envoy → first refused handshake, {validator:?} validator"), &spread(samples));
}

#[test]
fn a_killed_envoys_certificate_is_refused_by_the_spiffe_validator() {
    a_killed_envoys_certificate_is_refused_by_the_other(Validator::Spiffe, 5);
}

#[test]
fn a_killed_envoys_certificate_is_refused_by_the_default_validator() {
    a_killed_envoys_certificate_is_refused_by_the_other(Validator::Plain, 5);
}

/// A server with a stolen certificate, by OpenSSL.
struct Impostor(Child);

impl Impostor {
    fn start(agent: &Agent, port: u16, chain: &[u8], key: &[u8]) -> Self {
        let place = |name: &str| agent.dir().join(name).to_str().unwrap().to_owned();
        let (certificate, private) = (place("stolen.der"), place("stolen.key"));
        std::fs::write(&certificate, chain).unwrap();
        std::fs::write(&private, key).unwrap();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-www", "-quiet", "-certform", "DER", "-keyform", "DER"]);
        command.args(["-cert", &certificate, "-key", &private, "-accept", &port.to_string()]);
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self(child)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_killed_servers_certificate_is_refused_by_its_callers() {
    require_root();
    let agent = Plan::with_entries(&[web(), billing()]).settings(WIDE).start();
    for validator in [Validator::Spiffe, Validator::Plain] {
        let mut pair = Pair::start(&agent, validator, 1);
        pair.web.reaches_its_peer();
        let (chain, key) = loot(&pair.billing, "spiffe://example.org/billing");
        let port = free_port();
        let _impostor = Impostor::start(&agent, port, &chain, &key);
        let misled = Pair::caller(&agent, validator, port, 1);
        misled.reaches_its_peer();
        let since = Instant::now();
        pair.billing.kill_unreaped();
        misled.reaches_nobody();
        figure(
            &format!(
                "kill of the serving Envoy → its certificate refused by a caller, {validator:?} validator"
            ),
            &format!("{:.1} ms", since.elapsed().as_secs_f64() * 1e3),
        );
    }
}

/// The program that Envoy stands for has a certificate of its own, by the same entry: when it is killed, that one is
/// refused, and Envoy's is not.
#[test]
fn a_killed_program_beside_envoy_takes_its_own_certificate_with_it() {
    require_root();
    let agent = Plan::with_entries(&[web(), billing(), Entry::for_uid(0)]).settings(WIDE).start();
    let subscriber = Subscriber::start(&agent);
    for validator in [Validator::Spiffe, Validator::Plain] {
        let pair = Pair::start(&agent, validator, 1);
        pair.web.reaches_its_peer();
        let ingress = pair.billing.ports().ingress;
        let (mut samples, mut told) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let mut program = Holder::start(&agent, WEB);
            let svid = program.x509().svids.remove(0);
            let stolen = Stolen::new(svid.leaf.der.clone(), svid.key);
            assert!(stolen.is_accepted(ingress));
            let since = Instant::now();
            program.kill_unreaped();
            samples.push(stolen.refused_after(ingress, since));
            told.push(subscriber.told_of(&stolen.leaf.serial) - since);
            assert!(matches!(get(pair.web.ports().egress, "/"), Ok((200, _))), "Envoy itself lives");
        }
        figure(
            &format!("kill of a small process → first refused handshake, {validator:?} validator"),
            &spread(samples),
        );
        figure("of that, until an SDS client had the CRL", &spread(told));
    }
}

#[test]
fn entries_open_and_close_the_path() {
    require_root();
    let agent = Plan::with_entries(&[billing()]).settings(WIDE).start();
    let pair = Pair::start(&agent, Validator::Spiffe, 1);
    let (egress, ingress) = (pair.web.ports().egress, pair.billing.ports().ingress);
    until("an Envoy without an entry waits", || {
        (agent.admin().status().sds.unwrap().waiting > 0).then_some(())
    });
    assert!(!matches!(get(egress, "/"), Ok((200, _))), "no identity, no path");
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let since = Instant::now();
        agent.write_entries(&[web(), billing()]);
        pair.web.reaches_its_peer();
        opened.push(since.elapsed());
        let stolen = Stolen::from_memory(&pair.web, "spiffe://example.org/web");
        let since = Instant::now();
        agent.write_entries(&[billing()]);
        pair.web.reaches_nobody();
        closed.push(since.elapsed());
        until("the certificate it had is refused", || (!stolen.is_accepted(ingress)).then_some(()));
    }
    figure("entry written → first request through", &spread(opened));
    figure("entry removed → first request refused", &spread(closed));
    // The serving side's identity ends: callers refuse what it shows instead.
    agent.write_entries(&[web(), billing()]);
    pair.web.reaches_its_peer();
    agent.write_entries(&[web()]);
    pair.web.reaches_nobody();
    agent.write_entries(&[web(), billing()]);
    pair.web.reaches_its_peer();
    assert_eq!(pair.web.stat("sds.default.update_rejected"), 0, "the replacement is accepted");
    assert!(agent.admin().status().sds.unwrap().withdrawn >= 4);
}

#[test]
fn an_operator_takes_an_envoys_identity() {
    require_root();
    let agent = Plan::with_entries(&[web(), billing()]).settings(WIDE).start();
    for validator in [Validator::Spiffe, Validator::Plain] {
        let pair = Pair::start(&agent, validator, 1);
        pair.web.reaches_its_peer();
        let stolen = Stolen::from_memory(&pair.web, "spiffe://example.org/web");
        let ingress = pair.billing.ports().ingress;
        assert!(stolen.is_accepted(ingress));
        let since = Instant::now();
        agent.admin().revoke(Target::Pid(pair.web.pid())).unwrap();
        let refused = stolen.refused_after(ingress, since);
        pair.web.reaches_nobody();
        figure(
            &format!("operator's order → first refused handshake, {validator:?} validator"),
            &format!("{:.1} ms", refused.as_secs_f64() * 1e3),
        );
    }
}
