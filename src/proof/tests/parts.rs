//! Bindings, certificates, URLs, the memory of what was used, and what is answered.

use std::sync::Mutex;

use super::super::replay::Kind;
use super::*;

const DER: &[u8] = b"a certificate";

fn binding(cnf: &Value) -> Result<Option<Binding>, R> {
    Binding::of(&object(&json!({ "cnf": cnf })))
}

#[test]
fn h12_what_a_token_is_bound_to_is_understood_or_refused() {
    assert_eq!(Binding::of(&object(&json!({}))), Ok(None));
    let sha256 = hash("x");
    assert_eq!(binding(&json!({ "jkt": sha256 })), Ok(Some(Binding::Key(sha256.clone()))));
    assert!(matches!(binding(&json!({ "x5t#S256": sha256 })), Ok(Some(Binding::Certificate(_)))));
    let half = sha256.get(..42).unwrap();
    for cnf in [
        json!(null),
        json!({}),
        json!("x"),
        json!({ "jkt": 7 }),
        json!({ "jkt": "" }),
        json!({ "jkt": half }),
        json!({ "jkt": format!("{sha256}=") }),
        json!({ "x5t#S256": half }),
        json!({ "x5t": sha256 }),
        json!({ "kid": "k" }),
        json!({ "jwk": {} }),
        json!({ "jku": "https://evil.example.org" }),
        json!({ "jkt": sha256, "x5t#S256": sha256 }),
        json!({ "jkt": sha256, "other": 1 }),
    ] {
        assert_eq!(binding(&cnf), Err(R::Binding), "{cnf}");
    }
}

#[test]
fn h12_a_token_that_is_bound_to_a_certificate_is_for_its_connection_alone() {
    let mut client = Client::new("ES256");
    let sha256 = URL_SAFE_NO_PAD.encode(digest(&SHA256, DER));
    client.claims = object(&json!({ "cnf": { "x5t#S256": sha256 } }));
    let request = Request { method: "GET", url: URL, now: now() };
    let proof = client.proof();
    let proofs = [&*proof];
    let mut shown = Shown { token: TOKEN, scheme: Scheme::Bearer, proofs: &[], certificate: Some(DER) };
    assert_eq!(client.shows(&shown, &request), Ok(Holder::Certificate));
    assert_eq!(client.shows(&shown, &request), Ok(Holder::Certificate), "as often as he likes");
    for other in [&DER[1..], b"", b"a certificatE"] {
        shown.certificate = Some(other);
        assert_eq!(client.shows(&shown, &request), Err(R::OtherCertificate));
    }
    let of_a_key = Binding::Key(sha256);
    assert_eq!(of_a_key.check_certificate(DER), Err(R::OtherCertificate), "the hash of one is no key");
    shown.certificate = None;
    assert_eq!(client.shows(&shown, &request), Err(R::NoCertificate));
    shown = Shown { scheme: Scheme::Dpop, proofs: &proofs, certificate: Some(DER), ..shown };
    assert_eq!(client.shows(&shown, &request), Err(R::Scheme), "not by a proof of whatever key");
}

/// RFC 9449 §7.2: a copied token would be a bearer token to whoever takes it as one.
#[test]
fn h12_a_bound_token_is_no_bearer_token_and_a_bearer_token_is_not_bound() {
    let mut client = Client::new("ES256");
    let proof = client.proof();
    let request = Request { method: "GET", url: URL, now: now() };
    let shown = Shown { token: TOKEN, scheme: Scheme::Bearer, proofs: &[&proof], certificate: Some(DER) };
    assert_eq!(client.shows(&shown, &request), Err(R::Scheme));
    client.claims = object(&json!({ "sub": "ann" }));
    for scheme in [Scheme::Bearer, Scheme::Dpop] {
        assert_eq!(client.shows(&Shown { scheme, ..shown }, &request), Err(R::Unbound));
    }
    assert!(client.replays.is_empty());
}

