//! What `mayfly sync` is to do, from a TOML file, in two stages: the file field for field, then values that can
//! only be valid. Every mistake of both is in one report.

mod raw;
mod resolve;
mod show;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use self::raw::RawConfig;
use crate::diag::{MAX_TOML_BYTES, Problem, Problems};
use crate::files::{Owner, TrustRules, read_trusted};
use crate::id::SpiffeId;

/// A valid configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Where the agent listens; `None` leaves it to `SPIFFE_ENDPOINT_SOCKET`, then to the usual place.
    pub socket: Option<PathBuf>,
    /// A uid to trust as the agent's, besides root and our own.
    pub server_uid: Option<u32>,
    /// Which identity; the default one if `None`.
    pub spiffe_id: Option<SpiffeId>,
    /// The directory that is ours to fill.
    pub directory: PathBuf,
    /// What happens to the files when the identity ends, or we do.
    pub on_end: OnEnd,
    /// The files of the X.509-SVID.
    pub x509: X509Files,
    /// JWT-SVIDs.
    pub jwt: Vec<JwtFile>,
    /// JWT authorities.
    pub jwks: JwksFiles,
    /// Files that must stand elsewhere under a fixed name.
    pub copies: Vec<Copy>,
    /// Whom to tell.
    pub notify: Notify,
    /// What happens to a supervised program.
    pub child: Child,
}

/// A file name in our directory, and whose it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Name without a directory.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: Owner,
}

/// What becomes of the files.
#[derive(Clone, core::marker::Copy, Debug, Eq, PartialEq)]
pub enum OnEnd {
    /// Everything secret goes: keys and tokens. The default.
    RemoveSecrets,
    /// Every file goes.
    Remove,
    /// Everything stays.
    Keep,
}

/// Files of the X.509-SVID; what is `None` is not written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct X509Files {
    /// Leaf and intermediates.
    pub certificate: Option<Target>,
    /// Private key, PKCS#8.
    pub key: Option<Target>,
    /// Key, leaf and intermediates in one, as HAProxy wants it.
    pub combined: Option<Target>,
    /// Authorities of our own trust domain.
    pub bundle: Option<Target>,
    /// Whether authorities of federated trust domains are put into the same file.
    pub bundle_federated: bool,
    /// Authorities of each federated trust domain, in a file of its own: this name with `%` replaced.
    pub federated: Option<Target>,
    /// All revocation lists. Absent while there are none.
    pub crl: Option<Target>,
}

/// A JWT-SVID in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtFile {
    /// For whom.
    pub audience: Vec<String>,
    /// Where.
    pub target: Target,
}

/// JWT authorities in files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwksFiles {
    /// Of our own trust domain.
    pub own: Option<Target>,
    /// Of each federated trust domain: this name with `%` replaced.
    pub federated: Option<Target>,
}

/// A file that is copied, each time, to a place of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Copy {
    /// Name in our directory.
    pub of: String,
    /// Absolute path.
    pub to: PathBuf,
}

/// What changed, as a program sees it.
#[derive(Clone, core::marker::Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Certificate and key.
    Certificate,
    /// Authorities.
    Bundle,
    /// Revocation lists.
    Crl,
    /// A JWT-SVID.
    Jwt,
    /// JWT authorities.
    Jwks,
}

/// When and how a program is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notify {
    /// Only of these changes.
    pub on: BTreeSet<Kind>,
    /// How long to wait for more changes before a set is written.
    pub settle: Duration,
    /// Least time between two sets.
    pub pause: Duration,
    /// Signal a process by its PID file.
    pub signal: Option<(PathBuf, Signal)>,
    /// Run a command.
    pub command: Option<Vec<String>>,
    /// Longest time a command may take.
    pub timeout: Duration,
}

/// What happens to a program that is run with `--`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Child {
    /// On a change.
    pub on_change: OnChange,
    /// Whether it is stopped when the identity ends; else it runs on with what it holds.
    pub stop_on_end: bool,
    /// How long it may take to stop before it is killed.
    pub grace: Duration,
}

/// How a supervised program learns of a change.
#[derive(Clone, core::marker::Copy, Debug, Eq, PartialEq)]
pub enum OnChange {
    /// By this signal.
    Signal(Signal),
    /// By being stopped and started again.
    Restart,
    /// Not at all: it watches the files, or `[notify]` tells it.
    Nothing,
}

/// Reads the configuration from a trusted file (see [`crate::files`]): it says which command root runs.
///
/// # Errors
/// Every mistake.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let file = path.display().to_string();
    let bytes = read_trusted(path, &TrustRules::public(MAX_TOML_BYTES))
        .map_err(|error| Problem::whole_file(&file, format!("is not used: {error}")))?;
    from_text(&file, &bytes)
}

/// What `mayfly sync --check` prints: the files that would be there, and who would be told.
///
/// # Errors
/// Every mistake.
pub fn check(path: &Path) -> Result<Vec<String>, Problems> {
    load(path).map(|config| config.lines())
}

