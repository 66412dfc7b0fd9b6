//! Access tokens of tasks (RFC 9068, `typ: at+jwt`): for one audience, with what is granted, for whom, by whom and in
//! which task. Signed by the keys of JWT-SVIDs, so that one JWK set verifies both; told apart by `typ` alone, which is
//! why each validator takes its own and no other (threats H04).

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::compact::{Parts, text, time};
use super::minted::{Lease, Minted, Token};
use super::{IssueError, not_after};
use crate::authority::{AuthorityError, BACKDATE, JwsAlgorithm, JwsAuthority, JwsUse, JwtBundle};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::{ApprovalId, LeaseId, SpiffeId, TaskId, hex_text};
use crate::json;
use crate::ledger::{self, StatusIndex};
use crate::policy::{self, Permit};

/// The `typ` of the header.
pub const TYPE: &str = "at+jwt";
/// The claim that says which task it is.
pub const TASK_CLAIM: &str = "urn:mayfly:task";

/// What a token says besides its grant.
pub struct Terms<'a> {
    /// The `iss` claim.
    pub issuer: &'a str,
    /// The user in whose name it is used, as an issuer proved him; `None`: the agent works for itself.
    pub user: Option<Subject<'a>>,
    /// Identities from the root of the task's tree to the one that will use the token. Never empty.
    pub chain: &'a [SpiffeId],
    /// What it is for, each an `authorization_details` entry.
    pub details: Vec<Value>,
    /// The actions of all details, for resource servers that know scopes only.
    pub scope: String,
    /// What its user must prove to have.
    pub binding: Option<Binding>,
    /// The task.
    pub task: TaskTerms,
    /// Longest token, in bytes.
    pub longest: usize,
    /// Gives a token that ends then (Unix seconds) its place in a status list, and the list's URI.
    pub status: Option<&'a dyn Fn(u64) -> Option<(StatusIndex, String)>>,
}

/// A user as an issuer calls him.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The issuer.
    pub iss: &'a str,
    /// The name, which means nothing without the issuer.
    pub sub: &'a str,
}

impl Subject<'_> {
    /// RFC 9493 §3.2.3: two issuers may call two people the same.
    fn claim(self) -> Value {
        json!({ "format": "iss_sub", "iss": self.iss, "sub": self.sub })
    }
}

impl fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("task", &self.task).finish_non_exhaustive()
    }
}

/// The task of a token.
#[derive(Clone, Debug)]
pub struct TaskTerms {
    /// Its name.
    pub id: TaskId,
    /// The top of its tree: the `txn` claim.
    pub root: TaskId,
    /// Right above it.
    pub parent: Option<TaskId>,
    /// 0 for a root.
    pub depth: u32,
    /// By which template.
    pub template: Option<String>,
    /// This run of the agent.
    pub instance: String,
    /// What people allowed. With that it is good for one use: whoever introspects it first is told that it is active,
    /// and nobody after him.
    pub approval: Option<ApprovalTerms>,
}

/// The approval that a token was bought with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ApprovalTerms {
    /// Its name.
    pub id: ApprovalId,
    /// SHA-256 of the operation that was approved, in canonical form, if it was named.
    pub operation: Option<[u8; 32]>,
}

impl TaskTerms {
    fn claim(&self) -> TaskClaim<'_> {
        TaskClaim {
            id: self.id.to_string(),
            parent: self.parent.map(|parent| parent.to_string()),
            depth: self.depth,
            template: self.template.as_deref(),
            instance: &self.instance,
            max_calls: self.approval.map(|_| 1),
            approval: self.approval.map(|approval| approval.id.to_string()),
            operation_sha256: self.approval.and_then(|approval| Some(hex_text(&approval.operation?))),
        }
    }
}

/// What a token is bound to (RFC 7800 `cnf`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Binding {
    /// RFC 7638 thumbprint of a key (RFC 9449).
    Jkt(String),
    /// SHA-256 of a certificate (RFC 8705).
    Certificate([u8; 32]),
}

