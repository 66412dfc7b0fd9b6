//! The last good bundle of each foreign trust domain, on disk: one private file a domain, replaced in one step. It
//! serves at the start and through outages. The document is kept as it came, so that it is judged by today's rules
//! each time it is read.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::document::{BundleDocument, DocumentError, MAX_DOCUMENT_BYTES};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::files::{self, FileError, TrustRules};
use crate::id::{TrustDomain, hex_text};

/// Who brought a bundle.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Fetched from the relationship's endpoint.
    Relationship,
    /// `mayfly bundle set`.
    Operator,
}

impl Origin {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relationship => "relationship",
            Self::Operator => "operator",
        }
    }
}

/// What is kept of one trust domain.
#[derive(Clone, Debug)]
pub enum Kept {
    /// Its bundle.
    Bundle {
        /// Who brought it.
        origin: Origin,
        /// When.
        since: SystemTime,
        /// As it came.
        text: String,
    },
    /// An operator deleted it: its relationship rests until one sets a bundle, or the configuration drops it.
    Deleted {
        /// When.
        since: SystemTime,
    },
}

impl Kept {
    /// The document of a bundle.
    ///
    /// # Errors
    /// [`DocumentError`], when today's rules refuse it.
    pub fn document(&self) -> Result<Option<BundleDocument>, DocumentError> {
        match self {
            Self::Bundle { text, .. } => BundleDocument::parse(text.as_bytes()).map(Some),
            Self::Deleted { .. } => Ok(None),
        }
    }
}

/// The directory of these files.
#[derive(Clone, Debug)]
pub struct BundleStore {
    dir: PathBuf,
}

/// Why a file of the store is not used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It or its directory cannot be read, or others could have written it.
    #[error(transparent)]
    Untrusted(#[from] FileError),
    /// It cannot be written or removed.
    #[error("cannot write {path:?}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{path:?} is damaged: delete it, the bundle is fetched or set again")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    trust_domain: String,
    /// `None` for a deleted one.
    origin: Option<Origin>,
    /// Unix seconds.
    since: u64,
    #[serde(default)]
    document: String,
}

impl BundleStore {
    /// `DATA_DIR/federation`; the directory is made when the first bundle is kept.
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("federation") }
    }

    /// Everything that is kept, and what could not be used. Blocking.
    pub fn load(&self) -> (Vec<(TrustDomain, Kept)>, Vec<StoreError>) {
        let names = match files::list_trusted_dir(&self.dir) {
            Ok(names) => names,
            Err(error) if error.is_not_found() => return (Vec::new(), Vec::new()),
            Err(error) => return (Vec::new(), vec![error.into()]),
        };
        let (mut kept, mut errors) = (Vec::new(), Vec::new());
        for name in names.iter().filter(|name| Path::new(name).extension().is_some_and(|e| e == "json")) {
            match self.read(&self.dir.join(name)) {
                Ok(one) => kept.push(one),
                Err(error) => errors.push(error),
            }
        }
        (kept, errors)
    }

    fn read(&self, path: &Path) -> Result<(TrustDomain, Kept), StoreError> {
        let bytes = files::read_trusted(path, &TrustRules::private(MAX_FILE_BYTES))?;
        let damaged = || StoreError::Damaged { path: path.to_owned() };
        let file: File = serde_json::from_slice(&bytes).ok().ok_or_else(damaged)?;
        let domain = TrustDomain::parse(file.trust_domain.as_bytes()).ok().ok_or_else(damaged)?;
        if file.version != VERSION || self.path(&domain) != path {
            return Err(damaged());
        }
        let since = from_unix_seconds(file.since);
        let kept = match file.origin {
            Some(origin) => Kept::Bundle { origin, since, text: file.document },
            None => Kept::Deleted { since },
        };
        kept.document().ok().ok_or_else(damaged)?;
        Ok((domain, kept))
    }

    /// Keeps this in place of what was kept; after a crash it is the one or the other. Blocking.
    ///
    /// # Errors
    /// [`StoreError`]: what was kept may still be there after a restart.
    pub fn keep(&self, domain: &TrustDomain, kept: Option<&Kept>) -> Result<(), StoreError> {
        let path = self.path(domain);
        let Some(kept) = kept else {
            return match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(StoreError::Write { path, source })
                }
                _ => Ok(()),
            };
        };
        let (origin, since, document) = match kept {
            Kept::Bundle { origin, since, text } => (Some(*origin), since, text.clone()),
            Kept::Deleted { since } => (None, since, String::new()),
        };
        let trust_domain = domain.to_string();
        let file = File { version: VERSION, trust_domain, origin, since: unix_seconds(*since), document };
        files::ensure_private_dir(&self.dir)?;
        let written = serde_json::to_vec(&file)
            .map_err(io::Error::from)
            .and_then(|b| files::write_atomic(&path, 0o600, &b));
        written.map_err(|source| StoreError::Write { path, source })
    }

    /// A trust domain's name may be longer than a file's, and begin with a dot.
    fn path(&self, domain: &TrustDomain) -> PathBuf {
        let name = domain.as_str();
        if name.len() <= MAX_NAME && !name.starts_with('.') {
            return self.dir.join(format!("{name}.json"));
        }
        self.dir.join(format!("sha256-{}.json", hex_text(digest(&SHA256, name.as_bytes()).as_ref())))
    }
}

