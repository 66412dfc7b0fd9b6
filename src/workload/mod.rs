//! The shell around the lease core: drives it for each live process.
//!
//! Threads, and what each may wait for:
//!
//! - *reaper* (in `attestors`): tells of exits. It takes the state lock, refuses in memory, cuts the
//!   connections, hands the rest to the revoker. It never waits for a disk or a socket.
//! - *revoker*: ledger → sign → publish → audit, coalesced with a leading edge.
//! - *lease timer*: sleeps until the core's next deadline.
//! - *issuing runtime*: mints, commits, releases. The serving runtime only reads views.
//!
//! The state lock is held for table look-ups and the core's pure steps, never across I/O or an await.

mod admit;
mod attested;
mod bars;
mod denied;
mod exec_watch;
mod exits;
mod facts;
mod give_back;
mod guard;
mod issue;
mod issuers;
mod jwt;
mod keeper;
mod kill;
mod kill_disk;
mod kill_switch;
mod known;
mod launches;
mod news;
mod operator;
mod own;
mod pulse;
mod reload;
mod restore;
mod revoker;
mod scopes;
mod second_look;
mod seen;
mod shelf;
mod shown;
mod silence;
mod standstill;
mod state;
mod status_list;
mod subscribe;
mod suspended;
mod tasks;
mod timer;
mod told;
mod wit;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};
use std::time::Duration;

use mayfly_attestors::{AttestError, AttestorSet, Host, PinError, Reaper};
use tokio::sync::watch;

pub use self::admit::Admission;
pub use self::denied::Denied;
pub use self::give_back::{Claim, GivenBack};
pub use self::guard::Fetched;
pub use self::keeper::{Order, OrderError};
pub use self::kill::Killed;
pub use self::kill_switch::Frost;
pub use self::launches::LaunchRefusal;
pub use self::operator::{Explained, LeaseFilter, RevokeError, Revoked, Target};
pub use self::pulse::Pulse;
pub use self::restore::Restored;
pub use self::revoker::{PublishedCrl, RevokerSettings};
pub use self::shelf::View;
pub use self::silence::Silence;
pub use self::status_list::SignedList;
pub use self::subscribe::{Attendance, Subscription};
pub use self::tasks::{
    AccessRequest, Answer, AnswerError, ApprovalView, Ask, AskAs, Asked, Authorized, Begin, Delegate, Errand,
    Explained as TaskExplained, Form, Issued, Join, Look, MOST_AUDIENCES, OfferView, Proof, ScopeWish,
    TaskCredential, TaskError, TaskFilter, TaskFollower, TaskSummary, TaskView, TaskWatch,
};

use self::revoker::Job;
use self::state::State;
use crate::audit;
use crate::authority::Authorities;
use crate::authority::life::Record;
use crate::clock::Clock;
use crate::config::UserIssuer;
use crate::id::TrustDomain;
use crate::issue::wit::Recipe;
use crate::ledger::{Ledger, LedgerError};
use crate::manager::Manager;
use crate::policy::Engine;
use crate::ready::Readiness;
use crate::registration::EntrySet;
use crate::revocation::Timings;
use crate::revocation::status_list::StatusLists;
use crate::task::Bounds;
use crate::task::approval::ApprovalBounds;
use crate::task::journal::Epoch;
use crate::trust::TrustSnapshot;

/// A connection that can be closed from any thread, at once, without waiting.
pub trait Connection: Send + Sync {
    /// Not one more byte leaves after this returns.
    fn cut(&self, why: audit::Cut);
    /// The process the connection belongs to is gone.
    fn end(&self);
}

