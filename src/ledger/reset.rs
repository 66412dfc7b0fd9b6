//! What to do with a ledger that is lost: nobody can name the credentials it held any more, so the keys that
//! signed them go too, and with them every old credential leaves the bundle.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::{OpenError, disk, head};

/// Moves the ledger, the signing keys and the CRLs of a stopped agent into `DATA_DIR/lost-<now>/` and
/// answers with that directory. `now` is in Unix seconds.
///
/// The keys go first: if this is cut off half-way, the damaged ledger is still there to be refused, never a
/// fresh ledger beside the old keys.
pub fn reset(data_dir: &Path, now: u64) -> Result<PathBuf, OpenError> {
    let _lock = disk::lock(data_dir)?;
    let aside = data_dir.join(format!("lost-{now}"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&aside);
    made.map_err(|source| OpenError::Unwritable { path: aside.clone(), source })?;
    for name in [disk::KEYS, CRLS, disk::FILE, head::NAME] {
        move_aside(data_dir, &aside, name)
            .map_err(|source| OpenError::Unwritable { path: data_dir.join(name), source })?;
    }
    Ok(aside)
}

fn move_aside(data_dir: &Path, aside: &Path, name: &str) -> io::Result<()> {
    match std::fs::rename(data_dir.join(name), aside.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        moved => moved?,
    }
    disk::sync_dir(aside)?;
    disk::sync_dir(data_dir)
}

/// Where the published CRLs are.
const CRLS: &str = "crl";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::testing::data_dir;

    #[test]
    fn keys_crls_and_ledger_go_together() {
        let dir = data_dir();
        let path = dir.path();
        for sub in ["authority", "crl"] {
            std::fs::create_dir(path.join(sub)).unwrap();
        }
        std::fs::write(path.join("authority/x509.key"), "k").unwrap();
        std::fs::write(path.join("ledger.redb"), "rubbish").unwrap();
        std::fs::write(path.join("audit.jsonl"), "stays").unwrap();
        let aside = reset(path, 7).unwrap();
        assert_eq!(aside, path.join("lost-7"));
        assert!(aside.join("authority/x509.key").exists() && aside.join("crl").exists());
        assert!(aside.join("ledger.redb").exists() && path.join("audit.jsonl").exists());
        assert!(!path.join("authority").exists() && !path.join("ledger.redb").exists());
        // A second one in the same second must not mix with the first.
        assert!(matches!(reset(path, 7), Err(OpenError::Unwritable { .. })));
    }
}
