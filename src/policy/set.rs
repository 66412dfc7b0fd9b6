//! One policy set: policies and catalogue, read together, never changed afterwards.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};

#[cfg(feature = "cedar")]
use super::cedar::Rules;
use super::explanation::Explanation;
use super::source::is_policies;
use super::{
    Catalogue, Decision, EvaluationId, Freezes, IdentityFacts, Kind, Obligations, PolicyVersion, Question,
    Reason, Verdict, WorkloadFacts, parse_catalogue,
};
use crate::diag::{Problem, Problems};
use crate::id::TrustDomain;

/// What decides. Pure: the same question gets the same answer. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    version: Option<PolicyVersion>,
    catalogue: Catalogue,
    freezes: Arc<Freezes>,
    #[cfg(feature = "cedar")]
    rules: Option<Arc<Rules>>,
}

/// A decision without its name.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    pub(super) policy_ids: Vec<String>,
    pub(super) reason: Reason,
    pub(super) obligations: Obligations,
}

impl Finding {
    pub(super) fn deny(reason: Reason) -> Self {
        Self { verdict: Verdict::Deny, policy_ids: Vec::new(), reason, obligations: Obligations::default() }
    }
}

/// In which forms the Workload API may give an identity.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fetchable {
    /// As an X.509-SVID.
    pub x509: bool,
    /// As a JWT-SVID, for some audience or other: each token is decided by itself.
    pub jwt: bool,
    /// As a WIT-SVID.
    pub wit: bool,
}

impl Fetchable {
    /// In every form: what a matched entry is worth without a policy set.
    pub const ALL: Self = Self { x509: true, jwt: true, wit: true };

    /// In none.
    pub const NONE: Self = Self { x509: false, jwt: false, wit: false };

    /// Whether it may be given at all.
    pub fn any(self) -> bool {
        self.x509 || self.jwt || self.wit
    }
}

impl PolicySet {
    /// No set: everything is denied but what a matched entry gives by itself.
    pub fn none() -> Self {
        Self::default()
    }

    /// Makes a set of the contents of files, each with the name to show: `*.cedar` are policies, the others are parts
    /// of the catalogue. All or nothing. `own`: see [`parse_catalogue`].
    ///
    /// # Errors
    /// Every mistake of every file.
    pub fn parse(files: &[(String, Vec<u8>)], own: Option<&TrustDomain>) -> Result<Self, Problems> {
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let (policies, parts): (Vec<_>, Vec<_>) =
            files.iter().copied().partition(|(name, _)| is_policies(name.as_bytes()));
        let mut problems = Problems::new();
        let catalogue = match parse_catalogue(parts, own) {
            Ok(catalogue) => catalogue,
            Err(found) => {
                problems.append(found);
                Catalogue::default()
            }
        };
        if policies.is_empty() {
            let message = "there is no file of policies (`*.cedar`): write one, or remove `policy.dir` from the configuration";
            problems.push(Problem::whole_file("policies", message));
        }
        let version = Some(version(&files));
        Self::of(version, catalogue, policies, problems)
    }

    #[cfg(feature = "cedar")]
    fn of(
        version: Option<PolicyVersion>,
        catalogue: Catalogue,
        policies: Vec<(&str, &[u8])>,
        mut problems: Problems,
    ) -> Result<Self, Problems> {
        let rules = Rules::load(policies, &mut problems).map(Arc::new);
        problems.into_result(rules.map(|rules| Self {
            version,
            catalogue,
            freezes: Arc::default(),
            rules: Some(rules),
        }))
    }

    #[cfg(not(feature = "cedar"))]
    fn of(
        _version: Option<PolicyVersion>,
        _catalogue: Catalogue,
        _policies: Vec<(&str, &[u8])>,
        mut problems: Problems,
    ) -> Result<Self, Problems> {
        let message =
            "cannot be used: this program was built without its policy engine (the cargo feature `cedar`)";
        problems.push(Problem::whole_file("policies", message));
        problems.into_result(None)
    }

    /// Whether this is a set at all.
    pub fn is_loaded(&self) -> bool {
        self.version.is_some()
    }

    /// What tells it from another; `None` when none is loaded.
    pub fn version(&self) -> Option<PolicyVersion> {
        self.version
    }

    /// What it decides about.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// What is frozen, whatever policies say.
    pub fn freezes(&self) -> &Freezes {
        &self.freezes
    }

    /// The same policies with other things frozen.
    pub(super) fn with_freezes(self, mut freezes: Freezes) -> Self {
        freezes.learn(&self.catalogue);
        Self { freezes: Arc::new(freezes), ..self }
    }

