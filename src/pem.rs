//! PEM text (RFC 7468): what `openssl`, nginx and people read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// One PEM block with 64 characters a line and a final newline. The text is wiped on drop, since the block may
/// be a private key. `label` is a constant such as `CERTIFICATE`.
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    // Allocated once: growing would leave copies of a key behind.
    let mut text =
        Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 40));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for (at, character) in body.chars().enumerate() {
        if at > 0 && at % LINE == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// The content of the first block with that label; `None` when there is none, or it is not base64. Line ends and
/// other white space do not matter.
pub fn decode(label: &str, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let mut clean = Zeroizing::new(String::with_capacity(body.len()));
    clean.extend(body.chars().filter(|c| !c.is_ascii_whitespace()));
    STANDARD.decode(clean.as_bytes()).ok().map(Zeroizing::new)
}

/// Label of an X.509 certificate.
pub const CERTIFICATE: &str = "CERTIFICATE";
/// Label of an unencrypted PKCS#8 private key.
pub const PRIVATE_KEY: &str = "PRIVATE KEY";
/// Label of an encrypted PKCS#8 private key.
pub const ENCRYPTED_PRIVATE_KEY: &str = "ENCRYPTED PRIVATE KEY";
/// Label of a certificate revocation list.
pub const CRL: &str = "X509 CRL";

const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn blocks_are_read_back_whatever_their_length() {
        for length in [0, 1, 47, 48, 49, 96, 1000] {
            let der = vec![0xa5; length];
            let text = encode(CERTIFICATE, &der);
            assert!(text.lines().all(|line| line.len() <= 64), "{length}");
            assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap().as_ref(), der, "{length}");
            assert!(text.ends_with("-----END CERTIFICATE-----\n"));
            assert_eq!(*decode(CERTIFICATE, text.as_bytes()).unwrap(), der, "{length}");
            assert!(decode(PRIVATE_KEY, text.as_bytes()).is_none());
        }
    }
}
