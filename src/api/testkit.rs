//! A listener and a server in a directory of their own, and clients for them: raw frames from this process,
//! or Python in processes of their own (another uid, a fork, a flood).

use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use mayfly_attestors::{Features, Host};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;

use super::bind::{Access, Bound};
use super::guard::Accepted;
use super::listener::{AcceptSettings, AcceptThread, ConnectionLimits, Refused};
use super::peer::{Cut, Peer};
use super::serve::{ServeLimits, serve};
use crate::clock::SystemClock;
use crate::drain::{self, Drain};
use crate::ready::Readiness;

pub(crate) fn host() -> Arc<Host> {
    Host::probe(Path::new("/proc")).unwrap()
}

/// A directory that other users can enter.
pub(crate) fn open_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("mf").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// A listener without a server.
pub(crate) struct Door {
    pub(crate) path: PathBuf,
    pub(crate) accept: AcceptThread,
    pub(crate) readiness: Readiness,
    pub(crate) refused: Arc<Mutex<Vec<Refused>>>,
    _dir: TempDir,
}

impl Door {
    pub(crate) fn open(limits: ConnectionLimits) -> (Self, mpsc::Receiver<Accepted>) {
        Self::open_with(limits, host().features())
    }

    pub(crate) fn open_with(
        limits: ConnectionLimits,
        features: &Features,
    ) -> (Self, mpsc::Receiver<Accepted>) {
        let (dir, readiness, refused) = (open_dir(), Readiness::default(), Arc::<Mutex<Vec<_>>>::default());
        let path = dir.path().join("public/api.sock");
        let sink = Arc::clone(&refused);
        let settings = AcceptSettings {
            name: "public",
            limits,
            container_of: None,
            clock: Arc::new(SystemClock),
            readiness: readiness.clone(),
            on_refused: Box::new(move |refused| sink.lock().unwrap().push(refused)),
        };
        let bound = Bound::bind(&path, Access::Public, features).unwrap();
        let (accept, receiver) = bound.accept(host(), settings).unwrap();
        (Self { path, accept, readiness, refused, _dir: dir }, receiver)
    }
}

type Ends = Arc<Mutex<Vec<(Arc<Peer>, Option<Cut>)>>>;

/// A listener and a server whose paths answer: `/ok` at once, `/hold` with one message and never an end,
/// `/flood` without a pause, `/never` not.
pub(crate) struct Site {
    pub(crate) door: Door,
    pub(crate) ends: Ends,
    /// Peers as the service saw them in the requests.
    pub(crate) peers: Arc<Mutex<Vec<Arc<Peer>>>>,
    pub(crate) drain: Drain,
    pub(crate) server: JoinSet<usize>,
}

impl Site {
    pub(crate) fn start(limits: ServeLimits) -> Self {
        Self::start_with(limits, Door::open(ConnectionLimits::default()))
    }

    pub(crate) fn start_with(
        limits: ServeLimits,
        (door, accepted): (Door, mpsc::Receiver<Accepted>),
    ) -> Self {
        let (drain, watch) = drain::channel();
        let (ends, peers) = (Ends::default(), Arc::<Mutex<Vec<_>>>::default());
        let (on_end, seen) = (Arc::clone(&ends), Arc::clone(&peers));
        let service = tower::service_fn(move |request: Request<Body>| {
            let peer = request.extensions().get::<Arc<Peer>>().unwrap();
            seen.lock().unwrap().push(Arc::clone(peer));
            let path = request.uri().path().to_owned();
            async move {
                if path == "/never" {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(answer(&path))
            }
        });
        let ended = move |peer: &Arc<Peer>, cut| on_end.lock().unwrap().push((Arc::clone(peer), cut));
        let mut server = JoinSet::new();
        server.spawn(serve(accepted, service, limits, watch, Arc::new(ended)));
        Self { door, ends, peers, drain, server }
    }

    pub(crate) fn client(&self) -> Raw {
        Raw(UnixStream::connect(&self.door.path).unwrap())
    }

    /// Waits until `count` connections have ended, and answers why.
    pub(crate) async fn ends(&self, count: usize) -> Vec<Option<Cut>> {
        eventually(|| self.ends.lock().unwrap().len() >= count).await;
        self.ends.lock().unwrap().iter().map(|(_, cut)| *cut).collect()
    }
}

/// Waits for a condition, long enough for any machine; fails after that.
pub(crate) async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain");
}

