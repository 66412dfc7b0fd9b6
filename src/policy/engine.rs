//! Holds the policy set in force. Handlers ask it; a reload puts another set in its place in one step.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::permit::{Denied, Permit, PermitRequest, check};
use super::{Action, Decision, EvaluationId, IdentityFacts, PolicySet, Question, WorkloadFacts};

/// Decides by the set in force. Clones share it.
#[derive(Clone, Debug)]
pub struct Engine(Arc<watch::Sender<Arc<PolicySet>>>);

impl Engine {
    /// An engine without a policy set.
    pub fn without_policy() -> Self {
        Self::of(PolicySet::none())
    }

    /// An engine with this set.
    pub fn of(set: PolicySet) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(set))))
    }

    /// Puts another set in force. What was decided before stays decided.
    pub fn replace(&self, set: PolicySet) {
        self.0.send_replace(Arc::new(set));
    }

    /// The set in force. Whoever asks it several questions about one matter takes it once and asks it all of them.
    pub fn in_force(&self) -> Arc<PolicySet> {
        Arc::clone(&self.0.borrow())
    }

    /// Follows the set in force.
    pub fn follow(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.0.subscribe()
    }

    /// Decides one question.
    pub fn decide(&self, question: &Question) -> Decision {
        self.in_force().decide(question, new_evaluation())
    }

    /// Trades a request of the Workload API for a permit: with a policy set, `fetch` decides, and the lifetime is at
    /// most what it allows. `who` is only asked then.
    ///
    /// # Errors
    /// [`NotGiven`] says what was refused. The same request gets the same answer as long as the policy set and the
    /// facts are the same and no permit ends.
    pub fn permit(
        &self,
        request: PermitRequest,
        who: impl FnOnce() -> WorkloadFacts,
        now: SystemTime,
    ) -> Result<Permit, Box<NotGiven>> {
        let mut request = check(request).map_err(|denied| Box::new(NotGiven { denied, decision: None }))?;
        let set = self.in_force();
        if set.is_loaded() {
            let identity = IdentityFacts {
                spiffe_id: request.spiffe_id.clone(),
                kind: request.kind,
                audiences: request.audience.iter().cloned().collect(),
                entry: request.entry.clone(),
            };
            let question = Question::fetch(who(), identity, request.ttl, now);
            let decision = set.decide(&question, new_evaluation());
            if !decision.is_allowed() {
                return Err(Box::new(NotGiven { denied: Denied::Policy, decision: Some(decision) }));
            }
            request.ttl = decision.obligations.max_ttl.map_or(request.ttl, |most| request.ttl.min(most));
        }
        Ok(Permit::of(request))
    }

    /// A permit for the agent's own identity on its listeners: policies are about those whom it serves.
    ///
    /// # Errors
    /// [`Denied`], when the request makes no sense.
    pub fn permit_own(&self, request: PermitRequest) -> Result<Permit, Denied> {
        check(request).map(Permit::of)
    }
}

impl Engine {
    /// A name for one evaluation, for whoever asks a set that he holds.
    pub fn new_evaluation() -> EvaluationId {
        new_evaluation()
    }

    /// Trades a task's request for a permit: policy decides about each action that the credential would be for, all by
    /// one set, and the lifetime is at most what it allows. With `all`, one no is a no; else what is denied is left
    /// out. Without a policy set there is none.
    ///
    /// # Errors
    /// The decisions, when they leave nothing, or not all.
    pub fn permit_for_actions(
        &self,
        request: PermitRequest,
        questions: &[Question],
        all: bool,
    ) -> Result<GrantedActions, Box<RefusedActions>> {
        let set = self.in_force();
        let decided = questions.iter().map(|asked| (asked.action, set.decide(asked, new_evaluation())));
        let (allowed, denied): (Vec<_>, Vec<_>) = decided.partition(|(_, decision)| decision.is_allowed());
        if allowed.is_empty() || all && !denied.is_empty() {
            return Err(Box::new(RefusedActions { denied: Denied::Policy, allowed, refused: denied }));
        }
        let most = allowed.iter().filter_map(|(_, decision)| decision.obligations.max_ttl).min();
        match check(request) {
            Ok(mut request) => {
                request.ttl = most.map_or(request.ttl, |most| request.ttl.min(most));
                Ok(GrantedActions { permit: Permit::of(request), allowed, denied })
            }
            Err(why) => Err(Box::new(RefusedActions { denied: why, allowed, refused: denied })),
        }
    }
}

