//! Tokens of users, by other issuers: for whom an agent works. Nothing is issued here; a token is checked as strictly as
//! our own (see [`super::jwt::validate`]), and what does not prove a user says why.
//!
//! The `iss` picks one configured issuer, `kid` one key of its file, and the key says by which algorithm alone it may
//! have signed. Nothing else of the header is obeyed, and a header that asks for more is refused.

use std::fmt;
use std::time::SystemTime;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::access::TASK_CLAIM;
use super::compact::{NoTime, Parts, text, time};
use crate::authority::{JwsAlgorithm, JwtKey};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::config::{UserIssuer, UserTokenType};
use crate::json;

/// A token that somebody hands in: a secret of the user's, wiped on drop and never printed.
#[derive(Clone)]
pub struct UserToken(Zeroizing<String>);

impl UserToken {
    /// Takes ownership of the text; the caller must not keep a copy.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text. The name makes each use easy to find in review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserToken([..])")
    }
}

/// Who somebody is, by the word of an issuer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// The issuer.
    pub iss: String,
    /// The issuer's name for the user.
    pub sub: String,
    /// When the token ends. What was begun by it may last longer.
    pub expires: SystemTime,
}

/// Why a token proves nobody. For operators: no text of the token is in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WhyNot {
    /// There is no `[[tasks.users]]`.
    #[error("no issuer of users' tokens is configured: write a table `[[tasks.users]]`")]
    NoIssuers,
    /// Over [`MAX_USER_TOKEN_BYTES`].
    #[error("the user's token is too long")]
    TooLong,
    /// Not three segments of canonical, unpadded base64url: a bare name, for one.
    #[error("the user's token is not a compact jws")]
    Shape,
    /// The header is not a JSON object, has a member twice, or one that it must not have.
    #[error("the user's token has a header that is malformed, or wants more than to name its key")]
    Header,
    /// Another `typ` than the issuer's `types`.
    #[error("the user's token is of a type that `types` does not name")]
    Type,
    /// The claims are not a JSON object, or have a member twice.
    #[error("the user's token has malformed claims")]
    Claims,
    /// No table has its `iss`.
    #[error("the user's token is by an issuer without a table `[[tasks.users]]`")]
    Issuer,
    /// It is a credential of an agent such as this one.
    #[error("the user's token is a workload's credential")]
    Workload,
    /// Somebody acts for its user already, or is named as the one who may.
    #[error("the user's token was handed on, or is for one who may act for him (`act`, `may_act`)")]
    HandedOn,
    /// Its subject is a program: the client itself, or by its `sub_profile`.
    #[error("the user's token names a program and no user (`client_id`, `azp`, `sub_profile`)")]
    Program,
    /// It is bound to a key, and its user has not proved to have that.
    #[error("the user's token is bound to a key (`cnf`), and whoever hands it in need not have it")]
    Bound,
    /// The file with the keys cannot be read, or has none.
    #[error("the issuer's keys cannot be read: see the log, and the issuer's `jwks`")]
    Keys,
    /// No key of the issuer has its `kid`, or it names none.
    #[error("the user's token is signed by a key that the issuer's `jwks` does not have")]
    UnknownKey,
    /// The header names another algorithm than the key's.
    #[error("the user's token names an algorithm that is not the key's")]
    Algorithm,
    /// The signature is wrong.
    #[error("the signature of the user's token does not verify")]
    Signature,
    /// `aud` is not the configured audience, or not that alone.
    #[error("the user's token is for another audience than the issuer's `audience` alone")]
    Audience,
    /// `exp` or `iat` is missing, or one of the times is none.
    #[error("the user's token lacks `exp` or `iat`, or has a time that is none")]
    Times,
    /// `exp` has come.
    #[error("the user's token has expired")]
    Expired,
    /// `nbf` or `iat` has not come.
    #[error("the user's token is not valid yet: compare the clocks")]
    NotYet,
    /// It was issued longer ago than `max_age`.
    #[error("the user's token was issued longer ago than `max_age`")]
    TooOld,
    /// `sub` is missing, empty, too long, or has a control character.
    #[error("the user's token has no `sub` that can stand for a user")]
    Subject,
}

