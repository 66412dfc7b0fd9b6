//! `[[federation]]`: which other trust domains to learn the bundles of, and how (Federation §5). Every parameter is
//! written; nothing is inferred from another (§7.2).

use std::fmt;
use std::path::PathBuf;

use crate::diag::{Found, Place, Problems, Table};
use crate::id::{SpiffeId, TrustDomain};

/// One relationship.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FederationSettings {
    /// Whose bundle it is: never taken from the document or the URL.
    pub trust_domain: TrustDomain,
    /// Where it is served.
    pub url: EndpointUrl,
    /// How the server proves itself.
    pub profile: RemoteProfile,
}

/// How a bundle endpoint proves that it is the right one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RemoteProfile {
    /// A certificate of the Web PKI for the host of the URL.
    HttpsWeb {
        /// PEM certificates to believe instead of the system's.
        ca_file: Option<PathBuf>,
    },
    /// An X.509-SVID, whatever the host.
    HttpsSpiffe {
        /// Exactly this one.
        endpoint_spiffe_id: SpiffeId,
        /// The bundle to believe until one has been fetched: a SPIFFE bundle document or PEM certificates. Only where
        /// the endpoint is of the trust domain whose bundle it serves.
        bootstrap_bundle: Option<PathBuf>,
    },
}

impl RemoteProfile {
    /// The word of the configuration file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::HttpsWeb { .. } => "https_web",
            Self::HttpsSpiffe { .. } => "https_spiffe",
        }
    }
}

/// An absolute `https` URL without user information and without fragment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointUrl {
    uri: http::Uri,
    text: String,
}

impl EndpointUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let uri: http::Uri = text.parse().ok().ok_or(UrlError::NotAUrl)?;
        if uri.scheme() != Some(&http::uri::Scheme::HTTPS) {
            return Err(UrlError::NotHttps);
        }
        let authority = uri.authority().ok_or(UrlError::NotAUrl)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        // What `http` leaves of `host:` and of `host:x` is a port that does not read as one.
        let port_is_sound =
            authority.as_str().len() == authority.host().len() || authority.port_u16().is_some();
        if authority.host().is_empty() || !port_is_sound || text.contains('#') || text.len() > MAX_URL_BYTES {
            return Err(UrlError::NotAUrl);
        }
        Ok(Self { uri, text: text.to_owned() })
    }

    /// The target of a redirect from here: another such URL, or a path on the same server.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn redirect(&self, location: &str) -> Result<Self, UrlError> {
        if location.starts_with('/') && !location.starts_with("//") {
            let authority = self.uri.authority().map_or("", |authority| authority.as_str());
            return Self::parse(&format!("https://{authority}{location}"));
        }
        Self::parse(location)
    }

    /// The host: a name, or an IP address without brackets.
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(443)
    }

    /// Host and port as they are written: the `Host` header.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// Path and query.
    pub fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why something is no bundle endpoint's URL.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum UrlError {
    #[error("is not an absolute URL: write one such as `https://bundle.example.org/`")]
    NotAUrl,
    #[error("does not begin with `https://`")]
    NotHttps,
    #[error("has user information before the host: bundle endpoints authenticate nobody, remove it")]
    UserInfo,
}

/// A table as it stands in the file.
#[derive(Debug)]
pub(super) struct RawFederation {
    place: Place,
    trust_domain: Option<Found<TrustDomain>>,
    url: Option<Found<EndpointUrl>>,
    profile: Option<Found<bool>>,
    endpoint_spiffe_id: Option<Found<SpiffeId>>,
    bootstrap_bundle: Option<Found<PathBuf>>,
    ca_file: Option<Found<PathBuf>>,
}

