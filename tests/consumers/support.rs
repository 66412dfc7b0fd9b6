//! What these tests share: `mayfly sync` as a process, TLS clients with identities of all sorts, a steady load.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mayfly::verify::{Authorizer, Feed, Identity, RevocationPolicy, Source, State, Trust};
use mayfly_harness::{Agent, Entry, PATIENCE, Plan, Svid, files, require_root};
use rustls::{ClientConnection, StreamOwned};

/// Certificates that rotate every five seconds.
pub(crate) const SHORT: &str = "[x509]\nttl = \"10s\"\n[jwt]\nttl = \"10s\"\n\
    [attest]\nper_second = 100000\nburst = 100000\nin_flight = 64\n";

/// The uid of the clients that are killed.
pub(crate) const VICTIM: u32 = 20_801;

/// An agent with short-lived certificates that knows root, the victim, and more.
pub(crate) fn agent(more: &[Entry]) -> Agent {
    require_root();
    let mut entries = vec![Entry::for_uid(0), Entry::for_uid(VICTIM)];
    entries.extend_from_slice(more);
    Plan::with_entries(&entries).settings(SHORT).start()
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running `mayfly sync`. Dropping it kills it and what it supervises.
pub(crate) struct Sync {
    child: Child,
    lines: Receiver<String>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Sync {
    /// Runs it with this configuration, as that uid, in front of a program.
    pub(crate) fn start(agent: &Agent, config: &str, uid: u32, program: &[&str]) -> Self {
        let mut command = Self::command(agent, config, uid);
        if !program.is_empty() {
            command.arg("--").args(program);
        }
        Self::spawn(agent, command, uid)
    }

    /// The command for this configuration.
    pub(crate) fn command(agent: &Agent, config: &str, uid: u32) -> Command {
        let file = write_config(agent, config, uid);
        let mut command = Command::new(files::install(agent.dir(), &files::built("mayfly")));
        command.args(["sync", "--config"]).arg(file);
        command
    }

    /// Runs any command as that uid, with the agent's socket in its environment.
    pub(crate) fn spawn(agent: &Agent, mut command: Command, uid: u32) -> Self {
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()));
        command.uid(uid).gid(uid).current_dir("/").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let output = BufReader::new(child.stderr.take().unwrap());
        let copy = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                copy.lock().unwrap().push(line.clone());
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line on standard error that holds this text.
    pub(crate) fn expect(&self, text: &str) -> String {
        let end = mayfly_harness::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(mayfly_harness::now())) {
            if line.contains(text) {
                return line;
            }
        }
        panic!("no `{text}`; it said {:#?}", self.seen.lock().unwrap());
    }

    /// How many lines with this text there were so far.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            // SIGTERM goes on to the program, whose end is our end.
            self.signal(nix::sys::signal::Signal::SIGTERM);
            let end = mayfly_harness::now() + Duration::from_secs(5);
            while self.child.try_wait().unwrap().is_none() {
                if mayfly_harness::now() > end {
                    self.child.kill().unwrap();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn write_config(agent: &Agent, config: &str, uid: u32) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let file = agent.dir().join(format!("sync-{}.toml", COUNT.fetch_add(1, Ordering::Relaxed)));
    files::replace(&file, config.as_bytes(), 0o644);
    nix::unistd::chown(&file, Some(uid.into()), Some(uid.into())).unwrap();
    file
}

/// A directory of a server's own below the agent's.
pub(crate) fn place(agent: &Agent, name: &str, uid: u32) -> PathBuf {
    let path = agent.dir().join(name);
    std::fs::create_dir(&path).unwrap();
    nix::unistd::chown(&path, Some(uid.into()), Some(uid.into())).unwrap();
    path
}

/// Somebody else's key and certificate, in this process.
pub(crate) fn thief(svid: &Svid) -> Source {
    let mut trust = Trust::new();
    trust.add_authority(&"example.org".parse().unwrap(), &svid.bundle).unwrap();
    let key = mayfly::secret::KeyBytes::new(svid.key.clone());
    let identity = Identity::new(&[&svid.leaf.der], &key).unwrap();
    let source = Source::new(RevocationPolicy::permissive());
    source.publish(State { identity: Some(identity), trust: Arc::new(trust) });
    source
}

/// This process's own identity, kept current.
pub(crate) struct Own {
    pub(crate) source: Source,
    _runtime: tokio::runtime::Runtime,
}

impl Own {
    pub(crate) fn start(agent: &Agent) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let source = Source::new(RevocationPolicy::strict());
        let agent = mayfly::verify::Agent::at(agent.public());
        runtime.spawn(Feed::new(source.clone(), agent).run());
        runtime.block_on(source.ready());
        Self { source, _runtime: runtime }
    }
}

/// An HTTPS connection.
pub(crate) struct Https(StreamOwned<ClientConnection, TcpStream>);

impl Https {
    pub(crate) fn open(source: &Source, port: u16) -> Result<Self, String> {
        let fault = |what: &str, why: &dyn std::fmt::Display| format!("{what}: {why}");
        let ours = Authorizer::member_of("example.org".parse().unwrap());
        let config = source.client_config(ours).map_err(|why| fault("config", &why))?;
        let name = "server.invalid".try_into().unwrap();
        let tls = ClientConnection::new(config, name).map_err(|why| fault("tls", &why))?;
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|why| fault("connect", &why))?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(Self(StreamOwned::new(tls, stream)))
    }

    /// One request: the status, or why there was none.
    pub(crate) fn get(&mut self) -> Result<u16, String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").map_err(|why| format!("write: {why}"))?;
        let mut reader = BufReader::new(&mut self.0);
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            let read = reader.read_line(&mut line).map_err(|why| format!("read: {why}"))?;
            let line = line.trim_end().to_ascii_lowercase();
            match (read, status) {
                (0, _) => return Err("read: nothing".to_owned()),
                (_, None) => status = line.split(' ').nth(1).and_then(|word| word.parse().ok()),
                (_, Some(status)) if line.is_empty() => {
                    reader.read_exact(&mut vec![0; length]).map_err(|why| format!("body: {why}"))?;
                    return Ok(status);
                }
                _ => {
                    if let Some(text) = line.strip_prefix("content-length: ") {
                        length = text.parse().unwrap();
                    }
                }
            }
        }
    }
}

