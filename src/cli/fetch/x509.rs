//! `mayfly fetch x509`: identities with their keys. Keys go to files only, never to a terminal.

use serde::Serialize;

use super::super::Context;
use super::super::args::OutputArgs;
use super::super::client::{Target, Which};
use super::super::failure::Failure;
use super::super::follow::{Event, Follow};
use super::super::show::{Detail, UpdateJson, update_lines};
use super::super::x509::{Update, pem, pem_certificates};
use super::{Common, say_revoked_on_exit, until_stopped};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;
use crate::files::{Folder, Item};

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly fetch x509                                  show who this process is
  mayfly fetch x509 --write ./svid --hold            keep ./svid/svid.0.{pem,key} fresh until Ctrl-C
  mayfly fetch x509 --wait=30s --output json         wait for an agent and an identity, answer in JSON

Files: svid.N.pem svid.N.key bundle.N.pem crl.N.pem for each identity, N = 0 is the default one;
federated.N.pem for each foreign trust domain; index.json says which is which.
The credentials are revoked when this command ends.";

/// `mayfly fetch x509`
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

/// The answer, as JSON.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    update: UpdateJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
}

/// Where the files went.
#[derive(Serialize)]
pub(crate) struct Written {
    pub(crate) directory: String,
    pub(crate) files: Vec<String>,
}

/// `index.json`: which file is what. Written with the set, so it always fits it.
#[derive(Serialize)]
struct Index {
    svids: Vec<IndexSvid>,
    federated: Vec<IndexBundle>,
}

#[derive(Serialize)]
struct IndexSvid {
    spiffe_id: String,
    hint: String,
    serial: String,
    not_after: String,
    certificate: String,
    key: String,
    bundle: String,
    crl: Option<String>,
}

#[derive(Serialize)]
struct IndexBundle {
    trust_domain: String,
    bundle: String,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.common.client, Which::Public, &context.env)?;
    let folder = args.common.folder()?;
    let mut sink = Sink { folder, only: args.spiffe_id, output: args.common.output };
    let mut follow = Follow::new(target, args.common.wait);
    if !args.hold {
        let Event::Update(update) = usable(follow.next(context).await?)? else {
            return Err(Failure::new(Exit::Unreachable, "the agent ended the stream"));
        };
        sink.publish(context, *update)?;
        say_revoked_on_exit(context, sink.folder.as_ref().map(Folder::path));
        return Ok(Exit::Ok);
    }
    let result = until_stopped(hold(&mut follow, &mut sink, args.common.wait.is_some(), context)).await;
    // What is in the files is dead once we are gone, so it goes with us.
    if let Some(folder) = &sink.folder {
        folder.clear()?;
    }
    result.unwrap_or(Ok(Exit::Ok))
}

/// Publishes each update; returns only with a failure.
pub(crate) async fn hold(
    follow: &mut Follow,
    sink: &mut Sink,
    wait: bool,
    context: &mut Context,
) -> Result<Exit, Failure> {
    loop {
        match follow.next(context).await? {
            Event::Update(update) => sink.publish(context, *update)?,
            Event::Bad(error) => context.console.note(&format!("update ignored: {error}")),
            Event::Interrupted(failure) => {
                context.console.note(&format!("{}; reconnecting", failure.message))
            }
            Event::Withdrawn(failure) => {
                if let Some(folder) = &sink.folder {
                    folder.clear()?;
                }
                if !wait {
                    return Err(failure);
                }
                context
                    .console
                    .note(&format!("identity withdrawn: {}; waiting for another", failure.message));
            }
        }
    }
}

fn usable(event: Event) -> Result<Event, Failure> {
    match event {
        Event::Update(_) => Ok(event),
        Event::Bad(error) => Err(error.into()),
        Event::Interrupted(failure) | Event::Withdrawn(failure) => Err(failure),
    }
}

/// Where updates go: files, and a description on standard output.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) folder: Option<Folder>,
    pub(crate) only: Option<String>,
    pub(crate) output: OutputArgs,
}

