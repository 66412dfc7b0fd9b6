//! `mayfly run -- PROGRAM …`: runs a program as what it is launched with.
//!
//! Two processes: this one, which passes signals on and hands back the exit code, and a launcher
//! ([`launcher`]), which becomes the program.

mod awaiting;
mod begin;
mod cgroup;
mod environment;
mod interpreter;
mod keep;
mod launch;
pub(super) mod launcher;
mod plan;
mod signals;
mod tokens;
mod user;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use self::begin::{TaskPlan, Work};
use self::cgroup::{Leftovers, OwnCgroup};
use self::environment::Reason;
use self::keep::Keeper;
use self::plan::{Measured, Plan, is_variable};
use self::signals::Signals;
use self::tokens::{Token, TokenDir};
use super::Context;
use super::client::{ClientArgs, Target, Which};
use super::failure::Failure;
use super::render::Console;
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly run --measure agent.py -- /usr/bin/python3 agent.py         an identity for this very script
  mayfly run --measure agent.js -- node agent.js                     the same for Node
  mayfly run --measure agent.py --measure MODEL=model.json -- python3 agent.py
  mayfly run --clean-env -- ./agent                                  without the caller's keys and sessions
  mayfly run --task kb-summarise --token WIKI_TOKEN_FILE=https://wiki.example -- ./agent

A measured file is copied, sealed and hashed; the program reads the copy. The agent gives the process
`launch:sha256:…` for each, as long as it is this program, started once. Not covered: modules that the script
imports, its arguments and environment, code it downloads or is sent, and what another process of the same user
does to it once it runs. Interpreters must belong to root. Reference: docs/running-agents.md

Exit code: that of the program; 128+n if signal n ended it; 125 if it was not run, 126 or 127 if it could not be.";

/// `mayfly run …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    /// Hash this file as it is about to be read, and prove it to the agent: the script, its configuration, a model.
    /// It must be among the program's arguments, or `NAME=FILE` hands its place over in a variable
    #[arg(long, value_name = "[NAME=]FILE", value_parser = Measured::parse)]
    measure: Vec<Measured>,
    /// Give the program only a short list of variables, without the caller's keys and sessions (`--measure` does too)
    #[arg(long)]
    clean_env: bool,
    /// Let this variable through
    #[arg(long, value_name = "NAME")]
    keep_env: Vec<String>,
    /// Begin a task of this template for the program; it ends with the program
    #[arg(long, value_name = "TEMPLATE")]
    task: Option<String>,
    /// Join the task that was offered under this name (`dlg_…`), instead of beginning one
    #[arg(long, value_name = "DELEGATION", conflicts_with_all = ["task", "purpose", "param", "task_ttl", "identity", "on_behalf_of_file"])]
    join: Option<String>,
    /// What the task is for, in your own words: recorded, shown to approvers, never read by a machine
    #[arg(long, value_name = "TEXT", requires = "task", default_value = "", hide_default_value = true)]
    purpose: String,
    /// What the template is to be filled with
    #[arg(long, value_name = "NAME=VALUE", requires = "task", value_parser = param)]
    param: Vec<(String, String)>,
    /// How long the task may take, such as `2h` [default: what the agent says]
    #[arg(long, value_name = "DURATION", requires = "task", value_parser = super::args::duration)]
    task_ttl: Option<Duration>,
    /// Which of the program's identities the task is begun with [default: its first]
    #[arg(long, value_name = "SPIFFE-ID", requires = "task")]
    identity: Option<String>,
    /// Begin the task in the name of the user whose token is in this file, which only its owner can read
    #[arg(long, value_name = "PATH", requires = "task")]
    on_behalf_of_file: Option<PathBuf>,
    /// Keep an access token of the task for this audience in a file, whose path the program finds in the variable
    #[arg(long, value_name = "NAME=AUDIENCE", value_parser = Token::access)]
    token: Vec<Token>,
    /// The same with a JWT-SVID, for services that federate (`ANTHROPIC_IDENTITY_TOKEN_FILE=https://api.anthropic.com`)
    #[arg(long, value_name = "NAME=AUDIENCE", value_parser = Token::jwt_svid)]
    jwt_svid: Vec<Token>,
    /// Leave the program in the cgroup that this is run in. As root it gets one of its own, if there is a v2 hierarchy:
    /// its task is isolated then, its children can act in it, and who is left when the program ends is killed
    #[arg(long)]
    no_cgroup: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// When the program did not even begin.