/// A permit, and the decisions it rests on.
#[derive(Debug)]
pub struct GrantedActions {
    /// Buys one credential.
    pub permit: Permit,
    /// What it may be for; never empty.
    pub allowed: Vec<(Action, Decision)>,
    /// What it may not be for.
    pub denied: Vec<(Action, Decision)>,
}

/// Why a task got no permit for several actions.
#[derive(Debug)]
pub struct RefusedActions {
    /// Which door is shut.
    pub denied: Denied,
    /// What policy would have allowed.
    pub allowed: Vec<(Action, Decision)>,
    /// What it did not.
    pub refused: Vec<(Action, Decision)>,
}

/// Why the Workload API gives something to nobody, or not to this one.
#[derive(Debug)]
pub struct NotGiven {
    /// Which door is shut.
    pub denied: Denied,
    /// What policy said, where it was asked.
    pub decision: Option<Decision>,
}

impl Default for Engine {
    fn default() -> Self {
        Self::without_policy()
    }
}

/// A fresh name. Where there is no randomness the name says nothing, and the decision is what it is.
pub(super) fn new_evaluation() -> EvaluationId {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok();
    EvaluationId::from_random(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::id::{EntryId, SpiffeId};
    use crate::policy::{Kind, Object, Phase, PostureFacts, Reason, TaskFacts, Verdict};

    fn question() -> Question {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let workload = WorkloadFacts {
            spiffe_id: SpiffeId::parse(b"spiffe://example.org/a").unwrap(),
            profile: EntryId::new("a"),
            uid: 1000,
            selectors: ["unix:uid:1000".to_owned()].into(),
            exe_sha256: String::new(),
            node: "n".to_owned(),
            posture: PostureFacts::default(),
            attested_at: now,
            groups: [].into(),
        };
        let task = TaskFacts {
            id: "tsk_1".to_owned(),
            root: "tsk_1".to_owned(),
            depth: 0,
            purpose: String::new(),
            template: None,
            started: now,
            deadline: now + Duration::from_secs(900),
            calls: 0,
            denials: 0,
            children: 0,
            audiences: 0,
        };
        let (object, ttl) = (Object::Target("wiki".to_owned()), Duration::from_secs(300));
        Question::of_task(workload, Action::Read, object, Phase::Issue, task, ttl, now)
    }

    #[test]
    fn a_task_gets_nothing_where_no_policy_is_loaded() {
        let engine = Engine::without_policy();
        let decision = engine.decide(&question());
        assert_eq!((decision.verdict, decision.reason), (Verdict::Deny, Reason::NoPolicy));
        assert_eq!((decision.code(), decision.policy_version), ("policy_denied", None));
        let request = PermitRequest {
            entry: EntryId::new("a"),
            spiffe_id: SpiffeId::parse(b"spiffe://example.org/a").unwrap(),
            kind: Kind::Wit,
            ttl: Duration::from_secs(60),
            audience: Vec::new(),
            allowed_audiences: None,
            dns_names: Vec::new(),
            hint: String::new(),
        };
        let refused = engine.permit_for_actions(request, &[question()], true).unwrap_err();
        assert_eq!((refused.denied, refused.refused[0].1.verdict), (Denied::Policy, Verdict::Deny));
    }

    #[test]
    fn each_evaluation_has_a_name_of_its_own() {
        let engine = Engine::without_policy();
        let (one, two) = (engine.decide(&question()), engine.decide(&question()));
        assert_ne!(one.evaluation_id, two.evaluation_id);
        let text = one.evaluation_id.to_string();
        assert!(text.starts_with("evl_") && text.len() == 36, "{text}");
    }
}
