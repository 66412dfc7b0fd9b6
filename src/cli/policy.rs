//! `mayfly policy check|lint|test|explain|schema`: policy sets on somebody's desk. Needs no agent.

mod explain;

use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::render::{cell, count};
use super::{Context, config};
use crate::clock::{Clock as _, SystemClock};
use crate::diag::{Problem, Problems};
use crate::exit::Exit;
use crate::id::TrustDomain;
use crate::policy::{Case, PolicySet, SCHEMA, check_policies, parse_cases};

const CHECK_EXAMPLES: &str = "\
Examples:
  mayfly policy check /etc/mayfly/policy.d
  mayfly policy check --config /etc/mayfly/mayfly.toml ./policy.d && rsync -a ./policy.d/ /etc/mayfly/policy.d/

Needs no agent. Exit code: 10 when anything is wrong; every problem is named with file, line and column.";

const LINT_EXAMPLES: &str = "\
Examples:
  mayfly policy lint /etc/mayfly/policy.d
  mayfly policy lint --output json ./policy.d | jq '.findings[] | select(.fails)'

Everything that `check` finds, and what loads and should be otherwise. Exit code: 10 when something fails, such as an
exception without `@owner` and `@until`; notes alone exit with 0.";

const TEST_EXAMPLES: &str = "\
Examples:
  mayfly policy test deploy/policy/research-agent/cases.yaml
  mayfly policy test --policy /etc/mayfly/policy.d cases.yaml

Without --policy, each file of cases is held against the policies in its own directory. Exit code: 1 when a case does
not hold, 10 when the policies or the cases are wrong.";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  mayfly policy explain --policy ./policy.d --as spiffe://example.org/agent/a --action write --target wiki
  mayfly policy explain --policy ./policy.d --as spiffe://example.org/agent/a --action write --target wiki --approved-by ann
  mayfly policy explain --policy ./policy.d --as spiffe://example.org/web --action fetch --kind jwt --audience https://api.example.org

Prints the policies that decide, why others do not apply, and what would have to change. Exit code: 0 when it is allowed, 7
when it is not.";

const SCHEMA_EXAMPLES: &str = "\
Examples:
  mayfly policy schema > mayfly.cedarschema       for an editor that knows Cedar";

/// `mayfly policy …`
#[derive(clap::Subcommand, Debug)]
pub(super) enum Policy {
    /// Check policies and their catalogue
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Set),
    /// Check, and say what should be otherwise
    #[command(after_help = LINT_EXAMPLES)]
    Lint(Lint),
    /// Hold policies to what is expected of them
    #[command(after_help = TEST_EXAMPLES)]
    Test(Test),
    /// Say what policies would decide, why, and what would have to change
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(Box<explain::Args>),
    /// Print the schema that policies are held to
    #[command(after_help = SCHEMA_EXAMPLES)]
    Schema,
}

