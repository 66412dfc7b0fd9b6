//! `mayfly bundle list|show|set|delete|refresh`: what this agent trusts of other trust domains.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use mayfly_proto::admin::{
    DeleteBundleRequest, FederatedBundle, ListBundlesRequest, RefreshBundleRequest, SetBundleRequest,
    ShowBundleRequest,
};
use serde::Serialize;

use super::Context;
use super::args::OutputArgs;
use super::client::{ClientArgs, Target, Which, answer};
use super::failure::Failure;
use super::render::{Table, cell, count, relative, stamp_unix};
use super::x509::pem_certificates;
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;
use crate::trust::MAX_DOCUMENT_BYTES;

const LIST_EXAMPLES: &str = "\
Examples:
  mayfly bundle list
  mayfly bundle list --output json | jq -r '.bundles[] | select(.error != \"\") | .trust_domain'";

const SHOW_EXAMPLES: &str = "\
Examples:
  mayfly bundle show other.example
  mayfly bundle show example.org > example.org.json        our own, for the other side's `bootstrap_bundle`
  mayfly bundle show other.example --format pem > other.pem";

const SET_EXAMPLES: &str = "\
Examples:
  mayfly bundle set other.example other.json
  curl -s https://bundle.other.example/ | mayfly bundle set other.example -

FILE is a SPIFFE bundle document or PEM certificates; `-` reads standard input. A refused document changes
nothing: the message names the member at fault. With a relationship, the next fetch replaces what was set.";

const DELETE_EXAMPLES: &str = "\
Examples:
  mayfly bundle delete other.example

Every stream loses the bundle with its next message, and tokens of that trust domain are refused. A relationship
of the configuration rests until `mayfly bundle set`; remove its `[[federation]]` table to end it for good.";

const REFRESH_EXAMPLES: &str = "\
Examples:
  mayfly bundle refresh other.example

Answers when the new bundle is in force; the one from before stays when the fetch fails.";

/// `mayfly bundle …`
#[derive(clap::Subcommand, Debug)]
pub(super) enum Bundle {
    /// List other trust domains: bundle, relationship, last fetch
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Print a bundle
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Show),
    /// Put a bundle in force by hand
    #[command(after_help = SET_EXAMPLES)]
    Set(Set),
    /// End the trust in a domain, at once
    #[command(after_help = DELETE_EXAMPLES)]
    Delete(Delete),
    /// Fetch a bundle now
    #[command(after_help = REFRESH_EXAMPLES)]
    Refresh(Refresh),
}

