//! What attesting costs, attestor by attestor, as `mayfly explain` measures it: warm (asked again about the same process)
//! and cold (the first time, or after what was remembered is not good any more); and what the pods of a node cost.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mayfly_harness::admin::Admin;
use mayfly_harness::cgroup::PodGroup;
use mayfly_harness::cluster::{Cluster, pod, recorded_pods};
use mayfly_harness::engine::{Engine, Kind};
use mayfly_harness::{Agent, Plan, files, until};
use mayfly_proto::admin::ExplainResponse;
use serde_json::Value;

use super::{SETTINGS, count, entries, line, percentiles, resident_kib};

/// A node may hold so many.
const PODS: usize = 500;

pub(super) fn measure(quick: bool) -> Result<()> {
    local(quick)?;
    pods(quick)?;
    docker(quick)?;
    systemd(quick)
}

/// What one attestor took, in each of many answers.
fn samples(admin: &Admin, pid: u32, attestor: &str, rounds: usize) -> Result<Vec<f64>> {
    (0..rounds).map(|_| one(admin, pid, attestor)).collect()
}

/// What the agent says of a process. Each question is a connection, and one user may make 500 a second.
fn explained(admin: &Admin, pid: u32) -> Result<ExplainResponse> {
    std::thread::sleep(Duration::from_millis(2));
    admin.explain(pid).context("explain")
}

/// Microseconds that it took in one answer.
fn one(admin: &Admin, pid: u32, attestor: &str) -> Result<f64> {
    let told = explained(admin, pid)?;
    let found = told.attestors.into_iter().find(|one| one.kind == attestor);
    let found = found.with_context(|| format!("no attestor {attestor}"))?;
    anyhow::ensure!(found.outcome == "ok", "{attestor}: {}", found.outcome);
    micros(found.micros)
}

fn micros(micros: u64) -> Result<f64> {
    Ok(count(usize::try_from(micros)?))
}

fn report(attestor: &str, how: &str, samples: &mut [f64]) -> Result<()> {
    line(&format!("attest, {attestor}, {how}"), &percentiles(samples))
}

/// A process of that program, ended with the value.
struct Sleeper(Child);

impl Sleeper {
    fn of(program: &Path) -> Result<Self> {
        let child = Command::new(program).arg("1000").stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| program.display().to_string())?))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Copies of `sleep`, as large as the agent's own program, no two alike.
fn programs(dir: &Path, number: usize) -> Result<Vec<PathBuf>> {
    let size = std::fs::metadata(files::built("mayfly"))?.len();
    let plain = std::fs::read("/usr/bin/sleep")?;
    let mut all = Vec::new();
    for n in 0..number {
        let path = dir.join(format!("sleep-{n}"));
        let mut bytes = plain.clone();
        bytes.extend_from_slice(&n.to_le_bytes());
        std::fs::write(&path, bytes)?;
        std::fs::File::options().write(true).open(&path)?.set_len(size)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        all.push(path);
    }
    // A file that was written a moment ago is measured anew for each of its processes.
    std::thread::sleep(Duration::from_millis(2_200));
    Ok(all)
}

/// What needs nobody else: users, the hash of the program, cgroups.
fn local(quick: bool) -> Result<()> {
    let agent = Plan::with_entries(&entries(0)).settings(SETTINGS).start();
    let admin = agent.admin();
    let (mut cold, mut warm, mut cgroup) = (Vec::new(), Vec::new(), Vec::new());
    let size = std::fs::metadata(files::built("mayfly"))?.len() >> 20;
    for program in programs(agent.dir(), if quick { 5 } else { 50 })? {
        let (first, second) = (Sleeper::of(&program)?, Sleeper::of(&program)?);
        cold.push(one(&admin, first.pid(), "unix")?);
        warm.extend(samples(&admin, second.pid(), "unix", 10)?);
        cgroup.extend(samples(&admin, first.pid(), "cgroup", 10)?);
    }
    report("unix", &format!("{size} MiB program never seen, hashed"), &mut cold)?;
    report("unix", "program known", &mut warm)?;
    report("cgroup", "always read", &mut cgroup)
}

