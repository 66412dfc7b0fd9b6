//! `[health]` and `[metrics]`: what probes and collectors ask over TCP.

use std::fmt;
use std::net::SocketAddr;

use super::web::address;
use crate::diag::{Found, Problems, Table};

/// Where probes and collectors are answered. Both tell counts and readiness, and no name of anybody, to whoever asks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ProbeSettings {
    /// `[health] listen`: gRPC health (`live`, `ready`) for probes that know no Unix sockets.
    pub health: Option<SocketAddr>,
    /// `[metrics] listen`: `/metrics` in Prometheus' text format.
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug)]
pub(super) struct RawProbes {
    health: Option<Found<SocketAddr>>,
    metrics: Option<Found<SocketAddr>>,
}

impl RawProbes {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            health: table.section("health", |t| t.parsed("listen", address)),
            metrics: table.section("metrics", |t| t.parsed("listen", address)),
        }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> ProbeSettings {
        let health = self.health.map(|found| found.value);
        let metrics = self.metrics.and_then(|found| {
            // With port 0 the kernel gives each its own.
            let taken = Some(found.value) == health && found.value.port() != 0;
            if taken {
                problems
                    .push(found.place.problem("is the address of `health.listen`: give each its own port"));
            }
            (!taken).then_some(found.value)
        });
        ProbeSettings { health, metrics }
    }
}

impl fmt::Display for ProbeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, address) in [("health", self.health), ("metrics", self.metrics)] {
            if let Some(address) = address {
                writeln!(f, "\n[{name}]\nlisten = \"{address}\"")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::from_text;

    #[test]
    fn nothing_is_answered_over_tcp_unless_it_is_asked_for() {
        let load = |text: &str| from_text("f", format!("trust_domain = \"example.org\"\n{text}").as_bytes());
        assert_eq!(load("").unwrap().probes, super::ProbeSettings::default());
        let text = "health.listen = \"0.0.0.0:9981\"\nmetrics.listen = \"[::]:9988\"";
        let config = load(text).unwrap();
        assert_eq!(config.probes.health.map(|at| at.port()), Some(9981));
        assert_eq!(from_text("again", config.to_string().as_bytes()), Ok(config));
        let twice = "health.listen = \"0.0.0.0:1\"\nmetrics.listen = \"0.0.0.0:1\"";
        assert!(load(twice).unwrap_err().to_string().contains("metrics.listen: is the address of"));
    }
}
