//! Everything that speaks gRPC: listener, connection guard, admission, status codes, one file a service.

pub mod admin;
mod admission;
mod authorities;
pub mod bind;
pub mod bundles;
mod closer;
pub mod facts;
mod freeze;
pub mod guard;
pub mod health;
pub mod identity;
pub mod launch;
pub mod limits;
pub mod listener;
pub mod metrics;
mod operator;
pub mod overview;
pub mod peer;
pub mod plugin;
pub mod refusals;
pub mod routes;
pub mod sds;
pub mod seats;
pub mod serve;
mod spares;
mod status;
mod task_admin;
mod tasks;
#[cfg(test)]
mod testkit;
pub(crate) mod trace;
mod validate;
pub mod wire;
mod wit;
pub mod workload;

pub use self::admission::Gate;
