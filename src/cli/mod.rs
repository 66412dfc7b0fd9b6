//! The command line: one file a command. Reference: `docs/cli.md`.
//!
//! Client commands run on a single-threaded runtime and do nothing before they need it, so that they
//! start in a few milliseconds. Every failure is a `failure::Failure` and ends in an exit code of
//! [`exit::Exit`].

mod agent;
mod approve;
mod args;
mod audit;
mod authority;
mod bundle;
mod client;
mod completions;
mod config;
mod demo;
#[cfg(test)]
mod documented;
mod entry;
mod evidence;
mod explain;
mod failure;
mod federate;
mod fetch;
mod follow;
mod freeze;
mod healthcheck;
mod kill;
mod lease;
mod ledger;
mod policy;
mod prepare;
mod render;
mod run;
mod selftest;
mod show;
mod status;
mod sync;
mod task;
#[cfg(test)]
mod testing;
mod validate;
mod validate_dpop;
mod validate_wit;
mod watch;
mod whoami;
mod wit;
mod x509;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

pub use crate::exit;
use crate::exit::Exit;

use self::client::Env;
use self::failure::Failure;
use self::render::Console;

/// Parses the arguments, runs the command, returns its exit code.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The agent's own helpers: they must start fast and must not depend on anything a user set.
    match args.get(1).and_then(|arg| arg.to_str()) {
        Some("measure-worker") => return mayfly_attestors::measure_worker(),
        Some("run-child") => return run::launcher::main(args.get(2..).unwrap_or_default()),
        Some("sync-child") => return crate::sync::exec_child(args.get(2..).unwrap_or_default()),
        Some("ledger-check") if args.len() == 3 => {
            return crate::ledger::check_main(Path::new(args.get(2).unwrap_or(&OsString::new())));
        }
        _ => {}
    }
    let mut context = Context { console: Console::stdio(), env: Env::of_process() };
    let result = match parse(args, &mut context) {
        Ok(Command::Local(command)) => command.run(&mut context),
        Ok(Command::Client(command)) => block_on(*command, &mut context),
        Err(exit) => Ok(exit),
    };
    finish(result, &mut context).into()
}

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where it writes.
    pub(crate) console: Console,
    /// What the environment says.
    pub(crate) env: Env,
}

/// Workload identity that lives exactly as long as the process that earned it
#[derive(clap::Parser, Debug)]
#[command(name = "mayfly", bin_name = "mayfly", version = VERSION, after_help = EXAMPLES, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Client(Box<Client>),
    #[command(flatten)]
    Local(Local),
}

/// Commands that talk to an agent.
#[derive(clap::Subcommand, Debug)]
enum Client {
    /// Get credentials for this process: X.509-, JWT- and WIT-SVIDs, or what verifies others'
    Fetch(fetch::Args),
    /// Print each update of this process's identities as it comes
    #[command(after_help = watch::EXAMPLES)]
    Watch(watch::Args),
    /// Say whether a token is good
    Validate(validate::Args),
    /// Say what the agent knows about this process
    #[command(after_help = whoami::EXAMPLES)]
    Whoami(whoami::Args),
    /// Say what another process would get, and what it just misses (operators)
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::Args),
    /// Show what agents ask people to allow, and answer (operators)
    #[command(after_help = approve::EXAMPLES)]
    Approve(approve::Args),
    /// Freeze everything, an agent, a task or a target: nothing is issued to it any more (operators)
    #[command(after_help = freeze::FREEZE_EXAMPLES)]
    Freeze(freeze::Freeze),
    /// Freeze, end the tasks, take back what they have, and kill their processes (operators)
    #[command(after_help = kill::EXAMPLES)]
    Kill(kill::Args),
    /// Let what was frozen go on (operators)
    #[command(after_help = freeze::THAW_EXAMPLES)]
    Thaw(freeze::Thaw),
    /// List or revoke leases (operators)
    Lease(lease::Args),
    /// Show the signing authorities, or take a step of their lives (operators)
    #[command(after_help = authority::EXAMPLES)]
    Authority(authority::Args),
    /// Check entry files, or list the agent's entries (operators)
    #[command(subcommand)]
    Entry(Entry),
    /// Bundles of other trust domains (operators)
    #[command(subcommand)]
    Bundle(bundle::Bundle),
    /// Print what other parties need to believe our tokens (operators)
    Federate(federate::Args),
    /// Say how the agent is (operators)
    #[command(after_help = status::EXAMPLES)]
    Status(status::Args),
    /// Keep credentials in files for programs that know nothing of SPIFFE, and reload or run those programs
    #[command(after_help = sync::EXAMPLES)]
    Sync(sync::Args),
    /// Run a program in a task of its own, or as what it is launched with: measured files, a clean environment
    #[command(after_help = run::EXAMPLES)]
    Run(run::Args),
    /// Show what agents work on, or end it (operators; with `--own` a process of the task)
    Task(task::Args),
    /// Say whether the agent serves, for probes
    #[command(after_help = healthcheck::EXAMPLES)]
    Healthcheck(healthcheck::Args),
    /// Watch it work: an agent, a child process, a rotation, kill -9, the revocation
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::Args),
    /// The demo's child
    #[command(hide = true)]
    DemoWorkload(demo::WorkloadArgs),
    /// Try to break what the agent promises, and say what held
    Selftest(selftest::Args),
    /// Holds credentials for the self-test
    #[command(hide = true)]
    SelftestHolder(selftest::HolderArgs),
    /// Goes on with a connection that is not its own
    #[command(hide = true)]
    SelftestHeir(selftest::HeirArgs),
}

