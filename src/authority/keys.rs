//! Signing keys behind one trait, and the kind that this process holds itself: generated, parsed and used through
//! aws-lc-rs and kept parsed, so that a signature costs no parsing. Private keys leave this file only as
//! [`KeyBytes`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsBigEndian as _, AsDer as _};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
    UnparsedPublicKey, VerificationAlgorithm,
};
use rcgen::{PublicKeyData, SignatureAlgorithm};

use crate::id::KeyId;
use crate::secret::KeyBytes;

/// The cryptographic library refused: out of entropy or memory, or a damaged key. Nothing a caller can mend.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the cryptographic library refused the operation")]
pub struct CryptoError;

/// What kind of key an authority has, and what kind it gives to workloads.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum KeyType {
    /// NIST P-256 with SHA-256; JWS `ES256`.
    #[default]
    EcP256,
    /// NIST P-384 with SHA-384; JWS `ES384`.
    EcP384,
    /// RSA of 2048 bits, PKCS#1 v1.5 with SHA-256; JWS `RS256`. Generating one takes tens of milliseconds.
    Rsa2048,
}

impl KeyType {
    /// The name in configuration files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
        }
    }

    /// The JWS `alg` such a key signs with.
    pub fn jws_algorithm(self) -> &'static str {
        match self {
            Self::EcP256 => "ES256",
            Self::EcP384 => "ES384",
            Self::Rsa2048 => "RS256",
        }
    }

    fn ecdsa(self, form: SignatureForm) -> Option<&'static EcdsaSigningAlgorithm> {
        match (self, form) {
            (Self::EcP256, SignatureForm::X509) => Some(&ECDSA_P256_SHA256_ASN1_SIGNING),
            (Self::EcP256, SignatureForm::Jws) => Some(&ECDSA_P256_SHA256_FIXED_SIGNING),
            (Self::EcP384, SignatureForm::X509) => Some(&ECDSA_P384_SHA384_ASN1_SIGNING),
            (Self::EcP384, SignatureForm::Jws) => Some(&ECDSA_P384_SHA384_FIXED_SIGNING),
            (Self::Rsa2048, _) => None,
        }
    }

    fn x509_algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Self::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::EcP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// The text is not a key type.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be `ec-p256`, `ec-p384` or `rsa-2048`")]
pub struct UnknownKeyType;

impl FromStr for KeyType {
    type Err = UnknownKeyType;

    fn from_str(text: &str) -> Result<Self, UnknownKeyType> {
        [Self::EcP256, Self::EcP384, Self::Rsa2048]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(UnknownKeyType)
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an elliptic-curve signature is written: DER in certificates, raw R‖S in JWS (RFC 7518 §3.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SignatureForm {
    /// For certificates and CRLs.
    X509,
    /// For tokens.
    Jws,
}

/// A private key that signs, wherever it lives: in this process, in a token of PKCS#11, in a key service.
///
/// Signing may block for as long as a round trip takes. It is therefore only ever done on the issuing runtime, the
/// revoker's and the keeper's threads, never on the serving runtime.
pub trait SigningKey: fmt::Debug + Send + Sync {
    /// Its type.
    fn key_type(&self) -> KeyType;

    /// The form in which it signs.
    fn form(&self) -> SignatureForm;

    /// The curve point, uncompressed; or for RSA the PKCS#1 `RSAPublicKey`.
    fn public_key(&self) -> &[u8];

    /// Modulus and exponent, big-endian without leading zeros; `None` for a curve key.
    fn rsa_components(&self) -> Option<(Vec<u8>, Vec<u8>)>;

    /// Signs a message with the hash of its [`KeyType`].
    ///
    /// # Errors
    /// [`CryptoError`] when it cannot just now.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError>;
}

/// First 160 bits of the SHA-256 of the SubjectPublicKeyInfo (after RFC 7093 method 4).
pub(super) fn key_id(key: &Arc<dyn SigningKey>) -> KeyId {
    let mut id = [0; 20];
    let hash = digest(&SHA256, &Signer(Arc::clone(key)).subject_public_key_info());
    for (to, from) in id.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    KeyId::from_bytes(id)
}

/// A signing key as rcgen wants it.
#[derive(Clone, Debug)]
pub(super) struct Signer(pub(super) Arc<dyn SigningKey>);

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.key_type().x509_algorithm()
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // A raw R‖S inside a certificate would be a certificate nobody accepts.
        if self.0.form() == SignatureForm::Jws && self.0.key_type() != KeyType::Rsa2048 {
            return Err(rcgen::Error::UnsupportedSignatureAlgorithm);
        }
        self.0.sign(message).map_err(|CryptoError| rcgen::Error::RemoteKeyError)
    }
}

/// A private key ready to sign in one form.
pub(crate) struct SigningPair {
    kind: KeyType,
    form: SignatureForm,
    pair: Pair,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl SigningPair {
    pub(crate) fn generate(kind: KeyType, form: SignatureForm) -> Result<Self, CryptoError> {
        let pair = match kind.ecdsa(form) {
            Some(algorithm) => Pair::Ec(EcdsaKeyPair::generate(algorithm).map_err(refused)?),
            None => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).map_err(refused)?),
        };
        Ok(Self { kind, form, pair })
    }

