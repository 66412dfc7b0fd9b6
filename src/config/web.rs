//! `[http]`, `[bundle_endpoint]`, `[oidc]`, `[status_list]` and `[bundle]`: what is served over HTTP. Both
//! stages of these tables, and how they are written out.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::show::Quoted;
use crate::diag::{Found, Problems, Shown, ShownDuration, Table};
use crate::id::{SpiffeId, TrustDomain};

/// `[http]`: the listeners of OIDC discovery, CRLs, introspection and revocation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpSettings {
    /// A Unix socket, for every process of the machine.
    pub socket: PathBuf,
    /// Plain HTTP for callers without a name; a loopback address.
    pub tcp: Option<SocketAddr>,
    /// TLS with an X.509-SVID on both sides.
    pub mtls: Option<SocketAddr>,
    /// Whom the agent calls itself where it shows an X.509-SVID of its own.
    pub spiffe_id: SpiffeId,
}

/// `[bundle_endpoint]`: where other trust domains fetch our bundle (Federation §5).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BundleEndpointSettings {
    /// The TCP address.
    pub listen: SocketAddr,
    /// How readers know that it is us.
    pub profile: EndpointProfile,
}

/// The endpoint profile (Federation §5.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndpointProfile {
    /// `https_spiffe`: by an X.509-SVID of that ID.
    Spiffe(SpiffeId),
    /// `https_web`: by a certificate from files, PEM.
    Web {
        /// Certificate and intermediates, leaf first.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
        /// Host names and addresses under which readers find us; the certificate must have them all.
        names: Vec<String>,
    },
}

/// `[bundle]`: what our bundle says beside its keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BundleSettings {
    /// How often readers are asked to look again, whole seconds.
    pub refresh_hint: Duration,
}

/// Everything of this file, resolved.
#[derive(Debug)]
pub(super) struct Web {
    pub(super) http: HttpSettings,
    pub(super) bundle_endpoint: Option<BundleEndpointSettings>,
    pub(super) bundle: BundleSettings,
    pub(super) status_list_uri: Option<String>,
}

#[derive(Debug)]
pub(super) struct RawWeb {
    socket: Option<Found<PathBuf>>,
    tcp: Option<Found<SocketAddr>>,
    mtls: Option<Found<SocketAddr>>,
    spiffe_id: Option<Found<SpiffeId>>,
    endpoint: RawEndpoint,
    /// Bounded by [`refresh_hint`], because the authorities' lead follows it.
    pub(super) refresh_hint: Option<Found<Duration>>,
    status_list_uri: Option<Found<String>>,
    /// `[oidc] issuer`, which `[jwt] issuer` may say as well.
    pub(super) oidc_issuer: Option<Found<String>>,
}

#[derive(Debug)]
struct RawEndpoint {
    listen: Option<Found<SocketAddr>>,
    profile: Option<Found<Profile>>,
    spiffe_id: Option<Found<SpiffeId>>,
    certificate: Option<Found<PathBuf>>,
    key: Option<Found<PathBuf>>,
    names: Option<Found<Vec<Option<Found<String>>>>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Profile {
    Spiffe,
    Web,
}

impl RawWeb {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let http = table.section("http", |t| {
            (t.path("socket"), t.parsed("tcp", address), t.parsed("mtls", address), spiffe_id(t))
        });
        let (socket, tcp, mtls, spiffe_id) = http;
        Self {
            socket,
            tcp,
            mtls,
            spiffe_id,
            endpoint: Self::endpoint(table),
            refresh_hint: table.section("bundle", |t| t.duration("refresh_hint")),
            status_list_uri: table.section("status_list", |t| t.text("uri")),
            oidc_issuer: table.section("oidc", |t| t.text("issuer")),
        }
    }

