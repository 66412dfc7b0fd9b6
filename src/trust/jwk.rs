//! The public key of a certificate as a JWK (RFC 7518 §6, RFC 8037 §2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A key that has no JWK which the readers of today take: neither P-256, P-384, P-521, RSA nor Ed25519.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the key of a certificate is neither ECDSA, RSA nor Ed25519")]
pub struct UnsupportedKey;

/// `kty` and the members that go with it.
pub(super) fn certificate_jwk(der: &[u8]) -> Result<Map<String, Value>, UnsupportedKey> {
    let (_, certificate) = X509Certificate::from_der(der).ok().ok_or(UnsupportedKey)?;
    let members = public_members(certificate.public_key()).ok_or(UnsupportedKey)?;
    Ok(members.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))).collect())
}

fn public_members(key: &SubjectPublicKeyInfo<'_>) -> Option<Vec<(&'static str, String)>> {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    if key.algorithm.algorithm.to_id_string() == ED25519 {
        let point = encode(&key.subject_public_key.data);
        return Some(vec![("kty", "OKP".to_owned()), ("crv", "Ed25519".to_owned()), ("x", point)]);
    }
    match key.parsed().ok()? {
        PublicKey::RSA(rsa) => {
            let (n, e) = (encode(unsigned(rsa.modulus)), encode(unsigned(rsa.exponent)));
            Some(vec![("kty", "RSA".to_owned()), ("n", n), ("e", e)])
        }
        PublicKey::EC(point) => {
            let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string();
            let (_, name, width) = CURVES.iter().find(|(oid, ..)| *oid == curve)?;
            let coordinates = point.data().strip_prefix(&[0x04])?;
            let (x, y) = coordinates.split_at_checked(*width).filter(|(_, y)| y.len() == *width)?;
            Some(vec![
                ("kty", "EC".to_owned()),
                ("crv", (*name).to_owned()),
                ("x", encode(x)),
                ("y", encode(y)),
            ])
        }
        _ => None,
    }
}

/// An ASN.1 integer without the zero that keeps it positive.
fn unsigned(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    integer.get(zeros..).unwrap_or_default()
}

const ED25519: &str = "1.3.101.112";
/// Object identifier, name in a JWK, bytes of a coordinate.
const CURVES: [(&str, &str, usize); 3] =
    [("1.2.840.10045.3.1.7", "P-256", 32), ("1.3.132.0.34", "P-384", 48), ("1.3.132.0.35", "P-521", 66)];
