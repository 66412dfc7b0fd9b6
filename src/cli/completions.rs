//! `mayfly completions SHELL`: a script for the shell to complete command lines.

use clap::CommandFactory;
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, Context};
use crate::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  source <(mayfly completions bash)
  mayfly completions zsh > ~/.zfunc/_mayfly
  mayfly completions fish > ~/.config/fish/completions/mayfly.fish";

/// `mayfly completions`
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mayfly", &mut script);
    context.console.raw(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