/// The public keys of an issuer.
#[derive(Clone, Debug)]
pub struct UserKeys(Vec<(JwtKey, JwsAlgorithm)>);

impl UserKeys {
    /// Reads a JWK set. Keys that sign no users' tokens are skipped, as RFC 7517 §5 has it.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn read(bytes: &[u8]) -> Result<Self, KeySetError> {
        let set = json::object(bytes).ok_or(KeySetError::NotJson)?;
        let all = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::NoKeys)?;
        if all.iter().any(|jwk| ["d", "k"].iter().any(|secret| jwk.get(secret).is_some())) {
            return Err(KeySetError::Secret);
        }
        let keys: Vec<_> = all.iter().filter_map(key).collect();
        let twice = |at: usize, kid: &str| keys.iter().skip(at + 1).any(|(other, _)| other.kid() == kid);
        if keys.iter().enumerate().any(|(at, (key, _))| twice(at, key.kid())) {
            return Err(KeySetError::Twice);
        }
        if keys.is_empty() { Err(KeySetError::NoKeys) } else { Ok(Self(keys)) }
    }

    fn named(&self, kid: &str) -> Option<&(JwtKey, JwsAlgorithm)> {
        self.0.iter().find(|(key, _)| key.kid() == kid)
    }
}

/// Why a file holds no keys of an issuer. The text goes on after the file's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum KeySetError {
    #[error("is no JSON object, or has a member twice")]
    NotJson,
    #[error("has no `keys` with a `kid`, for ES256, ES384 or RS256")]
    NoKeys,
    #[error("has private or secret keys: put the issuer's public ones there, and replace those keys")]
    Secret,
    #[error("has two keys with the same `kid`")]
    Twice,
}

/// The key, with the one algorithm that it may have signed by.
fn key(jwk: &Value) -> Option<(JwtKey, JwsAlgorithm)> {
    let text = |name: &str| jwk.get(name).map(Value::as_str);
    let (word, algorithm) = match (text("kty")??, text("crv")) {
        ("EC", Some(Some("P-256"))) => ("ES256", JwsAlgorithm::Es256),
        ("EC", Some(Some("P-384"))) => ("ES384", JwsAlgorithm::Es384),
        ("RSA", None) => ("RS256", JwsAlgorithm::Rs256),
        _ => return None,
    };
    let fits = |name: &str, value: &str| text(name).is_none_or(|found| found == Some(value));
    let key = JwtKey::read(jwk).filter(|_| fits("use", "sig") && fits("alg", word))?;
    Some((key, algorithm))
}

/// Checks a token of a user. `keys_of` is asked for the keys of the issuer that it names, if that is one of `issuers`.
///
/// `exp` has no leeway; `nbf` and `iat` may be [`LEEWAY_SECONDS`] ahead.
///
/// # Errors
/// The first [`WhyNot`].
pub fn verify(
    token: &UserToken,
    issuers: &[UserIssuer],
    keys_of: &dyn Fn(&UserIssuer) -> Option<UserKeys>,
    now: SystemTime,
) -> Result<Verified, WhyNot> {
    if issuers.is_empty() {
        return Err(WhyNot::NoIssuers);
    }
    if token.expose().len() > MAX_USER_TOKEN_BYTES {
        return Err(WhyNot::TooLong);
    }
    let parts = Parts::split(token.expose()).ok_or(WhyNot::Shape)?;
    let header = json::object(&parts.header).ok_or(WhyNot::Header)?;
    if !header.keys().all(|name| HEADER.contains(&name.as_str())) {
        return Err(WhyNot::Header);
    }
    let claims = json::object(&parts.claims).ok_or(WhyNot::Claims)?;
    let issuer = issuers.iter().find(|one| text(&claims, "iss") == Some(&one.issuer));
    let issuer = issuer.ok_or(WhyNot::Issuer)?;
    check_type(&header, issuer)?;
    check_signature(&header, &parts, issuer, keys_of)?;
    check_kind(&claims)?;
    check_audience(&claims, &issuer.audience)?;
    let expires = check_times(&claims, issuer, unix_seconds(now))?;
    let sub = subject(&claims)?;
    Ok(Verified { iss: issuer.issuer.clone(), sub, expires })
}

