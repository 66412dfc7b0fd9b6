//! WIT-SVIDs as a client meets them: what the agent sent, checked before anything is shown or written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly_proto::workload::{WitBundlesRequest, WitBundlesResponse, Witsvid, WitsvidResponse};
use serde_json::Value;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::client::{Connection, answer};
use super::failure::Failure;
use crate::authority::{JwsUse, JwtBundle, JwtBundles};
use crate::id::TrustDomain;
use crate::issue::wit::{Rules, Unproven, WitRefusal, validate};
use crate::json;
use crate::secret::KeyBytes;

/// A checked answer.
#[derive(Debug)]
pub(crate) struct Update {
    /// At least one; the first is the default identity.
    pub(crate) wits: Vec<Wit>,
    /// What verifies them, and others.
    pub(crate) bundles: Bundles,
    /// Identities left out because an earlier one has the same hint.
    pub(crate) repeated_hints: Vec<String>,
}

/// One identity with its key.
#[derive(Debug)]
pub(crate) struct Wit {
    pub(crate) spiffe_id: String,
    pub(crate) hint: String,
    /// `jti`; empty when the agent sets none.
    pub(crate) id: String,
    /// The key that signed it.
    pub(crate) kid: String,
    pub(crate) not_after: i64,
    pub(crate) token: String,
    /// Private JWK.
    pub(crate) jwk: KeyBytes,
    /// The same key as PKCS#8 DER; none for a type of key that we do not give out ourselves.
    pub(crate) pkcs8: Option<KeyBytes>,
}

/// WIT keys by trust domain ID.
#[derive(Debug)]
pub(crate) struct Bundles {
    /// JWK Sets as JSON text.
    pub(crate) texts: BTreeMap<String, String>,
    pub(crate) keys: JwtBundles,
}

/// Why an answer must not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WitError {
    #[error("the agent's answer is incomplete: `{0}` is empty")]
    Empty(&'static str),
    #[error("the agent's answer is malformed: {0}")]
    Malformed(&'static str),
    #[error("the token of `{id}` does not verify: {why}")]
    Token { id: String, why: WitRefusal },
    #[error("the token of `{id}` names somebody else")]
    Name { id: String },
    #[error("the private key of `{id}` is not the one its token confirms")]
    Key { id: String },
}

impl From<WitError> for Failure {
    fn from(error: WitError) -> Self {
        Self::failed(error.to_string()).hint("nothing was printed or written")
    }
}

/// As [`answer`], with a word of advice where the agent has WIT-SVIDs switched off.
pub(crate) async fn ask<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
    let caught = async {
        match call.await {
            Err(status) if status.code() == Code::Unimplemented => Ok(Err(status)),
            other => other.map(Ok),
        }
    };
    answer(caught).await?.map_err(|status| {
        Failure::failed(format!("this agent issues no WIT-SVIDs: {}", status.message()))
            .hint("they are off by default; the operator writes `[wit]` and `enabled = true`")
    })
}

/// What verifies WIT-SVIDs, as this process may see it.
pub(crate) async fn bundles(connection: &Connection) -> Result<Bundles, Failure> {
    let call = async {
        let mut stream = connection.workload().fetch_wit_bundles(WitBundlesRequest {}).await?.into_inner();
        stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended empty"))
    };
    Ok(Bundles::read(&ask(call).await?)?)
}

impl Bundles {
    /// Keys that nobody knows are passed over one by one; a set that is none is refused. Here every key is for
    /// WIT-SVIDs, so one that does not say so counts as well.
    pub(crate) fn read(response: &WitBundlesResponse) -> Result<Self, WitError> {
        if response.bundles.is_empty() {
            return Err(WitError::Empty("bundles"));
        }
        let mut bundles = Self { texts: BTreeMap::new(), keys: JwtBundles::default() };
        for (name, text) in &response.bundles {
            let bare = name.strip_prefix("spiffe://").unwrap_or(name);
            let domain: TrustDomain =
                bare.parse().map_err(|_fault| WitError::Malformed("not a trust domain"))?;
            let set = json::object(text.as_bytes()).ok_or(WitError::Malformed("not a JWK set"))?;
            let keys = set.get("keys").and_then(Value::as_array);
            let keys: Vec<Value> =
                keys.ok_or(WitError::Malformed("not a JWK set"))?.iter().map(with_use).collect();
            bundles.keys.insert(domain, Arc::new(JwtBundle::of_keys(JwsUse::WitSvid, &keys)));
            bundles.texts.insert(name.clone(), text.clone());
        }
        Ok(bundles)
    }
}

