//! Keys, ledger and last CRL, opened together: none of them is believed without the others.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::StartError;
use crate::authority::{
    self, AuthoritySet, AuthoritySettings, Disk, KeyStore, KeyType, Memory, Slot, X509Authority,
};
use crate::config::{Config, JwtKeyType, Storage, WitKeyType, X509KeyType};
use crate::files;
use crate::id::LeaseId;
use crate::ledger::{CrlMark, IntegrityCheck, Ledger, LedgerPlace, Row, State};
use crate::revocation::{self, CrlNumbering, LastCrl, Recorded, Revoked, Verdict, Witness};
use crate::workload::Denied;

/// What an earlier run left, checked.
pub(super) struct Stored {
    pub(super) authorities: AuthoritySet,
    /// Made now, rather than found.
    pub(super) created: bool,
    pub(super) ledger: Ledger,
    pub(super) rows: Vec<Row>,
    pub(super) denied: Denied,
    pub(super) numbering: CrlNumbering,
    pub(super) witness: Witness,
}

pub(super) fn open(config: &Config, now: SystemTime) -> Result<Stored, StartError> {
    let (place, store): (LedgerPlace, Box<dyn KeyStore>) = match &config.storage {
        Storage::Disk(dir) => {
            files::ensure_private_dir(dir)?;
            (LedgerPlace::Disk(dir.clone()), Box::new(Disk::new(dir)))
        }
        Storage::Memory => (LedgerPlace::Memory, Box::new(Memory::default())),
    };
    let check = match &config.storage {
        Storage::Disk(_) => IntegrityCheck::Child { program: PathBuf::from("/proc/self/exe") },
        Storage::Memory => IntegrityCheck::InProcess,
    };
    let (ledger, rows) = Ledger::open(&place, check)?;
    let (authorities, created) = load_authorities(config, store.as_ref(), &ledger, now)?;
    let active = authorities.active_x509();
    let witness = match &config.storage {
        Storage::Disk(dir) => Witness::on_disk(dir, active.key_id()),
        Storage::Memory => Witness::none(active.key_id()),
    };
    let mark = ledger.crl_marks().get(&active.key_id().to_string()).copied();
    let last = believe(config, &witness, active, mark, &rows, now)?;
    let resume = last.as_ref().map(|l| (l.number, l.this_update));
    let resume = resume.max(mark.map(|m| (m.number, m.this_update)));
    let denied = denied(&rows, last.as_ref(), now);
    let numbering = CrlNumbering::resume(resume, now);
    Ok(Stored { authorities, created, ledger, rows, denied, numbering, witness })
}

/// Keys whose ledger is gone sign nothing any more: without it nobody knows what they signed.
fn load_authorities(
    config: &Config,
    store: &dyn KeyStore,
    ledger: &Ledger,
    now: SystemTime,
) -> Result<(AuthoritySet, bool), StartError> {
    let settings = AuthoritySettings {
        trust_domain: config.trust_domain.clone(),
        x509_key: match config.x509.key_type {
            X509KeyType::EcP256 => KeyType::EcP256,
            X509KeyType::EcP384 => KeyType::EcP384,
            X509KeyType::Rsa2048 => KeyType::Rsa2048,
        },
        jwt_key: match config.jwt.key_type {
            JwtKeyType::EcP256 => KeyType::EcP256,
            JwtKeyType::Rsa2048 => KeyType::Rsa2048,
        },
        wit_key: config.wit.enabled.then(|| wit_key_type(config)),
        ttl: config.authority.ttl,
    };
    let found = store.load(Slot::X509).map_err(authority::LoadError::from)?.is_some();
    let authorities = authority::load_or_create(store, &settings, now)?;
    let known = ledger.crl_marks().contains_key(&authorities.active_x509().key_id().to_string());
    let witnessed = match &config.storage {
        Storage::Disk(dir) => Witness::on_disk(dir, authorities.active_x509().key_id())
            .read(authorities.active_x509())
            .is_ok_and(|last| last.is_some()),
        Storage::Memory => false,
    };
    if found && !known && !witnessed {
        tracing::warn!("the ledger has never seen these signing keys: making new ones");
        return Ok((authority::create_anew(store, &settings, now)?, true));
    }
    Ok((authorities, !found))
}

/// The type of keys around WIT-SVIDs.
pub(super) fn wit_key_type(config: &Config) -> KeyType {
    match config.wit.key_type {
        WitKeyType::EcP256 => KeyType::EcP256,
        WitKeyType::EcP384 => KeyType::EcP384,
    }
}

/// The last published CRL is the second witness against a ledger that was rolled back.
fn believe(
    config: &Config,
    witness: &Witness,
    active: &X509Authority,
    mark: Option<CrlMark>,
    rows: &[Row],
    now: SystemTime,
) -> Result<Option<LastCrl>, StartError> {
    let data_dir = match &config.storage {
        Storage::Disk(dir) => dir.as_path(),
        Storage::Memory => Path::new("/"),
    };
    let distrust = |why: String| StartError::Rollback { data_dir: data_dir.to_owned(), why };
    let last = witness.read(active).map_err(|error| distrust(error.to_string()))?;
    // A map, because a CRL and a ledger may both have tens of thousands of rows.
    let states: HashMap<LeaseId, State> = rows.iter().map(|row| (row.id, row.state)).collect();
    let recorded = |lease: LeaseId| match states.get(&lease) {
        None => Recorded::Unknown,
        Some(State::Live) => Recorded::Live,
        Some(State::Revoked { .. }) => Recorded::Revoked,
    };
    match revocation::judge(last.as_ref(), mark, &recorded, now) {
        Verdict::Sound => Ok(last),
        Verdict::Rollback(sign) => Err(distrust(sign.to_string())),
    }
}

fn denied(rows: &[Row], last: Option<&LastCrl>, now: SystemTime) -> Denied {
    let mut denied = Denied::default();
    for row in rows {
        if let State::Revoked { at_millis, reason } = row.state {
            denied.add(row.clone(), reason, UNIX_EPOCH + Duration::from_millis(at_millis));
        }
    }
    // What only the CRL knows stays listed for as long as any certificate of ours could still be valid.
    let until = crate::clock::unix_seconds(now) + 3600;
    for one in last.map(|l| l.revoked.as_slice()).unwrap_or_default() {
        let revoked = Revoked { not_after: until, at: one.at, reason: crate::ledger::Reason::Restart };
        denied.add_serial(one.serial, revoked);
    }
    denied
}
