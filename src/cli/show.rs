//! How an X.509 answer looks, to people and to programs. Never holds a private key.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Serialize;

use super::render;
use super::x509::{self, Crl, Svid, Update};

/// JSON of an X.509 answer.
#[derive(Debug, Serialize)]
pub(crate) struct UpdateJson {
    pub(crate) svids: Vec<SvidJson>,
    pub(crate) crls: Vec<CrlJson>,
    /// Foreign trust domain ID to PEM (or to nothing, in events).
    pub(crate) federated_bundles: BTreeMap<String, BundleJson>,
}

/// JSON of one identity.
#[derive(Debug, Serialize)]
pub(crate) struct SvidJson {
    pub(crate) spiffe_id: String,
    pub(crate) hint: String,
    pub(crate) serial: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    pub(crate) crl_numbers: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificates: Option<String>,
    pub(crate) bundle: BundleJson,
}

/// JSON of one trust domain's X.509 authorities.
#[derive(Debug, Serialize)]
pub(crate) struct BundleJson {
    pub(crate) authorities: Vec<AuthorityJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pem: Option<String>,
}

/// JSON of one authority.
#[derive(Debug, Serialize)]
pub(crate) struct AuthorityJson {
    pub(crate) key_id: String,
    pub(crate) not_after: String,
}

/// JSON of one CRL.
#[derive(Debug, Serialize)]
pub(crate) struct CrlJson {
    pub(crate) issuer_key_id: String,
    pub(crate) number: u64,
    pub(crate) this_update: String,
    pub(crate) next_update: String,
    pub(crate) revoked: Vec<RevokedJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pem: Option<String>,
}

/// JSON of one entry of a CRL.
#[derive(Debug, Serialize)]
pub(crate) struct RevokedJson {
    pub(crate) serial: String,
    pub(crate) revoked_at: String,
}

/// Whether PEM texts come along (answers) or not (events).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Detail {
    /// Facts and PEM.
    Full,
    /// Facts only.
    Facts,
}

impl UpdateJson {
    pub(crate) fn new(update: &Update, detail: Detail) -> Self {
        let svid = |svid: &Svid| SvidJson {
            spiffe_id: svid.spiffe_id.clone(),
            hint: svid.hint.clone(),
            serial: svid.serial.clone(),
            not_before: render::stamp_unix(svid.not_before),
            not_after: render::stamp_unix(svid.not_after),
            crl_numbers: update.crls_of(svid).iter().map(|crl| crl.number).collect(),
            certificates: detail.text(|| x509::pem_certificates(&svid.chain)),
            bundle: BundleJson::new(&svid.bundle, detail),
        };
        let federated = update.federated.iter();
        Self {
            svids: update.svids.iter().map(svid).collect(),
            crls: update.crls.iter().map(|crl| CrlJson::new(crl, detail)).collect(),
            federated_bundles: federated
                .map(|(domain, bundle)| (domain.clone(), BundleJson::new(bundle, detail)))
                .collect(),
        }
    }
}

impl BundleJson {
    pub(crate) fn new(bundle: &[Bytes], detail: Detail) -> Self {
        let facts = bundle.iter().filter_map(|der| x509::authority_facts(der));
        Self {
            authorities: facts
                .map(|(key_id, not_after)| AuthorityJson { key_id, not_after: render::stamp_unix(not_after) })
                .collect(),
            pem: detail.text(|| x509::pem_certificates(bundle)),
        }
    }
}

impl CrlJson {
    pub(crate) fn new(crl: &Crl, detail: Detail) -> Self {
        let revoked = crl.revoked.iter();
        Self {
            issuer_key_id: crl.key_id.clone(),
            number: crl.number,
            this_update: render::stamp_unix(crl.this_update),
            next_update: render::stamp_unix(crl.next_update),
            revoked: revoked
                .map(|(serial, at)| RevokedJson {
                    serial: serial.clone(),
                    revoked_at: render::stamp_unix(*at),
                })
                .collect(),
            pem: detail.text(|| x509::pem("X509 CRL", &crl.der)),
        }
    }
}

impl Detail {
    fn text(self, text: impl FnOnce() -> String) -> Option<String> {
        (self == Self::Full).then(text)
    }
}

/// The answer for people.
pub(crate) fn update_lines(update: &Update, now: SystemTime) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, svid) in update.svids.iter().enumerate() {
        let default = if index == 0 && update.svids.len() > 1 { "  (default)" } else { "" };
        lines.push(format!("{}{default}", render::cell(&svid.spiffe_id)));
        if !svid.hint.is_empty() {
            lines.push(format!("  hint      {}", render::cell(&svid.hint)));
        }
        lines.push(format!("  serial    {}", svid.serial));
        let (from, to) = (render::stamp_unix(svid.not_before), render::stamp_unix(svid.not_after));
        lines.push(format!("  valid     {from} to {to} (ends {})", render::relative(svid.not_after, now)));
        let authorities = render::count(as_u64(svid.bundle.len()), "authority", "authorities");
        lines.push(format!("  verified  against {authorities}; {}", crl_words(&update.crls_of(svid))));
    }
    for (domain, bundle) in &update.federated {
        let authorities = render::count(as_u64(bundle.len()), "authority", "authorities");
        lines.push(format!("federated with {}: {authorities}", render::cell(domain)));
    }
    lines
}

/// `not on CRL 1763797200000 (3 entries)`, for a certificate that was checked against these.
fn crl_words(crls: &[&Crl]) -> String {
    if crls.is_empty() {
        return "the agent sent no CRL for it".to_owned();
    }
    let one = |crl: &&Crl| {
        format!("{} ({})", crl.number, render::count(as_u64(crl.revoked.len()), "entry", "entries"))
    };
    format!("not on CRL {}", crls.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Lengths fit.
pub(crate) fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
