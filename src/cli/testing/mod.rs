//! For tests only: a screen to read back, and an agent's stand-in on a real socket.

pub(crate) mod agent;
pub(crate) mod pki;
mod tasks;
pub(crate) mod wits;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::client::Env;
use super::render::Console;
use super::{Context, Failure};
use crate::exit::Exit;

/// Catches what a command writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Screen {
    out: Buffer,
    err: Buffer,
}

#[derive(Clone, Debug, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Screen {
    pub(crate) fn console(&self) -> Console {
        Console::to(Box::new(self.out.clone()), Box::new(self.err.clone()))
    }

    pub(crate) fn context(&self, env: Env) -> Context {
        Context { console: self.console(), env }
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8(self.out.0.lock().expect("lock").clone()).expect("text")
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8(self.err.0.lock().expect("lock").clone()).expect("text")
    }
}

/// What a command did, seen from outside.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: Exit,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// An environment in which nothing is set and no socket exists.
pub(crate) fn empty_env() -> Env {
    let nowhere = std::path::PathBuf::from("/nonexistent");
    Env { uid: rustix::process::geteuid().as_raw(), run: nowhere.clone(), tmp: nowhere, ..Env::default() }
}

/// Parses and runs a command as `main` does, on the current runtime.
pub(crate) async fn run(env: Env, args: &[&str]) -> Ran {
    let screen = Screen::default();
    let mut context = screen.context(env);
    let args = std::iter::once("mayfly").chain(args.iter().copied()).map(Into::into).collect::<Vec<_>>();
    let result: Result<Exit, Failure> = match super::parse(args, &mut context) {
        Ok(super::Command::Client(command)) => command.run(&mut context).await,
        Ok(super::Command::Local(command)) => command.run(&mut context),
        Err(exit) => Ok(exit),
    };
    let exit = super::finish(result, &mut context);
    Ran { exit, out: screen.out(), err: screen.err() }
}
