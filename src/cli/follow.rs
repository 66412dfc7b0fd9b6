//! A stream of X.509 updates that survives the agent: kept open, taken up again at once when it ends
//! (WAPI-06), each message checked and taken as the whole truth (WAPI-11).

use mayfly_proto::workload::{X509svidRequest, X509svidResponse};
use tonic::{Status, Streaming};

use super::Context;
use super::client::{Connection, Patience, Target, WaitFor, answer};
use super::failure::Failure;
use super::x509::Update;
use crate::clock::{Clock, SystemClock};
use crate::exit::Exit;
use crate::verify::AnswerError;

/// What the stream brought.
#[derive(Debug)]
pub(crate) enum Event {
    /// A checked update; it replaces everything before.
    Update(Box<Update>),
    /// An update that must not be used; what was there before stays.
    Bad(AnswerError),
    /// The connection or the agent went away; the next call of [`Follow::next`] reconnects.
    Interrupted(Failure),
    /// The caller has no identity any more; the next call asks again, as long as `--wait` says.
    Withdrawn(Failure),
}

/// One caller's X.509 stream.
#[derive(Debug)]
pub(crate) struct Follow {
    target: Target,
    wait: Option<WaitFor>,
    patience: Patience,
    stream: Option<Streaming<X509svidResponse>>,
}

impl Follow {
    /// Not connected yet.
    pub(crate) fn new(target: Target, wait: Option<WaitFor>) -> Self {
        Self { target, wait, patience: Patience::new(wait), stream: None }
    }

    /// The next thing that happens.
    ///
    /// # Errors
    /// The agent cannot be reached, or refuses, and waiting was not asked for or has lasted long enough.
    pub(crate) async fn next(&mut self, context: &mut Context) -> Result<Event, Failure> {
        let Some(stream) = &mut self.stream else {
            let (stream, first) = self.patience.persist(context, &self.target, open).await?;
            self.stream = Some(stream);
            self.patience = Patience::reconnecting(self.wait);
            return Ok(check(&first));
        };
        let failure = match stream.message().await {
            Ok(Some(response)) => return Ok(check(&response)),
            Ok(None) => Failure::new(Exit::Unreachable, "the agent ended the stream"),
            Err(status) => Failure::from_status(&status),
        };
        self.stream = None;
        match failure.exit {
            Exit::Unreachable => Ok(Event::Interrupted(failure)),
            Exit::NoIdentity => Ok(Event::Withdrawn(failure)),
            _ => Err(failure),
        }
    }
}

async fn open(connection: Connection) -> Result<(Streaming<X509svidResponse>, X509svidResponse), Failure> {
    answer(async {
        let mut stream = connection.workload().fetch_x509svid(X509svidRequest {}).await?.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended empty"))?;
        Ok((stream, first))
    })
    .await
}

fn check(response: &X509svidResponse) -> Event {
    match Update::check(response, SystemClock.wall()) {
        Ok(update) => Event::Update(Box::new(update)),
        Err(error) => Event::Bad(error),
    }
}
