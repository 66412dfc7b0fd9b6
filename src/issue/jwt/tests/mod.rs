//! Tokens we sign; below, the vectors of conformance 3.1 and threats H01–H09 as tables.

mod claims;
mod header;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::authority::testing::{Forge, NOW, authorities, now};
use crate::authority::{AuthorityError, JwtBundle, JwtBundles, KeyType};
use crate::id::TrustDomain;
use crate::issue::new_lease;
use crate::issue::testing::{permit, process};
use crate::ledger::Committed;
use crate::policy::Kind;

use JwtRefusal as R;

const SUB: &str = "spiffe://example.org/web";

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// `example.org` trusts the forge's key under the name `k1`.
struct World {
    forge: Forge,
    bundles: JwtBundles,
}

impl World {
    fn new(alg: &'static str) -> Self {
        let forge = Forge::new(alg);
        let bundle = json!({ "keys": [forge.jwk("k1")] });
        Self { bundles: bundles(&[("example.org", bundle)]), forge }
    }

    fn header(&self) -> Value {
        json!({ "alg": self.forge.alg, "kid": "k1", "typ": "JWT" })
    }

    fn check(&self, token: &str) -> Result<ValidatedJwt, R> {
        validate(token, "aud1", &self.bundles, &|_| false, now())
    }

    fn verdict(&self, header: &Value, claims: &Value) -> Result<(), R> {
        self.raw(&header.to_string(), &claims.to_string())
    }

    fn raw(&self, header: &str, claims: &str) -> Result<(), R> {
        self.check(&self.forge.sign(header, claims)).map(drop)
    }

    /// With one header member changed; `null` means the JSON value, `remove` is below.
    fn with_header(&self, name: &str, value: Value) -> Result<(), R> {
        let mut header = self.header();
        header[name] = value;
        self.verdict(&header, &claims())
    }

    fn with_claim(&self, name: &str, value: Value) -> Result<(), R> {
        let mut changed = claims();
        changed[name] = value;
        self.verdict(&self.header(), &changed)
    }
}

fn bundles(list: &[(&str, Value)]) -> JwtBundles {
    let mut bundles = JwtBundles::default();
    for (name, document) in list {
        let bundle = JwtBundle::parse(document.to_string().as_bytes()).unwrap();
        bundles.insert(domain(name), Arc::new(bundle));
    }
    bundles
}

fn claims() -> Value {
    json!({ "sub": SUB, "aud": ["aud1"], "exp": NOW + 300, "iat": NOW - 10 })
}

fn without(mut object: Value, name: &str) -> Value {
    object.as_object_mut().unwrap().remove(name).unwrap();
    object
}

fn minted(set: &crate::authority::AuthoritySet, audience: &[&str]) -> MintedJwt {
    let permit = permit(Kind::Jwt, SUB, 300, audience);
    mint(permit, set.active_jwt(), new_lease().unwrap(), "spiffe://example.org", now()).unwrap()
}

fn released(minted: MintedJwt) -> JwtSvid {
    let committed = Committed::for_test(vec![minted.id()]);
    minted.release(&committed).unwrap()
}

fn own_bundles(set: &crate::authority::AuthoritySet) -> JwtBundles {
    let mut bundles = JwtBundles::default();
    bundles.insert(domain("example.org"), Arc::new(JwtBundle::of([set.active_jwt().as_ref()])));
    bundles
}

#[test]
fn a_token_has_exactly_six_claims() {
    for audience in [&["one"][..], &["a", "b"][..]] {
        let set = authorities("example.org", KeyType::EcP256);
        let svid = released(minted(&set, audience));
        let payload = svid.token.split('.').nth(1).unwrap();
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
        let audience = serde_json::to_string(audience).unwrap();
        let expected = format!(
            r#"{{"sub":"{SUB}","aud":{audience},"exp":{},"iat":{},"iss":"spiffe://example.org","jti":"{}"}}"#,
            NOW + 300,
            NOW - 10,
            svid.id
        );
        assert_eq!(text, expected);
    }
}

