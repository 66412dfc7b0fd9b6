//! `mayfly lease list|revoke`: who holds what, and taking it back.

use mayfly_proto::admin::revoke_leases_request::Target as Revoke;
use mayfly_proto::admin::{Lease, ListLeasesRequest, RevokeLeasesRequest};
use serde::Serialize;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, count, millis, relative, stamp_unix};
use super::show::as_u64;
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

pub(super) const LIST_EXAMPLES: &str = "\
Examples:
  mayfly lease list
  mayfly lease list --pid 4242 --all
  mayfly lease list --spiffe-id spiffe://example.org/web --output json";

pub(super) const REVOKE_EXAMPLES: &str = "\
Examples:
  mayfly lease revoke --pid 4242 --reason 'suspicious traffic, ticket 17'
  mayfly lease revoke --spiffe-id spiffe://example.org/web --reason 'key leaked'
  mayfly lease revoke --lease 4a0f… --reason test

Answers when the revocation list is published. A process named by --pid gets nothing new until it restarts.
Exit code: 1 when nothing was there to revoke.";

/// `mayfly lease …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// List leases, soonest expiry first
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Revoke now, by lease, by process or by identity
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),
}

#[derive(clap::Args, Debug)]
struct List {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Only of this process
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Only of this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Revoked ones that have not expired, too
    #[arg(long)]
    all: bool,
}

#[derive(clap::Args, Debug)]
struct RevokeArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    which: WhichLeases,
    /// Why; goes into the audit log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct WhichLeases {
    /// One lease: the serial or `jti`, in hex
    #[arg(long, value_name = "HEX")]
    lease: Option<String>,
    /// All leases of this process
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// All leases of this identity on this node
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
}

#[derive(Serialize)]
struct Listing {
    leases: Vec<LeaseJson>,
}

#[derive(Serialize)]
struct LeaseJson {
    id: String,
    kind: String,
    spiffe_id: String,
    entry_id: String,
    pid: u32,
    uid: u32,
    process_name: String,
    issued_at: String,
    not_after: String,
    audience: Vec<String>,
    state: String,
    reason: String,
}

#[derive(Serialize)]
struct Revoked {
    lease_ids: Vec<String>,
    crl_number: u64,
    micros: u64,
    barred: u32,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    match args.what {
        What::List(args) => list(args, context).await,
        What::Revoke(args) => revoke(args, context).await,
    }
}

async fn list(args: List, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let request = ListLeasesRequest {
        spiffe_id: args.spiffe_id.unwrap_or_default(),
        pid: args.pid.unwrap_or_default(),
        include_revoked: args.all,
    };
    let mut admin = connection.admin();
    let mut stream = answer(admin.list_leases(request)).await?.into_inner();
    let mut leases = Vec::new();
    while let Some(lease) = answer(stream.message()).await? {
        leases.push(lease);
    }
    if args.output.is_json() {
        context.console.json(&Listing { leases: leases.into_iter().map(json).collect() })?;
    } else if leases.is_empty() {
        context.console.note("no leases");
    } else {
        context.console.lines(table(&leases).lines())?;
    }
    Ok(Exit::Ok)
}

async fn revoke(args: RevokeArgs, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let which = match (args.which.lease, args.which.pid, args.which.spiffe_id) {
        (Some(lease), _, _) => Revoke::LeaseId(lease.to_ascii_lowercase()),
        (None, Some(pid), _) => Revoke::Pid(pid),
        (None, None, Some(id)) => Revoke::SpiffeId(id),
        (None, None, None) => return Err(Failure::usage("say which leases: --lease, --pid or --spiffe-id")),
    };
    let connection = target.connect().await?;
    let request = RevokeLeasesRequest { target: Some(which), reason: args.reason };
    let done = answer(connection.admin().revoke_leases(request)).await?.into_inner();
    let number = as_u64(done.lease_ids.len());
    if args.output.is_json() {
        let (crl_number, micros, barred) = (done.crl_number, done.micros, done.barred);
        context.console.json(&Revoked { lease_ids: done.lease_ids, crl_number, micros, barred })?;
    } else if number > 0 {
        let leases = count(number, "lease", "leases");
        let took = millis(done.micros);
        context
            .console
            .line(&format!("revoked {leases} in {took}, published with CRL {}", done.crl_number))?;
        context.console.lines(done.lease_ids.iter().map(|id| format!("  {id}")))?;
    }
    if number == 0 && done.barred > 0 {
        // The order counts all the same, also for what is in flight.
        let barred = count(done.barred.into(), "process gets", "processes get");
        let what = "no live lease fits, nothing was revoked";
        context.console.note(&format!("{what}; {barred} nothing of the kind any more until restarted"));
        return Ok(Exit::Ok);
    }
    match number {
        0 => {
            Err(Failure::failed("no live lease fits, nothing was revoked")
                .hint("`mayfly lease list` shows them"))
        }
        _ => Ok(Exit::Ok),
    }
}

fn json(lease: Lease) -> LeaseJson {
    LeaseJson {
        id: lease.id,
        kind: lease.kind,
        spiffe_id: lease.spiffe_id,
        entry_id: lease.entry_id,
        pid: lease.pid,
        uid: lease.uid,
        process_name: lease.process_name,
        issued_at: stamp_unix(lease.issued_at),
        not_after: stamp_unix(lease.not_after),
        audience: lease.audience,
        state: lease.state,
        reason: lease.reason,
    }
}