/// Pods as real clusters have them: one of the recorded ones, with a name and containers of its own.
fn like(recorded: &Value, n: usize) -> Value {
    let mut pod = recorded.clone();
    set(&mut pod, "/metadata/name", format!("pod-{n}"));
    set(&mut pod, "/metadata/uid", PodGroup::new_uid());
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        let statuses = pod.pointer_mut(&format!("/status/{list}")).and_then(Value::as_array_mut);
        for status in statuses.into_iter().flatten() {
            set(status, "/containerID", format!("containerd://{}", PodGroup::new_id()));
        }
    }
    pod
}

/// Replaces what is there.
fn set(object: &mut Value, pointer: &str, text: String) {
    if let Some(value) = object.pointer_mut(pointer) {
        *value = text.into();
    }
}

fn node(cluster: &Cluster) -> Result<Agent> {
    let mut agent = Plan::with_entries(&entries(0)).prepare();
    let settings = format!("{SETTINGS}{}", cluster.settings(agent.dir()));
    let plan = agent.plan().clone().settings(&settings);
    *agent.plan() = plan;
    agent.write_config();
    // Ready with the first list.
    agent.launch();
    Ok(agent)
}

fn known(admin: &Admin, number: usize) {
    until("the pods are known", || {
        (admin.status().pods.is_some_and(|pods| pods.known == number as u64)).then_some(())
    });
}

/// A node with [`PODS`] pods: what they cost, and what answers about one of them do.
fn pods(quick: bool) -> Result<()> {
    let recorded = recorded_pods();
    let all: Vec<Value> =
        recorded.iter().cycle().take(PODS).enumerate().map(|(n, pod)| like(pod, n)).collect();
    let cluster = Cluster::start();
    let agent = node(&cluster)?;
    cluster.watched_by(1);
    let admin = agent.admin();
    let before = resident_kib(agent.pid())?;
    let bytes: usize = all.iter().map(|pod| pod.to_string().len()).sum();
    all.iter().for_each(|pod| cluster.put(pod));
    known(&admin, PODS);
    let after = resident_kib(agent.pid())?;
    line(
        &format!("resident, before and after {PODS} pods"),
        &format!(
            "{:.1} and {:.1} MiB  ({:.2} KiB a pod, whose JSON has {:.2} KiB)",
            before / 1024.0,
            after / 1024.0,
            (after - before) / count(PODS),
            count(bytes / PODS) / 1024.0
        ),
    )?;
    let (sleep, group) = (Sleeper::of(Path::new("/usr/bin/sleep"))?, PodGroup::new());
    group.take(sleep.pid());
    cluster.put(&pod("shop", "asked-about", group.uid(), group.container()));
    known(&admin, PODS + 1);
    let asked = cluster.asked();
    let rounds = if quick { 50 } else { 1_000 };
    for attestor in ["k8s", "k8s-status"] {
        let mut warm = samples(&admin, sleep.pid(), attestor, rounds)?;
        report(attestor, &format!("pod known, {PODS} pods on the node"), &mut warm)?;
    }
    let mut whole = Vec::new();
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_millis(2));
        let begin = Instant::now();
        admin.explain(sleep.pid()).context("explain")?;
        whole.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    line(&format!("explain, the whole call, pod known, {PODS} pods"), &percentiles(&mut whole))?;
    anyhow::ensure!(cluster.asked() == asked, "somebody was asked");
    let mut cold = Vec::new();
    for n in 0..if quick { 10 } else { 100 } {
        cold.push(first_word(&cluster, &agent, n)?);
    }
    report("k8s", "from the server's word of a pod to the answer", &mut cold)?;
    drop(agent);
    let mut listed = Vec::new();
    for _ in 0..if quick { 3 } else { 20 } {
        let begin = Instant::now();
        let agent = node(&cluster)?;
        listed.push(begin.elapsed().as_secs_f64() * 1e6);
        anyhow::ensure!(agent.admin().status().pods.is_some_and(|pods| pods.known > PODS as u64));
    }
    line(&format!("start of a new agent to serving, {PODS} pods listed"), &percentiles(&mut listed))
}

