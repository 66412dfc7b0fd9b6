//! The launcher's side of a task: it begins or joins one for the program that it is about to become, tells
//! `mayfly run` which, and waits until the first credentials are there.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use mayfly_proto::task::{BeginRequest, JoinRequest, Keeper};
use serde::{Deserialize, Serialize};

use super::{awaiting, user};
use crate::cli::client::{ClientArgs, Env, Target, Which, answer};
use crate::cli::failure::Failure;

/// What the launcher is told of the task.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskPlan {
    /// Of the agent that is asked.
    pub(super) socket: PathBuf,
    /// Who may serve there, besides root and ourselves.
    pub(super) server_uid: Option<u32>,
    pub(super) work: Work,
    /// For whom `mayfly run` keeps credentials.
    pub(super) audiences: Vec<String>,
    /// Where `mayfly run` waits to hear of it.
    pub(super) keeper: PathBuf,
}

/// What is to be done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Work {
    /// A task of its own.
    Begin {
        template: String,
        /// In the words of whoever starts the program.
        purpose: String,
        params: Vec<(String, String)>,
        /// In seconds.
        ttl: Option<u64>,
        spiffe_id: Option<String>,
        /// Where the token of the user is.
        on_behalf_of: Option<PathBuf>,
    },
    /// What somebody offered.
    Join { offer: String },
}

/// Why the program does not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error("cannot begin the task: {}", .0.message)]
    Agent(Failure),
    #[error("cannot begin the task: {0}")]
    Io(#[from] io::Error),
    /// `mayfly run` has said why.
    #[error("the first credentials of the task could not be had")]
    NotReady,
}

impl BeginError {
    /// What to do next.
    pub(super) fn hint(&self) -> Option<&str> {
        match self {
            Self::Agent(failure) => failure.hint.as_deref(),
            Self::Io(_) | Self::NotReady => None,
        }
    }
}

/// Begins, and waits for the first credentials; the task's name.
pub(super) fn begin(plan: &TaskPlan) -> Result<String, BeginError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let task = runtime.block_on(ask(plan)).map_err(BeginError::Agent)?;
    // What is left of the connection ends here, long before the exec.
    drop(runtime);
    let mut keeper = UnixStream::connect(&plan.keeper)?;
    keeper.set_read_timeout(Some(PATIENCE))?;
    keeper.write_all(format!("{task}\n").as_bytes())?;
    let mut word = String::new();
    BufReader::new(keeper).read_line(&mut word)?;
    if word == READY { Ok(task) } else { Err(BeginError::NotReady) }
}

async fn ask(plan: &TaskPlan) -> Result<String, Failure> {
    let socket = Some(crate::endpoint::unix_uri(&plan.socket));
    let args = ClientArgs { socket, server_uid: plan.server_uid };
    let connection = Target::resolve(&args, Which::Public, &Env::of_process())?.connect().await?;
    let keeper = (!plan.audiences.is_empty()).then(|| Keeper { audiences: plan.audiences.clone() });
    let mut tasks = connection.tasks();
    let begun = match &plan.work {
        Work::Join { offer } => {
            let request = JoinRequest { delegation_id: offer.clone(), keeper, ..JoinRequest::default() };
            answer(tasks.join(request)).await?
        }
        Work::Begin { template, purpose, params, ttl, spiffe_id, on_behalf_of } => {
            let user = on_behalf_of.as_deref().map(user::read).transpose()?;
            let request = BeginRequest {
                purpose: purpose.clone(),
                template: template.clone(),
                params: params.iter().cloned().collect(),
                ttl: ttl.map(|seconds| prost_types::Duration {
                    seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
                    nanos: 0,
                }),
                spiffe_id: spiffe_id.clone().unwrap_or_default(),
                keeper,
                on_behalf_of: user.map(|token| token.as_str().to_owned()).unwrap_or_default(),
                ..BeginRequest::default()
            };
            answer(tasks.begin(request)).await?
        }
    };
    Ok(awaiting::allowed(&connection, begun.into_inner()).await?.id)
}

/// What `mayfly run` says when the program may begin.
pub(super) const READY: &str = "ready\n";
/// More than it takes to ask for sixteen credentials.
const PATIENCE: Duration = Duration::from_secs(60);
