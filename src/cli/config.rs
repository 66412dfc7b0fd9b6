//! `mayfly config check FILE`: every mistake in one report, or the configuration with all defaults.

use std::path::PathBuf;

use super::failure::Failure;
use super::{Context, render};
use crate::config;
use crate::diag::Problems;
use crate::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  mayfly config check /etc/mayfly/mayfly.toml && systemctl restart mayfly

Needs no agent. Prints the configuration with every default filled in. Exit code: 10 when anything is wrong; every problem is named with file, line and field.";

/// `mayfly config …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Check a configuration file without starting anything
    #[command(after_help = EXAMPLES)]
    Check {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let What::Check { file } = &args.what;
    match config::check(file) {
        Ok(resolved) => {
            context.console.lines(resolved.lines())?;
            Ok(Exit::Ok)
        }
        Err(problems) => report(&problems, context),
    }
}

/// Every problem on its own line, then how many.
pub(super) fn report(problems: &Problems, context: &mut Context) -> Result<Exit, Failure> {
    context.console.lines(problems.to_string().lines())?;
    let number = super::show::as_u64(problems.len());
    Err(Failure::new(Exit::Invalid, render::count(number, "problem", "problems")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{empty_env, run};
    use super::*;

    #[tokio::test]
    async fn a_good_file_is_shown_with_its_defaults() {
        let dir = crate::ledger::testing::data_dir();
        let file = dir.path().join("mayfly.toml");
        std::fs::write(&file, "trust_domain = \"example.org\"\n").expect("write");
        let ran = run(empty_env(), &["config", "check", file.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert!(
            ran.out.contains("trust_domain = \"example.org\"") && ran.out.contains("[x509]"),
            "{}",
            ran.out
        );
    }

    #[tokio::test]
    async fn every_mistake_is_named_and_the_exit_code_is_10() {
        let dir = crate::ledger::testing::data_dir();
        let file = dir.path().join("mayfly.toml");
        std::fs::write(&file, "trust_domain = \"Example.org\"\n[x509]\nttl = \"9\"\ntypo = 1\n")
            .expect("write");
        let ran = run(empty_env(), &["config", "check", file.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Invalid);
        assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
        assert!(ran.out.lines().all(|line| line.contains("mayfly.toml:")), "{}", ran.out);
        assert_eq!(ran.err, "mayfly: 3 problems\n");
        assert_eq!(run(empty_env(), &["config", "check", "/nonexistent"]).await.exit, Exit::Invalid);
    }
}
