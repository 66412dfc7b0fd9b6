//! `mayfly fetch`: one answer of the Workload API, checked, shown and if wanted written to files.

mod bundles;
mod jwt;
mod x509;

use std::path::{Path, PathBuf};

use super::args::OutputArgs;
use super::client::{ClientArgs, WaitFor};
use super::failure::Failure;
use super::{Context, stop};
use crate::exit::Exit;
use crate::files::{Folder, Layout};

/// `mayfly fetch …`
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Get X.509-SVIDs: certificates, keys, bundles and revocation lists
    #[command(after_help = x509::EXAMPLES)]
    X509(x509::Args),
    /// Get JWT-SVIDs for an audience
    #[command(after_help = jwt::EXAMPLES)]
    Jwt(jwt::Args),
    /// Get what is needed to verify others: X.509 authorities, revocation lists, JWT keys
    #[command(after_help = bundles::EXAMPLES)]
    Bundles(bundles::Args),
}

/// Flags that all three share.
#[derive(clap::Args, Debug)]
struct Common {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Write files into this directory (made with mode 0700 if missing), all at once
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Wait for the agent and for an identity, for ever or `--wait=30s`
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "ever")]
    wait: Option<WaitFor>,
}

impl Common {
    fn folder(&self) -> Result<Option<Folder>, Failure> {
        self.write
            .as_deref()
            .map(|path| Folder::open(path, Layout::PRIVATE))
            .transpose()
            .map_err(Failure::from)
    }
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    match args.what {
        What::X509(args) => x509::run(args, context).await,
        What::Jwt(args) => jwt::run(args, context).await,
        What::Bundles(args) => bundles::run(args, context).await,
    }
}

pub(super) use self::jwt::get as get_tokens;
#[cfg(test)]
pub(super) use self::jwt::tests::token as fake_token;
pub(super) use self::x509::{Sink, hold};

/// What Mayfly is about, said where people would otherwise be surprised.
fn say_revoked_on_exit(context: &mut Context, written: Option<&Path>) {
    let what = match written {
        Some(dir) => format!("the credentials in `{}`", dir.display()),
        None => "these credentials".to_owned(),
    };
    context.console.note(&format!(
        "{what} are revoked now that this command ends: they live as long as the process they were issued to \
         (`--hold` keeps it alive)"
    ));
}

/// Runs `work` until it ends or somebody asks us to stop; `None` = asked to stop.
async fn until_stopped<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        result = work => Some(result),
        () = stop() => None,
    }
}
