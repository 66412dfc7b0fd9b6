//! A question as people write it: what they leave out is ordinary.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::{
    Action, ApprovalFacts, Catalogue, Circumstances, IdentityFacts, Kind, Object, Phase, PostureFacts,
    Principal, Question, TaskFacts, UserFacts, WorkloadFacts,
};
use crate::id::{EntryId, SpiffeId};

/// What somebody wants to know.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    /// Which agent asks.
    pub agent: Option<SpiffeId>,
    /// Or which person, who approves.
    pub person: Option<String>,
    /// What is done.
    pub action: Option<Action>,
    /// To which target, by its name or its audience.
    pub target: Option<String>,
    /// Or to which agent a part is handed.
    pub to: Option<SpiffeId>,
    /// By which template a task is begun, or was.
    pub template: Option<String>,
    /// At which moment; by default what fits the action.
    pub phase: Option<Phase>,
    /// For how long.
    pub ttl: Option<Duration>,
    /// In which form an identity is fetched.
    pub kind: Option<Kind>,
    /// For which audiences a token is fetched.
    pub audiences: BTreeSet<String>,
    /// The entry that gave the agent its identity.
    pub entry: Option<String>,
    /// The agent's process.
    pub process: ProcessSketch,
    /// The task.
    pub task: TaskSketch,
    /// The approval, if there is one.
    pub approval: Option<ApprovalSketch>,
    /// Everything else.
    pub circumstances: Circumstances,
}

/// A process.
#[derive(Clone, Debug, Default)]
pub struct ProcessSketch {
    /// Its user.
    pub uid: u32,
    /// Its selectors.
    pub selectors: BTreeSet<String>,
    /// The SHA-256 of its program.
    pub exe_sha256: String,
    /// The machine.
    pub node: String,
    /// What is odd about it.
    pub posture: PostureFacts,
}

/// A task.
#[derive(Clone, Debug, Default)]
pub struct TaskSketch {
    /// Levels above it.
    pub depth: u32,
    /// Credentials and calls so far.
    pub calls: u64,
    /// Refusals so far.
    pub denials: u64,
    /// Live children.
    pub children: u64,
    /// Different audiences so far.
    pub audiences: u64,
    /// In the agent's own words.
    pub purpose: String,
    /// How long ago it began.
    pub age: Option<Duration>,
    /// How long it has left.
    pub left: Option<Duration>,
}

/// An approval.
#[derive(Clone, Debug)]
pub struct ApprovalSketch {
    /// By whom.
    pub by: String,
    /// How long it is good for from now.
    pub left: Duration,
    /// By how many people.
    pub quorum: u32,
}

impl Sketch {
    /// The question, of a catalogue and at a moment.
    ///
    /// # Errors
    /// What is missing or does not go together; goes on from a name such as `case`.
    pub fn question(&self, catalogue: &Catalogue, now: SystemTime) -> Result<Question, String> {
        let action = self.action.ok_or("names no action")?;
        let principal = match (&self.agent, &self.person) {
            (Some(agent), None) => Principal::Workload(self.workload(agent, now)),
            (None, Some(person)) => Principal::User(user(person)),
            (Some(_), Some(_)) => return Err("asks for an agent and for a person: keep one".to_owned()),
            (None, None) => return Err("says nobody who asks".to_owned()),
        };
        let mut circumstances = self.circumstances.clone();
        circumstances.approval = self.approval.as_ref().map(|approval| ApprovalFacts {
            id: "apr_example".to_owned(),
            by: user(&approval.by),
            at: now,
            until: now.checked_add(approval.left).unwrap_or(now),
            quorum: approval.quorum,
        });
        Ok(Question {
            principal,
            action,
            object: self.object(action, catalogue)?,
            phase: self.phase.unwrap_or(match action {
                Action::Begin | Action::Delegate => Phase::Begin,
                Action::Fetch => Phase::Fetch,
                _ => Phase::Issue,
            }),
            now,
            requested_ttl: self.ttl.unwrap_or(DEFAULT_TTL),
            task: (action != Action::Fetch).then(|| self.task_facts(now)),
            circumstances,
        })
    }

    fn object(&self, action: Action, catalogue: &Catalogue) -> Result<Object, String> {
        let missing = |what: &str| format!("names no {what}, and `{action}` is done to one");
        match action {
            Action::Fetch => self.identity().map(Object::Identity),
            Action::Begin => Ok(Object::Template(self.template.clone())),
            Action::Delegate => self.to.clone().map(Object::Agent).ok_or_else(|| missing("agent")),
            _ => {
                let named = self.target.as_ref().ok_or_else(|| missing("target"))?;
                let by_audience = catalogue.target_for(named).map(|target| target.name.clone());
                Ok(Object::Target(by_audience.unwrap_or_else(|| named.clone())))
            }
        }
    }

    fn identity(&self) -> Result<IdentityFacts, String> {
        let spiffe_id = self.agent.clone().ok_or("says no agent that fetches its identity")?;
        let kind = self.kind.unwrap_or(Kind::X509);
        if kind != Kind::Jwt && !self.audiences.is_empty() {
            return Err("names audiences, and only a JWT-SVID has any".to_owned());
        }
        Ok(IdentityFacts { spiffe_id, kind, audiences: self.audiences.clone(), entry: self.entry() })
    }

    fn entry(&self) -> EntryId {
        EntryId::new(self.entry.clone().unwrap_or_else(|| "example".to_owned()))
    }

    fn workload(&self, agent: &SpiffeId, now: SystemTime) -> WorkloadFacts {
        let ProcessSketch { uid, selectors, exe_sha256, node, posture } = self.process.clone();
        WorkloadFacts {
            spiffe_id: agent.clone(),
            profile: self.entry(),
            uid,
            selectors,
            exe_sha256,
            node,
            posture,
            attested_at: now,
            groups: BTreeSet::new(),
        }
    }

    fn task_facts(&self, now: SystemTime) -> TaskFacts {
        let TaskSketch { depth, calls, denials, children, audiences, ref purpose, age, left } = self.task;
        let root = if depth == 0 { "tsk_example" } else { "tsk_root" };
        TaskFacts {
            id: "tsk_example".to_owned(),
            root: root.to_owned(),
            depth,
            purpose: purpose.clone(),
            template: self.template.clone(),
            started: now.checked_sub(age.unwrap_or_default()).unwrap_or(now),
            deadline: now.checked_add(left.unwrap_or(DEFAULT_LEFT)).unwrap_or(now),
            calls,
            denials,
            children,
            audiences,
        }
    }
}

impl PostureFacts {
    /// Sets what a word says: `ptraced`, `exe_deleted`, `no_new_privs` or `isolated`.
    ///
    /// # Errors
    /// The words that there are.
    pub fn set(&mut self, word: &str) -> Result<(), &'static str> {
        let field = match word {
            "ptraced" => &mut self.traced,
            "exe_deleted" => &mut self.exe_deleted,
            "no_new_privs" => &mut self.no_new_privs,
            "isolated" => &mut self.isolated,
            _ => return Err("is none of ptraced, exe_deleted, no_new_privs, isolated: write one of them"),
        };
        *field = true;
        Ok(())
    }
}

/// A person by name; the catalogue says what groups they are in.
fn user(name: &str) -> UserFacts {
    UserFacts { name: name.to_owned(), groups: BTreeSet::new() }
}

/// What is asked for where nobody says for how long.
const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// What a task has left where nobody says.
const DEFAULT_LEFT: Duration = Duration::from_secs(3600);
