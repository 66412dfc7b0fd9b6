//! What is answered, with what follows from it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::id::hex_text;
use crate::policy::{Action, Circumstances};

/// An answer. The operator may see all of it, the caller [`Decision::code`] and the evaluation id.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub struct Decision {
    /// Yes, no, or not without somebody's approval.
    pub verdict: Verdict,
    /// Names this evaluation, in the answer and in the audit log.
    pub evaluation_id: EvaluationId,
    /// The policies that decided, sorted: the permits of a yes, the forbids of a no. Empty when nothing permits.
    pub policy_ids: Vec<String>,
    /// The set that was asked; `None` when none is loaded.
    pub policy_version: Option<PolicyVersion>,
    /// Why.
    pub reason: Reason,
    /// What must be kept to.
    pub obligations: Obligations,
    /// What was asked about.
    pub action: Action,
}

impl Decision {
    /// Whether it is a plain yes.
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }

    /// The same, as far as the record can hold what the policies that decided want in it: a yes, or a no that people
    /// could lift, is a plain no where the question does not say what the operation carries.
    pub fn with_what_is_logged(self, circumstances: &Circumstances) -> Self {
        let misses = self.obligations.log.contains(&Log::BodyHash) && circumstances.body_sha256.is_none();
        if self.verdict == Verdict::Deny || !misses {
            return self;
        }
        let obligations = Obligations { approval: None, ..self.obligations };
        Self { verdict: Verdict::Deny, reason: Reason::BodyHash, obligations, ..self }
    }

    /// What the caller may know of the reason.
    pub fn code(&self) -> &'static str {
        match self.verdict {
            Verdict::Allow => "allowed",
            Verdict::Requestable => "approval_required",
            Verdict::Deny if matches!(self.reason, Reason::Frozen | Reason::BodyHash) => self.reason.as_str(),
            Verdict::Deny => "policy_denied",
        }
    }
}

/// Yes or no.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// Yes, under the obligations.
    Allow,
    /// No.
    Deny,
    /// No, but the same question with an approval by one of [`Obligations::approval`] would be allowed as things are.
    Requestable,
}

impl Verdict {
    /// `allow`, `deny`, `requestable`: the last part of the audit event's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Requestable => "requestable",
        }
    }
}

/// Why a decision is what it is, for operators and the audit log.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// A permit applies and no forbid does.
    Allowed,
    /// No policy set is loaded.
    NoPolicy,
    /// No permit applies.
    NoPermit,
    /// The only permits that apply have ended.
    Expired,
    /// A forbid applies.
    Forbidden,
    /// Forbids apply that an approval would lift.
    ApprovalRequired,
    /// The catalogue has no such target.
    UnknownTarget,
    /// The catalogue has no such template.
    UnknownTemplate,
    /// The catalogue does not let this agent begin tasks by that template.
    TemplateNotAllowed,
    /// A policy could not be evaluated.
    EvaluationError,
    /// Obligations cannot be kept together, or not by what was asked for.
    Obligations,
    /// What is to be carried must be on record, and was not said.
    BodyHash,
    /// An operator has frozen it.
    Frozen,
    /// The question does not fit itself: our mistake.
    Malformed,
}

impl Reason {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::NoPolicy => "no_policy",
            Self::NoPermit => "no_permit",
            Self::Expired => "permit_expired",
            Self::Forbidden => "forbidden",
            Self::ApprovalRequired => "approval_required",
            Self::UnknownTarget => "unknown_target",
            Self::UnknownTemplate => "unknown_template",
            Self::TemplateNotAllowed => "template_not_allowed",
            Self::EvaluationError => "evaluation_error",
            Self::Obligations => "conflicting_obligations",
            Self::BodyHash => "body_hash_required",
            Self::Frozen => "frozen",
            Self::Malformed => "malformed_question",
        }
    }
}

/// What a decision is bound to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Obligations {
    /// No credential lives longer, no task that begins, is handed on or renewed: the least of all permits that decided.
    pub max_ttl: Option<Duration>,
    /// Who would have to approve; only with [`Verdict::Requestable`].
    pub approval: Option<ApprovalNeeded>,
    /// How a credential must be bound to its holder's key. `None` where nothing asks for it, which is never so for a
    /// target: a target that takes bearer tokens says so ([`Binding::Bearer`]).
    pub binding: Option<Binding>,
    /// What the record must hold besides the usual.
    pub log: BTreeSet<Log>,
}

impl Obligations {
    /// As long as that, and no longer than policy allows.
    pub fn shorten(&self, length: Duration) -> Duration {
        self.max_ttl.map_or(length, |most| length.min(most))
    }
}

/// Whose approval would lift a denial.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApprovalNeeded {
    /// An approver must be in each of these groups.
    pub groups: BTreeSet<String>,
    /// So many people.
    pub quorum: u32,
}

/// How a credential is bound to its holder. Order: the weakest first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Binding {
    /// Whoever has it may use it. A weakness, to be recorded.
    Bearer,
    /// To the key of a proof that goes with each request (DPoP, WPT).
    Dpop,
    /// To the key of the TLS client certificate.
    Mtls,
}

impl Binding {
    /// The word for it: `none`, `dpop`, `mtls`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "none",
            Self::Dpop => "dpop",
            Self::Mtls => "mtls",
        }
    }
}

/// What the record must hold besides the usual.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Log {
    /// The SHA-256 of the request's body, of the tool call's arguments, or of the statement. Nothing is issued without.
    BodyHash,
}

impl Log {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BodyHash => "body-hash",
        }
    }
}

/// SHA-256 over the names and bytes of all files of a set.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PolicyVersion([u8; 32]);

impl PolicyVersion {
    /// From a computed digest.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_text(&self.0))
    }
}

impl fmt::Debug for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyVersion({self})")
    }
}

/// Names one evaluation: `evl_` and 32 hex digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EvaluationId([u8; 16]);

impl EvaluationId {
    /// From random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for EvaluationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{EVALUATION}{}", hex_text(&self.0))
    }
}

impl fmt::Debug for EvaluationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EvaluationId({self})")
    }
}

const EVALUATION: &str = "evl_";
