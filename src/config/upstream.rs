//! `[upstream.disk]`: signing under a root that lies in files.

use std::fmt;
use std::path::{Path, PathBuf};

use super::show::Quoted;
use crate::diag::{Found, Problems, Table};

/// Who signs the certificate of this node's X.509 authority.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpstreamSettings {
    /// `[upstream.disk]`
    Disk {
        /// The root's certificate, PEM.
        certificate: PathBuf,
        /// Its key, PEM (PKCS#8, not encrypted).
        key: PathBuf,
        /// The list of revoked node certificates.
        revoked: PathBuf,
    },
}

/// As written.
#[derive(Debug, Default)]
pub(super) struct RawUpstream {
    certificate: Option<Found<PathBuf>>,
    key: Option<Found<PathBuf>>,
    revoked: Option<Found<PathBuf>>,
}

impl RawUpstream {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let given = table.has("upstream");
        table.section("upstream", |upstream| {
            if given {
                upstream.require("disk", "write `[upstream.disk]` with `certificate` and `key`");
            }
            let given = upstream.has("disk");
            upstream.section("disk", |disk| {
                if given {
                    disk.require("certificate", "write the path of the root's certificate, a PEM file");
                    disk.require("key", "write the path of the root's private key, a PEM file");
                }
                Self {
                    certificate: disk.path("certificate"),
                    key: disk.path("key"),
                    revoked: disk.path("revoked"),
                }
            })
        })
    }

    pub(super) fn resolve(self, data_dir: &Path, problems: &mut Problems) -> Option<UpstreamSettings> {
        let (certificate, key) = (self.certificate?, self.key?);
        let revoked = self.revoked.map_or_else(|| data_dir.join("revoked-nodes"), |found| found.value);
        if certificate.value == key.value || key.value == revoked {
            problems
                .push(key.place.problem("is another file's path already: give the key a file of its own"));
        }
        Some(UpstreamSettings::Disk { certificate: certificate.value, key: key.value, revoked })
    }
}

impl fmt::Display for UpstreamSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Disk { certificate, key, revoked } = self;
        writeln!(f, "\n[upstream.disk]\ncertificate = {}", Quoted(certificate))?;
        writeln!(f, "key = {}\nrevoked = {}", Quoted(key), Quoted(revoked))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, from_text};
    use super::*;
    use crate::diag::Problems;

    fn load(text: &str) -> Result<Config, Problems> {
        from_text("f", format!("trust_domain = \"example.org\"\n{text}\n").as_bytes())
    }

    #[test]
    fn an_upstream_wants_both_files_and_is_shown_as_it_is_read() {
        assert_eq!(load("").unwrap().upstream, None);
        let text = "[upstream.disk]\ncertificate = \"/r/root.pem\"\nkey = \"/r/root.key\"\n";
        let config = load(text).unwrap();
        let revoked = PathBuf::from("/var/lib/mayfly/revoked-nodes");
        let (certificate, key) = (PathBuf::from("/r/root.pem"), PathBuf::from("/r/root.key"));
        assert_eq!(config.upstream, Some(UpstreamSettings::Disk { certificate, key, revoked }));
        let shown = from_text("f", config.to_string().as_bytes()).unwrap();
        assert_eq!(shown.upstream, config.upstream);
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        for (text, expected) in [
            ("[upstream]\n", "upstream.disk: is missing"),
            ("[upstream.disk]\n", "upstream.disk.certificate: is missing"),
            ("[upstream.disk]\ncertificate = \"/a\"\n", "upstream.disk.key: is missing"),
            ("[upstream.disk]\ncertificate = \"/a\"\nkey = \"/a\"\n", "upstream.disk.key: is another file's"),
            ("[upstream.disk]\ncertificate = \"/a\"\nkey = \"b\"\n", "upstream.disk.key:"),
            ("[upstream.vault]\n", "vault"),
        ] {
            let report = load(text).unwrap_err().to_string();
            assert!(report.contains(expected), "{text}: {report}");
        }
    }
}
