//! The demo's child: an ordinary workload that keeps an X.509-SVID fresh in files and holds one token.

use std::path::PathBuf;

use mayfly_proto::workload::JwtsvidRequest;

use super::super::Context;
use super::super::args::OutputArgs;
use super::super::client::{ClientArgs, Target, Which};
use super::super::failure::Failure;
use super::super::fetch::{Sink, get_tokens, hold};
use super::super::follow::Follow;
use crate::exit::Exit;
use crate::files::{Folder, Item, Layout};

/// Where, below the directory it writes to, the certificate and the token are.
pub(crate) const X509: &str = "x509";
pub(crate) const JWT: &str = "jwt";
/// The token's file.
pub(crate) const TOKEN: &str = "token";

/// The hidden `mayfly demo-workload`
#[derive(clap::Args, Debug)]
pub(crate) struct WorkloadArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[arg(long)]
    write: PathBuf,
    #[arg(long)]
    audience: String,
}

/// Gets a token, then follows the X.509 stream until killed.
pub(crate) async fn run_workload(args: WorkloadArgs, context: &mut Context) -> Result<Exit, Failure> {
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let tokens = Folder::open(&args.write.join(JWT), Layout::PRIVATE)?;
    let mut sink = Sink {
        folder: Some(Folder::open(&args.write.join(X509), Layout::PRIVATE)?),
        only: None,
        output: OutputArgs::default(),
    };
    let connection = target.connect().await?;
    let request = JwtsvidRequest { audience: vec![args.audience], spiffe_id: String::new() };
    let first = get_tokens(&connection, &request).await?.into_iter().next();
    let token = first.ok_or_else(|| Failure::failed("the agent sent no token"))?.token;
    tokens.replace(&[Item::secret(TOKEN, token)])?;
    hold(&mut Follow::new(target, None), &mut sink, false, context).await
}
