//! What an upstream answers: an honest answer, and each lie by its name.

use rcgen::SanType;

use super::*;

fn refused(lie: Lie) -> AnswerFault {
    let fake = Fake::new("root");
    fake.be(Mood::Lying(lie));
    match open(fake) {
        Err(LoadError::Upstream(UpstreamError::Answer(fault))) => fault,
        other => panic!("{:?}", other.map(|custody| custody.set())),
    }
}

#[test]
fn an_honest_answer_is_used_and_the_root_is_the_bundle() {
    let fake = Fake::new("root");
    let set = open(Arc::clone(&fake) as Arc<dyn Upstream>).unwrap().set().unwrap();
    let authority = set.active_x509();
    assert_eq!(set.anchors(), vec![fake.root.clone()]);
    assert_eq!(authority.intermediates(), authority.certificate());
    assert_eq!(set.parent_crls().len(), 1);
    assert_eq!(authority.not_after(), now() + Duration::from_secs(DAY), "a day, whatever `authority.ttl` is");
}

/// Vault repeats the certificate and appends the root.
#[test]
fn what_an_upstream_repeats_is_left_out() {
    let fake = Fake::new("root");
    fake.be(Mood::Lying(|fake, wanted, params| {
        let mut signed = fake.signed(wanted, &params);
        signed.chain = [signed.chain.clone(), signed.chain, signed.roots.clone()].concat();
        signed
    }));
    let set = open(fake).unwrap().set().unwrap();
    assert_eq!(set.active_x509().intermediates(), set.active_x509().certificate());
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn each_lie_has_its_name() {
    type Change = fn(&mut CertificateParams);
    fn changed(fake: &Fake, wanted: &Wanted, mut params: CertificateParams, change: Change) -> Signed {
        change(&mut params);
        fake.signed(wanted, &params)
    }
    let cases: Vec<(Lie, AnswerFault)> = vec![
        (|f, w, p| Signed { chain: vec![], ..f.signed(w, &p) }, AnswerFault::Size("no certificate")),
        (|f, w, p| Signed { roots: vec![], ..f.signed(w, &p) }, AnswerFault::Size("no root")),
        (
            |f, w, p| Signed { roots: vec![Bytes::from(vec![0; 5 << 20])], ..f.signed(w, &p) },
            AnswerFault::Size("too many bytes"),
        ),
        (
            |f, w, p| Signed { chain: vec![Bytes::from_static(b"x"); 9], ..f.signed(w, &p) },
            AnswerFault::Size("too many certificates"),
        ),
        (
            |f, w, p| Signed { chain: vec![Bytes::from_static(b"x")], ..f.signed(w, &p) },
            AnswerFault::Unreadable("certificate"),
        ),
        (
            |f, w, p| {
                let leaf = p.signed_by(&KeyPair::generate().unwrap(), &f.issuer).unwrap();
                Signed { chain: vec![Bytes::from(leaf.der().to_vec())], ..f.signed(w, &p) }
            },
            AnswerFault::Key,
        ),
        (|f, w, p| changed(f, w, p, |p| p.is_ca = IsCa::ExplicitNoCa), AnswerFault::NotCa),
        (
            |f, w, p| changed(f, w, p, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            AnswerFault::PathLength,
        ),
        (|f, w, p| changed(f, w, p, |p| p.key_usages.truncate(1)), AnswerFault::Usage),
        (
            |f, w, p| changed(f, w, p, |p| p.key_usages.push(KeyUsagePurpose::DigitalSignature)),
            AnswerFault::Usage,
        ),
        (|f, w, p| changed(f, w, p, |p| p.subject_alt_names.clear()), AnswerFault::Name),
        (
            |f, w, p| {
                changed(f, w, p, |p| {
                    let other = "spiffe://other.org".try_into().unwrap();
                    p.subject_alt_names = vec![SanType::URI(other)];
                })
            },
            AnswerFault::Name,
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.distinguished_name = root_params("root", 0).distinguished_name),
            AnswerFault::Subject,
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.distinguished_name = rcgen::DistinguishedName::new()),
            AnswerFault::Subject,
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.not_after = date(now() + Duration::from_secs(3 * DAY)).unwrap()),
            AnswerFault::Validity("is longer than was asked for"),
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.not_after = date(now() + Duration::from_secs(30)).unwrap()),
            AnswerFault::Validity("is over or ends within a minute"),
        ),
        (
            |f, w, p| changed(f, w, p, |p| p.not_before = date(now() + Duration::from_secs(30)).unwrap()),
            AnswerFault::Validity("has not begun: compare the clocks"),
        ),
        (
            |f, w, p| Signed { roots: vec![Fake::new("root").root.clone()], ..f.signed(w, &p) },
            AnswerFault::Crl("is by nobody above us"),
        ),
        (
            |f, w, p| {
                let roots = vec![Fake::new("root").root.clone()];
                Signed { roots, parent_crls: vec![], ..f.signed(w, &p) }
            },
            AnswerFault::Path(webpki::Error::UnknownIssuer),
        ),
        (
            |f, w, p| Signed {
                parent_crls: vec![f.crl(1, Duration::from_secs(5), &f.key_id)],
                ..f.signed(w, &p)
            },
            AnswerFault::Crl("is not in force"),
        ),
        (
            |f, w, p| Signed { parent_crls: vec![Bytes::from_static(b"x")], ..f.signed(w, &p) },
            AnswerFault::Crl("cannot be used by verifiers"),
        ),
        (
            |f, w, p| {
                let one = f.signed(w, &p);
                Signed {
                    parent_crls: vec![
                        one.parent_crls[0].clone(),
                        f.crl(2, Duration::from_secs(DAY), &f.key_id),
                    ],
                    ..one
                }
            },
            AnswerFault::Crl("is there twice of one issuer"),
        ),
    ];
    for (at, (lie, expected)) in cases.into_iter().enumerate() {
        let found = refused(lie);
        let same = match (&found, &expected) {
            (AnswerFault::Path(_), AnswerFault::Path(_)) => true,
            (found, expected) => found == expected,
        };
        assert!(same, "case {at}: {found:?}, not {expected:?}");
    }
}
