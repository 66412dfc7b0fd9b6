//! What the attacks share: settings, places, and a subscriber that sees every CRL.

use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use mayfly_harness::Pause;
use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Crl, Entry, Holder, files, require_root};

/// The uid that only watches: it always has an identity.
pub(crate) const WATCHER: u32 = 20_990;

/// No limit on attestations matters.
pub(crate) const WIDE: &str = "[x509]\nttl = \"15m\"\n\
    [attest]\nper_second = 100000\nburst = 100000\nin_flight = 64\n\
    [limits]\nconnections = 16384\nconnections_per_uid = 16384\nconnections_per_cgroup = 16384\n";

/// Certificates that rotate every five seconds.
pub(crate) const SHORT: &str = "[x509]\nttl = \"10s\"\n[jwt]\nttl = \"10s\"\n\
    [attest]\nper_second = 100000\nburst = 100000\nin_flight = 64\n";

/// Entries for the uids, and for the watcher.
pub(crate) fn entries_for(uids: &[u32]) -> Vec<Entry> {
    require_root();
    uids.iter().chain([&WATCHER]).map(|uid| Entry::for_uid(*uid)).collect()
}

/// These entries, and the watcher's.
pub(crate) fn entries_and_watcher(entries: &[Entry]) -> Vec<Entry> {
    require_root();
    let mut all = entries.to_vec();
    all.push(Entry::for_uid(WATCHER));
    all
}

/// Selects that uid.
pub(crate) fn uid_selector(n: u32) -> String {
    format!("unix:uid:{n}")
}

/// Selects that program by its hash.
pub(crate) fn hash_of(program: &Path) -> String {
    format!("unix:sha256:{}", files::sha256(program))
}

/// Sees every CRL.
pub(crate) struct Watcher {
    holder: Holder,
    /// The newest CRL so far.
    pub(crate) crl: Crl,
    /// The bundle, concatenated DER.
    pub(crate) bundle: Vec<u8>,
}

impl Watcher {
    pub(crate) fn start(agent: &Agent) -> Self {
        let mut holder = Holder::start(agent, WATCHER);
        let first = holder.bundles();
        let crl = first.crls.first().expect("a CRL in the first message").clone();
        let bundle = first.bundles.first().expect("the own bundle").1.clone();
        Self { holder, crl, bundle }
    }

    /// Waits until every one of the serials is listed.
    pub(crate) fn sees(&mut self, what: &str, serials: &[&str]) -> Crl {
        let all = |crl: &Crl| serials.iter().all(|serial| crl.serials.contains(*serial));
        if !all(&self.crl) {
            self.crl = self.holder.crl_until(what, all);
        }
        self.crl.clone()
    }

    /// Waits for a CRL with that many serials.
    pub(crate) fn sees_count(&mut self, what: &str, count: usize) -> Crl {
        if self.crl.serials.len() < count {
            self.crl = self.holder.crl_until(what, |crl| crl.serials.len() >= count);
        }
        self.crl.clone()
    }

    /// A client of that uid for other calls.
    pub(crate) fn holder(&mut self) -> &mut Holder {
        &mut self.holder
    }
}

/// The attack program `name`, installed in the agent's directory.
pub(crate) fn installed(agent: &Agent, name: &str) -> PathBuf {
    files::install(agent.dir(), &mayfly_harness::tools::compile(name))
}

/// A copy of `program` with another hash that runs just the same.
pub(crate) fn variant(program: &Path, to: &Path) {
    let mut bytes = std::fs::read(program).unwrap();
    bytes.extend_from_slice(&[0; 8192]);
    let scratch = to.with_extension("bytes");
    std::fs::write(&scratch, bytes).unwrap();
    files::install_as(&scratch, to);
    std::fs::remove_file(scratch).unwrap();
}

/// Every line a tool prints until it ends.
pub(crate) fn lines_of(agent: &Agent, uid: u32, tool: &str, args: &[&str]) -> Vec<String> {
    Tool::run(agent, uid, tool, args).finish()
}

/// How many X.509-SVIDs a tool's lines report (whatever the tag before the word).
pub(crate) fn svids(lines: &[String]) -> Vec<String> {
    lines.iter().filter_map(|line| line.split_once("svid ").map(|(_, serial)| serial.to_owned())).collect()
}

/// The socket's path as text.
pub(crate) fn socket(agent: &Agent) -> String {
    agent.public().to_str().unwrap().to_owned()
}

pub(crate) fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A mount that goes away with the value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// `mount ARGS… TARGET`.
    pub(crate) fn new(args: &[&str], target: &Path) -> Self {
        std::fs::create_dir_all(target).unwrap();
        run("mount", &[args, &[utf8(target)]].concat());
        Self(target.to_owned())
    }

    /// Takes over a mount that somebody else made.
    pub(crate) fn adopt(target: &Path) -> Self {
        Self(target.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whether it worked is for the next mount to find out.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Runs a command that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
}