/// Why a caller gets no credential. Exhaustive: `api::status` picks a code for each.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The process ended, or became another, before its facts were read.
    #[error("the caller ended during attestation")]
    Exited,
    /// An operator asked about a process that does not exist, or ended before its facts were read.
    #[error("there is no process {0}, or it has just ended")]
    NoProcess(u32),
    /// An operator asked about a process that cannot be pinned.
    #[error("process {0} cannot be looked at")]
    Unpinned(u32, #[source] PinError),
    /// The process is no longer the user it connected as.
    #[error("the caller changed its user or group")]
    CredentialsChanged,
    /// The attestors could not answer.
    #[error("workload attestation failed")]
    Attest(#[source] AttestError),
    /// An attestor is silent that could have entitled the caller: worth trying again.
    #[error("workload attestation failed")]
    Silent(#[source] Silence),
    /// No entry matches, the requested identity is not the caller's, or policy said no.
    #[error("no identity issued")]
    NotEntitled,
    /// The ledger does not take writes; nothing may be issued.
    #[error("ledger unavailable")]
    Ledger(#[source] LedgerError),
    /// The audit log does not take events; nothing may be issued.
    #[error("audit log unavailable")]
    Audit(#[source] audit::AuditError),
    /// The authority could not sign.
    #[error("authority unavailable")]
    Authority(#[source] crate::issue::IssueError),
    /// This user or process holds as many leases as it may.
    #[error("too many live leases")]
    TooManyLeases,
    /// The watch on processes is lost; nobody could be revoked, so nobody is served.
    #[error("process watch lost")]
    WatchLost,
}

/// Numbers the shell holds to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Own trust domain.
    pub trust_domain: TrustDomain,
    /// X.509-SVID lifetime where the entry names none.
    pub x509_ttl: Duration,
    /// JWT-SVID lifetime where the entry names none.
    pub jwt_ttl: Duration,
    /// `iss` of JWT-SVIDs.
    pub jwt_issuer: String,
    /// WIT-SVID lifetime where the entry names none.
    pub wit_ttl: Duration,
    /// How WIT-SVIDs are made.
    pub wit: Recipe,
    /// Where verifiers find status lists; `None`: tokens name none.
    pub status_list_uri: Option<String>,
    /// Where it is written down what is frozen; `None`: nowhere.
    pub freezes: Option<std::path::PathBuf>,
    /// How long people have to answer, and an agent to use it.
    pub approvals: ApprovalBounds,
    /// How much there may be of what tasks use.
    pub tasks: Bounds,
    /// Who vouches for users.
    pub users: Vec<UserIssuer>,
    /// It serves one user alone: there is nobody else who could agree.
    pub serves_one_user: bool,
    /// Live leases of one uid.
    pub leases_per_uid: usize,
    /// Live JWT leases of one process.
    pub jwt_leases_per_workload: usize,
}

/// Everything the shell works with.
pub struct Parts {
    /// The machine.
    pub host: Arc<Host>,
    /// Turns a process into selectors.
    pub attestors: AttestorSet,
    /// Signs.
    pub authorities: Authorities,
    /// Leases, durable.
    pub ledger: Ledger,
    /// What happened, durable.
    pub audit: audit::Log,
    /// Entries in force.
    pub entries: watch::Receiver<Arc<EntrySet>>,
    /// Decides.
    pub policy: Engine,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Concerns go here.
    pub readiness: Readiness,
    /// Runs issuances.
    pub issuing: tokio::runtime::Handle,
    /// What verifiers need; the revoker publishes into it.
    pub trust: watch::Sender<Arc<TrustSnapshot>>,
    /// Revoked before this run and not yet expired.
    pub revoked: Denied,
    /// Keeps pidfds while we restart.
    pub manager: Manager,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// All live workloads of this node. Clones share them.
#[derive(Clone)]
pub struct Workloads(Arc<Shared>);

impl std::fmt::Debug for Workloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workloads").finish_non_exhaustive()
    }
}

struct Shared {
    parts: Parts,
    settings: Settings,
    reaper: Reaper,
    state: Mutex<State>,
    /// Woken when the core's deadline moved.
    timer: Condvar,
    /// Refused from now on, in memory; the first thing a revocation touches.
    denied: Arc<Mutex<Denied>>,
    timings: Arc<Mutex<Timings>>,
    /// Places of tokens in published lists.
    status: Mutex<StatusLists>,
    /// The policy set by which the lists say what is suspended.
    suspended_by: Mutex<Option<Arc<crate::policy::PolicySet>>>,
    /// Refusals by user, phase and reason, for the audit log.
    denials: Mutex<audit::Tally<(u32, &'static str, String)>>,
    /// The same by phase alone, for metrics.
    refusals: Mutex<std::collections::BTreeMap<&'static str, u64>>,
    /// Taken before the state lock, never after it.
    exec_watch: Mutex<exec_watch::WatchState>,
    /// What moments are on the clock that all runs share.
    epoch: Epoch,
    jobs: mpsc::Sender<Job>,
    at_disk: pulse::AtDisk,
    crl: watch::Receiver<Option<PublishedCrl>>,
    /// One order to freeze or thaw at a time, in memory: never held while a disk is waited for.
    freezing: Mutex<kill_disk::Freezing>,
    /// The same at the disk.
    freezes_disk: Arc<tokio::sync::Mutex<()>>,
    /// Calls that run to their end, whoever waits: so many at once.
    calls: Arc<tokio::sync::Semaphore>,
    /// Cgroups that stand still. Held at the disk, and by nobody who serves.
    standstill: Mutex<standstill::Standstill>,
    /// Whether the record says that the flag file is there.
    flag_told: Mutex<bool>,
    /// To the keeper, once there is one.
    orders: OnceLock<mpsc::Sender<keeper::Request>>,
    /// Where the authorities stand.
    records: watch::Sender<Arc<[Record]>>,
    /// What is amiss with the upstream of the authorities.
    upstream: watch::Sender<Option<String>>,
}

impl Workloads {
    /// Starts the threads. Nothing is admitted before the first [`Workloads::admit`].
    pub fn start(mut parts: Parts, settings: Settings, revoker: RevokerSettings) -> std::io::Result<Self> {
        let hook: Arc<OnceLock<Weak<Shared>>> = Arc::default();
        let on_exit = Arc::clone(&hook);
        let reaper = Reaper::start(Box::new(move |notice| {
            if let Some(shared) = on_exit.get().and_then(Weak::upgrade) {
                shared.on_exit(&notice);
            }
        }))?;
        tasks::look_at(&settings.users);
        let denied = Arc::new(Mutex::new(std::mem::take(&mut parts.revoked)));
        let timings = Arc::new(Mutex::new(Timings::new()));
        let (jobs, queue) = mpsc::channel();
        let at_disk = pulse::AtDisk::default();
        let shown = (Arc::clone(&denied), Arc::clone(&timings), at_disk.clone());
        let crl = revoker::start(&parts, revoker, queue, shown)?;
        let mut state = State::default();
        state.tasks = tasks::Tasks::new(settings.tasks.clone(), settings.approvals);
        let state = Mutex::new(state);
        let timer = Condvar::new();
        let still = standstill::read_back(settings.freezes.as_deref(), &parts.host.boot_id().to_string());
        let flag_told = Mutex::new(kill_switch::was_flagged(settings.freezes.as_deref()));
        let epoch = Epoch { now: parts.clock.monotonic(), since_boot: crate::clock::since_boot() };
        let shared = Arc::new(Shared {
            parts,
            settings,
            reaper,
            state,
            timer,
            denied,
            timings,
            denials: Mutex::default(),
            refusals: Mutex::default(),
            status: Mutex::default(),
            suspended_by: Mutex::default(),
            exec_watch: Mutex::default(),
            epoch,
            jobs,
            at_disk,
            crl,
            freezing: Mutex::default(),
            freezes_disk: Arc::default(),
            calls: Arc::new(tokio::sync::Semaphore::new(MOST_CALLS)),
            standstill: Mutex::new(still),
            flag_told,
            orders: OnceLock::new(),
            records: watch::Sender::new(Arc::from([])),
            upstream: watch::Sender::new(None),
        });
        // Nobody else sets it: the cell was made above.
        hook.set(Arc::downgrade(&shared)).ok();
        timer::start(&shared)?;
        let workloads = Self(shared);
        workloads.let_strays_go_on();
        Ok(workloads)
    }

    /// Follows what verifiers need.
    pub fn trust(&self) -> watch::Receiver<Arc<TrustSnapshot>> {
        self.0.parts.trust.subscribe()
    }

    /// The `iss` of JWT-SVIDs.
    pub fn jwt_issuer(&self) -> &str {
        &self.0.settings.jwt_issuer
    }

    /// Follows the entries in force.
    pub fn entries(&self) -> watch::Receiver<Arc<EntrySet>> {
        self.0.parts.entries.clone()
    }

    /// Follows the ledger's health.
    pub fn ledger_health(&self) -> watch::Receiver<crate::queue::Health> {
        self.0.parts.ledger.health()
    }

    /// Whether WIT-SVIDs are switched on.
    pub fn serves_wits(&self) -> bool {
        self.0.parts.authorities.current().active_wit().is_some()
    }

    /// Whether a lease was taken back. Answers from memory: true from the moment the agent decided.
    pub fn is_revoked(&self, lease: crate::id::LeaseId) -> bool {
        lock(&self.0.denied).contains(lease)
    }
}

impl Shared {
    fn lock(&self) -> Locked<'_> {
        Locked(lock(&self.state))
    }
}

/// The state lock. When it is let go, whoever follows a task that has changed meanwhile is told.
struct Locked<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.tasks.tell_changes();
    }
}

const MOST_CALLS: usize = 4_096;

/// A poisoned lock means that a panic was caught somewhere (never in a release build, which aborts). The
/// tables are changed in single steps, so they are still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
