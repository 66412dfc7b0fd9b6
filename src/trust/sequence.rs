//! `spiffe_sequence` of our published bundle (Trust Domain and Bundle §4.1.1): it rises strictly, and moves
//! exactly when the published contents do.
//!
//! A number is the larger of *last + 1* and the Unix time in milliseconds, so it rises even when the record of
//! the last one is lost or comes from an old backup, as long as the clock has not been set back too.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::clock::unix_millis;
use crate::files::{self, FileError, TrustRules};
use crate::id::hex_text;

/// A digest of what a bundle document says besides its number: the keys as a set, and the refresh hint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Contents(String);

impl Contents {
    /// `keys` is one text for each key, for instance its JWK; their order and repetitions do not count.
    /// `refresh_hint` is in seconds.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a [u8]>, refresh_hint: Option<u64>) -> Self {
        let keys: BTreeSet<&[u8]> = keys.into_iter().collect();
        let mut context = Context::new(&SHA256);
        // Each part goes in with its length: no two lists of parts make the same octets.
        let mut part = |bytes: &[u8]| {
            context.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(bytes);
        };
        part(refresh_hint.map(u64::to_be_bytes).as_ref().map_or(&[], <[u8; 8]>::as_slice));
        keys.into_iter().for_each(&mut part);
        Self(hex_text(context.finish().as_ref()))
    }
}

/// What was published last.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Published {
    /// Its `spiffe_sequence`, at least 1.
    pub sequence: u64,
    /// What it said.
    pub contents: Contents,
}

impl Published {
    /// What to publish now: the same again if `contents` are the same, else a larger number.
    #[must_use]
    pub fn next(last: Option<&Self>, contents: Contents, now_millis: u64) -> Self {
        match last {
            Some(last) if last.contents == contents => last.clone(),
            _ => {
                let after = last.map_or(1, |last| last.sequence.saturating_add(1));
                Self { sequence: after.max(now_millis), contents }
            }
        }
    }
}

/// Why the record of the last number could not be written. Numbers go on rising all the same.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path:?}: {source}")]
pub struct NotKept {
    path: PathBuf,
    source: io::Error,
}

/// The last number, kept in `DATA_DIR/bundle-sequence.json`, or nowhere.
#[derive(Debug)]
pub struct SequenceKeeper {
    path: Option<PathBuf>,
    last: Option<Published>,
    kept: bool,
}

impl SequenceKeeper {
    /// Keeps nothing: the numbers of one run rise, and the clock makes those of the next run rise further.
    pub fn in_memory() -> Self {
        Self { path: None, last: None, kept: true }
    }

    /// Continues from the record in `data_dir`. One that is absent or damaged counts as lost, with a warning
    /// for the latter. Blocking.
    ///
    /// # Errors
    /// When the file or a directory above it could have been written by somebody else.
    pub fn on_disk(data_dir: &Path) -> Result<Self, FileError> {
        let path = data_dir.join(FILE);
        let last = match files::read_trusted(&path, &TrustRules::private(MAX_BYTES)) {
            Ok(bytes) => {
                let last = parse(&bytes);
                if last.is_none() {
                    tracing::warn!(path = %path.display(), "the bundle's last number cannot be read: the clock gives the next one");
                }
                last
            }
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: Some(path), last, kept: true })
    }

    /// The number to publish these contents under. It is written down before this returns, if it is new.
    /// Blocking, with a sync.
    ///
    /// # Errors
    /// [`NotKept`] beside the number, which stays good: it is tried again with the next call.
    pub fn number(&mut self, contents: Contents, now: SystemTime) -> (u64, Result<(), NotKept>) {
        let next = Published::next(self.last.as_ref(), contents, unix_millis(now));
        if self.last.as_ref() == Some(&next) && self.kept {
            return (next.sequence, Ok(()));
        }
        let written = self.write(&next);
        self.kept = written.is_ok();
        let sequence = next.sequence;
        self.last = Some(next);
        (sequence, written)
    }

    fn write(&self, next: &Published) -> Result<(), NotKept> {
        let Some(path) = &self.path else { return Ok(()) };
        let record = Record { version: VERSION, sequence: next.sequence, contents: next.contents.0.clone() };
        let failed = |source| NotKept { path: path.clone(), source };
        let bytes = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
        files::write_atomic(path, 0o600, &bytes).map_err(failed)
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    sequence: u64,
    contents: String,
}

