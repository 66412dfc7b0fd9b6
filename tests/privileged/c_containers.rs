//! Threats C with real engines and real containers: is the process in the container it seems to be in, and is that
//! the container it is said to be?

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mayfly_harness::cgroup::PodGroup;
use mayfly_harness::engine::{Contained, Engine, Kind};
use mayfly_harness::holder::Who;
use mayfly_harness::{Agent, Entry, Holder, Plan, until};

use crate::support::{SHORT, WIDE, Watcher, entries_and_watcher};

const USER: u32 = 20_061;
const FORGER: u32 = 20_062;
const DENIED: i64 = 7;
const UNAVAILABLE: i64 = 14;

/// An entry for processes of [`USER`] that have all these.
fn entry(path: &str, selectors: &[&str]) -> Entry {
    let user = format!("unix:uid:{USER}");
    Entry::new(path, &[&[user.as_str()], selectors].concat())
}

fn agent(engine: &Engine, settings: &str, entries: &[Entry]) -> Agent {
    let settings = format!("{settings}{}", engine.section());
    Plan::with_entries(&entries_and_watcher(entries)).settings(&settings).start()
}

fn ids(holder: &mut Holder) -> Vec<String> {
    holder.x509().svids.into_iter().map(|svid| svid.spiffe_id).collect()
}

/// The heart of it, for each engine: what a container is made of decides who it is, and its end takes that back.
fn images_names_and_labels_decide(kind: Kind) {
    let engine = Engine::start(kind);
    for image in ["web", "db"] {
        engine.image(image);
    }
    let digest = |image: &str| format!("docker:image_config_digest:{}", engine.digest(image));
    let agent = agent(
        &engine,
        WIDE,
        &[
            entry("/web", &[&digest("web"), "docker:label:role:front"]),
            entry("/db", &[&digest("db")]),
            entry("/named", &["docker:name:first"]).with("priority = -1"),
        ],
    );
    let mut web = engine.contain(&agent, "first", "web", USER, &["--label", "role=front"]);
    let mut db = engine.contain(&agent, "second", "db", USER, &[]);
    let mut odd =
        engine.contain(&agent, "third", "web", USER, &["--label", "role:front=", "--label", "role=back"]);
    assert_eq!(ids(&mut web.holder), ["spiffe://example.org/web", "spiffe://example.org/named"]);
    let update = db.holder.x509();
    assert_eq!(update.svids[0].spiffe_id, "spiffe://example.org/db");
    assert_eq!(odd.holder.x509_refused().code, DENIED, "another label of the same image");
    // On the machine itself the same user is nobody.
    assert_eq!(Holder::start(&agent, USER).x509_refused().code, DENIED);
    // What explain says.
    let told = agent.admin().explain(db.pid).unwrap();
    assert!(told.origin.contains(&db.id), "{}", told.origin);
    let docker = told.attestors.iter().find(|one| one.kind == "docker").unwrap();
    assert_eq!(docker.outcome, "ok", "{docker:?}");
    assert!(docker.selectors > 2);
    let worth = told.selectors.iter().find(|one| one.text == digest("db")).unwrap();
    assert_eq!(worth.strength, "controller");
    // What is on record.
    for (spiffe_id, image) in [("/web", "web"), ("/db", "db")] {
        let id = format!("\"spiffe://example.org{spiffe_id}\"");
        let attested = agent.audited(&["agent.attested", &id]);
        let issued = agent.audited(&["credential.issue", &id]);
        assert_eq!(attested["agent"]["image_digest"], engine.digest(image), "{attested}");
        assert_eq!(issued["agent"], attested["agent"]);
        assert!(attested["agent"].get("k8s").is_none(), "{attested}");
    }
    // The container ends.
    let mut watcher = Watcher::start(&agent);
    engine.run(&["kill", "second"]);
    watcher.sees("the certificate of a killed container", &[update.svids[0].serial()]);
    agent.audited(&["credential.revoke", update.svids[0].serial(), "exited"]);
}

#[test]
fn docker_images_names_and_labels_decide() {
    images_names_and_labels_decide(Kind::Docker);
}

#[test]
fn docker_on_cgroup_v2_alone_does_the_same() {
    images_names_and_labels_decide(Kind::DockerOnV2);
}

