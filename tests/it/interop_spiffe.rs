//! The crate `spiffe` as a stranger would use it: X.509, JWT, bundles, rotation, validation, withdrawal.

use mayfly_harness::{Agent, Plan, until};
use spiffe::{TrustDomain, WorkloadApiClient, X509Source};

use crate::support::{SHORT, agent, own_entry, own_uid};

fn endpoint(agent: &Agent) -> String {
    format!("unix:{}", agent.public().display())
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn interop_rust_fetches_everything_and_validates() {
    let agent = agent();
    block_on(async {
        let client = WorkloadApiClient::connect_to(endpoint(&agent)).await.unwrap();
        let domain = TrustDomain::new("example.org").unwrap();
        let context = client.fetch_x509_context().await.unwrap();
        let svid = context.default_svid().unwrap();
        let id = format!("spiffe://example.org/uid/{}", own_uid());
        assert_eq!(svid.spiffe_id().to_string(), id);
        assert!(context.bundle_set().get(&domain).is_some());
        let bundles = client.fetch_jwt_bundles().await.unwrap();
        let token = client.fetch_jwt_svid(["interop"], None).await.unwrap();
        assert_eq!(token.spiffe_id().to_string(), id);
        // The library checks the signature against the bundle itself; then the agent is asked.
        spiffe::JwtSvid::parse_and_validate(token.token(), &bundles, &["interop"]).unwrap();
        let valid = client.validate_jwt_token("interop", token.token()).await.unwrap();
        assert_eq!(valid.spiffe_id().to_string(), id);
        assert!(client.validate_jwt_token("other", token.token()).await.is_err());
    });
}

#[test]
fn interop_rust_source_sees_three_rotations_on_one_stream() {
    let agent = Plan::for_uids(&[own_uid()]).settings(SHORT).start();
    block_on(async {
        let source = X509Source::builder().endpoint(endpoint(&agent)).build().await.unwrap();
        let mut updates = source.updated();
        let mut serials = vec![source.svid().unwrap().leaf().as_ref().to_vec()];
        while serials.len() < 4 {
            tokio::time::timeout(mayfly_harness::PATIENCE, updates.changed()).await.unwrap().unwrap();
            serials.push(source.svid().unwrap().leaf().as_ref().to_vec());
        }
        serials.dedup();
        assert_eq!(serials.len(), 4, "each update brought another certificate");
        source.shutdown().await;
    });
}

/// The library gives its certificate up when the stream ends as ours does on withdrawal.
#[test]
fn interop_rust_source_drops_a_withdrawn_identity() {
    let agent = Plan::with_entries(&[own_entry("/short-lived")]).start();
    block_on(async {
        let source = X509Source::builder().endpoint(endpoint(&agent)).build().await.unwrap();
        source.svid().unwrap();
        agent.write_entries(&[]);
        until("the library lets go", || source.svid().is_err().then_some(()));
        source.shutdown().await;
    });
}
