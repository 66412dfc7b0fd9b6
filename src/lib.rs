//! Mayfly: an agent that proves what a process is, gives it short-lived SPIFFE credentials over a Unix
//! socket, keeps them fresh, and takes them back the moment the process ends.
//!
//! The path of a request: socket → pin → attest → match → policy → issue → stream → revoke. Modules
//! import downwards only; `tests/layers.rs` holds the order and fails on any other edge.

pub mod api;
pub mod app;
pub mod audit;
pub mod authority;
pub mod cli;
pub mod clock;
pub mod config;
pub mod diag;
pub mod drain;
pub mod endpoint;
pub mod exit;
pub mod federation;
pub mod files;
pub mod fileset;
pub mod id;
pub mod issue;
pub mod json;
pub mod lease;
pub mod ledger;
pub mod manager;
pub mod pem;
pub mod policy;
pub mod proof;
pub mod queue;
pub mod ready;
pub mod registration;
pub mod revocation;
pub mod secret;
pub mod sync;
pub mod task;
pub mod telemetry;
pub mod trust;
pub mod verify;
pub mod web;
pub mod workload;
