//! Approvals: what people are asked to allow, who may answer, and what their yes is good for. Pure.
//!
//! An approval is bound to one task, one action, one target and one operation. It is good once, for minutes, and only
//! for exactly that; policy is asked again when it is used. Nobody answers twice, nobody answers for work that is done
//! in his own name, and one no is enough.

mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Instant, SystemTime};

pub use self::room::ApprovalBounds;

use super::{Action, Limit, Refused};
use crate::id::{ApprovalId, TaskId};

/// What exactly is asked for. Two that differ in anything are two.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject {
    /// Whose task it is: its SPIFFE ID.
    pub agent: String,
    /// In whose name.
    pub task: TaskId,
    /// What is done.
    pub action: Action,
    /// To which target, by name.
    pub target: String,
    /// SHA-256 of the operation in canonical form; `None`: none was named.
    pub operation: Option<[u8; 32]>,
}

/// Whose yes it takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Jury {
    /// Everybody who answers must be in each of these groups.
    pub groups: BTreeSet<String>,
    /// So many different people; at least one.
    pub quorum: u32,
    /// The person in whose name the agent works. He does not answer.
    pub not: Option<String>,
}

/// Somebody who answers, as the catalogue knows him.
#[derive(Clone, Copy, Debug)]
pub struct Person<'a> {
    /// The name that policies know him by.
    pub name: &'a str,
    /// His groups.
    pub groups: &'a BTreeSet<String>,
}

/// An answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Vote {
    /// The person.
    pub by: String,
    /// For people: his name, and the user that he answered as.
    pub shown_by: String,
    /// Yes or no.
    pub approve: bool,
    /// When.
    pub at: SystemTime,
    /// For the record.
    pub reason: String,
}

/// Where an approval stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ApprovalState {
    /// It waits for people.
    Pending,
    /// Good for one use until then.
    Approved(Instant),
    /// Somebody said no.
    Denied,
    /// Nobody said enough in time, or nobody used it in time.
    Expired,
    /// Its task ended first.
    Cancelled,
    /// It bought what it was for, or nothing: it is gone either way.
    Used,
}

impl ApprovalState {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved(_) => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Used => "used",
        }
    }

    /// Whether something can still come of it.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Approved(_))
    }
}

/// One request to people.
#[derive(Clone, Debug)]
pub struct Approval {
    /// Its name.
    pub id: ApprovalId,
    /// What is asked for.
    pub subject: Subject,
    /// Whose yes it takes.
    pub jury: Jury,
    /// The decision that said so.
    pub evaluation: String,
    /// Where it stands.
    pub state: ApprovalState,
    /// For people.
    pub requested_at: SystemTime,
    /// Nobody can answer after that.
    pub expires_at: SystemTime,
    /// For people: until when the yes is good.
    pub approved_until: Option<SystemTime>,
    /// What was answered.
    pub votes: Vec<Vote>,
    requested: Instant,
    expires: Instant,
}

/// Why an answer or a use is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApprovalError {
    /// There is no such approval (any more).
    #[error("there is no such approval")]
    Unknown,
    /// It is not open: who answers comes too late, and who would use it as well, or too early.
    #[error("the approval is {}", .0.as_str())]
    State(ApprovalState),
    /// It is for something else.
    #[error("the approval is for something else")]
    Other,
    /// Whoever answers is not in the groups that may.
    #[error("only members of the groups that the policy names may decide")]
    NotInGroups,
    /// Whoever answers is the one in whose name the agent works.
    #[error("nobody decides about work in his own name")]
    OwnWork,
    /// Whoever answers has answered.
    #[error("this person has decided already")]
    Twice,
}

/// Every approval of this node.
#[derive(Debug, Default)]
pub struct Approvals {
    bounds: ApprovalBounds,
    all: HashMap<ApprovalId, Approval>,
    of_task: BTreeMap<TaskId, BTreeSet<ApprovalId>>,
}

