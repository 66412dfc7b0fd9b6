//! A service manager with a descriptor store, for agents that are restarted.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::{Agent, PATIENCE};

/// Runs the agent of a prepared [`Agent`]; the harness's own launch is not used.
#[derive(Debug)]
pub struct Manager {
    child: Child,
    input: Option<ChildStdin>,
    events: Receiver<String>,
    waiting: VecDeque<String>,
    pid: Option<u32>,
}

impl Manager {
    /// With room for so many descriptors, and a watchdog that wants a sign of life that often.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn of(agent: &mut Agent, room: u32, watchdog: Option<Duration>) -> Self {
        let agent_command = agent.command();
        let script = agent.dir().join("manager.py");
        std::fs::write(&script, include_str!("manager.py")).expect("write the script");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(&script).arg(agent.dir().join("notify")).arg(room.to_string());
        command.arg(watchdog.map_or(0, |period| period.as_micros()).to_string());
        command.arg(agent_command.get_program()).args(agent_command.get_args());
        for (name, value) in agent_command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // The agent logs to standard error, which it inherits.
        let log = std::fs::File::options().append(true).open(agent.log_path()).expect("the agent's log");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("python3");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, events, waiting: VecDeque::new(), pid: None }
    }

    /// Starts the agent with everything that was kept, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(&mut self) {
        self.start_without_waiting();
        self.event("note READY=1");
    }

    /// Starts the agent and waits for nothing.
    pub fn start_without_waiting(&mut self) {
        self.order("start");
        self.pid = self.event("started ").parse().ok();
    }

    /// The agent's process.
    ///
    /// # Panics
    /// Before the first start.
    pub fn pid(&self) -> u32 {
        self.pid.expect("the agent was started")
    }

    /// SIGTERM, and waits for it to end; its exit code.
    pub fn stop(&mut self) -> String {
        self.order("term");
        self.event("ended ")
    }

    /// SIGKILL, and waits for it to end.
    pub fn kill(&mut self) {
        self.order("kill");
        self.event("ended ");
    }

    /// Names of everything it keeps now, as `names` orders.
    pub fn names(&mut self) -> Vec<String> {
        self.order("names");
        let line = self.event("names");
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Forgets every event so far.
    pub fn discard(&mut self) {
        self.waiting.clear();
        while self.events.try_recv().is_ok() {}
    }

    /// Waits for an event that begins so; the rest of it. Earlier ones are passed over.
    ///
    /// # Panics
    /// When none comes.
    pub fn event(&mut self, begins: &str) -> String {
        self.event_within(begins, PATIENCE).unwrap_or_else(|| panic!("no event `{begins}` came"))
    }

    /// As [`Self::event`]; `None` when none comes in that time.
    pub fn event_within(&mut self, begins: &str, patience: Duration) -> Option<String> {
        let end = std::time::Instant::now() + patience;
        loop {
            let line = match self.waiting.pop_front() {
                Some(line) => line,
                None => {
                    match self.events.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
                        Ok(line) => line,
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
                    }
                }
            };
            if let Some(rest) = line.strip_prefix(begins) {
                return Some(rest.to_owned());
            }
        }
    }

    fn order(&mut self, order: &str) {
        let input = self.input.as_mut().expect("the manager lives");
        writeln!(input, "{order}").expect("the manager lives");
    }
}

impl Drop for Manager {
    /// The end of its input makes it kill the agent and end.
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.wait();
    }
}
