//! `mayfly agent`: the command line of the agent; everything else is in [`crate::app`].

use std::path::PathBuf;
use std::time::Duration;

use super::args::duration;
use crate::app::{AgentArgs, run_agent};
use crate::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  mayfly agent --dev                                    try it: no root, no configuration, your own uid
  mayfly agent --config /etc/mayfly/mayfly.toml         for real
  mayfly agent --dev --runtime-dir ./run --x509-ttl 30s

Exit codes: 3 this kernel cannot pin processes, 5 data directory unusable, 6 in use by another agent,
9 some streams were cut off, 10 configuration or entries invalid.";

/// `mayfly agent`
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    how: How,
    /// With --dev: where the sockets go (default: `$XDG_RUNTIME_DIR/mayfly`, else a private directory in /tmp)
    #[arg(long, value_name = "DIR", requires = "dev")]
    runtime_dir: Option<PathBuf>,
    /// With --dev: how long an X.509-SVID lives, 10s to 1h
    #[arg(long, value_name = "DURATION", requires = "dev", value_parser = duration)]
    x509_ttl: Option<Duration>,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct How {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run in memory for your own uid: no root, no configuration; sockets and audit log in $XDG_RUNTIME_DIR/mayfly or below /tmp
    #[arg(long)]
    dev: bool,
}

pub(super) fn run(args: Args) -> Exit {
    let Args { how: How { config, dev }, runtime_dir, x509_ttl } = args;
    run_agent(AgentArgs { config, dev, runtime_dir, x509_ttl })
}
