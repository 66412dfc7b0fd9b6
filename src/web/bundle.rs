//! Our bundle as other trust domains fetch it (Trust Domain and Bundle §4, Federation §5.2): always that of the
//! latest trust, under a number that moves exactly when it does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use serde_json::Value;

use super::conditional::Document;
use crate::ready::Readiness;
use crate::trust::sequence::{Contents, SequenceKeeper};
use crate::trust::{DocumentForm, DomainBundle, TrustSnapshot};

/// Makes the document, and remembers it until the keys change.
#[derive(Debug)]
pub struct BundleSource {
    keeper: Mutex<SequenceKeeper>,
    refresh_hint: Duration,
    readiness: Readiness,
    latest: ArcSwapOption<Latest>,
}

/// The document of some keys.
#[derive(Debug)]
struct Latest {
    bundle: Arc<DomainBundle>,
    document: Document,
}

impl BundleSource {
    /// `keeper` continues the numbers of the run before.
    pub fn new(keeper: SequenceKeeper, refresh_hint: Duration, readiness: Readiness) -> Self {
        Self { keeper: Mutex::new(keeper), refresh_hint, readiness, latest: ArcSwapOption::empty() }
    }

    /// How often readers are asked to look again.
    pub(super) fn refresh_hint(&self) -> Duration {
        self.refresh_hint
    }

    /// The document of that trust, if it is the one made last.
    pub(super) fn latest(&self, trust: &TrustSnapshot) -> Option<Document> {
        let latest = self.latest.load();
        let latest = latest.as_ref().filter(|latest| latest.is_of(trust))?;
        Some(latest.document.clone())
    }

    /// Makes the document of that trust. Blocking, with a sync. `None` when a key of ours cannot be written as
    /// a JWK.
    pub(super) fn renew(&self, trust: &TrustSnapshot, now: SystemTime) -> Option<Document> {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made_meanwhile) = self.latest(trust) {
            return Some(made_meanwhile);
        }
        let bundle = Arc::clone(trust.own());
        let form = DocumentForm { refresh_hint: Some(self.refresh_hint), ..DocumentForm::default() };
        let contents = contents(&bundle.document(&form).ok()?, self.refresh_hint)?;
        let (sequence, kept) = keeper.number(contents, now);
        match kept {
            Ok(()) => self.readiness.clear(CONCERN),
            Err(error) => self.readiness.raise(CONCERN, error.to_string()),
        }
        let body = bundle.document(&DocumentForm { sequence: Some(sequence), ..form }).ok()?;
        let document = Document {
            body,
            content_type: "application/json",
            tag: sequence.to_string(),
            modified: None,
            // Nobody may keep it without asking: an authority that is taken out has to be gone at once.
            cache: "no-cache".to_owned(),
        };
        let latest = Latest { bundle, document: document.clone() };
        self.latest.store(Some(Arc::new(latest)));
        Some(document)
    }
}

impl Latest {
    fn is_of(&self, trust: &TrustSnapshot) -> bool {
        Arc::ptr_eq(&self.bundle, trust.own())
    }
}

/// What a document says besides its number.
fn contents(document: &[u8], refresh_hint: Duration) -> Option<Contents> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let keys: Vec<String> = document.get("keys")?.as_array()?.iter().map(Value::to_string).collect();
    Some(Contents::new(keys.iter().map(String::as_bytes), Some(refresh_hint.as_secs())))
}

const CONCERN: &str = "bundle sequence";

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::{authorities, now};
    use crate::id::KeyId;

    fn source() -> BundleSource {
        BundleSource::new(SequenceKeeper::in_memory(), Duration::from_secs(300), Readiness::default())
    }

    fn trust(set: &crate::authority::AuthoritySet) -> TrustSnapshot {
        TrustSnapshot::new(&"example.org".parse().unwrap(), set)
    }

    fn sequence(document: &Document) -> u64 {
        let json: Value = serde_json::from_slice(&document.body).unwrap();
        json["spiffe_sequence"].as_u64().unwrap()
    }

    #[test]
    fn a_crl_changes_nothing_and_a_key_everything() {
        let source = source();
        let one = trust(&authorities("example.org", KeyType::EcP256));
        assert!(source.latest(&one).is_none());
        let first = source.renew(&one, now()).unwrap();
        let crl = one.with_crls(&[(KeyId::from_bytes([1; 20]), Bytes::from_static(b"crl"))]);
        assert_eq!(source.latest(&crl).unwrap().tag, first.tag);
        let other = trust(&authorities("example.org", KeyType::EcP256));
        assert!(source.latest(&other).is_none(), "never the keys of yesterday");
        let second = source.renew(&other, now()).unwrap();
        assert!(sequence(&second) > sequence(&first));
    }

    #[test]
    fn tdb_the_document_says_all_it_should_and_its_own_reader_takes_it() {
        let set = authorities("example.org", KeyType::EcP384);
        let document = source().renew(&trust(&set), now()).unwrap();
        let read = crate::trust::BundleDocument::parse(&document.body).unwrap();
        assert_eq!(read.refresh_hint, Some(Duration::from_secs(300)));
        assert_eq!(read.sequence, Some(sequence(&document)));
        assert!(read.sequence.unwrap() >= 1 && read.remarks.is_empty(), "{:?}", read.remarks);
        assert_eq!(read.bundle.x509(), [set.active_x509().certificate().clone()]);
        assert!(read.bundle.jwt().key(set.active_jwt().kid()).is_some());
    }
}