fn answer(path: &str) -> Response<Body> {
    match path {
        "/hold" => Response::new(Body::new(Endless { left: 1 })),
        "/flood" => Response::new(Body::new(Endless { left: usize::MAX })),
        _ => Status::new(tonic::Code::Ok, "").into_http(),
    }
}

/// So many messages, then silence.
struct Endless {
    left: usize,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.left == 0 {
            return Poll::Pending;
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 1024])))))
    }
}

/// A client that writes frames by hand. Blocking; reads fail after ten seconds.
pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) fn send(&mut self, octets: &[u8]) {
        self.0.write_all(octets).unwrap();
    }

    /// Reads frames until one is of this kind; answers the kinds of all of them.
    pub(crate) fn kinds_until(&mut self, kind: u8) -> Vec<u8> {
        let mut kinds = Vec::new();
        while kinds.last() != Some(&kind) {
            kinds.push(self.next().expect("the connection ended").0);
        }
        kinds
    }

    /// Reads frames until one is of this kind; answers its flags, stream and payload. `None` at the end.
    pub(crate) fn expect(&mut self, kind: u8) -> Option<(u8, u32, Vec<u8>)> {
        loop {
            let (next, flags, stream, payload) = self.next()?;
            if next == kind {
                return Some((flags, stream, payload));
            }
        }
    }

    fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        self.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    /// Whatever still comes until the end of the connection.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        self.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut all, mut part) = (Vec::new(), [0; 65_536]);
        loop {
            match self.0.read(&mut part) {
                Ok(0) => return all,
                Ok(count) => all.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("still open"),
                Err(_) => return all,
            }
        }
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(crate) fn greeting() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat()
}

/// A whole request: POST, http, the path, an authority that h2 alone would refuse, end of stream.
pub(crate) fn request(stream: u32, path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x05a%2Fb");
    frame(1, 0x5, stream, &block)
}

/// Python's half of the same: `connect()`, `fr(kind, flags, stream, payload)`, `GREETING`, `req(stream, path)`,
/// `until(socket, kind)`, with the socket's path in `PATH`.
pub(crate) const PRELUDE: &str = r#"
import array, os, socket, struct, sys, threading, time
PATH = sys.argv[1]
def connect():
    s = socket.socket(socket.AF_UNIX); s.connect(PATH); s.settimeout(20); return s
def fr(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + fr(4, 0, 0)
def req(stream, path):
    return fr(1, 5, stream, b"\x83\x86\x04" + bytes([len(path)]) + path + b"\x01\x05a%2Fb")
def exactly(s, n):
    b = b""
    while len(b) < n:
        d = s.recv(n - len(b))
        if not d: raise EOFError
        b += d
    return b
def until(s, kind):
    while True:
        h = exactly(s, 9); p = exactly(s, int.from_bytes(h[:3], "big"))
        if h[3] == kind: return p
PING = fr(6, 0, 0, b"12345678")
def bomb(seconds):
    l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048); l.bind(("127.0.0.1", 0)); l.listen(1)
    t = socket.socket(); t.connect(l.getsockname()); r, _ = l.accept(); t.setblocking(False)
    try:
        while True: t.send(b"\0" * 65536)
    except BlockingIOError: pass
    t.setblocking(True); t.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds)); l.close()
    return t, r
def send_fd(s, data, fd):
    return s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
def say(*words):
    print(*words, flush=True)
"#;

/// A Python client, not started yet; standard streams are pipes.
pub(crate) fn python(path: &Path, uid: u32, body: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{PRELUDE}\n{body}")]).arg(path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if uid != 0 {
        command.uid(uid).gid(uid);
    }
    command
}

/// Runs a Python client to its end and answers what it said.
pub(crate) async fn run_python(path: &Path, uid: u32, body: &str) -> String {
    let mut command = python(path, uid, body);
    let done: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Tells a test in a process of its own what to do.
pub(crate) const VARIANT: &str = "MAYFLY_TEST_VARIANT";

/// Runs one ignored test of this binary in a process of its own, with so many descriptors.
pub(crate) fn in_own_process(test: &str, descriptors: usize, variant: &str) -> String {
    let script = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
    let test_binary = std::env::current_exe().unwrap();
    let done = Command::new("sh")
        .args(["-c", &script])
        .arg(test_binary)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(VARIANT, variant)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    said
}