fn check_type(header: &Map<String, Value>, issuer: &UserIssuer) -> Result<(), WhyNot> {
    let typ = match header.get("typ") {
        None => None,
        Some(value) => Some(value.as_str().ok_or(WhyNot::Type)?),
    };
    let kind = UserTokenType::of_header(typ).filter(|kind| issuer.types.contains(kind));
    kind.map(|_| ()).ok_or(WhyNot::Type)
}

fn check_signature(
    header: &Map<String, Value>,
    parts: &Parts<'_>,
    issuer: &UserIssuer,
    keys_of: &dyn Fn(&UserIssuer) -> Option<UserKeys>,
) -> Result<(), WhyNot> {
    let kid = text(header, "kid").ok_or(WhyNot::UnknownKey)?;
    let keys = keys_of(issuer).ok_or(WhyNot::Keys)?;
    let (key, algorithm) = keys.named(kid).ok_or(WhyNot::UnknownKey)?;
    if text(header, "alg").and_then(JwsAlgorithm::parse) != Some(*algorithm) {
        return Err(WhyNot::Algorithm);
    }
    let signed = key.verify(*algorithm, parts.signed.as_bytes(), &parts.signature);
    signed.map_err(|_whatever| WhyNot::Signature)
}

/// A user's token it must be: no credential of ours, of another agent or of a client for itself, none that somebody else
/// acts with, and none that only the holder of a key may use.
fn check_kind(claims: &Map<String, Value>) -> Result<(), WhyNot> {
    let is_workload = claims.contains_key(TASK_CLAIM)
        || text(claims, "sub").is_some_and(|sub| sub.to_ascii_lowercase().starts_with("spiffe:"));
    if is_workload {
        return Err(WhyNot::Workload);
    }
    // RFC 9068 §2.2: without a user the subject of a token is the client, which may have a name like a user's.
    let is_program = ["client_id", "azp"].iter().any(|name| same(claims, name, "sub"))
        || claims.get("sub_profile").is_some_and(|profile| profile.as_str() != Some("user"));
    if is_program {
        return Err(WhyNot::Program);
    }
    // Whoever acts with it already is not in our record, and would not be in the chain of our tokens (RFC 8693 §4.1, §4.4).
    if ["act", "may_act"].iter().any(|name| claims.contains_key(*name)) {
        return Err(WhyNot::HandedOn);
    }
    if claims.contains_key("cnf") { Err(WhyNot::Bound) } else { Ok(()) }
}

fn same(claims: &Map<String, Value>, one: &str, other: &str) -> bool {
    claims.get(one).is_some_and(|value| claims.get(other) == Some(value))
}

/// That audience and no other: whoever else is meant could hand the token in here.
fn check_audience(claims: &Map<String, Value>, audience: &str) -> Result<(), WhyNot> {
    let named = match claims.get("aud") {
        Some(Value::String(one)) => Some(one.as_str()),
        Some(Value::Array(all)) => match all.as_slice() {
            [one] => one.as_str(),
            _ => None,
        },
        _ => None,
    };
    if named == Some(audience) { Ok(()) } else { Err(WhyNot::Audience) }
}

fn check_times(claims: &Map<String, Value>, issuer: &UserIssuer, now: u64) -> Result<SystemTime, WhyNot> {
    let at = |name| time(claims, name).map_err(|NoTime| WhyNot::Times);
    let (expiry, from, issued) = (at("exp")?, at("nbf")?, at("iat")?);
    let (expiry, issued) = expiry.zip(issued).ok_or(WhyNot::Times)?;
    if now >= expiry {
        return Err(WhyNot::Expired);
    }
    if issued.max(from.unwrap_or_default()) > now.saturating_add(LEEWAY_SECONDS) {
        return Err(WhyNot::NotYet);
    }
    if now.saturating_sub(issued) > issuer.max_age.as_secs() {
        return Err(WhyNot::TooOld);
    }
    Ok(from_unix_seconds(expiry))
}

