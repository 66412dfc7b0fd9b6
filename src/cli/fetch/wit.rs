//! `mayfly fetch wit`: tokens bound to a key, with that key. Keys go to files only, never to a terminal.

use std::collections::BTreeMap;

use mayfly_proto::workload::{WitsvidRequest, WitsvidResponse};
use serde::Serialize;
use tonic::{Status, Streaming};

use super::super::args::OutputArgs;
use super::super::client::{Connection, Patience, Target, WaitFor, Which};
use super::super::failure::Failure;
use super::super::wit::{Update, Wit, ask, bundles};
use super::super::x509::pem;
use super::super::{Context, render};
use super::x509::Written;
use super::{Common, say_revoked_on_exit, until_stopped};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;
use crate::files::{Folder, Item};

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly fetch wit                                   show the tokens this process has
  mayfly fetch wit --write ./svid --hold             keep ./svid/svid.0.{wit,key,jwk} fresh until Ctrl-C
  mayfly fetch wit --spiffe-id spiffe://example.org/a --output json

Files: svid.N.wit svid.N.jwk svid.N.key (the key once as JWK, once as PKCS#8) for each identity, N = 0 is the
default one; jwks.N.json for each trust domain; index.json says which is which.
A WIT-SVID authenticates nobody by itself: whoever presents it proves with the key that it is his.
The credentials are revoked when this command ends. Agents issue WIT-SVIDs only where the operator says so.";

/// `mayfly fetch wit`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Only this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Keep the stream open and the files fresh until Ctrl-C; then remove the files
    #[arg(long)]
    hold: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    svids: Vec<WitJson<'a>>,
    bundles: BTreeMap<&'a str, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
}

#[derive(Serialize)]
struct WitJson<'a> {
    spiffe_id: &'a str,
    hint: &'a str,
    id: &'a str,
    key_id: &'a str,
    expires_at: String,
    token: &'a str,
}

impl<'a> WitJson<'a> {
    fn new(wit: &'a Wit) -> Self {
        Self {
            spiffe_id: &wit.spiffe_id,
            hint: &wit.hint,
            id: &wit.id,
            key_id: &wit.kid,
            expires_at: render::stamp_unix(wit.not_after),
            token: &wit.token,
        }
    }
}

/// `index.json`: which file is what. Written with the set, so it always fits it.
#[derive(Serialize)]
struct Index {
    svids: Vec<IndexSvid>,
    bundles: Vec<IndexBundle>,
}

#[derive(Serialize)]
struct IndexSvid {
    spiffe_id: String,
    hint: String,
    id: String,
    expires_at: String,
    token: String,
    jwk: String,
    key: Option<String>,
}

#[derive(Serialize)]
struct IndexBundle {
    trust_domain: String,
    jwks: String,
}

/// Where updates go.
struct Sink {
    folder: Option<Folder>,
    output: OutputArgs,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.common.client, Which::Public, &context.env)?;
    let sink = Sink { folder: args.common.folder()?, output: args.common.output };
    let request = WitsvidRequest { spiffe_id: args.spiffe_id.unwrap_or_default() };
    if !args.hold {
        let attempt = async |connection: Connection| open(connection, &request).await;
        let (_stream, update) = Patience::new(args.common.wait).persist(context, &target, attempt).await?;
        sink.publish(context, &update)?;
        say_revoked_on_exit(context, sink.folder.as_ref().map(Folder::path));
        return Ok(Exit::Ok);
    }
    let result = until_stopped(hold(&target, &request, &sink, args.common.wait, context)).await;
    // What is in the files is dead once we are gone, so it goes with us.
    if let Some(folder) = &sink.folder {
        folder.clear()?;
    }
    result.unwrap_or(Ok(Exit::Ok))
}

/// An open stream, and what its messages are checked with.
struct Open {
    connection: Connection,
    stream: Streaming<WitsvidResponse>,
}