const NOT_RUN: Exit = Exit::Passed(125);

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::new(NOT_RUN, format!("{what}: {error}"));
    // Before anything could have started a thread.
    let mut signals = signals::take_over().map_err(|error| failed("cannot take over signals", &error))?;
    let mut plan = plan(&args, context)?;
    let keeper = keeper(&args, &mut plan, context)?;
    let cgroup = if args.no_cgroup { None } else { OwnCgroup::make() };
    plan.cgroup = cgroup.as_ref().map(|cgroup| cgroup.path().to_owned());
    let mut child = match start(&plan, &args.program) {
        Ok(child) => child,
        Err(error) => {
            tell_left(&end(cgroup).await, &mut context.console);
            return Err(failed("cannot start a process", &error));
        }
    };
    let launcher = child.id();
    let console = RefCell::new(&mut context.console);
    let keeping = async {
        match (&keeper, launcher) {
            (Some(keeper), Some(launcher)) => {
                keeper.keep(launcher, |words| console.borrow_mut().note(words)).await
            }
            _ => Ok(()),
        }
    };
    let status = until_it_ends(follow(&mut child, &mut signals), keeping, &console).await;
    let left = end(cgroup).await;
    tell_left(&left, &mut console.borrow_mut());
    let status = status.map_err(|error| failed("the program is lost", &error))?;
    Ok(Exit::Passed(code(status)))
}

/// Nobody whom the program left behind goes on with its work.
async fn end(cgroup: Option<OwnCgroup>) -> Leftovers {
    match cgroup {
        Some(cgroup) => cgroup.end().await,
        None => Leftovers::default(),
    }
}

fn tell_left(Leftovers { killed, stays }: &Leftovers, console: &mut Console) {
    if *killed > 0 {
        let left = super::render::count(*killed, "process", "processes");
        console.note(&format!("killed {left} that the program left behind (`--no-cgroup` lets them live)"));
    }
    if let Some(why) = stays {
        console.note(&format!("the program's cgroup stays: {why}"));
    }
}

fn plan(args: &Args, context: &mut Context) -> Result<Plan, Failure> {
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let public = target.path().map_err(|error| Failure { exit: NOT_RUN, ..error.into() })?;
    for name in &args.keep_env {
        if !is_name(name) {
            return Err(Failure::usage(format!("`{name}` is not the name of a variable")));
        }
    }
    let mut plan = Plan {
        parent: std::process::id(),
        launch_socket: crate::api::launch::wire::beside(public),
        server_uid: target.server_uid(),
        measured: args.measure.clone(),
        clean: args.clean_env,
        keep: args.keep_env.clone(),
        set: vec![("SPIFFE_ENDPOINT_SOCKET".to_owned(), crate::endpoint::unix_uri(public))],
        ..Plan::default()
    };
    let parted = environment::part(&plan.policy(), std::env::vars_os());
    tell_removed(&parted.removed, &plan, context);
    for (name, value) in parted.kept.iter().filter(|(name, _)| environment::is_loaders(name)) {
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str()) {
            plan.loader.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(plan)
}

/// The task that was asked for, and who keeps its credentials.
fn keeper(args: &Args, plan: &mut Plan, context: &Context) -> Result<Option<Keeper>, Failure> {
    let work = match (&args.task, &args.join) {
        (Some(template), _) => Work::Begin {
            template: template.clone(),
            purpose: args.purpose.clone(),
            params: args.param.clone(),
            ttl: args.task_ttl.map(|ttl| ttl.as_secs()),
            spiffe_id: args.identity.clone(),
            on_behalf_of: args.on_behalf_of_file.clone(),
        },
        (None, Some(offer)) => Work::Join { offer: offer.clone() },
        (None, None) if args.token.is_empty() && args.jwt_svid.is_empty() => return Ok(None),
        (None, None) => {
            return Err(Failure::usage("a token is a task's: name one with `--task TEMPLATE` or `--join`"));
        }
    };
    let tokens: Vec<Token> = args.token.iter().chain(&args.jwt_svid).cloned().collect();
    let names: BTreeSet<&str> = tokens.iter().map(|token| token.variable.as_str()).collect();
    if names.len() < tokens.len() {
        return Err(Failure::usage("two tokens want the same variable"));
    }
    let no_place = |error: std::io::Error| Failure::new(NOT_RUN, format!("cannot keep credentials: {error}"));
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let socket = target.path().map_err(|error| Failure { exit: NOT_RUN, ..error.into() })?.to_owned();
    let server_uid = target.server_uid();
    let audiences: BTreeSet<String> = tokens.iter().map(|token| token.audience.clone()).collect();
    let dir = TokenDir::create(&context.env).map_err(no_place)?;
    let keeper = Keeper::prepare(target, dir, tokens).map_err(no_place)?;
    plan.set.extend(keeper.variables());
    let audiences = audiences.into_iter().collect();
    plan.task = Some(TaskPlan { socket, server_uid, work, audiences, keeper: keeper.socket() });
    Ok(Some(keeper))
}

fn param(text: &str) -> Result<(String, String), String> {
    let named = text.split_once('=').filter(|(name, _)| !name.is_empty());
    named
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "write `NAME=VALUE`".to_owned())
}

