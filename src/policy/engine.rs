//! Holds the policy set in force. Handlers ask it; a reload puts another set in its place in one step.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::permit::{Denied, Permit, PermitRequest, check};
use super::{
    Action, Decision, EvaluationId, Freezes, IdentityFacts, PolicySet, Question, Reason, WorkloadFacts,
};

/// Decides by the set in force. Clones share it.
#[derive(Clone, Debug)]
pub struct Engine {
    set: Arc<watch::Sender<Arc<PolicySet>>>,
    /// As long as there is a file of that name, everything is frozen.
    flag: Option<Arc<Path>>,
}

impl Engine {
    /// An engine without a policy set.
    pub fn without_policy() -> Self {
        Self::of(PolicySet::none())
    }

    /// An engine with this set.
    pub fn of(set: PolicySet) -> Self {
        Self { set: Arc::new(watch::Sender::new(Arc::new(set))), flag: None }
    }

    /// One that looks for a flag file before it decides anything.
    #[must_use]
    pub fn flagged_by(self, flag: &Path) -> Self {
        Self { flag: Some(flag.into()), ..self }
    }

    /// Puts another set in force; what is frozen stays so. What was decided before stays decided.
    pub fn replace(&self, set: PolicySet) {
        self.set.send_modify(|now| *now = Arc::new(set.with_freezes(now.freezes().clone())));
    }

    /// Changes what is frozen, in one step with everything that is decided from then on.
    pub fn change_freezes<T: Default>(&self, change: impl FnOnce(&mut Freezes) -> T) -> T {
        let mut answer = T::default();
        self.set.send_if_modified(|now| {
            let mut freezes = now.freezes().clone();
            answer = change(&mut freezes);
            let news = freezes != *now.freezes();
            if news {
                *now = Arc::new(PolicySet::clone(now).with_freezes(freezes));
            }
            news
        });
        answer
    }

    /// The set in force. Whoever asks it several questions about one matter takes it once and asks it all of them.
    pub fn in_force(&self) -> Arc<PolicySet> {
        if let Some(flag) = &self.flag {
            let raised = is_raised(flag);
            if self.set.borrow().freezes().is_flagged() != raised {
                self.change_freezes(|freezes| freezes.set_flag(raised));
            }
        }
        Arc::clone(&self.set.borrow())
    }

    /// The policies in force, with other things frozen than are.
    pub fn in_force_with(&self, freezes: Freezes) -> Arc<PolicySet> {
        Arc::new(PolicySet::clone(&self.in_force()).with_freezes(freezes))
    }

    /// Follows the set in force.
    pub fn follow(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.set.subscribe()
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
        if set.is_loaded() || !set.freezes().is_empty() {
            let identity = IdentityFacts {
                spiffe_id: request.spiffe_id.clone(),
                kind: request.kind,
                audiences: request.audience.iter().cloned().collect(),
                entry: request.entry.clone(),
            };
            let question = Question::fetch(who(), identity, request.ttl, now);
            let decision = set.decide(&question, new_evaluation());
            if !decision.is_allowed() && (set.is_loaded() || decision.reason == Reason::Frozen) {
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
        let decided = questions.iter().map(|asked| {
            let decision = set.decide(asked, new_evaluation());
            (asked.action, decision.with_what_is_logged(&asked.circumstances))
        });
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

/// Whether there is a file of that name, whatever it is. What cannot be looked at counts as there.
fn is_raised(flag: &Path) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::symlink_metadata(flag) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), NotFound | NotADirectory),
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
    use crate::policy::{Kind, Object, Phase, PostureFacts, TaskFacts, Verdict};

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

    /// Reloads and freezes in any order: whoever asks sees one set whole, and what is frozen outlives every reload.
    #[cfg(feature = "cedar")]
    #[test]
    fn no_history_of_reloads_and_freezes_is_ever_seen_half_applied() {
        use crate::policy::{Freeze, Frozen};
        let sets: Vec<PolicySet> = (0..4u8)
            .map(|n| {
                let name = format!("set-{n}");
                let policy = format!("@id(\"{name}\")\npermit(principal, action, resource);");
                let catalogue = format!(
                    "[[targets]]\nname = \"wiki\"\naudience = \"urn:{name}\"\ndata_class = \"c\"\nowner = \"o\"\nbinding = \"none\"\n"
                );
                let files =
                    [("a.cedar".to_owned(), policy.into_bytes()), ("c.toml".to_owned(), catalogue.into_bytes())];
                PolicySet::parse(&files, None).unwrap_or_else(|found| panic!("{found}"))
            })
            .collect();
        let engine = Engine::without_policy();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(std::sync::atomic::Ordering::Acquire) {
                        let set = engine.in_force();
                        let decision = set.decide(&question(), new_evaluation());
                        assert_eq!(decision.policy_version, set.version());
                        if decision.is_allowed() {
                            let audience = &set.catalogue().target("wiki").unwrap().audience;
                            assert_eq!(*audience, format!("urn:{}", decision.policy_ids[0]), "of one set");
                        }
                        assert_eq!(set.freezes().stops(&question()), decision.reason == Reason::Frozen);
                    }
                });
            }
            for round in 0..2_000usize {
                engine.replace(sets[round % sets.len()].clone());
                let frozen = round % 3 == 0;
                engine.change_freezes(|freezes| {
                    let what = Frozen::Target("wiki".to_owned());
                    if frozen {
                        let at = UNIX_EPOCH;
                        freezes.freeze(
                            what,
                            Freeze {
                                by: String::new(),
                                reason: String::new(),
                                at,
                                revoke: false,
                                audiences: [].into(),
                            },
                        );
                    } else {
                        freezes.thaw(&what, 0, UNIX_EPOCH);
                    }
                });
                engine.replace(sets[(round + 1) % sets.len()].clone());
                let reason = engine.decide(&question()).reason;
                assert_eq!(reason == Reason::Frozen, frozen, "round {round}: {reason:?}");
            }
            over.store(true, std::sync::atomic::Ordering::Release);
        });
    }
}
