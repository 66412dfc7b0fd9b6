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

/// What a verifier is to judge.
#[derive(Clone, Debug)]
pub struct Case {
    /// Leaf first, then what is between it and the bundle; DER, concatenated.
    pub chain: Vec<u8>,
    /// Trust anchors; DER, concatenated.
    pub bundle: Vec<u8>,
    /// DER, in the order in which they came.
    pub crls: Vec<Vec<u8>>,
    /// Judge as of that moment, Unix seconds; `None`: now.
    pub at: Option<u64>,
}

/// What `openssl verify -crl_check_all` says of a case.
///
/// # Errors
/// OpenSSL's words when it refuses.
///
/// # Panics
/// When OpenSSL cannot be run.
pub fn openssl_judge(scratch: &Path, case: &Case) -> Result<(), String> {
    let file = |name: &str, label: &str, ders: &[Vec<u8>]| {
        let path = scratch.join(name);
        std::fs::write(&path, ders.iter().map(|der| pem(label, der)).collect::<String>()).expect("write");
        path
    };
    let chain = split(&case.chain);
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-crl_check_all", "-no-CApath", "-no-CAstore", "-CAfile"]);
    command.arg(file("ca.pem", "CERTIFICATE", &split(&case.bundle)));
    command.arg("-CRLfile").arg(file("crl.pem", "X509 CRL", &case.crls));
    if let Some(at) = case.at {
        command.arg("-attime").arg(at.to_string());
    }
    if chain.len() > 1 {
        command.arg("-untrusted").arg(file("between.pem", "CERTIFICATE", &chain[1..]));
    }
    let output = command.arg(file("leaf.pem", "CERTIFICATE", &chain[..1])).output().expect("run openssl");
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(String::from_utf8_lossy(&said).into_owned())
}

/// What `openssl verify` says of a leaf, given the bundle (DER, concatenated) and a CRL.
///
/// # Errors
/// OpenSSL's words when it refuses.
pub fn openssl_verify(scratch: &Path, leaf: &[u8], bundle: &[u8], crl: &[u8]) -> Result<(), String> {
    let case = Case { chain: leaf.to_vec(), bundle: bundle.to_vec(), crls: vec![crl.to_vec()], at: None };
    openssl_judge(scratch, &case)
}

/// Concatenated DER certificates, one by one.
///
/// # Panics
/// When there is something else among them.
pub fn split(mut concatenated: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while !concatenated.is_empty() {
        let (rest, _) = X509Certificate::from_der(concatenated).expect("a certificate");
        all.push(concatenated[..concatenated.len() - rest.len()].to_vec());
        concatenated = rest;
    }
    all
}

/// Subject key identifiers of concatenated DER certificates, lower-case hex.
///
/// # Panics
/// When one has none.
pub fn subject_key_ids(concatenated: &[u8]) -> Vec<String> {
    let id = |der: &Vec<u8>| {
        let (_, certificate) = X509Certificate::from_der(der).expect("a certificate");
        let id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(hex(id.0)),
            _ => None,
        });
        id.expect("a subject key identifier")
    };
    split(concatenated).iter().map(id).collect()
}

/// One PEM block.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