#[test]
fn a_token_of_a_task_says_which_task_flatly_and_never_who_delegated() {
    let set = authorities("example.org", KeyType::EcP256);
    let task = TaskId::from_bytes([2; 16]);
    let claims = |audience: &[&str]| {
        let claims = TaskClaims { id: task, template: Some("kb"), actions: "read write" };
        let terms = Terms { issuer: "https://id", status: None, task: Some(claims) };
        let permit = permit(Kind::Jwt, SUB, 300, audience);
        let minted = mint_listed(permit, set.active_jwt(), new_lease().unwrap(), &terms, now())?;
        assert_eq!(minted.row(process(), 7).task, Some(task));
        let payload = released(minted).token.split('.').nth(1).unwrap().to_owned();
        Ok::<Value, IssueError>(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap())
    };
    let mut plain = claims(&["one"]).unwrap();
    plain.as_object_mut().unwrap().remove("jti").unwrap();
    assert_eq!(
        plain,
        json!({
            "sub": SUB, "aud": ["one"], "iss": "https://id", "iat": NOW - 10, "nbf": NOW - 10,
            "exp": NOW + 300, "mayfly_task": task.to_string(), "mayfly_template": "kb",
            "mayfly_action_class": "read write",
        })
    );
    let aws = &claims(&["sts.amazonaws.com"]).unwrap()["https://aws.amazon.com/tags"];
    assert_eq!(aws["principal_tags"]["mayfly_task"], json!([task.to_string()]));
    assert!(
        matches!(claims(&["one", "two"]), Err(IssueError::WrongKind)),
        "one audience for each credential"
    );
}

#[test]
fn our_tokens_validate_here_and_in_another_implementation() {
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let set = authorities("example.org", kind);
        let svid = released(minted(&set, &["aud1", "aud2"]));
        let valid = validate(&svid.token, "aud2", &own_bundles(&set), &|_| false, now()).unwrap();
        assert_eq!(valid.spiffe_id.as_str(), SUB);
        assert_eq!(valid.claims["jti"], json!(svid.id.to_string()));
        let jwk = serde_json::from_value(set.active_jwt().jwk()).unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
        let mut rules = jsonwebtoken::Validation::new(set.active_jwt().algorithm().parse().unwrap());
        rules.set_audience(&["aud1"]);
        rules.set_required_spec_claims(&["exp", "aud", "sub"]);
        let theirs = jsonwebtoken::decode::<Value>(&svid.token, &key, &rules).unwrap();
        assert_eq!(theirs.claims, Value::Object(valid.claims));
    }
}

#[test]
fn a_token_opens_only_for_the_commit_that_names_it_and_agrees_with_its_row() {
    let set = authorities("example.org", KeyType::EcP256);
    let (one, other) = (minted(&set, &["a"]), minted(&set, &["a"]));
    assert!(other.release(&Committed::for_test(vec![one.id()])).is_none());
    let row = one.row(process(), 1_000);
    assert_eq!((row.kind, row.issuer.as_str()), (ledger::Kind::Jwt, set.active_jwt().kid()));
    assert_eq!((row.audience.as_slice(), row.not_after), (&["a".to_owned()][..], NOW + 300));
    assert_eq!((row.issued_at, row.id), (NOW, one.id()));
    let svid = released(one);
    assert!(!format!("{svid:?}").contains(&svid.token), "a bearer secret");
}

#[test]
fn the_wrong_permit_buys_nothing() {
    let set = authorities("example.org", KeyType::EcP256);
    let buy = |kind, id| {
        let lease = new_lease().unwrap();
        mint(permit(kind, id, 60, &["a"]), set.active_jwt(), lease, "iss", now()).unwrap_err()
    };
    assert!(matches!(buy(Kind::X509, SUB), IssueError::WrongKind));
    for id in ["spiffe://example.org", "spiffe://other.test/web"] {
        let refused = buy(Kind::Jwt, id);
        assert!(matches!(refused, IssueError::Authority(AuthorityError::ForeignIdentity)), "{id}");
    }
    let end = set.active_jwt().not_after() - Duration::from_secs(5);
    let permit = permit(Kind::Jwt, SUB, 300, &["a"]);
    let last = mint(permit, set.active_jwt(), new_lease().unwrap(), "iss", end).unwrap();
    assert_eq!(last.not_after(), set.active_jwt().not_after());
}

#[test]
fn a_revoked_token_is_refused_by_its_jti() {
    let set = authorities("example.org", KeyType::EcP256);
    let svid = released(minted(&set, &["aud1"]));
    let asked = RefCell::new(Vec::new());
    let check = |revoked: bool| {
        let denylist = |lease| {
            asked.borrow_mut().push(lease);
            revoked
        };
        validate(&svid.token, "aud1", &own_bundles(&set), &denylist, now()).map(drop)
    };
    assert_eq!(check(false), Ok(()));
    assert_eq!(check(true), Err(R::Revoked));
    assert_eq!(*asked.borrow(), [svid.id, svid.id]);
    let world = World::new("ES256");
    assert_eq!(world.with_claim("jti", json!("not a lease of ours")), Ok(()));
    assert_eq!(world.with_claim("jti", json!(7)), Err(R::Claims));
}
