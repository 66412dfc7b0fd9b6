//! A fake engine on a real socket: what is asked, how often, and what becomes of odd answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use super::engine::Answer;
use super::*;
use crate::backend::News;
use crate::origin::{ContainerId, Hierarchies, View};
use crate::process::Process;
use crate::testing::host;

const A: &str = "4f1e0c7b9a2d3e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7";
const B: &str = "bb9d1e2f3a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5";

fn id(text: &str) -> ContainerId {
    ContainerId::parse(text.as_bytes()).unwrap()
}

/// What the fake does with a question about a container.
#[derive(Clone, Debug)]
enum Mood {
    Answers(&'static str),
    Missing,
    Hangs,
    Breaks,
    TooMuch,
}

struct Fake {
    dir: tempfile::TempDir,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
    /// Connections on which events are sent.
    listeners: Receiver<UnixStream>,
}

impl Fake {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("engine.sock")).unwrap();
        let (mood, asked) = (Arc::new(Mutex::new(Mood::Answers("web"))), Arc::new(AtomicUsize::new(0)));
        let (sender, listeners) = channel();
        let (theirs, count) = (Arc::clone(&mood), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (mood, count, sender) = (Arc::clone(&theirs), Arc::clone(&count), sender.clone());
                std::thread::spawn(move || serve(stream, &mood, &count, &sender));
            }
        });
        Self { dir, mood, asked, listeners }
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn engine(&self) -> Arc<Engine> {
        Engine::new(self.dir.path().join("engine.sock"), Vec::new())
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: UnixStream, mood: &Mutex<Mood>, asked: &AtomicUsize, listeners: &Sender<UnixStream>) {
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while reader.read_line(&mut request).unwrap_or_default() > 2 {}
    let answer = |body: &str| {
        format!("HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    if request.starts_with("GET /_ping ") {
        stream.write_all(answer("OK").as_bytes()).ok();
        return;
    }
    if request.starts_with("GET /v1.41/events") {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok();
        listeners.send(stream).ok();
        return;
    }
    assert!(request.starts_with(&format!("GET /v1.41/containers/{A}/json ")), "{request}");
    asked.fetch_add(1, Ordering::SeqCst);
    let mood = mood.lock().unwrap().clone();
    match mood {
        Mood::Answers(name) => {
            // Long enough that others ask meanwhile.
            std::thread::sleep(Duration::from_millis(20));
            let body = serde_json::json!({
                "Id": A, "Name": format!("/{name}"), "Image": format!("sha256:{B}"),
                "State": { "Running": true, "Pid": 1 }, "Config": { "Image": "web", "Labels": {}, "Env": [] },
            });
            stream.write_all(answer(&body.to_string()).as_bytes()).ok();
        }
        Mood::Missing => {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}").ok();
        }
        Mood::Hangs => {
            stream.read_exact(&mut [0]).ok();
        }
        Mood::Breaks => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{\"Id\":").ok();
        }
        Mood::TooMuch => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok();
            while stream.write_all(&[b' '; 65_536]).is_ok() {}
        }
    }
}

fn name(answer: &Answer) -> String {
    let known = answer.as_ref().unwrap_or_else(|why| panic!("{why:?}"));
    let name = known.found.selectors.iter().find(|one| one.key() == "name");
    name.unwrap().value().to_owned()
}

fn why(answer: &Answer) -> String {
    format!("{:?}", answer.as_ref().unwrap_err())
}

#[tokio::test]
async fn all_who_ask_at_once_share_one_question() {
    let fake = Fake::start();
    let engine = fake.engine();
    let all: Vec<Answer> = futures_util::future::join_all((0..20).map(|_| engine.known(id(A)))).await;
    assert!(all.iter().all(|answer| name(answer) == "web"));
    assert_eq!(fake.asked(), 1);
    // Nothing is remembered while nothing is heard.
    engine.known(id(A)).await.unwrap();
    assert_eq!(fake.asked(), 2);
}

#[tokio::test]
async fn c11_a_question_that_hangs_ends_with_those_who_wait_for_it() {
    let fake = Fake::start();
    let engine = fake.engine();
    fake.be(Mood::Hangs);
    let patience = Duration::from_millis(50);
    let waits = (0..5).map(|_| tokio::time::timeout(patience, engine.known(id(A))));
    assert!(futures_util::future::join_all(waits).await.iter().all(Result::is_err));
    assert_eq!(fake.asked(), 1);
    fake.be(Mood::Answers("back"));
    assert_eq!(name(&engine.known(id(A)).await), "back", "who comes later does not wait for the old one");
}

