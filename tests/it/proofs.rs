//! Threats H12: a token that is bound to something is good for nobody who has only the token. The agent issues it, a
//! resource server asks introspection and links `mayfly::proof`; who copied it has everything but the key.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly::authority::{JwsUse, JwtBundle, JwtBundles, jwk_thumbprint};
use mayfly::clock::{Clock as _, SystemClock, unix_seconds};
use mayfly::issue::wit::{ProofRefusal, Rules as WitRules, Unproven, validate};
use mayfly::proof::{Holder, Refusal, Replays, Request, Rules, Scheme, Shown, Used, check, wpt};
use mayfly_harness::tasks::detail;
use mayfly_proto::task as proto;
use serde_json::{Map, Value, json};

use crate::children::{end, wanted};
use crate::users::{WIKI, World, begin};

const URL: &str = "https://wiki.example.org/page";

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn hash(token: &str) -> String {
    encoded(digest(&SHA256, token.as_bytes()))
}

fn now() -> SystemTime {
    SystemClock.wall()
}

/// A client's key.
struct Key(EcdsaKeyPair);

impl Key {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    /// Of a private JWK.
    fn of(jwk: &Value) -> Self {
        let part = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
        let point = [&[4][..], &part("x"), &part("y")].concat();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        Self(EcdsaKeyPair::from_private_key_and_public_key(algorithm, &part("d"), &point).unwrap())
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "x": encoded(x), "y": encoded(y)})
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = [header, claims].map(|part| encoded(part.to_string())).join(".");
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encoded(signature))
    }

    fn dpop(&self, token: &str, id: &str) -> String {
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk()});
        let iat = unix_seconds(now());
        self.sign(&header, &json!({"jti": id, "htm": "GET", "htu": URL, "iat": iat, "ath": hash(token)}))
    }

    fn wpt(&self, wit: &str, id: &str) -> String {
        let exp = unix_seconds(now()) + 60;
        let claims = json!({"aud": URL, "exp": exp, "jti": id, "wth": hash(wit)});
        self.sign(&json!({"typ": "wpt+jwt", "alg": "ES256"}), &claims)
    }
}

/// A resource server, with what it remembers.
struct Server<'a> {
    world: &'a World,
    replays: Replays,
}

impl<'a> Server<'a> {
    fn new(world: &'a World) -> Self {
        Self { world, replays: Replays::new(1_000) }
    }

    /// `None`: the token is not good.
    fn claims(&self, token: &str) -> Option<Map<String, Value>> {
        let said = self.world.introspect(token);
        (said["active"] == true).then(|| said.as_object().unwrap().clone())
    }

    fn takes(&mut self, shown: &Shown<'_>) -> Option<Result<Holder, Refusal>> {
        let claims = self.claims(shown.token)?;
        let request = Request { method: "GET", url: &format!("{URL}?id=7"), now: now() };
        Some(check(shown, &claims, &request, &Rules::default(), &mut self.replays))
    }

    fn takes_dpop(&mut self, token: &str, proof: &str) -> Option<Result<Holder, Refusal>> {
        self.takes(&Shown { token, scheme: Scheme::Dpop, proofs: &[proof], certificate: None })
    }
}

fn request(task: &proto::Task, format: proto::Format) -> proto::IssueRequest {
    proto::IssueRequest { details: vec![detail(WIKI, &["read"])], ..wanted(task, format) }
}

#[test]
fn h12_a_copied_token_is_good_for_nobody_without_its_key_and_for_nobody_after_its_task() {
    let world = World::with("");
    let mut planner = world.start("planner");
    let task = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    let (mine, thief) = (Key::new(), Key::new());
    let jkt = jwk_thumbprint(&mine.jwk()).unwrap();
    let binding = Some(proto::issue_request::Binding::Jkt(jkt.clone()));
    let bound = proto::IssueRequest { binding, ..request(&task, proto::Format::AccessToken) };
    let token = planner.task_call::<proto::Credential>("Issue", &bound).unwrap().token;
    let mut server = Server::new(&world);
    assert_eq!(server.world.introspect(&token)["token_type"], "DPoP");
    let proof = mine.dpop(&token, "p1");
    let holder = Holder::Key { thumbprint: jkt, proof_id: "p1".to_owned() };
    assert_eq!(server.takes_dpop(&token, &proof), Some(Ok(holder)));
    // Who listened has the token and the proof.
    let refused = |answer: Option<Result<Holder, Refusal>>| answer.unwrap().unwrap_err();
    assert_eq!(refused(server.takes_dpop(&token, &proof)), Refusal::Used(Used::Again));
    assert_eq!(refused(server.takes_dpop(&token, &thief.dpop(&token, "p2"))), Refusal::OtherKey);
    let as_bearer = Shown { token: &token, scheme: Scheme::Bearer, proofs: &[], certificate: None };
    assert_eq!(refused(server.takes(&as_bearer)), Refusal::Scheme);
    let another = planner.task_call::<proto::Credential>("Issue", &bound).unwrap().token;
    let fresh = mine.dpop(&token, "p3");
    assert_eq!(refused(server.takes_dpop(&another, &fresh)), Refusal::OtherToken, "made for another token");
    assert!(server.takes_dpop(&another, &mine.dpop(&another, "p4")).unwrap().is_ok());
    end(&mut planner, &task).unwrap();
    assert_eq!(server.takes_dpop(&token, &fresh), None, "however good the proof is");
}

