//! What is asked. Nothing here knows the time or the machine: `now` is a field, and facts come from whoever attested.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use super::Kind;
use crate::id::{EntryId, SpiffeId};

/// May `principal` do `action` to `object`, now, under these circumstances?
#[derive(Clone, Debug)]
pub struct Question {
    /// Who.
    pub principal: Principal,
    /// Does what.
    pub action: Action,
    /// To what. Must fit the action, see [`Object`].
    pub object: Object,
    /// At which moment of a credential's life.
    pub phase: Phase,
    /// The present.
    pub now: SystemTime,
    /// The lifetime asked for.
    pub requested_ttl: Duration,
    /// The task in whose name, with its counters as they are now; at its beginning, as they will be. Needed for every
    /// action but `fetch`.
    pub task: Option<TaskFacts>,
    /// Under which circumstances.
    pub circumstances: Circumstances,
}

/// What else a decision may hang on. By default nothing is known and nothing is odd.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// Who delegated, from the parent to the root; empty for a root task.
    pub chain: Vec<SpiffeId>,
    /// Their tasks, in the same order.
    pub tasks_above: Vec<String>,
    /// The person it is done for, proven.
    pub on_behalf_of: Option<UserFacts>,
    /// An approval that was granted for exactly this. Whoever asks has checked that; policy says whether it is enough.
    pub approval: Option<ApprovalFacts>,
    /// The HTTP request itself, where we see it.
    pub http: Option<HttpFacts>,
    /// The MCP call itself, where we see it.
    pub mcp: Option<McpFacts>,
    /// The database session itself, where we see it.
    pub sql: Option<SqlFacts>,
    /// SHA-256 of what the operation carries, where that was said. For the record, not for policies.
    pub body_sha256: Option<[u8; 32]>,
    /// 0 to 100: the weight of the heaviest anomaly rule that fired, 0 when none did.
    pub risk: u8,
    /// This agent has never had to do with this target before.
    pub new_destination: bool,
}

impl Question {
    /// A question of the Workload API: may this workload have this identity in that form?
    pub fn fetch(workload: WorkloadFacts, identity: IdentityFacts, ttl: Duration, now: SystemTime) -> Self {
        Self {
            principal: Principal::Workload(workload),
            action: Action::Fetch,
            object: Object::Identity(identity),
            phase: Phase::Fetch,
            now,
            requested_ttl: ttl,
            task: None,
            circumstances: Circumstances::default(),
        }
    }

    /// A question of a task; its circumstances are set afterwards.
    pub fn of_task(
        workload: WorkloadFacts,
        action: Action,
        object: Object,
        phase: Phase,
        task: TaskFacts,
        ttl: Duration,
        now: SystemTime,
    ) -> Self {
        Self {
            principal: Principal::Workload(workload),
            action,
            object,
            phase,
            now,
            requested_ttl: ttl,
            task: Some(task),
            circumstances: Circumstances::default(),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Principal {
    /// An attested process.
    Workload(WorkloadFacts),
    /// A person, for [`Action::Approve`].
    User(UserFacts),
}

/// What is known of an attested process.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct WorkloadFacts {
    /// The identity in whose name it asks.
    pub spiffe_id: SpiffeId,
    /// The entry that gave it that identity.
    pub profile: EntryId,
    /// Its user.
    pub uid: u32,
    /// All its selectors, as text.
    pub selectors: BTreeSet<String>,
    /// SHA-256 of its program in hex; empty when there is none.
    pub exe_sha256: String,
    /// The machine.
    pub node: String,
    /// What is odd about it.
    pub posture: PostureFacts,
    /// When all this was found out.
    pub attested_at: SystemTime,
    /// Groups besides those that the catalogue puts its identity into.
    pub groups: BTreeSet<String>,
}

/// What is odd about a process, or good.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PostureFacts {
    /// A tracer has hold of it.
    pub traced: bool,
    /// Its program has no name in any directory any more.
    pub exe_deleted: bool,
    /// It can gain no privileges by exec.
    pub no_new_privs: bool,
    /// It has a cgroup of its own that ends with its task.
    pub isolated: bool,
}

/// A person.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct UserFacts {
    /// The name in the catalogue, or else the subject that an issuer asserted.
    pub name: String,
    /// Groups besides those of the catalogue.
    pub groups: BTreeSet<String>,
}

