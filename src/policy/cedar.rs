//! Cedar: policies in its language, held to our schema, asked by our questions. No type of Cedar leaves this module.
//!
//! Where Cedar passes over a policy that fails to evaluate, we deny: a forbid that fails is no reason to allow.

mod approvable;
mod asking;
mod explain;
mod index;
mod lint;
#[cfg(test)]
mod load_tests;
mod moments;
mod notes;
mod parse;
mod parties;
#[cfg(test)]
mod properties;
mod statements;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use cedar_policy::{Authorizer, Decision as Answer, Effect, PolicySet as Bucket, Schema};

use self::asking::{Asked, Types};
use self::index::Index;
use self::notes::Notes;
use self::parse::Rule;
use super::{
    Action, ApprovalFacts, ApprovalNeeded, Binding, Catalogue, Finding, Kind, Object, Obligations, Question,
    Reason, SCHEMA, UserFacts, Verdict,
};
use crate::diag::{Problem, Problems};

/// Policies, ready to be asked.
#[derive(Debug)]
pub(super) struct Rules {
    types: Types,
    authorizer: Authorizer,
    index: Index,
    by_id: HashMap<String, Rule>,
    /// What Cedar finds odd and lets pass.
    warnings: Vec<Problem>,
}

/// Which policies are satisfied, and which could not be evaluated.
#[derive(Debug, Default)]
struct Outcome {
    permits: BTreeSet<String>,
    forbids: BTreeSet<String>,
    failed: BTreeSet<String>,
}