/// One HTTPS request on a connection of its own.
pub(crate) fn get(source: &Source, port: u16) -> Result<u16, String> {
    Https::open(source, port)?.get()
}

/// Requests without a pause from several threads until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    pub(crate) fn start(
        threads: usize,
        request: impl Fn() -> Result<(), String> + Send + Clone + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let each = |_| {
            let (stop, request) = (Arc::clone(&stop), request.clone());
            std::thread::spawn(move || {
                let (mut done, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match request() {
                        Ok(()) => done += 1,
                        Err(why) => failed.push(why),
                    }
                }
                (done, failed)
            })
        };
        Self { threads: (0..threads).map(each).collect(), stop }
    }

    /// How many succeeded, and what became of the others.
    pub(crate) fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let ends = self.threads.into_iter().map(|thread| thread.join().unwrap());
        ends.fold((0, Vec::new()), |(done, mut failed), (more, others)| {
            failed.extend(others);
            (done + more, failed)
        })
    }
}

/// Tries until it is refused for good, and says how long that took from `since`. Once is not enough: after a reload
/// the old worker may still accept beside the new one.
pub(crate) fn until_refused(since: Instant, mut refused: impl FnMut() -> bool) -> Duration {
    let (mut first, mut in_a_row) = (None, 0);
    while in_a_row < 20 {
        if refused() {
            first.get_or_insert_with(|| since.elapsed());
            in_a_row += 1;
        } else {
            (first, in_a_row) = (None, 0);
        }
        assert!(since.elapsed() < PATIENCE, "never refused");
        std::thread::sleep(Duration::from_millis(2));
    }
    first.unwrap()
}

/// A file's text, once it is there.
pub(crate) fn wait_for_file(path: &Path) -> String {
    mayfly_harness::until(&format!("{}", path.display()), || std::fs::read_to_string(path).ok())
}

/// DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    mayfly::pem::encode(label, der).to_string()
}
