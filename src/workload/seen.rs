//! A process as it was attested, for the record.

use mayfly_attestors::{Attestation, Process};

use crate::audit;

/// The process, where it is, what it runs, and what is odd about it.
pub(super) fn agent(process: &Process, attestation: &Attestation, spiffe_id: Option<String>) -> audit::Agent {
    let first = |kind, key| attestation.values(kind, key).next().map(str::to_owned);
    audit::Agent {
        spiffe_id,
        cgroup: first("cgroup", "path"),
        exe_sha256: first("unix", "sha256"),
        selectors_hash: Some(selectors_hash(attestation)),
        posture: attestation.posture().names(),
        ..audit::Agent::new(process.key(), process.uid())
    }
}

fn selectors_hash(attestation: &Attestation) -> String {
    use aws_lc_rs::digest;
    let mut context = digest::Context::new(&digest::SHA256);
    for selector in attestation.selectors() {
        context.update(selector.to_string().as_bytes());
        context.update(b"\n");
    }
    crate::id::hex_text(context.finish().as_ref())
}
