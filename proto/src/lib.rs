//! Protocol definitions and the code generated from them.
//!
//! The `.proto` files beside this crate are the source; `src/gen` is committed so that a build needs
//! no protobuf compiler. `tests/bootstrap.rs` fails when the two differ and, run with
//! `MAYFLY_BLESS=1`, writes them again.

pub mod codec;

/// The SPIFFE Workload API (no protobuf package: paths are `/SpiffeWorkloadAPI/<Method>`).
pub mod workload {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]
    include!("gen/_.rs");
}

/// `mayfly.admin.v1`: what an operator asks and orders.
pub mod admin {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]
    include!("gen/mayfly.admin.v1.rs");
}

/// `mayfly.attestor.v1`: what is asked of external attestors.
pub mod attestor {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]
    include!("gen/mayfly.attestor.v1.rs");
}

/// `mayfly.identity.v1`: what a process may learn about itself.
pub mod identity {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]
    include!("gen/mayfly.identity.v1.rs");
}

/// `mayfly.task.v1`: tasks, and what operators do to them.
pub mod task {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]
    include!("gen/mayfly.task.v1.rs");
}

/// What a machine may read of an error.
pub use xds::google::rpc::ErrorInfo;

/// `google.rpc.Status` with its details: what travels in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RichStatus {
    /// The status's number.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// For programs.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<prost_types::Any>,
}

/// The part of Envoy's data-plane API v3 that SDS needs, in the module tree that the packages' names make.
pub mod xds {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]
    pub mod envoy {
        pub mod config {
            pub mod core {
                pub mod v3 {
                    include!("gen/envoy.config.core.v3.rs");
                }
            }
        }
        pub mod extensions {
            pub mod transport_sockets {
                pub mod tls {
                    pub mod v3 {
                        include!("gen/envoy.extensions.transport_sockets.tls.v3.rs");
                    }
                }
            }
        }
        pub mod service {
            pub mod discovery {
                pub mod v3 {
                    include!("gen/envoy.service.discovery.v3.rs");
                }
            }
            pub mod secret {
                pub mod v3 {
                    include!("gen/envoy.service.secret.v3.rs");
                }
            }
        }
        pub mod r#type {
            pub mod v3 {
                include!("gen/envoy.r#type.v3.rs");
            }
        }
    }
    pub mod google {
        pub mod rpc {
            include!("gen/google.rpc.rs");
        }
    }
}

/// Serialised `FileDescriptorSet` of all of the above, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