#[derive(clap::Subcommand, Debug)]
enum Entry {
    /// Check entry files without an agent
    Check(entry::Check),
    /// List the entries the agent works with
    List(entry::List),
}

/// Commands that need no agent.
#[derive(clap::Subcommand, Debug)]
enum Local {
    /// Run the agent
    Agent(agent::Args),
    /// Read the audit log, or check that nobody changed it
    Audit(Box<audit::Args>),
    /// Check a configuration file
    Config(config::Args),
    /// Check, test and explain policies
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Recover from a lost ledger
    Ledger(ledger::Args),
    /// Give the agent its directories on a Kubernetes node (as root, before it starts)
    PrepareHost(prepare::Args),
    /// Print a completion script
    Completions(completions::Args),
    /// Reads files for the agent
    #[command(hide = true)]
    MeasureWorker,
    /// Becomes the program that `sync` supervises
    #[command(hide = true)]
    SyncChild,
    /// Becomes the program that `run` starts
    #[command(hide = true)]
    RunChild,
    /// Reads a ledger for the agent
    #[command(hide = true)]
    LedgerCheck,
}

impl Client {
    async fn run(self, context: &mut Context) -> Result<Exit, Failure> {
        match self {
            Self::Fetch(args) => fetch::run(args, context).await,
            Self::Watch(args) => watch::run(args, context).await,
            Self::Validate(args) => validate::run(args, context).await,
            Self::Whoami(args) => whoami::run(args, context).await,
            Self::Explain(args) => explain::run(args, context).await,
            Self::Approve(args) => approve::run(args, context).await,
            Self::Freeze(args) => freeze::freeze(args, context).await,
            Self::Kill(args) => kill::run(args, context).await,
            Self::Thaw(args) => freeze::thaw(args, context).await,
            Self::Lease(args) => lease::run(args, context).await,
            Self::Authority(args) => authority::run(args, context).await,
            Self::Entry(Entry::Check(args)) => entry::check(&args, context),
            Self::Entry(Entry::List(args)) => entry::list(args, context).await,
            Self::Bundle(what) => bundle::run(what, context).await,
            Self::Federate(args) => federate::run(args, context).await,
            Self::Status(args) => status::run(args, context).await,
            Self::Sync(args) => sync::run(args, context).await,
            Self::Run(args) => run::run(args, context).await,
            Self::Task(args) => task::run(args, context).await,
            Self::Healthcheck(args) => healthcheck::run(args, context).await,
            Self::Demo(args) => demo::run(args, context).await,
            Self::DemoWorkload(args) => demo::run_workload(args, context).await,
            Self::Selftest(args) => selftest::run(args, context).await,
            Self::SelftestHolder(args) => selftest::run_holder(args, context).await,
            Self::SelftestHeir(args) => selftest::run_heir(args, context).await,
        }
    }
}

impl Local {
    fn run(self, context: &mut Context) -> Result<Exit, Failure> {
        match self {
            Self::Agent(args) => Ok(agent::run(args)),
            Self::Audit(args) => audit::run(&args, context),
            Self::Config(args) => config::run(&args, context),
            Self::Policy(what) => policy::run(what, context),
            Self::Ledger(args) => ledger::run(&args, context),
            Self::PrepareHost(args) => prepare::run(&args, context),
            Self::Completions(args) => completions::run(&args, context),
            // All are answered in `main`, before anything is parsed.
            Self::MeasureWorker | Self::SyncChild | Self::RunChild | Self::LedgerCheck => {
                Err(Failure::usage("only the agent calls this"))
            }
        }
    }
}

