//! Tokens we sign; below, the vectors of conformance 3.4 and the rows WIT-01 to WIT-37 as tables.

mod proofs;
mod vectors;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::authority::testing::{Forge, NOW, authorities, now};
use crate::authority::{AuthorityError, AuthoritySet, ConfirmationKey, JwtBundle, JwtBundles};
use crate::issue::new_lease;
use crate::issue::testing::{permit, process};
use crate::ledger::Committed;
use crate::policy::Kind;

use WitRefusal as R;

const SUB: &str = "spiffe://example.org/web";

fn recipe(key: KeyType) -> Recipe {
    Recipe { key, issuer: None }
}

fn minted(set: &AuthoritySet, recipe: &Recipe) -> MintedWit {
    let permit = permit(Kind::Wit, SUB, 900, &[]);
    mint(permit, set.active_wit().unwrap(), new_lease().unwrap(), recipe, now()).unwrap()
}

fn released(minted: MintedWit) -> WitSvid {
    let committed = Committed::for_test(vec![minted.id()]);
    minted.release(&committed).unwrap()
}

fn part(token: &str, n: usize) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(n).unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn own_bundles(set: &AuthoritySet) -> JwtBundles {
    let mut bundles = JwtBundles::default();
    let own = JwtBundle::of(set.wit().iter().map(Arc::as_ref));
    bundles.insert("example.org".parse().unwrap(), Arc::new(own));
    bundles
}

fn check(token: &str, bundles: &JwtBundles) -> Result<Unproven, R> {
    validate(token, &Rules { bundles, revoked: &|_| false, longest: None, now: now() })
}

#[test]
fn a_token_has_exactly_the_members_it_should_have() {
    // WIT-01, 04, 05, 07, 09, 10, 13, 14, 16, 22.
    let set = authorities("example.org", KeyType::EcP256);
    let svid = released(minted(&set, &recipe(KeyType::EcP256)));
    let header = json!({ "alg": "ES256", "kid": set.active_wit().unwrap().kid(), "typ": "wit+jwt" });
    assert_eq!(part(&svid.token, 0), header);
    let claims = part(&svid.token, 1);
    let jwk = &claims["cnf"]["jwk"];
    let expected = json!({
        "sub": SUB, "exp": NOW + 900, "iat": NOW - 10, "jti": svid.id.to_string(), "cnf": { "jwk": jwk },
    });
    assert_eq!(claims, expected);
    let names: Vec<&String> = jwk.as_object().unwrap().keys().collect();
    assert_eq!(names, ["alg", "crv", "kty", "x", "y"]);
    assert_eq!((jwk["alg"].as_str(), jwk["crv"].as_str()), (Some("ES256"), Some("P-256")));
}

#[test]
fn an_issuer_is_named_only_where_it_is_configured() {
    // WIT-21.
    let set = authorities("example.org", KeyType::EcP256);
    let named = Recipe { issuer: Some("spiffe://example.org".to_owned()), ..recipe(KeyType::EcP256) };
    let claims = part(&released(minted(&set, &named)).token, 1);
    assert_eq!(claims["iss"], "spiffe://example.org");
}

#[test]
fn our_tokens_validate_and_are_bound_to_the_key_beside_them() {
    for kind in [KeyType::EcP256, KeyType::EcP384] {
        let set = authorities("example.org", kind);
        let svid = released(minted(&set, &recipe(kind)));
        let unproven = check(&svid.token, &own_bundles(&set)).unwrap();
        assert_eq!(unproven.named().as_str(), SUB);
        let mut private: Value = serde_json::from_slice(svid.key.expose()).unwrap();
        assert!(private.as_object_mut().unwrap().remove("d").is_some());
        assert_eq!(private, unproven.claims()["cnf"]["jwk"]);
        assert_eq!(unproven.key().algorithm(), ConfirmationKey::from_jwk(&private).unwrap().algorithm());
        // And by a library of somebody else's.
        let jwk = serde_json::from_value(set.active_wit().unwrap().jwk()).unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
        let mut rules = jsonwebtoken::Validation::new(kind.jws_algorithm().parse().unwrap());
        rules.set_required_spec_claims(&["exp", "sub"]);
        let theirs = jsonwebtoken::decode::<Value>(&svid.token, &key, &rules).unwrap();
        assert_eq!(&theirs.claims, &Value::Object(unproven.claims().clone()));
    }
}

#[test]
fn keys_are_fresh_every_time() {
    // WIT-24: two processes never share a key or a token.
    let set = authorities("example.org", KeyType::EcP256);
    let (one, two) = (minted(&set, &recipe(KeyType::EcP256)), minted(&set, &recipe(KeyType::EcP256)));
    let (one, two) = (released(one), released(two));
    assert_ne!(one.key.expose(), two.key.expose());
    assert_ne!((one.id, part(&one.token, 1)["cnf"].clone()), (two.id, part(&two.token, 1)["cnf"].clone()));
}

