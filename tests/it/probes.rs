//! What probes and collectors see over TCP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use mayfly_harness::{Agent, Holder, Plan, until};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::own_uid;

const SETTINGS: &str = "[health]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n";

fn agent() -> Agent {
    Plan::for_uids(&[own_uid()]).settings(SETTINGS).start()
}

/// The port that the kernel gave, from the log.
fn address(agent: &Agent, table: &str) -> SocketAddr {
    let log = agent.log();
    let line =
        log.lines().find(|line| line.contains("listening") && line.contains(&format!("table=\"{table}\"")));
    let line = line.unwrap_or_else(|| panic!("no listener `{table}`: {log}"));
    let text = line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
    text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
}

async fn health(at: SocketAddr, service: &str) -> Result<i32, tonic::Code> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{at}")).expect("an address");
    let mut client = HealthClient::new(endpoint.connect().await.expect("connect"));
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.map(|answer| answer.into_inner().status).map_err(|status| status.code())
}

fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    answer
}

/// The value of one sample.
fn sample(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn grpc_health_over_tcp_says_live_and_ready_and_nothing_else_is_there() {
    let agent = agent();
    let at = address(&agent, "health");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for service in ["live", "ready", ""] {
        assert_eq!(runtime.block_on(health(at, service)), Ok(1), "{service}");
    }
    assert_eq!(runtime.block_on(health(at, "nonsense")), Err(tonic::Code::NotFound));
}

#[test]
fn metrics_count_what_happened_and_name_nobody() {
    let agent = agent();
    let at = address(&agent, "metrics");
    let mut holder = Holder::start(&agent, own_uid());
    holder.x509();
    holder.jwt("someone").unwrap();
    let page = get(at, "/metrics");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("text/plain; version=0.0.4"), "{page}");
    for (name, value) in [
        ("mayfly_credentials_issued_total{kind=\"x509\"}", 1.0),
        ("mayfly_credentials_issued_total{kind=\"jwt\"}", 1.0),
        ("mayfly_leases", 2.0),
        ("mayfly_workloads", 1.0),
        ("mayfly_streams", 1.0),
        ("mayfly_ready", 1.0),
        ("mayfly_connections{socket=\"public\"}", 1.0),
    ] {
        assert_eq!(sample(&page, name), Some(value), "{name}\n{page}");
    }
    holder.kill();
    let revoked = "mayfly_credentials_revoked_total{kind=\"x509\",reason=\"exited\"}";
    until("the revocation is counted", || {
        let page = get(at, "/metrics");
        let whole = "mayfly_revocation_seconds_count{stage=\"seen_to_published\"}";
        (sample(&page, revoked) == Some(1.0) && sample(&page, whole) >= Some(1.0)).then_some(())
    });
    let page = get(at, "/metrics");
    assert!(!page.contains("spiffe://") && !page.contains("example.org"), "{page}");
    assert!(get(at, "/health").starts_with("HTTP/1.1 404"), "nothing else is served there");
    // Buckets rise.
    let below: Vec<f64> = page
        .lines()
        .filter(|line| line.contains("_bucket{stage=\"seen_to_published\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(below.len() == 13 && below.is_sorted(), "{below:?}");
}

#[test]
fn the_public_socket_has_the_names_that_were_asked_for() {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    // The plan's settings come after the table of sockets, so the key is put in by hand.
    let text = std::fs::read_to_string(agent.config()).unwrap();
    let text = text.replace("[sockets]\n", "[sockets]\naliases = [\"spire-agent.sock\"]\n");
    std::fs::write(agent.config(), text).unwrap();
    agent.launch();
    let alias = agent.public().with_file_name("spire-agent.sock");
    assert_eq!(std::fs::read_link(&alias).unwrap(), std::path::Path::new("api.sock"));
    let endpoint = format!("unix://{}", alias.display());
    let (code, out, err) = agent.mayfly(&["whoami", "--socket", &endpoint]);
    assert_eq!(code, Some(0), "{out}{err}");
}

/// A variable that an earlier service left in the environment.
#[test]
fn a_service_manager_that_is_gone_keeps_nobody_from_serving() {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    agent.plan().environment.push(("NOTIFY_SOCKET".to_owned(), "/nonexistent/notify".to_owned()));
    agent.spawn();
    let (code, out, err) = agent.mayfly(&["healthcheck", "--wait=20s"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(agent.log().contains("cannot be reached"), "{}", agent.log());
}
