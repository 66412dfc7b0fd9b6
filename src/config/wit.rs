//! `[wit]`: WIT-SVIDs. Their specification is incubating, so they are off until somebody asks for them (STB-01).

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::diag::{Found, Problems, Shown, ShownDuration, Table};
use crate::telemetry::word;

/// WIT-SVIDs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WitSettings {
    /// Whether the agent issues them at all.
    pub enabled: bool,
    /// Lifetime of a token, and the most an entry may ask for.
    pub ttl: Duration,
    /// Keys of the authority and of workloads.
    pub key_type: WitKeyType,
    /// The `iss` claim; none by default, for `sub` names the issuer already. Never a URL under which OpenID Connect
    /// Discovery would look (WIT-21).
    pub issuer: Option<String>,
}

/// Key types of WIT authorities and of the workloads' keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WitKeyType {
    /// NIST P-256, signs ES256.
    EcP256,
    /// NIST P-384, signs ES384.
    EcP384,
}

impl WitKeyType {
    /// Each with the word for it in the file.
    pub const WORDS: [(&'static str, Self); 2] = [("ec-p256", Self::EcP256), ("ec-p384", Self::EcP384)];
}

#[derive(Debug)]
pub(super) struct RawWit {
    enabled: Option<Found<bool>>,
    ttl: Option<Found<Duration>>,
    key_type: Option<Found<WitKeyType>>,
    issuer: Option<Found<String>>,
}

impl RawWit {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            enabled: table.boolean("enabled"),
            ttl: table.duration("ttl"),
            key_type: table.choice("key_type", &WitKeyType::WORDS),
            issuer: table.text("issuer"),
        }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> WitSettings {
        let issuer = self.issuer.and_then(|found| {
            let usable = is_issuer(&found.value);
            if !usable {
                let message = format!(
                    "`{}` must not be the issuer of a WIT-SVID: others could take it for an OpenID Connect token; \
                     write a name that is no web address, such as the trust domain's ID, or leave it out",
                    Shown(&found.value)
                );
                problems.push(found.place.problem(message));
            }
            usable.then_some(found.value)
        });
        WitSettings {
            enabled: self.enabled.is_some_and(|found| found.value),
            ttl: self.ttl.and_then(|found| found.within(&TTL, problems)).unwrap_or(DEFAULT_TTL),
            key_type: self.key_type.map_or(WitKeyType::EcP256, |found| found.value),
            issuer,
        }
    }
}

impl fmt::Display for WitSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key_type = word(&WitKeyType::WORDS, self.key_type);
        let Self { enabled, ttl, .. } = self;
        writeln!(f, "\n[wit]\nenabled = {enabled}\nttl = \"{}\"", ShownDuration(*ttl))?;
        writeln!(f, "key_type = \"{key_type}\"")?;
        self.issuer.iter().try_for_each(|issuer| writeln!(f, "issuer = \"{issuer}\""))
    }
}

/// Plain characters, and no scheme of the web, in whatever case (RFC 3986 §3.1). Something without a colon is a
/// name, not a URL (RFC 7519 §2, StringOrURI), but a reader that puts `https://` before it makes it one.
fn is_issuer(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:@+".contains(&byte);
    let Some((scheme, _)) = text.split_once(':') else { return false };
    let web = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    !web && !scheme.is_empty() && text.len() <= 2048 && text.bytes().all(plain)
}

const TTL: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3600);
const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::super::from_text;
    use super::*;

    fn wit(text: &str) -> Result<WitSettings, String> {
        let text = format!("trust_domain = \"example.org\"\n{text}");
        from_text("mayfly.toml", text.as_bytes()).map(|config| config.wit).map_err(|found| found.to_string())
    }

    #[test]
    fn they_are_off_by_default() {
        let expected = WitSettings {
            enabled: false,
            ttl: Duration::from_secs(900),
            key_type: WitKeyType::EcP256,
            issuer: None,
        };
        assert_eq!(wit(""), Ok(expected.clone()));
        assert_eq!(wit("[wit]\nenabled = true"), Ok(WitSettings { enabled: true, ..expected }));
    }

    #[test]
    fn an_issuer_that_openid_discovery_would_visit_is_refused() {
        for bad in [
            "https://example.org",
            "HTTPS://example.org",
            "http://example.org",
            "example.org",
            "",
            ":x",
            "urn:a b",
            "urn:a\\\"b",
        ] {
            let report = wit(&format!("[wit]\nissuer = \"{bad}\"")).unwrap_err();
            assert!(report.starts_with("mayfly.toml:3:10: wit.issuer: "), "{report}");
            assert!(report.contains("OpenID Connect"), "{report}");
        }
        for good in ["spiffe://example.org", "urn:example:issuer"] {
            let settings = wit(&format!("[wit]\nissuer = \"{good}\"")).unwrap();
            assert_eq!(settings.issuer.as_deref(), Some(good));
        }
    }

    #[test]
    fn a_lifetime_out_of_bounds_and_an_unknown_key_type_are_reported() {
        assert!(wit("[wit]\nttl = \"2h\"").unwrap_err().contains("wit.ttl"));
        assert!(wit("[wit]\nkey_type = \"rsa-2048\"").unwrap_err().contains("wit.key_type"));
        assert_eq!(wit("[wit]\nkey_type = \"ec-p384\"").unwrap().key_type, WitKeyType::EcP384);
    }
}
