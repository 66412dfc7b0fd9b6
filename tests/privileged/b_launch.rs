//! Threat B15: an interpreter says nothing of its script, so what it was launched with must. Real agents in Python and
//! Node, of one uid and on one interpreter each.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Entry, Plan, files, require_root, tools, until};

use crate::support::{Pause, WIDE, installed, utf8};

const USER: u32 = 20_150;
const OTHER: u32 = 20_151;
const PYTHON: &str = "/usr/bin/python3.11";
const NODE: &str = "/usr/bin/node";

/// An agent that knows one Python script, one Node script and one script with a configuration, all of `USER`.
struct Scene {
    agent: Agent,
    python: PathBuf,
    node: PathBuf,
    config: PathBuf,
}

impl Scene {
    fn new() -> Self {
        require_root();
        let agent = Plan::default().settings(WIDE).installed().prepare();
        let copy = |name: &str| {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/privileged/agents").join(name);
            files::install(agent.dir(), &from)
        };
        let (python, node) = (copy("agent.py"), copy("agent.js"));
        let config = agent.dir().join("model.json");
        files::replace(&config, b"{\"model\": \"small\"}", 0o644);
        let named = |path: &str, program: &str, measured: &[&Path]| {
            let uid = format!("unix:uid:{USER}");
            let program = format!("unix:path:{}", std::fs::canonicalize(program).unwrap().display());
            let measured: Vec<_> = measured.iter().map(|file| measured_as(file)).collect();
            let selectors: Vec<&str> =
                [uid.as_str(), &program].into_iter().chain(measured.iter().map(String::as_str)).collect();
            Entry::new(path, &selectors)
        };
        agent.write_entries(&[
            named("/agent/python", PYTHON, &[&python]),
            named("/agent/node", NODE, &[&node]),
            named("/agent/configured", PYTHON, &[&python, &config]),
        ]);
        let mut scene = Self { agent, python, node, config };
        scene.agent.launch();
        scene
    }

    /// `mayfly run ARGUMENTS…`, from the agent's own copy of the program.
    fn command(&self, uid: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.agent.binary());
        command.arg("run").args(arguments).uid(uid).gid(uid).current_dir(self.agent.dir());
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", self.agent.public().display()));
        command
    }

    fn run(&self, uid: u32, arguments: &[&str]) -> Tool {
        Tool::spawn(self.command(uid, arguments))
    }

    /// How a command ends, and what it says on standard error.
    fn refused(&self, command: &mut Command) -> (Option<i32>, String) {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The launcher alone, with a word that `mayfly run` could have said from this process.
    fn launcher(&self, uid: u32) -> Command {
        let plan = serde_json::json!({
            "parent": std::process::id(),
            "launch_socket": self.agent.public().with_file_name("launch.sock"),
            "server_uid": null,
            "measured": [{"file": self.python, "variable": null}],
            "clean": false,
            "keep": [],
            "loader": [["LD_PRELOAD", "/nowhere.so"]],
            "set": [["SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", self.agent.public().display())]],
        });
        let mut command = Command::new(self.agent.binary());
        command.arg("run-child").arg(plan.to_string()).arg(PYTHON).arg(&self.python);
        command.uid(uid).gid(uid);
        command
    }
}

/// What the descriptors of a process lead to.
fn targets(pid: &str) -> Vec<String> {
    let list = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let link = |path| std::fs::read_link(path).ok().map(|target| target.to_string_lossy().into_owned());
    list.filter_map(|entry| link(entry.unwrap().path())).collect()
}

fn measured_as(file: &Path) -> String {
    format!("launch:sha256:{}", files::sha256(file))
}