    fn endpoint(table: &mut Table<'_>) -> RawEndpoint {
        let given = table.has("bundle_endpoint");
        table.section("bundle_endpoint", |t| {
            let choices = [("https_spiffe", Profile::Spiffe), ("https_web", Profile::Web)];
            if given {
                t.require("listen", "write an address and port such as `listen = \"0.0.0.0:8443\"`");
                t.require("profile", "write `profile = \"https_spiffe\"` or `profile = \"https_web\"`");
            }
            let endpoint = RawEndpoint {
                listen: t.parsed("listen", address),
                profile: t.choice("profile", &choices),
                spiffe_id: spiffe_id(t),
                certificate: t.path("certificate"),
                key: t.path("key"),
                names: t.texts("names"),
            };
            if endpoint.profile.as_ref().is_some_and(|found| found.value == Profile::Web) {
                t.require("certificate", "`https_web` shows a certificate: write the path of a PEM file");
                t.require("key", "`https_web` needs the certificate's key: write the path of a PEM file");
            }
            endpoint
        })
    }

    /// `socket` is where the Unix socket is when the file does not say; `lead` is how long verifiers are given to
    /// learn a new authority.
    pub(super) fn resolve(
        self,
        trust_domain: Option<&TrustDomain>,
        socket: PathBuf,
        lead: Duration,
        problems: &mut Problems,
    ) -> Option<Web> {
        let tcp = self.tcp.and_then(|found| {
            if !found.value.ip().is_loopback() {
                let message = format!(
                    "`{}` is not a loopback address, and plain HTTP is served on no other: write `127.0.0.1` \
                     or `[::1]`, or use `mtls`",
                    found.value
                );
                problems.push(found.place.problem(message));
                return None;
            }
            Some(found.value)
        });
        if let Some(found) = &self.socket {
            super::resolve::check_socket_path(found, problems);
        }
        let spiffe_id = own_id(self.spiffe_id, trust_domain, problems);
        let bundle_endpoint = self.endpoint.resolve(trust_domain, problems);
        let status_list_uri = self.status_list_uri.and_then(|found| uri(&found, problems));
        Some(Web {
            http: HttpSettings {
                socket: self.socket.map_or(socket, |found| found.value),
                tcp,
                mtls: self.mtls.map(|found| found.value),
                spiffe_id: spiffe_id?,
            },
            bundle_endpoint,
            bundle: BundleSettings {
                refresh_hint: self.refresh_hint.map_or_else(|| default_hint(lead), |found| found.value),
            },
            status_list_uri,
        })
    }
}

/// Checks the hint before anything follows it.
pub(super) fn bound_hint(found: Found<Duration>, problems: &mut Problems) -> Option<Found<Duration>> {
    let place = found.place.clone();
    found.within(&REFRESH_HINT, problems).map(|value| Found { value, place })
}

/// Readers that look as often as asked have seen a new authority [`HINTS_OF_LEAD`] times before it signs.
fn default_hint(lead: Duration) -> Duration {
    let third = Duration::from_secs((lead / HINTS_OF_LEAD).as_secs());
    third.clamp(*REFRESH_HINT.start(), DEFAULT_REFRESH_HINT)
}

/// For how many refresh hints a new authority is in every bundle before it signs.
pub(super) const HINTS_OF_LEAD: u32 = 3;

impl RawEndpoint {
    fn resolve(
        self,
        trust_domain: Option<&TrustDomain>,
        problems: &mut Problems,
    ) -> Option<BundleEndpointSettings> {
        let listen = self.listen?.value;
        let profile = match self.profile?.value {
            Profile::Spiffe => {
                for place in [self.certificate.map(|f| f.place), self.key.map(|f| f.place)] {
                    let message = "`https_spiffe` shows an X.509-SVID of the agent's own: remove this";
                    if let Some(place) = place {
                        problems.push(place.problem(message));
                    }
                }
                EndpointProfile::Spiffe(own_id(self.spiffe_id, trust_domain, problems)?)
            }
            Profile::Web => {
                let message = "`https_web` shows no X.509-SVID: remove this";
                if let Some(found) = self.spiffe_id {
                    problems.push(found.place.problem(message));
                }
                EndpointProfile::Web {
                    certificate: self.certificate?.value,
                    key: self.key?.value,
                    names: self
                        .names
                        .map(|found| found.value)
                        .into_iter()
                        .flatten()
                        .flatten()
                        .map(|f| f.value)
                        .collect(),
                }
            }
        };
        Some(BundleEndpointSettings { listen, profile })
    }
}

