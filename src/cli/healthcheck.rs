//! `mayfly healthcheck`: gRPC health on the public socket, for probes and scripts.

use serde::Serialize;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Patience, Target, WaitFor, Which, answer};
use super::failure::Failure;
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly healthcheck && echo serving
  mayfly healthcheck --wait=30s            wait until it serves

Exit code: 0 serving, 8 not serving or not there.";

/// `mayfly healthcheck`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Wait until the agent serves, for ever or `--wait=30s`
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "ever")]
    wait: Option<WaitFor>,
}

#[derive(Serialize)]
struct Answer {
    status: &'static str,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let attempt = async |connection: super::client::Connection| {
        let request = HealthCheckRequest { service: String::new() };
        let found = answer(connection.health().check(request)).await?.into_inner();
        match ServingStatus::try_from(found.status) {
            Ok(ServingStatus::Serving) => Ok(()),
            _ => Err(Failure::new(Exit::Unreachable, "the agent is not serving")),
        }
    };
    let result = Patience::new(args.wait).persist(context, &target, attempt).await;
    let status = if result.is_ok() { "serving" } else { "not serving" };
    if args.output.is_json() {
        context.console.json(&Answer { status })?;
    } else if result.is_ok() {
        context.console.line(status)?;
    }
    result.map(|()| Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::super::testing::agent::Agent;
    use super::super::testing::{empty_env, run};
    use super::*;

    #[tokio::test]
    async fn serving_is_0_and_everything_else_is_8() {
        let mut agent = Agent::start();
        let ran = agent.run(&["healthcheck"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, "serving\n"));
        assert_eq!(agent.run(&["healthcheck", "--output", "json"]).await.json()["status"], "serving");
        agent.crash();
        let ran = agent.run(&["healthcheck", "--output", "json"]).await;
        assert_eq!((ran.exit, ran.json()["status"].as_str()), (Exit::Unreachable, Some("not serving")));
        assert_eq!(run(empty_env(), &["healthcheck"]).await.exit, Exit::Unreachable);
    }

    #[tokio::test]
    async fn wait_sees_the_socket_appear() {
        let mut agent = Agent::start();
        agent.crash();
        std::fs::remove_file(&agent.socket).expect("unlink");
        let env = agent.env();
        let later = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            agent.listen();
        };
        let (ran, ()) = tokio::join!(run(env, &["healthcheck", "--wait=20s"]), later);
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert!(ran.err.contains("waiting for the agent"), "{}", ran.err);
    }
}