/// The task in whose name something is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TaskFacts {
    /// Its name.
    pub id: String,
    /// The name of the root of its tree.
    pub root: String,
    /// 0 for a root.
    pub depth: u32,
    /// The agent's own words. Never to be believed.
    pub purpose: String,
    /// The template it was begun by.
    pub template: Option<String>,
    /// When it began.
    pub started: SystemTime,
    /// When it ends at the latest.
    pub deadline: SystemTime,
    /// Credentials and calls so far.
    pub calls: u64,
    /// Refusals so far.
    pub denials: u64,
    /// Live children.
    pub children: u64,
    /// Different audiences so far.
    pub audiences: u64,
}

/// What people allowed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApprovalFacts {
    /// Its name.
    pub id: String,
    /// Who decided last.
    pub by: UserFacts,
    /// When.
    pub at: SystemTime,
    /// How long it is good for.
    pub until: SystemTime,
    /// How many people have approved.
    pub quorum: u32,
}

/// An HTTP request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HttpFacts {
    /// In capitals.
    pub method: String,
    /// Without a port.
    pub host: String,
    /// Normalised, without a query.
    pub path: String,
}

/// An MCP tool call.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct McpFacts {
    /// The tool's name.
    pub tool: String,
}

/// A database session.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SqlFacts {
    /// The database.
    pub db: String,
    /// The role.
    pub role: String,
}

/// What it is done to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Object {
    /// A target of the catalogue, by name: `read`, `write`, `delete`, `execute`, `admin`, `approve`.
    Target(String),
    /// Another agent: `delegate`.
    Agent(SpiffeId),
    /// A task template, or none: `begin`.
    Template(Option<String>),
    /// An identity of the caller's own: `fetch`.
    Identity(IdentityFacts),
}

/// An identity as the Workload API gives it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct IdentityFacts {
    /// Which.
    pub spiffe_id: SpiffeId,
    /// In which form.
    pub kind: Kind,
    /// Audiences of a JWT-SVID.
    pub audiences: BTreeSet<String>,
    /// By which entry.
    pub entry: EntryId,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum $name {
            $($(#[$each])* $variant,)+
        }

        impl $name {
            /// Each of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word that stands for it in policies, files and logs.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| {
                    let all = Self::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>();
                    format!("is none of {}: write one of them", all.join(", "))
                })
            }
        }
    };
}

words! {
    /// What is done. The first five are done to targets and are all that a grant can name.
    Action {
        /// Looks, changes nothing.
        Read = "read",
        /// Changes or adds.
        Write = "write",
        /// Removes.
        Delete = "delete",
        /// Makes something else act.
        Execute = "execute",
        /// Changes who may do what.
        Admin = "admin",
        /// Hands a part of a task to another agent.
        Delegate = "delegate",
        /// Begins a task.
        Begin = "begin",
        /// Fetches an identity from the Workload API.
        Fetch = "fetch",
        /// Approves what somebody else asked for.
        Approve = "approve",
    }
}

impl Action {
    /// Whether it is done to a target of the catalogue.
    pub fn is_on_target(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Delete | Self::Execute | Self::Admin)
    }
}

words! {
    /// The moment of a credential's life at which a decision is made.
    Phase {
        /// A task begins, or a child is made.
        Begin = "begin",
        /// A credential is made.
        Issue = "issue",
        /// A credential is used, where we are in the path.
        Use = "use",
        /// A token is exchanged for another.
        Exchange = "exchange",
        /// The Workload API gives an identity.
        Fetch = "fetch",
    }
}