/// What ends first is only ever the program's end that counts; why nothing is kept any more is told.
async fn until_it_ends(
    following: impl Future<Output = std::io::Result<ExitStatus>>,
    keeping: impl Future<Output = Result<(), Failure>>,
    console: &RefCell<&mut Console>,
) -> std::io::Result<ExitStatus> {
    tokio::pin!(following, keeping);
    let mut is_kept = true;
    loop {
        tokio::select! {
            status = &mut following => return status,
            done = &mut keeping, if is_kept => {
                is_kept = false;
                if let Err(failure) = done {
                    let mut console = console.borrow_mut();
                    console.note(&failure.message);
                    failure.hint.iter().for_each(|hint| console.note(&format!("hint: {hint}")));
                }
            }
        }
    }
}

/// Names only: what they held is nobody's business.
fn tell_removed(removed: &[(OsString, Reason)], plan: &Plan, context: &mut Context) {
    let names = |wanted: &[Reason]| {
        let fits = removed.iter().filter(|(_, reason)| wanted.contains(reason));
        fits.map(|(name, _)| name.to_string_lossy()).collect::<Vec<_>>().join(" ")
    };
    let keys = names(&[Reason::Key]);
    if !keys.is_empty() {
        context.console.note(&format!("removed keys that would win over the program's identity: {keys}"));
    }
    let others = names(&[Reason::NotListed, Reason::Code]);
    if !others.is_empty() {
        let why = if plan.measured.is_empty() { "--clean-env" } else { "--measure" };
        context.console.note(&format!("removed by {why}: {others} (`--keep-env NAME` lets one through)"));
    }
}

/// A name that can be in an environment at all.
fn is_name(name: &str) -> bool {
    is_variable(&name.to_uppercase()) && !name.contains('=')
}

fn start(plan: &Plan, program: &[OsString]) -> std::io::Result<Child> {
    let word = serde_json::to_string(plan)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("mayfly").arg("run-child").arg(word).args(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| environment::is_loaders(name)) {
        command.env_remove(name);
    }
    command.kill_on_drop(true).spawn()
}

/// Until it has ended; what is sent to us goes to it.
async fn follow(child: &mut Child, signals: &mut Signals) -> std::io::Result<ExitStatus> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    loop {
        tokio::select! {
            status = child.wait() => return status,
            Some(signal) = signals.recv() => send(pid, signal),
        }
    }
}

/// It has not been waited for, so the number is still its own.
fn send(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        nix::sys::signal::kill(pid, signal).ok();
    }
}

/// As shells do.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code & 0xff).ok()).unwrap_or(255)
}
