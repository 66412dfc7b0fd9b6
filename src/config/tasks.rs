//! `[tasks]`: how much there may be of what tasks use. Each is the most there is: configuration only lowers them.

use std::fmt;
use std::time::Duration;

use super::resolve::{count, or};
use super::users::RawUsers;
use crate::diag::{Found, Problems, ShownDuration as Time, Table};

/// What `[tasks]` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TaskLimits {
    /// From the begin of a task to the end of its last renewal.
    pub life: Duration,
    /// Of a task that asks for none.
    pub default_life: Duration,
    /// Of a credential.
    pub credential: Duration,
    /// Of a credential that asks for none.
    pub default_credential: Duration,
    /// Until an offer is taken up.
    pub offer: Duration,
    /// Live tasks of the node.
    pub live: u32,
    /// Live tasks of one identity.
    pub per_agent: u32,
    /// Levels below a root.
    pub depth: u32,
    /// Live children of a task, offers included.
    pub children: u32,
    /// Children of a task, ever.
    pub children_ever: u32,
    /// Details of a task.
    pub details: u32,
    /// Of everything that a task says of itself.
    pub details_bytes: u32,
    /// Of a purpose.
    pub purpose_bytes: u32,
    /// Of a token.
    pub token_bytes: u32,
    /// `Watch` streams of a process.
    pub watches: u32,
    /// Credentials of a task in a minute.
    pub issues_per_minute: u32,
}

impl Default for TaskLimits {
    fn default() -> Self {
        Self {
            life: Duration::from_secs(8 * 3600),
            default_life: Duration::from_secs(15 * 60),
            credential: Duration::from_secs(3600),
            default_credential: Duration::from_secs(300),
            offer: Duration::from_secs(600),
            live: 10_000,
            per_agent: 32,
            depth: 3,
            children: 8,
            children_ever: 64,
            details: 16,
            details_bytes: 16 * 1024,
            purpose_bytes: 512,
            token_bytes: 8 * 1024,
            watches: 4,
            issues_per_minute: 60,
        }
    }
}

/// As written.
#[derive(Debug, Default)]
pub(super) struct RawTasks {
    pub(super) users: Vec<RawUsers>,
    life: Option<Found<Duration>>,
    default_life: Option<Found<Duration>>,
    credential: Option<Found<Duration>>,
    default_credential: Option<Found<Duration>>,
    offer: Option<Found<Duration>>,
    /// In the order of [`COUNTS`].
    counts: [Option<Found<i64>>; COUNTS.len()],
}

impl RawTasks {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            users: table.tables("users", RawUsers::read).unwrap_or_default(),
            life: table.duration("life"),
            default_life: table.duration("default_life"),
            credential: table.duration("credential"),
            default_credential: table.duration("default_credential"),
            offer: table.duration("offer"),
            counts: COUNTS.map(|(key, _)| table.integer(key)),
        }
    }

    /// The limits, and what was written about users.
    pub(super) fn resolve(self, problems: &mut Problems) -> (TaskLimits, Vec<RawUsers>) {
        let most = TaskLimits::default();
        let life = or(self.life, &(LEAST..=most.life), most.life, problems);
        let credential = or(self.credential, &(LEAST..=most.credential), most.credential, problems);
        // A default that does not fit below a written value follows it; a written one is the operator's word.
        let usual = |found, longest: Duration, usual: Duration, problems: &mut Problems| {
            or(found, &(LEAST..=longest), usual.min(longest), problems)
        };
        let default_life = usual(self.default_life, life, most.default_life, problems);
        let default_credential =
            usual(self.default_credential, credential, most.default_credential, problems);
        let offer = or(self.offer, &(LEAST..=most.offer), most.offer, problems);
        let mut limits = TaskLimits { life, default_life, credential, default_credential, offer, ..most };
        for (found, (key, least)) in self.counts.into_iter().zip(COUNTS) {
            let field = limits.count_mut(key);
            *field = count(found, least..=i64::from(*field), *field, problems);
        }
        (limits, self.users)
    }
}