/// A policy set on the command line.
#[derive(clap::Args, Debug)]
pub(super) struct Set {
    /// Directories with policies and their catalogue, or single files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Check against this configuration too: its trust domain
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// `mayfly policy lint`
#[derive(clap::Args, Debug)]
pub(super) struct Lint {
    #[command(flatten)]
    set: Set,
    #[command(flatten)]
    output: super::args::OutputArgs,
}

/// `mayfly policy test`
#[derive(clap::Args, Debug)]
pub(super) struct Test {
    /// Files of cases
    #[arg(required = true, value_name = "CASES")]
    cases: Vec<PathBuf>,
    /// The policies to hold to them, instead of those beside them
    #[arg(long, value_name = "PATH")]
    policy: Vec<PathBuf>,
}

#[derive(serde::Serialize)]
struct Findings {
    findings: Vec<FindingJson>,
}

#[derive(serde::Serialize)]
struct FindingJson {
    file: String,
    line: usize,
    column: usize,
    message: String,
    fails: bool,
}

pub(super) fn run(what: Policy, context: &mut Context) -> Result<Exit, Failure> {
    match what {
        Policy::Check(set) => check(&set, context),
        Policy::Lint(args) => lint(&args, context),
        Policy::Test(args) => test(&args, context),
        Policy::Explain(args) => explain::run(*args, context),
        Policy::Schema => {
            context.console.lines(SCHEMA.lines())?;
            Ok(Exit::Ok)
        }
    }
}

impl Set {
    fn load(&self) -> Result<PolicySet, Problems> {
        load(&self.paths, self.config.as_deref())
    }
}

/// The policies at these paths, as an agent with that configuration would see them.
fn load(paths: &[PathBuf], config: Option<&Path>) -> Result<PolicySet, Problems> {
    let own: Option<TrustDomain> =
        config.map(crate::config::load).transpose()?.map(|config| config.trust_domain);
    check_policies(paths, own.as_ref())
}

fn check(set: &Set, context: &mut Context) -> Result<Exit, Failure> {
    match set.load() {
        Ok(set) => {
            let number = |n| super::show::as_u64(n);
            let policies = count(number(set.policies()), "policy is", "policies are");
            let targets = count(number(set.catalogue().targets().count()), "target", "targets");
            let version = set.version().map_or_else(String::new, |version| version.to_string());
            context.console.line(&format!("{policies} good, for {targets}"))?;
            context.console.line(&format!("version {version}"))?;
            Ok(Exit::Ok)
        }
        Err(problems) => config::report(&problems, context),
    }
}

fn lint(args: &Lint, context: &mut Context) -> Result<Exit, Failure> {
    let set = match args.set.load() {
        Ok(set) => set,
        Err(problems) => return config::report(&problems, context),
    };
    let found = set.lint(SystemClock.wall());
    let failing = found.iter().filter(|lint| lint.fails).count();
    if args.output.is_json() {
        let json = |lint: &crate::policy::Lint| {
            let Problem { file, line, column, message, .. } = lint.problem.clone();
            FindingJson { file: file.to_string(), line, column, message, fails: lint.fails }
        };
        context.console.json(&Findings { findings: found.iter().map(json).collect() })?;
    } else {
        for lint in &found {
            let word = if lint.fails { "" } else { "note: " };
            context.console.line(&format!("{word}{}", lint.problem))?;
        }
    }
    if failing > 0 {
        let failing = count(super::show::as_u64(failing), "finding fails", "findings fail");
        return Err(Failure::new(Exit::Invalid, failing));
    }
    Ok(Exit::Ok)
}

fn test(args: &Test, context: &mut Context) -> Result<Exit, Failure> {
    let now = SystemClock.wall();
    let (mut held, mut broken) = (0, 0);
    for file in &args.cases {
        let (set, cases) = match both(file, &args.policy) {
            Ok(both) => both,
            Err(problems) => return config::report(&problems, context),
        };
        for case in &cases {
            let Err(found) = case.run(&set, now) else {
                held += 1;
                continue;
            };
            broken += 1;
            context.console.line(&found.problem.to_string())?;
            let explanation = found.explanation.map(|explanation| explanation.to_string());
            for line in explanation.as_deref().unwrap_or_default().lines() {
                context.console.line(&format!("    {}", cell(line)))?;
            }
        }
    }
    if broken > 0 {
        let broken = count(broken, "case does not hold", "cases do not hold");
        return Err(Failure::new(Exit::Failed, format!("{broken}, {held} do")));
    }
    context.console.line(&count(held, "case holds", "cases hold"))?;
    Ok(Exit::Ok)
}

/// A file of cases, and the policies that it is about.
fn both(file: &Path, policy: &[PathBuf]) -> Result<(PolicySet, Vec<Case>), Problems> {
    let shown = file.display().to_string();
    if file.is_dir() {
        let (what, example) = ("is a directory, and a file of cases is wanted", file.join("cases.yaml"));
        let why =
            format!("{what}: name it, such as `{}`; policies are named with --policy", example.display());
        return Err(Problem::whole_file(&shown, why).into());
    }
    let unreadable = |error| Problem::whole_file(&shown, format!("cannot be read: {error}"));
    let bytes = std::fs::read(file).map_err(unreadable)?;
    let beside = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut problems = Problems::new();
    let beside = [beside];
    let set = check_policies(if policy.is_empty() { &beside } else { policy }, None);
    let set = set.map_err(|found| problems.append(found)).ok();
    let cases = parse_cases(&shown, &bytes).map_err(|found| problems.append(found)).ok();
    problems.into_result(set.zip(cases))
}

#[cfg(test)]
mod tests;
