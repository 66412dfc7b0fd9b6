//! What `mayfly run` tells the process that becomes the program: one word on its command line. It holds no secrets,
//! and nothing in it is believed that could weaken a measured launch: whoever starts the launcher can write it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::begin::TaskPlan;
use super::environment::Policy;

/// The word.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// Our process: the program ends with it.
    pub(super) parent: u32,
    /// Where launches are taken, and who else may serve there.
    pub(super) launch_socket: PathBuf,
    pub(super) server_uid: Option<u32>,
    pub(super) measured: Vec<Measured>,
    pub(super) clean: bool,
    pub(super) keep: Vec<String>,
    /// Variables of the loader that were taken away from the launcher and are the program's.
    pub(super) loader: Vec<(String, String)>,
    /// The cgroup to enter first of all.
    pub(super) cgroup: Option<PathBuf>,
    /// The task to begin.
    pub(super) task: Option<TaskPlan>,
    /// Variables that are new.
    pub(super) set: Vec<(String, String)>,
}

/// A file to measure.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Measured {
    pub(super) file: String,
    /// Where the program finds the path of the copy, if not among its arguments.
    pub(super) variable: Option<String>,
}

impl Plan {
    pub(super) fn policy(&self) -> Policy {
        Policy { clean: self.clean, measured: !self.measured.is_empty(), keep: self.keep.clone() }
    }
}

impl Measured {
    /// `FILE` or `NAME=FILE`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let named = text.split_once('=').filter(|(name, _)| is_variable(name));
        let (variable, file) = named.map_or((None, text), |(name, file)| (Some(name.to_owned()), file));
        if file.is_empty() {
            return Err("names no file: write `FILE` or `NAME=FILE`".to_owned());
        }
        Ok(Self { file: file.to_owned(), variable })
    }
}

/// Whether it is the name of a variable as people write them: capitals, digits and `_`.
pub(super) fn is_variable(name: &str) -> bool {
    let first = name.bytes().next();
    first.is_some_and(|b| b.is_ascii_uppercase() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_file_may_be_handed_over_in_a_variable() {
        let parsed = |text| Measured::parse(text).unwrap();
        assert_eq!(parsed("a.py"), Measured { file: "a.py".into(), variable: None });
        assert_eq!(parsed("MODEL=m.json").variable.as_deref(), Some("MODEL"));
        assert_eq!(parsed("./MODEL=m.json").variable, None, "a path");
        assert_eq!(parsed("model=m.json").file, "model=m.json");
        assert!(Measured::parse("").is_err() && Measured::parse("MODEL=").is_err());
    }

    #[test]
    fn the_word_survives_the_command_line() {
        let plan = Plan {
            parent: 7,
            launch_socket: "/run/mayfly/public/launch.sock".into(),
            measured: vec![Measured::parse("a b.py").unwrap()],
            ..Plan::default()
        };
        let word = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&word).unwrap(), plan);
        assert!(serde_json::from_str::<Plan>("{\"parent\":1}").is_err());
    }
}
