//! What is frozen, in a file: a restart thaws nothing.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::freeze::{Freeze, Freezes, Frozen};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::diag::{Problem, Problems};
use crate::files::write_atomic;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    v: u32,
    frozen: Vec<Row>,
    /// The flag file froze everything, and that is on record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    flag: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Row {
    what: What,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    by: String,
    reason: String,
    at: u64,
    revoke: bool,
    /// Of a target.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    audiences: BTreeSet<String>,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    All,
    Agent,
    Task,
    Target,
}

/// Reads what an earlier run left; nothing is frozen where there is no file.
///
/// # Errors
/// A file that cannot be read or understood: what it froze must not go on.
pub fn load_freezes(path: &Path) -> Result<Freezes, Problems> {
    let shown = path.display().to_string();
    let wrong = |why: String| {
        let advice =
            "nothing starts while it is not known what is frozen; mend it, or remove it to thaw everything";
        Problems::from(Problem::whole_file(&shown, format!("{why}: {advice}")))
    };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Freezes::default()),
        Err(error) => return Err(wrong(format!("cannot be read ({error})"))),
    };
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|error| wrong(format!("is damaged ({error})")))?;
    if document.v != VERSION {
        return Err(wrong("is of another version".to_owned()));
    }
    let mut freezes = Freezes::default();
    freezes.set_flag(document.flag);
    for Row { what, name, by, reason, at, revoke, audiences } in document.frozen {
        let what = match what {
            What::All => Frozen::All,
            What::Agent => Frozen::Agent(name),
            What::Task => Frozen::Task(name),
            What::Target => Frozen::Target(name),
        };
        let at = from_unix_seconds(at);
        freezes.freeze(what, Freeze { by, reason, at, revoke, audiences });
    }
    Ok(freezes)
}

/// Writes what is frozen by order, and whether the flag file is there.
///
/// # Errors
/// The disk's.
pub fn store_freezes(path: &Path, freezes: &Freezes) -> io::Result<()> {
    let rows = freezes.iter().map(|(what, freeze)| {
        let (what, name) = match what {
            Frozen::All => (What::All, ""),
            Frozen::Agent(name) => (What::Agent, name.as_str()),
            Frozen::Task(name) => (What::Task, name.as_str()),
            Frozen::Target(name) => (What::Target, name.as_str()),
        };
        let Freeze { by, reason, at, revoke, audiences } = freeze.clone();
        Row { what, name: name.to_owned(), by, reason, at: unix_seconds(at), revoke, audiences }
    });
    let document = Document { v: VERSION, frozen: rows.collect(), flag: freezes.is_flagged() };
    write_atomic(path, 0o600, &serde_json::to_vec(&document)?)
}

const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_frozen_again_and_a_damaged_file_thaws_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("freezes.json");
        assert_eq!(load_freezes(&path), Ok(Freezes::default()));
        let mut freezes = Freezes::default();
        let at = from_unix_seconds(1_800_000_000);
        for (what, revoke) in [
            (Frozen::All, false),
            (Frozen::Agent("spiffe://example.org/a".to_owned()), true),
            (Frozen::Task("tsk_1".to_owned()), false),
            (Frozen::Target("wiki".to_owned()), true),
        ] {
            let (by, reason) = ("uid 0".to_owned(), "\"odd\"\n".to_owned());
            let audiences = BTreeSet::from(["urn:a".to_owned()]);
            freezes.freeze(what, Freeze { by, reason, at, revoke, audiences });
        }
        for flag in [true, false] {
            freezes.set_flag(flag);
            store_freezes(&path, &freezes).unwrap();
            assert_eq!(load_freezes(&path).as_ref(), Ok(&freezes));
        }
        assert!(!std::fs::read_to_string(&path).unwrap().contains("flag"), "an older agent reads it");
        for bad in ["", "{", "{\"v\":2,\"frozen\":[]}", "{\"v\":1,\"frozen\":[],\"more\":1}"] {
            std::fs::write(&path, bad).unwrap();
            let report = load_freezes(&path).unwrap_err().to_string();
            assert!(report.contains("nothing starts while"), "{report}");
        }
    }
}
