//! `mayfly authority show|prepare|activate|taint|revoke`: the life of the signing keys, by hand.

use mayfly_proto::admin::order_authority_request::Order;
use mayfly_proto::admin::{AuthorityRecord, ListAuthoritiesRequest, OrderAuthorityRequest};
use serde::Serialize;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, stamp_unix};
use crate::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  mayfly authority show
  mayfly authority prepare x509          # made and published; it signs nothing yet
  mayfly authority activate x509         # it signs from now on; the former one is old, and still trusted
  mayfly authority taint ID              # all that ID signed is issued again at once
  mayfly authority revoke ID             # out of the bundle, when all that it signed has been replaced

All of it happens by age, too: a successor is prepared at half of the active one's life and takes over in the last
sixth. Exit code: 1 when the order does not fit; the message says what would.";

const SHOW: &str = "Examples:\n  mayfly authority show\n  mayfly authority show --output json";
const PREPARE: &str = "Examples:\n  mayfly authority prepare x509";
const ACTIVATE: &str = "Examples:\n  mayfly authority activate jwt\n  mayfly authority activate x509 --now";
const TAINT: &str = "Examples:\n  mayfly authority taint 2f9c…";
const REVOKE: &str = "Examples:\n  mayfly authority revoke 2f9c…";

/// `mayfly authority …`
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// List the authorities and where they stand
    #[command(after_help = SHOW)]
    Show(Show),
    /// Make a successor and publish it
    #[command(after_help = PREPARE)]
    Prepare(OfKind),
    /// Let the prepared authority sign
    #[command(after_help = ACTIVATE)]
    Activate(Activate),
    /// Replace everything that an old authority signed
    #[command(after_help = TAINT)]
    Taint(OfId),
    /// Take an authority out of the bundle
    #[command(after_help = REVOKE)]
    Revoke(OfId),
}

#[derive(clap::Args, Debug)]
struct Show {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args, Debug)]
struct OfKind {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// What it signs
    #[arg(value_parser = ["x509", "jwt", "wit"])]
    kind: String,
}

#[derive(clap::Args, Debug)]
struct Activate {
    #[command(flatten)]
    order: OfKind,
    /// Before verifiers have had their time to learn it: some may refuse what it signs
    #[arg(long)]
    now: bool,
}

#[derive(clap::Args, Debug)]
struct OfId {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The authority, as `mayfly authority show` names it
    // A `kid` may begin with a hyphen.
    #[arg(allow_hyphen_values = true)]
    id: String,
}

#[derive(Serialize)]
struct Listing {
    authorities: Vec<Json>,
}

#[derive(Serialize)]
struct Json {
    kind: String,
    id: String,
    state: String,
    not_after: String,
    prepared_at: String,
    activated_at: Option<String>,
    old_at: Option<String>,
    tainted_at: Option<String>,
    revoking_since: Option<String>,
    revoked_at: Option<String>,
}

pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    match args.what {
        What::Show(args) => show(args, context).await,
        What::Prepare(args) => {
            let order = Order::Prepare(args.kind);
            send(&args.client, &args.output, order, false, context).await
        }
        What::Activate(args) => {
            let order = Order::Activate(args.order.kind);
            send(&args.order.client, &args.order.output, order, args.now, context).await
        }
        What::Taint(args) => send(&args.client, &args.output, Order::Taint(args.id), false, context).await,
        What::Revoke(args) => send(&args.client, &args.output, Order::Revoke(args.id), false, context).await,
    }
}

async fn show(args: Show, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let answered = answer(connection.admin().list_authorities(ListAuthoritiesRequest {})).await?.into_inner();
    if args.output.is_json() {
        let authorities = answered.authorities.into_iter().map(json).collect();
        context.console.json(&Listing { authorities })?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(["KIND", "STATE", "ID", "SINCE", "UNTIL"]);
    for one in &answered.authorities {
        let state =
            if one.revoking_since > 0 { format!("{}, leaving", one.state) } else { one.state.clone() };
        let since = stamp_unix(since(one));
        table.row([one.kind.clone(), state, one.id.clone(), since, stamp_unix(one.not_after)]);
    }
    context.console.lines(table.lines())?;
    Ok(Exit::Ok)
}

async fn send(
    client: &ClientArgs,
    output: &OutputArgs,
    order: Order,
    now: bool,
    context: &mut Context,
) -> Result<Exit, Failure> {
    let target = Target::resolve(client, Which::Admin, &context.env)?;
    let connection = target.connect().await?;
    let request = OrderAuthorityRequest { order: Some(order), now };
    let done = answer(connection.admin().order_authority(request)).await?.into_inner();
    let Some(one) = done.authority else { return Err(Failure::failed("the agent says nothing of it")) };
    if output.is_json() {
        context.console.json(&json(one))?;
    } else {
        context.console.line(&format!("{} authority {} is {}", one.kind, one.id, one.state))?;
    }
    Ok(Exit::Ok)
}

/// When it came to where it stands.
fn since(one: &AuthorityRecord) -> i64 {
    match one.state.as_str() {
        "active" => one.activated_at,
        "old" => one.old_at,
        "tainted" => one.tainted_at,
        "revoked" => one.revoked_at,
        _ => one.prepared_at,
    }
}

fn json(one: AuthorityRecord) -> Json {
    let at = |time| (time != 0).then(|| stamp_unix(time));
    Json {
        kind: one.kind,
        id: one.id,
        state: one.state,
        not_after: stamp_unix(one.not_after),
        prepared_at: stamp_unix(one.prepared_at),
        activated_at: at(one.activated_at),
        old_at: at(one.old_at),
        tainted_at: at(one.tainted_at),
        revoking_since: at(one.revoking_since),
        revoked_at: at(one.revoked_at),
    }
}
