//! What a yes is good for: one use, for exactly what was asked, if policy still says so.

use std::collections::BTreeSet;
use std::time::Duration;

use super::approvals::ROOT;
use super::deciding::find_target;
use super::issue::Ask;
use super::{TaskError, TaskView};
use crate::audit::ApprovalStep;
use crate::id::ApprovalId;
use crate::issue::access::ApprovalTerms;
use crate::policy::{
    Action, ApprovalFacts, ApprovalNeeded, Decision, Engine, PolicySet, Question, UserFacts,
};
use crate::task::Operation;
use crate::task::approval::{Approval, ApprovalError, Jury, Subject};
use crate::workload::Shared;

/// A yes that is about to be used.
pub(super) struct Approved {
    action: Action,
    /// Whose yes it was.
    jury: Jury,
    /// For policy.
    pub(super) facts: ApprovalFacts,
    /// For the credential.
    pub(super) terms: ApprovalTerms,
}

impl Approved {
    /// By the catalogue as it is now: whoever has left the groups since he answered does not count any more.
    pub(super) fn of(approval: &Approval, set: &PolicySet) -> Option<Self> {
        let counts = |by: &str| {
            let person = set.catalogue().person(by);
            by == ROOT || person.is_some_and(|person| approval.jury.groups.is_subset(&person.groups))
        };
        let yes = || approval.votes.iter().filter(|vote| vote.approve);
        let still = || yes().filter(|vote| counts(&vote.by));
        let quorum = u32::try_from(still().count()).unwrap_or(u32::MAX);
        let last = still().next_back().or_else(|| yes().next_back())?;
        // Whom the catalogue knows is in the groups that it says now, whatever they were when he answered.
        let groups = if last.by == ROOT { approval.jury.groups.clone() } else { BTreeSet::new() };
        Some(Self {
            action: approval.subject.action,
            jury: approval.jury.clone(),
            facts: ApprovalFacts {
                id: approval.id.to_string(),
                by: UserFacts { name: last.by.clone(), groups },
                at: last.at,
                until: approval.approved_until?,
                quorum,
            },
            terms: ApprovalTerms { id: approval.id, operation: approval.subject.operation },
        })
    }

    /// Whether that many people of those groups said yes: policy may have come to ask for more since they did.
    fn covers(&self, needed: &ApprovalNeeded) -> bool {
        needed.groups.is_subset(&self.jury.groups) && needed.quorum <= self.facts.quorum
    }

    /// The no of policy, if it asks for more people than have said yes, or for others.
    pub(super) fn falls_short(&self, set: &PolicySet, question: &Question) -> Option<Decision> {
        let mut bare = question.clone();
        bare.circumstances.approval = None;
        let decision = set.decide(&bare, Engine::new_evaluation());
        let short = decision.obligations.approval.as_ref().is_some_and(|needed| !self.covers(needed));
        short.then_some(decision)
    }

    /// What is asked for, as far as the approval goes.
    pub(super) fn ask(&self, ask: &Ask) -> Ask {
        let ttl = ask.ttl.map_or(LONGEST, |ttl| ttl.min(LONGEST));
        Ask { action: Some(self.action), ttl: Some(ttl), ..ask.clone() }
    }
}

impl Shared {
    /// What people have allowed, if it is for exactly this. It is used up when something is to be issued: whatever comes
    /// of that.
    pub(super) fn approved(
        &self,
        id: ApprovalId,
        ask: &Ask,
        view: &TaskView,
        set: &PolicySet,
    ) -> Result<Approved, TaskError> {
        let now = self.parts.clock.monotonic();
        let mut state = self.lock();
        self.settle_approvals(&mut state, now);
        let desk = &mut state.tasks.approvals;
        let own = desk.book.get(id).filter(|approval| approval.subject.task == view.task.id);
        let action = ask.action.or_else(|| own.map(|approval| approval.subject.action));
        let subject = Subject {
            agent: view.task.charter.spiffe_id.to_string(),
            task: view.task.id,
            action: action.ok_or(ApprovalError::Unknown)?,
            target: find_target(set, ask).map_or_else(|| ask.target.clone(), |target| target.name.clone()),
            operation: ask.operation.as_ref().map(Operation::digest),
        };
        if ask.form.is_none() {
            let approval = desk.book.check(id, &subject, now)?;
            return Approved::of(approval, set).ok_or_else(|| ApprovalError::Unknown.into());
        }
        let approved =
            Approved::of(desk.book.spend(id, &subject, now)?, set).ok_or(ApprovalError::Unknown)?;
        self.parts.audit.note(desk.step(id, ApprovalStep::Used).into_iter().collect());
        state.tasks.tell_approval(view.task.id);
        Ok(approved)
    }
}

/// No credential that an approval buys lives longer.
const LONGEST: Duration = Duration::from_secs(120);