/// Signs a token for the one audience of the permit. What comes out is shut.
///
/// # Errors
/// [`IssueError`]; the permit is spent either way.
pub fn mint(
    permit: Permit,
    authority: &JwsAuthority,
    lease: LeaseId,
    terms: &Terms<'_>,
    now: SystemTime,
) -> Result<MintedAccess, IssueError> {
    let grant = permit.spend();
    let [audience] = grant.audience.as_slice() else { return Err(IssueError::WrongKind) };
    if grant.kind != policy::Kind::Jwt || authority.usage() != JwsUse::JwtSvid {
        return Err(IssueError::WrongKind);
    }
    let id = &grant.spiffe_id;
    if id.trust_domain() != authority.trust_domain() || id.path().is_empty() || terms.chain.last() != Some(id)
    {
        return Err(AuthorityError::ForeignIdentity.into());
    }
    let not_after = not_after(now, grant.ttl, (authority.not_before(), authority.not_after()))?;
    let listed = terms.status.and_then(|status| status(unix_seconds(not_after)));
    // Only this is set back, for clocks that go slow: from `iat` to `exp` is what was allowed.
    let begins = unix_seconds(now.checked_sub(BACKDATE).unwrap_or(now));
    let root = terms.chain.first().unwrap_or(id);
    let claims = Claims {
        iss: terms.issuer,
        aud: audience,
        sub: terms.user.map_or(root.as_str(), |user| user.sub),
        sub_id: terms.user.map(Subject::claim),
        sub_profile: if terms.user.is_some() { "user" } else { "ai_agent" },
        client_id: id.as_str(),
        jti: lease.to_string(),
        iat: unix_seconds(now),
        nbf: begins,
        exp: unix_seconds(not_after),
        scope: &terms.scope,
        authorization_details: &terms.details,
        act: actors(terms.chain, terms.user.is_none()),
        cnf: terms.binding.as_ref().map(Binding::claim),
        txn: terms.task.root.to_string(),
        task: terms.task.claim(),
        status: listed
            .as_ref()
            .map(|(place, uri)| json!({ "status_list": { "idx": place.index, "uri": uri } })),
    };
    let token = authority.sign_as(TYPE, &claims)?;
    if token.len() > terms.longest {
        return Err(IssueError::TooLong);
    }
    let shut = Lease {
        id: lease,
        kind: ledger::Kind::Access,
        issuer: authority.kid().to_owned(),
        spiffe_id: id.to_string(),
        entry: grant.entry,
        audience: vec![audience.clone()],
        issued_at: now,
        not_after,
        status: listed.map(|(place, _)| place),
        task: Some(terms.task.id),
    };
    let access = AccessToken {
        id: lease,
        audience: audience.clone(),
        spiffe_id: grant.spiffe_id,
        token,
        issued_at: from_unix_seconds(unix_seconds(now)),
        not_after,
    };
    Ok(Minted::new(access, shut))
}

/// The chain of actors (RFC 8693 §4.1): outermost is whoever uses the token, inside are those who handed the work on.
/// Nobody is his own actor: a chain of one identity that is also the subject has none.
fn actors(chain: &[SpiffeId], root_is_subject: bool) -> Option<Value> {
    let acting = if root_is_subject { chain.get(1..)? } else { chain };
    if root_is_subject && chain.first() == chain.last() {
        return None;
    }
    acting.iter().fold(None, |inner, id| {
        let mut actor = json!({ "sub": id.as_str(), "sub_profile": "ai_agent" });
        if let (Some(inner), Some(members)) = (inner, actor.as_object_mut()) {
            members.insert("act".to_owned(), inner);
        }
        Some(actor)
    })
}

impl Binding {
    fn claim(&self) -> Value {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        match self {
            Self::Jkt(thumbprint) => json!({ "jkt": thumbprint }),
            Self::Certificate(sha256) => json!({ "x5t#S256": URL_SAFE_NO_PAD.encode(sha256) }),
        }
    }
}

