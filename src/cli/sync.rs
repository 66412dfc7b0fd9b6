//! `mayfly sync`: credentials in files, for programs that know nothing of SPIFFE. The work is in
//! [`crate::sync`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::failure::Failure;
use super::{Context, args};
use crate::exit::Exit;
use crate::sync::{self, Ended, Mode, Sync, SyncError};
use crate::verify::WorkloadError;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly sync --config /etc/mayfly/nginx.toml                     write files, reload nginx as the file says
  mayfly sync --config /etc/mayfly/nginx.toml -- nginx -g 'daemon off;'   run nginx; both end together
  mayfly sync --config /etc/mayfly/nginx.toml --check             only say what would be written
  mayfly sync --config /etc/mayfly/ca.toml --once --wait 60s      write once, for an init container

The identity belongs to this command, not to the programs that read its files: it is revoked when this command
ends, with --once at once. Keys and tokens are removed at the end unless the configuration keeps them.
Reference: docs/sync.md";

/// `mayfly sync …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// What to write where, and whom to tell
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration and say what it means
    #[arg(long, conflicts_with_all = ["once", "program"])]
    check: bool,
    /// End when the first files are written. Their certificate is revoked then
    #[arg(long, conflicts_with = "program")]
    once: bool,
    /// Give up when the first files are not written within this time, for example `60s`
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    wait: Option<Duration>,
    /// A program to run: started when the files are there, told of changes, given our signals. Its exit code
    /// becomes ours
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    if args.check {
        return match sync::check(&args.config) {
            Ok(lines) => {
                context.console.lines(lines)?;
                Ok(Exit::Ok)
            }
            Err(problems) => super::config::report(&problems, context),
        };
    }
    let config = match sync::load(&args.config) {
        Ok(config) => config,
        Err(problems) => return super::config::report(&problems, context),
    };
    let mode = match (args.once, args.program.is_empty()) {
        (true, _) => Mode::Once,
        (false, true) => Mode::Stay,
        (false, false) => Mode::Supervise(args.program),
    };
    let once = mode == Mode::Once;
    let outcome = {
        let mut say = |text: &str| context.console.note(text);
        match Sync::new(config, mode, &mut say) {
            Ok(sync) => sync.run(args.wait).await,
            Err(error) => Err(error),
        }
    };
    match outcome {
        Ok(Ended::Well) => {
            if once {
                context.console.note("the certificate is revoked now that this command ends");
            }
            Ok(Exit::Ok)
        }
        Ok(Ended::Program(code)) => Ok(Exit::Passed(code)),
        Err(error) => Err(failure(&error)),
    }
}

fn failure(error: &SyncError) -> Failure {
    let exit = match error {
        SyncError::Endpoint(_) => Exit::Usage,
        SyncError::Workload(WorkloadError::Untrusted { .. }) => Exit::Untrusted,
        SyncError::Workload(_) | SyncError::Write(_) | SyncError::Signals(_) | SyncError::Start { .. } => {
            Exit::Failed
        }
        SyncError::TooLate(..) => Exit::NoIdentity,
    };
    let failure = Failure::new(exit, error.to_string());
    match exit {
        Exit::NoIdentity => failure.hint("`mayfly whoami` as this user says what the agent knows about it"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{empty_env, run};
    use super::*;

    async fn with(text: &str, more: &[&str]) -> super::super::testing::Ran {
        let dir = crate::ledger::testing::data_dir();
        let file = dir.path().join("sync.toml");
        std::fs::write(&file, text).expect("write");
        let args = [&["sync", "--config", file.to_str().expect("text")], more].concat();
        run(empty_env(), &args).await
    }

    #[tokio::test]
    async fn check_says_what_would_be_written() {
        let ran = with("directory = \"/nonexistent/d\"\n", &["--check"]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        for line in ["directory /nonexistent/d", "tls.key 0600 key", "crl.pem 0644", "HUP to a supervised"] {
            assert!(ran.out.contains(line), "{line}\n{}", ran.out);
        }
    }

    #[tokio::test]
    async fn mistakes_exit_10_with_or_without_check() {
        for more in [&["--check"][..], &["--once"]] {
            let ran = with("directory = 1\ntypo = 2\n", more).await;
            assert_eq!((ran.exit, ran.out.lines().count()), (Exit::Invalid, 2), "{ran:?}");
        }
    }

    #[tokio::test]
    async fn a_program_and_once_exclude_each_other() {
        let ran = with("directory = \"/d\"\n", &["--once", "--", "true"]).await;
        assert_eq!(ran.exit, Exit::Usage);
    }
}