impl super::Config {
    pub(super) fn web(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let http = &self.http;
        writeln!(f, "\n[http]\nsocket = {}\nspiffe_id = \"{}\"", Quoted(&http.socket), http.spiffe_id)?;
        for (name, address) in [("tcp", http.tcp), ("mtls", http.mtls)] {
            if let Some(address) = address {
                writeln!(f, "{name} = \"{address}\"")?;
            }
        }
        writeln!(f, "\n[bundle]\nrefresh_hint = \"{}\"", ShownDuration(self.bundle.refresh_hint))?;
        if let Some(uri) = &self.status_list_uri {
            writeln!(f, "\n[status_list]\nuri = \"{uri}\"")?;
        }
        let Some(endpoint) = &self.bundle_endpoint else { return Ok(()) };
        writeln!(f, "\n[bundle_endpoint]\nlisten = \"{}\"", endpoint.listen)?;
        match &endpoint.profile {
            EndpointProfile::Spiffe(id) => writeln!(f, "profile = \"https_spiffe\"\nspiffe_id = \"{id}\""),
            EndpointProfile::Web { certificate, key, names } => {
                writeln!(f, "profile = \"https_web\"\ncertificate = {}", Quoted(certificate))?;
                writeln!(f, "key = {}", Quoted(key))?;
                let names = names.iter().map(|name| toml::Value::String(name.clone())).collect();
                writeln!(f, "names = {}", toml::Value::Array(names))
            }
        }
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().ok().ok_or("is not an address and a port: write it as `127.0.0.1:8081` or `[::1]:8081`")
}

fn spiffe_id(table: &mut Table<'_>) -> Option<Found<SpiffeId>> {
    table.parsed("spiffe_id", |text| SpiffeId::parse(text.as_bytes()))
}

/// A workload's ID of our own trust domain.
fn own_id(
    found: Option<Found<SpiffeId>>,
    trust_domain: Option<&TrustDomain>,
    problems: &mut Problems,
) -> Option<SpiffeId> {
    let Some(found) = found else {
        return SpiffeId::parse(format!("{}{OWN_PATH}", trust_domain?.id()).as_bytes()).ok();
    };
    if trust_domain.is_some_and(|own| own != found.value.trust_domain()) || found.value.path().is_empty() {
        let message = "names no workload of this trust domain: write an ID of `trust_domain` with a path";
        problems.push(found.place.problem(message));
    }
    Some(found.value)
}

fn uri(found: &Found<String>, problems: &mut Problems) -> Option<String> {
    let usable = super::resolve::is_issuer_url(&found.value);
    if !usable {
        let message = format!(
            "`{}` is no place for status lists: write an `https://` URL without query and fragment, at which \
             verifiers reach the HTTP listener's `/statuslists`",
            Shown(&found.value)
        );
        problems.push(found.place.problem(message));
    }
    usable.then(|| found.value.trim_end_matches('/').to_owned())
}

/// Where the Unix socket is when nobody says: in a directory of its own beside the public socket's, or, where that
/// one is not laid out as usual, beside the public socket itself.
pub(super) fn socket_beside(public: &Path) -> PathBuf {
    let directory = public.parent().unwrap_or_else(|| Path::new("/"));
    match directory.parent() {
        Some(above) if directory.ends_with("public") => socket_in(above),
        _ => directory.join("http.sock"),
    }
}

/// Where the Unix socket is below a runtime directory.
pub(super) fn socket_in(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("http/http.sock")
}

const OWN_PATH: &str = "/mayfly";
const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(300);
const REFRESH_HINT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::super::{Config, from_text};
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let text = format!("trust_domain = \"example.org\"\n{text}");
        from_text("mayfly.toml", text.as_bytes()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn nothing_is_on_tcp_unless_it_is_asked_for() {
        let config = load("").unwrap();
        assert_eq!(config.http.socket, Path::new("/run/mayfly/http/http.sock"));
        assert_eq!((config.http.tcp, config.http.mtls, config.bundle_endpoint), (None, None, None));
        assert_eq!(config.http.spiffe_id.as_str(), "spiffe://example.org/mayfly");
        assert_eq!(config.bundle.refresh_hint, Duration::from_secs(300));
        assert_eq!(config.status_list_uri, None);
    }

    #[test]
    fn plain_http_is_for_loopback_alone() {
        assert!(load("http.tcp = \"127.0.0.1:8081\"").unwrap().http.tcp.is_some());
        assert!(load("http.tcp = \"[::1]:8081\"").is_ok());
        for bad in ["0.0.0.0:8081", "[::]:1", "192.0.2.1:80", "127.0.0.1", "localhost:80"] {
            assert!(load(&format!("http.tcp = \"{bad}\"")).is_err(), "{bad}");
        }
        assert!(load("http.mtls = \"0.0.0.0:8443\"").unwrap().http.mtls.is_some());
    }

    #[test]
    fn each_profile_of_the_bundle_endpoint_wants_its_own_members() {
        let spiffe = "[bundle_endpoint]\nlisten = \"0.0.0.0:8443\"\nprofile = \"https_spiffe\"\n";
        let endpoint = load(spiffe).unwrap().bundle_endpoint.unwrap();
        assert!(matches!(endpoint.profile, EndpointProfile::Spiffe(id) if id.path() == "/mayfly"));
        let web = "[bundle_endpoint]\nlisten = \"0.0.0.0:443\"\nprofile = \"https_web\"\n";
        let files = "certificate = \"/etc/c.pem\"\nkey = \"/etc/k.pem\"\nnames = [\"example.org\"]\n";
        assert!(load(&format!("{web}{files}")).unwrap().bundle_endpoint.is_some());
        for (text, says) in [
            (web.to_owned(), "bundle_endpoint.certificate: is missing"),
            (format!("{spiffe}{files}"), "bundle_endpoint.key: `https_spiffe` shows an X.509-SVID"),
            (format!("{web}{files}spiffe_id = \"spiffe://example.org/x\""), "shows no X.509-SVID"),
            (
                format!("{spiffe}spiffe_id = \"spiffe://other.org/x\""),
                "names no workload of this trust domain",
            ),
            (
                format!("{spiffe}spiffe_id = \"spiffe://example.org\""),
                "names no workload of this trust domain",
            ),
            ("[bundle_endpoint]\n".to_owned(), "bundle_endpoint.listen: is missing"),
            ("status_list.uri = \"http://a\"".to_owned(), "is no place for status lists"),
            ("bundle.refresh_hint = \"0s\"".to_owned(), "bundle.refresh_hint"),
        ] {
            let report = load(&text).unwrap_err();
            assert!(report.contains(says), "{report}");
        }
    }

    #[test]
    fn the_issuer_is_said_once() {
        let issuer = "https://id.example.org";
        for one in [format!("oidc.issuer = \"{issuer}\""), format!("jwt.issuer = \"{issuer}\"")] {
            assert_eq!(load(&one).unwrap().jwt.issuer, issuer);
        }
        let report = load("oidc.issuer = \"https://a\"\njwt.issuer = \"https://b\"").unwrap_err();
        assert!(report.contains("oidc.issuer") && report.contains("once"), "{report}");
        assert!(load("oidc.issuer = \"spiffe://example.org\"").is_err(), "nobody can discover that");
    }

    #[test]
    fn what_check_prints_says_the_same_again() {
        let text = "http.tcp = \"127.0.0.1:1\"\nhttp.mtls = \"[::]:2\"\nstatus_list.uri = \"https://a/b/\"\n\
                    [bundle_endpoint]\nlisten = \"0.0.0.0:443\"\nprofile = \"https_web\"\n\
                    certificate = \"/c\"\nkey = \"/k\"\nnames = [\"a.b\", \"::1\"]";
        let config = load(text).unwrap();
        assert_eq!(from_text("again", config.to_string().as_bytes()), Ok(config));
    }
}