impl TaskLimits {
    fn count_mut(&mut self, key: &str) -> &mut u32 {
        match key {
            "live" => &mut self.live,
            "per_agent" => &mut self.per_agent,
            "depth" => &mut self.depth,
            "children" => &mut self.children,
            "children_ever" => &mut self.children_ever,
            "details" => &mut self.details,
            "details_bytes" => &mut self.details_bytes,
            "purpose_bytes" => &mut self.purpose_bytes,
            "token_bytes" => &mut self.token_bytes,
            "watches" => &mut self.watches,
            _ => &mut self.issues_per_minute,
        }
    }
}

impl fmt::Display for TaskLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n[tasks]\nlife = \"{}\"\ndefault_life = \"{}\"",
            Time(self.life),
            Time(self.default_life)
        )?;
        writeln!(f, "credential = \"{}\"", Time(self.credential))?;
        writeln!(f, "default_credential = \"{}\"", Time(self.default_credential))?;
        writeln!(f, "offer = \"{}\"", Time(self.offer))?;
        let mut own = self.clone();
        COUNTS.iter().try_for_each(|(key, _)| writeln!(f, "{key} = {}", own.count_mut(key)))
    }
}

const LEAST: Duration = Duration::from_secs(1);
/// Each with the least that makes sense: without children a task is still one.
const COUNTS: [(&str, i64); 11] = [
    ("live", 1),
    ("per_agent", 1),
    ("depth", 0),
    ("children", 0),
    ("children_ever", 0),
    ("details", 1),
    ("details_bytes", 1024),
    ("purpose_bytes", 0),
    ("token_bytes", 1_024),
    ("watches", 1),
    ("issues_per_minute", 1),
];

#[cfg(test)]
mod tests {
    use super::super::from_text;
    use super::*;

    fn limits(text: &str) -> Result<TaskLimits, String> {
        let text = format!("trust_domain = \"example.org\"\n[tasks]\n{text}\n");
        let config = from_text("f", text.as_bytes()).map_err(|problems| problems.to_string())?;
        let shown = from_text("f", config.to_string().as_bytes()).unwrap();
        assert_eq!(shown, config, "it is shown as it is read");
        Ok(config.tasks)
    }

    #[test]
    fn every_limit_can_be_lowered_and_none_raised() {
        assert_eq!(limits(""), Ok(TaskLimits::default()));
        for (key, least) in COUNTS {
            let most = *TaskLimits::default().count_mut(key);
            let mut lowered = limits(&format!("{key} = {least}")).unwrap();
            assert_eq!(i64::from(*lowered.count_mut(key)), least);
            *lowered.count_mut(key) = most;
            assert_eq!(lowered, TaskLimits::default(), "{key} is that field and no other");
            for wrong in [least - 1, i64::from(most) + 1] {
                let report = limits(&format!("{key} = {wrong}")).unwrap_err();
                let expected = format!("tasks.{key}: is {wrong}: write a value from {least} to {most}");
                assert!(report.contains(&expected), "{report}");
            }
        }
        for key in ["life", "default_life", "credential", "default_credential", "offer"] {
            for wrong in ["0s", "9h"] {
                let report = limits(&format!("{key} = \"{wrong}\"")).unwrap_err();
                assert!(
                    report.contains(&format!("f:3:{}: tasks.{key}: is \"{wrong}\"", key.len() + 4)),
                    "{report}"
                );
            }
        }
    }

    #[test]
    fn what_is_usual_is_never_more_than_what_is_allowed() {
        let short = limits("life = \"5m\"\ncredential = \"1m\"").unwrap();
        assert_eq!((short.default_life, short.default_credential), (short.life, short.credential));
        assert_eq!((short.life, short.credential), (Duration::from_secs(300), Duration::from_secs(60)));
        let report = limits("life = \"5m\"\ndefault_life = \"6m\"").unwrap_err();
        assert!(report.contains("tasks.default_life: is \"6m\""), "{report}");
    }
}
