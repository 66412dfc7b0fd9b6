//! `[[attest.plugin]]`: external attestors.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use mayfly_attestors::{ForeignType, Strength};

use super::show::Quoted;
use crate::diag::{Found, Problems, ShownDuration as Time, Table};
use crate::telemetry::word;

/// One external attestor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PluginSettings {
    /// The type of its selectors, and their keys.
    pub kind: ForeignType,
    /// Where it listens.
    pub socket: PathBuf,
    /// How long it may take to answer.
    pub deadline: Duration,
}

/// As written.
#[derive(Debug)]
pub(super) struct RawPlugin {
    name: Option<Found<String>>,
    socket: Option<Found<PathBuf>>,
    keys: Option<Found<Vec<Option<Found<String>>>>>,
    strength: Option<Found<Strength>>,
    deadline: Option<Found<Duration>>,
}

impl RawPlugin {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        table.require("name", "write `name = \"…\"`, the type of its selectors");
        table.require("socket", "write the path of its socket");
        table.require("keys", "write the keys that it may give, such as `keys = [\"job_id\"]`");
        Self {
            name: table.text("name"),
            socket: table.path("socket"),
            keys: table.texts("keys"),
            strength: table.choice("strength", &STRENGTHS),
            deadline: table.duration("deadline"),
        }
    }

    fn resolve(self, problems: &mut Problems) -> Option<(Found<()>, PluginSettings)> {
        let deadline = self.deadline.and_then(|found| found.within(&DEADLINE, problems));
        let (name, keys) = (self.name?, self.keys?);
        // One that is no text has been reported.
        let listed =
            keys.value.into_iter().map(|key| key.map(|found| found.value)).collect::<Option<Vec<_>>>()?;
        let strength = self.strength.map_or(Strength::Controller, |found| found.value);
        let kind = ForeignType::declare(&name.value, &listed, strength);
        let kind = kind.map_err(|error| problems.push(name.place.problem(error.to_string()))).ok()?;
        let (socket, place) = (self.socket?.value, Found { value: (), place: name.place });
        Some((place, PluginSettings { kind, socket, deadline: deadline.unwrap_or(DEFAULT_DEADLINE) }))
    }
}

/// Each type is one attestor's.
pub(super) fn resolve(raw: Vec<RawPlugin>, problems: &mut Problems) -> Vec<PluginSettings> {
    let mut names = BTreeSet::new();
    let mut plugins = Vec::new();
    for (found, plugin) in raw.into_iter().filter_map(|one| one.resolve(problems)).collect::<Vec<_>>() {
        if names.insert(plugin.kind.name()) {
            plugins.push(plugin);
        } else {
            problems
                .push(found.place.problem("is the name of another `[[attest.plugin]]`: take another one"));
        }
    }
    plugins
}

impl fmt::Display for PluginSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.kind.keys().iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ");
        writeln!(
            f,
            "\n[[attest.plugin]]\nname = \"{}\"\nsocket = {}",
            self.kind.name(),
            Quoted(&self.socket)
        )?;
        writeln!(f, "keys = [{keys}]\nstrength = \"{}\"", word(&STRENGTHS, self.kind.strength()))?;
        writeln!(f, "deadline = \"{}\"", Time(self.deadline))
    }
}

const STRENGTHS: [(&str, Strength); 2] =
    [("controller", Strength::Controller), ("advisory", Strength::Advisory)];
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(10);
const DEFAULT_DEADLINE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::super::{Config, from_text};
    use super::*;
    use crate::diag::Problems;

    fn load(text: &str) -> Result<Config, Problems> {
        from_text("f", format!("trust_domain = \"example.org\"\n{text}").as_bytes())
    }

    const SLURM: &str =
        "[[attest.plugin]]\nname = \"slurm\"\nsocket = \"/run/slurm.sock\"\nkeys = [\"job_id\", \"step\"]\n";

    #[test]
    fn a_plug_in_is_shown_as_it_is_read() {
        let config = load(&format!("{SLURM}strength = \"advisory\"\ndeadline = \"200ms\"")).unwrap();
        let plugin = &config.attest.plugins[0];
        assert_eq!((plugin.kind.name(), plugin.kind.keys()), ("slurm", &["job_id", "step"][..]));
        assert_eq!(plugin.kind.strength(), Strength::Advisory);
        assert_eq!(from_text("again", config.to_string().as_bytes()).unwrap(), config);
        let plain = load(SLURM).unwrap();
        assert_eq!(plain.attest.plugins[0].kind.strength(), Strength::Controller);
        assert_eq!(plain.attest.plugins[0].deadline, Duration::from_secs(1));
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        for (text, expected) in [
            ("[[attest.plugin]]\n".to_owned(), "attest.plugin[0].keys: is missing"),
            (
                SLURM.replace("slurm\"", "unix\""),
                "attest.plugin[0].name: `unix` is the type of a built-in attestor",
            ),
            (SLURM.replace("\"slurm\"", "\"a b\""), "attest.plugin[0].name: `a b` is no name"),
            (SLURM.replace("\"step\"", "\"job_id\""), "has the key `job_id` twice"),
            (SLURM.replace("\"/run", "\"run"), "attest.plugin[0].socket:"),
            (format!("{SLURM}{SLURM}"), "attest.plugin[1].name: is the name of another"),
            (format!("{SLURM}strength = \"kernel\""), "attest.plugin[0].strength: `kernel` is none of"),
            (format!("{SLURM}deadline = \"1m\""), "attest.plugin[0].deadline: is \"1m\""),
        ] {
            let report = load(&text).unwrap_err().to_string();
            assert!(report.contains(expected), "{text}: {report}");
        }
    }
}
