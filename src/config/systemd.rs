//! `[attest.systemd]`: units.

use std::fmt;
use std::path::PathBuf;

use super::kubernetes::Enabled;
use super::show::Quoted;
use crate::diag::{Found, Table};
use crate::telemetry::word;

/// How units are looked up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SystemdSettings {
    /// Whether they are. `Auto`: where systemd runs the machine, by `/run/systemd/system`.
    pub enabled: Enabled,
    /// The socket of the system bus.
    pub bus: PathBuf,
}

/// As written.
#[derive(Debug)]
pub(super) struct RawSystemd {
    enabled: Option<Found<Enabled>>,
    bus: Option<Found<PathBuf>>,
}

impl RawSystemd {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self { enabled: table.choice("enabled", &Enabled::WORDS), bus: table.path("bus") }
    }

    pub(super) fn resolve(self) -> SystemdSettings {
        SystemdSettings {
            enabled: self.enabled.map_or(Enabled::Auto, |found| found.value),
            bus: self.bus.map_or_else(|| PathBuf::from(BUS), |found| found.value),
        }
    }
}

impl fmt::Display for SystemdSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n[attest.systemd]\nenabled = \"{}\"", word(&Enabled::WORDS, self.enabled))?;
        writeln!(f, "bus = {}", Quoted(&self.bus))
    }
}

const BUS: &str = "/run/dbus/system_bus_socket";

#[cfg(test)]
mod tests {
    use super::super::{Config, from_text};
    use super::*;
    use crate::diag::Problems;

    fn load(text: &str) -> Result<Config, Problems> {
        from_text("f", format!("trust_domain = \"example.org\"\n[attest.systemd]\n{text}\n").as_bytes())
    }

    #[test]
    fn units_are_looked_up_where_systemd_runs_the_machine() {
        let found = load("").unwrap().attest.systemd;
        assert_eq!(found, SystemdSettings { enabled: Enabled::Auto, bus: PathBuf::from(BUS) });
        let config = load("enabled = \"on\"\nbus = \"/run/other/bus\"").unwrap();
        assert_eq!(
            (config.attest.systemd.enabled, config.attest.systemd.bus.to_str()),
            (Enabled::On, Some("/run/other/bus"))
        );
        assert_eq!(from_text("again", config.to_string().as_bytes()).unwrap(), config);
        assert!(load("enabled = true").unwrap_err().to_string().contains("attest.systemd.enabled"));
    }
}
