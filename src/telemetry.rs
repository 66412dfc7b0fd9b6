//! Logs: one subscriber for the process, to standard error. Fields, not sentences; untrusted text goes
//! through [`crate::diag::Shown`] before it gets here; never a key, a token or a selector's secret value.

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How to write logs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogConfig {
    /// The form of a line.
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: LogLevel,
}

impl LogConfig {
    /// The words for both in a configuration file.
    pub fn words(&self) -> (&'static str, &'static str) {
        (word(&LogFormat::WORDS, self.format), word(&LogLevel::WORDS, self.level))
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Each with the word for it in the configuration.
    pub const WORDS: [(&'static str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And what happens.
    Info,
    /// And why.
    Debug,
    /// And each step.
    Trace,
}

impl LogLevel {
    /// Each with the word for it in the configuration.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

/// Logging was set up before.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("logging is already set up in this process")]
pub struct AlreadySet;

/// The word for `value` in a table of words; empty if there is none.
pub fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|word| word.1 == value).map_or("", |word| word.0)
}

/// Starts logging. Once in a process, before anything is worth a line.
pub fn init(config: &LogConfig) -> Result<(), AlreadySet> {
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = subscriber(config, std::io::stderr, colours);
    tracing_subscriber::util::SubscriberInitExt::try_init(subscriber).map_err(|_already| AlreadySet)
}

fn subscriber<W>(config: &LogConfig, writer: W, colours: bool) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (_, level) = config.words();
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)).with_writer(writer);
    match config.format {
        LogFormat::Text => Box::new(builder.with_ansi(colours).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

/// Our own code at the level that was asked for; libraries (h2 and hyper say much) one step quieter, and
/// never above `info` unless everything is wanted.
fn filter(level: &str) -> EnvFilter {
    let libraries = match level {
        "trace" => "debug",
        "debug" => "info",
        "info" | "warn" => "warn",
        _ => "error",
    };
    EnvFilter::new(format!("{libraries},mayfly={level},mayfly_attestors={level}"))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: LogLevel) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(&LogConfig { format, level }, move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, || {
            let comm = crate::diag::Shown("evil\n\u{1b}[31m").to_string();
            tracing::info!(target: "mayfly", pid = 7, comm, "attested");
            tracing::debug!(target: "mayfly", "detail");
            tracing::info!(target: "h2::codec", "frame");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn j05_one_event_is_one_line_whatever_the_names() {
        let text = logged(LogFormat::Text, LogLevel::Info);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("attested pid=7 comm=") && !text.contains('\u{1b}'), "{text}");
        let json = logged(LogFormat::Json, LogLevel::Info);
        let event = serde_json::from_str::<serde_json::Value>(json.trim_end()).unwrap();
        assert_eq!((event["pid"].as_u64(), event["message"].as_str()), (Some(7), Some("attested")));
        assert_eq!(event["comm"].as_str(), Some("evil\\n\\u{1b}[31m"));
    }

    #[test]
    fn the_level_holds_for_us_and_libraries_stay_quieter() {
        assert_eq!(logged(LogFormat::Text, LogLevel::Warn), "");
        let debug = logged(LogFormat::Text, LogLevel::Debug);
        assert!(debug.contains("detail") && debug.contains("frame"), "{debug}");
        assert!(!logged(LogFormat::Text, LogLevel::Info).contains("frame"));
    }

    #[test]
    fn every_level_makes_a_filter_for_our_code_and_a_quieter_one_for_the_rest() {
        for (word, level) in LogLevel::WORDS {
            let filter = filter(word).to_string();
            assert!(filter.contains(&format!("mayfly={word}")), "{filter}");
            assert_eq!(super::word(&LogLevel::WORDS, level), word);
        }
        assert!(filter("info").to_string().contains("warn"));
    }
}
