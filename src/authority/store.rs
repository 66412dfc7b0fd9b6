//! Where authorities are kept. Key and certificate are one file, so that no crash can part them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::files::{self, FileError, TrustRules};
use crate::secret::KeyBytes;

/// Which authority is meant.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Slot {
    /// The active X.509 authority.
    X509,
    /// The active JWT authority.
    Jwt,
    /// The active WIT authority.
    Wit,
}

impl Slot {
    fn file_name(self) -> &'static str {
        match self {
            Self::X509 => "x509.pem",
            Self::Jwt => "jwt.pem",
            Self::Wit => "wit.pem",
        }
    }
}

/// Why an authority was not read or kept.
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
}

/// Keeps one PEM document for each slot: a PKCS#8 key and the certificate that goes with it.
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// The document, if there is one. Blocking.
    ///
    /// # Errors
    /// [`StoreError`] when there may be one but it cannot be trusted or read.
    fn load(&self, slot: Slot) -> Result<Option<KeyBytes>, StoreError>;

    /// Keeps the document in place of any earlier one: after an error or a crash there is the old one or the
    /// new one, whole. Blocking.
    ///
    /// # Errors
    /// [`StoreError`] when it is not sure to be there after a restart.
    fn store(&self, slot: Slot, document: &KeyBytes) -> Result<(), StoreError>;

    /// The name of the place, for messages to operators.
    fn place(&self, slot: Slot) -> String;
}

/// `DATA_DIR/authority/{x509,jwt,wit}.pem`, mode 0600 in a 0700 directory.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// A store below the agent's data directory, which is made when the first authority is kept.
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("authority") }
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.dir.join(slot.file_name())
    }
}

impl KeyStore for Disk {
    fn load(&self, slot: Slot) -> Result<Option<KeyBytes>, StoreError> {
        match files::read_trusted(&self.path(slot), &TrustRules::private(MAX_BYTES)) {
            Ok(bytes) => Ok(Some(KeyBytes::new(bytes))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn store(&self, slot: Slot, document: &KeyBytes) -> Result<(), StoreError> {
        files::ensure_private_dir(&self.dir)?;
        let path = self.path(slot);
        files::write_atomic(&path, 0o600, document.expose())
            .map_err(|source| StoreError::Write { path, source })
    }

    fn place(&self, slot: Slot) -> String {
        self.path(slot).display().to_string()
    }
}

/// Gone with the process (`mayfly agent --dev`).
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<Slot, KeyBytes>>);

impl KeyStore for Memory {
    fn load(&self, slot: Slot) -> Result<Option<KeyBytes>, StoreError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).cloned())
    }

    fn store(&self, slot: Slot, document: &KeyBytes) -> Result<(), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(slot, document.clone());
        Ok(())
    }

    fn place(&self, _: Slot) -> String {
        "memory".to_owned()
    }
}

/// An RSA key with its certificate takes some 3 KiB.
const MAX_BYTES: u64 = 65_536;
