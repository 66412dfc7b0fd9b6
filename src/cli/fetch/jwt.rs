//! `mayfly fetch jwt`: tokens, checked to say what was asked for.

use std::collections::BTreeSet;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly_proto::workload::{Jwtsvid, JwtsvidRequest, JwtsvidResponse};
use serde::Serialize;

use super::super::client::{Connection, Patience, Target, Which, answer};
use super::super::failure::Failure;
use super::super::{Context, render, stop};
use super::x509::Written;
use super::{Common, say_revoked_on_exit};
use crate::clock::{Clock, SystemClock, unix_seconds};
use crate::exit::Exit;
use crate::files::{Folder, Item};

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly fetch jwt --audience db.example.org --hold | mayfly validate jwt --audience db.example.org
  mayfly fetch jwt --audience db --write ./svid --hold       keep the process, and so the token, alive
  mayfly fetch jwt --audience a --audience b --output json

Files: jwt.N.token for each identity, N = 0 is the default one.
The tokens are revoked when this command ends: a token kept from `$(mayfly fetch jwt …)` is refused.";

/// `mayfly fetch jwt`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Who shall accept the token; repeat for several
    #[arg(long, value_name = "AUDIENCE", required = true)]
    audience: Vec<String>,
    /// Only this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Keep this process, and with it the tokens, alive until Ctrl-C; then remove the files
    #[arg(long)]
    hold: bool,
}

/// A token and what it says.
#[derive(Debug, Serialize)]
pub(crate) struct Token {
    pub(crate) spiffe_id: String,
    pub(crate) hint: String,
    pub(crate) audience: Vec<String>,
    pub(crate) expires_at: String,
    /// `jti`; empty when the agent sets none.
    pub(crate) id: String,
    pub(crate) token: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    svids: &'a [Token],
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.common.client, Which::Public, &context.env)?;
    let folder = args.common.folder()?;
    let request = JwtsvidRequest {
        audience: args.audience.clone(),
        spiffe_id: args.spiffe_id.clone().unwrap_or_default(),
    };
    let attempt = async |connection| {
        let tokens = get(&connection, &request).await?;
        Ok((connection, tokens))
    };
    // The connection is kept while we hold: the agent sees us go by our pidfd, and by this.
    let (_connection, tokens) = Patience::new(args.common.wait).persist(context, &target, attempt).await?;
    let written = folder.as_ref().map(|folder| write(folder, &tokens)).transpose()?;
    let quiet = written.is_some() && !args.common.output.is_json();
    if args.common.output.is_json() {
        context.console.json(&Answer { svids: &tokens, written })?;
    } else if quiet {
        for token in &tokens {
            context.console.line(&describe(token))?;
        }
    } else {
        for token in &tokens {
            context.console.note(&describe(token));
            context.console.line(&token.token)?;
        }
    }
    if !args.hold {
        say_revoked_on_exit(context, folder.as_ref().map(Folder::path));
        return Ok(Exit::Ok);
    }
    stop().await;
    if let Some(folder) = &folder {
        folder.clear()?;
    }
    Ok(Exit::Ok)
}

/// Asks and checks: each token names its identity, all audiences asked for and no other, and has not
/// expired. Signatures are for the one it is shown to; we only just got it from its issuer.
pub(crate) async fn get(connection: &Connection, request: &JwtsvidRequest) -> Result<Vec<Token>, Failure> {
    let mut workload = connection.workload();
    let response: JwtsvidResponse = answer(workload.fetch_jwtsvid(request.clone())).await?.into_inner();
    let now = SystemClock.wall();
    let mut hints = BTreeSet::new();
    let first_of_hint = response.svids.iter().filter(|svid| svid.hint.is_empty() || hints.insert(&svid.hint));
    let tokens =
        first_of_hint.map(|svid| check(svid, &request.audience, now)).collect::<Result<Vec<_>, _>>()?;
    if tokens.is_empty() {
        return Err(Failure::failed("the agent's answer is incomplete: `svids` is empty"));
    }
    Ok(tokens)
}

fn write(folder: &Folder, tokens: &[Token]) -> Result<Written, Failure> {
    let item = |(n, token): (usize, &Token)| Item::secret(format!("jwt.{n}.token"), token.token.as_bytes());
    let items: Vec<Item> = tokens.iter().enumerate().map(item).collect();
    folder.replace(&items)?;
    let files = items.iter().map(|item| item.name.clone()).collect();
    Ok(Written { directory: folder.path().display().to_string(), files })
}

fn describe(token: &Token) -> String {
    let (id, audience) = (render::cell(&token.spiffe_id), token.audience.join(", "));
    format!("{id} for {}, until {}", render::cell(&audience), token.expires_at)
}

