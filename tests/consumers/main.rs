//! Real servers that know nothing of SPIFFE, kept by `mayfly sync`: nginx, HAProxy, PostgreSQL from Debian. Each
//! is rotated under load without a failed request, and refuses a client whose process was killed. Run as root.

#[cfg(test)]
mod examples;
#[cfg(test)]
mod files;
#[cfg(test)]
mod postgres;
#[cfg(test)]
mod supervise;
#[cfg(test)]
mod support;
#[cfg(test)]
mod web;
