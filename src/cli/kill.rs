//! `mayfly kill`: the kill switch with nothing held back.

use mayfly_proto::admin::frozen_thing::What;
use mayfly_proto::task::FreezeRequest;
use mayfly_proto::task::freeze_request::What as Asked;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::freeze::Thing;
use super::render::{cell, count, millis};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly kill --task tsk_01K6E4ZQ7M0000000000000000 --reason 'incident 4711'
  mayfly kill --agent spiffe://example.org/agent/a --reason 'incident 4711'
  mayfly kill --all --output json

Freezes as `mayfly freeze` does, then ends every task of it and all below, refuses their credentials, and kills the
processes that hold the tasks, whoever else they work for. What a target freezes names no task: what was issued for it is
taken back, and nothing is killed. It stays frozen until `mayfly thaw`.

Exit code: 1 when a process could not be killed, or the freeze could not be written down.";

/// `mayfly kill`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
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

#[derive(serde::Serialize)]
struct KilledJson {
    killed: String,
    tasks: u32,
    credentials: u32,
    processes: u32,
    not_killed: u32,
    micros: u64,
    /// Nothing bears the name: what is known instead.
    #[serde(skip_serializing_if = "String::is_empty")]
    unknown: String,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let (name, thing) = args.thing.named();
    let what = thing.what.map(|what| match what {
        What::All(all) => Asked::All(all),
        What::SpiffeId(id) => Asked::SpiffeId(id),
        What::TaskId(id) => Asked::TaskId(id),
        What::Target(name) => Asked::Target(name),
    });
    let connection = target.connect().await?;
    let request = FreezeRequest { reason: args.reason, kill: true, what };
    let done = answer(connection.task_admin().freeze(request)).await?.into_inner();
    let name = super::freeze::known_as(name, &done.what);
    super::freeze::warn_of_unknown(&done.unknown, context);
    if args.output.is_json() {
        context.console.json(&KilledJson {
            killed: name,
            tasks: done.tasks,
            credentials: done.credentials,
            processes: done.scopes,
            not_killed: done.scopes_not_held,
            micros: done.micros,
            unknown: done.unknown,
        })?;
    } else {
        let tasks = count(done.tasks.into(), "task", "tasks");
        let credentials = count(done.credentials.into(), "credential", "credentials");
        let processes = count(done.scopes.into(), "process or cgroup", "processes or cgroups");
        let took = millis(done.micros);
        context.console.line(&format!("frozen: {}", cell(&name)))?;
        context.console.line(&format!(
            "{tasks} ended (kill_switch), {credentials} refused, {processes} killed, in {took}"
        ))?;
    }
    match done.scopes_not_held {
        0 => Ok(Exit::Ok),
        left => {
            let left = count(left.into(), "process or cgroup lives on", "processes or cgroups live on");
            Err(Failure::failed(format!("{left}: the agent may not kill it")).hint(
                "as root: `mayfly task list --ended` names the pid; the agent needs CAP_KILL, and cgroups that it may write, to do it itself",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use mayfly_proto::task::FreezeResult;

    use super::super::testing::agent::Agent;
    use super::*;

    #[tokio::test]
    async fn a_kill_says_what_it_did_and_fails_when_something_lives_on() {
        let agent = Agent::start();
        let did = FreezeResult {
            tasks: 2,
            credentials: 3,
            scopes: 1,
            scopes_not_held: 0,
            micros: 1_500,
            ..Default::default()
        };
        *agent.script.frozen.lock().expect("lock") = Ok(did.clone());
        let ran = agent.run(&["kill", "--task", "tsk_1", "--reason", "incident"]).await;
        let want = "frozen: task tsk_1\n2 tasks ended (kill_switch), 3 credentials refused, 1 process or cgroup killed, in 1.500 ms\n";
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, want), "{ran:?}");
        let asked = agent.requests().last().cloned().unwrap_or_default();
        assert!(asked.contains("kill: true") && asked.contains("TaskId(\"tsk_1\")"), "{asked}");
        *agent.script.frozen.lock().expect("lock") = Ok(FreezeResult { scopes_not_held: 1, ..did });
        let ran = agent.run(&["kill", "--all", "--output", "json"]).await;
        assert!(ran.json().get("unknown").is_none(), "{ran:?}");
        assert_eq!(ran.exit, Exit::Failed, "{ran:?}");
        assert!(ran.err.contains("1 process or cgroup lives on"), "{}", ran.err);
        assert_eq!(ran.json()["not_killed"], 1);
        *agent.script.frozen.lock().expect("lock") =
            Ok(FreezeResult { unknown: "none".to_owned(), ..Default::default() });
        let ran = agent.run(&["kill", "--target", "wikki"]).await;
        assert_eq!(ran.err, "mayfly: warning: this stops nobody now: none\n", "{ran:?}");
        assert_eq!(agent.run(&["kill"]).await.exit, Exit::Usage);
    }
}
