//! `[approvals]`: how people are told that they are asked, and how long things last. Who may answer is the policy's and
//! its catalogue's to say.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::federation::EndpointUrl;
use super::resolve::count;
use super::show::Quoted;
use crate::diag::{Found, Problems, ShownDuration as Time, Table};

/// What `[approvals]` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApprovalSettings {
    /// Program and arguments that are run for each request; empty: none.
    pub notify_exec: Vec<String>,
    /// Where each request is posted.
    pub notify_webhook: Option<EndpointUrl>,
    /// PEM certificates to believe there instead of the system's.
    pub webhook_ca_file: Option<PathBuf>,
    /// Until people have answered.
    pub answer_within: Duration,
    /// Until a yes is used.
    pub use_within: Duration,
    /// Of a task, waiting.
    pub pending: u32,
    /// Of a task, in ten minutes.
    pub requests: u32,
}

/// As written.
#[derive(Debug)]
pub(super) struct RawApprovals {
    notify_exec: Option<Found<Vec<Option<Found<String>>>>>,
    notify_webhook: Option<Found<EndpointUrl>>,
    webhook_ca_file: Option<Found<PathBuf>>,
    answer_within: Option<Found<Duration>>,
    use_within: Option<Found<Duration>>,
    pending: Option<Found<i64>>,
    requests: Option<Found<i64>>,
}

impl RawApprovals {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            notify_exec: table.texts("notify_exec"),
            notify_webhook: table.parsed("notify_webhook", EndpointUrl::parse),
            webhook_ca_file: table.path("webhook_ca_file"),
            answer_within: table.duration("answer_within"),
            use_within: table.duration("use_within"),
            pending: table.integer("pending"),
            requests: table.integer("requests"),
        }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> ApprovalSettings {
        let words = self.notify_exec.map(|found| found.value).unwrap_or_default();
        let words: Vec<Found<String>> = words.into_iter().flatten().collect();
        if let Some(program) = words.first().filter(|program| !program.value.starts_with('/')) {
            problems.push(program.place.problem("is not an absolute path: write the program's whole path"));
        }
        if let (Some(found), None) = (&self.webhook_ca_file, &self.notify_webhook) {
            problems.push(found.place.problem("belongs to `notify_webhook`, and there is none: remove it"));
        }
        let within = |found: Option<Found<Duration>>, most: Duration, problems: &mut Problems| {
            let range: RangeInclusive<Duration> = LEAST..=most;
            found.and_then(|found| found.within(&range, problems)).unwrap_or(most)
        };
        ApprovalSettings {
            notify_exec: words.into_iter().map(|word| word.value).collect(),
            notify_webhook: self.notify_webhook.map(|found| found.value),
            webhook_ca_file: self.webhook_ca_file.map(|found| found.value),
            answer_within: within(self.answer_within, ANSWER, problems),
            use_within: within(self.use_within, USE, problems),
            pending: count(self.pending, 1..=i64::from(PENDING), PENDING, problems),
            requests: count(self.requests, 1..=i64::from(REQUESTS), REQUESTS, problems),
        }
    }
}

impl fmt::Display for ApprovalSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { notify_exec, notify_webhook, webhook_ca_file, answer_within, use_within, .. } = self;
        writeln!(f, "\n[approvals]\nanswer_within = \"{}\"", Time(*answer_within))?;
        writeln!(f, "use_within = \"{}\"", Time(*use_within))?;
        writeln!(f, "pending = {}\nrequests = {}", self.pending, self.requests)?;
        if !notify_exec.is_empty() {
            let words = notify_exec.iter().cloned().map(toml::Value::String).collect();
            writeln!(f, "notify_exec = {}", toml::Value::Array(words))?;
        }
        if let Some(url) = notify_webhook {
            writeln!(f, "notify_webhook = {}", toml::Value::String(url.to_string()))?;
        }
        match webhook_ca_file {
            Some(path) => writeln!(f, "webhook_ca_file = {}", Quoted(path)),
            None => Ok(()),
        }
    }
}

/// The longest there is: configuration only lowers them.
const ANSWER: Duration = Duration::from_secs(600);
const USE: Duration = Duration::from_secs(300);
const PENDING: u32 = 3;
const REQUESTS: u32 = 5;
const LEAST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::super::from_text;
    use super::*;

    fn approvals(text: &str) -> Result<ApprovalSettings, String> {
        let text = format!("trust_domain = \"example.org\"\n[approvals]\n{text}\n");
        let config = from_text("f", text.as_bytes()).map_err(|problems| problems.to_string())?;
        let shown = from_text("f", config.to_string().as_bytes()).unwrap();
        assert_eq!(shown, config, "it is shown as it is read");
        Ok(config.approvals)
    }

    #[test]
    fn nobody_is_told_unless_somebody_says_how_and_nothing_lasts_longer_than_it_may() {
        let usual = approvals("").unwrap();
        assert!(usual.notify_exec.is_empty() && usual.notify_webhook.is_none());
        assert_eq!((usual.answer_within, usual.use_within), (ANSWER, USE));
        assert_eq!((usual.pending, usual.requests), (3, 5));
        let written = approvals(
            "notify_exec = [\"/usr/libexec/tell\", \"oncall\"]\nnotify_webhook = \"https://chat.example.org/x?y\"\n\
             webhook_ca_file = \"/ca.pem\"\nanswer_within = \"2m\"\nuse_within = \"10s\"\n\
             pending = 1\nrequests = 2",
        )
        .unwrap();
        assert_eq!(written.notify_exec, ["/usr/libexec/tell", "oncall"]);
        assert_eq!(written.use_within, Duration::from_secs(10));
        assert_eq!((written.pending, written.requests), (1, 2));
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        for (text, expected) in [
            ("notify_exec = [\"tell\"]", "f:3:16: approvals.notify_exec[0]: is not an absolute path"),
            (
                "notify_webhook = \"http://chat.example.org\"",
                "approvals.notify_webhook: `http://chat.example.org`",
            ),
            ("webhook_ca_file = \"/ca.pem\"", "approvals.webhook_ca_file: belongs to `notify_webhook`"),
            ("answer_within = \"11m\"", "approvals.answer_within: is \"11m\""),
            ("use_within = \"6m\"", "approvals.use_within: is \"6m\""),
            ("pending = 4", "approvals.pending: is 4: write a value from 1 to 3"),
            ("requests = 0", "approvals.requests: is 0: write a value from 1 to 5"),
            ("groups = 1", "approvals.groups: is not a known key"),
        ] {
            let report = approvals(text).unwrap_err();
            assert!(report.contains(expected), "{text}: {report}");
        }
    }
}
