//! `mayfly freeze` and `mayfly thaw`: the kill switch.

use mayfly_proto::admin::frozen_thing::What;
use mayfly_proto::admin::{FreezeRequest, FrozenThing, ThawRequest};

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::count;
use crate::exit::Exit;

pub(super) const FREEZE_EXAMPLES: &str = "\
Examples:
  mayfly freeze --agent spiffe://example.org/agent/a --reason 'incident 4711'
  mayfly freeze --agent spiffe://example.org/agent/a --revoke      take back what it has, too
  mayfly freeze --target payroll
  mayfly freeze --all --revoke --reason 'incident 4711'

Nothing is issued to, or decided in favour of, what is frozen, until it is thawed; a restart thaws nothing. The processes
of tasks that are held by a cgroup stand still meanwhile, where the agent may write to cgroups; others run on without
credentials. `mayfly status`
lists what is frozen. When nothing else works, a file named FREEZE beside the directory of the admin socket
(/run/mayfly/FREEZE) freezes everything until it is removed.";

pub(super) const THAW_EXAMPLES: &str = "\
Examples:
  mayfly thaw --agent spiffe://example.org/agent/a
  mayfly thaw --all                                   two different users must say so within ten minutes

Exit code: 1 when it was not frozen, and when the thaw of everything is noted and another user must say the same. A
development agent (`mayfly agent --dev`) serves one user, whose word is enough.";

/// `mayfly freeze`
#[derive(clap::Args, Debug)]
pub(super) struct Freeze {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    thing: Thing,
    /// Why, for the record
    #[arg(long, default_value = "")]
    reason: String,
    /// Revoke what was given, too
    #[arg(long)]
    revoke: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// `mayfly thaw`
#[derive(clap::Args, Debug)]
pub(super) struct Thaw {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    thing: Thing,
    /// Why, for the record
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// What.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Thing {
    /// Everything
    #[arg(long)]
    all: bool,
    /// One agent, by its SPIFFE ID
    #[arg(long, value_name = "SPIFFE_ID")]
    agent: Option<String>,
    /// One task and everything below it
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// One target, for everybody: its name, or an audience
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
}

#[derive(serde::Serialize)]
struct FrozenJson {
    frozen: String,
    credentials: u32,
    revoked: bool,
    /// Cgroups that stand still.
    still: u32,
    /// Holders of tasks that could not be made to.
    not_still: u32,
    /// Nothing bears the name: what is known instead.
    #[serde(skip_serializing_if = "String::is_empty")]
    unknown: String,
}

#[derive(serde::Serialize)]
struct ThawedJson {
    thawed: String,
    needs_another: bool,
}

impl Thing {
    /// How it is called, and as the agent knows it.
    pub(super) fn named(self) -> (String, FrozenThing) {
        let Self { agent, task, target, .. } = self;
        let (name, what) = match (agent, task, target) {
            (Some(agent), ..) => (format!("agent {agent}"), What::SpiffeId(agent)),
            (_, Some(task), _) => (format!("task {task}"), What::TaskId(task)),
            (.., Some(target)) => (format!("target {target}"), What::Target(target)),
            // One of the four is there: clap sees to it.
            _ => ("everything".to_owned(), What::All(true)),
        };
        (name, FrozenThing { what: Some(what) })
    }
}

pub(super) async fn freeze(args: Freeze, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let (name, thing) = args.thing.named();
    let request = FreezeRequest { thing: Some(thing), reason: args.reason, revoke: args.revoke };
    let connection = target.connect().await?;
    let done = answer(connection.admin().freeze(request)).await?.into_inner();
    let name = known_as(name, &done.what);
    warn_of_unknown(&done.unknown, context);
    if args.output.is_json() {
        let json = FrozenJson {
            frozen: name,
            credentials: done.credentials,
            revoked: args.revoke,
            still: done.scopes,
            not_still: done.scopes_not_held,
            unknown: done.unknown,
        };
        context.console.json(&json)?;
        return Ok(Exit::Ok);
    }
    let out = count(done.credentials.into(), "live credential", "live credentials");
    let what_of =
        if args.revoke { "being revoked" } else { "tokens suspended, certificates good till they expire" };
    context.console.line(&format!("frozen: {} ({out}, {what_of})", super::render::cell(&name)))?;
    if done.scopes + done.scopes_not_held > 0 {
        let still = count(done.scopes.into(), "cgroup stands still", "cgroups stand still");
        let runs = count(done.scopes_not_held.into(), "holder of a task runs on", "holders of tasks run on");
        context.console.line(&format!("{still}, {runs}"))?;
    }
    Ok(Exit::Ok)
}

/// As the agent keeps it, where it says so: who calls a target by its audience is told which one that is.
pub(super) fn known_as(called: String, what: &str) -> String {
    if what.is_empty() { called } else { what.to_owned() }
}

/// Nobody bears the name: it may be meant for somebody to come, or be mistyped.
pub(super) fn warn_of_unknown(unknown: &str, context: &mut Context) {
    if !unknown.is_empty() {
        context.console.note(&format!("warning: this stops nobody now: {}", super::render::cell(unknown)));
    }
}

pub(super) async fn thaw(args: Thaw, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let (name, thing) = args.thing.named();
    let connection = target.connect().await?;
    let request = ThawRequest { thing: Some(thing), reason: args.reason };
    let done = answer(connection.admin().thaw(request)).await?.into_inner();
    let (name, needs_another) = (known_as(name, &done.what), done.needs_another);
    if args.output.is_json() {
        context.console.json(&ThawedJson { thawed: name, needs_another })?;
    } else if !needs_another {
        context.console.line(&format!("thawed: {}", super::render::cell(&name)))?;
    }
    if needs_another {
        // What was asked for has not happened: a script must not go on as if it had.
        return Err(Failure::failed("noted, and everything is still frozen: two different users must say so")
            .hint("another user who may use the admin socket runs `mayfly thaw --all` within ten minutes (`sudo -u NAME …`)"));
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::super::testing::agent::Agent;
    use super::*;

    #[tokio::test]
    async fn exactly_one_thing_is_frozen_or_thawed() {
        let agent = Agent::start();
        let ran = agent.run(&["freeze", "--agent", "spiffe://example.org/a", "--revoke"]).await;
        let want = "frozen: agent spiffe://example.org/a (3 live credentials, being revoked)\n\
                    1 cgroup stands still, 2 holders of tasks run on\n";
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, want), "{ran:?}");
        let ran = agent.run(&["thaw", "--all"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""), "nothing is thawed: {ran:?}");
        assert!(ran.err.contains("still frozen") && ran.err.contains("another user"), "{ran:?}");
        let ran = agent.run(&["thaw", "--all", "--output", "json"]).await;
        assert_eq!((ran.exit, &ran.json()["needs_another"]), (Exit::Failed, &true.into()), "{ran:?}");
        let ran = agent.run(&["freeze", "--target", "wikki"]).await;
        let warned = "mayfly: warning: this stops nobody now: no such target; did you mean `wiki`?\n";
        assert_eq!(
            (ran.exit, ran.err.as_str()),
            (Exit::Ok, warned),
            "to freeze ahead is no mistake: {ran:?}"
        );
        let json = agent.run(&["freeze", "--target", "wiki", "--output", "json"]).await.json();
        assert_eq!((json["frozen"].as_str(), json["revoked"].as_bool()), (Some("target wiki"), Some(false)));
        for wrong in [&["freeze"][..], &["freeze", "--all", "--task", "t"], &["thaw", "--revoke", "--all"]] {
            assert_eq!(agent.run(wrong).await.exit, Exit::Usage, "{wrong:?}");
        }
    }
}
