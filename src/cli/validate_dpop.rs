//! `mayfly validate dpop`: whether a DPoP proof is one for a request and an access token (RFC 9449 §4.3). No agent is
//! asked, and the token itself is not checked: only what it says that it is bound to.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};

use super::args::OutputArgs;
use super::failure::Failure;
use super::validate::{claim_line, token};
use super::{Context, render};
use crate::clock::{Clock as _, SystemClock};
use crate::exit::Exit;
use crate::issue::compact::Parts;
use crate::json;
use crate::proof::{Holder, Refusal, Replays, Request, Rules, Scheme, Shown, check};

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly validate dpop --proof @request.dpop --token @token --method GET --url https://wiki.example.org/api/page

Checks the proof and not the token: ask a resource server's own check, or /introspect, whether that is good. Whether the
proof was used before is for the server to know. Exit code: 0 the proof fits, 1 anything else.";

/// `mayfly validate dpop`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
    /// The proof: `-` = first line of standard input, `@FILE` = first line of a file, else the proof itself
    #[arg(long, value_name = "PROOF")]
    proof: String,
    /// The access token that came with it, named as `--proof` is
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// The request's method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// The request's whole URL, as the client called it
    #[arg(long, value_name = "URL")]
    url: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    proven: bool,
    jkt: &'a str,
    proof_id: &'a str,
    claims: &'a Map<String, Value>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    if args.proof == "-" && args.token == "-" {
        return Err(Failure::usage("only one of `--proof` and `--token` can come from standard input"));
    }
    let (proof, access) = (token(&args.proof)?, token(&args.token)?);
    let bound = claims_of(&access).ok_or_else(|| Failure::failed("the token is no compact jws"))?;
    let fits = fits(&proof, &access, &bound, args, SystemClock.wall());
    let holder = fits.map_err(|why| Failure::failed(format!("not proven: {why}")))?;
    let Holder::Key { thumbprint, proof_id } = holder else {
        return Err(Failure::failed("the token is bound to a certificate, which no proof stands for"));
    };
    // It has just been read once.
    let claims = claims_of(&proof).unwrap_or_default();
    if args.output.is_json() {
        let answer = Answer { proven: true, jkt: &thumbprint, proof_id: &proof_id, claims: &claims };
        context.console.json(&answer)?;
        return Ok(Exit::Ok);
    }
    context.console.line(&format!("proven: the key {}", render::cell(&thumbprint)))?;
    context.console.lines(claims.iter().map(claim_line))?;
    Ok(Exit::Ok)
}

fn fits(
    proof: &str,
    access: &str,
    bound: &Map<String, Value>,
    args: &Args,
    now: SystemTime,
) -> Result<Holder, Refusal> {
    let shown = Shown { token: access, scheme: Scheme::Dpop, proofs: &[proof], certificate: None };
    let request = Request { method: &args.method, url: &args.url, now };
    check(&shown, bound, &request, &Rules::default(), &mut Replays::new(1))
}

fn claims_of(token: &str) -> Option<Map<String, Value>> {
    json::object(&Parts::split(token)?.claims)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::super::testing::agent::Agent;
    use super::*;
    use crate::authority::jwk_thumbprint;
    use crate::authority::testing::Forge;
    use crate::clock::unix_seconds;

    const URL: &str = "https://wiki.example.org/api/page";

    struct Pair {
        token: String,
        proof: String,
    }

    fn pair() -> Pair {
        let key = Forge::new("ES256");
        let mut jwk = key.jwk("k");
        jwk.as_object_mut().expect("an object").retain(|name, _| !["kid", "use"].contains(&name.as_str()));
        let bound = json!({ "cnf": { "jkt": jwk_thumbprint(&jwk).expect("a key") } });
        let token = key.sign(r#"{"alg":"ES256","typ":"at+jwt"}"#, &bound.to_string());
        let header = json!({ "alg": "ES256", "typ": "dpop+jwt", "jwk": jwk });
        let ath = URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()));
        let iat = unix_seconds(SystemClock.wall());
        let said = json!({ "jti": "p1", "htm": "GET", "htu": URL, "iat": iat, "ath": ath });
        let proof = key.sign(&header.to_string(), &said.to_string());
        Pair { token, proof }
    }

    #[tokio::test]
    async fn a_proof_fits_one_request_and_one_token() {
        let (agent, one, other) = (Agent::start(), pair(), pair());
        let run = async |proof: &str, token: &str, more: &[&str]| {
            let args = ["validate", "dpop", "--proof", proof, "--token", token];
            agent.run(&[&args[..], more].concat()).await
        };
        let ran = run(&one.proof, &one.token, &["--url", URL]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert!(ran.out.starts_with("proven: the key ") && ran.out.contains("  htu  "), "{}", ran.out);
        let ran = run(&one.proof, &one.token, &["--url", URL, "--output", "json"]).await;
        assert_eq!(
            (ran.json()["proven"].as_bool(), ran.json()["proof_id"].as_str()),
            (Some(true), Some("p1"))
        );
        for (proof, token, more, why) in [
            (&one.proof, &one.token, &["--url", URL, "--method", "POST"][..], "another method"),
            (&one.proof, &one.token, &["--url", "https://wiki.example.org/"], "another url"),
            (&one.proof, &other.token, &["--url", URL], "another token"),
            (&one.token, &one.token, &["--url", URL], "not of type dpop+jwt"),
            (&one.proof, &"a.b.c".to_owned(), &["--url", URL], "no compact jws"),
        ] {
            let ran = run(proof, token, more).await;
            assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""), "{why}");
            assert!(ran.err.contains(why), "{why}: {}", ran.err);
        }
        assert_eq!(run("-", "-", &["--url", URL]).await.exit, Exit::Usage);
        assert!(agent.requests().is_empty(), "no agent is asked");
    }
}
