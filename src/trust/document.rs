//! Reading SPIFFE bundle documents (Trust Domain and Bundle §4), which come from strangers.
//!
//! What a later revision of the standards may add is passed over key by key and never spoils the document:
//! an unknown `kty` or `use`, members nobody knows. A document that is broken is refused as a whole, with the
//! name of the member, so that the bundle known before stays: a missing `keys` must not pass for "trust nobody".

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::bundle::DomainBundle;
use super::jwk::{UnsupportedKey, certificate_jwk};
use crate::authority::{JwsUse, JwtBundle, JwtKey};
use crate::json;

/// What a document says. The trust domain's name is not in it: whoever asked knows whom.
#[derive(Clone, Debug)]
pub struct BundleDocument {
    /// The authorities. Empty is a valid answer: nothing of that domain is to be believed any more.
    pub bundle: DomainBundle,
    /// `spiffe_sequence`.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`, as it stands, if it is a whole positive number of seconds.
    pub refresh_hint: Option<Duration>,
    /// Members that were passed over or are odd, in the order of the document.
    pub remarks: Vec<Remark>,
}

impl BundleDocument {
    /// Reads a document.
    ///
    /// # Errors
    /// [`DocumentError`] names the member at fault; nothing of such a document may be used.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::TooLong(bytes.len()));
        }
        let members = json::parse(bytes).map_err(DocumentError::NotJson)?;
        Self::read(&members.ok_or_else(|| at("document", Fault::NotAnObject))?)
    }

    /// As [`Self::parse`], or of PEM certificates, which then are all there is.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_any(bytes: &[u8]) -> Result<Self, DocumentError> {
        if !Self::is_pem(bytes) {
            return Self::parse(bytes);
        }
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::TooLong(bytes.len()));
        }
        let mut x509 = Vec::new();
        for (index, certificate) in CertificateDer::pem_slice_iter(bytes).enumerate() {
            let der = certificate.ok().filter(|der| is_certificate(der));
            let der = der.ok_or_else(|| at(format!("certificate {}", index + 1), Fault::NotACertificate))?;
            x509.push(Bytes::copy_from_slice(&der));
        }
        if x509.is_empty() {
            return Err(at("certificate 1", Fault::Missing));
        }
        let bundle = DomainBundle::new(x509, JwtBundle::of([]), JwtBundle::of([]));
        Ok(Self { bundle, sequence: None, refresh_hint: None, remarks: Vec::new() })
    }

    /// Whether this is meant to be PEM.
    pub fn is_pem(bytes: &[u8]) -> bool {
        bytes.trim_ascii_start().starts_with(b"-----BEGIN")
    }

    /// As [`Self::parse`], of an object that was parsed already.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(members: &Map<String, Value>) -> Result<Self, DocumentError> {
        let keys = members.get("keys").ok_or_else(|| at("keys", Fault::Missing))?;
        let keys = keys.as_array().ok_or_else(|| at("keys", Fault::NotAnArray))?;
        if keys.len() > MAX_KEYS {
            return Err(at("keys", Fault::TooManyKeys));
        }
        let sequence = match members.get("spiffe_sequence") {
            None => None,
            Some(value) => Some(value.as_u64().ok_or_else(|| at("spiffe_sequence", Fault::NotACount))?),
        };
        let mut reader = Reader::default();
        for (index, jwk) in keys.iter().enumerate() {
            reader.key(index, jwk)?;
        }
        let refresh_hint = reader.refresh_hint(members);
        let (bundle, remarks) = reader.finish();
        Ok(Self { bundle, sequence, refresh_hint, remarks })
    }
}

/// One thing an operator may want to know about a document that was taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remark {
    /// The member, as in `keys[3].x5c`.
    pub member: String,
    /// What is the matter with it.
    pub why: &'static str,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.member, self.why)
    }
}

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Over [`MAX_DOCUMENT_BYTES`].
    #[error("the document is {0} bytes long, and no more than {MAX_DOCUMENT_BYTES} are read")]
    TooLong(usize),
    /// No JSON text, or one with a member twice: two readers would see two documents.
    #[error("the document is not strict JSON: {0}")]
    NotJson(#[source] serde_json::Error),
    /// A certificate given as PEM has a key that cannot be kept in a document.
    #[error(transparent)]
    UnsupportedKey(#[from] UnsupportedKey),
    /// A member is not what it must be.
    #[error("{member}: {fault}")]
    Member {
        /// As in `keys[3].x5c[0]`.
        member: String,
        /// What it is.
        fault: Fault,
    },
}

/// What is wrong with a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Fault {
    #[error("is missing: a bundle that trusts nobody says `\"keys\": []`")]
    Missing,
    #[error("is not an object")]
    NotAnObject,
    #[error("is not an array")]
    NotAnArray,
    #[error("has more than {MAX_KEYS} keys")]
    TooManyKeys,
    #[error("is not a whole number from 0 to 18446744073709551615")]
    NotACount,
    #[error("is not a trust domain name")]
    NotAName,
    #[error("is not standard base64 of one X.509 certificate in DER")]
    NotACertificate,
}

