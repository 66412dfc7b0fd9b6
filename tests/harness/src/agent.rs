//! One agent: its directory, configuration, process and life.

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::admin::Admin;
use crate::{PATIENCE, files, until};

/// Trust domain of every test agent unless its plan says otherwise.
pub const TRUST_DOMAIN: &str = "example.org";

/// The agent's lifetime settings in tests that do not care: long enough never to matter.
const CALM: &str = "[x509]\nttl = \"15m\"\n[jwt]\nttl = \"5m\"\n";

/// One registration entry.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Path below the trust domain, with its leading slash.
    pub path: String,
    /// Selectors.
    pub selectors: Vec<String>,
    /// Further lines of TOML.
    pub more: String,
}

impl Entry {
    /// `path` for whoever has all the selectors.
    pub fn new(path: &str, selectors: &[&str]) -> Self {
        let selectors = selectors.iter().map(|s| (*s).to_owned()).collect();
        Self { path: path.to_owned(), selectors, more: String::new() }
    }

    /// `/uid/N` for that uid.
    pub fn for_uid(uid: u32) -> Self {
        Self::new(&format!("/uid/{uid}"), &[&format!("unix:uid:{uid}")])
    }

    /// Adds a line, for example `hint = "internal"`.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        writeln!(self.more, "{line}").expect("strings grow");
        self
    }

    fn toml(&self, trust_domain: &str) -> String {
        let selectors: Vec<String> = self.selectors.iter().map(|s| format!("{s:?}")).collect();
        format!(
            "[[entries]]\nspiffe_id = \"spiffe://{trust_domain}{}\"\nselectors = [{}]\n{}\n",
            self.path,
            selectors.join(", "),
            self.more
        )
    }
}

/// How an agent is to be started.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Trust domain.
    pub trust_domain: String,
    /// TOML after the paths: tables only.
    pub settings: String,
    /// What it registers.
    pub entries: Vec<Entry>,
    /// Environment, for example `MAYFLY_FAILPOINTS`.
    pub environment: Vec<(String, String)>,
    /// Program and arguments put before the agent's own; must exec it in the same process.
    pub wrapper: Vec<String>,
    /// Runs as that uid and gid.
    pub uid: Option<u32>,
    /// Runs a copy of the binary in its own directory, which every uid can run, too.
    pub installed: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            trust_domain: TRUST_DOMAIN.to_owned(),
            settings: CALM.to_owned(),
            entries: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            uid: None,
            installed: false,
        }
    }
}

impl Plan {
    /// An agent with these entries.
    pub fn with_entries(entries: &[Entry]) -> Self {
        Self { entries: entries.to_vec(), ..Self::default() }
    }

    /// An entry for each of the uids.
    pub fn for_uids(uids: &[u32]) -> Self {
        Self { entries: uids.iter().map(|uid| Entry::for_uid(*uid)).collect(), ..Self::default() }
    }

    /// Replaces the settings (TOML tables).
    #[must_use]
    pub fn settings(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.settings);
        self
    }

    /// Sets failpoints: `name=kill;other=pause:/dir;third=fail`.
    #[must_use]
    pub fn failpoints(mut self, spec: &str) -> Self {
        self.environment.retain(|(name, _)| name != "MAYFLY_FAILPOINTS");
        self.environment.push(("MAYFLY_FAILPOINTS".to_owned(), spec.to_owned()));
        self
    }

    /// Puts a program in front.
    #[must_use]
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Has it run from a copy that every uid can run.
    #[must_use]
    pub fn installed(mut self) -> Self {
        self.installed = true;
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready; the message carries its log.
    pub fn start(self) -> Agent {
        let mut agent = self.prepare();
        agent.launch();
        agent
    }

    /// Makes the directory and files, starts nothing.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn prepare(self) -> Agent {
        let dir = files::short_dir();
        let agent = Agent { dir, plan: self, child: None, last_log: 0 };
        std::fs::create_dir(agent.entries_dir()).expect("entries directory");
        if let Some(uid) = agent.plan.uid {
            for path in [agent.dir(), &agent.entries_dir()] {
                nix::unistd::chown(path, Some(uid.into()), Some(uid.into())).expect("chown");
            }
        }
        agent.write_config();
        agent.write_entries(&agent.plan.entries);
        agent
    }
}

