//! The journal: what each authority is and where it stands. It is the truth; a key file that it does not name is
//! left over from a step that was never finished.
//!
//! One JSON document, replaced in one step and synced, with a check sum over the rest: it also holds the ends of
//! token keys, which no signature protects.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::life::Record;
use super::store::{DIRECTORY, StoreError};
use super::x509::CaPath;
use crate::files::{self, TrustRules};
use crate::id::TrustDomain;

/// One authority: its state, and what is public about it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Line {
    #[serde(flatten)]
    pub(super) record: Record,
    /// Unix seconds.
    pub(super) not_before: u64,
    /// Of an X.509 authority: its certificate and those above it short of the trust anchor, DER in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) chain: Vec<String>,
    /// The trust anchors above it; none when it is self-signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) roots: Vec<String>,
}

impl Line {
    /// The certificates; `None` when one is not base64.
    pub(super) fn path(&self) -> Option<CaPath> {
        Some(CaPath { chain: from_text(&self.chain)?, roots: from_text(&self.roots)? })
    }
}

pub(super) fn to_text(all: &[Bytes]) -> Vec<String> {
    all.iter().map(|der| STANDARD.encode(der)).collect()
}

pub(super) fn from_text(all: &[String]) -> Option<Vec<Bytes>> {
    all.iter().map(|text| STANDARD.decode(text).ok().map(Bytes::from)).collect()
}

/// The whole journal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Content {
    pub(super) trust_domain: TrustDomainText,
    pub(super) authorities: Vec<Line>,
    /// The last CRL of each certificate authority above ours, DER in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) parent_crls: Vec<String>,
}

type TrustDomainText = String;

#[derive(Deserialize, Serialize)]
struct Document {
    version: u32,
    #[serde(flatten)]
    content: Content,
    /// Lower-case hex of the SHA-256 of `content` as compact JSON.
    sha256: String,
}

impl Content {
    pub(super) fn empty(trust_domain: &TrustDomain) -> Self {
        Self { trust_domain: trust_domain.to_string(), authorities: Vec::new(), parent_crls: Vec::new() }
    }
}

/// Why a journal says nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JournalFault {
    /// Not one of ours.
    #[error("is no journal of authorities")]
    Malformed,
    /// Made by a newer agent.
    #[error("has version {0}, which this agent does not know: use the newer agent again")]
    Version(u32),
    /// Changed since it was written.
    #[error("was damaged, or changed by hand")]
    Sum,
}

/// Where the journal is kept.
#[derive(Debug)]
pub enum Journal {
    /// In that file.
    File(PathBuf),
    /// In memory (`mayfly agent --dev`).
    Memory(Mutex<Option<Vec<u8>>>),
}

impl Journal {
    /// `DATA_DIR/authority/journal.json`.
    pub fn on_disk(data_dir: &Path) -> Self {
        Self::File(data_dir.join(DIRECTORY).join("journal.json"))
    }

    /// Gone with the process.
    pub fn in_memory() -> Self {
        Self::Memory(Mutex::default())
    }

    /// The name of the place, for messages to operators.
    pub fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Memory(_) => "the journal in memory".to_owned(),
        }
    }

    /// The directory that older agents kept their authorities in.
    pub(super) fn directory(&self) -> Option<&Path> {
        match self {
            Self::File(path) => path.parent(),
            Self::Memory(_) => None,
        }
    }

    pub(super) fn read(&self) -> Result<Option<Result<Content, JournalFault>>, StoreError> {
        let bytes = match self {
            Self::File(path) => match files::read_trusted(path, &TrustRules::private(MAX_BYTES)) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.into()),
            },
            Self::Memory(bytes) => bytes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        Ok(bytes.map(|bytes| decode(&bytes)))
    }

    /// After an error or a crash there is the old content or the new one, whole.
    pub(super) fn write(&self, content: &Content) -> Result<(), StoreError> {
        let bytes = encode(content)?;
        match self {
            Self::File(path) => {
                if let Some(dir) = path.parent() {
                    files::ensure_private_dir(dir)?;
                }
                files::write_atomic(path, 0o600, &bytes)
                    .map_err(|source| StoreError::Write { path: path.clone(), source })
            }
            Self::Memory(kept) => {
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
                Ok(())
            }
        }
    }
}

fn encode(content: &Content) -> Result<Vec<u8>, StoreError> {
    let failed = |error: serde_json::Error| StoreError::Make(error.into());
    let sha256 = sum(content).map_err(failed)?;
    let document = Document { version: VERSION, content: content.clone(), sha256 };
    let mut bytes = serde_json::to_vec_pretty(&document).map_err(failed)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Content, JournalFault> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes).ok().ok_or(JournalFault::Malformed)?;
    if version != VERSION {
        return Err(JournalFault::Version(version));
    }
    let document: Document = serde_json::from_slice(bytes).ok().ok_or(JournalFault::Malformed)?;
    match sum(&document.content) {
        Ok(sum) if sum == document.sha256 => Ok(document.content),
        _ => Err(JournalFault::Sum),
    }
}

fn sum(content: &Content) -> Result<String, serde_json::Error> {
    Ok(crate::id::hex_text(digest(&SHA256, &serde_json::to_vec(content)?).as_ref()))
}

const VERSION: u32 = 1;
/// Some hundred authorities with their certificates.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::life::AuthorityKind;

    fn content() -> Content {
        let record = Record::prepared(AuthorityKind::Jwt, "kid".to_owned(), 2_000, 1_000);
        let line = Line { record, not_before: 990, chain: vec!["AAAA".to_owned()], roots: vec![] };
        Content { trust_domain: "example.org".to_owned(), authorities: vec![line], parent_crls: vec![] }
    }

    #[test]
    fn a_journal_is_read_back_and_any_change_by_hand_is_noticed() {
        let bytes = encode(&content()).unwrap();
        assert_eq!(decode(&bytes).unwrap(), content());
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in
            [("2000", "3000"), ("prepared\"", "active\""), ("kid", "kod"), ("example.org", "e.org")]
        {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert_eq!(decode(changed.as_bytes()), Err(JournalFault::Sum), "{from}");
        }
        let newer = text.replacen("\"version\": 1", "\"version\": 2", 1);
        assert_eq!(decode(newer.as_bytes()), Err(JournalFault::Version(2)));
        assert_eq!(decode(&text.as_bytes()[..40]), Err(JournalFault::Malformed));
        assert_eq!(decode(b""), Err(JournalFault::Malformed));
    }
}
