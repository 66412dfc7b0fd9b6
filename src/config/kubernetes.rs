//! `[attest.kubernetes]`: pods.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::show::Quoted;
use crate::diag::{Found, Problems, ShownDuration as Time, Table};
use crate::telemetry::word;

/// How pods are looked up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesSettings {
    /// Whether they are.
    pub enabled: Enabled,
    /// Who says what pods there are.
    pub source: PodSource,
    /// The API server; `None` = what the environment says.
    pub server: Option<SocketAddr>,
    /// This node's name; `None` = what the environment says.
    pub node_name: Option<String>,
    /// The token of the agent's service account.
    pub token_file: PathBuf,
    /// Who vouches for the API server.
    pub ca_file: PathBuf,
    /// The socket of the kubelet's Pods API.
    pub kubelet_socket: PathBuf,
    /// How long a process may wait for its pod to become known.
    pub wait_pod: Duration,
    /// How long it may wait, after that, for its container to be reported.
    pub wait_status: Duration,
    /// Whether labels of namespaces are selectors.
    pub namespace_labels: bool,
    /// Whether ephemeral containers get the selectors of their pod.
    pub ephemeral: Ephemeral,
}

/// Whether pods are looked up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Enabled {
    /// Where the agent finds itself on a node of Kubernetes.
    Auto,
    /// Always; the agent does not start where that is impossible.
    On,
    /// Never.
    Off,
}

/// Who says what pods there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PodSource {
    /// The API server.
    Api,
    /// The kubelet of this node. Experimental, as its Pods API is.
    Kubelet,
}

/// What an ephemeral container gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ephemeral {
    /// Nothing.
    Deny,
    /// What its pod gets.
    Attest,
}

impl Enabled {
    /// Each with the word for it in the file.
    pub const WORDS: [(&'static str, Self); 3] = [("auto", Self::Auto), ("on", Self::On), ("off", Self::Off)];
}

impl PodSource {
    /// Each with the word for it in the file.
    pub const WORDS: [(&'static str, Self); 2] = [("api", Self::Api), ("kubelet", Self::Kubelet)];
}

impl Ephemeral {
    /// Each with the word for it in the file.
    pub const WORDS: [(&'static str, Self); 2] = [("deny", Self::Deny), ("attest", Self::Attest)];
}

/// As written.
#[derive(Debug)]
pub(super) struct RawKubernetes {
    enabled: Option<Found<Enabled>>,
    source: Option<Found<PodSource>>,
    server: Option<Found<SocketAddr>>,
    node_name: Option<Found<String>>,
    token_file: Option<Found<PathBuf>>,
    ca_file: Option<Found<PathBuf>>,
    kubelet_socket: Option<Found<PathBuf>>,
    wait_pod: Option<Found<Duration>>,
    wait_status: Option<Found<Duration>>,
    namespace_labels: Option<Found<bool>>,
    ephemeral: Option<Found<Ephemeral>>,
}

impl RawKubernetes {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            enabled: table.choice("enabled", &Enabled::WORDS),
            source: table.choice("source", &PodSource::WORDS),
            server: table.parsed("server", server_address),
            node_name: table.parsed("node_name", node_name),
            token_file: table.path("token_file"),
            ca_file: table.path("ca_file"),
            kubelet_socket: table.path("kubelet_socket"),
            wait_pod: table.duration("wait_pod"),
            wait_status: table.duration("wait_status"),
            namespace_labels: table.boolean("namespace_labels"),
            ephemeral: table.choice("ephemeral", &Ephemeral::WORDS),
        }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> KubernetesSettings {
        let source = self.source.map_or(PodSource::Api, |found| found.value);
        if let Some(asked) = self.namespace_labels.as_ref().filter(|asked| asked.value)
            && source == PodSource::Kubelet
        {
            problems.push(
                asked.place.problem("needs `source = \"api\"`: the kubelet knows no labels of namespaces"),
            );
        }
        let mut wait = |found: Option<Found<Duration>>, default| {
            found.and_then(|found| found.within(&WAIT, problems)).unwrap_or(default)
        };
        KubernetesSettings {
            source,
            wait_pod: wait(self.wait_pod, Duration::from_secs(5)),
            wait_status: wait(self.wait_status, Duration::from_secs(10)),
            enabled: self.enabled.map_or(Enabled::Auto, |found| found.value),
            server: self.server.map(|found| found.value),
            node_name: self.node_name.map(|found| found.value),
            token_file: self.token_file.map_or_else(|| PathBuf::from(TOKEN), |found| found.value),
            ca_file: self.ca_file.map_or_else(|| PathBuf::from(CA), |found| found.value),
            kubelet_socket: self.kubelet_socket.map_or_else(|| PathBuf::from(KUBELET), |found| found.value),
            namespace_labels: self.namespace_labels.is_some_and(|found| found.value),
            ephemeral: self.ephemeral.map_or(Ephemeral::Deny, |found| found.value),
        }
    }
}

impl fmt::Display for KubernetesSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n[attest.kubernetes]\nenabled = \"{}\"", word(&Enabled::WORDS, self.enabled))?;
        writeln!(f, "source = \"{}\"", word(&PodSource::WORDS, self.source))?;
        self.server.iter().try_for_each(|address| writeln!(f, "server = \"https://{address}\""))?;
        self.node_name.iter().try_for_each(|name| writeln!(f, "node_name = \"{name}\""))?;
        writeln!(f, "token_file = {}\nca_file = {}", Quoted(&self.token_file), Quoted(&self.ca_file))?;
        writeln!(f, "kubelet_socket = {}", Quoted(&self.kubelet_socket))?;
        writeln!(f, "wait_pod = \"{}\"\nwait_status = \"{}\"", Time(self.wait_pod), Time(self.wait_status))?;
        writeln!(f, "namespace_labels = {}", self.namespace_labels)?;
        writeln!(f, "ephemeral = \"{}\"", word(&Ephemeral::WORDS, self.ephemeral))
    }
}

/// An address, not a name: the agent looks no names up.
fn server_address(text: &str) -> Result<SocketAddr, &'static str> {
    let address = text.strip_prefix("https://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    address.and_then(|address| address.parse().ok()).ok_or(
        "is not `https://` with an address and a port, such as `https://10.96.0.1:443`: names are not looked up",
    )
}

/// A DNS name in lower case (RFC 1123), as every node's name is. It becomes part of a request, so nothing else will do.
pub fn node_name(text: &str) -> Result<String, &'static str> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().next_back()];
        label.bytes().all(inner) && ends.iter().all(|end| end.is_some_and(|byte| byte != b'-'))
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("is no name of a node: lower-case letters, digits, `-` and `.`")
    }
}