/// In the order they are written.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub_id: Option<Value>,
    sub_profile: &'a str,
    client_id: &'a str,
    jti: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    scope: &'a str,
    authorization_details: &'a [Value],
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cnf: Option<Value>,
    txn: String,
    #[serde(rename = "urn:mayfly:task")]
    task: TaskClaim<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
}

#[derive(Serialize)]
struct TaskClaim<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    depth: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<&'a str>,
    instance: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_calls: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_sha256: Option<String>,
}

/// A token that nobody may see before its lease is in the ledger.
pub type MintedAccess = Minted<AccessToken>;

impl Token for AccessToken {
    fn token(&self) -> &str {
        &self.token
    }
}

/// A released access token. It may be a bearer secret: `Debug` leaves it out.
#[derive(Clone)]
pub struct AccessToken {
    /// The lease: the `jti`.
    pub id: LeaseId,
    /// Who uses it.
    pub spiffe_id: SpiffeId,
    /// Compact JWS.
    pub token: String,
    /// For whom it is.
    pub audience: String,
    /// When it was signed.
    pub issued_at: SystemTime,
    /// The `exp`.
    pub not_after: SystemTime,
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessToken({}, {})", self.id, self.spiffe_id)
    }
}

/// Why a token is not one of ours, or not good now: for logs and tests.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AccessRefusal {
    /// Not a compact JWS with a JSON header and JSON claims, no member twice.
    #[error("not a compact jws")]
    Shape,
    /// Another `typ` than [`TYPE`], another header member than `alg`, `kid`, `typ`, or an algorithm that is none.
    #[error("not of type at+jwt")]
    Type,
    /// No key of ours has that name.
    #[error("key is not known")]
    UnknownKey,
    /// The signature is wrong.
    #[error("signature does not verify")]
    Signature,
    /// A claim that every token of ours has is missing, or of another type.
    #[error("claims are malformed")]
    Claims,
    /// It has expired, or is not valid yet.
    #[error("token is not valid now")]
    Times,
    /// The lease was taken back, or is none.
    #[error("token is revoked")]
    Revoked,
}

/// What a valid token says.
#[derive(Clone, Debug)]
pub struct ValidAccess {
    /// The lease.
    pub lease: LeaseId,
    /// All claims.
    pub claims: Map<String, Value>,
}

impl ValidAccess {
    /// Whether it is good for one use only. What cannot be read counts as that.
    pub fn is_single_use(&self) -> bool {
        self.claims.get(TASK_CLAIM).is_none_or(|task| task.get("max_calls").is_some())
    }
}