/// Parses; help, version and mistakes are printed here and come back as the exit code.
fn parse(args: Vec<OsString>, context: &mut Context) -> Result<Command, Exit> {
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(cli.command),
        Err(error) if error.use_stderr() => {
            context.console.raw_error(&error.render().to_string());
            Err(Exit::Usage)
        }
        Err(error) => {
            let shown = context.console.raw(&error.render().to_string());
            Err(finish(shown.map(|()| Exit::Ok).map_err(Failure::from), context))
        }
    }
}

fn block_on(command: Client, context: &mut Context) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(command.run(context))
}

/// Says what went wrong and what to do next; an empty message says nothing.
fn finish(result: Result<Exit, Failure>, context: &mut Context) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(failure) => {
            if !failure.message.is_empty() {
                context.console.note(&failure.message);
            }
            if let Some(hint) = &failure.hint {
                context.console.note(&format!("hint: {hint}"));
            }
            failure.exit
        }
    }
}

/// Resolves when this process has nothing left to live for: Ctrl-C, SIGTERM, the terminal is gone, or the
/// reader of our output is (`mayfly fetch jwt --hold | mayfly validate jwt`).
async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    tokio::select! {
        _ = futures_util::future::select_all(waits) => {}
        () = reader_gone() => {}
    }
}

/// Resolves when standard output is a pipe that nobody reads any more. A writer would notice only at its
/// next line; who holds a credential may never write one.
async fn reader_gone() {
    use rustix::fs::{FileType, fstat};
    let is_pipe = fstat(std::io::stdout()).is_ok_and(|found| {
        matches!(FileType::from_raw_mode(found.st_mode), FileType::Fifo | FileType::Socket)
    });
    let (tell, told) = tokio::sync::oneshot::channel();
    if is_pipe {
        std::thread::spawn(move || {
            let stdout = std::io::stdout();
            // No event is asked for: the kernel tells of errors and hang-ups in any case.
            let mut pipe = [rustix::event::PollFd::new(&stdout, rustix::event::PollFlags::empty())];
            while rustix::event::poll(&mut pipe, None).is_err_and(|error| error == rustix::io::Errno::INTR) {}
            tell.send(()).ok();
        });
        told.await.ok();
    } else {
        std::future::pending::<()>().await;
    }
}

/// Names the revision of the SPIFFE specifications that was implemented (STB-02).
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (SPIFFE specifications at 665a28f, 2026-07-01)");

const EXAMPLES: &str = "\
Examples:
  mayfly demo                           see it work, in 20 seconds
  mayfly agent --dev                    run an agent for yourself, no root needed
  mayfly fetch x509                     get this process's identity from it

Exit codes:
  0 ok                                  6 data directory in use by another agent
  1 failed                              7 no identity, or permission denied
  2 usage                               8 agent unreachable or not ready
  3 this kernel cannot pin processes    9 drained, but some streams were cut off
  4 the socket's owner is not trusted  10 configuration or entries invalid
  5 data directory unusable";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::testing::{empty_env, run};
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        fn walk(command: &clap::Command, path: &str) {
            let subcommands: Vec<_> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
            if subcommands.is_empty() {
                let help = command.clone().render_long_help().to_string();
                assert!(help.contains("Examples:\n  "), "{path} has no examples");
            }
            for sub in subcommands.into_iter().filter(|sub| sub.get_name() != "help") {
                walk(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        walk(&Cli::command(), "mayfly");
    }

    #[tokio::test]
    async fn version_names_the_specification() {
        let ran = run(empty_env(), &["--version"]).await;
        assert_eq!(ran.exit, Exit::Ok);
        assert!(ran.out.starts_with("mayfly ") && ran.out.contains("665a28f"), "{}", ran.out);
    }

    #[tokio::test]
    async fn mistakes_on_the_command_line_exit_2() {
        for wrong in [&["nonsense"][..], &["fetch"], &["fetch", "x509", "--output", "xml"], &["agent"], &[]] {
            let ran = run(empty_env(), wrong).await;
            assert_eq!((ran.exit, ran.out.as_str()), (Exit::Usage, ""), "{wrong:?}");
            assert!(!ran.err.is_empty());
        }
    }

    #[tokio::test]
    async fn help_goes_to_standard_output_with_the_exit_codes() {
        let ran = run(empty_env(), &["--help"]).await;
        assert_eq!(ran.exit, Exit::Ok);
        assert!(ran.out.contains("Exit codes:") && !ran.out.contains("measure-worker"), "{}", ran.out);
    }

    #[tokio::test]
    async fn completions_know_the_commands() {
        for shell in ["bash", "zsh", "fish"] {
            let ran = run(empty_env(), &["completions", shell]).await;
            assert!(ran.exit == Exit::Ok && ran.out.contains("healthcheck"), "{shell}");
        }
    }
}