const VERSION: u32 = 1;
/// Leaves room for the suffix and for the temporary name beside it.
const MAX_NAME: usize = 180;
/// JSON in JSON: every quote gets a backslash.
const MAX_FILE_BYTES: u64 = 3 * MAX_DOCUMENT_BYTES as u64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::UNIX_EPOCH;

    use super::*;

    fn bundle(text: &str) -> Kept {
        Kept::Bundle { origin: Origin::Relationship, since: UNIX_EPOCH, text: text.to_owned() }
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = BundleStore::new(dir.path());
        assert!(store.load().0.is_empty());
        let names = ["a.org".to_owned(), "..".to_owned(), "x".repeat(255)];
        for name in &names {
            let domain = name.parse().unwrap();
            store.keep(&domain, Some(&bundle("{\"keys\":[],\"spiffe_sequence\":1}\n"))).unwrap();
            store.keep(&domain, Some(&bundle("{\"keys\":[],\"spiffe_sequence\":2}\n"))).unwrap();
        }
        let (kept, errors) = store.load();
        assert_eq!((kept.len(), errors.len()), (3, 0), "{errors:?}");
        for (domain, kept) in kept {
            assert!(names.contains(&domain.to_string()));
            assert_eq!(kept.document().unwrap().unwrap().sequence, Some(2));
        }
        let mode = std::fs::metadata(dir.path().join("federation/a.org.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        store.keep(&"a.org".parse().unwrap(), Some(&Kept::Deleted { since: UNIX_EPOCH })).unwrap();
        store.keep(&"..".parse().unwrap(), None).unwrap();
        store.keep(&"..".parse().unwrap(), None).unwrap();
        let (kept, _) = store.load();
        assert_eq!(kept.len(), 2);
        assert!(
            kept.iter()
                .any(|(domain, kept)| domain.as_str() == "a.org" && matches!(kept, Kept::Deleted { .. }))
        );
    }

    #[test]
    fn damage_costs_one_domain_and_never_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let store = BundleStore::new(dir.path());
        for name in ["a.org", "b.org", "c.org"] {
            store.keep(&name.parse().unwrap(), Some(&bundle("{\"keys\":[]}"))).unwrap();
        }
        let path = |name: &str| dir.path().join("federation").join(name);
        std::fs::write(path("a.org.json"), "{").unwrap();
        // Somebody else's bundle under this name.
        std::fs::copy(path("c.org.json"), path("b.org.json")).unwrap();
        let (kept, errors) = store.load();
        assert_eq!((kept.len(), errors.len()), (1, 2), "{errors:?}");
        assert_eq!(kept[0].0.as_str(), "c.org");
        std::fs::set_permissions(path("c.org.json"), std::fs::Permissions::from_mode(0o606)).unwrap();
        assert_eq!(store.load().0.len(), 0, "others can write it");
    }
}
