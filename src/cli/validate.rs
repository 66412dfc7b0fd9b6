//! `mayfly validate jwt` (and the way to `wit` and `dpop`): asks the agent whether a token is good now (WAPI-44), revocation included.

use std::io::{BufRead, Read};
use std::path::Path;

use mayfly_proto::workload::ValidateJwtsvidRequest;
use prost_types::value::Kind;
use serde::Serialize;

use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::{Context, render, validate_dpop, validate_wit};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly validate jwt --audience db.example.org < token
  mayfly validate jwt --audience db.example.org --svid @/run/app/svid/jwt.0.token
  mayfly fetch jwt --audience db --hold | mayfly validate jwt --audience db

A token on the command line can be read by everybody in the process list; it is accepted for tests only.
Exit code: 0 good, 1 refused.";

/// Longest token read, in bytes; the agent's own limit is lower.
const TOKEN_MAX: u64 = 64 * 1024;

/// `mayfly validate …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Ask the agent whether a JWT-SVID is valid and not revoked
    #[command(after_help = EXAMPLES)]
    Jwt(Jwt),
    /// Check a WIT-SVID, and the proof that whoever showed it has its key
    #[command(after_help = validate_wit::EXAMPLES)]
    Wit(validate_wit::Args),
    /// Check that a DPoP proof is one for this request and this access token
    #[command(after_help = validate_dpop::EXAMPLES)]
    Dpop(validate_dpop::Args),
}

#[derive(clap::Args, Debug)]
struct Jwt {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Who you are: must be among the token's audiences
    #[arg(long, value_name = "AUDIENCE")]
    audience: String,
    /// `-` = first line of standard input, `@FILE` = first line of a file, else the token itself
    #[arg(long, value_name = "TOKEN", default_value = "-", hide_default_value = false)]
    svid: String,
}

#[derive(Serialize)]
struct Answer {
    spiffe_id: String,
    claims: serde_json::Value,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let args = match args.what {
        What::Jwt(args) => args,
        What::Wit(args) => return validate_wit::run(args, context).await,
        What::Dpop(args) => return validate_dpop::run(&args, context),
    };
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let svid = token(&args.svid)?;
    let connection = target.connect().await?;
    let request = ValidateJwtsvidRequest { audience: args.audience, svid };
    let mut workload = connection.workload();
    let response = match answer(workload.validate_jwtsvid(request)).await {
        Ok(response) => response.into_inner(),
        // The specification gives a refused token the code of a malformed request.
        Err(failure) if failure.exit == Exit::Failed => {
            return Err(Failure::failed(format!("not valid: {}", failure.message)));
        }
        Err(failure) => return Err(failure),
    };
    if response.spiffe_id.is_empty() {
        return Err(Failure::failed("the agent's answer is incomplete: `spiffe_id` is empty"));
    }
    let claims = object(response.claims.unwrap_or_default());
    if args.output.is_json() {
        context.console.json(&Answer { spiffe_id: response.spiffe_id, claims })?;
        return Ok(Exit::Ok);
    }
    context.console.line(&format!("valid: {}", render::cell(&response.spiffe_id)))?;
    context.console.lines(claims.as_object().into_iter().flatten().map(claim_line))?;
    Ok(Exit::Ok)
}

/// One claim, times as people read them.
pub(super) fn claim_line((name, value): (&String, &serde_json::Value)) -> String {
    let value = match (name.as_str(), value.as_f64().and_then(whole)) {
        ("exp" | "iat" | "nbf", Some(at)) => render::stamp_unix(at),
        _ => value.to_string(),
    };
    format!("  {}  {}", render::cell(name), render::cell(&value))
}

pub(super) fn token(source: &str) -> Result<String, Failure> {
    let read = |input: &mut dyn Read| {
        let mut line = String::new();
        std::io::BufReader::new(input.take(TOKEN_MAX)).read_line(&mut line)?;
        Ok::<_, std::io::Error>(line.trim().to_owned())
    };
    let token = match (source, source.strip_prefix('@')) {
        ("-", _) => read(&mut std::io::stdin()).map_err(|e| Failure::file("read", Path::new("-"), &e))?,
        (_, Some(path)) => std::fs::File::open(path)
            .and_then(|mut file| read(&mut file))
            .map_err(|error| Failure::file("read the token from", Path::new(path), &error))?,
        (token, None) => token.to_owned(),
    };
    if token.is_empty() {
        return Err(Failure::usage("there is no token to validate"));
    }
    Ok(token)
}

