//! Where signing keys are kept. What is known about them beside the key stands in the journal.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::keys::{CryptoError, KeyType, SignatureForm, SigningKey, SigningPair, key_id};
use super::life::AuthorityKind;
use super::protect::{self, Protection, Unopened};
use super::{AuthorityError, jws};
use crate::files::{self, FileError, TrustRules};
use crate::secret::KeyBytes;

/// Why a key or the journal was not read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or a directory above it cannot be read, or others could have written it.
    #[error(transparent)]
    Untrusted(#[from] FileError),
    /// The file cannot be written.
    #[error("cannot write {path:?}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is a key file, and it does not open.
    #[error("{place} {why}")]
    Unopened {
        /// Where it is kept.
        place: String,
        /// Why.
        why: Unopened,
    },
    /// The store has no such key.
    #[error("{0} is gone; restore it from a backup")]
    Missing(String),
    /// The key cannot be made or written.
    #[error("cannot make a key: {0}")]
    Make(#[from] AuthorityError),
}

impl From<CryptoError> for StoreError {
    fn from(error: CryptoError) -> Self {
        Self::Make(error.into())
    }
}

/// Keeps signing keys. A token of PKCS#11 or a key service is another implementation: it need never give a key
/// away, only a handle that signs. All of it may block; it is called at start and on the keeper's thread.
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// Makes a key that is sure to be found again after a restart. Its name is [`name_of`] it.
    ///
    /// # Errors
    /// [`StoreError`]; there may be a key then that nobody knows, which [`KeyStore::list`] will name.
    fn generate(&self, kind: AuthorityKind, key_type: KeyType) -> Result<Arc<dyn SigningKey>, StoreError>;

    /// Takes in a key that was made elsewhere, PKCS#8 DER.
    ///
    /// # Errors
    /// [`StoreError`] when it is not sure to be there after a restart.
    fn import(&self, kind: AuthorityKind, pkcs8: &KeyBytes) -> Result<Arc<dyn SigningKey>, StoreError>;

    /// The key of that name.
    ///
    /// # Errors
    /// [`StoreError`] when there is none that can be used.
    fn open(&self, kind: AuthorityKind, id: &str) -> Result<Arc<dyn SigningKey>, StoreError>;

    /// Destroys a key as well as the medium allows; none of that name is no error.
    ///
    /// # Errors
    /// [`StoreError`] when it is still there.
    fn remove(&self, kind: AuthorityKind, id: &str) -> Result<(), StoreError>;

    /// The names of all keys.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self) -> Result<Vec<(AuthorityKind, String)>, StoreError>;

    /// The name of the place, for messages to operators.
    fn place(&self, kind: AuthorityKind, id: &str) -> String;
}

/// What an authority with that key is called: key identifier in hex, or `kid`.
///
/// # Errors
/// [`AuthorityError::Crypto`] for a key that no JWK can show.
pub fn name_of(kind: AuthorityKind, key: &Arc<dyn SigningKey>) -> Result<String, AuthorityError> {
    match kind {
        AuthorityKind::X509 => Ok(key_id(key).to_string()),
        AuthorityKind::Jwt | AuthorityKind::Wit => jws::kid_of(key.as_ref()),
    }
}

/// The form in which a key of that kind signs.
pub(super) fn form_of(kind: AuthorityKind) -> SignatureForm {
    match kind {
        AuthorityKind::X509 => SignatureForm::X509,
        AuthorityKind::Jwt | AuthorityKind::Wit => SignatureForm::Jws,
    }
}

/// `DATA_DIR/authority/KIND-ID.pem`, mode 0600 in a 0700 directory, encrypted if so configured.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    protection: Protection,
}

impl Disk {
    /// A store below the agent's data directory, which is made when the first key is kept.
    pub fn new(data_dir: &Path, protection: Protection) -> Self {
        Self { dir: data_dir.join(DIRECTORY), protection }
    }

    fn path(&self, kind: AuthorityKind, id: &str) -> PathBuf {
        self.dir.join(format!("{kind}-{id}.pem"))
    }

    fn keep(&self, kind: AuthorityKind, pair: SigningPair) -> Result<Arc<dyn SigningKey>, StoreError> {
        let pkcs8 = pair.pkcs8()?;
        let pair: Arc<dyn SigningKey> = Arc::new(pair);
        let path = self.path(kind, &name_of(kind, &pair)?);
        self.write(path, &pkcs8)?;
        Ok(pair)
    }