impl Rules {
    /// Reads and checks files of policies, each with the name to show. Everything that is wrong goes to `problems`;
    /// what comes back then is not to be used.
    pub(super) fn load<'a>(
        files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let own_mistake =
            |what: String| Problem::whole_file("(built in)", format!("{what}: a mistake of Mayfly's"));
        let schema = match Schema::from_cedarschema_str(SCHEMA) {
            Ok((schema, _warnings)) => schema,
            Err(error) => {
                problems.push(own_mistake(format!("the schema is wrong: {error}")));
                return None;
            }
        };
        let Some(types) = Types::new() else {
            problems.push(own_mistake("the names of types are wrong".to_owned()));
            return None;
        };
        let parsed = parse::parse(files, problems);
        let warnings = parse::validate(&parsed, &schema, problems);
        let rules = parse::rules(parsed);
        let index = match Index::build(&rules) {
            Ok(index) => index,
            Err(id) => {
                problems.push(own_mistake(format!("the policy `{id}` fits no index")));
                return None;
            }
        };
        let by_id = rules.into_iter().map(|rule| (rule.notes.id.clone(), rule)).collect();
        Some(Self { types, authorizer: Authorizer::new(), index, by_id, warnings })
    }

    /// How many policies there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Decides by those policies that could apply.
    pub(super) fn decide(&self, catalogue: &Catalogue, question: &Question) -> Finding {
        let mut finding = self.settle(catalogue, question);
        if finding.reason == Reason::Forbidden
            && let Some((needed, granted)) = self.approvable(catalogue, question, &finding)
        {
            finding.verdict = Verdict::Requestable;
            finding.reason = Reason::ApprovalRequired;
            finding.obligations = Obligations { approval: Some(needed), ..granted };
        }
        finding
    }

    /// Yes or no, as things are.
    fn settle(&self, catalogue: &Catalogue, question: &Question) -> Finding {
        match self.types.ask(question, catalogue) {
            Ok(asked) => {
                let buckets =
                    self.index.buckets(question.action, &asked.parties.principals, &asked.parties.resources);
                let outcome = self.evaluate(&asked, buckets);
                self.judge(catalogue, question, outcome)
            }
            Err(reason) => Finding::deny(reason),
        }
    }

    fn evaluate<'a>(&self, asked: &Asked, buckets: impl Iterator<Item = &'a Bucket>) -> Outcome {
        let mut outcome = Outcome::default();
        for bucket in buckets {
            let response = self.authorizer.is_authorized(&asked.request, bucket, &asked.entities);
            let diagnostics = response.diagnostics();
            // The satisfied forbids of a bucket if there are any, else its satisfied permits.
            let satisfied = match response.decision() {
                Answer::Allow => &mut outcome.permits,
                Answer::Deny => &mut outcome.forbids,
            };
            satisfied.extend(diagnostics.reason().map(ToString::to_string));
            outcome.failed.extend(diagnostics.errors().map(|error| {
                let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
                error.policy_id().to_string()
            }));
        }
        outcome
    }

    fn judge(&self, catalogue: &Catalogue, question: &Question, outcome: Outcome) -> Finding {
        let Outcome { permits, forbids, failed } = outcome;
        if !failed.is_empty() {
            return Finding {
                policy_ids: failed.into_iter().collect(),
                ..Finding::deny(Reason::EvaluationError)
            };
        }
        if !forbids.is_empty() {
            let log = self.notes(&forbids).flat_map(|notes| &notes.log).copied().collect();
            let obligations = Obligations { log, ..Obligations::default() };
            let policy_ids = forbids.into_iter().collect();
            return Finding { policy_ids, obligations, ..Finding::deny(Reason::Forbidden) };
        }
        let (live, ended): (BTreeSet<String>, BTreeSet<String>) = permits
            .into_iter()
            .partition(|id| !self.by_id.get(id).is_some_and(|rule| rule.has_ended(question.now)));
        if live.is_empty() {
            let reason = if ended.is_empty() { Reason::NoPermit } else { Reason::Expired };
            return Finding { policy_ids: ended.into_iter().collect(), ..Finding::deny(reason) };
        }
        match self.obligations(catalogue, question, &live) {
            Some(obligations) => Finding {
                verdict: Verdict::Allow,
                policy_ids: live.into_iter().collect(),
                reason: Reason::Allowed,
                obligations,
            },
            None => Finding { policy_ids: live.into_iter().collect(), ..Finding::deny(Reason::Obligations) },
        }
    }

    fn notes<'a>(&'a self, ids: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Notes> {
        ids.iter().filter_map(|id| self.by_id.get(id)).map(|rule| &rule.notes)
    }

    /// What the permits and the target ask for together; `None` when that cannot be kept.
    fn obligations(
        &self,
        catalogue: &Catalogue,
        question: &Question,
        permits: &BTreeSet<String>,
    ) -> Option<Obligations> {
        let mut obligations = Obligations::default();
        if let Object::Target(name) = &question.object {
            obligations.binding = catalogue.target(name).map(|target| target.binding);
        }
        for notes in self.notes(permits) {
            obligations.max_ttl = obligations.max_ttl.into_iter().chain(notes.max_ttl).min();
            obligations.log.extend(&notes.log);
            obligations.binding = both(obligations.binding, notes.binding)?;
        }
        can_be_bound(question, obligations.binding).then_some(obligations)
    }

    /// Whether an approval would make the denial a yes, whose, and under which obligations.
    fn approvable(
        &self,
        catalogue: &Catalogue,
        question: &Question,
        denied: &Finding,
    ) -> Option<(ApprovalNeeded, Obligations)> {
        if !question.action.is_on_target() && !matches!(question.action, Action::Begin | Action::Delegate) {
            return None;
        }
        let ids: BTreeSet<String> = denied.policy_ids.iter().cloned().collect();
        let groups: Option<BTreeSet<String>> = self.notes(&ids).map(|notes| notes.approval.clone()).collect();
        let groups = groups?;
        approvers(catalogue, &groups).find_map(|by| {
            let with = |quorum| self.settle(catalogue, &approved(question, &by, quorum));
            let enough = with(MAX_QUORUM);
            if enough.verdict != Verdict::Allow {
                return None;
            }
            let quorum = (1..MAX_QUORUM).find(|quorum| with(*quorum).verdict == Verdict::Allow);
            let quorum = quorum.unwrap_or(MAX_QUORUM);
            Some((ApprovalNeeded { groups: groups.clone(), quorum }, enough.obligations))
        })
    }

    /// Whether a JWT-SVID could be given for some audience or other. Says yes where it cannot tell: each token is
    /// decided by itself.
    pub(super) fn may_give_tokens(&self, catalogue: &Catalogue, question: &Question) -> bool {
        let Ok(asked) = self.types.ask(question, catalogue) else { return false };
        let buckets =
            || self.index.buckets(question.action, &asked.parties.principals, &asked.parties.resources);
        let outcome = self.evaluate(&asked, buckets());
        let unconditional =
            |id: &String| self.by_id.get(id).is_some_and(|rule| !rule.policy.has_non_scope_constraint());
        let permits = |rule: &Rule| rule.notes.effect == Effect::Permit && !rule.has_ended(question.now);
        let permitted = buckets().flat_map(Bucket::policies).any(|policy| {
            let id: &str = policy.id().as_ref();
            self.by_id.get(id).is_some_and(permits)
        });
        permitted && !outcome.forbids.iter().any(unconditional)
    }

    /// The next moment after `now` at which a permit ends.
    pub(super) fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        self.by_id.values().filter_map(|rule| rule.notes.until).filter(|until| *until > now).min()
    }

    /// Whether some policy speaks of ancestors, so that they must be looked up.
    pub(super) fn is_about_ancestors(&self) -> bool {
        self.by_id.values().any(|rule| rule.text.contains("ancestor"))
    }
}

