//! `mayfly run` as a shell sees it: exit codes, signals, environment, terminal.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use mayfly_harness::{Agent, Plan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn agent() -> Agent {
    Plan::for_uids(&[nix::unistd::geteuid().as_raw()]).start()
}

fn command(agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = Command::new(agent.binary());
    command.arg("run").args(arguments);
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()));
    command
}

/// Exit code, standard output, standard error.
fn run(agent: &Agent, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = command(agent, arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn started(agent: &Agent, script: &str) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = command(agent, &["--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (child, lines)
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn the_exit_code_is_the_programs_or_says_why_there_was_none() {
    let agent = agent();
    assert_eq!(run(&agent, &["--", "sh", "-c", "echo said; exit 37"]).0, Some(37));
    assert_eq!(run(&agent, &["--", "true"]), (Some(0), String::new(), String::new()));
    for (script, code) in [("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)] {
        assert_eq!(run(&agent, &["--", "sh", "-c", script]).0, Some(code), "{script}");
    }
    let (code, _, said) = run(&agent, &["--", "no-such-program-anywhere"]);
    assert_eq!(code, Some(127), "{said}");
    assert_eq!(run(&agent, &["--", "/etc/passwd"]).0, Some(126));
    assert_eq!(
        run(&agent, &["--measure", "/nonexistent.py", "--", "/usr/bin/python3", "/nonexistent.py"]).0,
        Some(125)
    );
    assert_eq!(run(&agent, &[]).0, Some(2));
}

#[test]
fn signals_to_us_reach_the_program() {
    let agent = agent();
    let script = "trap 'echo got usr1' USR1; trap 'echo got int' INT; trap 'exit 9' TERM; echo up; \
                  while :; do sleep 0.01; done";
    let (mut child, mut lines) = started(&agent, script);
    assert_eq!(lines.next().as_deref(), Some("up"));
    for (sent, seen) in [(Signal::SIGUSR1, "got usr1"), (Signal::SIGINT, "got int")] {
        signal(&child, sent);
        assert_eq!(lines.next().as_deref(), Some(seen));
    }
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn the_program_ends_with_us() {
    let agent = agent();
    let (mut child, mut lines) = started(&agent, "echo $$; exec sleep 60");
    let pid: i32 = lines.next().unwrap().parse().unwrap();
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    mayfly_harness::until("the program is gone", || kill(Pid::from_raw(pid), None).err());
}

#[test]
fn keys_that_win_over_an_identity_are_taken_away_and_named() {
    let agent = agent();
    let mut with_key = command(&agent, &["--", "sh", "-c", "echo ${ANTHROPIC_API_KEY-none} ${OTHER-none}"]);
    let output = with_key.env("ANTHROPIC_API_KEY", "sk-secret").env("OTHER", "kept").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "none kept\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ANTHROPIC_API_KEY") && !said.contains("sk-secret"), "{said}");
    let clean = ["--clean-env", "--keep-env", "MINE", "--", "env"];
    let output = command(&agent, &clean).env("MINE", "1").env("SSH_AUTH_SOCK", "/x").output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("MINE=1\n") && out.contains("SPIFFE_ENDPOINT_SOCKET=unix:///"), "{out}");
    assert!(!out.contains("SSH_AUTH_SOCK") && said.contains("SSH_AUTH_SOCK"), "{out}{said}");
}

/// A real terminal, by Python's `pty`: Ctrl-C reaches the program once, and the program has the terminal.
#[test]
fn the_program_has_the_terminal_and_ctrl_c_reaches_it_once() {
    let agent = agent();
    let program = "import os,signal,sys,time\n\
                   hits=[]\n\
                   signal.signal(signal.SIGINT, lambda *_: hits.append(1))\n\
                   print('foreground=%s.' % (os.tcgetpgrp(0) == os.getpgrp()), flush=True)\n\
                   while not hits: time.sleep(0.01)\n\
                   time.sleep(0.3)\n\
                   print('hits', len(hits), flush=True)\n\
                   sys.exit(len(hits))";
    let driver = "import os,pty,sys\n\
                  pid,fd=pty.fork()\n\
                  if pid==0: os.execv(sys.argv[1], sys.argv[1:])\n\
                  seen=b''\n\
                  sent=False\n\
                  while True:\n\
                  \x20 try: more=os.read(fd,4096)\n\
                  \x20 except OSError: break\n\
                  \x20 if not more: break\n\
                  \x20 seen+=more\n\
                  \x20 if b'foreground=True.' in seen and not sent:\n\
                  \x20   os.write(fd,b'\\x03'); sent=True\n\
                  sys.stdout.write(seen.decode())\n\
                  print('code', os.waitstatus_to_exitcode(os.waitpid(pid,0)[1]))";
    let mut terminal = Command::new("python3");
    terminal.args(["-c", driver]).arg(agent.binary()).args(["run", "--", "python3", "-c", program]);
    terminal.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()));
    let output = terminal.output().unwrap();
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        seen.contains("foreground=True.") && seen.contains("hits 1") && seen.contains("code 1"),
        "{seen}"
    );
}