    fn write(&self, path: PathBuf, pkcs8: &KeyBytes) -> Result<(), StoreError> {
        files::ensure_private_dir(&self.dir)?;
        let document = protect::seal(pkcs8, &self.protection)?;
        files::write_atomic(&path, 0o600, document.expose())
            .map_err(|source| StoreError::Write { path, source })
    }
}

impl KeyStore for Disk {
    fn generate(&self, kind: AuthorityKind, key_type: KeyType) -> Result<Arc<dyn SigningKey>, StoreError> {
        self.keep(kind, SigningPair::generate(key_type, form_of(kind))?)
    }

    fn import(&self, kind: AuthorityKind, pkcs8: &KeyBytes) -> Result<Arc<dyn SigningKey>, StoreError> {
        self.keep(kind, SigningPair::parse(pkcs8.expose(), form_of(kind))?)
    }

    fn open(&self, kind: AuthorityKind, id: &str) -> Result<Arc<dyn SigningKey>, StoreError> {
        let path = self.path(kind, id);
        let text = match files::read_trusted(&path, &TrustRules::private(MAX_BYTES)) {
            Ok(text) => KeyBytes::new(text),
            Err(error) if error.is_not_found() => return Err(StoreError::Missing(self.place(kind, id))),
            Err(error) => return Err(error.into()),
        };
        let unopened = |why| StoreError::Unopened { place: self.place(kind, id), why };
        let (pkcs8, encrypted) = protect::open(text.expose(), &self.protection).map_err(unopened)?;
        let pair = SigningPair::parse(pkcs8.expose(), form_of(kind)).ok();
        let pair = pair.ok_or_else(|| unopened(Unopened::NotAKey))?;
        if !encrypted && matches!(self.protection, Protection::Passphrase(_)) {
            self.write(path, &pkcs8)?;
        }
        Ok(Arc::new(pair))
    }

    fn remove(&self, kind: AuthorityKind, id: &str) -> Result<(), StoreError> {
        let path = self.path(kind, id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Write { path, source: error })
            }
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<(AuthorityKind, String)>, StoreError> {
        let names = match files::list_trusted_dir(&self.dir) {
            Ok(names) => names,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let parse = |name: &str| {
            let (kind, id) = name.strip_suffix(".pem")?.split_once('-')?;
            let kinds = [AuthorityKind::X509, AuthorityKind::Jwt, AuthorityKind::Wit];
            Some((kinds.into_iter().find(|one| one.as_str() == kind)?, id.to_owned()))
        };
        Ok(names.iter().filter_map(|name| parse(name.to_str()?)).collect())
    }

    fn place(&self, kind: AuthorityKind, id: &str) -> String {
        self.path(kind, id).display().to_string()
    }
}

/// Gone with the process (`mayfly agent --dev`).
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<(AuthorityKind, String), Arc<dyn SigningKey>>>);

impl Memory {
    fn keep(&self, kind: AuthorityKind, pair: SigningPair) -> Result<Arc<dyn SigningKey>, StoreError> {
        let pair: Arc<dyn SigningKey> = Arc::new(pair);
        let name = name_of(kind, &pair)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((kind, name), Arc::clone(&pair));
        Ok(pair)
    }
}

impl KeyStore for Memory {
    fn generate(&self, kind: AuthorityKind, key_type: KeyType) -> Result<Arc<dyn SigningKey>, StoreError> {
        self.keep(kind, SigningPair::generate(key_type, form_of(kind))?)
    }

    fn import(&self, kind: AuthorityKind, pkcs8: &KeyBytes) -> Result<Arc<dyn SigningKey>, StoreError> {
        self.keep(kind, SigningPair::parse(pkcs8.expose(), form_of(kind))?)
    }

    fn open(&self, kind: AuthorityKind, id: &str) -> Result<Arc<dyn SigningKey>, StoreError> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get(&(kind, id.to_owned())).map(Arc::clone);
        key.ok_or_else(|| StoreError::Missing(self.place(kind, id)))
    }

    fn remove(&self, kind: AuthorityKind, id: &str) -> Result<(), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, id.to_owned()));
        Ok(())
    }

    fn list(&self) -> Result<Vec<(AuthorityKind, String)>, StoreError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect())
    }

    fn place(&self, kind: AuthorityKind, id: &str) -> String {
        format!("key {kind}-{id} in memory")
    }
}

/// Below the data directory.
pub(super) const DIRECTORY: &str = "authority";
/// An encrypted RSA key takes some 2 KiB.
const MAX_BYTES: u64 = 65_536;