const WAIT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const KUBELET: &str = "/var/lib/kubelet/pods-api/pods-api.sock";

#[cfg(test)]
mod tests {
    use super::super::{Config, from_text};
    use super::*;
    use crate::diag::Problems;

    fn load(text: &str) -> Result<Config, Problems> {
        from_text("f", format!("trust_domain = \"example.org\"\n[attest.kubernetes]\n{text}\n").as_bytes())
    }

    #[test]
    fn everything_has_a_default_and_is_shown_as_it_is_read() {
        let found = load("").unwrap().attest.kubernetes;
        assert_eq!((found.enabled, found.ephemeral), (Enabled::Auto, Ephemeral::Deny));
        assert_eq!((found.wait_pod, found.wait_status), (Duration::from_secs(5), Duration::from_secs(10)));
        let config = load(
            "enabled = \"on\"\nserver = \"https://[fd00::1]:6443\"\nnode_name = \"node-1.example\"\ntoken_file = \"/t\"\n\
             ca_file = \"/c\"\nwait_pod = \"1s\"\nwait_status = \"2s\"\nnamespace_labels = true\nephemeral = \"attest\"",
        )
        .unwrap();
        assert_eq!(from_text("again", config.to_string().as_bytes()).unwrap(), config);
        assert_eq!(config.attest.kubernetes.server, Some("[fd00::1]:6443".parse().unwrap()));
    }

    #[test]
    fn the_kubelet_may_be_asked_instead() {
        let found = load("source = \"kubelet\"").unwrap().attest.kubernetes;
        assert_eq!((found.source, found.kubelet_socket), (PodSource::Kubelet, PathBuf::from(KUBELET)));
        let config = load("source = \"kubelet\"\nkubelet_socket = \"/k\"").unwrap();
        assert_eq!(from_text("again", config.to_string().as_bytes()).unwrap(), config);
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        for (text, expected) in [
            ("enabled = true", "attest.kubernetes.enabled: "),
            (
                "server = \"https://kubernetes.default:443\"",
                "attest.kubernetes.server: `https://kubernetes.default:443` is not",
            ),
            ("server = \"http://10.0.0.1:443\"", "attest.kubernetes.server:"),
            ("server = \"https://10.0.0.1\"", "attest.kubernetes.server:"),
            ("node_name = \"a&b\"", "attest.kubernetes.node_name: `a&b` is no name of a node"),
            ("node_name = \"-a\"", "attest.kubernetes.node_name:"),
            ("node_name = \"a..b\"", "attest.kubernetes.node_name:"),
            ("wait_pod = \"2m\"", "attest.kubernetes.wait_pod: is \"2m\""),
            ("source = \"nodes\"", "attest.kubernetes.source:"),
            (
                "source = \"kubelet\"\nnamespace_labels = true",
                "attest.kubernetes.namespace_labels: needs `source = \"api\"`",
            ),
            ("epehmeral = \"deny\"", "did you mean `ephemeral`?"),
        ] {
            let report = load(text).unwrap_err().to_string();
            assert!(report.contains(expected), "{text}: {report}");
        }
    }
}