/// Checks a token of our own. `stands` is asked last, with its lease.
///
/// # Errors
/// The first [`AccessRefusal`].
pub fn inspect(
    token: &str,
    own: &JwtBundle,
    stands: &dyn Fn(LeaseId) -> bool,
    now: SystemTime,
) -> Result<ValidAccess, AccessRefusal> {
    if token.len() > super::jwt::MAX_TOKEN_BYTES {
        return Err(AccessRefusal::Shape);
    }
    let parts = Parts::split(token).ok_or(AccessRefusal::Shape)?;
    let header = json::object(&parts.header).ok_or(AccessRefusal::Shape)?;
    let known = |name: &String| matches!(name.as_str(), "alg" | "kid" | "typ");
    if !header.keys().all(known) || text(&header, "typ") != Some(TYPE) {
        return Err(AccessRefusal::Type);
    }
    let algorithm = text(&header, "alg").and_then(JwsAlgorithm::parse).ok_or(AccessRefusal::Type)?;
    let kid = text(&header, "kid").ok_or(AccessRefusal::UnknownKey)?;
    let key = own.key_for(JwsUse::JwtSvid, kid).ok_or(AccessRefusal::UnknownKey)?;
    let signed = key.verify(algorithm, parts.signed.as_bytes(), &parts.signature);
    signed.map_err(|_whatever| AccessRefusal::Signature)?;
    let claims = json::object(&parts.claims).ok_or(AccessRefusal::Shape)?;
    let at = |name: &str| time(&claims, name).ok().flatten().ok_or(AccessRefusal::Claims);
    let (begins, ends) = (at("nbf")?, at("exp")?);
    let is_whole =
        ["iss", "aud", "sub", "client_id", "txn"].into_iter().all(|name| text(&claims, name).is_some())
            && claims.get(TASK_CLAIM).is_some_and(Value::is_object)
            && claims.get("authorization_details").is_some_and(Value::is_array);
    let lease = text(&claims, "jti").and_then(|jti| jti.parse().ok()).filter(|_| is_whole);
    let lease: LeaseId = lease.ok_or(AccessRefusal::Claims)?;
    let now = unix_seconds(now);
    if now >= ends || begins > now.saturating_add(super::jwt::NBF_LEEWAY_SECONDS) {
        return Err(AccessRefusal::Times);
    }
    if !stands(lease) {
        return Err(AccessRefusal::Revoked);
    }
    Ok(ValidAccess { lease, claims })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::testing::{NOW, authorities, now};
    use crate::authority::{JwtBundles, KeyType};
    use crate::issue::jwt::{JwtRefusal, validate};
    use crate::issue::new_lease;
    use crate::issue::testing::{permit, process};
    use crate::ledger::Committed;
    use crate::policy::Kind;

    const AUD: &str = "https://wiki.example.org";

    fn id(name: &str) -> SpiffeId {
        SpiffeId::parse(format!("spiffe://example.org/agent/{name}").as_bytes()).unwrap()
    }

    fn terms(chain: &[SpiffeId]) -> Terms<'_> {
        Terms {
            issuer: "https://id.example.org",
            user: None,
            chain,
            details: vec![json!({"type": "urn:mayfly:rar:target-access", "actions": ["read"]})],
            scope: "read".to_owned(),
            binding: None,
            task: TaskTerms {
                id: TaskId::from_bytes([2; 16]),
                root: TaskId::from_bytes([1; 16]),
                parent: Some(TaskId::from_bytes([1; 16])),
                depth: 1,
                template: Some("kb-summarise".to_owned()),
                instance: "c-7f3a".to_owned(),
                approval: None,
            },
            longest: 8192,
            status: None,
        }
    }

    fn minted(terms: &Terms<'_>, ttl: u64) -> (MintedAccess, JwtBundle, crate::authority::AuthoritySet) {
        let set = authorities("example.org", KeyType::EcP256);
        let who = terms.chain.last().unwrap().to_string();
        let minted =
            mint(permit(Kind::Jwt, &who, ttl, &[AUD]), set.active_jwt(), new_lease().unwrap(), terms, now());
        let bundle = JwtBundle::of([set.active_jwt().as_ref()]);
        (minted.unwrap(), bundle, set)
    }

    fn opened(minted: MintedAccess) -> String {
        let committed = Committed::for_test(vec![minted.id()]);
        minted.release(&committed).unwrap().token
    }

    fn claims(token: &str) -> Value {
        serde_json::from_slice(&Parts::split(token).unwrap().claims).unwrap()
    }

    #[test]
    fn a_token_says_who_acts_for_whom_in_which_task() {
        let chain = [id("planner"), id("fetcher")];
        let place =
            |not_after: u64| Some((StatusIndex { list: not_after, index: 412 }, "https://id/1".to_owned()));
        let user = Terms {
            user: Some(Subject { iss: "https://idp.example.org", sub: "alice" }),
            binding: Some(Binding::Certificate([7; 32])),
            status: Some(&place),
            ..terms(&chain)
        };
        let (minted, bundle, _) = minted(&user, 300);
        let row = minted.row(process(), 1000);
        assert_eq!((row.kind, row.task), (ledger::Kind::Access, Some(TaskId::from_bytes([2; 16]))));
        assert_eq!(row.status, Some(StatusIndex { list: NOW + 300, index: 412 }));
        let token = opened(minted);
        let header: Value = serde_json::from_slice(&Parts::split(&token).unwrap().header).unwrap();
        assert_eq!(header["typ"], "at+jwt");
        let mut said = claims(&token);
        assert_eq!(said["jti"], row.id.to_string());
        said["jti"] = json!("crd");
        let by = |name: &str| format!("spiffe://example.org/agent/{name}");
        assert_eq!(
            said,
            json!({
                "iss": "https://id.example.org", "aud": AUD, "sub": "alice",
                "sub_id": {"format": "iss_sub", "iss": "https://idp.example.org", "sub": "alice"},
                "sub_profile": "user", "client_id": by("fetcher"), "jti": "crd",
                "iat": NOW, "nbf": NOW - 10, "exp": NOW + 300, "scope": "read",
                "authorization_details": [{"type": "urn:mayfly:rar:target-access", "actions": ["read"]}],
                "act": {"sub": by("fetcher"), "sub_profile": "ai_agent",
                        "act": {"sub": by("planner"), "sub_profile": "ai_agent"}},
                "cnf": {"x5t#S256": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"},
                "txn": TaskId::from_bytes([1; 16]).to_string(),
                "urn:mayfly:task": {"id": TaskId::from_bytes([2; 16]).to_string(),
                    "parent": TaskId::from_bytes([1; 16]).to_string(), "depth": 1,
                    "template": "kb-summarise", "instance": "c-7f3a"},
                "status": {"status_list": {"idx": 412, "uri": "https://id/1"}},
            })
        );
        assert_eq!(inspect(&token, &bundle, &|_| true, now()).unwrap().lease, row.id);
    }

    #[test]
    fn without_a_user_the_root_is_the_subject_and_nobody_acts_for_himself() {
        let (alone, ..) = minted(&terms(&[id("planner")]), 300);
        let said = claims(&opened(alone));
        assert_eq!(said["sub"], id("planner").as_str());
        assert!(said.get("act").is_none() && said["sub_profile"] == "ai_agent");
        let chain = [id("planner"), id("writer"), id("fetcher")];
        let (deep, ..) = minted(&terms(&chain), 300);
        let said = claims(&opened(deep));
        assert_eq!(said["sub"], id("planner").as_str());
        assert_eq!(said["act"]["sub"], id("fetcher").as_str());
        assert_eq!(said["act"]["act"]["sub"], id("writer").as_str());
        assert!(said["act"]["act"].get("act").is_none(), "the subject is no actor");
        let own = [id("planner"), id("planner")];
        assert!(claims(&opened(minted(&terms(&own), 300).0)).get("act").is_none());
    }

    /// Threats H04: one key signs both, and each is taken only for what it is.
    #[test]
    fn h04_no_token_passes_for_one_of_another_type() {
        let (access, bundle, set) = minted(&terms(&[id("planner")]), 300);
        let access = opened(access);
        let mut bundles = JwtBundles::default();
        let own = JwtBundle::of([set.active_jwt().as_ref()]);
        bundles.insert(set.active_jwt().trust_domain().clone(), std::sync::Arc::new(own));
        let refused = validate(&access, AUD, &bundles, &|_| false, now());
        assert_eq!(refused.err(), Some(JwtRefusal::Type));
        let whole = claims(&access);
        let yes = |_: LeaseId| true;
        for typ in [
            "JWT",
            "wit+jwt",
            "wpt+jwt",
            "txntoken+jwt",
            "statuslist+jwt",
            "secevent+jwt",
            "oauth-id-jag+jwt",
            crate::issue::question::TYPE,
            "AT+JWT",
            "application/at+jwt",
            "",
        ] {
            let other = set.active_jwt().sign_as(typ, &whole).unwrap();
            assert_eq!(inspect(&other, &bundle, &yes, now()).err(), Some(AccessRefusal::Type), "{typ}");
        }
        let svid = set.active_jwt().sign(&whole).unwrap();
        assert_eq!(inspect(&svid, &bundle, &yes, now()).err(), Some(AccessRefusal::Type));
        let wit = set.active_wit().map(|wit| wit.sign_as(TYPE, &whole).unwrap());
        if let Some(wit) = wit {
            assert_eq!(inspect(&wit, &bundle, &yes, now()).err(), Some(AccessRefusal::UnknownKey));
        }
        assert!(inspect(&access, &bundle, &yes, now()).is_ok());
    }

    /// What people were asked is signed by the same key, and is nobody's credential.
    #[test]
    fn h04_the_question_that_people_were_asked_passes_for_no_credential() {
        use crate::issue::question::{Asked, sign};
        let set = authorities("example.org", KeyType::EcP256);
        let asked = Asked {
            issuer: "https://id.example.org",
            approval: ApprovalId::from_bytes([3; 16]),
            evaluation: "evl_1",
            task: TaskId::from_bytes([2; 16]),
            action: "write",
            target: "wiki",
            operation: Some([7; 32]),
            expires_at: now() + Duration::from_secs(600),
        };
        let token = sign(&asked, set.active_jwt(), now()).unwrap();
        let said = claims(&token);
        assert_eq!(
            (said["exp"].as_u64(), said["operation_sha256"].as_str()),
            (Some(NOW + 600), Some(&*"07".repeat(32)))
        );
        let own = JwtBundle::of([set.active_jwt().as_ref()]);
        assert_eq!(inspect(&token, &own, &|_| true, now()).err(), Some(AccessRefusal::Type));
        let mut bundles = JwtBundles::default();
        bundles.insert(set.active_jwt().trust_domain().clone(), std::sync::Arc::new(own));
        for audience in [AUD, "wiki", ""] {
            assert_eq!(validate(&token, audience, &bundles, &|_| false, now()).err(), Some(JwtRefusal::Type));
        }
    }

    #[test]
    fn what_people_allowed_is_in_the_token_and_makes_it_good_for_one_use() {
        let chain = [id("planner")];
        let (plain, bundle, _) = minted(&terms(&chain), 300);
        assert!(!inspect(&opened(plain), &bundle, &|_| true, now()).unwrap().is_single_use());
        let mut approved = terms(&chain);
        approved.task.approval =
            Some(ApprovalTerms { id: ApprovalId::from_bytes([3; 16]), operation: Some([7; 32]) });
        let (once, bundle, _) = minted(&approved, 120);
        let once = opened(once);
        let said = claims(&once)[TASK_CLAIM].clone();
        assert_eq!((&said["max_calls"], &said["operation_sha256"]), (&json!(1), &json!("07".repeat(32))));
        assert_eq!(said["approval"], ApprovalId::from_bytes([3; 16]).to_string());
        assert!(inspect(&once, &bundle, &|_| true, now()).unwrap().is_single_use());
    }

    #[test]
    fn a_token_is_good_only_while_its_lease_stands_and_its_time_lasts() {
        let (access, bundle, _) = minted(&terms(&[id("planner")]), 300);
        let access = opened(access);
        let ask = |stands: bool, at: SystemTime| inspect(&access, &bundle, &|_| stands, at).err();
        assert_eq!(ask(true, now()), None);
        assert_eq!(ask(false, now()), Some(AccessRefusal::Revoked));
        assert_eq!(ask(true, now() + Duration::from_secs(299)), None);
        assert_eq!(ask(true, now() + Duration::from_secs(300)), Some(AccessRefusal::Times));
        assert_eq!(ask(true, now() - Duration::from_secs(21)), Some(AccessRefusal::Times));
        for at in (0..access.len()).step_by(7) {
            let mut bytes = access.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(inspect(&changed, &bundle, &|_| true, now()).is_err(), "byte {at}");
        }
    }

    /// Each is written into every token of ours: one without it was not made by [`mint`], whoever signed it.
    #[test]
    fn a_token_that_lacks_a_claim_or_asks_for_more_is_none_of_ours() {
        let (access, bundle, set) = minted(&terms(&[id("planner")]), 300);
        let whole = claims(&opened(access));
        let says = |claims: &Value| {
            let token = set.active_jwt().sign_as(TYPE, claims).unwrap();
            inspect(&token, &bundle, &|_| true, now()).err()
        };
        assert_eq!(says(&whole), None);
        let lacks = |name: &str| {
            let mut claims = whole.clone();
            claims.as_object_mut().unwrap().remove(name).unwrap();
            claims
        };
        for name in [
            "iss",
            "aud",
            "sub",
            "client_id",
            "txn",
            TASK_CLAIM,
            "authorization_details",
            "jti",
            "nbf",
            "exp",
        ] {
            assert_eq!(says(&lacks(name)), Some(AccessRefusal::Claims), "{name}");
        }
        for (name, value) in [
            ("aud", json!([AUD, "https://other.example.org"])),
            (TASK_CLAIM, json!("tsk")),
            ("authorization_details", json!({})),
            ("jti", json!("crd")),
            ("exp", json!("never")),
        ] {
            let mut claims = whole.clone();
            claims[name] = value;
            assert_eq!(says(&claims), Some(AccessRefusal::Claims), "{name}");
        }
        let mut long = whole.clone();
        long["scope"] = json!("x".repeat(crate::issue::jwt::MAX_TOKEN_BYTES));
        assert_eq!(says(&long), Some(AccessRefusal::Shape));
        let forge = crate::authority::testing::Forge::new("ES256");
        let mut jwk = forge.jwk("k");
        jwk["use"] = json!(JwsUse::JwtSvid.jwk_use());
        let own = JwtBundle::of_keys(JwsUse::JwtSvid, &[jwk]);
        for (header, refused) in [
            (r#"{"alg":"ES256","kid":"k","typ":"at+jwt"}"#, None),
            (r#"{"alg":"ES256","kid":"k","typ":"at+jwt","crit":["b64"]}"#, Some(AccessRefusal::Type)),
            (r#"{"alg":"ES256","kid":"k","typ":"at+jwt","jku":"https://i"}"#, Some(AccessRefusal::Type)),
            (r#"{"alg":"none","kid":"k","typ":"at+jwt"}"#, Some(AccessRefusal::Type)),
            (r#"{"alg":"ES256","kid":"j","typ":"at+jwt"}"#, Some(AccessRefusal::UnknownKey)),
        ] {
            let token = forge.sign(header, &whole.to_string());
            assert_eq!(inspect(&token, &own, &|_| true, now()).err(), refused, "{header}");
        }
    }

    #[test]
    fn what_does_not_fit_is_not_minted() {
        let set = authorities("example.org", KeyType::EcP256);
        let chain = [id("planner")];
        let ask = |kind, who: &str, aud: &[&str], terms: &Terms<'_>| {
            mint(permit(kind, who, 300, aud), set.active_jwt(), new_lease().unwrap(), terms, now()).err()
        };
        let who = chain[0].as_str().to_owned();
        assert!(matches!(ask(Kind::X509, &who, &[AUD], &terms(&chain)), Some(IssueError::WrongKind)));
        assert!(matches!(ask(Kind::Jwt, &who, &[AUD, "b"], &terms(&chain)), Some(IssueError::WrongKind)));
        let other = "spiffe://example.org/agent/other";
        assert!(matches!(
            ask(Kind::Jwt, other, &[AUD], &terms(&chain)),
            Some(IssueError::Authority(AuthorityError::ForeignIdentity))
        ));
        for stranger in ["spiffe://other.org/agent/planner", "spiffe://example.org"] {
            let chain = [SpiffeId::parse(stranger.as_bytes()).unwrap()];
            let refused = ask(Kind::Jwt, stranger, &[AUD], &terms(&chain));
            assert!(
                matches!(refused, Some(IssueError::Authority(AuthorityError::ForeignIdentity))),
                "{stranger}: {refused:?}"
            );
        }
        let wit = set.active_wit().unwrap();
        let of_wits =
            mint(permit(Kind::Jwt, &who, 300, &[AUD]), wit, new_lease().unwrap(), &terms(&chain), now());
        assert!(matches!(of_wits.err(), Some(IssueError::WrongKind)), "a key of another use");
        let short = Terms { longest: 100, ..terms(&chain) };
        assert!(matches!(ask(Kind::Jwt, &who, &[AUD], &short), Some(IssueError::TooLong)));
        let (one, ..) = minted(&terms(&chain), 300);
        assert!(one.release(&Committed::for_test(vec![])).is_none());
    }
}
