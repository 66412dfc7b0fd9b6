//! The second witness: the CRL last published, kept beside the ledger. A ledger that was put back from a
//! backup forgets revocations, and worse, forgets credentials that are still out there; the last CRL
//! remembers that there were more (G05).

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::crl::{Crl, CrlFault, read_back};
use crate::authority::{RevokedSerial, X509Authority};
use crate::clock::unix_seconds;
use crate::files::{self, FileError, TrustRules};
use crate::id::{KeyId, LeaseId};
use crate::ledger::CrlMark;
use crate::pem;

/// Why the witness was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The file or a directory above it cannot be read, or others could have written it.
    #[error(transparent)]
    Untrusted(#[from] FileError),
    /// The file is there and is not a CRL by this authority: treat the ledger as lost.
    #[error("{path:?} {fault}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: CrlFault,
    },
    /// The file cannot be written.
    #[error("cannot write {path:?}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// `DATA_DIR/crl/AKI.crl` (DER) and `AKI.pem` of one authority, which other programs may read as well; or
/// nothing, for an agent that keeps nothing.
#[derive(Clone, Debug)]
pub struct Witness {
    dir: Option<PathBuf>,
    key_id: KeyId,
}

impl Witness {
    /// The witness of that authority.
    pub fn on_disk(data_dir: &Path, key_id: KeyId) -> Self {
        Self { dir: Some(data_dir.join("crl")), key_id }
    }

    /// No witness (`mayfly agent --dev`).
    pub fn none(key_id: KeyId) -> Self {
        Self { dir: None, key_id }
    }

    /// Keeps a CRL that was published. Each file is replaced in one step. Blocking, with two syncs.
    ///
    /// # Errors
    /// [`WitnessError`]; the earlier one stands then.
    pub fn publish(&self, crl: &Crl) -> Result<(), WitnessError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        files::ensure_dir(dir, 0o755)?;
        let write = |path: PathBuf, bytes: &[u8]| {
            files::write_atomic(&path, 0o644, bytes).map_err(|source| WitnessError::Write { path, source })
        };
        write(self.path(dir, "pem"), pem::encode(pem::CRL, &crl.der).as_bytes())?;
        // Last, because this is the one that counts as published.
        write(self.path(dir, "crl"), &crl.der)
    }

    /// Removes both files: the authority is out of the bundle. Blocking.
    ///
    /// # Errors
    /// [`WitnessError::Write`] when one is still there.
    pub fn remove(&self) -> Result<(), WitnessError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        for path in [self.path(dir, "crl"), self.path(dir, "pem")] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(WitnessError::Write { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What was last published, if anything ever was; its signature is checked. Blocking.
    ///
    /// # Errors
    /// [`WitnessError`]; a damaged witness cannot vouch for the ledger, so treat it as
    /// [`Verdict::Rollback`].
    pub fn read(&self, authority: &X509Authority) -> Result<Option<LastCrl>, WitnessError> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let path = self.path(dir, "crl");
        match files::read_trusted(&path, &TrustRules::public(MAX_BYTES)) {
            Ok(der) => match read_back(authority, &der) {
                Ok(last) => Ok(Some(last)),
                Err(fault) => Err(WitnessError::Damaged { path, fault }),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn path(&self, dir: &Path, extension: &str) -> PathBuf {
        dir.join(format!("{}.{extension}", self.key_id))
    }
}

/// What the last published CRL says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LastCrl {
    /// CRL number.
    pub number: u64,
    /// Issue date, Unix seconds.
    pub this_update: u64,
    /// When it lapses, Unix seconds.
    pub next_update: u64,
    /// Its entries, ascending.
    pub revoked: Vec<RevokedSerial>,
}

/// What the ledger knows about a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Recorded {
    /// Nothing.
    Unknown,
    /// That it is in force.
    Live,
    /// That it is revoked.
    Revoked,
}

/// Whether the ledger can be what it was when the witness was written, or later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Sound,
    /// It is older. It cannot know every credential that is out there: move it aside and make new authorities
    /// (`Custody::condemn`).
    Rollback(RollbackSign),
}

/// How a rollback showed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RollbackSign {
    /// A CRL was published that the ledger has no record of.
    #[error("crl {witness} was published, the ledger knows of none after {ledger}")]
    CrlAhead {
        /// Number of the published CRL.
        witness: u64,
        /// Highest number in the ledger; 0 for none.
        ledger: u64,
    },
    /// A published revocation is not one for the ledger.
    #[error("lease {0} was published as revoked, and is live in the ledger")]
    RevokedIsLive(LeaseId),
    /// A published revocation is of a lease that the ledger does not know, though it must still have it.
    #[error("lease {0} was published as revoked, and the ledger does not know it")]
    RevokedIsUnknown(LeaseId),
}

/// Compares the witness with the ledger at start. `mark` is the ledger's record of this authority's last CRL,
/// `recorded` looks a lease up. An unknown lease is no sign if it was revoked long enough ago for its row to
/// have been dropped ([`ROW_RETENTION_SECONDS`]).
pub fn judge(
    witness: Option<&LastCrl>,
    mark: Option<CrlMark>,
    recorded: &dyn Fn(LeaseId) -> Recorded,
    now: SystemTime,
) -> Verdict {
    let Some(witness) = witness else { return Verdict::Sound };
    let ledger = mark.map_or(0, |mark| mark.number);
    if witness.number > ledger {
        return Verdict::Rollback(RollbackSign::CrlAhead { witness: witness.number, ledger });
    }
    // The number is the time in milliseconds: a clock that was set back does not make old leases young.
    let now = unix_seconds(now).max(witness.number / 1000);
    for one in &witness.revoked {
        match recorded(one.serial) {
            Recorded::Revoked => {}
            Recorded::Live => return Verdict::Rollback(RollbackSign::RevokedIsLive(one.serial)),
            Recorded::Unknown if one.at.saturating_add(ROW_RETENTION_SECONDS) < now => {}
            Recorded::Unknown => return Verdict::Rollback(RollbackSign::RevokedIsUnknown(one.serial)),
        }
    }
    Verdict::Sound
}

/// How long after a lease's `not_after` its ledger row must be kept. Whoever drops rows keeps to it: then a
/// published serial without a row was either revoked longer ago than this, or the ledger is not the one.
pub const ROW_RETENTION_SECONDS: u64 = 2 * 60 * 60;
/// Room for a million entries.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