impl RawFederation {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        table.require("trust_domain", "write whose bundle it is, `trust_domain = \"other.example\"`");
        table.require("url", "write where the bundle is served, `url = \"https://…\"`");
        table.require("profile", "write \"https_web\" or \"https_spiffe\", as the other side says");
        Self {
            place: table.place().clone(),
            trust_domain: table.parsed("trust_domain", str::parse::<TrustDomain>),
            url: table.parsed("url", EndpointUrl::parse),
            profile: table.choice("profile", &[("https_web", false), ("https_spiffe", true)]),
            endpoint_spiffe_id: table.parsed("endpoint_spiffe_id", endpoint_id),
            bootstrap_bundle: table.path("bootstrap_bundle"),
            ca_file: table.path("ca_file"),
        }
    }

    fn resolve(self, own: Option<&TrustDomain>, problems: &mut Problems) -> Option<FederationSettings> {
        let mut refuse = |place: &Place, message: &str| problems.push(place.problem(message));
        if let Some(domain) = self.trust_domain.as_ref().filter(|domain| Some(&domain.value) == own) {
            refuse(&domain.place, "is this agent's own trust domain: remove the table");
        }
        let profile = if self.profile?.value {
            if let Some(ca) = &self.ca_file {
                refuse(&ca.place, "belongs to the profile \"https_web\": remove it");
            }
            let Some(id) = self.endpoint_spiffe_id else {
                let message = "has no `endpoint_spiffe_id`, which the profile \"https_spiffe\" needs: write the \
                               SPIFFE ID of the endpoint";
                refuse(&self.place, message);
                return None;
            };
            let serves_itself =
                self.trust_domain.as_ref().is_none_or(|domain| domain.value == *id.value.trust_domain());
            if let Some(bootstrap) = self.bootstrap_bundle.as_ref().filter(|_| !serves_itself) {
                let message = "is for an endpoint of the trust domain itself: remove it, and federate with the \
                               endpoint's trust domain as well";
                refuse(&bootstrap.place, message);
            }
            let bootstrap_bundle = self.bootstrap_bundle.map(|found| found.value);
            RemoteProfile::HttpsSpiffe { endpoint_spiffe_id: id.value, bootstrap_bundle }
        } else {
            let places = [
                self.endpoint_spiffe_id.map(|found| found.place),
                self.bootstrap_bundle.map(|found| found.place),
            ];
            for place in places.iter().flatten() {
                refuse(place, "belongs to the profile \"https_spiffe\": remove it");
            }
            RemoteProfile::HttpsWeb { ca_file: self.ca_file.map(|found| found.value) }
        };
        Some(FederationSettings { trust_domain: self.trust_domain?.value, url: self.url?.value, profile })
    }
}

/// All tables; a trust domain has one.
pub(super) fn resolve(
    raw: Vec<RawFederation>,
    own: Option<&TrustDomain>,
    problems: &mut Problems,
) -> Vec<FederationSettings> {
    let mut all: Vec<FederationSettings> = Vec::new();
    for table in raw {
        let place = table.trust_domain.as_ref().map(|found| found.place.clone());
        let Some(one) = table.resolve(own, problems) else { continue };
        match place.filter(|_| all.iter().any(|known| known.trust_domain == one.trust_domain)) {
            Some(place) => problems.push(place.problem("has a table already: remove one")),
            None => all.push(one),
        }
    }
    all
}

fn endpoint_id(text: &str) -> Result<SpiffeId, String> {
    let id = SpiffeId::parse(text.as_bytes()).map_err(|error| error.to_string())?;
    if id.path().is_empty() {
        return Err("is a trust domain and no workload: write the whole ID of the endpoint".to_owned());
    }
    Ok(id)
}

impl fmt::Display for FederationSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: String| toml::Value::String(text);
        let Self { trust_domain, url, profile } = self;
        writeln!(
            f,
            "\n[[federation]]\ntrust_domain = \"{trust_domain}\"\nurl = {}",
            quoted(url.to_string())
        )?;
        writeln!(f, "profile = \"{}\"", profile.name())?;
        let (name, path) = match profile {
            RemoteProfile::HttpsWeb { ca_file } => ("ca_file", ca_file),
            RemoteProfile::HttpsSpiffe { endpoint_spiffe_id, bootstrap_bundle } => {
                writeln!(f, "endpoint_spiffe_id = \"{endpoint_spiffe_id}\"")?;
                ("bootstrap_bundle", bootstrap_bundle)
            }
        };
        match path {
            Some(path) => writeln!(f, "{name} = {}", quoted(path.display().to_string())),
            None => Ok(()),
        }
    }
}