    /// Whether what was given for such a question may stay: a freeze alone takes nothing back.
    pub fn gives(&self, question: &Question) -> bool {
        let permitted = !self.is_loaded() || self.ask_rules(question).verdict == Verdict::Allow;
        permitted && !self.freezes.revokes(question)
    }

    /// How many policies there are.
    pub fn policies(&self) -> usize {
        #[cfg(feature = "cedar")]
        return self.rules.as_ref().map_or(0, |rules| rules.len());
        #[cfg(not(feature = "cedar"))]
        0
    }

    /// Decides.
    pub fn decide(&self, question: &Question, id: EvaluationId) -> Decision {
        let Finding { verdict, policy_ids, reason, obligations } = self.find(question);
        let (policy_version, action) = (self.version, question.action);
        Decision { verdict, evaluation_id: id, policy_ids, policy_version, reason, obligations, action }
    }

    /// Decides, and says for operators what the policies that could have applied made of it.
    pub fn explain(&self, question: &Question, id: EvaluationId) -> Explanation {
        let decision = self.decide(question, id);
        if decision.reason == Reason::Frozen {
            let changes =
                vec!["it must be thawed: `mayfly status` says what is frozen and by whom".to_owned()];
            return Explanation { decision, considered: Vec::new(), changes };
        }
        #[cfg(feature = "cedar")]
        if let Some(rules) = &self.rules {
            return rules.explain(&self.catalogue, question, decision);
        }
        Explanation::without_policies(decision)
    }

    /// In which forms the Workload API may give this identity now, with those lifetimes.
    pub fn fetchable(
        &self,
        workload: &WorkloadFacts,
        identity: &IdentityFacts,
        ttl: impl Fn(Kind) -> Duration,
        now: SystemTime,
    ) -> Fetchable {
        let question = |kind| {
            let identity = IdentityFacts { kind, ..identity.clone() };
            Question::fetch(workload.clone(), identity, ttl(kind), now)
        };
        if !self.freezes.is_empty() && self.freezes.revokes(&question(Kind::X509)) {
            return Fetchable::NONE;
        }
        if !self.is_loaded() {
            return Fetchable::ALL;
        }
        let allowed = |kind| self.ask_rules(&question(kind)).verdict == Verdict::Allow;
        Fetchable {
            x509: allowed(Kind::X509),
            jwt: self.may_give_tokens(&question(Kind::Jwt)),
            wit: allowed(Kind::Wit),
        }
    }

    /// The next moment at which a permit ends by its date.
    pub fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        #[cfg(feature = "cedar")]
        return self.rules.as_ref().and_then(|rules| rules.next_end(now));
        #[cfg(not(feature = "cedar"))]
        {
            let _ = now;
            None
        }
    }

    /// Whether some policy speaks of a process's ancestors, so that they must be looked up.
    pub fn is_about_ancestors(&self) -> bool {
        #[cfg(feature = "cedar")]
        return self.rules.as_ref().is_some_and(|rules| rules.is_about_ancestors());
        #[cfg(not(feature = "cedar"))]
        false
    }

    /// Whether some policy speaks of what only attestors that may be slow can tell, so that they must be waited for.
    pub fn is_about_selectors(&self) -> bool {
        #[cfg(feature = "cedar")]
        return self.rules.as_ref().is_some_and(|rules| rules.is_about_selectors());
        #[cfg(not(feature = "cedar"))]
        false
    }

    pub(super) fn lint_policies(&self, now: SystemTime) -> Vec<super::Lint> {
        #[cfg(feature = "cedar")]
        if let Some(rules) = &self.rules {
            return rules.lint(&self.catalogue, now);
        }
        let _ = now;
        Vec::new()
    }

    fn find(&self, question: &Question) -> Finding {
        if self.freezes.stops(question) { Finding::deny(Reason::Frozen) } else { self.ask_rules(question) }
    }

    fn ask_rules(&self, question: &Question) -> Finding {
        #[cfg(feature = "cedar")]
        if let Some(rules) = &self.rules {
            return rules.decide(&self.catalogue, question);
        }
        let _ = question;
        Finding::deny(Reason::NoPolicy)
    }

    fn may_give_tokens(&self, question: &Question) -> bool {
        #[cfg(feature = "cedar")]
        if let Some(rules) = &self.rules {
            return rules.may_give_tokens(&self.catalogue, question);
        }
        let _ = question;
        false
    }
}

/// Of names without their directories and of contents, each with its length before it.
fn version(files: &[(&str, &[u8])]) -> PolicyVersion {
    let base = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let mut files: Vec<(String, &[u8])> = files.iter().map(|(name, bytes)| (base(name), *bytes)).collect();
    files.sort();
    let mut context = Context::new(&SHA256);
    for part in files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes]) {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    PolicyVersion::from_bytes(digest)
}