impl Open {
    /// Checked against the bundles of this moment: the issuer's key may be newer than the stream.
    async fn check(&self, response: &WitsvidResponse) -> Result<Update, Failure> {
        let bundles = bundles(&self.connection).await?;
        Ok(Update::check(response, bundles, SystemClock.wall())?)
    }
}

async fn open(connection: Connection, request: &WitsvidRequest) -> Result<(Open, Update), Failure> {
    let call = async {
        let mut stream = connection.workload().fetch_witsvid(request.clone()).await?.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended empty"))?;
        Ok((stream, first))
    };
    let (stream, first) = ask(call).await?;
    let open = Open { connection, stream };
    let update = open.check(&first).await?;
    Ok((open, update))
}

/// Publishes each update; returns only with a failure.
async fn hold(
    target: &Target,
    request: &WitsvidRequest,
    sink: &Sink,
    wait: Option<WaitFor>,
    context: &mut Context,
) -> Result<Exit, Failure> {
    let mut patience = Patience::new(wait);
    loop {
        let attempt = async |connection: Connection| open(connection, request).await;
        let (mut open, first) = patience.persist(context, target, attempt).await?;
        patience = Patience::reconnecting(wait);
        sink.publish(context, &first)?;
        let failure = loop {
            match open.stream.message().await {
                Ok(Some(response)) => match open.check(&response).await {
                    Ok(update) => sink.publish(context, &update)?,
                    Err(failure) => context.console.note(&format!("update ignored: {}", failure.message)),
                },
                Ok(None) => break Failure::new(Exit::Unreachable, "the agent ended the stream"),
                Err(status) => break Failure::from_status(&status),
            }
        };
        match failure.exit {
            Exit::Unreachable => context.console.note(&format!("{}; reconnecting", failure.message)),
            Exit::NoIdentity => {
                sink.folder.as_ref().map_or(Ok(()), Folder::clear)?;
                if wait.is_none() {
                    return Err(failure);
                }
                context.console.note(&format!("identity withdrawn: {}; waiting", failure.message));
            }
            _ => return Err(failure),
        }
    }
}

impl Sink {
    /// Writes first, then says so.
    fn publish(&self, context: &mut Context, update: &Update) -> Result<(), Failure> {
        for id in &update.repeated_hints {
            context.console.note(&format!("`{id}` left out: an earlier identity has the same hint"));
        }
        let written = match &self.folder {
            Some(folder) => {
                let items = items(update)?;
                folder.replace(&items)?;
                let files = items.iter().map(|item| item.name.clone()).collect();
                Some(Written { directory: folder.path().display().to_string(), files })
            }
            None => None,
        };
        if self.output.is_json() {
            context.console.json(&answer(update, written))?;
            return Ok(());
        }
        for wit in &update.wits {
            context.console.lines(lines(wit))?;
        }
        if let Some(Written { directory, files }) = written {
            context.console.line(&format!("wrote {} to {directory}", files.join(" ")))?;
        }
        Ok(())
    }
}

fn answer(update: &Update, written: Option<Written>) -> Answer<'_> {
    let bundles = update.bundles.texts.iter();
    Answer {
        svids: update.wits.iter().map(WitJson::new).collect(),
        bundles: bundles
            .filter_map(|(name, text)| Some((name.as_str(), serde_json::from_str(text).ok()?)))
            .collect(),
        written,
    }
}

fn lines(wit: &Wit) -> Vec<String> {
    let until = render::stamp_unix(wit.not_after);
    let ends = render::relative(wit.not_after, SystemClock.wall());
    vec![
        render::cell(&wit.spiffe_id),
        format!("  token     {}", render::cell(&wit.id)),
        format!("  valid     until {until} (ends {ends})"),
        format!("  verified  by the key {}, and confirms the key beside it", render::cell(&wit.kid)),
    ]
}