const MAX_URL_BYTES: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::super::from_text;
    use super::*;

    fn report(tables: &str) -> Vec<String> {
        let text = format!("trust_domain = \"example.org\"\n{tables}");
        match from_text("f", text.as_bytes()) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.to_string().lines().map(str::to_owned).collect(),
        }
    }

    #[test]
    fn urls_are_https_without_user_information() {
        for good in ["https://a.org", "https://a.org:8443/x?y=1", "https://10.0.0.1/", "https://[::1]:443/b"]
        {
            assert_eq!(EndpointUrl::parse(good).unwrap().to_string(), good);
        }
        let url = EndpointUrl::parse("https://[::1]:8443/b?c").unwrap();
        assert_eq!((url.host(), url.port(), url.path_and_query()), ("::1", 8443, "/b?c"));
        for (bad, why) in [
            ("http://a.org", UrlError::NotHttps),
            ("a.org", UrlError::NotHttps),
            ("/x", UrlError::NotHttps),
            ("https://u@a.org", UrlError::UserInfo),
            ("https://u:p@a.org/", UrlError::UserInfo),
            ("https://@a.org/", UrlError::UserInfo),
            ("https://a.org/#f", UrlError::NotAUrl),
            ("https://a.org:99999/", UrlError::NotAUrl),
            ("https://a.org:/", UrlError::NotAUrl),
            ("https://", UrlError::NotAUrl),
            ("https://a b/", UrlError::NotAUrl),
            ("", UrlError::NotAUrl),
        ] {
            assert_eq!(EndpointUrl::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn redirects_lead_to_urls_of_the_same_kind() {
        let from = EndpointUrl::parse("https://a.org:8443/x").unwrap();
        assert_eq!(from.redirect("/y?z").unwrap().to_string(), "https://a.org:8443/y?z");
        assert_eq!(from.redirect("https://b.org/").unwrap().host(), "b.org");
        assert_eq!(from.redirect("http://a.org/"), Err(UrlError::NotHttps));
        assert_eq!(from.redirect("https://u@b.org/"), Err(UrlError::UserInfo));
        assert_eq!(from.redirect("//b.org/"), Err(UrlError::NotHttps));
        assert_eq!(from.redirect("y"), Err(UrlError::NotHttps));
    }

    #[test]
    fn every_mistake_is_in_one_report() {
        let found = report(
            r#"[[federation]]
trust_domain = "example.org"
url = "http://a.org/"
profile = "https_web"
endpoint_spiffe_id = "spiffe://a.org/e"
[[federation]]
trust_domain = "b.org"
url = "https://b.org/"
profile = "https_spiffe"
ca_file = "/ca.pem"
[[federation]]
trust_domain = "b.org"
url = "https://b.org/"
profile = "https_spiffe"
endpoint_spiffe_id = "spiffe://c.org/e"
bootstrap_bundle = "/b.json"
[[federation]]
[[federation]]
trust_domain = "d.org"
url = "https://d.org/"
profile = "web"
endpoint_spiffe_id = "spiffe://d.org"
[[federation]]
trust_domain = "e.org"
url = "https://e.org/"
profile = "https_web"
[[federation]]
trust_domain = "e.org"
url = "https://e.org/"
profile = "https_web"
"#,
        );
        for said in [
            "f:3:16: federation[0].trust_domain: is this agent's own",
            "f:4:7: federation[0].url: `http://a.org/` does not begin",
            "f:6:22: federation[0].endpoint_spiffe_id: belongs to the profile \"https_spiffe\"",
            "f:7:1: federation[1]: has no `endpoint_spiffe_id`",
            "f:11:11: federation[1].ca_file: belongs to the profile \"https_web\"",
            "f:17:20: federation[2].bootstrap_bundle: is for an endpoint of the trust domain itself",
            "f:18:1: federation[3].trust_domain: is missing",
            "f:18:1: federation[3].url: is missing",
            "f:18:1: federation[3].profile: is missing",
            "f:22:11: federation[4].profile: `web` is none of",
            "f:23:22: federation[4].endpoint_spiffe_id: `spiffe://d.org` is a trust domain",
            "f:29:16: federation[6].trust_domain: has a table already",
        ] {
            assert!(found.iter().any(|line| line.starts_with(said)), "{said}\n{found:#?}");
        }
        assert_eq!(found.len(), 12, "{found:#?}");
    }

    #[test]
    fn what_is_shown_reads_back() {
        let text = r#"trust_domain = "example.org"
[[federation]]
trust_domain = "b.org"
url = "https://b.org/x?y"
profile = "https_spiffe"
endpoint_spiffe_id = "spiffe://b.org/e"
bootstrap_bundle = "/b.json"
[[federation]]
trust_domain = "c.org"
url = "https://c.org/"
profile = "https_web"
ca_file = "/ca.pem"
"#;
        let config = from_text("f", text.as_bytes()).unwrap();
        assert_eq!(config.federation.len(), 2);
        assert_eq!(from_text("again", config.to_string().as_bytes()), Ok(config));
    }
}
