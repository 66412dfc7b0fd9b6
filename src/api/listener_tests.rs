//! Black-box tests of the accept thread, with real sockets and processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdin};
use std::time::Duration;

use super::super::serve::ServeLimits;
use super::super::testkit::{
    Door, Site, eventually, greeting, host, in_own_process, open_dir, python, request, run_python,
};
use super::*;
use crate::clock::SystemClock;

/// A Python client that keeps what it has opened until its standard input closes.
struct Held(Child, Option<ChildStdin>);

impl Held {
    /// Starts it and waits for its first line.
    fn start(path: &std::path::Path, uid: u32, body: &str) -> (Self, String) {
        let mut child = python(path, uid, &format!("{body}\nsys.stdin.read()")).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let stdin = child.stdin.take();
        (Self(child, stdin), line)
    }

    fn end(mut self) {
        drop(self.1.take());
        self.0.wait().unwrap();
    }
}

/// Opens so many connections; says how many were not closed at once.
fn opens(count: usize) -> String {
    format!(
        r#"
kept = [connect() for _ in range({count})]; time.sleep(0.3); alive = 0
for s in kept:
    s.setblocking(False)
    try: alive += s.recv(1) != b""
    except BlockingIOError: alive += 1
    except ConnectionError: pass
say(alive)
"#
    )
}

fn limits(total: usize, per_uid: usize, per_cgroup: usize, reserved_for_root: usize) -> ConnectionLimits {
    ConnectionLimits { total, per_uid, per_cgroup, reserved_for_root, ..ConnectionLimits::default() }
}

