//! Readers for certificates and CRLs, and OpenSSL as the judge.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{FromDer as _, ParsedExtension};
use x509_parser::revocation_list::CertificateRevocationList;

/// What a test wants to know of a CRL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Crl {
    /// CRL number.
    pub number: u128,
    /// Unix seconds.
    pub this_update: i64,
    /// Unix seconds.
    pub next_update: i64,
    /// Lower-case hex of every serial on it.
    pub serials: BTreeSet<String>,
    /// As published.
    pub der: Vec<u8>,
}

impl Crl {
    /// Reads DER.
    ///
    /// # Panics
    /// When it is not a CRL with a number and a next update.
    pub fn parse(der: &[u8]) -> Self {
        let (rest, crl) = CertificateRevocationList::from_der(der).expect("a CRL");
        assert!(rest.is_empty(), "bytes after the CRL");
        let number = crl.crl_number().expect("a CRL number");
        let number = number.to_bytes_be().iter().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
        Self {
            number,
            this_update: crl.last_update().timestamp(),
            next_update: crl.next_update().expect("a next update").timestamp(),
            serials: crl.iter_revoked_certificates().map(|r| hex(r.raw_serial())).collect(),
            der: der.to_vec(),
        }
    }
}

/// Serial, URI SAN and validity of the first certificate in a chain.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Lower-case hex.
    pub serial: String,
    /// The URI SANs.
    pub uris: Vec<String>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// The certificate alone, DER.
    pub der: Vec<u8>,
    /// Authority key identifier, lower-case hex.
    pub authority: String,
}

impl Leaf {
    /// Reads the first of concatenated DER certificates.
    ///
    /// # Panics
    /// When it is none.
    pub fn parse(chain: &[u8]) -> Self {
        let (rest, leaf) = X509Certificate::from_der(chain).expect("a certificate");
        let mut uris = Vec::new();
        let mut authority = String::new();
        for extension in leaf.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        if let x509_parser::extensions::GeneralName::URI(uri) = name {
                            uris.push((*uri).to_owned());
                        }
                    }
                }
                ParsedExtension::AuthorityKeyIdentifier(aki) => {
                    authority = aki.key_identifier.as_ref().map(|id| hex(id.0)).unwrap_or_default();
                }
                _ => {}
            }
        }
        Self {
            serial: hex(leaf.raw_serial()),
            uris,
            not_before: leaf.validity().not_before.timestamp(),
            not_after: leaf.validity().not_after.timestamp(),
            der: chain[..chain.len() - rest.len()].to_vec(),
            authority,
        }
    }
}

/// The claims of a compact JWS, unverified.
///
/// # Panics
/// When it is none.
pub fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `openssl verify -crl_check` says of a leaf, given the bundle (DER, concatenated) and a CRL.
///
/// # Errors
/// OpenSSL's words when it refuses.
///
/// # Panics
/// When OpenSSL cannot be run.
pub fn openssl_verify(scratch: &Path, leaf: &[u8], bundle: &[u8], crl: &[u8]) -> Result<(), String> {
    let file = |name: &str| scratch.join(name);
    std::fs::write(file("leaf.pem"), pem("CERTIFICATE", leaf)).expect("write");
    let mut authorities = String::new();
    let mut rest = bundle;
    while !rest.is_empty() {
        let (after, _) = X509Certificate::from_der(rest).expect("an authority");
        authorities += &pem("CERTIFICATE", &rest[..rest.len() - after.len()]);
        rest = after;
    }
    std::fs::write(file("ca.pem"), authorities).expect("write");
    std::fs::write(file("crl.pem"), pem("X509 CRL", crl)).expect("write");
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-crl_check", "-CAfile"])
        .args([file("ca.pem"), "-CRLfile".into(), file("crl.pem"), file("leaf.pem")])
        .output()
        .expect("run openssl");
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(String::from_utf8_lossy(&said).into_owned())
}

/// One PEM block.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
