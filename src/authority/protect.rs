//! Key files at rest: PKCS#8, plain or encrypted with a passphrase (RFC 8018 PBES2: scrypt and AES-256-CBC), so
//! that `openssl pkcs8` reads and writes them as well.

use aws_lc_rs::rand;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};

use super::keys::{CryptoError, refused};
use crate::pem;
use crate::secret::KeyBytes;

/// Whether and how key files are encrypted.
#[derive(Clone, Debug, Default)]
pub enum Protection {
    /// By nothing but their mode.
    #[default]
    Plain,
    /// With this passphrase.
    Passphrase(KeyBytes),
}

impl Protection {
    /// The passphrase is what the file says up to the end of its first line.
    ///
    /// # Errors
    /// [`EmptyPassphrase`].
    pub fn passphrase(file: &KeyBytes) -> Result<Self, EmptyPassphrase> {
        let line = file.expose().split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        if line.is_empty() {
            return Err(EmptyPassphrase);
        }
        Ok(Self::Passphrase(KeyBytes::new(line.to_vec())))
    }
}

/// A passphrase that protects nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the passphrase is empty")]
pub struct EmptyPassphrase;

/// Why a key file was not opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unopened {
    /// Neither kind of private key is in it.
    #[error("is no private key; restore it from a backup")]
    NotAKey,
    /// It is encrypted, and there is no passphrase.
    #[error("is encrypted: set `authority.passphrase_file` or `authority.passphrase_credential`")]
    Locked,
    /// The passphrase does not open it.
    #[error("does not open with the configured passphrase: is it another one's?")]
    WrongPassphrase,
}

/// The PEM text of a key file.
pub(super) fn seal(pkcs8: &KeyBytes, protection: &Protection) -> Result<KeyBytes, CryptoError> {
    let (label, der) = match protection {
        Protection::Plain => (pem::PRIVATE_KEY, None),
        Protection::Passphrase(passphrase) => {
            (pem::ENCRYPTED_PRIVATE_KEY, Some(encrypt(pkcs8.expose(), passphrase)?))
        }
    };
    let text = pem::encode(label, der.as_deref().unwrap_or_else(|| pkcs8.expose()));
    Ok(KeyBytes::new(text.as_bytes().to_vec()))
}

/// The key in a key file, and whether it was encrypted.
pub(super) fn open(text: &[u8], protection: &Protection) -> Result<(KeyBytes, bool), Unopened> {
    if let Some(sealed) = pem::decode(pem::ENCRYPTED_PRIVATE_KEY, text) {
        let Protection::Passphrase(passphrase) = protection else { return Err(Unopened::Locked) };
        let sealed = EncryptedPrivateKeyInfoRef::try_from(sealed.as_slice()).ok().ok_or(Unopened::NotAKey)?;
        let opened = sealed.decrypt(passphrase.expose()).ok().ok_or(Unopened::WrongPassphrase)?;
        return Ok((KeyBytes::new(opened.as_bytes().to_vec()), true));
    }
    let mut plain = pem::decode(pem::PRIVATE_KEY, text).ok_or(Unopened::NotAKey)?;
    Ok((KeyBytes::new(std::mem::take(&mut *plain)), false))
}

fn encrypt(pkcs8: &[u8], passphrase: &KeyBytes) -> Result<Vec<u8>, CryptoError> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    rand::fill(&mut salt).map_err(refused)?;
    rand::fill(&mut iv).map_err(refused)?;
    let cost = scrypt::Params::new(SCRYPT_LOG_N, 8, 1).map_err(refused)?;
    let scheme = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(refused)?;
    let key = PrivateKeyInfoRef::try_from(pkcs8).map_err(refused)?;
    let sealed = key.encrypt_with_params(scheme, passphrase.expose()).map_err(refused)?;
    Ok(sealed.as_bytes().to_vec())
}

/// 16 MiB and some 50 ms a key, spent on the keeper's thread and once for each key at start. OpenSSL refuses to take
/// as much as 32 MiB.
const SCRYPT_LOG_N: u8 = 14;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::keys::{SignatureForm, SigningPair};
    use super::*;
    use crate::authority::KeyType;

    fn key() -> KeyBytes {
        SigningPair::generate(KeyType::EcP256, SignatureForm::X509).unwrap().pkcs8().unwrap()
    }

    fn passphrase(text: &str) -> Protection {
        Protection::passphrase(&KeyBytes::new(text.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_passphrase_and_no_other() {
        let key = key();
        let sealed = seal(&key, &passphrase("correct horse\n")).unwrap();
        let (opened, encrypted) = open(sealed.expose(), &passphrase("correct horse\r\nsecond line")).unwrap();
        assert!(encrypted && opened.expose() == key.expose());
        let refused = |protection| open(sealed.expose(), &protection).unwrap_err();
        assert_eq!(refused(passphrase("battery staple")), Unopened::WrongPassphrase);
        assert_eq!(refused(Protection::Plain), Unopened::Locked);
        assert_eq!(open(b"nothing", &Protection::Plain).unwrap_err(), Unopened::NotAKey);
        let (plain, encrypted) =
            open(seal(&key, &Protection::Plain).unwrap().expose(), &passphrase("x")).unwrap();
        assert!(!encrypted && plain.expose() == key.expose());
        assert!(Protection::passphrase(&KeyBytes::new(b"\nx".to_vec())).is_err());
    }

    #[test]
    fn openssl_reads_our_encrypted_keys_and_we_read_its() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let key = key();
        std::fs::write(path("ours.pem"), seal(&key, &passphrase("secret")).unwrap().expose()).unwrap();
        std::fs::write(path("plain.pem"), seal(&key, &Protection::Plain).unwrap().expose()).unwrap();
        let openssl = |args: &[&str]| {
            let out = Command::new("openssl").current_dir(dir.path()).args(args).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        openssl(&["pkcs8", "-in", "ours.pem", "-passin", "pass:secret", "-out", "opened.pem"]);
        let opened = open(&std::fs::read(path("opened.pem")).unwrap(), &Protection::Plain).unwrap().0;
        let public =
            |der: &KeyBytes| SigningPair::parse(der.expose(), SignatureForm::X509).map(|pair| pair.pkcs8());
        assert_eq!(public(&opened).unwrap().unwrap().expose(), key.expose());
        openssl(&[
            "pkcs8",
            "-topk8",
            "-in",
            "plain.pem",
            "-scrypt",
            "-passout",
            "pass:secret",
            "-out",
            "a.pem",
        ]);
        openssl(&["pkcs8", "-topk8", "-in", "plain.pem", "-passout", "pass:secret", "-out", "b.pem"]);
        for theirs in ["a.pem", "b.pem"] {
            let text = std::fs::read(path(theirs)).unwrap();
            let (opened, encrypted) = open(&text, &passphrase("secret")).unwrap();
            assert!(encrypted && public(&opened).unwrap().unwrap().expose() == key.expose(), "{theirs}");
        }
    }
}