#[test]
fn urls_that_mean_the_same_are_the_same_and_no_others() {
    let normal = |url: &str| Target::of_request(url).map(|target| target.as_str().to_owned());
    for (url, means) in [
        ("https://h", Some("https://h/")),
        ("HTTPS://H.Example:443/A", Some("https://h.example/A")),
        ("http://h:80/", Some("http://h/")),
        ("http://h:443/", Some("http://h:443/")),
        ("https://h:/a", Some("https://h/a")),
        ("https://h:0443/a", Some("https://h/a")),
        ("https://[2001:DB8::1]:8443/a?b", Some("https://[2001:db8::1]:8443/a")),
        ("https://h/%7Ea/%2f%c3%a4?q#f", Some("https://h/~a/%2F%C3%A4")),
        ("https://h#f", Some("https://h/")),
        ("https://h?q", Some("https://h/")),
        ("https://h/a%2", None),
        ("https://h/a%zz", None),
        ("https://h/%+1", None),
        ("https://h/a/../b", None),
        ("https://h/a/%2e%2E/b", None),
        ("https://h/./b", None),
        ("https://h/...", Some("https://h/...")),
        ("https://u@h/", None),
        ("https://u:p@h/", None),
        ("https://h:99999/", None),
        ("https://h:x/", None),
        ("https://h:+443/", None),
        ("https://h:1:2/", None),
        ("https://[::1/", None),
        ("https://[]/", None),
        ("https://[::1]x/", None),
        ("https://a[::1]/", None),
        ("https://h%41/", None),
        ("https://h\\evil/", None),
        ("https://h/\u{e4}", None),
        ("https://h/a b", None),
        ("https:///a", None),
        ("//h/a", None),
        ("spiffe://h/a", None),
    ] {
        assert_eq!(normal(url).as_deref(), means, "{url}");
    }
    assert_eq!(normal(&format!("https://h/{}", "a".repeat(8 * 1024))), None);
}

proptest! {
    /// What is normal stays as it is, so that two normal forms are compared and nothing else.
    #[test]
    fn a_normal_url_is_its_own_normal_form(url in "https?://[a-zA-Z0-9.]{1,8}(:[0-9]{0,5})?(/[a-zA-Z%0-9._~-]{0,6}){0,4}") {
        if let Some(target) = Target::of_request(&url) {
            prop_assert_eq!(Target::stated(target.as_str()), Some(target.clone()));
        }
    }
}

const KEY: &str = "key";

#[test]
fn a_proof_is_remembered_for_as_long_as_it_could_be_shown_and_no_longer() {
    let mut replays = Replays::new(1_000);
    let mut first = |id: &str, until, now| replays.first(Kind::Dpop, KEY, id, until, now);
    assert_eq!(first("a", NOW + 60, NOW), Ok(()));
    assert_eq!(first("a", NOW + 60, NOW + 60), Err(Used::Again));
    assert_eq!(first("b", NOW + 200, NOW + 61), Ok(()));
    assert_eq!(replays.len(), 1, "`a` is forgotten");
    // A clock that is set back does not bring it back to life.
    assert_eq!(replays.first(Kind::Dpop, KEY, "a", NOW + 60, NOW), Err(Used::Again));
    assert_eq!(replays.first(Kind::Dpop, KEY, "c", NOW + 61, NOW), Ok(()));
}

#[test]
fn names_are_of_one_key_and_one_kind_of_proof() {
    let mut replays = Replays::new(1_000);
    let mut first = |kind, key: &str, id: &str| replays.first(kind, key, id, NOW, NOW);
    assert_eq!(first(Kind::Dpop, "ab", "c"), Ok(()));
    assert_eq!(first(Kind::Dpop, "a", "bc"), Ok(()), "threats H13: what is put together is kept apart");
    assert_eq!(first(Kind::Dpop, "x", "c"), Ok(()));
    assert_eq!(first(Kind::Wpt, "ab", "c"), Ok(()));
    assert_eq!(first(Kind::Wpt, "ab", "c"), Err(Used::Again));
}

#[test]
fn h12_a_memory_that_is_full_takes_nothing_and_nobody_fills_it_alone() {
    let mut replays = Replays::new(32);
    let mut first = |key: &str, id: u32, now| replays.first(Kind::Dpop, key, &id.to_string(), NOW + 60, now);
    assert_eq!(first("greedy", 0, NOW), Ok(()));
    assert_eq!(first("greedy", 1, NOW), Ok(()));
    assert_eq!(first("greedy", 2, NOW), Err(Used::Full), "a sixteenth");
    for n in 0..30 {
        assert_eq!(first(&format!("key {n}"), 0, NOW), Ok(()));
    }
    assert_eq!(first("one more", 0, NOW), Err(Used::Full));
    assert_eq!(first("greedy", 0, NOW), Err(Used::Again), "nothing was pushed out");
    assert_eq!(first("one more", 0, NOW + 61), Err(Used::Again), "over by then");
    assert_eq!(replays.first(Kind::Dpop, "one more", "0", NOW + 90, NOW + 61), Ok(()), "there is room again");
    assert_eq!(Replays::new(0).first(Kind::Dpop, KEY, "a", NOW, NOW), Err(Used::Full));
    assert_eq!((R::Used(Used::Full).status(), R::Used(Used::Full).challenge(&[])), (503, None));
}