impl Sink {
    /// Writes first, then says so.
    pub(crate) fn publish(&mut self, context: &mut Context, mut update: Update) -> Result<(), Failure> {
        if let Some(only) = &self.only {
            update.svids.retain(|svid| svid.spiffe_id == *only);
            if update.svids.is_empty() {
                return Err(Failure::new(Exit::NoIdentity, format!("this process does not have `{only}`"))
                    .hint("`mayfly whoami` lists what it has"));
            }
        }
        for id in &update.repeated_hints {
            context.console.note(&format!("`{id}` left out: an earlier identity has the same hint"));
        }
        let written = match &self.folder {
            Some(folder) => {
                let items = items(&update)?;
                folder.replace(&items)?;
                let files = items.iter().map(|item| item.name.clone()).collect();
                Some(Written { directory: folder.path().display().to_string(), files })
            }
            None => None,
        };
        if self.output.is_json() {
            let update = UpdateJson::new(&update, Detail::Full);
            context.console.json(&Answer { update, written })?;
            return Ok(());
        }
        context.console.lines(update_lines(&update, SystemClock.wall()))?;
        if let Some(written) = written {
            let Written { directory, files } = written;
            context.console.line(&format!("wrote {} to {directory}", files.join(" ")))?;
        }
        Ok(())
    }
}

