//! The self-test's own processes: one that holds credentials until it is killed, one that tries to go on with a
//! connection that another process opened.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use mayfly_proto::workload::{JwtsvidRequest, X509svidRequest};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::super::Context;
use super::super::client::{ClientArgs, Connection, Target, Which, answer, inherited};
use super::super::evidence::Held;
use super::super::failure::Failure;
use super::super::render::{hex, stamp_unix};
use super::super::x509::Update;
use super::tasks::TaskHolding;
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;

/// How long the heir waits for its parent's end, and for an answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// The hidden `mayfly selftest-holder`
#[derive(clap::Args, Debug)]
pub(crate) struct HolderArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[arg(long)]
    audience: String,
    #[arg(long)]
    task_audience: String,
}

/// The hidden `mayfly selftest-heir`
#[derive(clap::Args, Debug)]
pub(crate) struct HeirArgs {
    #[arg(long)]
    audience: String,
    /// Not before this parent has ended.
    #[arg(long)]
    after: Option<i32>,
}

/// What the holder holds; its private key stays where it is.
#[derive(Deserialize, Serialize)]
pub(super) struct Holding {
    pub(super) token: String,
    spiffe_id: String,
    serial: String,
    not_after: String,
    /// Hex of DER.
    chain: Vec<String>,
    bundle: Vec<String>,
    /// Or why it has no task.
    pub(super) task: Result<TaskHolding, String>,
}

/// What the heir got.
#[derive(Deserialize, Serialize)]
pub(super) struct Inherited {
    /// It got a token by a connection that is not its own.
    pub(super) got: bool,
    /// What it was told, or why there was nobody to tell.
    pub(super) said: String,
}

/// Gets credentials, says so, and lives until it is killed.
pub(crate) async fn run_holder(args: HolderArgs, context: &mut Context) -> Result<Exit, Failure> {
    // It must not outlive the test, whatever becomes of that.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::failed(error.to_string()))?;
    let target = Target::resolve(&args.client, Which::Public, &context.env)?;
    let spare = target.open().await?.into_std().map_err(Failure::from)?;
    start_heir(spare, &args.audience, true)?;
    let connection = target.connect().await?;
    let token = token(&connection, &args.audience).await?;
    let response = answer(async {
        let mut stream = connection.workload().fetch_x509svid(X509svidRequest {}).await?.into_inner();
        stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended empty"))
    });
    let update = Update::check(&response.await?, SystemClock.wall())?;
    let svid = update.svids.into_iter().next().ok_or_else(|| Failure::failed("the agent sent no SVID"))?;
    let ders = |ders: &[bytes::Bytes]| ders.iter().map(|der| hex(der)).collect();
    let task = super::tasks::hold(&connection, &args.task_audience).await;
    context.console.json_line(&Holding {
        token,
        task: task.map_err(|failure| failure.message),
        serial: svid.serial,
        not_after: stamp_unix(svid.not_after),
        chain: ders(&svid.chain),
        bundle: ders(&svid.bundle),
        spiffe_id: svid.spiffe_id,
    })?;
    std::future::pending().await
}

/// Takes its standard input for a connection to the agent, and asks for a token.
pub(crate) async fn run_heir(args: HeirArgs, context: &mut Context) -> Result<Exit, Failure> {
    let stream = || {
        let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)
    };
    let stream = stream().map_err(Failure::from)?;
    let attempt = async {
        while args
            .after
            .is_some_and(|parent| getppid().is_some_and(|now| now.as_raw_nonzero().get() == parent))
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        token(&inherited(stream).await?, &args.audience).await
    };
    let inherited = match tokio::time::timeout(PATIENCE, attempt).await {
        Ok(Ok(_token)) => Inherited { got: true, said: "it got a token".to_owned() },
        Ok(Err(failure)) => Inherited { got: false, said: failure.message },
        Err(_elapsed) => Inherited { got: false, said: "no answer".to_owned() },
    };
    context.console.json_line(&inherited)?;
    Ok(Exit::Ok)
}

/// Starts the heir with this connection; what it has to say goes where our own answer goes.
fn start_heir(connection: UnixStream, audience: &str, after_us: bool) -> Result<(), Failure> {
    let mut command = heir(connection, audience).map_err(Failure::from)?;
    if after_us {
        command.arg("--after").arg(std::process::id().to_string());
    }
    // It outlives us: that is what it is for.
    command.spawn().map(drop).map_err(|error| Failure::failed(format!("cannot start a process: {error}")))
}

/// The heir's command line.
pub(super) fn heir(connection: UnixStream, audience: &str) -> std::io::Result<Command> {
    connection.set_nonblocking(false)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["selftest-heir", "--audience", audience])
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(connection)));
    Ok(command)
}

/// One token for one audience.
pub(super) async fn token(connection: &Connection, audience: &str) -> Result<String, Failure> {
    let request = JwtsvidRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
    let response = answer(connection.workload().fetch_jwtsvid(request)).await?.into_inner();
    let first = response.svids.into_iter().next();
    first.map(|svid| svid.svid).ok_or_else(|| Failure::failed("the agent sent no token"))
}

impl Holding {
    /// What a verifier needs of the certificate.
    pub(super) fn held(&self) -> Option<Held> {
        let ders = |texts: &[String]| texts.iter().map(|text| unhex(text)).collect::<Option<Vec<_>>>();
        Some(Held {
            spiffe_id: self.spiffe_id.clone(),
            serial: self.serial.clone(),
            not_after: self.not_after.clone(),
            chain: ders(&self.chain)?,
            bundle: ders(&self.bundle)?,
        })
    }
}

fn unhex(text: &str) -> Option<bytes::Bytes> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect::<Option<Vec<_>>>().map(Into::into)
}
