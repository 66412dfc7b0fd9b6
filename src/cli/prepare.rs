//! `mayfly prepare-host`: gives the agent its directories on a node. Root's part, for the init container of the
//! DaemonSet: the agent itself runs as another user and may not.

use std::path::PathBuf;

use super::Context;
use super::failure::Failure;
use crate::exit::Exit;
use crate::files::{self, Holding};

const EXAMPLES: &str = "\
Examples:
  mayfly prepare-host --owner=64917 --public=/run/mayfly/public --state=/var/lib/mayfly

Makes the directories where they are missing. --public directories may be entered by everybody, --state directories by
their owner alone. What a directory of another owner holds is given to the new one; nothing else is touched.
Needs root with CAP_CHOWN, no other capability.";

/// `mayfly prepare-host`
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Uid, which is the gid too, that the agent runs as
    #[arg(long, value_name = "UID")]
    owner: u32,
    /// A directory that holds sockets
    #[arg(long, value_name = "DIR")]
    public: Vec<PathBuf>,
    /// A directory that holds keys and the ledger
    #[arg(long, value_name = "DIR")]
    state: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let public = args.public.iter().map(|path| (path, Holding::Sockets));
    let state = args.state.iter().map(|path| (path, Holding::Keys));
    let all: Vec<_> = public.chain(state).map(|(path, holding)| (path.clone(), holding)).collect();
    files::hand_over(&all, args.owner).map_err(|error| Failure::new(Exit::DataDir, error.to_string()))?;
    for (path, _) in &all {
        context.console.line(&format!("{} is uid {}'s", path.display(), args.owner))?;
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{empty_env, run};
    use super::*;

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_exits_5() {
        let ran = run(empty_env(), &["prepare-host", "--owner=64917", "--state=/proc/no/such"]).await;
        assert_eq!(ran.exit, Exit::DataDir, "{ran:?}");
    }
}
