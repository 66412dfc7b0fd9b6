//! One stream, from its first request to its end: tells the conversation what was heard and what there is to tell,
//! sends what it answers. It decides nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Code, Status, Streaming};

use super::Shared;
use super::client::{Validator, validator_for};
use super::conversation::Heard;
use super::counters::Open;
use super::secrets::{SECRET_TYPE, Secrets};
use super::wire::Dialogue;
use crate::api::admission::{Admitted, Call};
use crate::api::status::{BadRequest, Busy, of_refusal};
use crate::api::wire::budget::{Bucket, Rate};
use crate::diag::Shown;
use crate::drain::Watch;
use crate::id::{TrustDomain, hex_text};
use crate::registration::EntrySet;
use crate::trust::TrustSnapshot;
use crate::workload::{Refusal, Subscription, View, Workloads};

/// Requests of one stream.
const REQUESTS: Rate = Rate { per_second: 20, burst: 100 };
/// How long a stream without its turn waits, at first and at most.
const TURN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long a stranger waits to be looked at again when no entry changes, at first and at most. What the attestors
/// say may change without an event: a tracer lets go, a container becomes known late.
const RELOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// One open stream.
pub(super) struct Session<D: Dialogue> {
    shared: Arc<Shared>,
    workloads: Workloads,
    call: Call,
    inbound: Streaming<D::Ask>,
    drain: Watch,
    entries: watch::Receiver<Arc<EntrySet>>,
    trust: watch::Receiver<Arc<TrustSnapshot>>,
    dialogue: D,
    validator: Validator,
    caller: Caller,
    turn: Duration,
    relook: Duration,
    budget: Bucket,
    nonces: Nonces,
    /// It has refused something before.
    complained: bool,
    ended: bool,
    _open: Open,
}

/// What is known of the process at the other end.
enum Caller {
    /// It has not been looked at since the entries changed.
    Unknown,
    /// No entry matches it.
    Stranger(#[expect(dead_code, reason = "counts while it lives")] Open),
    Known(Box<Subscription>),
}

/// Why a stream ends.
enum End {
    /// The client has left.
    Left,
    Because(Status),
}

impl<E: Into<Status>> From<E> for End {
    fn from(why: E) -> Self {
        Self::Because(why.into())
    }
}

impl<D: Dialogue> Session<D> {
    pub(super) fn new(
        shared: &Arc<Shared>,
        workloads: &Workloads,
        call: Call,
        inbound: Streaming<D::Ask>,
        drain: Watch,
    ) -> Self {
        Self {
            workloads: workloads.clone(),
            call,
            inbound,
            drain,
            entries: workloads.entries(),
            trust: workloads.trust(),
            dialogue: D::default(),
            validator: Validator::Plain,
            caller: Caller::Unknown,
            turn: TURN.0,
            relook: RELOOK.0,
            budget: Bucket::new(REQUESTS, shared.clock.monotonic()),
            nonces: Nonces::new(),
            complained: false,
            ended: false,
            _open: shared.counters.stream(),
            shared: Arc::clone(shared),
        }
    }

