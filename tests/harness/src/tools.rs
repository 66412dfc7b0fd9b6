//! Attack tools in C: what safe Rust cannot do. Compiled once per change, run by path, spoken to by lines.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::{Agent, PATIENCE, files};

/// Compiles `tests/privileged/c/NAME.c` and returns the program.
///
/// # Panics
/// When it does not compile.
pub fn compile(name: &str) -> PathBuf {
    build(name, name, &["-static"])
}

/// Compiles `tests/privileged/c/NAME.c` as an object for `LD_PRELOAD`.
///
/// # Panics
/// When it does not compile.
pub fn compile_preload(name: &str) -> PathBuf {
    build(name, &format!("{name}.so"), &["-shared", "-fPIC"])
}

static BUILDS: AtomicU32 = AtomicU32::new(0);

fn build(name: &str, output: &str, flags: &[&str]) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../privileged/c");
    let own = std::env::current_exe().expect("own path");
    let dir = own.parent().and_then(Path::parent).expect("target/PROFILE").join("attack-tools");
    std::fs::create_dir_all(&dir).expect("tools directory");
    let (source, program) = (sources.join(format!("{name}.c")), dir.join(output));
    let changed = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let newest = [changed(&source), changed(&sources.join("common.h"))].into_iter().max().flatten();
    if changed(&program) < newest || newest.is_none() {
        // Several tests may get here at once: each builds its own, the last rename wins.
        let unique = BUILDS.fetch_add(1, Ordering::Relaxed);
        let fresh = dir.join(format!("{output}.{}.{unique}", std::process::id()));
        let run = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread"])
            .args(flags)
            .arg("-o")
            .args([&fresh, &source])
            .output()
            .expect("run cc");
        assert!(run.status.success(), "{name}.c: {}", String::from_utf8_lossy(&run.stderr));
        std::fs::rename(&fresh, &program).expect("rename");
    }
    program
}

/// A running tool. It prints lines; a test reads them by their first word.
#[derive(Debug)]
pub struct Tool {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: VecDeque<String>,
}

impl Tool {
    /// Runs a tool from the agent's directory, where every uid can reach it.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run(agent: &Agent, uid: u32, name: &str, args: &[&str]) -> Self {
        let program = files::install(agent.dir(), &compile(name));
        Self::run_program(&program, uid, args)
    }

    /// Runs a program that speaks as the tools do.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run_program(program: &Path, uid: u32, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).uid(uid).gid(uid).current_dir("/");
        Self::spawn(command)
    }

    /// Runs any command that prints lines.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn spawn(mut command: Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("start {name}: {why}"));
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { name, child, input, lines, seen: VecDeque::new() }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// When it is gone.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().expect("open"), "{line}").expect("the tool reads");
    }

    /// The rest of the next line that starts with that word.
    ///
    /// # Panics
    /// When none comes.
    pub fn expect(&mut self, word: &str) -> String {
        self.expect_within(word, PATIENCE)
            .unwrap_or_else(|| panic!("no `{word}` from {}; it said {:#?}", self.name, self.seen))
    }

    /// As [`Self::expect`], but gives up after `patience`.
    pub fn expect_within(&mut self, word: &str, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        let rest = |line: &str| {
            let rest = line.strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim().to_owned())
        };
        loop {
            if let Some(at) = self.seen.iter().position(|line| rest(line).is_some()) {
                return self.seen.remove(at).and_then(|line| rest(&line));
            }
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push_back(line),
                Err(_) => return None,
            }
        }
    }

    /// Every line until it ends.
    ///
    /// # Panics
    /// When it does not end.
    pub fn finish(mut self) -> Vec<String> {
        self.input = None;
        let end = Instant::now() + PATIENCE * 3;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.seen.push_back(line);
        }
        assert!(
            self.child.try_wait().expect("wait").is_some() || Instant::now() < end,
            "{} hangs",
            self.name
        );
        self.seen.drain(..).collect()
    }

    /// SIGKILL and reap.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("wait")
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        self.kill();
    }
}