/// The files of one update.
fn items(update: &Update) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    let mut index = Index { svids: Vec::new(), bundles: Vec::new() };
    for (n, wit) in update.wits.iter().enumerate() {
        let (token, jwk) = (format!("svid.{n}.wit"), format!("svid.{n}.jwk"));
        items.push(Item::public(&token, wit.token.as_bytes()));
        items.push(Item::secret(&jwk, wit.jwk.expose()));
        let key = wit.pkcs8.as_ref().map(|key| (format!("svid.{n}.key"), key));
        items.extend(key.iter().map(|(name, key)| Item::secret(name, pem("PRIVATE KEY", key.expose()))));
        index.svids.push(IndexSvid {
            spiffe_id: wit.spiffe_id.clone(),
            hint: wit.hint.clone(),
            id: wit.id.clone(),
            expires_at: render::stamp_unix(wit.not_after),
            token,
            jwk,
            key: key.map(|(name, _)| name),
        });
    }
    for (n, (domain, text)) in update.bundles.texts.iter().enumerate() {
        let jwks = format!("jwks.{n}.json");
        items.push(Item::public(&jwks, text.as_bytes()));
        index.bundles.push(IndexBundle { trust_domain: domain.clone(), jwks });
    }
    let index = serde_json::to_vec_pretty(&index).map_err(|error| Failure::failed(error.to_string()))?;
    items.push(Item::public("index.json", index));
    Ok(items)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::super::testing::agent::{Agent, none};
    use super::super::super::testing::run;
    use super::super::super::testing::wits::Wits;
    use super::*;

    const ID: &str = "spiffe://example.org/web";
    const OTHER: &str = "spiffe://example.org/other";

    #[tokio::test]
    async fn shows_the_token_and_never_the_key() {
        let (agent, wits) = (Agent::start(), Wits::new("example.org"));
        let wit = wits.wit(ID);
        agent.script.send_wit(WitsvidResponse { svids: vec![wit.message()] }, wits.bundles());
        let ran = agent.run(&["fetch", "wit"]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!((lines[0], lines[1], lines.len()), (ID, "  token     4a", 4));
        assert!(ran.err.contains("revoked now that this command ends"), "{}", ran.err);
        let ran = agent.run(&["fetch", "wit", "--output", "json"]).await;
        assert_eq!(ran.json()["svids"][0]["token"], wit.token);
        assert_eq!(ran.json()["bundles"]["spiffe://example.org"]["keys"][0]["use"], "wit-svid");
        let key: serde_json::Value = serde_json::from_str(&wit.jwk).expect("JSON");
        assert!(!ran.out.contains(key["d"].as_str().expect("d")));
    }

    #[tokio::test]
    async fn files_hold_the_key_for_the_owner_only_as_jwk_and_as_pkcs8() {
        let (agent, wits) = (Agent::start(), Wits::new("example.org"));
        let (a, b) = (wits.wit(ID), wits.wit(OTHER));
        let svids = vec![a.message(), b.message()];
        agent.script.send_wit(WitsvidResponse { svids }, wits.bundles());
        let dir = agent.dir.path().join("out");
        let ran = agent.run(&["fetch", "wit", "--write", dir.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let mode = |name: &str| fs::metadata(dir.join(name)).expect(name).permissions().mode() & 0o777;
        for name in ["svid.0.key", "svid.0.jwk", "svid.1.key", "svid.1.jwk"] {
            assert_eq!(mode(name), 0o600, "{name}");
        }
        for name in ["svid.0.wit", "svid.1.wit", "jwks.0.json"] {
            assert_eq!(mode(name), 0o644, "{name}");
        }
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect(name);
        assert_eq!((read("svid.0.wit"), read("svid.1.jwk")), (a.token, b.jwk));
        let key = rcgen::KeyPair::from_pem(&read("svid.0.key")).expect("PKCS#8");
        let point = rcgen::PublicKeyData::der_bytes(&key);
        let jwk: serde_json::Value = serde_json::from_str(&read("svid.0.jwk")).expect("JSON");
        use base64::Engine as _;
        let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&point[1..33]);
        assert_eq!(jwk["x"], x, "the same key twice");
        let index: serde_json::Value = serde_json::from_str(&read("index.json")).expect("JSON");
        assert_eq!(
            (index["svids"][1]["spiffe_id"].as_str(), index["svids"][1]["key"].as_str()),
            (Some(OTHER), Some("svid.1.key"))
        );
        assert_eq!(index["bundles"][0]["trust_domain"], "spiffe://example.org");
    }

    #[tokio::test]
    async fn what_does_not_belong_together_is_neither_shown_nor_written() {
        let (agent, wits) = (Agent::start(), Wits::new("example.org"));
        let good = || wits.wit(ID).message();
        let mut renamed = good();
        renamed.spiffe_id = OTHER.to_owned();
        let mut swapped = good();
        swapped.wit_svid_key = wits.wit(ID).jwk;
        let mut half = good();
        let mut key: serde_json::Value = serde_json::from_str(&half.wit_svid_key).expect("JSON");
        let other: serde_json::Value = serde_json::from_str(&wits.wit(ID).jwk).expect("JSON");
        key["d"] = other["d"].clone();
        half.wit_svid_key = key.to_string();
        let mut empty = good();
        empty.wit_svid_key.clear();
        let foreign = Wits::new("example.org").wit(ID).message();
        for (svids, why) in [
            (vec![renamed], "names somebody else"),
            (vec![swapped], "not the one its token confirms"),
            (vec![half], "not the one its token confirms"),
            (vec![empty], "`wit_svid_key` is empty"),
            (vec![foreign], "key is not known"),
            (vec![], "`svids` is empty"),
        ] {
            agent.script.send_wit(WitsvidResponse { svids }, wits.bundles());
            let ran = agent.run(&["fetch", "wit"]).await;
            assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""), "{why}");
            assert!(ran.err.contains(why), "{why}: {}", ran.err);
        }
    }

    #[tokio::test]
    async fn a_bundle_without_use_will_do_and_unknown_keys_are_passed_over() {
        let (agent, wits) = (Agent::start(), Wits::new("example.org"));
        let mut bundles = wits.bundles();
        for text in bundles.bundles.values_mut() {
            let mut set: serde_json::Value = serde_json::from_str(text).expect("JSON");
            set["keys"][0].as_object_mut().expect("object").remove("use");
            set["keys"].as_array_mut().expect("list").push(serde_json::json!({"kty": "AKP", "kid": "pq"}));
            *text = set.to_string();
        }
        agent.script.send_wit(wits.answer(&[ID]), bundles);
        assert_eq!(agent.run(&["fetch", "wit"]).await.exit, Exit::Ok);
    }

    #[tokio::test]
    async fn an_agent_that_has_them_off_says_how_to_switch_them_on() {
        let ran = Agent::start().run(&["fetch", "wit"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        assert!(ran.err.contains("issues no WIT-SVIDs") && ran.err.contains("enabled = true"), "{}", ran.err);
    }

    #[tokio::test]
    async fn hold_follows_a_renewal_and_the_withdrawal() {
        let (agent, wits) = (Agent::start(), Wits::new("example.org"));
        let (a, b) = (wits.wit(ID), wits.wit(ID));
        agent.script.send_wit(WitsvidResponse { svids: vec![a.message()] }, wits.bundles());
        let dir = agent.dir.path().join("out");
        let (env, args) = (agent.env(), ["fetch", "wit", "--hold", "--write", dir.to_str().expect("text")]);
        let token = |want: String| {
            let path = dir.join("svid.0.wit");
            async move {
                while fs::read_to_string(&path).unwrap_or_default() != want {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
        };
        let story = async {
            token(a.token.clone()).await;
            agent.script.send_wit(WitsvidResponse { svids: vec![b.message()] }, wits.bundles());
            token(b.token.clone()).await;
            drop(agent.script.wit.send_replace(Err(none())));
        };
        let (ran, ()) = tokio::join!(run(env, &args), story);
        assert_eq!(ran.exit, Exit::NoIdentity, "{ran:?}");
        assert!(!dir.join("svid.0.key").exists(), "a withdrawn key must go (WAPI-51)");
    }
}
