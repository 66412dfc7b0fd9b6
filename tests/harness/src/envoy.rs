//! Real Envoys (`tests/run peers` installs the program), and who would abuse what they hold.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Agent, PATIENCE, files, peers, until};

/// The program, from the peers beside the running test.
///
/// # Panics
/// When it is not there.
pub fn program() -> PathBuf {
    peers::package_file("envoy/_bin/envoy")
}

/// A port that was free just now.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// Where one Envoy listens and connects.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// mTLS from peers.
    pub ingress: u16,
    /// Plain HTTP from its program.
    pub egress: u16,
    /// Its admin interface.
    pub admin: u16,
}

impl Ports {
    /// Three free ones.
    pub fn free() -> Self {
        Self { ingress: free_port(), egress: free_port(), admin: free_port() }
    }
}

/// The bootstrap of `deploy/examples/envoy` with other addresses. Panics when a place to put one is missing.
#[derive(Clone, Debug)]
pub struct Bootstrap(String);

impl Bootstrap {
    /// For that agent; `app` is the program behind it, `peer` another Envoy's ingress.
    ///
    /// # Panics
    /// When the example cannot be read.
    pub fn new(agent: &Agent, ports: Ports, app: u16, peer: u16) -> Self {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples/envoy/envoy.yaml");
        let text = std::fs::read_to_string(&example).expect("the example");
        Self(text)
            .with("port_value: 9901", &format!("port_value: {}", ports.admin))
            .with("port_value: 8443", &format!("port_value: {}", ports.ingress))
            .with("port_value: 8001", &format!("port_value: {}", ports.egress))
            .with("port_value: 8080", &format!("port_value: {app}"))
            .with("port_value: 9443", &format!("port_value: {peer}"))
            .with("/run/mayfly/public/api.sock", agent.public().to_str().expect("UTF-8"))
    }

    /// Replaces a piece of the text.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn with(self, from: &str, to: &str) -> Self {
        assert!(self.0.contains(from), "the example has no `{from}`");
        Self(self.0.replace(from, to))
    }

    /// For the default validator.
    #[must_use]
    pub fn plain_validator(self) -> Self {
        self.with(
            "# metadata: {disable_spiffe_cert_validation: true}",
            "metadata: {disable_spiffe_cert_validation: true} #",
        )
    }

    /// Incremental.
    #[must_use]
    pub fn delta(self) -> Self {
        self.with("api_type: GRPC", "api_type: DELTA_GRPC")
    }

    /// Every so many requests another connection to the peer, and a handshake with it.
    #[must_use]
    pub fn requests_per_connection(self, count: u32) -> Self {
        let to = format!("{{max_requests_per_connection: {count}}}\n    load_assignment");
        self.with("{max_connection_duration: 300s}\n    load_assignment", &to)
    }
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    ports: Ports,
    log: PathBuf,
}

impl Envoy {
    /// Runs it as that uid and waits until it answers on its admin port; it may still wait for secrets.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(agent: &Agent, uid: u32, ports: Ports, bootstrap: &Bootstrap) -> Self {
        // A copy, though it has a hundred megabytes: a link would change the file of every Envoy that runs beside.
        let binary = files::install(agent.dir(), &program());
        let config = agent.dir().join(format!("envoy-{uid}-{}.yaml", ports.admin));
        files::replace(&config, bootstrap.0.as_bytes(), 0o644);
        let log = config.with_extension("log");
        let output = std::fs::File::create(&log).expect("its log");
        let mut command = Command::new(&binary);
        command.arg("-c").arg(&config);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        command.uid(uid).gid(uid).current_dir("/").stdin(Stdio::null());
        command.stdout(output.try_clone().expect("dup")).stderr(output);
        let child = command.spawn().unwrap_or_else(|why| panic!("start {}: {why}", binary.display()));
        let envoy = Self { child, ports, log };
        until("Envoy's admin port", || get(ports.admin, "/server_info").ok().map(drop));
        envoy
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// One of its counters; 0 while it does not exist.
    pub fn stat(&self, name: &str) -> u64 {
        let text = get(self.ports.admin, "/stats").map(|(_, body)| body).unwrap_or_default();
        let row =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned));
        row.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// Waits until its program's requests are answered by the peer's.
    pub fn reaches_its_peer(&self) {
        until("a request gets through", || matches!(get(self.ports.egress, "/"), Ok((200, _))).then_some(()));
    }

    /// Waits until they are not.
    pub fn reaches_nobody(&self) {
        until("requests stop getting through", || {
            (!matches!(get(self.ports.egress, "/"), Ok((200, _)))).then_some(())
        });
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGKILL without waiting for anything.
    pub fn kill_unreaped(&mut self) {
        let _ = self.child.kill();
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of Envoy\n{}\n---", self.log());
        }
    }
}

/// A plain HTTP request on a connection of its own: status and body.
///
/// # Errors
/// No connection, or no HTTP answer.
pub fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    request(&mut stream, path)
}

/// The same over any stream.
///
/// # Errors
/// The stream's, or no HTTP answer.
pub fn request(
    stream: &mut (impl std::io::Read + std::io::Write),
    path: &str,
) -> std::io::Result<(u16, String)> {
    // In one piece: the second of two would wait for the acknowledgement of the first.
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nhost: mayfly.test\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut text = Vec::new();
    // Some end without a farewell; what came, came.
    let outcome = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let status =
        text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    match (status, outcome) {
        (Some(status), _) => {
            Ok((status, text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
        }
        (None, Err(why)) => Err(why),
        (None, Ok(_)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A program behind an Envoy: answers every request with what Envoy says of the caller.
///
/// # Panics
/// When it has no port.
pub fn app() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

fn answer(stream: TcpStream) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut caller = String::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("x-forwarded-client-cert:") {
            value.trim().clone_into(&mut caller);
        }
        if line.is_empty() {
            let length = caller.len();
            let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{caller}");
            if writer.write_all(reply.as_bytes()).is_err() {
                return;
            }
            caller.clear();
        }
    }
}

/// Every PEM block of one kind in a process's writable memory, DER: what an attacker who can read it would take.
///
/// # Panics
/// When the memory cannot be read: it takes root.
pub fn memory_blocks(pid: u32, label: &str) -> Vec<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("memory");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let Some((Ok(from), Ok(to))) =
            range.map(|(from, to)| (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)))
        else {
            continue;
        };
        let Ok(length) = usize::try_from(to - from) else { continue };
        let mut bytes = vec![0; length.min(256 << 20)];
        // Parts that are gone, or never were there, are skipped.
        let Ok(got) = memory.read_at(&mut bytes, from) else { continue };
        collect(&bytes[..got], begin.as_bytes(), end.as_bytes(), &mut found);
    }
    found
}

fn collect(bytes: &[u8], begin: &[u8], end: &[u8], found: &mut Vec<Vec<u8>>) {
    let mut at = 0;
    while let Some(start) = position(&bytes[at..], begin).map(|n| at + n) {
        at = start + begin.len();
        let Some(length) = position(&bytes[at..bytes.len().min(at + 8192)], end) else { continue };
        let block = &bytes[start..at + length + end.len()];
        if let Ok((block, _)) = x509_parser::pem::Pem::read(std::io::Cursor::new([block, b"\n"].concat()))
            && !found.contains(&block.contents)
        {
            found.push(block.contents);
        }
        at += length;
    }
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == first).map(|n| n + from) {
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// How long a load waits between requests of one thread.
pub const PAUSE: Duration = Duration::from_millis(5);