#[test]
fn h12_a_token_that_is_bound_to_a_certificate_is_for_its_connection() {
    let world = World::with("");
    let mut planner = world.start("planner");
    let task = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    let mut svid = || -> proto::Credential {
        planner.task_call("Issue", &request(&task, proto::Format::X509Svid)).unwrap()
    };
    let (own, other) = (svid(), svid());
    let binding = Some(proto::issue_request::Binding::X509CredentialId(own.id.clone()));
    let bound = proto::IssueRequest { binding, ..request(&task, proto::Format::AccessToken) };
    let token = planner.task_call::<proto::Credential>("Issue", &bound).unwrap().token;
    let mut server = Server::new(&world);
    let leaf = |svid: &proto::Credential| svid.x509_svid.clone();
    let mut takes = |certificate: Option<&[u8]>| {
        let shown = Shown { token: &token, scheme: Scheme::Bearer, proofs: &[], certificate };
        server.takes(&shown).unwrap()
    };
    assert_eq!(takes(Some(&leaf(&own))), Ok(Holder::Certificate));
    assert_eq!(takes(Some(&leaf(&other))), Err(Refusal::OtherCertificate), "of the very same agent");
    assert_eq!(takes(None), Err(Refusal::NoCertificate));
}

#[test]
fn h12_a_copied_wit_svid_is_nobody_without_its_key() {
    let world = World::with("\n[wit]\nenabled = true\n");
    let (mut planner, mut worker) = (world.start("planner"), world.start("worker"));
    let task = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    let mut issue = || -> proto::Credential {
        planner.task_call("Issue", &request(&task, proto::Format::WitSvid)).unwrap()
    };
    let (one, other) = (issue(), issue());
    let bundles = worker.wit_bundles().unwrap();
    let unproven = |token: &str| -> Unproven {
        let set: Value = serde_json::from_str(bundles["spiffe://example.org"].as_str().unwrap()).unwrap();
        let own = JwtBundle::of_keys(JwsUse::WitSvid, set["keys"].as_array().unwrap());
        let mut trusted = JwtBundles::default();
        trusted.insert("example.org".parse().unwrap(), std::sync::Arc::new(own));
        validate(token, &WitRules { bundles: &trusted, revoked: &|_| false, longest: None, now: now() })
            .unwrap()
    };
    let key =
        |credential: &proto::Credential| Key::of(&serde_json::from_slice(&credential.private_key).unwrap());
    let mut replays = Replays::new(1_000);
    let mut takes = |proof: &str| {
        let request = Request { method: "GET", url: URL, now: now() };
        let shown = wpt::Shown { proofs: &[proof], access_token: None };
        wpt::check(&unproven(&one.token), &shown, &request, &mut replays)
    };
    let proof = key(&one).wpt(&one.token, "p1");
    assert_eq!(takes(&proof).unwrap().spiffe_id.as_str(), crate::users::PLANNER);
    assert_eq!(takes(&proof).unwrap_err(), wpt::Refusal::Used(Used::Again));
    let other_token = key(&one).wpt(&other.token, "p4");
    for (forged, why) in [
        (key(&other).wpt(&one.token, "p2"), ProofRefusal::Key),
        (Key::new().wpt(&one.token, "p3"), ProofRefusal::Key),
        (other_token, ProofRefusal::OtherToken),
    ] {
        let refusal = takes(&forged).unwrap_err();
        assert_eq!((refusal, refusal.status()), (wpt::Refusal::Proof(why), 400));
    }
}
