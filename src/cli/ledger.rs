//! `mayfly ledger reset`: the way on after a lost ledger.

use std::path::PathBuf;

use super::Context;
use super::failure::Failure;
use crate::clock::{Clock, SystemClock, unix_seconds};
use crate::exit::Exit;
use crate::ledger::{self, OpenError};

const EXAMPLES: &str = "\
Examples:
  systemctl stop mayfly && mayfly ledger reset --data-dir /var/lib/mayfly && systemctl start mayfly

Nobody can name the credentials a lost ledger held, so the keys that signed them are set aside with it: the
agent starts with new ones, and every credential issued before stops verifying. Nothing is deleted.";

/// `mayfly ledger …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Set a damaged ledger and the keys it stood for aside, so that the agent can start anew
    #[command(after_help = EXAMPLES)]
    Reset {
        /// The stopped agent's data directory
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let What::Reset { data_dir } = &args.what;
    // The agent makes a missing data directory; here a missing one is a slip of the pen.
    if !data_dir.is_dir() {
        return Err(Failure::new(Exit::DataDir, format!("there is no directory `{}`", data_dir.display())));
    }
    let aside = ledger::reset(data_dir, unix_seconds(SystemClock.wall())).map_err(|error| {
        let exit = match error {
            OpenError::InUse { .. } => Exit::DataDirBusy,
            OpenError::Unwritable { .. }
            | OpenError::Untrusted { .. }
            | OpenError::Corrupt { .. }
            | OpenError::Schema { .. } => Exit::DataDir,
        };
        Failure::new(exit, error.to_string())
    })?;
    context.console.line(&format!("ledger, keys and CRLs are now in {}", aside.display()))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{empty_env, run};
    use super::*;
    use crate::ledger::testing::data_dir;

    #[tokio::test]
    async fn says_where_everything_went() {
        let dir = data_dir();
        std::fs::write(dir.path().join("ledger.redb"), "rubbish").expect("write");
        let path = dir.path().to_str().expect("text");
        let ran = run(empty_env(), &["ledger", "reset", "--data-dir", path]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let aside = ran.out.trim().rsplit(' ').next().expect("path");
        assert!(PathBuf::from(aside).join("ledger.redb").exists(), "{}", ran.out);
    }

    #[tokio::test]
    async fn an_unusable_data_directory_exits_5() {
        let ran = run(empty_env(), &["ledger", "reset", "--data-dir", "/nonexistent"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::DataDir, ""));
    }
}
