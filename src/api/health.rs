//! gRPC health (`grpc.health.v1`): `""`, `ready` and the Workload API follow readiness, `live` is always
//! serving. A probe attests nobody and leaves no trace in the audit log.

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::drain::Watch;
use crate::ready::Readiness;

const FOLLOWING: [&str; 3] = ["", "ready", "SpiffeWorkloadAPI"];

/// Keeps the reporter in step with readiness until the drain starts.
pub async fn follow(reporter: HealthReporter, readiness: Readiness, mut drain: Watch) {
    let mut concerns = readiness.subscribe();
    reporter.set_service_status("live", ServingStatus::Serving).await;
    loop {
        let ready = concerns.borrow_and_update().is_empty();
        announce(&reporter, if ready { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        tokio::select! {
            changed = concerns.changed() => if changed.is_err() { return },
            () = drain.stopping() => break,
        }
    }
    announce(&reporter, ServingStatus::NotServing).await;
}

async fn announce(reporter: &HealthReporter, status: ServingStatus) {
    for service in FOLLOWING {
        reporter.set_service_status(service, status).await;
    }
}
