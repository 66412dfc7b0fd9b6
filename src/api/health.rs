//! gRPC health (`grpc.health.v1`): `""`, `ready` and the Workload API follow readiness, `live` the core that revokes:
//! as long as it takes exits, to start the agent again would mend nothing. A probe attests nobody and leaves no trace
//! in the audit log.

use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::drain::Watch;
use crate::ready::Readiness;

const FOLLOWING: [&str; 3] = ["", "ready", "SpiffeWorkloadAPI"];

/// Keeps the reporter in step with readiness until the drain starts.
pub async fn follow(
    reporter: HealthReporter,
    readiness: Readiness,
    mut life: watch::Receiver<bool>,
    mut drain: Watch,
) {
    let mut concerns = readiness.subscribe();
    loop {
        let alive = *life.borrow_and_update();
        reporter.set_service_status("live", status(alive)).await;
        let ready = concerns.borrow_and_update().is_empty();
        announce(&reporter, status(ready)).await;
        tokio::select! {
            changed = concerns.changed() => if changed.is_err() { return },
            changed = life.changed() => if changed.is_err() { return },
            () = drain.stopping() => break,
        }
    }
    announce(&reporter, ServingStatus::NotServing).await;
}

fn status(good: bool) -> ServingStatus {
    if good { ServingStatus::Serving } else { ServingStatus::NotServing }
}

async fn announce(reporter: &HealthReporter, status: ServingStatus) {
    for service in FOLLOWING {
        reporter.set_service_status(service, status).await;
    }
}