fn with_use(jwk: &Value) -> Value {
    let mut jwk = jwk.clone();
    if let Some(members) = jwk.as_object_mut() {
        members.entry("use").or_insert_with(|| JwsUse::WitSvid.jwk_use().into());
    }
    jwk
}

impl Update {
    /// Each token is good, names its identity, and confirms the key beside it.
    pub(crate) fn check(
        response: &WitsvidResponse,
        bundles: Bundles,
        now: SystemTime,
    ) -> Result<Self, WitError> {
        let (mut wits, mut repeated_hints) = (Vec::new(), Vec::new());
        let mut hints = BTreeSet::new();
        for svid in &response.svids {
            if !svid.hint.is_empty() && !hints.insert(&svid.hint) {
                repeated_hints.push(svid.spiffe_id.clone());
                continue;
            }
            wits.push(check(svid, &bundles.keys, now)?);
        }
        if wits.is_empty() {
            return Err(WitError::Empty("svids"));
        }
        Ok(Self { wits, bundles, repeated_hints })
    }
}

fn check(svid: &Witsvid, bundles: &JwtBundles, now: SystemTime) -> Result<Wit, WitError> {
    for (field, name) in
        [(&svid.spiffe_id, "spiffe_id"), (&svid.wit_svid, "wit_svid"), (&svid.wit_svid_key, "wit_svid_key")]
    {
        if field.is_empty() {
            return Err(WitError::Empty(name));
        }
    }
    let id = || svid.spiffe_id.clone();
    let rules = Rules { bundles, revoked: &|_| false, longest: None, now };
    let unproven = validate(&svid.wit_svid, &rules).map_err(|why| WitError::Token { id: id(), why })?;
    if unproven.named().as_str() != svid.spiffe_id {
        return Err(WitError::Name { id: id() });
    }
    let pkcs8 = private_key(&svid.wit_svid_key, &unproven).ok_or_else(|| WitError::Key { id: id() })?;
    let claims = unproven.claims();
    Ok(Wit {
        spiffe_id: id(),
        hint: svid.hint.clone(),
        id: claims.get("jti").and_then(Value::as_str).unwrap_or_default().to_owned(),
        kid: kid(&svid.wit_svid),
        not_after: claims.get("exp").and_then(Value::as_i64).unwrap_or_default(),
        token: svid.wit_svid.clone(),
        jwk: KeyBytes::new(svid.wit_svid_key.clone().into_bytes()),
        pkcs8,
    })
}

/// Of a token that was found to be good.
fn kid(token: &str) -> String {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let header = header.and_then(|bytes| json::object(&bytes)).unwrap_or_default();
    header.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A private JWK as it came.
#[derive(serde::Deserialize)]
struct PrivateJwk {
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    d: String,
}

impl Drop for PrivateJwk {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.d);
    }
}

impl fmt::Debug for PrivateJwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateJwk").field("kty", &self.kty).finish_non_exhaustive()
    }
}

/// The key as PKCS#8, if we can write it so; the outer `None` when it is not the one that the token confirms.
fn private_key(jwk: &str, unproven: &Unproven) -> Option<Option<KeyBytes>> {
    let private: PrivateJwk = serde_json::from_str(jwk).ok()?;
    let confirmed = unproven.claims().get("cnf")?.get("jwk")?;
    let same =
        |name: &str, value: &str| confirmed.get(name).and_then(Value::as_str).unwrap_or_default() == value;
    let public = [("kty", &private.kty), ("crv", &private.crv), ("x", &private.x), ("y", &private.y)];
    let public = public.into_iter().chain([("n", &private.n), ("e", &private.e)]);
    if !public.into_iter().all(|(name, value)| same(name, value)) {
        return None;
    }
    let algorithm = match private.crv.as_str() {
        "P-256" => &ECDSA_P256_SHA256_FIXED_SIGNING,
        "P-384" => &ECDSA_P384_SHA384_FIXED_SIGNING,
        "P-521" => &ECDSA_P521_SHA512_FIXED_SIGNING,
        _ => return Some(None),
    };
    let scalar = Zeroizing::new(URL_SAFE_NO_PAD.decode(&private.d).ok()?);
    let (x, y) = (URL_SAFE_NO_PAD.decode(&private.x).ok()?, URL_SAFE_NO_PAD.decode(&private.y).ok()?);
    // The library checks that the two halves belong together.
    let point = [&[0x04], x.as_slice(), y.as_slice()].concat();
    let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &scalar, &point).ok()?;
    let document = pair.to_pkcs8v1().ok()?;
    Some(Some(KeyBytes::new(document.as_ref().to_vec())))
}