#[test]
fn a_token_opens_only_for_the_commit_that_names_it_and_agrees_with_its_row() {
    let set = authorities("example.org", KeyType::EcP256);
    let (one, other) = (minted(&set, &recipe(KeyType::EcP256)), minted(&set, &recipe(KeyType::EcP256)));
    assert!(other.release(&Committed::for_test(vec![one.id()])).is_none());
    let row = one.row(process(), 1_000);
    assert_eq!((row.kind, row.issuer.as_str()), (ledger::Kind::Wit, set.active_wit().unwrap().kid()));
    assert_eq!((row.audience.len(), row.not_after, row.issued_at), (0, NOW + 900, NOW));
    let svid = released(one);
    assert_eq!((svid.id, svid.hint.as_str()), (row.id, "internal"));
    assert!(format!("{svid:?}").contains("key: KeyBytes([..])"));
}

#[test]
fn the_wrong_permit_or_authority_buys_nothing() {
    let set = authorities("example.org", KeyType::EcP256);
    let buy = |kind, id, authority| {
        mint(permit(kind, id, 60, &["a"]), authority, new_lease().unwrap(), &recipe(KeyType::EcP256), now())
            .unwrap_err()
    };
    let wit = set.active_wit().unwrap();
    for kind in [Kind::X509, Kind::Jwt] {
        assert!(matches!(buy(kind, SUB, wit), IssueError::WrongKind), "{kind:?}");
    }
    assert!(matches!(buy(Kind::Wit, SUB, set.active_jwt()), IssueError::WrongKind), "a JWT key signs no WIT");
    let wit_permit = permit(Kind::Wit, SUB, 60, &["a"]);
    let lease = new_lease().unwrap();
    let refused = crate::issue::jwt::mint(wit_permit, set.active_jwt(), lease, "iss", now());
    assert!(matches!(refused, Err(IssueError::WrongKind)));
    for id in ["spiffe://example.org", "spiffe://other.test/web"] {
        let refused = buy(Kind::Wit, id, wit);
        assert!(matches!(refused, IssueError::Authority(AuthorityError::ForeignIdentity)), "{id}");
    }
    let end = wit.not_after() - Duration::from_secs(5);
    let permit = permit(Kind::Wit, SUB, 300, &[]);
    let last = mint(permit, wit, new_lease().unwrap(), &recipe(KeyType::EcP256), end).unwrap();
    assert_eq!(last.not_after(), wit.not_after(), "WIT-16");
}

#[test]
fn a_revoked_token_is_refused_by_its_jti() {
    let set = authorities("example.org", KeyType::EcP256);
    let svid = released(minted(&set, &recipe(KeyType::EcP256)));
    let bundles = own_bundles(&set);
    let is_it = |lease| lease == svid.id;
    let rules = Rules { bundles: &bundles, revoked: &is_it, longest: None, now: now() };
    assert_eq!(validate(&svid.token, &rules).map(drop), Err(R::Revoked));
    let other = released(minted(&set, &recipe(KeyType::EcP256)));
    assert_eq!(validate(&other.token, &rules).map(drop), Ok(()));
}

#[test]
fn a_wit_is_refused_as_a_jwt_before_any_key_is_looked_up() {
    // WIT-37: with no bundle at all the answer is still about the type.
    let set = authorities("example.org", KeyType::EcP256);
    let svid = released(minted(&set, &recipe(KeyType::EcP256)));
    let refused = crate::issue::jwt::validate(&svid.token, "", &JwtBundles::default(), &|_| false, now());
    assert_eq!(refused.map(drop), Err(crate::issue::jwt::JwtRefusal::Type));
}

#[test]
fn an_example_of_the_specification_reads_as_it_says() {
    // WIT-SVID, appendix A. Its issuer's key is not published, so the way ends there.
    let token = concat!(
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImxRU2kzaFpGbmRhMkQtWEprajF6bDdmb0pvdWl3STRuckF5aHk0alppSmciLCJ0eXAiOiJ3aXQr",
        "and0In0.eyJjbmYiOnsiandrIjp7ImFsZyI6IkVTMjU2IiwiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJyelA3bUxDS0FIV21z",
        "TTZYMEV3VklTQ19oSTN1amN1OTVmZlVreWVER0dvIiwieSI6InVPcmZEbGp0WDltM2pZLWhzeWhMSllheHRHa3pEdjVlNWttQ2U1OFo5",
        "N2cifX0sImV4cCI6MTc2NTQ1NjUwMywiaWF0IjoxNzY1NDUyOTAzLCJqdGkiOiIxeWoxOVY0TWNPQXpNY0ZpN3F2c2dfQWdDeGxyWTVF",
        "X3g1MDl3bEtLUXRjIiwic3ViIjoic3BpZmZlOi8vZXhhbXBsZS5jb20vbXktd29ya2xvYWQifQ.sfhEvZNdY_kWrICF08lX0u__rn39Y",
        "nTavnW-VPBS20zgowDh6-X43v5eOUKZbjZf06yLBQM-Mry5w1g1QFsCkg",
    );
    let mut bundles = JwtBundles::default();
    assert_eq!(check(token, &bundles).map(drop), Err(R::TrustDomain));
    bundles.insert("example.com".parse().unwrap(), Arc::new(JwtBundle::parse(br#"{"keys":[]}"#).unwrap()));
    assert_eq!(check(token, &bundles).map(drop), Err(R::UnknownKey), "WIT-33");
}
