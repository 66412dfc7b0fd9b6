//! `mayfly federate jwks`: the keys of JWT-SVIDs, for vendors that take a key set inline instead of fetching it.

use mayfly_proto::admin::JwtKeySetRequest;
use serde_json::Value;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use crate::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  mayfly federate jwks                 the key set, to paste into a vendor's form
  mayfly federate jwks --output json   the same on one line

The keys change when the agent's JWT authority does: a vendor that can fetch them from the issuer is better served
by `[oidc] issuer` (docs/http.md).";

/// `mayfly federate …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Print the public keys of JWT-SVIDs as a JWK Set
    #[command(after_help = EXAMPLES)]
    Jwks {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let What::Jwks { client, output } = args.what;
    let target = Target::resolve(&client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let set = answer(connection.admin().jwt_key_set(JwtKeySetRequest {})).await?.into_inner();
    let readable: Option<Value> = serde_json::from_str(&set.jwks).ok();
    let text = match readable.filter(|_| !output.is_json()) {
        Some(set) => format!("{set:#}"),
        None => set.jwks,
    };
    for line in text.lines() {
        context.console.line(line)?;
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::agent::Agent;

    #[tokio::test]
    async fn the_key_set_is_printed_and_nothing_else() {
        let agent = Agent::start();
        for more in [[].as_slice(), &["--output", "json"]] {
            let arguments = [["federate", "jwks"].as_slice(), more].concat();
            assert_eq!(agent.run(&arguments).await.json(), json!({ "keys": [{ "kid": "one" }] }));
        }
        assert_eq!(agent.run(&["federate", "jwks", "--output", "json"]).await.out.lines().count(), 1);
    }
}
