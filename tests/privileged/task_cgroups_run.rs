//! `mayfly run` as root, which gives a program a cgroup of its own.

use super::*;

/// `mayfly run` as root: whoever it starts says its pid, its task and its cgroup first.
struct Run {
    child: Child,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Run {
    fn start(agent: &Agent, arguments: &[&str]) -> Self {
        Self::start_by(agent, Command::new(agent.binary()), arguments)
    }

    /// With `mayfly run` in that cgroup itself.
    fn start_in(agent: &Agent, group: &Group, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", group.dir().display());
        command.args(["-c", &enter]).arg(agent.binary());
        Self::start_by(agent, command, arguments)
    }

    fn start_by(agent: &Agent, mut command: Command, arguments: &[&str]) -> Self {
        let script = "echo $$; echo $MAYFLY_TASK; grep ^0:: /proc/self/cgroup; \
                      while read -r line; do eval \"$line\"; done";
        command.arg("run").args(arguments).args(["--", "sh", "-c", script]);
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        Self { child, lines: Box::new(lines) }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the program ended")
    }

    fn tell(&mut self, words: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{words}").unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

fn agent_of_root() -> Agent {
    let mut agent = prepare(&[Entry::for_uid(0)], None);
    agent.launch();
    agent
}

#[test]
fn mayfly_run_gives_a_program_a_cgroup_which_goes_with_it_and_with_whom_it_left_behind() {
    let agent = agent_of_root();
    let mut run = Run::start(&agent, &["--task", "look-up"]);
    let (pid, task, line) = (run.line(), run.line(), run.line());
    let name = line.rsplit('/').next().unwrap();
    assert!(name.starts_with("mayfly-run-"), "{line}");
    let group = cgroup::root().join(line.strip_prefix("0::/").unwrap());
    let shown = order(&agent, &["task", "show", &task]);
    assert_eq!((&shown["isolated"], &shown["scope"]), (&true.into(), &"cgroup".into()), "{shown}");
    assert!(std::fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().any(|line| line == pid));
    run.tell("setsid sleep 1000 >/dev/null 2>&1 & echo $!");
    let daemon: u32 = run.line().parse().unwrap();
    assert!(is_running(daemon));
    run.tell("exit 7");
    let (code, said) = run.end();
    assert_eq!(code, Some(7));
    assert!(said.contains("killed 1 process that the program left behind"), "{said}");
    assert!(!is_running(daemon) && !group.exists());
    agent.audited(&["task.ended", "process_exit", &task]);
}

#[test]
fn mayfly_run_leaves_a_program_where_it_is_if_that_is_wanted() {
    let agent = agent_of_root();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find(|line| line.starts_with("0::")).unwrap();
    let mut run = Run::start(&agent, &["--no-cgroup", "--task", "look-up"]);
    let (_, task, line) = (run.line(), run.line(), run.line());
    assert_eq!(line, own);
    let shown = order(&agent, &["task", "show", &task]);
    assert_eq!((&shown["isolated"], &shown["scope"]), (&false.into(), &"process".into()), "{shown}");
    assert_eq!(run.end().0, Some(0));
}

/// One that was killed could not tidy up; the next does.
#[test]
fn what_a_killed_mayfly_run_left_is_removed_by_the_next() {
    let agent = agent_of_root();
    let mut run = Run::start(&agent, &[]);
    let (pid, _, line) = (run.line(), run.line(), run.line());
    let group = cgroup::root().join(line.strip_prefix("0::/").unwrap());
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    until("the program is gone", || (!is_running(pid.parse().unwrap())).then_some(()));
    assert!(group.exists());
    assert_eq!(Run::start(&agent, &[]).end().0, Some(0));
    assert!(!group.exists());
}

/// A unit of systemd that runs `mayfly run` as a user: the keeper is in the same cgroup, and alone with the program.
#[test]
fn a_keeper_in_the_same_cgroup_does_no_harm_and_somebody_else_does() {
    let agent = agent_of_root();
    let token = format!("WIKI_FILE={WIKI}");
    let kept = ["--no-cgroup", "--task", "look-up", "--token", &token];
    let scope_of = |arguments: &[&str], besides: Option<&Shell>| {
        let group = Group::new("test");
        besides.into_iter().for_each(|shell| group.take(shell.child.id()));
        let mut run = Run::start_in(&agent, &group, arguments);
        let (_, task, _) = (run.line(), run.line(), run.line());
        let shown = order(&agent, &["task", "show", &task]);
        assert_eq!(shown["isolated"] == true, shown["scope"] == "cgroup", "{shown}");
        run.tell("exit 0");
        assert_eq!(run.end().0, Some(0));
        gone(&task, &agent);
        shown["scope"].as_str().unwrap().to_owned()
    };
    assert_eq!(scope_of(&kept, None), "cgroup");
    assert_eq!(scope_of(&kept, Some(&Shell::start(0))), "process");
    assert_eq!(scope_of(&kept[..3], None), "process", "its parent is there, and no keeper");
}