    /// The next message, or the end.
    pub(super) async fn next(&mut self) -> Option<Result<D::Reply, Status>> {
        if self.ended {
            return None;
        }
        match self.advance().await {
            Ok(reply) => Some(Ok(reply)),
            Err(end) => {
                self.ended = true;
                match end {
                    End::Left => None,
                    End::Because(status) => Some(Err(status)),
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<D::Reply, End> {
        loop {
            if !self.dialogue.has_begun() {
                let ask = heard(&mut self.inbound, &mut self.drain).await?;
                self.take_in(ask).await?;
                continue;
            }
            let reply = match &self.caller {
                Caller::Unknown => self.introduce().await?,
                Caller::Stranger(_) => self.entertain().await?,
                Caller::Known(_) => self.serve().await?,
            };
            if let Some(reply) = reply {
                return Ok(reply);
            }
        }
    }

    /// Finds out who it is.
    async fn introduce(&mut self) -> Result<Option<D::Reply>, End> {
        self.entries.borrow_and_update();
        let admitted = tokio::select! {
            biased;
            () = self.drain.stopping() => return Err(Busy::Stopping.into()),
            admitted = self.call.admit() => admitted,
        };
        match admitted {
            Ok(admitted) => {
                self.caller = known(&self.workloads, &admitted);
                self.relook = RELOOK.0;
            }
            Err(status) if status.code() == Code::PermissionDenied => {
                self.caller = Caller::Stranger(self.shared.counters.waiting());
            }
            Err(status) if status.code() == Code::Unavailable => {
                let turn = self.turn;
                self.turn = (turn * 2).min(TURN.1);
                tokio::select! {
                    biased;
                    ask = heard(&mut self.inbound, &mut self.drain) => self.take_in(ask?).await?,
                    () = tokio::time::sleep(turn) => {}
                }
                return Ok(None);
            }
            Err(status) => return Err(status.into()),
        }
        self.turn = TURN.0;
        Ok(None)
    }

    /// Waits with it for an entry.
    async fn entertain(&mut self) -> Result<Option<D::Reply>, End> {
        let trust = Arc::clone(&self.trust.borrow_and_update());
        let open = self.shared.settings.bundles_without_identity;
        let secrets = self.secrets(Arc::default(), open.then_some(&*trust), Arc::default());
        if let Some(reply) = self.answer(&secrets)? {
            return Ok(Some(reply));
        }
        tokio::select! {
            biased;
            ask = heard(&mut self.inbound, &mut self.drain) => self.take_in(ask?).await?,
            changed = self.entries.changed() => match changed {
                Ok(()) => (self.caller, self.relook) = (Caller::Unknown, RELOOK.0),
                Err(_gone) => return Err(Busy::Stopping.into()),
            },
            _ = self.trust.changed(), if open => {}
            () = tokio::time::sleep(self.relook) => {
                self.relook = (self.relook * 2).min(RELOOK.1);
                self.caller = Caller::Unknown;
            }
        }
        Ok(None)
    }

    /// Tells it what there is. The process is found to be the attested one before each message.
    async fn serve(&mut self) -> Result<Option<D::Reply>, End> {
        let Caller::Known(subscription) = &mut self.caller else { return Ok(None) };
        let (view, trust) = tokio::select! {
            biased;
            ask = heard(&mut self.inbound, &mut self.drain) => {
                self.take_in(ask?).await?;
                return Ok(None);
            }
            next = subscription.next() => next,
        };
        let has_identity = !matches!(view, View::NoIdentity);
        let svids = match view {
            View::Ready(svids) => svids,
            View::Ended => return Err(of_refusal(&Refusal::Exited).into()),
            View::NoIdentity | View::Unavailable | View::Pending => Arc::default(),
        };
        let may_know = has_identity || self.shared.settings.bundles_without_identity;
        let federates_with = super::visible(&trust);
        let secrets = self.secrets(svids, may_know.then_some(&*trust), federates_with);
        if let Some(reply) = self.answer(&secrets)? {
            return Ok(Some(reply));
        }
        if !has_identity {
            // What took it may pass without an event: a tracer that lets go, a program that comes back.
            self.caller = Caller::Stranger(self.shared.counters.waiting());
            return Ok(None);
        }
        let Caller::Known(subscription) = &mut self.caller else { return Ok(None) };
        tokio::select! {
            biased;
            ask = heard(&mut self.inbound, &mut self.drain) => self.take_in(ask?).await?,
            () = subscription.changed() => {}
        }
        Ok(None)
    }

    fn secrets(
        &self,
        svids: Arc<[Arc<crate::issue::x509::X509Svid>]>,
        trust: Option<&TrustSnapshot>,
        federates_with: Arc<BTreeSet<TrustDomain>>,
    ) -> Secrets {
        Secrets {
            names: self.shared.settings.names.clone(),
            validator: self.validator,
            svids,
            contexts: trust.map(|trust| self.shared.contexts.of(trust)),
            federates_with,
        }
    }

    fn answer(&mut self, secrets: &Secrets) -> Result<Option<D::Reply>, End> {
        let now = self.shared.clock.wall();
        match self.dialogue.answer(secrets, self.nonces.next(), now) {
            Ok(None) => Ok(None),
            Ok(Some((reply, withdrawn))) => {
                self.nonces.used += 1;
                self.shared.counters.sent(withdrawn);
                Ok(Some(reply))
            }
            Err(error) => {
                tracing::error!(%error, "no replacement for a certificate that ended could be made");
                Err(Status::unavailable("no secret could be made; see the agent's log").into())
            }
        }
    }

    async fn take_in(&mut self, ask: D::Ask) -> Result<(), End> {
        while !self.budget.take(1, self.shared.clock.monotonic()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let type_url = D::type_url(&ask);
        if !type_url.is_empty() && type_url != SECRET_TYPE {
            return Err(BadRequest::ResourceType.into());
        }
        if !self.dialogue.has_begun() {
            let allowed = !self.shared.settings.disable_spiffe_cert_validation;
            self.validator = validator_for(D::node(&ask), allowed);
        }
        match self.dialogue.hear(ask) {
            Ok(Heard::Asked | Heard::Stale) => {}
            Ok(Heard::Accepted) => self.shared.counters.accepted(),
            Ok(Heard::Refused(words)) => self.note_refusal(&words),
            Err(error) => return Err(Status::resource_exhausted(error.to_string()).into()),
        }
        Ok(())
    }

    fn note_refusal(&mut self, words: &str) {
        self.shared.counters.refused(words);
        let process = self.call.peer().process();
        let (pid, uid) = (process.pid(), process.uid());
        if std::mem::replace(&mut self.complained, true) {
            tracing::debug!(pid, uid, reason = %Shown(words), "a secret was refused again");
        } else {
            tracing::warn!(pid, uid, reason = %Shown(words), "a secret was refused; it is not sent again until it changes");
        }
    }
}

/// Everything a caller that was let in has a right to know.
fn known(workloads: &Workloads, admitted: &Admitted) -> Caller {
    Caller::Known(Box::new(workloads.subscribe(admitted.admission())))
}

/// The client's next request.
async fn heard<A>(inbound: &mut Streaming<A>, drain: &mut Watch) -> Result<A, End> {
    tokio::select! {
        biased;
        () = drain.stopping() => Err(Busy::Stopping.into()),
        message = inbound.message() => match message {
            Ok(Some(ask)) => Ok(ask),
            Ok(None) => Err(End::Left),
            Err(status) => Err(status.into()),
        },
    }
}

/// Never the same twice on one stream, and of no use on another.
struct Nonces {
    stream: String,
    used: u64,
}

impl Nonces {
    fn new() -> Self {
        let mut bytes = [0; 4];
        // Without randomness they still count up; nothing rests on their being secret.
        aws_lc_rs::rand::fill(&mut bytes).ok();
        Self { stream: hex_text(&bytes), used: 0 }
    }

    fn next(&self) -> String {
        format!("{}-{}", self.stream, self.used + 1)
    }
}