pub(in crate::sync) fn from_text(file: &str, bytes: &[u8]) -> Result<Config, Problems> {
    let mut problems = Problems::new();
    let raw = RawConfig::parse(file, bytes, &mut problems);
    let config = raw.and_then(|raw| raw.resolve(&mut problems));
    problems.into_result(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        from_text("sync.toml", format!("directory = \"/d\"\n{text}").as_bytes()).unwrap()
    }

    fn report(text: &str) -> Vec<String> {
        let problems = from_text("sync.toml", text.as_bytes()).unwrap_err().to_string();
        problems.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_directory_is_all_that_must_be_said() {
        let config = config("");
        let names = |target: &Option<Target>| target.as_ref().map(|t| (t.name.clone(), t.mode));
        assert_eq!(names(&config.x509.certificate), Some(("tls.crt".to_owned(), 0o644)));
        assert_eq!(names(&config.x509.key), Some(("tls.key".to_owned(), 0o600)));
        assert_eq!(names(&config.x509.bundle), Some(("ca.crt".to_owned(), 0o644)));
        assert_eq!(names(&config.x509.crl), Some(("crl.pem".to_owned(), 0o644)));
        assert_eq!((config.x509.combined, config.x509.federated), (None, None));
        assert_eq!(config.on_end, OnEnd::RemoveSecrets);
        assert_eq!(config.child.on_change, OnChange::Signal(Signal::HUP));
        assert!(!config.notify.on.contains(&Kind::Jwt) && config.notify.on.contains(&Kind::Crl));
    }

    #[test]
    fn everything_can_be_said() {
        let config = config(
            r#"
            socket = "/s"
            server_uid = 7
            spiffe_id = "spiffe://example.org/web"
            owner = "0"
            group = "0"
            on_end = "keep"
            [x509]
            certificate = "c"
            key = "k"
            combined = "kc"
            bundle = "b"
            bundle_federated = true
            federated = "%.crt"
            crl = ""
            key_mode = "0640"
            [[jwt]]
            audience = ["db", "cache"]
            file = "db.jwt"
            [jwks]
            file = "jwks.json"
            federated = "%.json"
            [[copies]]
            of = "k"
            to = "/etc/k"
            [notify]
            on = ["certificate"]
            settle = "1s"
            pause = "5s"
            pid_file = "/run/x.pid"
            signal = "USR2"
            command = ["true"]
            timeout = "3s"
            [child]
            on_change = "restart"
            on_end = "stop"
            grace = "2s"
            "#,
        );
        assert_eq!(config.x509.crl, None);
        assert_eq!(config.x509.key.unwrap().mode, 0o640);
        assert_eq!(config.notify.signal, Some(("/run/x.pid".into(), Signal::USR2)));
        assert_eq!(config.jwt[0].target.mode, 0o640, "a token is a secret");
        assert_eq!(
            config.child,
            Child { on_change: OnChange::Restart, stop_on_end: true, grace: Duration::from_secs(2) }
        );
        assert_eq!(config.notify.on, [Kind::Certificate].into());
    }

    #[test]
    fn a_unit_is_reloaded_by_its_command() {
        let config = config("[notify]\nsystemd_reload = \"nginx.service\"\n");
        assert_eq!(config.notify.command.unwrap(), ["systemctl", "reload", "nginx.service"]);
    }

    #[test]
    fn every_mistake_is_in_one_report() {
        let found = report(
            r#"
typo = 1
owner = "no such user"
spiffe_id = "spiffe://Example.org/x"
[x509]
key = "../key"
certificate = "same"
bundle = "same"
federated = "one-for-all.crt"
key_mode = "0644"
mode = "0777"
[[jwt]]
audience = []
file = "current"
[[copies]]
of = "nothing"
to = "relative"
[notify]
on = ["sunrise"]
signal = "KILL"
command = []
[child]
on_change = "pray"
"#,
        );
        for (field, what) in [
            ("directory:", "is missing"),
            ("typo:", "not a known key"),
            ("owner:", "no such user"),
            ("spiffe_id:", "trust domain"),
            ("x509.key:", "file name"),
            ("x509.bundle:", "is written twice"),
            ("x509.federated:", "`%`"),
            ("x509.key_mode:", "secret"),
            ("x509.mode:", "write"),
            ("jwt[0].audience:", "at least one"),
            ("jwt[0].file:", "file name"),
            ("copies[0].of:", "no file of that name"),
            ("copies[0].to:", "absolute"),
            ("notify.on[0]:", "is none of"),
            ("notify.signal:", "is none of"),
            ("notify.command:", "program"),
            ("child.on_change:", "is none of"),
        ] {
            assert!(
                found.iter().any(|line| line.contains(field) && line.contains(what)),
                "{field} {what}\n{}",
                found.join("\n")
            );
        }
    }

    #[test]
    fn a_signal_and_its_pid_file_go_together() {
        let found = report("directory = \"/d\"\n[notify]\nsignal = \"HUP\"\n");
        assert!(found[0].contains("pid_file"), "{found:?}");
        let found = report("directory = \"/d\"\n[notify]\ncommand = [\"a\"]\nsystemd_reload = \"x\"\n");
        assert!(found[0].contains("one of them"), "{found:?}");
    }

    #[test]
    fn the_configurations_in_the_guide_are_valid() {
        for page in [include_str!("../../docs/sync.md"), include_str!("../../docs/consumers.md")] {
            for block in crate::diag::toml_blocks(page).filter(|block| block.contains("directory")) {
                // User names of other machines are not known here.
                let text = block.lines().filter(|l| !l.starts_with("owner") && !l.starts_with("group"));
                let text = text.collect::<Vec<_>>().join("\n");
                from_text("docs", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
            }
        }
    }
}