impl Approvals {
    /// An empty book.
    pub fn new(bounds: ApprovalBounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// One of them.
    pub fn get(&self, id: ApprovalId) -> Option<&Approval> {
        self.all.get(&id)
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Vec<&Approval> {
        let mut all: Vec<&Approval> = self.all.values().collect();
        all.sort_by_key(|approval| (approval.requested, approval.id));
        all
    }

    /// Asks people. Who asks for the same thing again while the answer is not in, or a yes is not used, gets the same
    /// request; `true` when it is a new one.
    ///
    /// # Errors
    /// [`Limit::Approvals`]: too many wait, or too many were asked for lately.
    pub fn request(
        &mut self,
        id: ApprovalId,
        subject: Subject,
        jury: Jury,
        evaluation: String,
        now: Instant,
        wall: SystemTime,
    ) -> Result<(&Approval, bool), Refused> {
        self.settle(now);
        let mut own = self.of_task.get(&subject.task).into_iter().flatten().filter_map(|id| self.all.get(id));
        let same = own.find(|one| one.state.is_open() && one.subject == subject && one.jury == jury);
        if let Some(same) = same.map(|one| one.id) {
            return self.all.get(&same).map(|same| (same, false)).ok_or(Refused::Limit(Limit::Approvals));
        }
        self.room_for(&subject, now)?;
        self.of_task.entry(subject.task).or_default().insert(id);
        let approval = Approval {
            id,
            subject,
            jury,
            evaluation,
            state: ApprovalState::Pending,
            requested_at: wall,
            expires_at: wall + self.bounds.wait,
            approved_until: None,
            votes: Vec::new(),
            requested: now,
            expires: now + self.bounds.wait,
        };
        Ok((self.all.entry(id).insert_entry(approval).into_mut(), true))
    }

    /// What an answer would make of an approval, which stays as it is. `shown` is the operation that the person saw.
    ///
    /// # Errors
    /// [`ApprovalError`].
    pub fn weigh(
        &mut self,
        id: ApprovalId,
        person: Person<'_>,
        shown: Option<[u8; 32]>,
        vote: Vote,
        now: Instant,
    ) -> Result<Approval, ApprovalError> {
        self.settle(now);
        let good = self.bounds.good;
        let mut approval = self.all.get(&id).cloned().ok_or(ApprovalError::Unknown)?;
        if approval.state != ApprovalState::Pending {
            return Err(ApprovalError::State(approval.state));
        }
        if shown != approval.subject.operation {
            return Err(ApprovalError::Other);
        }
        approval.admits(person)?;
        let (approve, at) = (vote.approve, vote.at);
        approval.votes.push(Vote { by: person.name.to_owned(), ..vote });
        let enough =
            approval.votes.len() >= usize::try_from(approval.jury.quorum.max(1)).unwrap_or(usize::MAX);
        if !approve {
            approval.state = ApprovalState::Denied;
        } else if enough {
            approval.state = ApprovalState::Approved(now + good);
            approval.approved_until = Some(at + good);
        }
        Ok(approval)
    }

    /// Takes an answer, as [`Approvals::weigh`] says.
    ///
    /// # Errors
    /// [`ApprovalError`]; nothing has changed then.
    pub fn vote(
        &mut self,
        id: ApprovalId,
        person: Person<'_>,
        shown: Option<[u8; 32]>,
        vote: Vote,
        now: Instant,
    ) -> Result<&Approval, ApprovalError> {
        let weighed = self.weigh(id, person, shown, vote, now)?;
        Ok(self.all.entry(id).insert_entry(weighed).into_mut())
    }

    /// An approval that could be used now for exactly this. It stays as it is.
    ///
    /// # Errors
    /// [`ApprovalError`].
    pub fn check(
        &mut self,
        id: ApprovalId,
        subject: &Subject,
        now: Instant,
    ) -> Result<&Approval, ApprovalError> {
        self.good(id, subject, now).map(|approval| &*approval)
    }

    /// Uses an approval for exactly what it is for. It is gone then, whatever comes of it.
    ///
    /// # Errors
    /// [`ApprovalError`]; it is as it was then.
    pub fn spend(
        &mut self,
        id: ApprovalId,
        subject: &Subject,
        now: Instant,
    ) -> Result<&Approval, ApprovalError> {
        let approval = self.good(id, subject, now)?;
        approval.state = ApprovalState::Used;
        Ok(approval)
    }

    fn good(
        &mut self,
        id: ApprovalId,
        subject: &Subject,
        now: Instant,
    ) -> Result<&mut Approval, ApprovalError> {
        self.settle(now);
        let approval = self.all.get_mut(&id).ok_or(ApprovalError::Unknown)?;
        // Not even whether it exists is anybody's business but its task's.
        if approval.subject.task != subject.task {
            return Err(ApprovalError::Unknown);
        }
        if approval.subject != *subject {
            return Err(ApprovalError::Other);
        }
        match approval.state {
            ApprovalState::Approved(_) => Ok(approval),
            state => Err(ApprovalError::State(state)),
        }
    }

    /// Makes one void, if it is open: no record could be made of it.
    pub fn cancel(&mut self, id: ApprovalId) -> bool {
        let open = self.all.get_mut(&id).filter(|approval| approval.state.is_open());
        open.map(|approval| approval.state = ApprovalState::Cancelled).is_some()
    }

    /// The task has ended: whatever was asked or allowed for it is void. The answer is what was open.
    pub fn end_task(&mut self, task: TaskId) -> Vec<ApprovalId> {
        let own = self.of_task.get(&task).into_iter().flatten();
        let mut open = Vec::new();
        for id in own {
            let Some(approval) = self.all.get_mut(id) else { continue };
            if approval.state.is_open() {
                approval.state = ApprovalState::Cancelled;
                open.push(*id);
            }
        }
        open
    }

    /// What has run out since it was called last.
    pub fn settle(&mut self, now: Instant) -> Vec<ApprovalId> {
        let mut ran_out = Vec::new();
        for approval in self.all.values_mut() {
            let over = match approval.state {
                ApprovalState::Pending => approval.expires <= now,
                ApprovalState::Approved(until) => until <= now,
                _ => false,
            };
            if over {
                approval.state = ApprovalState::Expired;
                ran_out.push(approval.id);
            }
        }
        let memory = self.bounds.memory;
        self.all
            .retain(|_, one| one.state.is_open() || now.saturating_duration_since(one.requested) < memory);
        self.of_task.retain(|_, ids| {
            ids.retain(|id| self.all.contains_key(id));
            !ids.is_empty()
        });
        ran_out
    }

    /// The earliest moment at which [`Approvals::settle`] finds something that has run out.
    pub fn deadline(&self) -> Option<Instant> {
        let ends = self.all.values().filter_map(|approval| match approval.state {
            ApprovalState::Pending => Some(approval.expires),
            ApprovalState::Approved(until) => Some(until),
            _ => None,
        });
        ends.min()
    }
}

impl Approval {
    fn admits(&self, person: Person<'_>) -> Result<(), ApprovalError> {
        if self.jury.not.as_deref() == Some(person.name) {
            return Err(ApprovalError::OwnWork);
        }
        if !self.jury.groups.is_subset(person.groups) {
            return Err(ApprovalError::NotInGroups);
        }
        if self.votes.iter().any(|vote| vote.by == person.name) {
            return Err(ApprovalError::Twice);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "approval_tests.rs"]
mod tests;