fn reasons(door: &Door) -> Vec<(Refusal, u64)> {
    door.accept.refusals().counts().filter(|(_, count)| *count > 0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_uid_is_held_to_its_limit_and_another_gets_in() {
    let (door, mut accepted) = Door::open(limits(100, 3, 100, 0));
    let (flood, alive) = Held::start(&door.path, 20_010, &opens(10));
    assert_eq!(alive, "3\n");
    assert_eq!(reasons(&door), [(Refusal::Uid, 7)]);
    let refused = door.refused.lock().unwrap()[0];
    assert_eq!((refused.reason, refused.uid), (Refusal::Uid, Some(20_010)));
    assert_eq!(refused.pid, Some(flood.0.id()));
    assert_eq!(run_python(&door.path, 20_011, &opens(1)).await, "1\n");
    // A seat lasts as long as the connection, here in the queue: nobody serves it.
    let mut queued = Vec::new();
    while let Ok(next) = accepted.try_recv() {
        queued.push(next);
    }
    assert_eq!((queued.len(), door.accept.open()), (4, 4));
    assert_eq!(queued[0].peer().process().uid(), 20_010);
    queued.clear();
    assert_eq!(door.accept.open(), 0);
    flood.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_uids_of_one_cgroup_share_its_limit_and_root_keeps_its_reserve() {
    let (door, _accepted) = Door::open(limits(100, 3, 5, 0));
    let mut held = Vec::new();
    let mut alive = 0;
    for uid in 20_020..20_024 {
        let (child, line) = Held::start(&door.path, uid, &opens(2));
        alive += line.trim().parse::<usize>().unwrap();
        held.push(child);
    }
    assert_eq!((alive, reasons(&door)), (5, vec![(Refusal::Cgroup, 3)]));
    held.into_iter().for_each(Held::end);

    let (door, _accepted) = Door::open(limits(6, 9, 9, 2));
    let (flood, line) = Held::start(&door.path, 20_025, &opens(6));
    assert_eq!((line.as_str(), reasons(&door)), ("4\n", vec![(Refusal::Total, 2)]));
    assert_eq!(run_python(&door.path, 0, &opens(2)).await, "2\n");
    flood.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_died_is_not_served() {
    let dir = open_dir();
    let path = dir.path().join("api.sock");
    let bound = Bound::bind(&path, Access::Public, host().features()).unwrap();
    // It dies while it waits in the queue, and is reaped.
    run_python(&path, 20_030, "s = connect(); s.sendall(GREETING)").await;
    let settings = AcceptSettings {
        name: "public",
        limits: ConnectionLimits::default(),
        container_of: None,
        clock: Arc::new(SystemClock),
        readiness: Readiness::default(),
        on_refused: Box::new(|_| ()),
    };
    let (thread, mut accepted) = bound.accept(host(), settings).unwrap();
    eventually(|| thread.refusals().counts().any(|counted| counted == (Refusal::Exited, 1))).await;
    assert!(accepted.try_recv().is_err());
    assert_eq!(thread.open(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_keeps_no_other_uid_out() {
    let site = Site::start(ServeLimits::default());
    let flood = r#"
def go():
    while True:
        try: connect().close()
        except OSError: pass
for _ in range(4): threading.Thread(target=go, daemon=True).start()
say("flooding")
"#;
    let (flood, _) = Held::start(&site.door.path, 20_031, flood);
    for _ in 0..5 {
        let said = run_python(
            &site.door.path,
            20_032,
            "s = connect(); s.sendall(GREETING + req(1, b'/ok')); until(s, 1); say('served')",
        );
        assert_eq!(said.await, "served\n");
    }
    flood.end();
}

#[test]
fn running_out_of_descriptors_pauses_and_recovers() {
    in_own_process("api::listener::tests::out_of_descriptors", 64, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run in a process of its own by running_out_of_descriptors_pauses_and_recovers"]
async fn out_of_descriptors() {
    let site = Site::start(ServeLimits { greeting: Duration::from_secs(60), ..ServeLimits::default() });
    // Started before descriptors are short; each waits for a word on its standard input.
    let waits = |then: &str| format!("say('ready'); sys.stdin.readline()\n{then}");
    let late = waits("s = connect(); s.sendall(GREETING + req(1, b'/ok')); until(s, 1); sys.exit(7)");
    let (mut late, _) = Held::start(&site.door.path, 0, &late);
    let flood = waits("kept = [connect() for _ in range(50)]\nsys.stdin.readline()\nos._exit(0)");
    let (mut flood, _) = Held::start(&site.door.path, 20_040, &flood);
    let mut early = site.client();
    early.send(&[greeting(), request(1, "/hold")].concat());
    assert!(early.expect(0).is_some());

    flood.1.as_mut().unwrap().write_all(b"go\n").unwrap();
    eventually(|| !site.door.readiness.is_ready()).await;
    assert!(site.door.accept.open() >= 5, "some were accepted before");
    late.1.as_mut().unwrap().write_all(b"go\n").unwrap();

    // Paused: what is open lives on, the spare descriptors are there for others, and nothing spins.
    let before = threads_cpu_nanos();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = threads_cpu_nanos() - before;
    assert!(spent < 200_000_000, "{spent} ns of processor time in a second of doing nothing");
    early.send(&super::super::testkit::frame(6, 0, 0, b"12345678"));
    assert!(early.expect(6).is_some());
    assert!(!site.door.readiness.is_ready());
    // The rest of the process can open files (it may take two looks: the spares are tried for now and then).
    eventually(|| (0..10).map(|_| std::fs::File::open("/dev/null")).collect::<Result<Vec<_>, _>>().is_ok())
        .await;
    assert!(late.0.try_wait().unwrap().is_none(), "the late caller waits, unserved");

    flood.1.as_mut().unwrap().write_all(b"go\n").unwrap();
    flood.0.wait().unwrap();
    eventually(|| site.door.readiness.is_ready()).await;
    // It waited in the queue all along, or was closed when it could not be pinned.
    let code = late.0.wait().unwrap().code();
    let unpinned = site
        .door
        .refused
        .lock()
        .unwrap()
        .iter()
        .any(|r| r.reason == Refusal::Descriptors && r.uid == Some(0));
    assert!(code == Some(7) || unpinned, "{code:?}");
    let mut after = site.client();
    after.send(&[greeting(), request(1, "/ok")].concat());
    assert!(after.expect(1).is_some());
}

/// Processor time of the threads of this process, from the kernel's own accounting.
fn threads_cpu_nanos() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn dropping_the_thread_ends_it_and_removes_the_file() {
    let (door, mut accepted) = Door::open(ConnectionLimits::default());
    assert!(door.path.exists());
    let path = door.path.clone();
    let Door { accept, .. } = door;
    drop(accept);
    assert!(!path.exists());
    assert!(accepted.blocking_recv().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_passed_by_a_service_manager_are_found_by_name() {
    let test = "api::listener::tests::passed";
    let binary = std::env::current_exe().unwrap();
    let dir = open_dir();
    let launch = format!(
        r#"
l = socket.socket(socket.AF_UNIX); l.bind(PATH); l.listen(); os.dup2(l.fileno(), 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="public")
os.execv({binary:?}, ["test", "--exact", {test:?}, "--ignored"])
"#
    );
    assert!(run_python(&dir.path().join("a.sock"), 0, &launch).await.contains("1 passed"));
}

#[test]
#[ignore = "run in a process of its own by sockets_passed_by_a_service_manager_are_found_by_name"]
fn passed() {
    let mut passed = crate::manager::Passed::take().unwrap();
    assert_eq!(passed.len(), 1);
    let socket = passed.socket("public").unwrap();
    // Nothing is owned twice.
    assert!(crate::manager::Passed::take().is_err());
    assert!(Bound::from_passed(socket, host().features()).is_ok());
}

mod bind {
    use super::*;

    fn bind(path: &std::path::Path, access: Access) -> Result<Bound, BindError> {
        Bound::bind(path, access, host().features())
    }

    fn mode(path: &std::path::Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn modes_are_exact_and_directories_are_made() {
        let dir = open_dir();
        for (access, socket_mode, dir_mode) in [(Access::Public, 0o777, 0o755), (Access::Admin, 0o660, 0o750)]
        {
            let path = dir.path().join(format!("{access:?}/in/a.sock"));
            let bound = bind(&path, access).unwrap();
            assert!(std::fs::symlink_metadata(&path).unwrap().file_type().is_socket());
            assert_eq!((mode(&path), mode(path.parent().unwrap())), (socket_mode, dir_mode));
            assert_eq!(mode(path.parent().unwrap().parent().unwrap()), 0o755);
            drop(bound);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_directory_that_others_can_write_or_replace_is_refused() {
        let dir = open_dir();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let sticky = dir.path().join("sticky");
        std::fs::create_dir(&sticky).unwrap();
        std::fs::set_permissions(&sticky, std::fs::Permissions::from_mode(0o1777)).unwrap();
        let strangers = dir.path().join("strangers");
        std::fs::create_dir(&strangers).unwrap();
        std::os::unix::fs::chown(&strangers, Some(20_050), None).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        for parent in ["open", "open/below", "sticky", "strangers", "strangers/below", "link"] {
            let path = dir.path().join(parent).join("a.sock");
            assert!(matches!(bind(&path, Access::Public), Err(BindError::Directory { .. })), "{parent}");
            assert!(!path.exists());
        }
        assert!(bind(&dir.path().join("sticky/ours/a.sock"), Access::Public).is_ok());
    }

    #[test]
    fn only_a_stale_socket_of_ours_is_replaced() {
        let dir = open_dir();
        let path = dir.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let bound = bind(&path, Access::Public).unwrap();
        assert!(matches!(bind(&path, Access::Public), Err(BindError::InUse(_))));
        drop(bound);

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, Access::Public), Err(BindError::InTheWay { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(bind(&path, Access::Public), Err(BindError::InTheWay { .. })));
        std::fs::remove_file(&path).unwrap();

        drop(UnixListener::bind(&path).unwrap());
        std::os::unix::fs::chown(&path, Some(20_051), None).unwrap();
        assert!(matches!(bind(&path, Access::Public), Err(BindError::InTheWay { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_has_taken_our_place_is_left_alone() {
        let dir = open_dir();
        let path = dir.path().join("a.sock");
        let bound = bind(&path, Access::Public).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "new").unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn impossible_paths_are_refused_in_plain_words() {
        let long = format!("/tmp/{}", "x".repeat(108));
        for bad in ["a.sock", "/tmp/../tmp/a.sock", "/", &long, "/run/"] {
            let error = bind(std::path::Path::new(bad), Access::Public).unwrap_err();
            assert!(matches!(error, BindError::Path(_)), "{bad}: {error}");
        }
    }

    #[test]
    fn a_passed_listener_is_taken_over_and_nothing_else_is() {
        let dir = open_dir();
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let bound = Bound::from_passed(listener.into(), host().features()).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let settings = AcceptSettings {
            name: "public",
            limits: ConnectionLimits::default(),
            container_of: None,
            clock: Arc::new(SystemClock),
            readiness: Readiness::default(),
            on_refused: Box::new(|_| ()),
        };
        let (thread, mut accepted) = bound.accept(host(), settings).unwrap();
        let next = accepted.blocking_recv().unwrap();
        assert_eq!(next.peer().process().pid(), std::process::id());
        drop((next, thread));
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        assert!(path.exists(), "the file is the service manager's");

        let stream = UnixStream::pair().unwrap().0;
        let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for other in [OwnedFd::from(stream), OwnedFd::from(internet)] {
            assert!(matches!(Bound::from_passed(other, host().features()), Err(BindError::NotListening)));
        }
    }
}