#[derive(clap::Args, Debug)]
pub(super) struct List {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args, Debug)]
pub(super) struct Show {
    #[command(flatten)]
    client: ClientArgs,
    /// Whose; our own trust domain too
    #[arg(value_name = "TRUST_DOMAIN")]
    trust_domain: String,
    /// The document, its certificates, or its keys for JWT-SVIDs
    #[arg(long, value_enum, default_value_t = Format::Spiffe)]
    format: Format,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Format {
    /// SPIFFE bundle document
    Spiffe,
    /// X.509 certificates
    Pem,
    /// JWK Set of the JWT keys
    Jwks,
}

#[derive(clap::Args, Debug)]
pub(super) struct Set {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Whose
    #[arg(value_name = "TRUST_DOMAIN")]
    trust_domain: String,
    /// SPIFFE bundle document or PEM certificates; `-` = standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(clap::Args, Debug)]
pub(super) struct Delete {
    #[command(flatten)]
    client: ClientArgs,
    /// Whose
    #[arg(value_name = "TRUST_DOMAIN")]
    trust_domain: String,
}

#[derive(clap::Args, Debug)]
pub(super) struct Refresh {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Whose
    #[arg(value_name = "TRUST_DOMAIN")]
    trust_domain: String,
}

/// One trust domain, in every JSON answer that speaks of one.
#[derive(Serialize)]
pub(super) struct BundleJson {
    trust_domain: String,
    origin: String,
    url: String,
    profile: String,
    endpoint_spiffe_id: String,
    sequence: Option<u64>,
    refresh_hint_seconds: Option<u64>,
    x509_authorities: u32,
    jwt_keys: u32,
    wit_keys: u32,
    since: Option<String>,
    last_fetch: Option<String>,
    next_fetch_seconds: Option<u64>,
    error: String,
    remarks: Vec<String>,
}

#[derive(Serialize)]
struct Listing {
    bundles: Vec<BundleJson>,
}

pub(super) async fn run(what: Bundle, context: &mut Context) -> Result<Exit, Failure> {
    match what {
        Bundle::List(args) => list(args, context).await,
        Bundle::Show(args) => show(args, context).await,
        Bundle::Set(args) => set(args, context).await,
        Bundle::Delete(args) => delete(args, context).await,
        Bundle::Refresh(args) => refresh(args, context).await,
    }
}

async fn list(args: List, context: &mut Context) -> Result<Exit, Failure> {
    let connection = Target::resolve(&args.client, Which::Admin, &context.env)?.connect().await?;
    let bundles = answer(connection.bundles().list(ListBundlesRequest {})).await?.into_inner().bundles;
    if args.output.is_json() {
        context.console.json(&Listing { bundles: bundles.into_iter().map(json).collect() })?;
    } else if bundles.is_empty() {
        context.console.note("no other trust domains");
    } else {
        context.console.lines(table(&bundles).lines())?;
        for bundle in bundles.iter().filter(|bundle| !bundle.error.is_empty()) {
            let (domain, error) = (cell(&bundle.trust_domain), cell(&bundle.error));
            context.console.line(&format!("  ! {domain}: {error}"))?;
        }
    }
    Ok(Exit::Ok)
}

async fn show(args: Show, context: &mut Context) -> Result<Exit, Failure> {
    let connection = Target::resolve(&args.client, Which::Admin, &context.env)?.connect().await?;
    let request = ShowBundleRequest { trust_domain: args.trust_domain };
    let bundle = answer(connection.bundles().show(request)).await?.into_inner();
    let text = match args.format {
        Format::Spiffe => String::from_utf8_lossy(&bundle.document).into_owned(),
        Format::Pem => pem_certificates(&bundle.x509_authorities),
        Format::Jwks => String::from_utf8_lossy(&bundle.jwks).into_owned(),
    };
    context.console.lines(text.lines())?;
    Ok(Exit::Ok)
}

async fn set(args: Set, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Admin, &context.env)?;
    let document = read(&args.file)?.into();
    let connection = target.connect().await?;
    let request = SetBundleRequest { trust_domain: args.trust_domain, document };
    let done = answer(connection.bundles().set(request)).await?.into_inner().bundle.unwrap_or_default();
    say(done, "in force", &args.output, context)
}

async fn delete(args: Delete, context: &mut Context) -> Result<Exit, Failure> {
    let connection = Target::resolve(&args.client, Which::Admin, &context.env)?.connect().await?;
    let request = DeleteBundleRequest { trust_domain: args.trust_domain.clone() };
    answer(connection.bundles().delete(request)).await?;
    context.console.line(&format!("nothing of {} is trusted any more", cell(&args.trust_domain)))?;
    Ok(Exit::Ok)
}

async fn refresh(args: Refresh, context: &mut Context) -> Result<Exit, Failure> {
    let connection = Target::resolve(&args.client, Which::Admin, &context.env)?.connect().await?;
    let request = RefreshBundleRequest { trust_domain: args.trust_domain };
    let done = answer(connection.bundles().refresh(request)).await?.into_inner().bundle.unwrap_or_default();
    say(done, "fetched", &args.output, context)
}

fn say(
    bundle: FederatedBundle,
    what: &str,
    output: &OutputArgs,
    context: &mut Context,
) -> Result<Exit, Failure> {
    if output.is_json() {
        context.console.json(&json(bundle))?;
        return Ok(Exit::Ok);
    }
    let (domain, holds) = (cell(&bundle.trust_domain), contents(&bundle));
    context.console.line(&format!("{what}: {domain}, sequence {}, {holds}", sequence(&bundle)))?;
    for remark in &bundle.remarks {
        context.console.note(&cell(remark));
    }
    Ok(Exit::Ok)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    // One byte more than fits, so that the agent says that it is too long.
    let most = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::file("read", path, &error))?;
    Ok(bytes)
}

/// As it stands in JSON.
pub(super) fn json(bundle: FederatedBundle) -> BundleJson {
    let at = |seconds: i64| (seconds != 0).then(|| stamp_unix(seconds));
    BundleJson {
        since: at(bundle.since),
        last_fetch: at(bundle.last_fetch),
        trust_domain: bundle.trust_domain,
        origin: bundle.origin,
        url: bundle.url,
        profile: bundle.profile,
        endpoint_spiffe_id: bundle.endpoint_spiffe_id,
        sequence: bundle.sequence,
        refresh_hint_seconds: bundle.refresh_hint_seconds,
        x509_authorities: bundle.x509_authorities,
        jwt_keys: bundle.jwt_keys,
        wit_keys: bundle.wit_keys,
        next_fetch_seconds: bundle.next_fetch_seconds,
        error: bundle.error,
        remarks: bundle.remarks,
    }
}

/// One line a trust domain.
pub(super) fn table(bundles: &[FederatedBundle]) -> Table {
    let now = SystemClock.wall();
    let mut table =
        Table::new(["FEDERATED", "BUNDLE", "SEQUENCE", "HOLDS", "SINCE", "PROFILE", "NEXT FETCH"]);
    for bundle in bundles {
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let since = if bundle.since == 0 { String::new() } else { relative(bundle.since, now) };
        let next = bundle.next_fetch_seconds.map(|seconds| format!("in {seconds} s")).unwrap_or_default();
        table.row([
            bundle.trust_domain.clone(),
            if bundle.origin.is_empty() { "none yet".to_owned() } else { bundle.origin.clone() },
            sequence(bundle),
            contents(bundle),
            or_dash(since),
            or_dash(bundle.profile.clone()),
            or_dash(next),
        ]);
    }
    table
}

fn sequence(bundle: &FederatedBundle) -> String {
    bundle.sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string())
}

fn contents(bundle: &FederatedBundle) -> String {
    let parts = [
        count(bundle.x509_authorities.into(), "authority", "authorities"),
        count(bundle.jwt_keys.into(), "JWT key", "JWT keys"),
    ];
    parts.join(", ")
}