fn table(leases: &[Lease]) -> Table {
    let now = SystemClock.wall();
    let mut table = Table::new(["LEASE", "KIND", "SPIFFE ID", "PID", "UID", "PROCESS", "ENDS", "STATE"]);
    for lease in leases {
        let state = match lease.reason.as_str() {
            "" => lease.state.clone(),
            reason => format!("{} ({reason})", lease.state),
        };
        table.row([
            lease.id.clone(),
            lease.kind.clone(),
            lease.spiffe_id.clone(),
            lease.pid.to_string(),
            lease.uid.to_string(),
            lease.process_name.clone(),
            relative(lease.not_after, now),
            state,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use mayfly_proto::admin::RevokeLeasesResponse;

    use super::super::testing::agent::Agent;
    use super::*;

    fn lease(state: &str, reason: &str) -> Lease {
        Lease {
            id: "4a0f".into(),
            kind: "x509".into(),
            spiffe_id: "spiffe://example.org/web".into(),
            entry_id: "web".into(),
            pid: 42,
            uid: 1000,
            process_name: "web\n4a10 x509 forged".into(),
            issued_at: 0,
            not_after: 4_102_444_800,
            audience: Vec::new(),
            state: state.into(),
            reason: reason.into(),
        }
    }

    #[tokio::test]
    async fn lists_one_line_a_lease_whatever_the_process_calls_itself() {
        let agent = Agent::start();
        *agent.script.leases.lock().expect("lock") = Ok(vec![lease("live", ""), lease("revoked", "exited")]);
        let ran = agent.run(&["lease", "list", "--pid", "42", "--all"]).await;
        assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!(lines.len(), 3, "{}", ran.out);
        assert!(
            lines[0].starts_with("LEASE  KIND  SPIFFE ID                 PID  UID   PROCESS"),
            "{}",
            lines[0]
        );
        assert!(lines[1].contains("web\\n4a10 x509 forged") && lines[1].ends_with("live"), "{}", lines[1]);
        assert!(lines[2].ends_with("revoked (exited)"), "{}", lines[2]);
        let request = &agent.requests()[0];
        assert!(request.contains("pid: 42") && request.contains("include_revoked: true"), "{request}");
    }

    #[tokio::test]
    async fn an_empty_list_is_empty_output_and_valid_json() {
        let agent = Agent::start();
        let ran = agent.run(&["lease", "list"]).await;
        assert_eq!((ran.exit, ran.out.as_str(), ran.err.as_str()), (Exit::Ok, "", "mayfly: no leases\n"));
        let ran = agent.run(&["lease", "list", "--output", "json"]).await;
        assert_eq!(ran.json()["leases"].as_array().map(Vec::len), Some(0));
    }

    #[tokio::test]
    async fn revoke_names_what_it_revoked_and_how_fast() {
        let agent = Agent::start();
        *agent.script.revoke.lock().expect("lock") = Ok(RevokeLeasesResponse {
            lease_ids: vec!["4a0f".into(), "4b".into()],
            crl_number: 7,
            micros: 812,
            barred: 1,
        });
        let ran = agent.run(&["lease", "revoke", "--pid", "42", "--reason", "test"]).await;
        assert_eq!(ran.out, "revoked 2 leases in 0.812 ms, published with CRL 7\n  4a0f\n  4b\n");
        let request = &agent.requests()[0];
        assert!(request.contains("Pid(42)") && request.contains("reason: \"test\""), "{request}");
        let ran =
            agent.run(&["lease", "revoke", "--lease", "4A0F", "--reason", "x", "--output", "json"]).await;
        assert_eq!(ran.json()["crl_number"], 7);
        assert!(agent.requests()[1].contains("LeaseId(\"4a0f\")"), "{:?}", agent.requests());
    }

    #[tokio::test]
    async fn revoking_nothing_fails_and_so_does_a_wrong_command_line() {
        let agent = Agent::start();
        let ran =
            agent.run(&["lease", "revoke", "--spiffe-id", "spiffe://example.org/web", "--reason", "x"]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Failed, ""));
        let barred = RevokeLeasesResponse { barred: 1, ..Default::default() };
        *agent.script.revoke.lock().expect("lock") = Ok(barred);
        let ran = agent.run(&["lease", "revoke", "--pid", "7", "--reason", "x"]).await;
        let said = "no live lease fits, nothing was revoked; 1 process gets nothing of the kind any more";
        assert!(ran.exit == Exit::Ok && ran.err.contains(said), "{ran:?}");
        for wrong in [
            &["lease", "revoke", "--reason", "x"][..],
            &["lease", "revoke", "--pid", "1"],
            &["lease", "revoke", "--pid", "1", "--lease", "4a", "--reason", "x"],
        ] {
            assert_eq!(agent.run(wrong).await.exit, Exit::Usage, "{wrong:?}");
        }
        *agent.script.leases.lock().expect("lock") = Err(tonic::Status::permission_denied("operators only"));
        assert_eq!(agent.run(&["lease", "list"]).await.exit, Exit::NoIdentity);
    }
}