#[test]
fn b15_a_python_and_a_node_agent_of_one_user_are_told_apart() {
    let scene = Scene::new();
    let (python, node) = (utf8(&scene.python), utf8(&scene.node));
    let mut first = scene.run(USER, &["--measure", python, "--", PYTHON, python, "one", "two"]);
    assert_eq!(first.expect("id"), "spiffe://example.org/agent/python");
    assert_eq!(first.expect("args"), "one two");
    let mut second = scene.run(USER, &["--measure", node, "--", NODE, node, "three"]);
    assert_eq!(second.expect("id"), "spiffe://example.org/agent/node");
    assert_eq!(second.expect("args"), "three");
    scene.agent.audited(&["agent.launch", PYTHON, &files::sha256(&scene.python)]);
    // Without being measured the very same script is nobody.
    let mut command = Command::new(PYTHON);
    command.arg(python).uid(USER).gid(USER);
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", scene.agent.public().display()));
    Tool::spawn(command).expect("refused");
}

#[test]
fn b15_a_script_that_is_changed_has_lost_its_identity() {
    let scene = Scene::new();
    let changed = scene.agent.dir().join("changed.py");
    let mut text = std::fs::read(&scene.python).unwrap();
    text.extend_from_slice(b"# one more line\n");
    files::replace(&changed, &text, 0o644);
    let changed = utf8(&changed);
    scene.run(USER, &["--measure", changed, "--", PYTHON, changed]).expect("refused");
    // What was measured is what is read: a change of the file after the start changes nothing.
    let python = utf8(&scene.python);
    let mut running = scene.run(USER, &["--measure", python, "--", PYTHON, python]);
    running.expect("id");
    files::replace(&scene.python, b"raise SystemExit('evil')", 0o644);
    running.tell("fetch");
    assert_eq!(running.expect("id"), "spiffe://example.org/agent/python");
    scene.run(USER, &["--measure", python, "--", PYTHON, python]).finish();
}

#[test]
fn b15_every_measured_file_counts_and_none_may_be_added() {
    let scene = Scene::new();
    let (python, config) = (utf8(&scene.python), utf8(&scene.config));
    let both = ["--measure", python, "--measure", config, "--", PYTHON, python, config];
    let mut configured = scene.run(USER, &both);
    assert_eq!(configured.expect("id"), "spiffe://example.org/agent/configured");
    let by_variable = format!("MODEL={config}");
    let mut configured =
        scene.run(USER, &["--measure", python, "--measure", &by_variable, "--", PYTHON, python]);
    assert_eq!(configured.expect("id"), "spiffe://example.org/agent/configured");
    // Another script that brings the good one along, as an argument, is not the good one.
    let evil = scene.agent.dir().join("evil.py");
    let mut text = std::fs::read(&scene.python).unwrap();
    text.extend_from_slice(b"# evil\n");
    files::replace(&evil, &text, 0o644);
    let evil = utf8(&evil);
    scene.run(USER, &["--measure", evil, "--measure", python, "--", PYTHON, evil, python]).expect("refused");
}

#[test]
fn b15_another_user_has_nothing_of_it() {
    let scene = Scene::new();
    let python = utf8(&scene.python);
    scene.run(OTHER, &["--measure", python, "--", PYTHON, python]).expect("refused");
    let mut held = scene.run(USER, &["--measure", python, "--", PYTHON, python]);
    held.expect("id");
    // Not even while the right one runs.
    scene.run(OTHER, &["--measure", python, "--", PYTHON, python]).expect("refused");
}

/// The same interpreter with the same script, which is how a process would hide what it has become.
#[test]
fn b15_a_process_that_executes_once_more_loses_it() {
    let scene = Scene::new();
    let python = utf8(&scene.python);
    let mut tool = scene.run(USER, &["--measure", python, "--", PYTHON, python]);
    tool.expect("id");
    tool.tell("exec");
    tool.expect("refused");
    scene.agent.audited(&["credential.revoke", "exec_mismatch"]);
    tool.tell("fetch");
    tool.expect("refused");
}

#[test]
fn f07_the_environment_of_a_measured_program_loads_nothing() {
    let scene = Scene::new();
    let python = utf8(&scene.python);
    let library = tools::compile_preload("preload");
    let library = files::install(scene.agent.dir(), &library);
    let mut command =
        scene.command(USER, &["--measure", python, "--keep-env", "PYTHONPATH", "--", PYTHON, python]);
    command.env("LD_PRELOAD", &library).env("PYTHONPATH", scene.agent.dir()).env("EVIL", "1");
    let mut tool = Tool::spawn(command);
    assert_eq!(tool.expect("env"), "", "neither the library nor a path nor what is not listed");
    assert_eq!(tool.expect("id"), "spiffe://example.org/agent/python");
}

