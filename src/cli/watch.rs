//! `mayfly watch`: prints each update of this process's identities as it comes.

use serde::Serialize;

use super::args::OutputArgs;
use super::client::{ClientArgs, Target, WaitFor, Which};
use super::failure::Failure;
use super::follow::{Event, Follow};
use super::show::{Detail, UpdateJson, as_u64};
use super::x509::Update;
use super::{Context, render, stop};
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly watch                          one line for each change, until Ctrl-C
  mayfly watch --output json | jq .     one JSON object a line
  mayfly watch --wait --count 3         three updates, waiting for an agent and an identity first";

/// `mayfly watch`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// End after this many updates
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Wait for the agent and for an identity, for ever or `--wait=30s`
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "ever")]
    wait: Option<WaitFor>,
}

/// One line of JSON.
#[derive(Serialize)]
struct EventJson {
    event: &'static str,
    at: String,
    #[serde(flatten)]
    update: Option<UpdateJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let mut follow = Follow::new(target, args.wait);
    tokio::select! {
        result = watch(&mut follow, &args, context) => result,
        () = stop() => Ok(Exit::Ok),
    }
}

async fn watch(follow: &mut Follow, args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let mut seen = 0;
    while args.count.is_none_or(|count| seen < count) {
        let event = follow.next(context).await?;
        seen += u64::from(matches!(event, Event::Update(_)));
        show(args.output, &event, context)?;
        if let Event::Withdrawn(failure) = event
            && args.wait.is_none()
        {
            return Err(failure);
        }
    }
    Ok(Exit::Ok)
}

fn show(output: OutputArgs, event: &Event, context: &mut Context) -> Result<(), Failure> {
    let at = render::stamp(SystemClock.wall());
    let (name, update, message) = match event {
        Event::Update(update) => ("update", Some(update), None),
        Event::Bad(error) => ("ignored", None, Some(error.to_string())),
        Event::Interrupted(failure) => ("interrupted", None, Some(failure.message.clone())),
        Event::Withdrawn(failure) => ("withdrawn", None, Some(failure.message.clone())),
    };
    if output.is_json() {
        let update = update.map(|update| UpdateJson::new(update, Detail::Facts));
        context.console.json_line(&EventJson { event: name, at, update, message })?;
        return Ok(());
    }
    match update {
        Some(update) => context.console.lines(lines(&at, update))?,
        None => context.console.line(&format!("{at}  {name}  {}", message.unwrap_or_default()))?,
    }
    Ok(())
}

fn lines(at: &str, update: &Update) -> Vec<String> {
    let crl = |crl: &super::x509::Crl| {
        format!("CRL {} ({})", crl.number, render::count(as_u64(crl.revoked.len()), "entry", "entries"))
    };
    let svids = update.svids.iter().map(|svid| {
        let crls: Vec<String> = update.crls_of(svid).into_iter().map(crl).collect();
        let (id, until) = (render::cell(&svid.spiffe_id), render::stamp_unix(svid.not_after));
        format!("{at}  {id}  serial {}  until {until}  {}", svid.serial, crls.join(", "))
    });
    svids.collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::agent::{Agent, none};
    use super::super::testing::pki::Pki;
    use super::super::testing::run;
    use super::*;

    const ID: &str = "spiffe://example.org/web";

    #[tokio::test]
    async fn each_update_is_one_line_of_json() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let (a, b) = (pki.leaf(ID), pki.leaf(ID));
        agent.script.send_x509(Ok(pki.answer(&[&a], &[])));
        let next = async {
            while agent.requests().is_empty() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            agent.script.send_x509(Ok(pki.answer(&[&b], &[&a])));
        };
        let (ran, ()) = tokio::join!(agent.run(&["watch", "--count", "2", "--output", "json"]), next);
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let events: Vec<serde_json::Value> =
            ran.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0]["event"], "update");
        assert_eq!(events[0]["svids"][0]["serial"], a.serial);
        assert_eq!(events[1]["svids"][0]["serial"], b.serial);
        assert_eq!(events[1]["crls"][0]["revoked"][0]["serial"], a.serial);
        assert!(!ran.out.contains("BEGIN"), "events carry facts, not files");
    }

    #[tokio::test]
    async fn text_is_one_line_an_identity() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaf = pki.leaf(ID);
        agent.script.send_x509(Ok(pki.answer(&[&leaf], &[])));
        let ran = agent.run(&["watch", "--count", "1"]).await;
        assert_eq!(ran.out.lines().count(), 1);
        assert!(ran.out.contains(&format!("{ID}  serial {}  until 20", leaf.serial)), "{}", ran.out);
    }

    #[tokio::test]
    async fn withdrawal_ends_it_with_7_and_never_having_had_one_too() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaf = pki.leaf(ID);
        assert_eq!(agent.run(&["watch"]).await.exit, Exit::NoIdentity);
        agent.script.send_x509(Ok(pki.answer(&[&leaf], &[])));
        let next = async {
            while agent.requests().len() < 2 {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            agent.script.send_x509(Err(none()));
        };
        let (ran, ()) = tokio::join!(agent.run(&["watch"]), next);
        assert_eq!(ran.exit, Exit::NoIdentity, "{ran:?}");
        assert!(ran.out.contains("withdrawn  permission denied: no identity issued"), "{}", ran.out);
    }

    #[tokio::test]
    async fn a_bad_update_is_named_and_not_used() {
        let (agent, pki) = (Agent::start(), Pki::new("example.org"));
        let leaf = pki.leaf(ID);
        agent.script.send_x509(Ok(pki.answer(&[&leaf], &[&leaf])));
        let env = agent.env();
        let next = async {
            while agent.requests().is_empty() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            agent.script.send_x509(Ok(pki.answer(&[&leaf], &[])));
        };
        let (ran, ()) = tokio::join!(run(env, &["watch", "--count", "1"]), next);
        let lines: Vec<&str> = ran.out.lines().collect();
        assert!(lines[0].contains("ignored") && lines[0].contains("is revoked"), "{}", ran.out);
        assert!(lines[1].contains("serial"), "{}", ran.out);
    }
}
