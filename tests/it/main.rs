//! Black-box tests that need no rights: one agent, client processes of our own uid.

#[cfg(test)]
mod approvals;
#[cfg(test)]
mod approvals_of_tasks;
#[cfg(test)]
mod attested;
#[cfg(test)]
mod bounds;
#[cfg(test)]
mod children;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod entries;
#[cfg(test)]
mod federation;
#[cfg(test)]
mod following;
#[cfg(test)]
mod freeze;
#[cfg(test)]
mod frozen_ahead;
#[cfg(test)]
mod frozen_targets;
#[cfg(test)]
mod given_up;
#[cfg(test)]
mod hanging_disk;
#[cfg(test)]
mod held;
#[cfg(test)]
mod http;
#[cfg(test)]
mod interop_spiffe;
#[cfg(test)]
mod issuing;
#[cfg(test)]
mod judged_again;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod mtls;
#[cfg(test)]
mod operations_on_record;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod probes;
#[cfg(test)]
mod proofs;
#[cfg(test)]
mod record;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod rotation_client;
#[cfg(test)]
mod rotation_judges;
#[cfg(test)]
mod run;
#[cfg(test)]
mod run_task;
#[cfg(test)]
mod sds;
#[cfg(test)]
mod selftest;
#[cfg(test)]
mod starters;
#[cfg(test)]
mod startup;
#[cfg(test)]
mod support;
#[cfg(test)]
mod suspended;
#[cfg(test)]
mod task_admin;
#[cfg(test)]
mod task_defences;
#[cfg(test)]
mod task_restart;
#[cfg(test)]
mod task_threats;
#[cfg(test)]
mod task_threats_tokens;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod two_domains;
#[cfg(test)]
mod undone;
#[cfg(test)]
mod unwritten;
#[cfg(test)]
mod upstream;
#[cfg(test)]
mod users;
#[cfg(test)]
mod verify;
#[cfg(test)]
mod wit;
#[cfg(test)]
mod workload_api;