#[tokio::test]
async fn what_is_no_answer_is_silence_and_a_missing_container_is_told_apart() {
    let fake = Fake::start();
    let engine = fake.engine();
    fake.be(Mood::Breaks);
    assert!(why(&engine.known(id(A)).await).contains("Silent"));
    fake.be(Mood::TooMuch);
    assert!(why(&engine.known(id(A)).await).contains("longer than"));
    let before = fake.asked();
    fake.be(Mood::Missing);
    assert_eq!(why(&engine.known(id(A)).await), "Unknown");
    assert_eq!(fake.asked(), before + 2, "it may have been about to be made");
    let nobody = Engine::new(Path::new("/run/mayfly-no-such.sock").into(), Vec::new());
    assert!(why(&nobody.known(id(A)).await).contains("No such file"));
}

/// What the attestor says of a process that the kernel keeps in container `A` of that runtime.
async fn said(fake: &Fake, runtime: Runtime) -> Result<Found, String> {
    let engine = || Some(fake.engine());
    let docker = Docker { docker: engine(), podman: engine(), deadline: Duration::from_secs(5) };
    let process = Process::of_pid(&host(), std::process::id()).unwrap();
    let (view, hierarchies) =
        (View::new(Some("/".into()), "".into()), Hierarchies::at(Path::new("/sys/fs/cgroup")));
    let container = ContainerRef { runtime, id: id(A), pod: None, qos: None, root_owned: Vec::new() };
    let origin = Origin::Container(container);
    let subject =
        Subject { process: &process, origin: &origin, cgroups: b"", view: &view, hierarchies: &hierarchies };
    docker.attest(&subject).await.map_err(|silent| format!("{silent:?}"))
}

/// The kernel says that the container exists: its engine's "no such container" takes nothing from anybody.
#[tokio::test]
async fn c11_an_engine_that_does_not_know_its_own_container_is_silent() {
    let fake = Fake::start();
    fake.be(Mood::Missing);
    for runtime in [Runtime::Docker, Runtime::Podman] {
        let why = said(&fake, runtime).await.unwrap_err();
        assert!(why.contains("sources_disagree") && why.contains(runtime.as_str()), "{why}");
    }
    // Somebody else's, as far as anybody knows.
    let found = said(&fake, Runtime::Unknown).await.unwrap();
    assert_eq!(
        (found.selectors, found.notes),
        (vec![], vec!["the engine knows no such container".to_owned()])
    );
    let before = fake.asked();
    for runtime in [Runtime::Containerd, Runtime::CriO] {
        assert!(said(&fake, runtime).await.unwrap().selectors.is_empty());
    }
    assert_eq!(fake.asked(), before, "another runtime's containers are no business of the engine's");
}

/// The fake's container has process 1 as its first, which is in another cgroup.
#[tokio::test]
async fn c05_an_engine_that_means_another_container_is_silent() {
    let fake = Fake::start();
    for runtime in [Runtime::Docker, Runtime::Podman, Runtime::Unknown] {
        let why = said(&fake, runtime).await.unwrap_err();
        assert!(why.contains("sources_disagree (the engine's process 1 is not in"), "{why}");
    }
}

#[tokio::test]
async fn answers_stand_while_events_are_heard_and_no_longer() {
    let fake = Fake::start();
    let engine = fake.engine();
    let (news, mut told) = tokio::sync::mpsc::unbounded_channel();
    let tell: Tell = Arc::new(move |one| news.send(one).unwrap());
    let mut listening = Box::pin(listen::listen(Arc::clone(&engine), tell));
    engine.known(id(A)).await.unwrap();
    tokio::select! {
        () = &mut listening => panic!("ends never"),
        first = told.recv() => assert_eq!(first, Some(News::Kind("docker"))),
    }
    let mut events = fake.listeners.recv().unwrap();
    let before = fake.asked();
    for _ in 0..3 {
        assert_eq!(name(&engine.known(id(A)).await), "web");
    }
    assert_eq!(fake.asked(), before + 1, "asked once, remembered from then on");
    fake.be(Mood::Answers("renamed"));
    let event = serde_json::json!({ "Type": "container", "Action": "rename", "Actor": { "ID": A } });
    writeln!(events, "{event}").unwrap();
    tokio::select! {
        () = &mut listening => panic!("ends never"),
        news = told.recv() => assert_eq!(news, Some(News::Container(id(A)))),
    }
    assert_eq!(name(&engine.known(id(A)).await), "renamed");
    fake.be(Mood::Missing);
    assert_eq!(name(&engine.known(id(A)).await), "renamed", "remembered again");
    // The engine ends: what was remembered is not good any more.
    events.shutdown(std::net::Shutdown::Both).unwrap();
    let gone = async {
        while engine.known(id(A)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = &mut listening => panic!("ends never"),
        () = gone => {}
    }
    // And it is listened to again.
    tokio::select! {
        () = &mut listening => panic!("ends never"),
        again = told.recv() => assert_eq!(again, Some(News::Kind("docker"))),
    }
}
