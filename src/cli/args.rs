//! Pieces of the command line that several commands share.

use std::time::Duration;

use crate::diag;

/// How the answer is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people; may change between versions.
    #[default]
    Text,
    /// For programs; shapes are documented and stable.
    Json,
}

/// The `--output` flag.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct OutputArgs {
    /// Write the answer for people or for programs
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
}

impl OutputArgs {
    /// True for `--output json`.
    pub(crate) fn is_json(self) -> bool {
        self.output == Output::Json
    }
}

/// As in the configuration file: `250ms`, `10s`, `15m`, `1h30m`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    diag::parse_duration(text).map_err(|error| error.to_string())
}
