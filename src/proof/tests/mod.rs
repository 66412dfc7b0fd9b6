//! Threats H12: a token that is bound to something is good for nobody who does not have that.

mod dpop;
mod parts;
mod types;
mod wpt;

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::authority::jwk_thumbprint;
use crate::authority::testing::{Forge, NOW, now};

use Refusal as R;

const TOKEN: &str = "eyJ0eXAiOiJhdCtqd3QifQ.e30.c2lnbmF0dXJl";
const URL: &str = "https://wiki.example.org/api/page";

fn hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()))
}

/// The public half, as a client sends it.
fn public(forge: &Forge) -> Value {
    let mut jwk = forge.jwk("k");
    for name in ["kid", "use"] {
        jwk.as_object_mut().unwrap().remove(name);
    }
    jwk
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// Somebody who asks a resource, and what it knows of him.
struct Client {
    key: Forge,
    /// Of his token.
    claims: Map<String, Value>,
    replays: Replays,
    rules: Rules,
}

impl Client {
    fn new(alg: &'static str) -> Self {
        let key = Forge::new(alg);
        let jkt = jwk_thumbprint(&public(&key)).unwrap();
        let claims = object(&json!({ "sub": "ann", "cnf": { "jkt": jkt } }));
        Self { key, claims, replays: Replays::new(1_000), rules: Rules::default() }
    }

    fn header(&self) -> Value {
        json!({ "typ": "dpop+jwt", "alg": self.key.alg, "jwk": public(&self.key) })
    }

    fn said() -> Value {
        json!({ "jti": "p1", "htm": "GET", "htu": URL, "iat": NOW, "ath": hash(TOKEN) })
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        self.key.sign(&header.to_string(), &claims.to_string())
    }

    fn proof(&self) -> String {
        self.sign(&self.header(), &Self::said())
    }

    fn shows(&mut self, shown: &Shown<'_>, request: &Request<'_>) -> Result<Holder, R> {
        check(shown, &self.claims, request, &self.rules, &mut self.replays)
    }

    fn shows_proof(&mut self, proof: &str) -> Result<Holder, R> {
        self.shows_proofs(&[proof])
    }

    fn shows_proofs(&mut self, proofs: &[&str]) -> Result<Holder, R> {
        let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs, certificate: None };
        self.shows(&shown, &Request { method: "GET", url: URL, now: now() })
    }

    /// With one claim changed; null: left out.
    fn with(&mut self, name: &str, value: Value) -> Result<Holder, R> {
        let proof = self.sign(&self.header(), &changed(Self::said(), name, value));
        self.shows_proof(&proof)
    }

    /// With one member of the header changed.
    fn under(&mut self, name: &str, value: Value) -> Result<Holder, R> {
        let proof = self.sign(&changed(self.header(), name, value), &Self::said());
        self.shows_proof(&proof)
    }
}

fn changed(mut whole: Value, name: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(whole.as_object_mut().unwrap().remove(name)),
        value => whole[name] = value,
    }
    whole
}