    /// Parses PKCS#8 and finds out the key type.
    pub(crate) fn parse(pkcs8: &[u8], form: SignatureForm) -> Result<Self, CryptoError> {
        let ec = |kind: KeyType| {
            let pair = EcdsaKeyPair::from_pkcs8(kind.ecdsa(form)?, pkcs8).ok()?;
            Some(Self { kind, form, pair: Pair::Ec(pair) })
        };
        ec(KeyType::EcP256)
            .or_else(|| ec(KeyType::EcP384))
            .or_else(|| {
                let pair = RsaKeyPair::from_pkcs8(pkcs8).ok().filter(|p| p.public_modulus_len() == 256)?;
                Some(Self { kind: KeyType::Rsa2048, form, pair: Pair::Rsa(pair) })
            })
            .ok_or(CryptoError)
    }

    pub(crate) fn pkcs8(&self) -> Result<KeyBytes, CryptoError> {
        Ok(KeyBytes::new(match &self.pair {
            Pair::Ec(pair) => pair.to_pkcs8v1().map_err(refused)?.as_ref().to_vec(),
            Pair::Rsa(pair) => pair.as_der().map_err(refused)?.as_ref().to_vec(),
        }))
    }

    /// The private number of a curve key, big-endian at full width; `None` for RSA.
    pub(super) fn private_scalar(&self) -> Option<KeyBytes> {
        let Pair::Ec(pair) = &self.pair else { return None };
        let scalar: aws_lc_rs::encoding::EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().ok()?;
        Some(KeyBytes::new(scalar.as_ref().to_vec()))
    }
}

impl SigningKey for SigningPair {
    fn key_type(&self) -> KeyType {
        self.kind
    }

    fn form(&self) -> SignatureForm {
        self.form
    }

    fn public_key(&self) -> &[u8] {
        match &self.pair {
            Pair::Ec(pair) => pair.public_key().as_ref(),
            Pair::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    fn rsa_components(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        match &self.pair {
            Pair::Ec(_) => None,
            Pair::Rsa(pair) => {
                let key = pair.public_key();
                let bytes =
                    |number: aws_lc_rs::io::Positive<'_>| number.big_endian_without_leading_zero().to_vec();
                Some((bytes(key.modulus()), bytes(key.exponent())))
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => Ok(pair.sign(&random, message).map_err(refused)?.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(refused)?;
                Ok(signature)
            }
        }
    }
}

impl PublicKeyData for SigningPair {
    fn der_bytes(&self) -> &[u8] {
        self.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.kind.x509_algorithm()
    }
}

impl fmt::Debug for SigningPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningPair({})", self.kind)
    }
}

/// A fresh key pair for one workload: the public half goes into a certificate, the private one to the workload.
#[derive(Debug)]
pub struct WorkloadKey(SigningPair);

impl WorkloadKey {
    /// Makes a new key pair.
    ///
    /// # Errors
    /// [`CryptoError`] when the library cannot make one.
    pub fn generate(kind: KeyType) -> Result<Self, CryptoError> {
        SigningPair::generate(kind, SignatureForm::X509).map(Self)
    }

    /// The private key, PKCS#8 DER, unencrypted. Consumes the pair: the key is handed out once.
    ///
    /// # Errors
    /// [`CryptoError`] when the library cannot write it.
    pub fn into_pkcs8(self) -> Result<KeyBytes, CryptoError> {
        self.0.pkcs8()
    }

    pub(super) fn public(&self) -> &impl PublicKeyData {
        &self.0
    }
}

/// Checks a signature in a certificate or CRL of that key's owner.
pub(crate) fn verify(key: &dyn SigningKey, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    let algorithm: &'static dyn VerificationAlgorithm = match key.key_type() {
        KeyType::EcP256 => &ECDSA_P256_SHA256_ASN1,
        KeyType::EcP384 => &ECDSA_P384_SHA384_ASN1,
        KeyType::Rsa2048 => &RSA_PKCS1_2048_8192_SHA256,
    };
    UnparsedPublicKey::new(algorithm, key.public_key()).verify(message, signature).map_err(refused)
}

/// The library's errors say nothing by design; neither does ours.
pub(crate) fn refused<E>(_: E) -> CryptoError {
    CryptoError
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_parsed_back_as_what_it_was() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            for form in [SignatureForm::X509, SignatureForm::Jws] {
                let made = SigningPair::generate(kind, form).unwrap();
                let read = SigningPair::parse(made.pkcs8().unwrap().expose(), form).unwrap();
                assert_eq!((read.key_type(), read.public_key()), (kind, made.public_key()));
                assert_eq!(kind.as_str().parse(), Ok(kind));
            }
        }
        assert!(SigningPair::parse(b"0\x03\x02\x01\x00", SignatureForm::X509).is_err());
        assert!("ed25519".parse::<KeyType>().is_err());
    }

    #[test]
    fn a_jws_key_never_signs_a_certificate() {
        let pair = SigningPair::generate(KeyType::EcP256, SignatureForm::Jws).unwrap();
        assert!(rcgen::SigningKey::sign(&Signer(Arc::new(pair)), b"tbs").is_err());
    }

    #[test]
    fn debug_shows_the_type_and_nothing_else() {
        assert_eq!(
            format!("{:?}", WorkloadKey::generate(KeyType::EcP256).unwrap()),
            "WorkloadKey(SigningPair(ec-p256))"
        );
    }
}