#[test]
fn podman_images_names_and_labels_decide() {
    images_names_and_labels_decide(Kind::Podman);
}

/// A directory of the v2 hierarchy, handed to the forger.
struct Delegated(PathBuf);

impl Delegated {
    fn make(name: &str) -> Self {
        let path = Path::new("/sys/fs/cgroup/unified").join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(path.join(file), Some(FORGER), Some(FORGER)).unwrap();
        }
        Self(path)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let mut dirs = vec![self.0.clone()];
        let mut at = 0;
        while let Some(dir) = dirs.get(at).cloned() {
            let below = std::fs::read_dir(dir).into_iter().flatten().flatten();
            dirs.extend(below.filter(|one| one.path().is_dir()).map(|one| one.path()));
            at += 1;
        }
        dirs.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
    }
}

/// Threat C01: the forger names a directory of his own after the victim's container and moves in.
#[test]
fn c01_a_forged_path_earns_nothing() {
    let engine = Engine::start(Kind::Docker);
    engine.image("web");
    let anybody = Entry::new("/web", &["docker:name:victim"]);
    let agent = agent(&engine, WIDE, &[anybody]);
    let mut victim = engine.contain(&agent, "victim", "web", USER, &[]);
    assert_eq!(ids(&mut victim.holder), ["spiffe://example.org/web"]);
    let own = Delegated::make("ci");
    let forged = [
        format!("docker-{}.scope", victim.id),
        format!("docker/{}", victim.id),
        format!("system.slice/docker-{}.scope", victim.id),
        format!("kubepods/pod2732ca68f6358eba7703fb6f82a25c94/{}", victim.id),
    ];
    for path in forged {
        let dir = own.0.join(path);
        // He makes it himself: what root makes here would prove nothing.
        let script = format!("mkdir -p {0} && echo $$ > {0}/cgroup.procs && exec \"$@\"", dir.display());
        // Root moves him into his subtree, as a service manager would; from there on he is on his own.
        let enter = format!(
            "echo $$ > {}/cgroup.procs && exec setpriv --reuid {FORGER} --regid {FORGER} --clear-groups \"$@\"",
            own.0.display()
        );
        let wrapper = ["/bin/sh", "-c", &enter, "sh", "/bin/sh", "-c", &script, "sh"];
        let mut forger = Who::uid(0).wrapped(&wrapper).start(&agent);
        let shown = std::fs::read_to_string(format!("/proc/{}/cgroup", forger.pid())).unwrap();
        assert!(shown.contains(&victim.id), "the forgery took: {shown}");
        assert_eq!(forger.x509_refused().code, DENIED, "{shown}");
        let told = agent.admin().explain(forger.pid()).unwrap();
        assert!(told.origin.starts_with("refused: "), "{}", told.origin);
    }
    let refused = agent.admin().status().refused_origins;
    assert!(refused.iter().map(|one| one.count).sum::<u64>() >= 4, "{refused:?}");
}

/// Threat C07: namespaces that a container shares with the machine say nothing about where it is.
#[test]
fn c07_shared_namespaces_change_nothing() {
    let engine = Engine::start(Kind::Docker);
    engine.image("web");
    let agent = agent(
        &engine,
        WIDE,
        &[entry("/first", &["docker:name:first"]), entry("/second", &["docker:name:second"])],
    );
    let mut first = engine.contain(&agent, "first", "web", USER, &["--pid=host"]);
    assert_eq!(ids(&mut first.holder), ["spiffe://example.org/first"]);
    let mut second =
        engine.contain(&agent, "second", "web", USER, &["--pid=container:first", "--cgroupns=host"]);
    assert_eq!(ids(&mut second.holder), ["spiffe://example.org/second"]);
}

/// Threat C03: a socket in other hands, and one that somebody else serves.
#[test]
fn c03_an_engine_that_is_not_roots_is_not_asked() {
    let engine = Engine::start(Kind::Docker);
    engine.image("web");
    let agent = agent(&engine, WIDE, &[entry("/web", &["docker:name:first"]), entry("/plain", &[])]);
    std::os::unix::fs::chown(engine.socket(), Some(FORGER), None).unwrap();
    let mut first = engine.contain(&agent, "first", "web", USER, &[]);
    let refused = first.holder.x509_refused();
    assert_eq!((refused.code, refused.message.as_str()), (UNAVAILABLE, "workload attestation failed"));
    agent.audited(&["attest_denied", "docker is silent", "not in root's hands"]);
    assert_eq!(ids(&mut Holder::start(&agent, USER)), ["spiffe://example.org/plain"], "others are served");
    std::os::unix::fs::chown(engine.socket(), Some(0), None).unwrap();
    assert_eq!(ids(&mut first.holder).len(), 2);
}

