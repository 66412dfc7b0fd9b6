//! `mayfly validate wit`: checks a WIT-SVID against the keys that the agent gives this process, and the proof of
//! possession that came with it. Without such a proof the answer is no (WIT-25), however good the token is.

use serde::Serialize;

use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which};
use super::failure::Failure;
use super::validate::{claim_line, token};
use super::wit::bundles;
use super::{Context, render};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;
use crate::issue::wit::{About, Rules, validate};

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly validate wit --svid @svid.0.wit --proof @request.wpt --audience https://db.example.org/rows
  mayfly validate wit --svid @svid.0.wit             what it says, and whether it is good; accepts nobody

The proof is a WIMSE Workload Proof Token (draft-ietf-wimse-wpt-01) made for the audience by the token's key.
Whether a token was revoked is not asked: SPIFFE has no way of telling. Exit code: 0 proven, 1 anything else.";

/// `mayfly validate wit`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// `-` = first line of standard input, `@FILE` = first line of a file, else the token itself
    #[arg(long, value_name = "TOKEN", default_value = "-", hide_default_value = false)]
    svid: String,
    /// The proof token, named as `--svid` is
    #[arg(long, value_name = "PROOF", requires = "audience")]
    proof: Option<String>,
    /// The access token of the same request, named as `--svid` is: the proof must be for it too
    #[arg(long, value_name = "TOKEN", requires = "proof")]
    access_token: Option<String>,
    /// Who you are: the proof must be made for it
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    spiffe_id: &'a str,
    proven: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof_id: Option<&'a str>,
    claims: &'a serde_json::Map<String, serde_json::Value>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let svid = token(&args.svid)?;
    let proof = args.proof.as_deref().map(token).transpose()?;
    let access_token = args.access_token.as_deref().map(token).transpose()?;
    let bundles = bundles(&target.connect().await?).await?;
    let now = SystemClock.wall();
    let rules = Rules { bundles: &bundles.keys, revoked: &|_| false, longest: None, now };
    let unproven = validate(&svid, &rules).map_err(|why| Failure::failed(format!("not valid: {why}")))?;
    let audience = args.audience.as_deref().filter(|audience| !audience.is_empty());
    let is_us = |one: &str| audience == Some(one);
    let about = About { is_us: &is_us, access_token: access_token.as_deref() };
    let proven = proof.map(|proof| unproven.prove_about(&proof, &about, now));
    let proven = proven.transpose().map_err(|why| Failure::failed(format!("not valid: {why}")))?;
    let id = unproven.named().as_str();
    if args.output.is_json() {
        let proof_id = proven.as_ref().map(|proven| proven.proof_id.as_str());
        let answer = Answer { spiffe_id: id, proven: proven.is_some(), proof_id, claims: unproven.claims() };
        context.console.json(&answer)?;
    } else {
        let word = if proven.is_some() { "proven" } else { "unproven" };
        context.console.line(&format!("{word}: {}", render::cell(id)))?;
        context.console.lines(unproven.claims().iter().map(claim_line))?;
    }
    if proven.is_some() {
        return Ok(Exit::Ok);
    }
    Err(Failure::failed("the token is good, but nothing shows that it came from the owner of its key")
        .hint("whoever presents a WIT-SVID sends a proof with it: give that with `--proof` and `--audience`"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::agent::Agent;
    use super::super::testing::wits::Wits;
    use super::*;

    const ID: &str = "spiffe://example.org/web";

    fn agent(wits: &Wits) -> Agent {
        let agent = Agent::start();
        agent.script.send_wit(wits.answer(&[ID]), wits.bundles());
        agent
    }

    #[tokio::test]
    async fn a_token_alone_is_looked_at_and_not_accepted() {
        let wits = Wits::new("example.org");
        let agent = agent(&wits);
        let wit = wits.wit(ID);
        let ran = agent.run(&["validate", "wit", "--svid", &wit.token]).await;
        assert_eq!(ran.exit, Exit::Failed, "WIT-25: {ran:?}");
        assert!(ran.out.starts_with(&format!("unproven: {ID}\n")), "{}", ran.out);
        assert!(ran.err.contains("owner of its key") && ran.err.contains("--proof"), "{}", ran.err);
        let ran = agent.run(&["validate", "wit", "--svid", &wit.token, "--output", "json"]).await;
        assert_eq!((ran.exit, ran.json()["proven"].as_bool()), (Exit::Failed, Some(false)));
    }

    #[tokio::test]
    async fn with_a_proof_by_its_key_it_is() {
        let wits = Wits::new("example.org");
        let agent = agent(&wits);
        let (wit, other) = (wits.wit(ID), wits.wit(ID));
        let proof = wit.proof("db");
        let run = async |proof: &str, audience: &str| {
            let args = ["validate", "wit", "--svid", &wit.token, "--proof", proof, "--audience", audience];
            agent.run(&args).await
        };
        let ran = run(&proof, "db").await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert!(ran.out.starts_with(&format!("proven: {ID}\n")), "{}", ran.out);
        let ran = run(&proof, "web").await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        assert!(ran.err.contains("another audience"), "{}", ran.err);
        let ran = run(&other.proof("db"), "db").await;
        assert!(ran.exit == Exit::Failed && ran.err.contains("not by the token's key"), "WIT-26: {ran:?}");
        let args = ["validate", "wit", "--svid", &wit.token, "--proof", &proof, "--audience", "db"];
        let ran = agent.run(&[&args[..], &["--access-token", "a.b.c"]].concat()).await;
        assert!(ran.exit == Exit::Failed && ran.err.contains("about another token"), "no `ath`: {ran:?}");
        let alone = ["validate", "wit", "--svid", &wit.token, "--proof", &proof];
        assert_eq!(agent.run(&alone).await.exit, Exit::Usage, "a proof is for somebody");
    }

    #[tokio::test]
    async fn a_bad_token_says_why() {
        let wits = Wits::new("example.org");
        let agent = agent(&wits);
        let token = Wits::new("example.org").wit(ID).token;
        let ran = agent.run(&["validate", "wit", "--svid", &token]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        assert!(ran.err.contains("not valid: key is not known"), "{}", ran.err);
    }
}
