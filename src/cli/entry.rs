//! `mayfly entry check|list`: registration entries, in files and in the running agent.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mayfly_proto::admin::{Entry, ListEntriesRequest, ListEntriesResponse};
use serde::Serialize;

use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, count, span, stamp_unix};
use super::{Context, config};
use crate::config::Config;
use crate::exit::Exit;
use crate::id::TrustDomain;
use crate::registration::{EntryRules, EntrySet, check_files};

const CHECK_EXAMPLES: &str = "\
Examples:
  mayfly entry check /etc/mayfly/entries.d/*.toml
  mayfly entry check --config /etc/mayfly/mayfly.toml web.toml
  mayfly entry check web.toml && install -m 0644 web.toml /etc/mayfly/entries.d/

Needs no agent. Exit code: 10 when any entry is bad; every problem is named with file, line and field.";

const LIST_EXAMPLES: &str = "\
Examples:
  mayfly entry list
  mayfly entry list --output json | jq -r '.entries[] | select(.strength == \"advisory\") | .source'";

/// `mayfly entry check`
#[derive(clap::Args, Debug)]
#[command(after_help = CHECK_EXAMPLES)]
pub(super) struct Check {
    /// Entry files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Check against this configuration too: trust domain, lifetimes, federation
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// `mayfly entry list`
#[derive(clap::Args, Debug)]
#[command(after_help = LIST_EXAMPLES)]
pub(super) struct List {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Listing {
    version: String,
    entries: Vec<EntryJson>,
}

#[derive(Serialize)]
struct EntryJson {
    id: String,
    spiffe_id: String,
    selectors: Vec<String>,
    priority: i32,
    hint: String,
    dns_names: Vec<String>,
    x509_ttl_seconds: u64,
    jwt_ttl_seconds: u64,
    wit_ttl_seconds: u64,
    federates_with: Vec<String>,
    jwt_audiences: Vec<String>,
    owner: String,
    /// `null` = no end.
    until: Option<String>,
    strength: String,
    source: String,
}

pub(super) fn check(args: &Check, context: &mut Context) -> Result<Exit, Failure> {
    let config = match args.config.as_deref().map(crate::config::load).transpose() {
        Ok(config) => config,
        Err(problems) => return config::report(&problems, context),
    };
    let rules = config.as_ref().map_or_else(EntryRules::default, |config| EntryRules {
        trust_domain: Some(config.trust_domain.clone()),
        x509_ttl_max: config.x509.ttl,
        jwt_ttl_max: config.jwt.ttl,
        wit_ttl_max: config.wit.ttl,
        foreign: config.attest.plugins.iter().map(|plugin| plugin.kind).collect(),
    });
    match check_files(&args.files, &rules) {
        Ok(entries) => {
            let number = count(super::show::as_u64(entries.len()), "entry is", "entries are");
            context.console.line(&format!("{number} good"))?;
            for domain in config.iter().flat_map(|config| without_relationship(&entries, config)) {
                let advice =
                    "its bundle must be set with `mayfly bundle set`, or written as a `[[federation]]` table";
                context.console.note(&format!("no relationship with {domain}: {advice}"));
            }
            Ok(Exit::Ok)
        }
        Err(problems) => config::report(&problems, context),
    }
}

/// Trust domains that entries federate with and the configuration does not: no mistake, a bundle can be set by hand.
fn without_relationship(entries: &EntrySet, config: &Config) -> BTreeSet<TrustDomain> {
    let named = entries.iter().flat_map(|entry| &entry.terms.federates_with);
    let known = |domain: &&TrustDomain| config.federation.iter().any(|one| one.trust_domain == **domain);
    named.filter(|domain| !known(domain)).cloned().collect()
}

pub(super) async fn list(args: List, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let found = answer(connection.admin().list_entries(ListEntriesRequest {})).await?.into_inner();
    if args.output.is_json() {
        context.console.json(&json(found))?;
    } else if found.entries.is_empty() {
        context.console.note("no entries: nobody gets an identity");
    } else {
        context.console.lines(table(&found.entries).lines())?;
    }
    Ok(Exit::Ok)
}

fn json(found: ListEntriesResponse) -> Listing {
    let entry = |entry: Entry| EntryJson {
        id: entry.id,
        spiffe_id: entry.spiffe_id,
        selectors: entry.selectors,
        priority: entry.priority,
        hint: entry.hint,
        dns_names: entry.dns_names,
        x509_ttl_seconds: entry.x509_ttl_seconds,
        jwt_ttl_seconds: entry.jwt_ttl_seconds,
        wit_ttl_seconds: entry.wit_ttl_seconds,
        federates_with: entry.federates_with,
        jwt_audiences: entry.jwt_audiences,
        owner: entry.owner,
        until: (entry.until != 0).then(|| stamp_unix(entry.until)),
        strength: entry.strength,
        source: entry.source,
    };
    Listing { version: found.version, entries: found.entries.into_iter().map(entry).collect() }
}

fn table(entries: &[Entry]) -> Table {
    let mut table =
        Table::new(["ENTRY", "SPIFFE ID", "SELECTORS", "STRENGTH", "X.509 TTL", "UNTIL", "SOURCE"]);
    for entry in entries {
        let until = if entry.until == 0 { String::new() } else { stamp_unix(entry.until) };
        let ttl = match entry.x509_ttl_seconds {
            0 => "default".to_owned(),
            seconds => span(std::time::Duration::from_secs(seconds)),
        };
        table.row([
            entry.id.clone(),
            entry.spiffe_id.clone(),
            entry.selectors.join(" "),
            entry.strength.clone(),
            ttl,
            until,
            entry.source.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::agent::Agent;
    use super::super::testing::{empty_env, run};
    use super::*;

    const GOOD: &str =
        "[[entries]]\nspiffe_id = \"spiffe://example.org/web\"\nselectors = [\"unix:uid:1000\"]\n";

    #[tokio::test]
    async fn check_with_a_configuration_names_domains_without_a_relationship() {
        let dir = tempfile::tempdir().expect("tempdir");
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            crate::files::write_atomic(&path, 0o644, text.as_bytes()).expect("write");
            path.to_str().expect("text").to_owned()
        };
        let entries = put("e.toml", &format!("{GOOD}federates_with = [\"a.test\", \"b.test\"]\n"));
        let config = put(
            "mayfly.toml",
            "trust_domain = \"example.org\"\n[[federation]]\ntrust_domain = \"a.test\"\n\
             url = \"https://a.test/\"\nprofile = \"https_web\"\n",
        );
        let ran = run(empty_env(), &["entry", "check", "--config", &config, &entries]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, "1 entry is good\n"), "{ran:?}");
        assert!(
            ran.err.contains("no relationship with b.test") && !ran.err.contains("a.test"),
            "{}",
            ran.err
        );
        let other = put("other.toml", "trust_domain = \"other.org\"\n");
        let ran = run(empty_env(), &["entry", "check", "--config", &other, &entries]).await;
        assert_eq!(ran.exit, Exit::Invalid, "another trust domain's entry");
    }

    #[tokio::test]
    async fn check_counts_good_entries_and_names_every_bad_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
        std::fs::write(&good, GOOD).expect("write");
        std::fs::write(&bad, "[[entries]]\nspiffe_id = \"http://x\"\nselector = []\n").expect("write");
        let (good, bad) = (good.to_str().expect("text"), bad.to_str().expect("text"));
        let ran = run(empty_env(), &["entry", "check", good]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, "1 entry is good\n"));
        let ran = run(empty_env(), &["entry", "check", good, bad]).await;
        assert_eq!(ran.exit, Exit::Invalid, "{ran:?}");
        assert!(ran.out.contains("bad.toml:2") && ran.out.contains("bad.toml:3"), "{}", ran.out);
        assert!(!ran.out.contains("good.toml"), "{}", ran.out);
    }

    fn agent() -> Agent {
        let agent = Agent::start();
        let entry = Entry {
            id: "web".into(),
            spiffe_id: "spiffe://example.org/web".into(),
            selectors: vec!["unix:uid:1000".into(), "cgroup:path:/a".into()],
            x509_ttl_seconds: 900,
            strength: "kernel".into(),
            source: "web.toml:3".into(),
            ..Entry::default()
        };
        *agent.script.entries.lock().expect("lock") =
            Ok(ListEntriesResponse { entries: vec![entry], version: "ab".into() });
        agent
    }

    #[tokio::test]
    async fn lists_entries() {
        let ran = agent().run(&["entry", "list"]).await;
        let want = "\
ENTRY  SPIFFE ID                 SELECTORS                     STRENGTH  X.509 TTL  UNTIL  SOURCE
web    spiffe://example.org/web  unix:uid:1000 cgroup:path:/a  kernel    15m00s            web.toml:3
";
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, want));
        let json = agent().run(&["entry", "list", "--output", "json"]).await.json();
        assert_eq!((json["version"].as_str(), json["entries"][0]["until"].is_null()), (Some("ab"), true));
        assert_eq!(json["entries"][0]["selectors"][1], "cgroup:path:/a");
    }

    #[tokio::test]
    async fn no_entries_and_no_agent() {
        let mut agent = Agent::start();
        let ran = agent.run(&["entry", "list"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, ""));
        assert!(ran.err.contains("nobody gets an identity"));
        agent.crash();
        let ran = agent.run(&["entry", "list"]).await;
        assert_eq!(ran.exit, Exit::Unreachable);
        // The kernel may still take a connection that nobody will serve: refused or broken, it is unreachable.
        assert!(!ran.err.is_empty());
    }
}