/// A client in the cgroup of a container, whose input and output do not pass through the engine.
fn beside(agent: &Agent, container: &Contained) -> Holder {
    let procs = format!("/sys/fs/cgroup/unified/docker/{}/cgroup.procs", container.id);
    let enter =
        format!("echo $$ > {procs} && exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"");
    Who::uid(0).wrapped(&["/bin/sh", "-c", &enter, "sh"]).start(agent)
}

/// Threat C11: an engine that hangs. Who needs it is told to try again, who does not need it is served, and who has an
/// identity keeps it through renewals and gains nothing.
#[test]
fn c11_a_hanging_engine_takes_nothing_and_gives_nothing() {
    let engine = Engine::start(Kind::DockerOnV2);
    engine.image("web");
    let named = entry("/named", &["docker:name:first"]);
    let plain = entry("/plain", &[]);
    let agent = agent(&engine, SHORT, &[named, plain]);
    let first = engine.contain(&agent, "first", "web", USER, &[]);
    let second = engine.contain(&agent, "second", "web", USER, &[]);
    let (mut held, mut late) = (beside(&agent, &first), beside(&agent, &second));
    assert_eq!(ids(&mut held).len(), 2);
    engine.freeze();
    // In the second container nobody has asked yet: it may be entitled by what the engine would say.
    assert_eq!(late.x509_refused().code, UNAVAILABLE, "and not `/plain` alone");
    assert_eq!(ids(&mut Holder::start(&agent, USER)), ["spiffe://example.org/plain"]);
    for _ in 0..2 {
        let next = held.next_x509().unwrap();
        assert_eq!(next.svids.len(), 2, "nothing is lost by a renewal");
    }
    engine.thaw();
    let served = until("the second container is served", || {
        late.open_x509();
        late.next_x509().ok()
    });
    assert_eq!(served.svids[0].spiffe_id, "spiffe://example.org/plain");
}

/// The name is the one thing about a container that changes, and the engine tells.
fn a_renamed_container_loses_its_name(kind: Kind) {
    let engine = Engine::start(kind);
    engine.image("web");
    let agent = agent(
        &engine,
        WIDE,
        &[entry("/first", &["docker:name:first"]), entry("/other", &["docker:name:other"])],
    );
    let mut first = engine.contain(&agent, "first", "web", USER, &[]);
    let before = first.holder.x509();
    let mut watcher = Watcher::start(&agent);
    // The engine is listened to from the first question on.
    until("events are heard", || agent.log().contains("container events are heard").then_some(()));
    engine.run(&["rename", "first", "other"]);
    let after = first.holder.next_x509().unwrap();
    assert_eq!(after.svids[0].spiffe_id, "spiffe://example.org/other");
    watcher.sees("the certificate of the old name", &[before.svids[0].serial()]);
    agent.audited(&["credential.revoke", before.svids[0].serial(), "facts_changed"]);
}

#[test]
fn a_container_that_docker_renames_loses_its_name_at_once() {
    a_renamed_container_loses_its_name(Kind::Docker);
}

#[test]
fn a_container_that_podman_renames_loses_its_name_at_once() {
    a_renamed_container_loses_its_name(Kind::Podman);
}

/// Variables are often secrets: those that the operator names become selectors, and nobody is told of the others.
fn only_named_variables_are_selectors(kind: Kind) {
    let engine = Engine::start(kind);
    engine.image("web");
    let settings = format!("{WIDE}{}env_selectors = [\"ROLE\"]\n", engine.section());
    let entries =
        [entry("/front", &["docker:env:ROLE=front=1"]), entry("/secret", &["docker:env:TOKEN=hush"])];
    let agent = Plan::with_entries(&entries_and_watcher(&entries)).settings(&settings).start();
    let more = ["--env", "ROLE=front=1", "--env", "TOKEN=hush"];
    let mut first = engine.contain(&agent, "first", "web", USER, &more);
    assert_eq!(ids(&mut first.holder), ["spiffe://example.org/front"]);
    let told = agent.admin().explain(first.pid).unwrap();
    let env: Vec<&str> =
        told.selectors.iter().map(|one| one.text.as_str()).filter(|text| text.contains(":env:")).collect();
    assert_eq!(env, ["docker:env:ROLE=front=1"]);
    assert!(!agent.log().contains("hush"), "a secret in the log");
    let audit = agent.audit().into_iter().map(|line| line.to_string()).collect::<Vec<_>>().concat();
    assert!(!audit.contains("hush"), "a secret in the audit log");
    let mut second = engine.contain(&agent, "second", "web", USER, &["--env", "ROLE=back"]);
    assert_eq!(second.holder.x509_refused().code, DENIED);
}

#[test]
fn docker_tells_only_of_named_variables() {
    only_named_variables_are_selectors(Kind::Docker);
}

#[test]
fn podman_tells_only_of_named_variables() {
    only_named_variables_are_selectors(Kind::Podman);
}

/// A restart of the agent while the engine is away: what was held is not refuted, and stays.
#[test]
fn a_restart_beside_a_silent_engine_takes_nothing() {
    let engine = Engine::start(Kind::Docker);
    engine.image("web");
    let mut agent = agent(&engine, WIDE, &[entry("/first", &["docker:name:first"])]);
    let mut first = engine.contain(&agent, "first", "web", USER, &[]);
    let serial = first.holder.x509().svids[0].serial().to_owned();
    engine.freeze();
    agent.kill();
    agent.launch();
    let live = agent.admin().live_leases_of(first.pid);
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!(live[0].id, serial);
    engine.thaw();
    until("it is served again", || {
        first.holder.connect();
        first.holder.open_x509();
        first.holder.next_x509().ok()
    });
}

/// A fake engine, root's: what it says is checked against the kernel.
struct Liar {
    dir: tempfile::TempDir,
    child: Option<std::process::Child>,
}

impl Liar {
    fn new() -> Self {
        mayfly_harness::require_root();
        Self { dir: mayfly_harness::files::short_dir(), child: None }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    fn section(&self) -> String {
        format!("[attest.docker]\nenabled = true\nsocket = {:?}\n", self.socket())
    }

    /// From now on it answers that container `id` is `name` and that its first process is `pid`.
    fn says(&mut self, id: &str, name: &str, pid: u32) {
        self.falls_silent();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/privileged/engine.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .args([self.socket().to_str().unwrap(), id, name, &pid.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
            .unwrap();
        self.child = Some(child);
    }

    fn falls_silent(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        std::fs::remove_file(self.socket()).ok();
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.falls_silent();
    }
}

/// A cgroup that looks like a container of the Docker engine, made by root, and a process in it.
struct Cgroup {
    id: String,
    dir: PathBuf,
    init: std::process::Child,
}

impl Cgroup {
    fn make(number: u128) -> Self {
        mayfly_harness::require_root();
        let id = format!("{:064x}", number << 64 | u128::from(std::process::id()));
        let dir = Path::new("/sys/fs/cgroup/unified/docker").join(&id);
        std::fs::create_dir_all(&dir).unwrap();
        let init = Command::new("sleep").arg("1000").spawn().unwrap();
        Self { id, dir, init }
    }

    /// Moves its first process in.
    fn begin(&self) {
        std::fs::write(self.dir.join("cgroup.procs"), self.init.id().to_string()).unwrap();
    }

    fn client(&self, agent: &Agent) -> Holder {
        let procs = self.dir.join("cgroup.procs");
        let enter = format!(
            "echo $$ > {} && exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"",
            procs.display()
        );
        Who::uid(0).wrapped(&["/bin/sh", "-c", &enter, "sh"]).start(agent)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.init.kill().ok();
        self.init.wait().ok();
        until("the cgroup is empty", || std::fs::remove_dir(&self.dir).ok());
    }
}

/// Threat C05, C09: an engine that speaks of another container than the one whose cgroup it is.
#[test]
fn c05_an_answer_about_another_containers_processes_is_not_believed() {
    let (container, mut liar) = (Cgroup::make(0xC05), Liar::new());
    liar.says(&container.id, "first", container.init.id());
    let settings = format!("{WIDE}{}", liar.section());
    let entries = entries_and_watcher(&[entry("/first", &["docker:name:first"])]);
    let agent = Plan::with_entries(&entries).settings(&settings).start();
    assert_eq!(container.client(&agent).x509_refused().code, UNAVAILABLE);
    agent.audited(&["attest_denied", "sources_disagree"]);
    // The same answer, once it is true.
    container.begin();
    assert_eq!(ids(&mut container.client(&agent)), ["spiffe://example.org/first"]);
}

/// Threat C11: an engine that is gone. A live workload keeps what it has through renewals, gains nothing by what was
/// said before, and what is new to it comes with the engine.
#[test]
fn c11_a_lost_engine_gives_nothing_new_until_it_is_back() {
    let (container, mut liar) = (Cgroup::make(0xC11), Liar::new());
    container.begin();
    liar.says(&container.id, "first", container.init.id());
    let settings = format!("{SHORT}{}", liar.section());
    let first = entry("/first", &["docker:name:first"]);
    let agent =
        Plan::with_entries(&entries_and_watcher(std::slice::from_ref(&first))).settings(&settings).start();
    let mut held = container.client(&agent);
    assert_eq!(ids(&mut held), ["spiffe://example.org/first"]);
    liar.falls_silent();
    let more = entry("/more", &["docker:name:first"]);
    let plain = entry("/plain", &[]);
    agent.write_entries(&entries_and_watcher(&[first, more, plain]));
    let names = |update: mayfly_harness::holder::X509Update| {
        update.svids.into_iter().map(|svid| svid.spiffe_id).collect::<Vec<_>>()
    };
    let expected = ["spiffe://example.org/first", "spiffe://example.org/plain"];
    until("what needs no engine", || (sorted(names(held.next_x509().unwrap())) == expected).then_some(()));
    for _ in 0..2 {
        assert_eq!(sorted(names(held.next_x509().unwrap())), expected, "kept, and nothing more");
    }
    assert_eq!(container.client(&agent).x509_refused().code, UNAVAILABLE, "a newcomer is told to try again");
    liar.says(&container.id, "first", container.init.id());
    // Somebody who asks makes the agent look for the engine.
    until("the engine is found again", || {
        let mut other = container.client(&agent);
        other.open_x509();
        other.next_x509().ok()
    });
    until("what is new", || (names(held.next_x509().unwrap()).len() == 3).then_some(()));
}

/// Threat C11: an engine that has lost one of its containers. The kernel says that the container exists, so that its word
/// takes nothing, gives nothing, and is nobody's denial.
#[test]
fn c11_a_container_that_its_engine_does_not_know_is_no_answer() {
    let (container, mut liar) = (Cgroup::make(0xC11_404), Liar::new());
    container.begin();
    liar.says(&container.id, "first", container.init.id());
    let entries = [entry("/first", &["docker:name:first"]), entry("/plain", &[])];
    let settings = format!("{SHORT}{}", liar.section());
    let agent = Plan::with_entries(&entries_and_watcher(&entries)).settings(&settings).start();
    let mut held = container.client(&agent);
    let both = ["spiffe://example.org/first", "spiffe://example.org/plain"];
    assert_eq!(sorted(ids(&mut held)), both);
    // Another container is all that the engine knows now.
    liar.says(&format!("{:064x}", 0x404), "other", container.init.id());
    assert_eq!(container.client(&agent).x509_refused().code, UNAVAILABLE, "and not `/plain` alone");
    agent.audited(&["attest_denied", "docker is silent", "sources_disagree", "none of that id"]);
    for _ in 0..2 {
        let names = held.next_x509().unwrap().svids.into_iter().map(|svid| svid.spiffe_id).collect();
        assert_eq!(sorted(names), both, "no thinner than before");
    }
    // A path that names no engine may be of a container that is nobody's here.
    let group = PodGroup::new();
    let mut of_a_pod = Holder::start(&agent, USER);
    group.take(of_a_pod.pid());
    assert_eq!(ids(&mut of_a_pod), ["spiffe://example.org/plain"]);
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}
