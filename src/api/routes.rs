//! Which services answer on which socket.

use std::sync::Arc;

use mayfly_proto::DESCRIPTORS;
use mayfly_proto::admin::admin_server::AdminServer;
use mayfly_proto::admin::bundles_server::BundlesServer;
use mayfly_proto::identity::identity_server::IdentityServer;
use mayfly_proto::task::task_admin_server::TaskAdminServer;
use mayfly_proto::task::task_api_server::TaskApiServer;
use mayfly_proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use mayfly_proto::xds::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::{Builder, Error as ReflectionError};

use super::Gate;
use super::admin::{AdminService, StatusSource};
use super::bundles::BundleService;
use super::identity::IdentityService;
use super::sds::{self, Sds, SdsService};
use super::task_admin::TaskAdminService;
use super::tasks::{Strict, TaskService};
use super::workload::WorkloadService;
use crate::audit;
use crate::clock::Clock;
use crate::drain::Watch;
use crate::federation::Federation;
use crate::trust::MAX_DOCUMENT_BYTES;
use crate::workload::Workloads;

/// The largest request any service takes: a token of 16 KiB with room to spare.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

const SDS: &str = "envoy.service.secret.v3.SecretDiscoveryService";

/// A bundle document, and one too long to be told so.
const MAX_BUNDLE_BYTES: usize = MAX_DOCUMENT_BYTES + 64 * 1024;

/// The public socket: Workload API, identity, SDS, health, reflection of these.
pub fn public(
    gate: &Gate,
    clock: &Arc<dyn Clock>,
    drain: &Watch,
    max_audiences: usize,
    sds: &Sds,
) -> Result<(Routes, HealthReporter), ReflectionError> {
    let secrets = SdsService::new(gate.clone(), sds.clone(), drain.clone());
    let workload = WorkloadService::new(gate.clone(), Arc::clone(clock), drain.clone(), max_audiences);
    let identity = IdentityService::new(gate.clone(), drain.clone());
    let (reporter, health) = tonic_health::server::health_reporter();
    let names = [
        "SpiffeWorkloadAPI",
        "mayfly.identity.v1.Identity",
        "mayfly.task.v1.TaskAPI",
        SDS,
        "grpc.health.v1.Health",
    ];
    let routes =
        Routes::new(SpiffeWorkloadApiServer::new(workload).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(Strict::new(
                TaskApiServer::new(TaskService::new(gate.clone(), Arc::clone(clock), drain.clone()))
                    .max_decoding_message_size(MAX_REQUEST_BYTES),
                MAX_REQUEST_BYTES,
            ))
            .add_service(IdentityServer::new(identity).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(
                SecretDiscoveryServiceServer::new(secrets).max_decoding_message_size(sds::MAX_REQUEST_BYTES),
            )
            .add_service(health)
            .add_service(reflection(&names).build_v1()?)
            .add_service(reflection(&names).build_v1alpha()?);
    Ok((routes.prepare(), reporter))
}

/// The admin socket: admin, health, reflection of these.
pub fn admin(
    workloads: &Workloads,
    audit: &audit::Log,
    status: StatusSource,
    federation: &Federation,
    drain: &Watch,
) -> Result<(Routes, HealthReporter), ReflectionError> {
    let service = AdminService::new(workloads.clone(), audit.clone(), status);
    let (reporter, health) = tonic_health::server::health_reporter();
    let names = [
        "mayfly.admin.v1.Admin",
        "mayfly.admin.v1.Bundles",
        "mayfly.task.v1.TaskAdmin",
        "grpc.health.v1.Health",
    ];
    let tasks = TaskAdminServer::new(TaskAdminService::new(workloads.clone(), audit.clone(), drain.clone()));
    let bundles = BundlesServer::new(BundleService::new(federation.clone()));
    let routes = Routes::new(AdminServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(bundles.max_decoding_message_size(MAX_BUNDLE_BYTES))
        .add_service(Strict::new(tasks.max_decoding_message_size(MAX_REQUEST_BYTES), MAX_REQUEST_BYTES))
        .add_service(health)
        .add_service(reflection(&names).build_v1()?)
        .add_service(reflection(&names).build_v1alpha()?);
    Ok((routes.prepare(), reporter))
}

/// For probes over TCP: health and nothing else.
pub fn probe() -> (Routes, HealthReporter) {
    let (reporter, health) = tonic_health::server::health_reporter();
    (Routes::new(health).prepare(), reporter)
}

fn reflection(names: &[&'static str]) -> Builder<'static> {
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
}