/// Protobuf's JSON, as JSON.
fn object(fields: prost_types::Struct) -> serde_json::Value {
    fields
        .fields
        .into_iter()
        .map(|(name, value)| (name, json(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn json(value: prost_types::Value) -> serde_json::Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        // `exp` is a whole number to everybody but protobuf.
        Some(Kind::NumberValue(number)) => whole(number).map_or_else(|| number.into(), Into::into),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::StructValue(fields)) => object(fields),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json).collect::<Vec<_>>().into(),
    }
}

/// A number without fraction that a double holds exactly.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() != 0.0 || number.abs() > EXACT {
        return None;
    }
    format!("{number:.0}").parse().ok()
}

#[cfg(test)]
mod tests {
    use mayfly_proto::workload::ValidateJwtsvidResponse;

    use super::super::testing::agent::Agent;
    use super::*;

    fn value(kind: Kind) -> prost_types::Value {
        prost_types::Value { kind: Some(kind) }
    }

    fn agent() -> Agent {
        let agent = Agent::start();
        let audience = prost_types::ListValue { values: vec![value(Kind::StringValue("db".into()))] };
        let fields = [
            ("aud".to_owned(), value(Kind::ListValue(audience))),
            ("exp".to_owned(), value(Kind::NumberValue(4_102_444_800.0))),
            ("sub".to_owned(), value(Kind::StringValue("spiffe://example.org/web".into()))),
        ];
        let claims = prost_types::Struct { fields: fields.into_iter().collect() };
        *agent.script.validate.lock().expect("lock") = Ok(ValidateJwtsvidResponse {
            spiffe_id: "spiffe://example.org/web".into(),
            claims: Some(claims),
        });
        agent
    }

    #[tokio::test]
    async fn a_good_token_shows_its_claims() {
        let agent = agent();
        let path = agent.dir.path().join("token");
        std::fs::write(&path, "  a.b.c\nmore\n").expect("write");
        let source = format!("@{}", path.display());
        let ran = agent.run(&["validate", "jwt", "--audience", "db", "--svid", &source]).await;
        let want = "valid: spiffe://example.org/web\n  aud  [\"db\"]\n  exp  2100-01-01T00:00:00Z\n  \
                    sub  \"spiffe://example.org/web\"\n";
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, want));
        assert!(
            agent.requests()[0].contains("svid: \"a.b.c\""),
            "first line, trimmed: {:?}",
            agent.requests()
        );
    }

    #[tokio::test]
    async fn json_keeps_whole_numbers_whole() {
        let ran = agent()
            .run(&["validate", "jwt", "--audience", "db", "--svid", "a.b.c", "--output", "json"])
            .await;
        assert_eq!(ran.json()["claims"]["exp"].as_i64(), Some(4_102_444_800));
        assert_eq!(ran.json()["spiffe_id"], "spiffe://example.org/web");
    }

    #[tokio::test]
    async fn a_refused_token_exits_1_and_an_empty_one_2() {
        let agent = Agent::start();
        let ran = agent.run(&["validate", "jwt", "--audience", "db", "--svid", "a.b.c"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        assert!(ran.err.contains("not valid") && ran.err.contains("token refused"), "{}", ran.err);
        assert_eq!(agent.run(&["validate", "jwt", "--audience", "db", "--svid", ""]).await.exit, Exit::Usage);
        let ran = agent.run(&["validate", "jwt", "--audience", "db", "--svid", "@/nonexistent"]).await;
        assert_eq!(ran.exit, Exit::Failed);
    }

    #[test]
    fn numbers_are_whole_only_when_exact() {
        assert_eq!(whole(-3.0), Some(-3));
        assert_eq!(
            (whole(0.5), whole(1e300), whole(f64::NAN), whole(f64::INFINITY)),
            (None, None, None, None)
        );
    }
}
