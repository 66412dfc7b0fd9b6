//! Black-box tests of the HTTP/2 server, with real clients. Those that flood it are in `serve_flood_tests`.

use super::super::testkit::{
    Door, Raw, Site, eventually, frame, greeting, in_own_process, python, request, run_python,
};
use super::super::wire::budget::Rate;
use super::*;
use crate::api::listener::ConnectionLimits;

fn quick() -> ServeLimits {
    ServeLimits { greeting: Duration::from_millis(300), ..ServeLimits::default() }
}

pub(super) fn patient() -> ServeLimits {
    ServeLimits { greeting: Duration::from_secs(60), ..ServeLimits::default() }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

pub(super) fn asks(client: &mut Raw, path: &str) {
    client.send(&[greeting(), request(1, path)].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_a_socket_path_as_authority_is_answered_and_knows_its_peer() {
    let site = Site::start(quick());
    let mut client = site.client();
    let answer = blocking(move || {
        asks(&mut client, "/ok");
        client.expect(1)
    });
    let (flags, stream, _) = answer.await.unwrap();
    assert_eq!((flags & 1, stream), (1, 1));
    let peers = site.peers.lock().unwrap();
    assert_eq!(peers[0].process().pid(), std::process::id());
    assert_eq!(peers[0].process().uid(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_writes_on_its_parents_connection_ends_it() {
    let site = Site::start(patient());
    let said = run_python(
        &site.door.path,
        20_001,
        r#"
s = connect(); s.sendall(GREETING + req(1, b"/ok")); until(s, 1)
t = threading.Thread(target=lambda: s.sendall(PING)); t.start(); t.join(); until(s, 6); say("thread answered")
child = os.fork()
if child == 0:
    s.sendall(PING); os._exit(0)
os.waitpid(child, 0)
try:
    until(s, 6); say("child answered")
except (EOFError, ConnectionError): say("cut", child)
"#,
    )
    .await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "thread answered");
    let child: u32 = lines[1].strip_prefix("cut ").unwrap().parse().unwrap();
    let ends = site.ends(1).await;
    let Some(Cut::WriterMismatch { writer: Some(writer) }) = ends[0] else { panic!("{ends:?}") };
    assert_eq!((writer.pid, writer.uid), (child, 20_001));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_passed_to_another_uid_is_cut_at_its_first_byte() {
    let site = Site::start(patient());
    let said = run_python(
        &site.door.path,
        0,
        r#"
a, b = socket.socketpair()
receiver = os.fork()
if receiver == 0:
    os.setgid(20003); os.setuid(20003)
    _, fds, _, _ = socket.recv_fds(b, 1, 1)
    os.write(fds[0], PING); os._exit(0)
giver = os.fork()
if giver == 0:
    os.setgid(20002); os.setuid(20002)
    s = connect(); s.sendall(GREETING + req(1, b"/hold")); until(s, 0)
    socket.send_fds(a, [b"x"], [s.fileno()])
    try:
        until(s, 6); say("served")
    except (EOFError, ConnectionError): say("cut")
    os._exit(0)
os.waitpid(giver, 0)
"#,
    )
    .await;
    assert_eq!(said, "cut\n");
    let ends = site.ends(1).await;
    assert!(
        matches!(ends[0], Some(Cut::WriterMismatch { writer: Some(writer) }) if writer.uid == 20_003),
        "{ends:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_ask_in_time_is_cut() {
    let site = Site::start(quick());
    let half = greeting()[..10].to_vec();
    for said in [Vec::new(), half, greeting()] {
        let mut client = site.client();
        client.send(&said);
        blocking(move || client.drain()).await;
    }
    assert_eq!(site.ends(3).await, [Some(Cut::Greeting); 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_is_sent_away_in_good_order_and_a_waiting_one_is_kept() {
    let site = Site::start(ServeLimits { idle: Duration::from_millis(200), ..quick() });
    let (mut idle, mut waiting) = (site.client(), site.client());
    asks(&mut idle, "/ok");
    asks(&mut waiting, "/hold");
    let goaway = blocking(move || {
        let goaway = idle.expect(7);
        answer_ping(&mut idle);
        idle.drain();
        goaway
    });
    let (_, _, payload) = goaway.await.unwrap();
    assert_eq!(payload[4..8], [0; 4], "no error");
    assert_eq!(site.ends(1).await, [None]);
    // Three idle times later the other is still there.
    tokio::time::sleep(Duration::from_millis(600)).await;
    waiting.send(&frame(6, 0, 0, b"12345678"));
    assert!(!blocking(move || waiting.kinds_until(6)).await.contains(&7), "told to go while it waited");
}

/// The ping that goes with the first GOAWAY, and stands for everything under way.
fn answer_ping(client: &mut Raw) {
    let (_, _, payload) = client.expect(6).unwrap();
    client.send(&frame(6, 1, 0, &payload));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_that_ignores_goaway_is_cut() {
    let limits =
        ServeLimits { idle: Duration::from_millis(100), grace: Duration::from_millis(100), ..quick() };
    let site = Site::start(limits);
    let mut client = site.client();
    asks(&mut client, "/ok");
    blocking(move || client.drain()).await;
    assert_eq!(site.ends(1).await, [Some(Cut::Idle)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_not_one_more_byte_arrives() {
    let site = Site::start(patient());
    let mut client = site.client();
    let settings = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    let window = frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    client.send(&[&greeting()[..24], &settings, &window, &request(1, "/flood")].concat());
    let mut client = blocking(move || client.expect(0).map(|_| client)).await.unwrap();
    let peer = Arc::clone(&site.peers.lock().unwrap()[0]);
    let (queued_then, rest) = blocking(move || {
        assert!(peer.cut(Cut::Exited));
        assert!(!peer.cut(Cut::Operator), "the first reason stays");
        let queued = rustix::io::ioctl_fionread(&client.0).unwrap();
        (queued, client.drain())
    })
    .await;
    assert_eq!(rest.len() as u64, queued_then, "what was in the socket when cut returned, and nothing else");
    assert_eq!(site.ends(1).await, [Some(Cut::Exited)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_before_the_connection_is_served_still_holds() {
    let (door, mut accepted) = Door::open(ConnectionLimits::default());
    let mut client = Raw(std::os::unix::net::UnixStream::connect(&door.path).unwrap());
    asks(&mut client, "/ok");
    let next = accepted.recv().await.unwrap();
    next.peer().cut(Cut::Exited);
    let mut guarded = next.guard(&GuardLimits::default()).unwrap();
    let read = tokio::io::AsyncReadExt::read(&mut guarded, &mut [0; 64]).await;
    let write = tokio::io::AsyncWriteExt::write(&mut guarded, b"secret").await;
    assert!(read.is_err() && write.is_err());
    assert_eq!(blocking(move || client.drain()).await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_idle_clients_go_and_cuts_the_rest_after_the_grace() {
    let mut site = Site::start(ServeLimits { grace: Duration::from_millis(300), ..patient() });
    let (mut idle, mut waiting) = (site.client(), site.client());
    asks(&mut idle, "/ok");
    asks(&mut waiting, "/hold");
    let (mut idle, mut waiting) = blocking(move || {
        assert!(idle.expect(1).is_some() && waiting.expect(0).is_some());
        (idle, waiting)
    })
    .await;
    let (drained, (first, last)) = tokio::join!(
        site.drain.drain(Duration::from_secs(5)),
        blocking(move || {
            let first = idle.expect(7).is_some();
            answer_ping(&mut idle);
            idle.drain();
            let last = waiting.expect(7).is_some();
            waiting.drain();
            (first, last)
        })
    );
    assert!(first && last, "both were told");
    assert!(drained);
    assert_eq!(site.server.join_next().await.unwrap().unwrap(), 1);
    assert_eq!(
        *site.ends.lock().unwrap().iter().map(|(_, cut)| *cut).collect::<Vec<_>>(),
        [None, Some(Cut::Drained)]
    );
    assert_eq!(site.door.accept.open(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_message_never_comes_is_answered_all_the_same() {
    let site = Site::start_with(
        ServeLimits { answer: Duration::from_millis(100), ..patient() },
        Door::open(ConnectionLimits::default()),
    );
    let mut client = site.client();
    let mut open = request(1, "/never");
    open[4] = 0x4;
    client.send(&[greeting(), open].concat());
    let (flags, ..) = blocking(move || client.expect(1)).await.unwrap();
    assert_eq!(flags & 1, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_descriptor_is_refused_by_the_kernel() {
    let site = Site::start(patient());
    let said = run_python(
        &site.door.path,
        20_004,
        r#"
t, r = bomb(3); s = connect()
try: send_fd(s, GREETING, t.fileno()); say("sent")
except PermissionError: say("refused")
"#,
    )
    .await;
    assert_eq!(said, "refused\n");
}

/// Before Linux 6.16 the descriptor does arrive; then neither reading it nor closing a connection on which it
/// is still queued may happen where anybody waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_pass_rights_a_linger_bomb_delays_nobody() {
    const LINGER_SECONDS: u64 = 5;
    let mut features = crate::api::testkit::host().features().clone();
    features.pass_rights_off = false;
    let (door, mut accepted) = Door::open_with(ConnectionLimits::default(), &features);
    let body = format!(
        r#"
kept = []
for nth in range(4):
    t, r = bomb({LINGER_SECONDS}); s = connect(); send_fd(s, GREETING, t.fileno())
    t.close(); kept.append((s, r))
say("armed"); sys.stdin.read()
"#
    );
    let mut attack = python(&door.path, 20_005, &body).spawn().unwrap();
    let mut said = std::io::BufReader::new(attack.stdout.take().unwrap());
    blocking(move || std::io::BufRead::read_line(&mut said, &mut String::new()).unwrap()).await;
    let mut bombs = Vec::new();
    for _ in 0..4 {
        bombs.push(accepted.recv().await.unwrap());
    }
    let begun = Instant::now();
    // One read and cut, one dropped unread, two dropped before they were served.
    let mut read = bombs.pop().unwrap().guard(&GuardLimits::default()).unwrap();
    assert!(tokio::io::AsyncReadExt::read(&mut read, &mut [0; 64]).await.unwrap() > 0);
    let unread = bombs.pop().unwrap().guard(&GuardLimits::default()).unwrap();
    read.peer().cut(Cut::Exited);
    drop((read, unread, bombs));
    assert!(begun.elapsed() < Duration::from_secs(LINGER_SECONDS), "nobody waited for a bomb's time");
    attack.kill().unwrap();
    attack.wait().unwrap();
}

/// The health service behind the guard, for clients that are not ours.
fn healthy() -> (Door, drain::Drain, JoinSet<usize>) {
    let (door, accepted) = Door::open(ConnectionLimits::default());
    let (drain, watch) = drain::channel();
    let (_, health) = tonic_health::server::health_reporter();
    let routes = tonic::service::Routes::new(health).prepare();
    let mut server = JoinSet::new();
    server.spawn(serve(accepted, routes, patient(), watch, Arc::new(|_: &Arc<Peer>, _| ())));
    (door, drain, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tonic_client_is_served() {
    let (door, _drain, _server) = healthy();
    let connect = move |_| {
        let path = door.path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await.unwrap();
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
    let answer = client.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status, 1, "serving");
}

/// What a connection does before it falls silent, in Python.
const DIALOGUES: [(&str, &str); 4] = [
    ("silent", "pass"),
    ("greeted", "s.sendall(GREETING); until(s, 4)"),
    ("one answer", "s.sendall(GREETING + req(1, b'/ok')); until(s, 1)"),
    ("one open stream", "s.sendall(GREETING + req(1, b'/hold')); until(s, 0)"),
];

/// `h2` alone allocates 28 KiB of buffers for each connection before it does anything, of which four pages
/// become resident; ours is about 2 KiB of the rest. Descriptors are counted exactly: a connection at rest holds its
/// socket and the pidfd of its peer, whatever it did before.
#[test]
fn idle_connections_cost_little() {
    for (what, _) in DIALOGUES {
        in_own_process("api::serve::tests::measure_idle_connections", 10_000, what);
    }
}

#[tokio::test]
#[ignore = "run in a process of its own by idle_connections_cost_little"]
async fn measure_idle_connections() {
    const COUNT: usize = 2_000;
    let limits = ConnectionLimits {
        per_uid: 4_096,
        per_cgroup: 4_096,
        rate: Rate { per_second: 9_000, burst: 9_000 },
        ..ConnectionLimits::default()
    };
    let site = Site::start_with(patient(), Door::open(limits));
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let what = std::env::var(super::super::testkit::VARIANT).unwrap();
    let (_, dialogue) = DIALOGUES.into_iter().find(|(name, _)| *name == what).unwrap();
    run_python(&site.door.path, 0, "s = connect(); s.sendall(GREETING + req(1, b'/ok')); until(s, 1)").await;
    eventually(|| site.door.accept.open() == 0).await;
    let body = format!(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (9000, 9000))\nkept = []\nsay('up')\n\
         for _ in range({COUNT}):\n    s = connect(); {dialogue}; kept.append(s)\nsay('all'); sys.stdin.read()"
    );
    let mut clients = python(&site.door.path, 0, &body).spawn().unwrap();
    let mut said = std::io::BufReader::new(clients.stdout.take().unwrap());
    // The pipes to the clients are open from here on, and stay open.
    let (memory, files) = (resident(), descriptors());
    let _said = blocking(move || {
        for _ in 0..2 {
            std::io::BufRead::read_line(&mut said, &mut String::new()).unwrap();
        }
        said
    })
    .await;
    eventually(|| site.door.accept.open() >= COUNT).await;
    eventually(|| descriptors() <= files + 2 * COUNT).await;
    assert_eq!(descriptors(), files + 2 * COUNT, "{what}: a socket and a pidfd each");
    let each = (resident() - memory) / COUNT;
    assert!(each <= 24, "{what}: {each} KiB each");
    clients.kill().unwrap();
    clients.wait().unwrap();
    // Gone with its client, streams and all.
    eventually(|| site.door.accept.open() == 0).await;
}
