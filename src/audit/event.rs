//! What is recorded: one value an event, turned into JSON by `line`.

mod parts;

use std::time::SystemTime;

pub use self::parts::{Agent, Credential, Cut, Decision, Grant, Revocation, TokenPrint};
use super::chain::Head;
use super::task::{ApprovalFacts, ApprovalStep, PolicyDecision, TaskEnd, TaskFacts, TaskStep};
use crate::authority::{AuthorityKind, State as AuthorityState};
use crate::id::{EntryId, TrustDomain};

/// One audit event. Strings may come from anybody: they are escaped and cut when they are written. No
/// variant carries a key, a token, or anything else that would let a reader act.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The agent serves.
    AgentStart {
        /// Its version.
        version: String,
        /// What it works with: kernel features, fallbacks in force.
        posture: Vec<String>,
    },
    /// The agent stops.
    AgentStop {
        /// Why.
        reason: String,
    },
    /// A process asked and got nothing.
    AttestDenied {
        /// Who asked.
        agent: Agent,
        /// At which step, and why.
        decision: Decision,
    },
    /// A connection was closed because it is no longer, or never was, its process's own.
    AgentCut {
        /// The process the connection was pinned to.
        agent: Agent,
        /// Which rule.
        reason: Cut,
    },
    /// Notices of exec were lost: every live process may have become another program, and is looked at again.
    ExecWatchLost {
        /// How many processes that is.
        suspects: u64,
    },
    /// A process said what it is about to become, and is believed.
    LaunchRecorded {
        /// The process.
        agent: Agent,
        /// The program that it is about to exec.
        program: String,
        /// The SHA-256 of each measured file, hex.
        measured: Vec<String>,
    },
    /// A first credential for this process and entry.
    CredentialIssue {
        /// Who holds it.
        agent: Agent,
        /// What it is.
        credential: Credential,
    },
    /// A fresh credential in place of one that runs out.
    CredentialRenew {
        /// Who holds it.
        agent: Agent,
        /// What it is.
        credential: Credential,
    },
    /// A credential ran out by itself.
    CredentialExpire {
        /// Who held it.
        agent: Agent,
        /// What it was.
        credential: Credential,
    },
    /// A credential was taken back.
    CredentialRevoke {
        /// Who held it.
        agent: Agent,
        /// What it was.
        credential: Credential,
        /// Why, and how fast.
        revocation: Revocation,
    },
    /// A credential was shown after its end: somebody kept it, or has stolen it. Once for each.
    CredentialReuse {
        /// Who held it.
        agent: Agent,
        /// What it was.
        credential: Credential,
        /// Why it had ended, and where it was shown.
        seen: String,
    },
    /// A new set of registration entries is in force.
    EntriesChanged {
        /// Where it came from.
        source: String,
        /// How many entries are in force now.
        total: u64,
        /// Which are new.
        added: Vec<EntryId>,
        /// Which are gone.
        removed: Vec<EntryId>,
        /// Which say something else now.
        changed: Vec<EntryId>,
    },
    /// A set of registration entries was refused; the old one stays in force.
    EntriesRejected {
        /// Where it came from.
        source: String,
        /// What is wrong with it.
        problems: Vec<String>,
    },
    /// A policy set is in force.
    PolicyLoaded {
        /// Where it came from.
        source: String,
        /// SHA-256 over its files, hex.
        version: String,
        /// How many policies it has.
        policies: u64,
        /// How many targets are in its catalogue.
        targets: u64,
    },
    /// A policy set was refused; the one before stays in force.
    PolicyRejected {
        /// Where it came from.
        source: String,
        /// What is wrong with it.
        problems: Vec<String>,
    },
    /// A signing key is in use.
    AuthorityLoaded {
        /// What it signs.
        kind: AuthorityKind,
        /// Authority key identifier in hex, or `kid`.
        id: String,
        /// `ec-p256`, ….
        algorithm: String,
        /// When its certificate ends.
        not_after: Option<SystemTime>,
        /// Made now, rather than found on the disk.
        created: bool,
    },
    /// An authority took a step of its life.
    AuthorityStep {
        /// What it signs.
        kind: AuthorityKind,
        /// Authority key identifier in hex, or `kid`.
        id: String,
        /// Where it stands now.
        state: AuthorityState,
        /// Whether it is to leave the bundle as soon as what it signed has been replaced.
        leaving: bool,
        /// Whether verifiers had less time to learn it than they should have.
        hurried: bool,
        /// The operator who asked for it; `None` when its age did.
        by: Option<Agent>,
    },
    /// The ledger could not be trusted, so every credential issued before left the bundle with its key.
    LedgerLost {
        /// What was found.
        why: String,
        /// Where the old files are now.
        moved_to: Option<String>,
    },
    /// An operator asked for a revocation.
    AdminRevoke {
        /// The operator's process.
        by: Agent,
        /// The lease, process or SPIFFE ID asked for.
        target: String,
        /// How many leases matched.
        credentials: u64,
    },
    /// The bundle of another trust domain was asked for at its endpoint.
    BundleFetch {
        /// Whose.
        trust_domain: TrustDomain,
        /// Where the configuration says.
        url: String,
        /// Host or SPIFFE ID that the endpoint had to prove.
        peer: String,
        /// The sequence number that came, if the document has one, or why none came.
        outcome: Result<Option<u64>, String>,
        /// The document is another than before.
        changed: bool,
        /// The sequence number is lower than before.
        went_back: bool,
    },
    /// An operator set or deleted the bundle of another trust domain.
    BundleOrder {
        /// The operator's process.
        by: Option<Agent>,
        /// `set` or `delete`.
        order: &'static str,
        /// Whose.
        trust_domain: TrustDomain,
        /// Of the document that was set.
        sequence: Option<u64>,
    },
    /// A socket of the agent was removed or replaced; it was put back.
    SocketReplaced {
        /// Its path.
        path: String,
        /// What had become of it: `removed` or `replaced`.
        found: &'static str,
    },
    /// A task took a step of its life.
    Task {
        /// Which step.
        step: TaskStep,
        /// Whoever took it; for an end, whose task it was.
        agent: Agent,
        /// The task, as it is after the step.
        task: Box<TaskFacts>,
        /// What policy said, where it was asked.
        decision: Option<Box<PolicyDecision>>,
        /// Of an end: what it took along.
        end: Option<TaskEnd>,
    },
    /// Policy decided about something that a task wanted.
    Decided {
        /// Whoever asked.
        agent: Agent,
        /// In the name of which task.
        task: Box<TaskFacts>,
        /// What.
        decision: Box<PolicyDecision>,
    },
    /// People were asked to allow something, have answered, or have not.
    Approval {
        /// Which step.
        step: ApprovalStep,
        /// Whoever took it: the agent, or the process of the person.
        agent: Agent,
        /// What was asked for.
        approval: Box<ApprovalFacts>,
    },
    /// Something was frozen: nothing is decided in its favour.
    Freeze {
        /// The operator's process; `None`: the flag file.
        by: Option<Agent>,
        /// What.
        what: String,
        /// Why.
        reason: String,
        /// What was given is taken back, too.
        revoke: bool,
        /// Nothing that was known bore the name.
        unknown: bool,
    },
    /// The kill switch has killed a process of a task, or all of a cgroup; or could not.
    Killed {
        /// The process.
        agent: Option<Agent>,
        /// The cgroup, if it was one.
        cgroup: Option<String>,
        /// By whose order: `operator uid 0`.
        initiator: String,
        /// Why it lives on; `None`: it does not.
        failed: Option<String>,
    },
    /// Something that was frozen goes on.
    Thaw {
        /// The operator's process; `None`: the flag file.
        by: Option<Agent>,
        /// What.
        what: String,
        /// Why.
        reason: String,
        /// Another person must say the same first.
        needs_another: bool,
    },
    /// Where the chain was: whoever keeps this line elsewhere can tell later whether lines were cut off.
    Checkpoint {
        /// The chain's end when this was made.
        head: Head,
        /// A signature over it, in a form that can be checked with the trust bundle.
        proof: Option<String>,
    },
    /// The log was not whole when it was opened. Written by the log itself.
    Recovered {
        /// How much of an unfinished line was cut off.
        cut_bytes: u64,
        /// Where the old file is, if its lines did not add up.
        moved_to: Option<String>,
    },
    /// Events are missing here, because the log could not be written for too long. Written by the log itself.
    Gap {
        /// How many.
        lost: u64,
    },
}

impl Event {
    /// Of an issuance for a task: what for, and by which decisions.
    #[must_use]
    pub fn granted(mut self, grant: Grant) -> Self {
        if let Self::CredentialIssue { credential, .. } = &mut self {
            credential.grant = Some(Box::new(grant));
        }
        self
    }
}