#[test]
fn f07_a_launcher_with_a_preloaded_library_is_refused() {
    let scene = Scene::new();
    let library = files::install(scene.agent.dir(), &tools::compile_preload("preload"));
    let (code, said) = scene.refused(scene.launcher(USER).env("LD_PRELOAD", &library));
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("code of somebody else"), "{said}");
    scene.agent.audited(&["agent.attest_denied", "launch", "code of somebody else"]);
    // It is the library: without it the same word is taken, and the library is not handed on.
    let mut good = Tool::spawn(scene.launcher(USER));
    assert_eq!(good.expect("env"), "");
    good.expect("id");
}

#[test]
fn b15_a_traced_launcher_is_refused_and_a_hidden_one_cannot_be_traced() {
    let scene = Scene::new();
    for (point, can_trace) in [("launcher.before_hiding", true), ("launcher.hidden", false)] {
        let (pause, spec) = Pause::at(scene.agent.dir(), point);
        files::open_to_all(&scene.agent.dir().join("pauses"));
        let mut command = scene.launcher(USER);
        command.env("MAYFLY_FAILPOINTS", &spec).stderr(std::process::Stdio::piped());
        let child = command.stdin(std::process::Stdio::null()).spawn().unwrap();
        pause.hit();
        let mut tracer =
            Tool::run_program(&installed(&scene.agent, "tracer"), USER, &["trace", &child.id().to_string()]);
        assert_eq!(
            tracer.expect_within("tracing", std::time::Duration::from_secs(2)).is_some(),
            can_trace,
            "{point}"
        );
        pause.release();
        if can_trace {
            scene.agent.audited(&["agent.attest_denied", "launch", "is being traced"]);
        }
        // Whoever traces a process has its end first.
        tracer.kill();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("is being traced"), can_trace, "{point}: {said}");
        drop(pause);
        std::fs::remove_dir_all(scene.agent.dir().join("pauses")).unwrap();
    }
}

/// F05: the launcher's own descriptors do not reach the program; the sealed copies do.
#[test]
fn f05_a_measured_program_has_its_copies_and_no_descriptor_of_the_launcher() {
    let scene = Scene::new();
    let python = utf8(&scene.python);
    let mut tool = scene.run(USER, &["--measure", python, "--", PYTHON, python]);
    tool.expect("id");
    let children = format!("/proc/{0}/task/{0}/children", tool.pid());
    let pid = until("the program", || std::fs::read_to_string(&children).ok()?.trim().parse::<u32>().ok());
    let open = targets(&pid.to_string());
    let copies = open.iter().filter(|target| target.starts_with("/memfd:measured")).count();
    assert_eq!(copies, 1, "{open:?}");
    // What this test itself was started with is passed on, as by a shell.
    let known = ["/memfd:measured", "pipe:", "/dev/", "socket:"];
    let others: Vec<_> = open
        .iter()
        .filter(|target| {
            !known.iter().any(|known| target.starts_with(known)) && !targets("self").contains(target)
        })
        .collect();
    assert!(others.is_empty(), "{others:?}");
    // The one socket it may have is the one it opened itself, and it has closed that.
    assert!(open.iter().filter(|target| target.starts_with("socket:")).count() <= 1, "{open:?}");
}

/// An entry for a script that forgets the interpreter would be met by any program that is given the script.
#[test]
fn b15_an_entry_with_a_measured_file_must_name_the_program() {
    let scene = Scene::new();
    let file = scene.agent.dir().join("loose.toml");
    let entry = format!(
        "[[entries]]\nspiffe_id = \"spiffe://example.org/x\"\nselectors = [\"unix:uid:1\", {:?}]\n",
        measured_as(&scene.python)
    );
    std::fs::write(&file, entry).unwrap();
    let (code, out, err) = scene.agent.mayfly(&["entry", "check", utf8(&file)]);
    assert_eq!(code, Some(10), "{out}{err}");
    assert!((out + &err).contains("unix:path"));
}
