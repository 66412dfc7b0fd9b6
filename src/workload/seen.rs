//! A process as it was attested, for the record.

use aws_lc_rs::digest;
use mayfly_attestors::{Attestation, Process};

use crate::audit::{self, Pod};

/// The process, where it is, what it runs, and what is odd about it.
pub(super) fn agent(process: &Process, attestation: &Attestation, spiffe_id: Option<String>) -> audit::Agent {
    let first = |kind, key| attestation.values(kind, key).next().map(str::to_owned);
    audit::Agent {
        spiffe_id,
        cgroup: first("cgroup", "path"),
        exe_sha256: first("unix", "sha256"),
        image_digest: image_digest(
            attestation.values("docker", "image_config_digest"),
            attestation.values("k8s", "container-image"),
        ),
        k8s: pod(|key| first("k8s", key)).map(Box::new),
        selectors_hash: Some(selectors_hash(attestation)),
        posture: attestation.posture().names(),
        ..audit::Agent::new(process.key(), process.uid())
    }
}

fn selectors_hash(attestation: &Attestation) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for selector in attestation.selectors() {
        context.update(selector.to_string().as_bytes());
        context.update(b"\n");
    }
    crate::id::hex_text(context.finish().as_ref())
}

fn pod(first: impl Fn(&'static str) -> Option<String>) -> Option<Pod> {
    let pod = Pod { ns: first("ns"), pod: first("pod-name"), sa: first("sa") };
    (pod != Pod::default()).then_some(pod)
}

/// The digest of the container's image: as the engine says, else as the kubelet has reported it. A reference without one
/// names no image for sure, and of two that differ nobody says which is meant.
fn image_digest<'a>(
    mut engine: impl Iterator<Item = &'a str>,
    kubelet: impl Iterator<Item = &'a str>,
) -> Option<String> {
    if let Some(config) = engine.next() {
        return of_reference(config).map(str::to_owned);
    }
    let mut digests = kubelet.filter_map(of_reference);
    let first = digests.next()?;
    digests.all(|other| other == first).then(|| first.to_owned())
}

/// `sha256:…`, alone or at the end of a reference.
fn of_reference(image: &str) -> Option<&str> {
    let digest = image.rsplit_once('@').map_or(image, |(_, digest)| digest);
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    (hex.len() == 64 && hex.bytes().all(is_hex)).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(engine: &[&str], kubelet: &[&str]) -> Option<String> {
        image_digest(engine.iter().copied(), kubelet.iter().copied())
    }

    #[test]
    fn an_image_is_named_by_the_digest_that_was_attested_or_not_at_all() {
        let (a, b) = (format!("sha256:{}", "a1".repeat(32)), format!("sha256:{}", "b2".repeat(32)));
        let at = |digest: &str| format!("registry.example.org:5000/web@{digest}");
        assert_eq!(digest_of(&[&a], &[&at(&b)]), Some(a.clone()), "the engine knows its own");
        assert_eq!(digest_of(&[], &["web:1.2", &at(&a)]), Some(a.clone()));
        assert_eq!(digest_of(&[], &[&a, &at(&a)]), Some(a.clone()), "the same twice");
        for none in [
            &[][..],
            &["web:1.2"],
            &["web"],
            &["web@sha512:00"],
            &["web@sha256:a1"],
            &[&at(&a.to_uppercase())],
            &[&format!("{}0", at(&a))],
            &[&at(&a), &at(&b)],
        ] {
            assert_eq!(digest_of(&[], none), None, "{none:?}");
        }
    }

    #[test]
    fn of_a_pod_there_is_what_was_attested() {
        let said = |pairs: &'static [(&str, &str)]| {
            move |key: &'static str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned())
        };
        assert_eq!(pod(said(&[])), None);
        assert_eq!(pod(said(&[("pod-uid", "u"), ("container-name", "c")])), None);
        let some = |text: &str| Some(text.to_owned());
        let whole = Pod { ns: some("web"), pod: some("front"), sa: some("robot") };
        assert_eq!(pod(said(&[("sa", "robot"), ("ns", "web"), ("pod-name", "front")])), Some(whole));
        let part = Pod { ns: some("web"), ..Pod::default() };
        assert_eq!(pod(said(&[("ns", "web")])), Some(part));
    }
}