/// A running agent, and the directory it leaves behind when it stops.
#[derive(Debug)]
pub struct Agent {
    dir: TempDir,
    plan: Plan,
    child: Option<Child>,
    last_log: u64,
}

/// How an agent ended that was expected not to become ready.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` for a signal.
    pub code: Option<i32>,
    /// Standard output and standard error.
    pub log: String,
}

impl Agent {
    /// Its directory: everything below belongs to this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// Directory of entry files.
    pub fn entries_dir(&self) -> PathBuf {
        self.dir().join("entries.d")
    }

    /// Configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir().join("agent.toml")
    }

    /// Public socket.
    pub fn public(&self) -> PathBuf {
        self.dir().join("public/api.sock")
    }

    /// Admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir().join("admin/admin.sock")
    }

    /// The audit log.
    pub fn audit_path(&self) -> PathBuf {
        self.data_dir().join("audit.jsonl")
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.plan.trust_domain
    }

    /// The plan, for changes before the next launch.
    pub fn plan(&mut self) -> &mut Plan {
        &mut self.plan
    }

    /// Process id.
    ///
    /// # Panics
    /// When it is not running.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// A client for its admin socket.
    pub fn admin(&self) -> Admin {
        Admin::new(&self.admin_socket())
    }

    /// Writes the configuration file as the plan says.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn write_config(&self) {
        let text = format!(
            "trust_domain = {:?}\ndata_dir = {:?}\nentries_dir = {:?}\n\n[sockets]\npublic = {:?}\nadmin = {:?}\n\n{}",
            self.plan.trust_domain,
            self.data_dir(),
            self.entries_dir(),
            self.public(),
            self.admin_socket(),
            self.plan.settings
        );
        files::replace(&self.config(), text.as_bytes(), 0o644);
        self.own(&self.config());
    }

    /// Replaces all entries, atomically, in one file. The agent notices by itself.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn write_entries(&self, entries: &[Entry]) {
        let mut text = String::new();
        for entry in entries {
            text += &entry.toml(&self.plan.trust_domain);
        }
        if entries.is_empty() {
            text += "entries = []\n";
        }
        self.write_entry_file("test.toml", &text);
    }

    /// Writes one file of the entries directory as it is.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn write_entry_file(&self, name: &str, text: &str) {
        let path = self.entries_dir().join(name);
        files::replace(&path, text.as_bytes(), 0o644);
        self.own(&path);
    }

    fn own(&self, path: &Path) {
        if let Some(uid) = self.plan.uid {
            nix::unistd::chown(path, Some(uid.into()), Some(uid.into())).expect("chown");
        }
    }

    /// The file of its log.
    pub fn log_path(&self) -> PathBuf {
        self.dir().join("log")
    }

    /// Everything it has printed since the last launch.
    ///
    /// # Panics
    /// When there is no log.
    pub fn log(&self) -> String {
        let mut file = std::fs::File::open(self.log_path()).expect("the agent's log");
        file.seek(SeekFrom::Start(self.last_log)).expect("seek");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The command that runs it, without starting it.
    ///
    /// # Panics
    /// When its log cannot be opened.
    pub fn command(&mut self) -> Command {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the agent's log");
        self.last_log = log.metadata().expect("stat").len();
        let mut words = self.plan.wrapper.clone();
        words.push(self.binary().to_str().expect("UTF-8 path").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("agent").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        command.current_dir(self.dir()).env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command.envs(self.plan.environment.iter().map(|(name, value)| (name, value)));
        if let Some(uid) = self.plan.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// The agent's binary; a copy that its uid can reach when it does not run as root.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn binary(&self) -> PathBuf {
        if self.plan.uid.is_some() || self.plan.installed {
            files::install(self.dir(), &mayfly())
        } else {
            mayfly()
        }
    }

    /// Starts it and waits for `READY=1`.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn launch(&mut self) {
        if let Err(ended) = self.try_launch() {
            panic!("the agent did not become ready (exit {:?}):\n{}", ended.code, ended.log);
        }
    }

    /// Starts it; it either becomes ready or ends.
    ///
    /// # Errors
    /// How it ended.
    ///
    /// # Panics
    /// When it does neither within the patience.
    pub fn try_launch(&mut self) -> Result<(), Ended> {
        let notify = self.dir().join("notify");
        let _ = std::fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).expect("notify socket");
        files::open_to_all(&notify);
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
        let child = self.command().env("NOTIFY_SOCKET", &notify).spawn().expect("start the agent");
        self.child = Some(child);
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            if let Ok(n) = socket.recv(&mut buffer)
                && String::from_utf8_lossy(&buffer[..n]).lines().any(|l| l == "READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().expect("started").try_wait().expect("wait") {
                self.child = None;
                return Err(Ended { code: status.code(), log: self.log() });
            }
            if Instant::now() > end {
                let log = self.log();
                self.kill();
                panic!("neither ready nor gone after {PATIENCE:?}:\n{log}");
            }
        }
    }

    /// Starts it without waiting for anything.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&mut self) {
        let child = self.command().spawn().expect("start the agent");
        self.child = Some(child);
    }

    /// Starts it, expects it to refuse, and returns how it ended.
    ///
    /// # Panics
    /// When it becomes ready after all.
    pub fn refused(mut self) -> Ended {
        match self.try_launch() {
            Ok(()) => panic!("the agent started although it should refuse:\n{}", self.log()),
            Err(ended) => ended,
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for it to drain.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the agent runs");
        let status = until_or_kill(&mut child);
        status.unwrap_or_else(|| panic!("the agent did not end:\n{}", self.log()))
    }

    /// Whether its process is there.
    ///
    /// # Panics
    /// Never.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    /// SIGKILL and start again.
    pub fn crash_and_restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("pid");
        kill(Pid::from_raw(pid), signal).expect("signal");
    }

    /// SIGSTOP, and waits until the kernel has stopped it.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.pid());
        until("the agent stops", || {
            let text = std::fs::read_to_string(&stat).ok()?;
            text.rsplit(')').next()?.trim_start().starts_with('T').then_some(())
        });
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// The audit log so far, one JSON value a line; a last line without its end is left out.
    ///
    /// # Panics
    /// When a whole line is not JSON.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read(self.audit_path()).unwrap_or_default();
        let text = String::from_utf8(text).expect("the audit log is UTF-8");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("audit line: {why}: {line}")))
            .collect()
    }

    /// Waits for an audit line whose JSON text holds every one of `words`.
    ///
    /// # Panics
    /// When none comes.
    pub fn audited(&self, words: &[&str]) -> Value {
        until(&format!("an audit line with {words:?}"), || {
            self.audit().into_iter().find(|line| {
                let text = line.to_string();
                words.iter().all(|word| text.contains(word))
            })
        })
    }

    /// Runs a client command of the product against this agent: (exit code, stdout, stderr).
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn mayfly(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(mayfly())
            .args(arguments)
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", self.public().display()))
            .env("MAYFLY_ADMIN_SOCKET", format!("unix://{}", self.admin_socket().display()))
            .stdin(Stdio::null())
            .output()
            .expect("run mayfly");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() && self.log_path().exists() {
            let log = self.log();
            let from = log.char_indices().rev().nth(12_000).map_or(0, |(at, _)| at);
            eprintln!("--- log of the agent in {}\n{}\n---", self.dir().display(), &log[from..]);
        }
        self.kill();
    }
}

fn until_or_kill(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// The agent's binary, beside the directory of the test binaries.
///
/// # Panics
/// When it was not built.
pub fn mayfly() -> PathBuf {
    files::built("mayfly")
}