fn check(svid: &Jwtsvid, asked: &[String], now: SystemTime) -> Result<Token, Failure> {
    let refuse = |why: &str| {
        Failure::failed(format!("the token of `{}` is not what was asked for: {why}", svid.spiffe_id))
    };
    if svid.spiffe_id.is_empty() || svid.svid.is_empty() {
        return Err(Failure::failed("the agent's answer is incomplete: a mandatory field is empty"));
    }
    let claims = claims(&svid.svid).ok_or_else(|| refuse("it is not a JWT"))?;
    if claims.get("sub").and_then(|sub| sub.as_str()) != Some(&svid.spiffe_id) {
        return Err(refuse("it names another subject"));
    }
    let audience: Vec<String> = match claims.get("aud") {
        Some(serde_json::Value::String(one)) => vec![one.clone()],
        Some(serde_json::Value::Array(many)) => {
            many.iter().filter_map(|aud| aud.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    if set(&audience) != set(asked) {
        return Err(refuse("it is for another audience"));
    }
    let expires = claims.get("exp").and_then(serde_json::Value::as_i64).unwrap_or(0);
    if u64::try_from(expires).unwrap_or(0) <= unix_seconds(now) {
        return Err(refuse("it has expired"));
    }
    Ok(Token {
        spiffe_id: svid.spiffe_id.clone(),
        hint: svid.hint.clone(),
        audience,
        expires_at: render::stamp_unix(expires),
        id: claims.get("jti").and_then(|jti| jti.as_str()).unwrap_or_default().to_owned(),
        token: svid.svid.clone(),
    })
}

/// The payload, unverified.
fn claims(token: &str) -> Option<serde_json::Value> {
    let mut parts = token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(())?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::super::super::testing::agent::Agent;
    use super::*;

    /// Looks like a token; nobody verifies the signature here.
    pub(crate) fn token(claims: &serde_json::Value) -> String {
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "ES256"})), part(claims))
    }

    const ID: &str = "spiffe://example.org/web";
    const EXP: i64 = 4_102_444_800;

    fn agent(claims: &serde_json::Value) -> Agent {
        let agent = Agent::start();
        let svid = Jwtsvid { spiffe_id: ID.into(), svid: token(claims), hint: String::new() };
        *agent.script.jwt.lock().expect("lock") = Ok(JwtsvidResponse { svids: vec![svid] });
        agent
    }

    #[tokio::test]
    async fn the_token_alone_goes_to_standard_output() {
        let claims = json!({"sub": ID, "aud": ["db"], "exp": EXP, "jti": "4a"});
        let agent = agent(&claims);
        let ran = agent.run(&["fetch", "jwt", "--audience", "db"]).await;
        assert_eq!((ran.exit, ran.out), (Exit::Ok, format!("{}\n", token(&claims))));
        assert!(ran.err.contains(&format!("{ID} for db, until 2100-01-01T00:00:00Z")), "{}", ran.err);
        assert!(ran.err.contains("revoked now that this command ends"), "{}", ran.err);
        let request = &agent.requests()[0];
        assert!(request.contains("audience: [\"db\"]") && request.contains("spiffe_id: \"\""), "{request}");
    }

    #[tokio::test]
    async fn json_says_what_the_token_says() {
        let agent = agent(&json!({"sub": ID, "aud": ["a", "b"], "exp": EXP, "jti": "4a"}));
        let args =
            ["fetch", "jwt", "--audience", "b", "--audience", "a", "--output", "json", "--spiffe-id", ID];
        let json = agent.run(&args).await.json();
        let svid = &json["svids"][0];
        assert_eq!((svid["id"].as_str(), svid["audience"][1].as_str()), (Some("4a"), Some("b")));
        assert!(agent.requests()[0].contains(ID));
    }

    #[tokio::test]
    async fn a_written_token_is_for_the_owner_only_and_not_on_the_screen() {
        let claims = json!({"sub": ID, "aud": "db", "exp": EXP});
        let agent = agent(&claims);
        let dir = agent.dir.path().join("out");
        let ran =
            agent.run(&["fetch", "jwt", "--audience", "db", "--write", dir.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let path = dir.join("jwt.0.token");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), token(&claims));
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
        assert!(!ran.out.contains(&token(&claims)));
    }

    #[tokio::test]
    async fn a_token_for_somebody_or_something_else_is_refused() {
        for (claims, why) in [
            (json!({"sub": "spiffe://example.org/x", "aud": ["db"], "exp": EXP}), "another subject"),
            (json!({"sub": ID, "aud": ["db", "more"], "exp": EXP}), "another audience"),
            (json!({"sub": ID, "exp": EXP}), "another audience"),
            (json!({"sub": ID, "aud": ["db"], "exp": 1}), "expired"),
            (json!({"sub": ID, "aud": ["db"], "exp": -1}), "expired"),
        ] {
            let ran = agent(&claims).run(&["fetch", "jwt", "--audience", "db"]).await;
            assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
            assert!(ran.err.contains(why), "{}", ran.err);
        }
    }

    #[tokio::test]
    async fn an_empty_answer_no_identity_and_no_audience_are_told_apart() {
        let agent = Agent::start();
        assert_eq!(agent.run(&["fetch", "jwt", "--audience", "db"]).await.exit, Exit::NoIdentity);
        *agent.script.jwt.lock().expect("lock") = Ok(JwtsvidResponse::default());
        assert_eq!(agent.run(&["fetch", "jwt", "--audience", "db"]).await.exit, Exit::Failed);
        assert_eq!(agent.run(&["fetch", "jwt"]).await.exit, Exit::Usage);
    }
}