/// Somebody asks about a process of a pod that nobody knows; then the pod appears, with its container.
fn first_word(cluster: &Cluster, agent: &Agent, n: usize) -> Result<f64> {
    let (sleep, group) = (Sleeper::of(Path::new("/usr/bin/sleep"))?, PodGroup::new());
    group.take(sleep.pid());
    let (asking, pid) = (agent.admin(), sleep.pid());
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || {
            let told = asking.explain(pid);
            (told, Instant::now())
        });
        let admin = agent.admin();
        until("the attestation waits", || {
            admin.status().pods.is_some_and(|pods| pods.waiting > 0).then_some(())
        });
        let pod = pod("shop", &format!("late-{n}"), group.uid(), group.container());
        let begin = Instant::now();
        cluster.put(&pod);
        let (told, at) = answer.join().map_err(|_panic| anyhow::anyhow!("thread"))?;
        told.context("explain")?;
        cluster.delete(&pod);
        Ok(at.saturating_duration_since(begin).as_secs_f64() * 1e6)
    })
}

/// A real engine and a real container. It is asked again when the container is renamed.
fn docker(quick: bool) -> Result<()> {
    let engine = Engine::start(Kind::Docker);
    engine.image("bench");
    let settings = format!("{SETTINGS}{}", engine.section());
    let agent = Plan::with_entries(&entries(0)).settings(&settings).start();
    let admin = agent.admin();
    let mut words = vec!["run", "--detach", "--rm", "--network", "none", "--name", "name-0"];
    for place in ["/usr:/usr:ro", "/lib:/lib:ro", "/lib64:/lib64:ro"] {
        words.extend(["--volume", place]);
    }
    words.extend(["localhost/bench:1", "/usr/bin/sleep", "1000"]);
    engine.run(&words);
    let pid = engine.run(&["inspect", "--format", "{{.State.Pid}}", "name-0"]).parse()?;
    one(&admin, pid, "docker")?;
    until("events are heard", || agent.log().contains("container events are heard").then_some(()));
    one(&admin, pid, "docker")?;
    let mut warm = samples(&admin, pid, "docker", if quick { 50 } else { 1_000 })?;
    report("docker", "container known", &mut warm)?;
    let mut cold = Vec::new();
    for n in 1..=if quick { 5 } else { 50 } {
        let name = format!("name-{n}");
        engine.run(&["rename", &format!("name-{}", n - 1), &name]);
        let selector = format!("docker:name:{name}");
        cold.push(until("the new name", || {
            let told = explained(&admin, pid).ok()?;
            let is_new = told.selectors.iter().any(|one| one.text == selector);
            let docker = told.attestors.iter().find(|one| one.kind == "docker").filter(|_| is_new)?;
            micros(docker.micros).ok()
        }));
    }
    report("docker", "the engine asked (real dockerd)", &mut cold)
}

/// Where systemd runs this machine; else `tests/packaging/machine.py` measures it on one of its own.
fn systemd(quick: bool) -> Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        return line("attest, systemd", "not this machine's init: see FIGURE lines of tests/run packaging");
    }
    let settings = format!("{SETTINGS}[attest.systemd]\nenabled = \"on\"\n");
    let unit = format!("mayfly-bench-{}", std::process::id());
    let started = Command::new("systemd-run").args(["--unit", &unit, "/usr/bin/sleep", "1000"]).status()?;
    anyhow::ensure!(started.success(), "systemd-run");
    let shown = Command::new("systemctl").args(["show", "--property=MainPID", "--value", &unit]).output()?;
    let pid: u32 = String::from_utf8(shown.stdout)?.trim().parse()?;
    let mut cold = Vec::new();
    let mut warm = Vec::new();
    for _ in 0..if quick { 3 } else { 20 } {
        let agent = Plan::with_entries(&entries(0)).settings(&settings).start();
        let admin = agent.admin();
        cold.push(one(&admin, pid, "systemd")?);
        warm.extend(samples(&admin, pid, "systemd", 20)?);
    }
    Command::new("systemctl").args(["stop", &unit]).status()?;
    report("systemd", "the bus not connected yet", &mut cold)?;
    report("systemd", "the manager asked, as always", &mut warm)
}