fn at(member: impl Into<String>, fault: Fault) -> DocumentError {
    DocumentError::Member { member: member.into(), fault }
}

/// Collects what the keys of one document are good for.
#[derive(Default)]
struct Reader {
    x509: Vec<Bytes>,
    /// Usable JWT and WIT keys with their place: a `kid` must be unique among both (WIT-SVID §6.1).
    signing: Vec<(usize, Value)>,
    kids: BTreeMap<String, usize>,
    remarks: Vec<(usize, Remark)>,
}

impl Reader {
    fn key(&mut self, index: usize, jwk: &Value) -> Result<(), DocumentError> {
        let members = jwk.as_object().ok_or_else(|| at(format!("keys[{index}]"), Fault::NotAnObject))?;
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        if !text("kty").is_some_and(|kty| KEY_TYPES.contains(&kty)) {
            self.remark(index, "kty", "not a key type known here: the key is passed over");
            return Ok(());
        }
        match text("use") {
            Some("x509-svid") => self.x509(index, members),
            Some(usage) if SIGNING_USES.iter().any(|known| known.jwk_use() == usage) => {
                self.signing(index, jwk);
                Ok(())
            }
            _ => {
                self.remark(index, "use", "not a use known here: the key is passed over");
                Ok(())
            }
        }
    }

    /// X509-SVID §6.2: without `x5c` the key is ignored, of several only the first is looked at.
    fn x509(&mut self, index: usize, members: &Map<String, Value>) -> Result<(), DocumentError> {
        let chain = match members.get("x5c") {
            None => &[][..],
            Some(Value::Array(chain)) => chain,
            Some(_) => return Err(at(format!("keys[{index}].x5c"), Fault::NotAnArray)),
        };
        let Some(first) = chain.first() else {
            self.remark(index, "x5c", "has no certificate: the key is passed over");
            return Ok(());
        };
        let der =
            first.as_str().and_then(|text| STANDARD.decode(text).ok()).filter(|der| is_certificate(der));
        let der = der.ok_or_else(|| at(format!("keys[{index}].x5c[0]"), Fault::NotACertificate))?;
        if certificate_jwk(&der)
            .is_ok_and(|own| own.iter().any(|(name, value)| members.get(name) != Some(value)))
        {
            self.remark(
                index,
                "x5c",
                "is for another key than the members beside it: the certificate counts",
            );
        }
        self.x509.push(der.into());
        Ok(())
    }

    fn signing(&mut self, index: usize, jwk: &Value) {
        let Some(kid) = jwk.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty()) else {
            self.remark(index, "kid", "is missing: no token can name the key, which is passed over");
            return;
        };
        if JwtKey::read(jwk).is_none() {
            self.remark(index, "kty", "no key that checks RS, PS or ES signatures: the key is passed over");
            return;
        }
        *self.kids.entry(kid.to_owned()).or_default() += 1;
        self.signing.push((index, jwk.clone()));
    }

    /// A hint is only that: one that cannot be followed counts as absent.
    fn refresh_hint(&mut self, members: &Map<String, Value>) -> Option<Duration> {
        let value = members.get("spiffe_refresh_hint")?;
        let seconds = value.as_u64().filter(|seconds| *seconds > 0);
        if seconds.is_none() {
            let why = "is not a whole positive number of seconds: it counts as absent";
            self.remarks.push((usize::MAX, Remark { member: "spiffe_refresh_hint".to_owned(), why }));
        }
        seconds.map(Duration::from_secs)
    }

    fn remark(&mut self, index: usize, member: &str, why: &'static str) {
        self.remarks.push((index, Remark { member: format!("keys[{index}].{member}"), why }));
    }

    fn finish(mut self) -> (DomainBundle, Vec<Remark>) {
        for (index, jwk) in std::mem::take(&mut self.signing) {
            let kid = jwk.get("kid").and_then(Value::as_str).unwrap_or_default();
            if self.kids.get(kid) == Some(&1) {
                self.signing.push((index, jwk));
            } else {
                self.remark(
                    index,
                    "kid",
                    "occurs twice: nobody can say which key is meant, both are passed over",
                );
            }
        }
        let jwt = JwtBundle::of_keys(JwsUse::JwtSvid, self.signing.iter().map(|(_, jwk)| jwk));
        let wit = JwtBundle::of_keys(JwsUse::WitSvid, self.signing.iter().map(|(_, jwk)| jwk));
        self.remarks.sort_by_key(|(index, _)| *index);
        let remarks = self.remarks.into_iter().map(|(_, remark)| remark).collect();
        (DomainBundle::new(self.x509, jwt, wit), remarks)
    }
}

fn is_certificate(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty())
}

/// Longest document that is read: hundreds of authorities, and far from what a gRPC message may hold.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// Most keys in one document.
pub const MAX_KEYS: usize = 1_000;
const SIGNING_USES: [JwsUse; 2] = [JwsUse::JwtSvid, JwsUse::WitSvid];
/// RFC 7518 §6.1 and RFC 8037 §2, without `oct`, which is no public key.
const KEY_TYPES: [&str; 3] = ["EC", "RSA", "OKP"];

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