/// The files of one update.
fn items(update: &Update) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    let mut index = Index { svids: Vec::new(), federated: Vec::new() };
    for (n, svid) in update.svids.iter().enumerate() {
        let (certificate, key) = (format!("svid.{n}.pem"), format!("svid.{n}.key"));
        let bundle = format!("bundle.{n}.pem");
        items.push(Item::public(&certificate, pem_certificates(&svid.chain)));
        items.push(Item::secret(&key, pem("PRIVATE KEY", svid.key.expose())));
        items.push(Item::public(&bundle, pem_certificates(&svid.bundle)));
        let crls: String = update.crls_of(svid).iter().map(|crl| pem("X509 CRL", &crl.der)).collect();
        let crl = (!crls.is_empty()).then(|| format!("crl.{n}.pem"));
        items.extend(crl.as_ref().map(|name| Item::public(name, crls)));
        index.svids.push(IndexSvid {
            spiffe_id: svid.spiffe_id.clone(),
            hint: svid.hint.clone(),
            serial: svid.serial.clone(),
            not_after: super::super::render::stamp_unix(svid.not_after),
            certificate,
            key,
            bundle,
            crl,
        });
    }
    for (n, (domain, bundle)) in update.federated.iter().enumerate() {
        let name = format!("federated.{n}.pem");
        items.push(Item::public(&name, pem_certificates(bundle)));
        index.federated.push(IndexBundle { trust_domain: domain.clone(), bundle: name });
    }
    let index = serde_json::to_vec_pretty(&index).map_err(|error| Failure::failed(error.to_string()))?;
    items.push(Item::public("index.json", index));
    Ok(items)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::super::super::testing::agent::{Agent, none};
    use super::super::super::testing::pki::{CRL_NUMBER, Pki};
    use super::super::super::testing::{empty_env, run};
    use super::*;

    const ID: &str = "spiffe://example.org/web";

    #[tokio::test]
    async fn shows_the_identity_and_says_that_it_ends_with_the_command() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaf = pki.leaf(ID);
        agent.script.send_x509(Ok(pki.answer(&[&leaf], &[])));
        let ran = agent.run(&["fetch", "x509"]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!(lines[0], ID);
        assert_eq!(lines[1], format!("  serial    {}", leaf.serial));
        assert!(lines[2].starts_with("  valid     20") && lines[2].contains("(ends in "), "{}", lines[2]);
        assert_eq!(lines[3], format!("  verified  against 1 authority; not on CRL {CRL_NUMBER} (0 entries)"));
        assert_eq!(lines.len(), 4);
        assert!(ran.err.contains("revoked now that this command ends"), "{}", ran.err);
        let headers: Vec<_> = agent.script.seen.lock().expect("lock").iter().map(|s| s.0.clone()).collect();
        assert_eq!(headers, [["true"]], "WEP-06");
    }

    #[tokio::test]
    async fn json_holds_certificates_and_never_a_key() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let (leaf, gone) = (pki.leaf(ID), pki.leaf(ID));
        agent.script.send_x509(Ok(pki.answer(&[&leaf], &[&gone])));
        let ran = agent.run(&["fetch", "x509", "--output", "json"]).await;
        let json = ran.json();
        assert_eq!(json["svids"][0]["spiffe_id"], ID);
        assert_eq!(json["svids"][0]["crl_numbers"][0], CRL_NUMBER);
        assert_eq!(json["crls"][0]["revoked"][0]["serial"], gone.serial);
        let pem = json["svids"][0]["certificates"].as_str().expect("PEM");
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"));
        assert!(!ran.out.contains("PRIVATE KEY"));
        assert!(json.get("written").is_none());
    }

    #[tokio::test]
    async fn writes_a_set_of_files_with_a_private_key_for_the_owner_only() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let (a, b) = (pki.leaf(ID), pki.leaf("spiffe://example.org/other"));
        let mut answer = pki.answer(&[&a, &b], &[]);
        answer.federated_bundles.insert("spiffe://other.test".into(), Pki::new("other.test").bundle());
        agent.script.send_x509(Ok(answer));
        let dir = agent.dir.path().join("out");
        let ran = agent.run(&["fetch", "x509", "--write", dir.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let mode = |name: &str| fs::metadata(dir.join(name)).expect(name).permissions().mode() & 0o777;
        for name in ["svid.0.key", "svid.1.key"] {
            assert_eq!(mode(name), 0o600, "{name}");
        }
        for name in ["svid.0.pem", "bundle.0.pem", "crl.0.pem", "svid.1.pem", "bundle.1.pem", "crl.1.pem"] {
            assert_eq!(mode(name), 0o644, "{name}");
        }
        let key = fs::read_to_string(dir.join("svid.0.key")).expect("key");
        assert_eq!(rcgen::KeyPair::from_pem(&key).expect("PKCS#8").serialize_der(), a.key);
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.join("index.json")).expect("index")).expect("JSON");
        assert_eq!(index["svids"][1]["spiffe_id"], "spiffe://example.org/other");
        assert_eq!(index["svids"][0]["crl"], "crl.0.pem");
        assert_eq!(index["federated"][0]["trust_domain"], "spiffe://other.test");
        assert!(ran.err.contains(dir.to_str().expect("text")), "{}", ran.err);
    }

    #[tokio::test]
    async fn one_identity_of_several_can_be_chosen() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let (a, b) = (pki.leaf(ID), pki.leaf("spiffe://example.org/other"));
        agent.script.send_x509(Ok(pki.answer(&[&a, &b], &[])));
        let ran = agent.run(&["fetch", "x509", "--spiffe-id", &b.id, "--output", "json"]).await;
        assert_eq!(ran.json()["svids"].as_array().map(Vec::len), Some(1));
        let ran = agent.run(&["fetch", "x509", "--spiffe-id", "spiffe://example.org/none"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::NoIdentity, ""));
    }

    #[tokio::test]
    async fn without_identity_it_exits_7_with_the_next_step() {
        let ran = Agent::start().run(&["fetch", "x509"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::NoIdentity, ""));
        assert!(
            ran.err.contains("no identity issued") && ran.err.contains("mayfly explain --pid"),
            "{}",
            ran.err
        );
    }

    #[tokio::test]
    async fn a_certificate_that_does_not_verify_is_neither_shown_nor_written() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaf = pki.leaf(ID);
        agent.script.send_x509(Ok(pki.answer(&[&leaf], &[&leaf])));
        let dir = agent.dir.path().join("out");
        let ran = agent.run(&["fetch", "x509", "--write", dir.to_str().expect("text")]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        assert!(ran.err.contains("is revoked"), "{}", ran.err);
        assert_eq!(fs::read_dir(&dir).expect("made").count(), 0);
    }

    #[tokio::test]
    async fn without_an_agent_it_exits_8() {
        let ran = run(empty_env(), &["fetch", "x509"]).await;
        assert_eq!(ran.exit, Exit::Unreachable);
        assert!(ran.err.contains("no agent found") && ran.err.contains("mayfly agent --dev"), "{}", ran.err);
        let ran = run(empty_env(), &["fetch", "x509", "--socket", "/nonexistent/api.sock"]).await;
        assert_eq!(ran.exit, Exit::Unreachable);
        let ran = run(empty_env(), &["fetch", "x509", "--socket", "tcp://127.0.0.1:1"]).await;
        assert_eq!(ran.exit, Exit::Usage);
    }

    #[tokio::test]
    async fn wait_works_with_agents_that_cannot_tell_when_an_identity_comes() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        *agent.script.who.lock().expect("lock") = Err(tonic::Status::unimplemented("unknown service"));
        let leaf = pki.leaf(ID);
        let later = async {
            tokio::time::sleep(Duration::from_millis(250)).await;
            agent.script.send_x509(Ok(pki.answer(&[&leaf], &[])));
        };
        let (ran, ()) = tokio::join!(agent.run(&["fetch", "x509", "--wait"]), later);
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert!(agent.requests().iter().filter(|r| r.contains("X509svidRequest")).count() > 2);
    }

    #[tokio::test]
    async fn wait_asks_once_and_again_when_the_identity_is_there() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaf = pki.leaf(ID);
        let later = async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            agent.script.send_x509(Ok(pki.answer(&[&leaf], &[])));
        };
        let (ran, ()) = tokio::join!(agent.run(&["fetch", "x509", "--wait"]), later);
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert_eq!(agent.requests().iter().filter(|r| r.contains("X509svidRequest")).count(), 2);
    }

    #[tokio::test]
    async fn wait_outlasts_a_missing_identity_and_says_how_to_look_at_it() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaf = pki.leaf(ID);
        let later = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            agent.script.send_x509(Ok(pki.answer(&[&leaf], &[])));
        };
        let (ran, ()) = tokio::join!(agent.run(&["fetch", "x509", "--wait"]), later);
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        assert!(ran.err.contains(&format!("explain --pid {}", std::process::id())), "{}", ran.err);
    }

    #[tokio::test]
    async fn wait_gives_up_when_its_time_is_over() {
        let ran = Agent::start().run(&["fetch", "x509", "--wait=300ms"]).await;
        assert_eq!(ran.exit, Exit::NoIdentity);
        let ran = run(empty_env(), &["fetch", "x509", "--wait=100ms"]).await;
        assert_eq!(ran.exit, Exit::Unreachable);
    }

    #[tokio::test]
    async fn wait_does_not_retry_what_cannot_get_better() {
        let agent = Agent::start();
        agent.script.send_x509(Err(tonic::Status::invalid_argument("header")));
        let ran = agent.run(&["fetch", "x509", "--wait"]).await;
        assert_eq!(ran.exit, Exit::Failed);
        assert_eq!(agent.requests().len(), 1, "WEP-08");
    }

    #[tokio::test]
    async fn hold_follows_rotations_a_restart_and_the_withdrawal() {
        let (mut agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaves = [pki.leaf(ID), pki.leaf(ID), pki.leaf(ID)];
        agent.script.send_x509(Ok(pki.answer(&[&leaves[0]], &[])));
        let dir = agent.dir.path().join("out");
        let (env, args) = (agent.env(), ["fetch", "x509", "--hold", "--write", dir.to_str().expect("text")]);
        let serial = |want: &str| {
            let (dir, want) = (dir.clone(), want.to_owned());
            async move {
                let found = || fs::read_to_string(dir.join("index.json")).unwrap_or_default().contains(&want);
                while !found() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        let story = async {
            serial(&leaves[0].serial).await;
            agent.script.send_x509(Ok(pki.answer(&[&leaves[1]], &[])));
            serial(&leaves[1].serial).await;
            agent.crash();
            fs::remove_file(&agent.socket).expect("unlink");
            agent.script.send_x509(Ok(pki.answer(&[&leaves[2]], &[&leaves[0]])));
            agent.listen();
            serial(&leaves[2].serial).await;
            agent.script.send_x509(Err(none()));
        };
        let (ran, ()) = tokio::join!(run(env, &args), story);
        assert_eq!(ran.exit, Exit::NoIdentity, "{ran:?}");
        assert!(!dir.join("svid.0.key").exists(), "a withdrawn key must go (WAPI-21)");
        assert!(ran.err.contains("reconnecting"), "{}", ran.err);
    }
}
