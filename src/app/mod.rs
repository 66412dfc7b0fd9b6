//! The composition root: the only module that knows every other one. Parts are built inert, sockets are
//! bound before anything starts, and one place starts it all.

mod backends;
mod banner;
mod build;
mod checkpoint;
mod concerns;
mod entries;
mod error;
mod follow;
mod heart;
mod kubernetes;
mod notify;
mod policy;
mod refused;
mod run;
mod signals;
mod sockets;
mod storage;
mod tasks;
mod web;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{self, Config};
use crate::exit::Exit;
use crate::manager::{Manager, Passed, Surroundings};

pub use self::error::StartError;
pub use self::web::WebError;

/// What `mayfly agent` was asked to run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AgentArgs {
    /// The configuration file; `None` only with `dev`.
    pub config: Option<PathBuf>,
    /// Run without files and without root, in memory, for the caller's own uid.
    pub dev: bool,
    /// Where `dev` puts its sockets; `None` = `$XDG_RUNTIME_DIR/mayfly`, else `/tmp/mayfly-UID`.
    pub runtime_dir: Option<PathBuf>,
    /// X.509-SVID lifetime of `dev`; `None` = the default.
    pub x509_ttl: Option<Duration>,
}

/// Runs the agent until it is told to stop, and says how that went.
pub fn run_agent(args: AgentArgs) -> Exit {
    // Before anything else opens a descriptor.
    let passed = sockets::passed();
    // Before any key exists: no core dump and no tracer of the same user may ever see one.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        return fail(&StartError::Harden(error.into()));
    }
    // Before there is another thread.
    if let Err(error) = mayfly_attestors::raise_permitted() {
        return fail(&StartError::System(error));
    }
    if let Err(error) = mayfly_attestors::deny_what_is_never_needed() {
        return fail(&StartError::Seccomp(error));
    }
    match start(args, passed) {
        Ok(exit) => exit,
        Err(error) => fail(&error),
    }
}

/// As many descriptors as the system lets us have: each connection takes two, and running out of them would
/// stop service, not revocation.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the descriptor limit stays as it is");
    }
}

fn start(args: AgentArgs, (passed, amiss): (Passed, Option<std::io::Error>)) -> Result<Exit, StartError> {
    let dev = args.dev;
    let config = resolve(args)?;
    // Set up already only where several agents run in one process, in tests.
    crate::telemetry::init(&config.log).ok();
    raise_descriptor_limit();
    if let Some(error) = amiss {
        tracing::warn!(%error, "what the service manager passed is not used");
    }
    // Whoever left the variable behind is gone: we serve all the same.
    let manager = Manager::connect(&Surroundings::of_process(), &passed).unwrap_or_else(|error| {
        tracing::warn!(%error, "the service manager that NOTIFY_SOCKET names cannot be reached");
        Manager::default()
    });
    let runtimes = build::Runtimes::new()?;
    let exit = build::Agent::build(config, &runtimes, passed, manager.clone())?.run(&runtimes, dev);
    manager.flush();
    exit
}

fn resolve(args: AgentArgs) -> Result<Config, StartError> {
    match args.config {
        Some(path) if !args.dev => config::load(&path).map_err(StartError::Config),
        _ => {
            let mut config = banner::dev_config(args.runtime_dir)?;
            if let Some(ttl) = args.x509_ttl {
                config.x509.ttl = ttl;
            }
            Ok(config)
        }
    }
}

fn fail(error: &StartError) -> Exit {
    // Not a log line: the operator is at the terminal, or reads the unit's last words.
    writeln!(std::io::stderr(), "mayfly: {error}").ok();
    error.exit()
}
