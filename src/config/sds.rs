//! `[sds]`: Envoy's secret discovery service.

use std::fmt;

use crate::diag::{Found, Problems, Shown, Table};
use crate::telemetry::word;

/// Envoy's secret discovery service, on the public socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SdsSettings {
    /// Whether CRLs go into validation contexts.
    pub crl: SdsCrl,
    /// Names beside SPIFFE IDs and trust domain IDs.
    pub names: SdsNames,
    /// Nobody gets the SPIFFE validator.
    pub disable_spiffe_cert_validation: bool,
    /// Processes that match no entry get bundles all the same.
    pub bundles_without_identity: bool,
}

/// Names that Envoys ask by without knowing their SPIFFE ID or trust domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SdsNames {
    /// The caller's first identity.
    pub svid: String,
    /// Its own trust domain.
    pub bundle: String,
    /// Every trust domain it may know.
    pub all_bundles: String,
}

/// Whether CRLs go into validation contexts. Whatever is chosen, they are kept back where they would make Envoy
/// refuse the living.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SdsCrl {
    /// Never.
    Off,
    /// The operator says that nobody else signs leaves of this trust domain. The default validator is told to look
    /// up the leaf only.
    Leaf,
    /// Of every issuer; only where the authorities themselves show that there can be no other.
    Full,
}

impl SdsCrl {
    /// Each with the word for it in the file.
    pub const WORDS: [(&'static str, Self); 3] =
        [("off", Self::Off), ("leaf", Self::Leaf), ("full", Self::Full)];
}

impl Default for SdsNames {
    fn default() -> Self {
        Self { svid: "default".to_owned(), bundle: "ROOTCA".to_owned(), all_bundles: "ALL".to_owned() }
    }
}

/// As written.
#[derive(Debug)]
pub(super) struct RawSds {
    crl: Option<Found<SdsCrl>>,
    svid: Option<Found<String>>,
    bundle: Option<Found<String>>,
    all_bundles: Option<Found<String>>,
    disable_spiffe_cert_validation: Option<Found<bool>>,
    bundles_without_identity: Option<Found<bool>>,
}

impl RawSds {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            crl: table.choice("crl", &SdsCrl::WORDS),
            svid: table.text("default_svid_name"),
            bundle: table.text("default_bundle_name"),
            all_bundles: table.text("default_all_bundles_name"),
            disable_spiffe_cert_validation: table.boolean("disable_spiffe_cert_validation"),
            bundles_without_identity: table.boolean("bundles_without_identity"),
        }
    }

    pub(super) fn resolve(self, problems: &mut Problems) -> SdsSettings {
        let names = names([self.svid, self.bundle, self.all_bundles], problems);
        SdsSettings {
            crl: self.crl.map_or(SdsCrl::Full, |found| found.value),
            names,
            disable_spiffe_cert_validation: self
                .disable_spiffe_cert_validation
                .is_some_and(|found| found.value),
            bundles_without_identity: self.bundles_without_identity.is_some_and(|found| found.value),
        }
    }
}

fn names(found: [Option<Found<String>>; 3], problems: &mut Problems) -> SdsNames {
    let usual = SdsNames::default();
    let places = found.each_ref().map(|one| one.as_ref().map(|found| found.place.clone()));
    let [svid, bundle, all_bundles] = found.map(|one| one.map(|found| found.value));
    let names = SdsNames {
        svid: svid.unwrap_or(usual.svid),
        bundle: bundle.unwrap_or(usual.bundle),
        all_bundles: all_bundles.unwrap_or(usual.all_bundles),
    };
    let all = [&names.svid, &names.bundle, &names.all_bundles];
    for (name, place) in all.into_iter().zip(places) {
        let twice = all.iter().filter(|other| **other == name).count() > 1;
        if let (Some(message), Some(place)) = (name_fault(name, twice), place) {
            problems.push(place.problem(message));
        }
    }
    names
}

fn name_fault(name: &str, twice: bool) -> Option<String> {
    if twice {
        return Some(format!("`{}` already means something else: give each its own name", Shown(name)));
    }
    let usable = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name != "*"
        && !name.starts_with(crate::id::SCHEME)
        && !name.chars().any(char::is_control);
    (!usable).then(|| {
        format!(
            "`{}` cannot be a secret's name: write 1 to {MAX_NAME_BYTES} bytes, not `*`, not `spiffe://…`",
            Shown(name)
        )
    })
}

impl fmt::Display for SdsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |name: &str| toml::Value::String(name.to_owned());
        writeln!(f, "\n[sds]\ncrl = \"{}\"", word(&SdsCrl::WORDS, self.crl))?;
        writeln!(f, "default_svid_name = {}", quoted(&self.names.svid))?;
        writeln!(f, "default_bundle_name = {}", quoted(&self.names.bundle))?;
        writeln!(f, "default_all_bundles_name = {}", quoted(&self.names.all_bundles))?;
        writeln!(f, "disable_spiffe_cert_validation = {}", self.disable_spiffe_cert_validation)?;
        writeln!(f, "bundles_without_identity = {}", self.bundles_without_identity)
    }
}

const MAX_NAME_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::from_text;

    fn report(text: &str) -> String {
        let text = format!("trust_domain = \"example.org\"\n[sds]\n{text}\n");
        from_text("f", text.as_bytes()).map_or_else(|problems| problems.to_string(), |_| String::new())
    }

    #[test]
    fn names_are_distinct_and_no_ids() {
        assert_eq!(report("default_svid_name = \"mine\"\ncrl = \"leaf\""), "");
        assert!(report("default_svid_name = \"ROOTCA\"").contains("already means something else"));
        for bad in ["", "*", "spiffe://example.org/x"] {
            assert!(
                report(&format!("default_bundle_name = \"{bad}\"")).contains("cannot be a secret's name")
            );
        }
        assert!(report("crl = \"some\"").contains("is none of \"off\", \"leaf\", \"full\""));
    }
}
