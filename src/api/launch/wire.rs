//! What the launch socket speaks: one JSON object a packet, the descriptors beside it. Both ends are one program of
//! one version, which is checked; the agent still reads with care.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The name of the socket, in the public socket's directory.
pub const SOCKET: &str = "launch.sock";

/// The longest packet either way, in bytes.
pub const MAX_PACKET: usize = 8192;

/// The agent's first word.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hello {
    /// Of this conversation.
    pub launch: u32,
    /// The launcher must close itself to other processes of its user before it says anything.
    pub hide: bool,
}

/// The launcher's only word. Beside it: a handle of the program, then the sealed files.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Where the program was found: absolute.
    pub program: PathBuf,
    /// How many files come along.
    pub files: usize,
}

/// The agent's answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It stands. The SHA-256 of each file in hex, in their order.
    Recorded(Vec<String>),
    /// It does not, and why.
    Refused(String),
}

impl Hello {
    /// The version that this program speaks.
    pub const VERSION: u32 = 1;
}

/// The launch socket beside a public socket.
pub fn beside(public: &Path) -> PathBuf {
    public.with_file_name(SOCKET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_as_documented() {
        let text = |value: serde_json::Result<String>| value.unwrap();
        let hello = Hello { launch: Hello::VERSION, hide: true };
        assert_eq!(text(serde_json::to_string(&hello)), r#"{"launch":1,"hide":true}"#);
        let claim = Claim { program: "/usr/bin/node".into(), files: 2 };
        assert_eq!(text(serde_json::to_string(&claim)), r#"{"program":"/usr/bin/node","files":2}"#);
        let answer = Answer::Recorded(vec!["ab".to_owned()]);
        assert_eq!(text(serde_json::to_string(&answer)), r#"{"recorded":["ab"]}"#);
        assert_eq!(
            beside(Path::new("/run/mayfly/public/api.sock")),
            Path::new("/run/mayfly/public/launch.sock")
        );
    }
}