impl Rules {
    /// Whether some policy speaks of selectors or of the program's hash, so that every attestor must be waited for.
    pub(super) fn is_about_selectors(&self) -> bool {
        let says = |rule: &Rule| rule.text.contains("selectors") || rule.text.contains("exe_sha256");
        self.by_id.values().any(says)
    }
}

impl Rule {
    fn has_ended(&self, now: SystemTime) -> bool {
        self.notes.until.is_some_and(|until| now >= until)
    }
}

/// One binding that satisfies both; `None` when there is none.
#[expect(clippy::option_option, reason = "no binding that fits both is another thing than none asked for")]
fn both(one: Option<Binding>, other: Option<Binding>) -> Option<Option<Binding>> {
    match (one, other) {
        (None | Some(Binding::Bearer), Some(stricter)) => Some(Some(stricter)),
        (one, None) => Some(one),
        (Some(one), Some(other)) => (one == other || other == Binding::Bearer).then_some(Some(one)),
    }
}

/// What the Workload API gives is bound by its form: an X.509-SVID by TLS, a WIT-SVID by proofs, a JWT-SVID not at all.
fn can_be_bound(question: &Question, binding: Option<Binding>) -> bool {
    let Object::Identity(identity) = &question.object else { return true };
    match (identity.kind, binding) {
        (_, None | Some(Binding::Bearer)) => true,
        (Kind::X509, Some(wanted)) => wanted == Binding::Mtls,
        (Kind::Wit, Some(wanted)) => wanted == Binding::Dpop,
        (Kind::Jwt, Some(_)) => false,
    }
}

/// Somebody in all those groups of whom nothing else is known, then everybody the catalogue knows there.
fn approvers<'a>(
    catalogue: &'a Catalogue,
    groups: &'a BTreeSet<String>,
) -> impl Iterator<Item = UserFacts> + use<'a> {
    let anybody = UserFacts { name: "(any approver)".to_owned(), groups: groups.clone() };
    let known = catalogue.people().filter(|person| groups.is_subset(&person.groups));
    let known = known.map(|person| UserFacts { name: person.name.clone(), groups: person.groups.clone() });
    std::iter::once(anybody).chain(known.take(MAX_APPROVERS))
}

/// The question as it would be with an approval given just now.
fn approved(question: &Question, by: &UserFacts, quorum: u32) -> Question {
    let mut question = question.clone();
    question.circumstances.approval = Some(ApprovalFacts {
        id: String::new(),
        by: by.clone(),
        at: question.now,
        until: question.now.checked_add(APPROVAL).unwrap_or(question.now),
        quorum,
    });
    question
}

/// Nobody is asked to find more people.
const MAX_QUORUM: u32 = 5;
/// How many of the catalogue's people are tried as approvers.
const MAX_APPROVERS: usize = 16;
/// How long an approval is good for at most.
const APPROVAL: Duration = Duration::from_secs(300);