fn subject(claims: &Map<String, Value>) -> Result<String, WhyNot> {
    let sub = text(claims, "sub").ok_or(WhyNot::Subject)?;
    let sound = !sub.is_empty() && sub.len() <= MAX_SUBJECT_BYTES && !sub.chars().any(char::is_control);
    if sound { Ok(sub.to_owned()) } else { Err(WhyNot::Subject) }
}

/// Longest token that is looked at, in bytes.
pub const MAX_USER_TOKEN_BYTES: usize = 8 * 1024;
/// Longest `sub`, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 256;
/// How far ahead `nbf` and `iat` may be.
pub const LEEWAY_SECONDS: u64 = 30;
/// Members that a header may have. The thumbprints of a certificate are there with some issuers and mean nothing here.
const HEADER: [&str; 5] = ["alg", "kid", "typ", "x5t", "x5t#S256"];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_lc_rs::hmac;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::authority::testing::{Forge, NOW, authorities, now};
    use crate::authority::{JwsAuthority, KeyType};

    const ISS: &str = "https://idp.example.org";
    const HEAD: &str = r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#;

    fn issuer(iss: &str) -> UserIssuer {
        UserIssuer {
            issuer: iss.to_owned(),
            audience: "mayfly".to_owned(),
            jwks: "/idp.json".into(),
            types: vec![UserTokenType::Jwt, UserTokenType::Access, UserTokenType::Untyped],
            max_age: Duration::from_secs(3600),
        }
    }

    fn jwk(forge: &Forge, kid: &str) -> Value {
        let mut jwk = forge.jwk(kid);
        jwk["use"] = json!("sig");
        jwk
    }

    fn set(keys: &[Value]) -> UserKeys {
        UserKeys::read(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    }

    fn claims() -> Value {
        json!({"iss": ISS, "sub": "ann", "aud": "mayfly", "iat": NOW - 60, "exp": NOW + 300})
    }

    fn checked(token: &str, keys: &UserKeys) -> Result<Verified, WhyNot> {
        let issuers = [issuer("https://other.example.org"), issuer(ISS)];
        let keys_of = |one: &UserIssuer| (one.issuer == ISS).then(|| keys.clone());
        verify(&UserToken::new(token.to_owned()), &issuers, &keys_of, now())
    }

    struct Idp {
        forge: Forge,
        keys: UserKeys,
    }

    impl Idp {
        fn new() -> Self {
            let forge = Forge::new("ES256");
            let keys = set(&[jwk(&Forge::new("ES384"), "other"), jwk(&forge, "k")]);
            Self { forge, keys }
        }

        fn says(&self, header: &str, claims: &str) -> Result<Verified, WhyNot> {
            checked(&self.forge.sign(header, claims), &self.keys)
        }

        /// With some claims changed; null: left out.
        fn with(&self, changes: &Value) -> Result<Verified, WhyNot> {
            let mut all = claims();
            for (name, value) in changes.as_object().unwrap() {
                match value {
                    Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
                    value => all[name] = value.clone(),
                }
            }
            self.says(HEAD, &all.to_string())
        }
    }

    #[test]
    fn a_token_of_an_issuer_that_is_known_proves_its_user() {
        for (alg, other) in [("ES256", "RS256"), ("ES384", "ES256"), ("RS256", "ES384")] {
            let (forge, other) = (Forge::new(alg), Forge::new(other));
            let keys = set(&[jwk(&other, "other"), jwk(&forge, "k")]);
            for typ in [r#","typ":"JWT""#, r#","typ":"at+jwt""#, r#","typ":"jwt","x5t":"abc""#, ""] {
                let token =
                    forge.sign(&format!(r#"{{"alg":"{alg}","kid":"k"{typ}}}"#), &claims().to_string());
                let verified = checked(&token, &keys).unwrap();
                let expires = from_unix_seconds(NOW + 300);
                assert_eq!(verified, Verified { iss: ISS.to_owned(), sub: "ann".to_owned(), expires });
            }
        }
        let idp = Idp::new();
        assert!(
            idp.with(&json!({"aud": ["mayfly"], "nbf": NOW + 30, "iat": NOW + 30, "email": "a@b"})).is_ok()
        );
    }

    #[test]
    fn what_is_no_token_proves_nobody_and_so_does_a_name() {
        let idp = Idp::new();
        for text in ["ann", "ann@example.org", "", "a.b", "a.b.c.d", r#"{"sub":"ann"}"#] {
            assert_eq!(checked(text, &idp.keys), Err(WhyNot::Shape), "{text}");
        }
        let token = idp.forge.sign(HEAD, &claims().to_string());
        assert_eq!(checked(&format!(" {token}"), &idp.keys), Err(WhyNot::Shape));
        let long = json!({"x": "y".repeat(MAX_USER_TOKEN_BYTES)});
        assert_eq!(idp.with(&long), Err(WhyNot::TooLong));
        let nobody = verify(&UserToken::new(token), &[], &|_| Some(idp.keys.clone()), now());
        assert_eq!(nobody, Err(WhyNot::NoIssuers));
    }

    #[test]
    fn a_signature_by_another_key_or_of_other_words_is_none() {
        let (idp, forger) = (Idp::new(), Forge::new("ES256"));
        let forged = forger.sign(HEAD, &claims().to_string());
        assert_eq!(checked(&forged, &idp.keys), Err(WhyNot::Signature));
        let good = idp.forge.sign(HEAD, &claims().to_string());
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let other = claims().to_string().replace("ann", "bob");
        let head = signed.split_once('.').unwrap().0;
        let swapped = format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(other));
        assert_eq!(checked(&swapped, &idp.keys), Err(WhyNot::Signature));
        let unknown = idp.says(r#"{"alg":"ES256","kid":"x"}"#, &claims().to_string());
        assert_eq!(unknown, Err(WhyNot::UnknownKey));
        assert_eq!(idp.says(r#"{"alg":"ES256"}"#, &claims().to_string()), Err(WhyNot::UnknownKey));
        let none = verify(&UserToken::new(good), &[issuer(ISS)], &|_| None, now());
        assert_eq!(none, Err(WhyNot::Keys));
    }

    #[test]
    fn the_key_says_by_which_algorithm_and_the_header_nothing_else() {
        let rsa = Forge::new("RS256");
        let keys = set(&[jwk(&rsa, "k")]);
        let body = claims().to_string();
        for alg in ["none", "HS256", "PS256", "RS384", "RS512", "ES256", "", "rs256"] {
            let token = rsa.sign(&format!(r#"{{"alg":"{alg}","kid":"k"}}"#), &body);
            assert_eq!(checked(&token, &keys), Err(WhyNot::Algorithm), "{alg}");
        }
        // The public key as a secret, and no signature at all.
        let signed =
            [r#"{"alg":"HS256","kid":"k"}"#, &body].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &rsa.public_bytes()), signed.as_bytes());
        let confused = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.as_ref()));
        assert_eq!(checked(&confused, &keys), Err(WhyNot::Algorithm));
        assert_eq!(checked(&format!("{signed}."), &keys), Err(WhyNot::Shape));
        // PSS by an RSA key would verify, were the header obeyed.
        let pss = Forge::new("PS256");
        let token = pss.sign(r#"{"alg":"PS256","kid":"k"}"#, &body);
        assert_eq!(checked(&token, &set(&[jwk(&pss, "k")])), Err(WhyNot::Algorithm));
    }

    #[test]
    fn a_header_that_brings_its_own_key_or_asks_for_more_is_refused() {
        let idp = Idp::new();
        let own = idp.forge.jwk("k");
        for more in [
            format!(r#","jwk":{own}"#),
            r#","jku":"https://idp.example.org/keys""#.to_owned(),
            r#","x5u":"https://idp.example.org/chain""#.to_owned(),
            r#","x5c":["MII"]"#.to_owned(),
            r#","crit":["exp"]"#.to_owned(),
            r#","b64":false"#.to_owned(),
            r#","kid":"k""#.to_owned(),
        ] {
            let header = format!(r#"{{"alg":"ES256","kid":"k"{more}}}"#);
            assert_eq!(idp.says(&header, &claims().to_string()), Err(WhyNot::Header), "{more}");
        }
        for typ in
            [r#""wit+jwt""#, r#""wpt+jwt""#, r#""statuslist+jwt""#, r#""oauth-id-jag+jwt""#, r#""none""#, "1"]
        {
            let header = format!(r#"{{"alg":"ES256","kid":"k","typ":{typ}}}"#);
            assert_eq!(idp.says(&header, &claims().to_string()), Err(WhyNot::Type), "{typ}");
        }
    }

    #[test]
    fn what_is_said_twice_is_not_believed_once() {
        let idp = Idp::new();
        let twice = claims().to_string().replacen('{', r#"{"sub":"root","#, 1);
        assert_eq!(idp.says(HEAD, &twice), Err(WhyNot::Claims));
        let hidden = claims().to_string().replacen('{', r#"{"s\u0075b":"root","#, 1);
        assert_eq!(idp.says(HEAD, &hidden), Err(WhyNot::Claims));
    }

    #[test]
    fn another_issuer_or_audience_is_another_one() {
        let idp = Idp::new();
        for iss in
            [json!("https://idp.example.org/"), json!("https://IDP.example.org"), json!([ISS]), json!(null)]
        {
            assert_eq!(idp.with(&json!({"iss": iss})), Err(WhyNot::Issuer), "{iss}");
        }
        // Known, but these are not its keys.
        assert_eq!(idp.with(&json!({"iss": "https://other.example.org"})), Err(WhyNot::Keys));
        for aud in [json!("other"), json!(["mayfly", "other"]), json!([]), json!([1]), json!(""), json!(null)]
        {
            assert_eq!(idp.with(&json!({"aud": aud})), Err(WhyNot::Audience), "{aud}");
        }
    }

    #[test]
    fn a_token_is_good_for_as_long_as_it_says_and_not_longer_than_max_age() {
        let idp = Idp::new();
        for (changes, why) in [
            (json!({"exp": null}), WhyNot::Times),
            (json!({"iat": null}), WhyNot::Times),
            (json!({"exp": "1900000000"}), WhyNot::Times),
            (json!({"nbf": -1}), WhyNot::Times),
            (json!({"iat": 1.5}), WhyNot::Times),
            (json!({"exp": NOW}), WhyNot::Expired),
            (json!({"nbf": NOW + 31}), WhyNot::NotYet),
            (json!({"iat": NOW + 31}), WhyNot::NotYet),
            (json!({"iat": NOW - 3601}), WhyNot::TooOld),
        ] {
            assert_eq!(idp.with(&changes), Err(why), "{changes}");
        }
        assert!(idp.with(&json!({"exp": NOW + 1, "iat": NOW - 3600})).is_ok());
    }

    #[test]
    fn a_subject_can_stand_for_a_user() {
        let idp = Idp::new();
        for sub in [json!(""), json!("a".repeat(257)), json!("a\nb"), json!("a\u{85}"), json!(7), json!(null)]
        {
            assert_eq!(idp.with(&json!({"sub": sub})), Err(WhyNot::Subject), "{sub}");
        }
        assert!(idp.with(&json!({"sub": "a".repeat(256)})).is_ok());
    }

    #[test]
    fn credentials_of_workloads_are_no_users_even_by_a_key_that_is_trusted() {
        let idp = Idp::new();
        for sub in ["spiffe://example.org/agent", "SPIFFE://example.org/agent"] {
            assert_eq!(idp.with(&json!({"sub": sub})), Err(WhyNot::Workload));
        }
        assert_eq!(idp.with(&json!({"urn:mayfly:task": {"id": "t"}})), Err(WhyNot::Workload));
        assert_eq!(idp.with(&json!({"cnf": {"jkt": "x"}})), Err(WhyNot::Bound));
        for cnf in [json!({}), json!("x"), json!([])] {
            assert_eq!(idp.with(&json!({"cnf": cnf})), Err(WhyNot::Bound), "whatever it is bound to");
        }
        // Our own: by their issuer nobody is known, and were our keys in the file, they would say what they are.
        let ours = authorities("example.org", KeyType::EcP256);
        let authority: &JwsAuthority = ours.active_jwt();
        let own = |iss: &str, typ: &str| {
            let said = json!({"iss": iss, "sub": "spiffe://example.org/agent", "aud": "mayfly", "iat": NOW,
                              "exp": NOW + 60});
            authority.sign_as(typ, &said).unwrap()
        };
        let keys = idp.keys.clone();
        for typ in ["JWT", super::super::access::TYPE] {
            assert_eq!(checked(&own("https://id.example.org", typ), &keys), Err(WhyNot::Issuer));
            assert_eq!(checked(&own(ISS, typ), &keys), Err(WhyNot::UnknownKey));
        }
    }

    /// Threats H11: a delegated token proves who delegated, and not that we may go on with it.
    #[test]
    fn h11_a_token_that_was_handed_on_or_names_who_may_act_proves_no_user() {
        let idp = Idp::new();
        let by = |name: &str| json!({"sub": name, "sub_profile": "ai_agent"});
        let deep = json!({"sub": "a", "act": {"sub": "b", "act": {"sub": "c"}}});
        for act in [
            by("spiffe://example.org/agent"),
            by("batch"),
            deep,
            json!({}),
            json!([]),
            json!("agent"),
            json!(7),
        ] {
            for name in ["act", "may_act"] {
                assert_eq!(idp.with(&json!({name: act})), Err(WhyNot::HandedOn), "{name} {act}");
            }
        }
        let kept = claims().to_string().replacen('{', r#"{"act":null,"#, 1);
        assert_eq!(idp.says(HEAD, &kept), Err(WhyNot::HandedOn), "even an empty one");
    }

    /// RFC 9068 §2.2, §5: a client that works for itself is no user.
    #[test]
    fn h11_a_program_that_works_for_itself_is_no_user() {
        let idp = Idp::new();
        for name in ["client_id", "azp"] {
            assert_eq!(idp.with(&json!({name: "ann"})), Err(WhyNot::Program), "{name}");
            assert!(idp.with(&json!({name: "portal"})).is_ok(), "by which client does not matter");
        }
        for profile in
            [json!("service"), json!("ai_agent"), json!("browser_app"), json!(""), json!(["user"]), json!(7)]
        {
            assert_eq!(idp.with(&json!({"sub_profile": profile})), Err(WhyNot::Program), "{profile}");
        }
        assert!(idp.with(&json!({"sub_profile": "user"})).is_ok());
    }

    #[test]
    fn a_key_set_is_public_says_each_name_once_and_has_something_to_check_by() {
        let (one, other) = (Forge::new("ES256"), Forge::new("RS256"));
        let read =
            |keys: Vec<Value>| UserKeys::read(json!({ "keys": keys }).to_string().as_bytes()).map(|_| ());
        assert_eq!(read(vec![jwk(&one, "a"), jwk(&other, "a")]), Err(KeySetError::Twice));
        let with = |name: &str, value: &str| {
            let mut key = jwk(&one, "a");
            key[name] = json!(value);
            read(vec![key])
        };
        assert_eq!(with("d", "AAAA"), Err(KeySetError::Secret));
        assert_eq!(read(vec![json!({"kty": "oct", "kid": "a", "k": "AAAA"})]), Err(KeySetError::Secret));
        for (name, value) in [("use", "enc"), ("alg", "ES384"), ("kid", ""), ("crv", "P-521"), ("kty", "OKP")]
        {
            assert_eq!(with(name, value), Err(KeySetError::NoKeys), "{name}");
        }
        assert_eq!(with("alg", "ES256"), Ok(()));
        assert_eq!(read(vec![]), Err(KeySetError::NoKeys));
        for text in ["", "[]", "{}", r#"{"keys":[],"keys":[]}"#] {
            assert!(UserKeys::read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_of_a_token_is_printed() {
        assert_eq!(format!("{:?}", UserToken::new("eyJ".to_owned())), "UserToken([..])");
    }

    proptest! {
        /// Whatever is changed in a token, no user comes of it.
        #[test]
        fn a_changed_token_proves_nobody(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.-]") {
            let idp = Idp::new();
            let mut token = idp.forge.sign(HEAD, &claims().to_string());
            let at = at.index(token.len());
            prop_assume!(token.as_bytes()[at] != with.as_bytes()[0]);
            token.replace_range(at..=at, &with);
            prop_assert!(checked(&token, &idp.keys).is_err());
        }
    }
}
