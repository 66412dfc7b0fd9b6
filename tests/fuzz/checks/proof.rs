//! No bytes make the reader of DPoP proofs or that of URLs panic; nothing is proven that the token's key did not sign;
//! what is proven by it is for the request and the token that were shown, and only once; and a URL in its normal form is
//! its own.

use std::sync::OnceLock;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly::authority::jwk_thumbprint;
use mayfly::clock::from_unix_seconds;
use mayfly::proof::{Binding, Refusal, Replays, Request, Rules, Scheme, Shown, Target, Used, check as shows};
use serde_json::{Map, Value, json};

const NOW: u64 = 1_800_000_000;
const URL: &str = "https://h.example/a";
const TOKEN: &str = "a.b.c";

struct Key {
    pair: EcdsaKeyPair,
    jwk: Value,
}

fn key() -> &'static Key {
    static KEY: OnceLock<Key> = OnceLock::new();
    KEY.get_or_init(|| {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": text(x), "y": text(y)});
        Key { pair, jwk }
    })
}

fn shown(proof: &str, replays: &mut Replays) -> Result<(), Refusal> {
    let claims = json!({"cnf": {"jkt": jwk_thumbprint(&key().jwk)}});
    let claims = claims.as_object().expect("an object");
    let request = Request { method: "GET", url: URL, now: from_unix_seconds(NOW) };
    let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs: &[proof], certificate: None };
    shows(&shown, claims, &request, &Rules::default(), replays).map(drop)
}

/// Signed by the token's key: what the input says of header and claims.
fn signed(header: &Value, claims: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let signature = key().pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// One input.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut replays = Replays::new(100);
    assert!(shown(text, &mut replays).is_err(), "a forged proof");
    if let Some(target) = Target::of_request(text) {
        assert_eq!(Target::stated(target.as_str()), Some(target), "normal is normal");
    }
    let Ok(claims) = serde_json::from_str::<Map<String, Value>>(text) else { return };
    drop(Binding::of(&claims));
    let mut header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": key().jwk});
    if let Some(more) = claims.get("header").and_then(Value::as_object) {
        header.as_object_mut().expect("an object").extend(more.clone());
    }
    // A hash is hard to guess: where the input only says where it goes, ours is put in.
    let ours = URL_SAFE_NO_PAD.encode(digest(&SHA256, TOKEN.as_bytes()));
    let proof = signed(&header, &text.replace("\"ours\"", &format!("\"{ours}\"")));
    if shown(&proof, &mut replays).is_ok() {
        let said = |name: &str| claims.get(name).and_then(Value::as_str).expect("a text");
        assert_eq!((said("htm"), said("ath")), ("GET", "ours"));
        assert_eq!(Target::stated(said("htu")), Target::of_request(URL));
        let issued = claims.get("iat").and_then(Value::as_u64).expect("a time");
        assert!((NOW - 60..=NOW + 30).contains(&issued) && !said("jti").is_empty());
        assert_eq!(shown(&proof, &mut replays), Err(Refusal::Used(Used::Again)), "twice");
    }
}