fn parse(bytes: &[u8]) -> Option<Published> {
    let record: Record = serde_json::from_slice(bytes).ok()?;
    let known = record.version == VERSION && record.sequence > 0;
    known.then_some(Published { sequence: record.sequence, contents: Contents(record.contents) })
}

const FILE: &str = "bundle-sequence.json";
const VERSION: u32 = 1;
const MAX_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::from_unix_seconds;

    fn contents(keys: &[&str], hint: Option<u64>) -> Contents {
        Contents::new(keys.iter().map(|key| key.as_bytes()), hint)
    }

    fn private_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    #[test]
    fn contents_are_the_set_of_keys_and_the_hint() {
        let one = contents(&["a", "b"], Some(300));
        assert_eq!(one, contents(&["b", "a", "b"], Some(300)));
        for other in [
            contents(&["a"], Some(300)),
            contents(&["ab"], Some(300)),
            contents(&["a", "b", ""], Some(300)),
            contents(&["a", "b"], Some(301)),
            contents(&["a", "b"], None),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_number_outlives_restart_a_lost_file_and_an_old_backup() {
        let dir = private_dir();
        let file = dir.path().join(FILE);
        let at = |seconds: u64| from_unix_seconds(1_800_000_000 + seconds);
        let open = || SequenceKeeper::on_disk(dir.path()).unwrap();
        let number = |keeper: &mut SequenceKeeper, keys: &[&str], now| {
            let (number, kept) = keeper.number(contents(keys, None), now);
            kept.unwrap();
            number
        };
        let mut keeper = open();
        let first = number(&mut keeper, &["a"], at(0));
        assert_eq!(first, 1_800_000_000_000);
        assert_eq!(number(&mut keeper, &["a"], at(5)), first);
        assert_eq!(number(&mut open(), &["a"], at(6)), first, "restart");
        let backup = std::fs::read(&file).unwrap();
        // The clock was set back: still one more.
        let second = number(&mut keeper, &["a", "b"], at(0) - std::time::Duration::from_secs(99));
        assert_eq!(second, first + 1);
        std::fs::write(&file, &backup).unwrap();
        assert!(number(&mut open(), &["a", "b"], at(7)) > second, "restored backup");
        for damage in ["", "{}", r#"{"version":2,"sequence":9,"contents":""}"#] {
            std::fs::write(&file, damage).unwrap();
            assert!(number(&mut open(), &["a", "b"], at(8)) > second, "{damage}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(number(&mut open(), &["a", "b"], at(9)) > second, "lost");
    }

    #[test]
    fn a_number_that_cannot_be_written_is_used_and_tried_again() {
        let dir = private_dir();
        let gone = dir.path().join("absent");
        let mut keeper = SequenceKeeper { path: Some(gone.join(FILE)), last: None, kept: true };
        let now = from_unix_seconds(1_800_000_000);
        let (first, kept) = keeper.number(contents(&["a"], None), now);
        assert!(kept.unwrap_err().to_string().contains(FILE));
        assert!(keeper.number(contents(&["a"], None), now).1.is_err());
        std::fs::create_dir(&gone).unwrap();
        let (again, kept) = keeper.number(contents(&["a"], None), now);
        kept.unwrap();
        assert_eq!(again, first);
        assert_eq!(parse(&std::fs::read(gone.join(FILE)).unwrap()).map(|last| last.sequence), Some(first));
    }

    #[test]
    fn a_record_that_others_could_have_written_is_not_believed() {
        let dir = private_dir();
        let file = dir.path().join(FILE);
        std::fs::write(&file, "{}").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(SequenceKeeper::on_disk(dir.path()).is_err());
    }

    proptest! {
        #[test]
        fn it_rises_exactly_when_contents_change(
            steps in prop::collection::vec((0_u8..3, any::<u64>()), 1..50),
        ) {
            let mut last: Option<Published> = None;
            for (keys, now) in steps {
                let contents = Contents::new([[keys].as_slice()], None);
                let next = Published::next(last.as_ref(), contents.clone(), now);
                prop_assert!(next.sequence >= 1);
                if let Some(last) = &last {
                    let changed = last.contents != contents;
                    // The last number there is cannot be passed.
                    prop_assert!(changed == (next.sequence > last.sequence) || last.sequence == u64::MAX);
                }
                last = Some(next);
            }
        }

        #[test]
        fn no_record_makes_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
        }
    }
}
