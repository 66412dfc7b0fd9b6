//! `mayfly demo`: the whole life of an identity in one command, on real processes.
//!
//! Starts a private agent and a child, watches the child get an identity, see it rotated and lose it to
//! `kill -9`, and cleans up. Exit code 0 means that each step was really observed from outside the agent:
//! the revocation list is verified with a TLS library's verifier, the token is shown to the agent again.

mod process;
mod report;
mod story;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::OutputArgs;
use super::client::{ClientArgs, Patience, Target, WaitFor, Which, answer};
use super::failure::Failure;
use super::{Context, stop};
use crate::exit::Exit;

use self::process::Running;
use self::report::Report;
pub(super) use self::report::Stopwatch;
use self::story::{Stage, story};
pub(super) use self::workload::{WorkloadArgs, run_workload};

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly demo
  mayfly demo --output json

Needs no root and leaves nothing behind. Exit code: 0 only if every step was observed.";

/// `mayfly demo`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

/// Short, so that a rotation is seen within seconds.
const X509_TTL: &str = "10s";

/// The longest any step may take; a rotation comes at half of [`X509_TTL`].
const STEP: Duration = Duration::from_secs(9);

/// How long the agent may take to serve.
const START: Duration = Duration::from_secs(5);

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let mut report = Report::new(args.output.is_json());
    let outcome = tokio::select! {
        outcome = perform(&mut report, context) => outcome,
        () = stop() => Err(Failure::failed("interrupted; everything started here is stopped")),
    };
    report.close(context, outcome.is_ok())?;
    outcome.map(|()| Exit::Ok)
}

async fn perform(report: &mut Report, context: &mut Context) -> Result<(), Failure> {
    let program =
        std::env::current_exe().map_err(|error| Failure::failed(format!("cannot find myself: {error}")))?;
    let home = tempfile::Builder::new()
        .prefix("mayfly-demo-")
        .tempdir()
        .map_err(|error| Failure::file("make a directory in", &std::env::temp_dir(), &error))?;
    let runtime = home.path().join("agent");
    let mut agent = Running::start(&program, home.path(), "agent", &agent_args(&runtime))?;
    let stage = Stage {
        public: target(&runtime, Which::Public, context)?,
        admin: target(&runtime, Which::Admin, context)?,
        held: home.path().join("workload"),
        patience: STEP,
    };
    ready(&stage, &mut agent, report, context).await?;
    let child_args = workload_args(&Which::Public.below(&runtime), &stage.held);
    let mut child = Running::start(&program, home.path(), "workload", &child_args)?;
    let pid = child.pid();
    let told = story(&stage, pid, || child.kill(), report, context).await;
    if let Err(failure) = told {
        return Err(failure.hint(format!("{}{}", agent.last_words(), child.last_words())));
    }
    drop(child);
    agent.stop().await?;
    home.close().map_err(|error| Failure::failed(format!("cannot clean up: {error}")))?;
    report.step(context, "stop", None, "the agent has stopped, nothing is left behind".to_owned())
}

/// Waits until the agent serves.
async fn ready(
    stage: &Stage,
    agent: &mut Running,
    report: &mut Report,
    context: &mut Context,
) -> Result<(), Failure> {
    let watch = Stopwatch::start();
    let attempt = async |connection: super::client::Connection| {
        let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
        answer(connection.health().check(request)).await.map(drop)
    };
    let mut quiet = Patience::new(Some(WaitFor::AtMost(START))).quiet();
    let served = tokio::select! {
        served = quiet.persist(context, &stage.public, attempt) => served,
        status = agent.ended() => Err(Failure::failed(format!("the agent ended at once ({status})"))),
    };
    served.map_err(|failure| failure.hint(agent.last_words()))?;
    let detail = format!("a private agent serves, pid {}, lifetimes of {X509_TTL}", agent.pid());
    report.step(context, "agent", Some(watch.micros()), detail)
}

fn agent_args(runtime: &Path) -> Vec<String> {
    let runtime = runtime.display().to_string();
    ["agent", "--dev", "--runtime-dir", &runtime, "--x509-ttl", X509_TTL].map(str::to_owned).to_vec()
}

fn workload_args(socket: &Path, held: &Path) -> Vec<String> {
    let (socket, held) = (socket.display().to_string(), held.display().to_string());
    let audience = story::AUDIENCE;
    ["demo-workload", "--socket", &socket, "--write", &held, "--audience", audience]
        .map(str::to_owned)
        .to_vec()
}

fn target(runtime: &Path, which: Which, context: &Context) -> Result<Target, Failure> {
    let path: PathBuf = which.below(runtime);
    let args = ClientArgs { socket: Some(path.display().to_string()), server_uid: None };
    Target::resolve(&args, which, &context.env)
}
