//! What events are made of: processes, credentials, and why they ended.

use std::time::{Duration, SystemTime};

use mayfly_attestors::ProcessKey;

use crate::id::{EntryId, LeaseId, TaskId};
use crate::ledger::{Kind, Reason, Row};

/// A process, as far as it is known. (The schema calls every workload an agent.)
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Which process.
    pub process: ProcessKey,
    /// Its user.
    pub uid: u32,
    /// What it was given, or asked for.
    pub spiffe_id: Option<String>,
    /// Its cgroup path.
    pub cgroup: Option<String>,
    /// Its executable, hex.
    pub exe_sha256: Option<String>,
    /// The image of its container, by digest, where it was attested by one: `sha256:…`.
    pub image_digest: Option<String>,
    /// The pod that it was attested to be in.
    pub k8s: Option<Box<Pod>>,
    /// Digest over its sorted selectors, hex.
    pub selectors_hash: Option<String>,
    /// What is odd about it, by the stable names of [`mayfly_attestors::Posture::names`].
    pub posture: Vec<&'static str>,
}

/// A pod of Kubernetes, as it was attested: what no attestor said is not there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pod {
    /// Its namespace.
    pub ns: Option<String>,
    /// Its name.
    pub pod: Option<String>,
    /// Its service account.
    pub sa: Option<String>,
}

/// What is new about an attestation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// Nothing was on record of the process since the agent started.
    First,
    /// It is something else than it was.
    Changed,
    /// Nothing has changed: an attestor has said what nobody knew before.
    More,
}

/// Why something was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// `pin`, `attest`, `match`, `policy`, `limit`, ….
    pub phase: &'static str,
    /// What was missing.
    pub reason: String,
}

/// One credential, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Credential {
    /// X.509, JWT or WIT.
    pub kind: Kind,
    /// Serial number or `jti`.
    pub id: LeaseId,
    /// Key that signed it.
    pub issuer: String,
    /// The registration entry it came from.
    pub entry: EntryId,
    /// Audiences of a JWT.
    pub audience: Vec<String>,
    /// How long it is good for, from issue.
    pub ttl: Duration,
    /// Only for a token, and only at issue.
    pub token: Option<TokenPrint>,
    /// The task that it was issued for.
    pub task: Option<TaskId>,
    /// What was granted to that task, only at issue.
    pub grant: Option<Box<Grant>>,
}

/// What a credential of a task may be used for, and by which decisions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// By the name that policies know it by.
    pub target: String,
    /// The action classes, a space between.
    pub scope: String,
    /// To what it is bound: `none`, `dpop` or `mtls`.
    pub binding: &'static str,
    /// The evaluations that allowed it, one an action class.
    pub evaluations: Vec<String>,
    /// The operation that it was asked for, if it was named.
    pub request: Option<crate::audit::Request>,
}

/// First 8 bytes of a token's SHA-256: enough to find a leaked token's lease, useless otherwise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TokenPrint([u8; 8]);

/// Why a credential was taken back, and when each step was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Revocation {
    /// Why.
    pub reason: Reason,
    /// `kernel`, `entries`, `operator uid 0`, ….
    pub initiator: String,
    /// How many credentials ended for this one cause.
    pub credentials: u64,
    /// When the process ended, where the kernel says so.
    pub exited: Option<SystemTime>,
    /// When the agent knew.
    pub seen: Option<SystemTime>,
    /// When the CRL that lists it was signed.
    pub signed: Option<SystemTime>,
    /// When subscribers had that CRL.
    pub published: Option<SystemTime>,
    /// Its number; none for a JWT.
    pub crl_number: Option<u64>,
    /// From the first known step to the last, measured by the monotonic clock.
    pub latency: Duration,
}

/// Why a connection was cut.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Cut {
    /// Another process wrote to the socket.
    WriterMismatch,
    /// The process became another program.
    ExecMismatch,
    /// The process shows another program, and has not executed one: somebody wrote a name over its own.
    ExeForged,
    /// The process changed its user or group.
    CredentialsChanged,
    /// The process is what it was, but what a controller says of it (an engine, the service manager) has changed.
    FactsChanged,
    /// The pod of the process is no more.
    PodDeleted,
    /// A tracer took hold of the process, and its entry does not allow that.
    Traced,
    /// The peer passed file descriptors.
    DescriptorsPassed,
    /// The peer went over a budget: bytes, streams, resets, time.
    Budget,
    /// The peer does not speak the protocol.
    Protocol,
}

impl Agent {
    /// The process and nothing else.
    pub fn new(process: ProcessKey, uid: u32) -> Self {
        Self {
            process,
            uid,
            spiffe_id: None,
            cgroup: None,
            exe_sha256: None,
            image_digest: None,
            k8s: None,
            selectors_hash: None,
            posture: Vec::new(),
        }
    }

    /// The holder of a lease, as the ledger knows it.
    pub fn of(row: &Row) -> Self {
        Self { spiffe_id: Some(row.spiffe_id.clone()), ..Self::new(row.process, row.uid) }
    }
}

impl Credential {
    /// The credential of a lease.
    pub fn of(row: &Row) -> Self {
        Self {
            kind: row.kind,
            id: row.id,
            issuer: row.issuer.clone(),
            entry: row.entry.clone(),
            audience: row.audience.clone(),
            ttl: Duration::from_secs(row.not_after.saturating_sub(row.issued_at)),
            token: None,
            task: row.task,
            grant: None,
        }
    }
}

impl Found {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Changed => "changed",
            Self::More => "more",
        }
    }
}

impl Cut {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WriterMismatch => "writer_mismatch",
            Self::ExecMismatch => "exec_mismatch",
            Self::ExeForged => "exe_forged",
            Self::CredentialsChanged => "credentials_changed",
            Self::FactsChanged => "facts_changed",
            Self::PodDeleted => "pod_deleted",
            Self::Traced => "traced",
            Self::DescriptorsPassed => "descriptors_passed",
            Self::Budget => "budget",
            Self::Protocol => "protocol",
        }
    }
}

impl TokenPrint {
    /// The print of a token, from its SHA-256.
    pub fn of_sha256(digest: &[u8]) -> Self {
        // SHA-256 has 32 bytes, so there always is such a chunk.
        Self(digest.first_chunk().copied().unwrap_or_default())
    }

    /// 16 hex digits.
    pub(in crate::audit) fn text(self) -> String {
        crate::audit::text::hex(&self.0)
    }
}
