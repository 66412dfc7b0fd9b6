//! Threats H04: kinds of token by validators. Every token of the table is signed by the key that its validator trusts
//! and says everything that the validator wants; only the type is another.

use std::sync::Arc;

use super::super::wpt;
use super::*;
use crate::authority::{JwsUse, JwtBundle, JwtBundles};
use crate::config::{UserIssuer, UserTokenType};
use crate::id::{LeaseId, TaskId};
use crate::issue::user::{UserKeys, UserToken};
use crate::issue::{access, jwt, question, user, wit};

/// The eight of the threats, and what else this agent signs or reads.
const KINDS: [&str; 10] = [
    "JWT",
    "at+jwt",
    "wit+jwt",
    "wpt+jwt",
    "dpop+jwt",
    "txntoken+jwt",
    "statuslist+jwt",
    "secevent+jwt",
    "oauth-id-jag+jwt",
    question::TYPE,
];

const SPIFFE: &str = "spiffe://example.org/web";

/// One key for everything, and one token that every validator would take but for its type.
struct World {
    key: Forge,
    jwt: JwtBundles,
    wit: JwtBundles,
}

impl World {
    fn new() -> Self {
        let key = Forge::new("ES256");
        let bundles = |usage: JwsUse| {
            let published = changed(key.jwk("k1"), "use", json!(usage.jwk_use()));
            let mut bundles = JwtBundles::default();
            let own = JwtBundle::of_keys(usage, &[published]);
            bundles.insert("example.org".parse().unwrap(), Arc::new(own));
            bundles
        };
        let (jwt, wit) = (bundles(JwsUse::JwtSvid), bundles(JwsUse::WitSvid));
        Self { key, jwt, wit }
    }

    fn sign(&self, typ: &str, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "kid": "k1", "typ": typ });
        self.key.sign(&header.to_string(), &claims.to_string())
    }

    fn is_jwt_svid(&self, typ: &str, asks: bool) -> bool {
        let token = self.sign(typ, &json!({ "sub": SPIFFE, "aud": "db", "exp": NOW + 60, "iat": NOW }));
        let no = |_: LeaseId| false;
        if asks {
            jwt::inspect(&token, &self.jwt, &no, now()).is_ok()
        } else {
            jwt::validate(&token, "db", &self.jwt, &no, now()).is_ok()
        }
    }

    fn is_access(&self, typ: &str) -> bool {
        let claims = json!({
            "iss": "https://id.example.org", "aud": "db", "sub": SPIFFE, "client_id": SPIFFE,
            "jti": LeaseId::from_random([7; 16]).to_string(), "iat": NOW, "nbf": NOW, "exp": NOW + 60,
            "authorization_details": [], "txn": TaskId::from_bytes([1; 16]).to_string(),
            access::TASK_CLAIM: {},
        });
        let own = self.jwt.get(&"example.org".parse().unwrap()).unwrap();
        access::inspect(&self.sign(typ, &claims), own, &|_| true, now()).is_ok()
    }

    fn wit_claims(&self) -> Value {
        let jwk = changed(public(&self.key), "alg", json!("ES256"));
        json!({ "sub": SPIFFE, "exp": NOW + 60, "cnf": { "jwk": jwk } })
    }

    fn wit(&self, token: &str) -> Option<wit::Unproven> {
        let rules = wit::Rules { bundles: &self.wit, revoked: &|_| false, longest: None, now: now() };
        wit::validate(token, &rules).ok()
    }

    fn is_wpt(&self, typ: &str) -> bool {
        let token = self.sign("wit+jwt", &self.wit_claims());
        let unproven = self.wit(&token).unwrap();
        let proof = self.sign(typ, &json!({ "aud": URL, "exp": NOW + 30, "jti": "p", "wth": hash(&token) }));
        let request = Request { method: "GET", url: URL, now: now() };
        let shown = wpt::Shown { proofs: &[&proof], access_token: None };
        wpt::check(&unproven, &shown, &request, &mut Replays::new(100)).is_ok()
    }

    fn is_dpop(&self, typ: &str) -> bool {
        let header = json!({ "alg": "ES256", "typ": typ, "jwk": public(&self.key) });
        let proof = self.key.sign(&header.to_string(), &Client::said().to_string());
        let jkt = jwk_thumbprint(&public(&self.key)).unwrap();
        let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs: &[&proof], certificate: None };
        let request = Request { method: "GET", url: URL, now: now() };
        let claims = object(&json!({ "cnf": { "jkt": jkt } }));
        check(&shown, &claims, &request, &Rules::default(), &mut Replays::new(100)).is_ok()
    }

    fn is_user(&self, typ: &str, types: &[UserTokenType]) -> bool {
        let issuer = UserIssuer {
            issuer: "https://idp.example.org".to_owned(),
            audience: "mayfly".to_owned(),
            jwks: "/idp.json".into(),
            types: types.to_vec(),
            max_age: Duration::from_secs(3600),
        };
        let jwk = changed(self.key.jwk("k1"), "use", json!("sig"));
        let keys = UserKeys::read(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap();
        let claims = json!({
            "iss": issuer.issuer, "sub": "ann", "aud": "mayfly", "iat": NOW, "exp": NOW + 60,
        });
        let token = UserToken::new(self.sign(typ, &claims));
        user::verify(&token, &[issuer], &|_| Some(keys.clone()), now()).is_ok()
    }
}

fn passes(is_one: impl Fn(&str) -> bool) -> Vec<&'static str> {
    KINDS.into_iter().filter(|typ| is_one(typ)).collect()
}

#[test]
fn h04_only_the_diagonal_of_kinds_and_validators_passes() {
    let world = World::new();
    assert_eq!(passes(|typ| world.is_jwt_svid(typ, false)), ["JWT"], "ValidateJWTSVID");
    assert_eq!(passes(|typ| world.is_jwt_svid(typ, true)), ["JWT"], "introspection and revocation");
    assert_eq!(passes(|typ| world.is_access(typ)), ["at+jwt"], "introspection and revocation");
    assert_eq!(
        passes(|typ| world.wit(&world.sign(typ, &world.wit_claims())).is_some()),
        ["wit+jwt"],
        "WIT-SVIDs"
    );
    assert_eq!(passes(|typ| world.is_wpt(typ)), ["wpt+jwt"], "proofs of WIT-SVIDs");
    assert_eq!(passes(|typ| world.is_dpop(typ)), ["dpop+jwt"], "proofs of access tokens");
    for (word, kind) in UserTokenType::WORDS.into_iter().filter(|(_, kind)| *kind != UserTokenType::Untyped) {
        assert_eq!(passes(|typ| world.is_user(typ, &[kind])), [word], "users, where that is configured");
    }
    assert_eq!(passes(|typ| world.is_user(typ, &[])), Vec::<&str>::new());
}
