//! Attacks with real processes, one test for each row of the threat matrix; the name begins with the row's
//! id. They need root (other uids, namespaces, mounts) and fail without it.

#[cfg(test)]
mod a_peer;
#[cfg(test)]
mod approvals;
#[cfg(test)]
mod approvals_of_tasks;
#[cfg(test)]
mod b_hash;
#[cfg(test)]
mod b_launch;
#[cfg(test)]
mod b_program;
#[cfg(test)]
mod c_containers;
#[cfg(test)]
mod d_life;
#[cfg(test)]
mod dev_approvals;
#[cfg(test)]
mod e_exhaustion;
#[cfg(test)]
mod envoy;
#[cfg(test)]
mod f_daemon;
#[cfg(test)]
mod g_crash;
#[cfg(test)]
mod g_disk;
#[cfg(test)]
mod http;
#[cfg(test)]
mod j_input;
#[cfg(test)]
mod kubelet;
#[cfg(test)]
mod kubernetes;
#[cfg(test)]
mod plugin;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod revocation;
#[cfg(test)]
mod runc;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod starters;
#[cfg(test)]
mod support;
#[cfg(test)]
mod task_admin;
#[cfg(test)]
mod task_cgroups;