/// Threats H14: the check and the memory of it are one step.
#[test]
fn h14_of_a_hundred_that_show_a_proof_at_once_one_is_served() {
    let client = Client::new("ES256");
    let (proof, replays) = (client.proof(), Mutex::new(Replays::new(1_000)));
    let one = || {
        let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs: &[&proof], certificate: None };
        let request = Request { method: "GET", url: URL, now: now() };
        check(&shown, &client.claims, &request, &client.rules, &mut replays.lock().unwrap()).is_ok()
    };
    let served = std::thread::scope(|scope| {
        let all: Vec<_> = (0..100).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).filter(|served| *served).count()
    });
    assert_eq!(served, 1);
}

proptest! {
    /// Whatever comes in whatever order, no proof is taken twice while it could be shown, and there is never more than
    /// there is room for.
    #[test]
    fn nothing_is_taken_twice(
        all in prop::collection::vec((0_u8..4, 0_u8..6, 0_u64..40, 0_u64..50), 0..200),
    ) {
        let mut replays = Replays::new(40);
        let mut taken = std::collections::HashMap::new();
        for (key, id, lasts, at) in all {
            let (now, until) = (NOW + at, NOW + at + lasts);
            if replays.first(Kind::Dpop, &key.to_string(), &id.to_string(), until, now).is_ok() {
                let before: Option<u64> = taken.insert((key, id), until);
                prop_assert!(before.is_none_or(|before| before < until), "the one before had ended");
            }
            prop_assert!(replays.len() <= 40);
        }
    }
}

#[test]
fn a_client_is_told_who_is_to_blame_and_no_more() {
    let es256 = [JwsAlgorithm::Es256, JwsAlgorithm::Ps256];
    let token = "DPoP error=\"invalid_token\", algs=\"ES256 PS256\"";
    let proof = "DPoP error=\"invalid_dpop_proof\", algs=\"ES256 PS256\"";
    for (refusal, blame, status, challenge) in [
        (R::Unbound, Blame::Token, 401, Some(token)),
        (R::Binding, Blame::Token, 401, Some(token)),
        (R::Scheme, Blame::Token, 401, Some(token)),
        (R::OtherKey, Blame::Token, 401, Some(token)),
        (R::NoCertificate, Blame::Token, 401, Some("Bearer error=\"invalid_token\"")),
        (R::OtherCertificate, Blame::Token, 401, Some("Bearer error=\"invalid_token\"")),
        (R::NoProof, Blame::Proof, 401, Some(proof)),
        (R::PrivateKey, Blame::Proof, 401, Some(proof)),
        (R::OtherToken, Blame::Proof, 401, Some(proof)),
        (R::Used(Used::Again), Blame::Proof, 401, Some(proof)),
        (R::Used(Used::Full), Blame::Receiver, 503, None),
        (R::Url, Blame::Receiver, 500, None),
    ] {
        let said = (refusal.blame(), refusal.status(), refusal.challenge(&es256));
        assert_eq!(said, (blame, status, challenge.map(str::to_owned)), "{refusal:?}");
    }
    for mismatch in [R::OtherKey, R::OtherCertificate, R::OtherToken] {
        assert!(mismatch.is_mismatch());
    }
    assert!(!R::Stale.is_mismatch() && !R::NoProof.is_mismatch());
}

#[test]
fn no_token_is_printed() {
    let shown = Shown { token: TOKEN, scheme: Scheme::Dpop, proofs: &["p"], certificate: None };
    assert_eq!(format!("{shown:?}"), "Shown(Dpop)");
    let shown = super::super::wpt::Shown { proofs: &["p"], access_token: Some(TOKEN) };
    assert_eq!(format!("{shown:?}"), "Shown([..])");
}
