//! From a request to [`Admitted`], once, in the order of conformance 1.3: header, readiness, (the handler
//! checks its fields here), rate, attestation, identity. Every handler that gives something away takes an
//! `Admitted`, so one that forgets a step does not compile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mayfly_attestors::Process;
use tonic::{Request, Status};

use super::limits::{Admission as RateLimit, AdmissionLimits, Payer, Ticket};
use super::peer::{Cut, Peer};
use super::status::{BadRequest, Busy, of_refusal};
use super::wire::budget::Rate;
use crate::audit;
use crate::clock::Clock;
use crate::workload::{Admission, Connection, Refusal, Workloads};

const HEADER: &str = "workload.spiffe.io";

/// What every service shares.
#[derive(Clone)]
pub struct Gate {
    workloads: Workloads,
    rate: Arc<RateLimit>,
    /// Validations attest nobody: they have a budget of their own, and a larger one.
    validations: RateLimit,
    clock: Arc<dyn Clock>,
    open: Arc<AtomicBool>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// A well-formed call of a pinned process; nothing is known of it yet.
pub(super) struct Call {
    gate: Gate,
    peer: Arc<Peer>,
    method: &'static str,
    words: Words,
}

/// What a caller is told who is not admitted.
#[derive(Clone, Copy)]
pub(super) struct Words {
    /// Whoever is attested as nobody, or cannot be.
    pub(super) refused: fn(&Refusal) -> Status,
    /// Whose user asks too often.
    pub(super) limited: fn(&Busy) -> Status,
}

impl Words {
    /// Those of the Workload API, whose clients try again when something is unavailable.
    const USUAL: Self = Self { refused: of_refusal, limited: |busy| busy.clone().into() };
}

/// Proof that the caller was pinned, attested and matched just now.
#[must_use]
pub(super) struct Admitted {
    admission: Admission,
}

impl Gate {
    /// A gate that answers `Unavailable` until [`Gate::open`].
    pub fn new(workloads: Workloads, rate: Arc<RateLimit>, clock: Arc<dyn Clock>) -> Self {
        let rate_of_validations = Rate { per_second: 2_000, burst: 4_000 };
        let limits =
            AdmissionLimits { rate: rate_of_validations, in_flight: 64, ..AdmissionLimits::default() };
        Self { workloads, rate, validations: RateLimit::new(limits), clock, open: Arc::default() }
    }

    /// From now on calls are served: everybody who died while the agent was down is refused already.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    pub(super) fn workloads(&self) -> &Workloads {
        &self.workloads
    }

    /// Checks the header, before anything else and without any side effect (Workload Endpoint §3).
    pub(super) fn check_header<T>(request: &Request<T>) -> Result<(), Status> {
        let mut values = request.metadata().get_all(HEADER).iter();
        let exactly_true = values.next().is_some_and(|v| v.as_bytes() == b"true") && values.next().is_none();
        if exactly_true { Ok(()) } else { Err(BadRequest::SecurityHeader.into()) }
    }

    /// Checks the header and that the agent serves.
    pub(super) fn call<T>(&self, request: &Request<T>, method: &'static str) -> Result<Call, Status> {
        Self::check_header(request)?;
        self.knock(request, method)
    }

    /// As [`Gate::call`] for protocols that know no such header.
    pub(super) fn knock<T>(&self, request: &Request<T>, method: &'static str) -> Result<Call, Status> {
        if !self.open.load(Ordering::Acquire) {
            return Err(Busy::Starting.into());
        }
        // Only our own listener makes connections, and it pins every one.
        let peer = request.extensions().get::<Arc<Peer>>();
        let peer = peer.ok_or_else(|| Status::unauthenticated("connection is not pinned"))?;
        Ok(Call { gate: self.clone(), peer: Arc::clone(peer), method, words: Words::USUAL })
    }
}

impl Call {
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Takes one validation from the caller's budget.
    pub(super) fn spend_validation(&self) -> Result<Ticket, Status> {
        self.spend_from(&self.gate.validations)
    }

    /// Takes one attestation from the caller's budget; it counts as running while the answer is held.
    pub(super) fn spend(&self) -> Result<Ticket, Status> {
        self.spend_from(&self.gate.rate)
    }

    fn spend_from(&self, budget: &RateLimit) -> Result<Ticket, Status> {
        if !self.peer.process().is_alive() {
            return Err(of_refusal(&Refusal::Exited));
        }
        let now = self.gate.clock.monotonic();
        let process = self.peer.process();
        let payer = Payer { uid: process.uid(), container: self.gate.workloads.container_of(process) };
        let ticket = budget.try_start(payer, now);
        ticket.map_err(|limited| {
            self.gate.workloads.note_refused(self.peer.process(), "limit", &limited.to_string());
            (self.words.limited)(&Busy::RateLimited(self.method))
        })
    }

    /// From now on whoever is refused is told so in these words.
    pub(super) fn in_words(self, words: Words) -> Self {
        Self { words, ..self }
    }

    pub(super) async fn admit(&self) -> Result<Admitted, Status> {
        self.admit_as(self.peer.process()).await
    }

    /// As [`Call::admit`] for `process`, in whose stead the caller speaks. The connection ends with it.
    pub(super) async fn admit_as(&self, process: &Arc<Process>) -> Result<Admitted, Status> {
        let told = self.words.refused;
        let connection: Arc<dyn Connection> = self.peer.clone();
        if !process.is_alive() || !self.peer.process().is_alive() {
            return Err(told(&Refusal::Exited));
        }
        if let Some(admission) = self.gate.workloads.recall(process, &connection) {
            return Ok(Admitted { admission });
        }
        let _ticket = self.spend()?;
        match self.gate.workloads.admit(process, &connection).await {
            Ok(admission) => Ok(Admitted { admission }),
            Err(refusal) => {
                tracing::debug!(method = self.method, pid = process.pid(), uid = process.uid(), %refusal, "refused");
                Err(told(&refusal))
            }
        }
    }
}

impl Connection for Peer {
    fn cut(&self, why: audit::Cut) {
        let reason = match why {
            audit::Cut::CredentialsChanged => Cut::CredentialsChanged,
            _ => Cut::Operator,
        };
        Self::cut(self, reason);
    }

    fn end(&self) {
        Self::cut(self, Cut::Exited);
    }
}

impl Admitted {
    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }
}
