//! Keys, ledger and last CRL, opened together: none of them is believed without the others.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::StartError;
use crate::authority::upstream::{DiskPaths, DiskUpstream, Upstream};
use crate::authority::{
    AuthoritySet, AuthoritySettings, Change, Custody, Disk, Journal, KeyStore, KeyType, Memory, Protection,
    X509Authority,
};
use crate::clock::unix_seconds;
use crate::config::{Config, JwtKeyType, Passphrase, Storage, UpstreamSettings, WitKeyType, X509KeyType};
use crate::files::{self, TrustRules};
use crate::id::{KeyId, LeaseId};
use crate::ledger::{CrlMark, IntegrityCheck, Ledger, LedgerPlace, Row, State};
use crate::revocation::{self, CrlNumbering, LastCrl, Recorded, Revoked, Verdict, Witness};
use crate::secret::KeyBytes;
use crate::workload::Denied;

/// What an earlier run left, checked.
pub(super) struct Stored {
    pub(super) custody: Custody,
    /// What opening them brought about.
    pub(super) changes: Vec<Change>,
    pub(super) authorities: AuthoritySet,
    pub(super) ledger: Ledger,
    pub(super) rows: Vec<Row>,
    pub(super) denied: Denied,
    pub(super) numbering: BTreeMap<KeyId, CrlNumbering>,
}

/// What the workloads' shell goes on with.
pub(super) struct Records {
    pub(super) ledger: Ledger,
    pub(super) denied: Denied,
    pub(super) numbering: BTreeMap<KeyId, CrlNumbering>,
}

impl Stored {
    pub(super) fn split(self) -> (Custody, Records) {
        let Self { custody, ledger, denied, numbering, .. } = self;
        (custody, Records { ledger, denied, numbering })
    }
}

pub(super) fn open(config: &Config, now: SystemTime) -> Result<Stored, StartError> {
    let (place, keys, journal): (LedgerPlace, Arc<dyn KeyStore>, Journal) = match &config.storage {
        Storage::Disk(dir) => {
            files::ensure_private_dir(dir)?;
            let keys = Disk::new(dir, protection(config)?);
            (LedgerPlace::Disk(dir.clone()), Arc::new(keys), Journal::on_disk(dir))
        }
        Storage::Memory => (LedgerPlace::Memory, Arc::new(Memory::default()), Journal::in_memory()),
    };
    let check = match &config.storage {
        Storage::Disk(_) => IntegrityCheck::Child { program: PathBuf::from("/proc/self/exe") },
        Storage::Memory => IntegrityCheck::InProcess,
    };
    let (ledger, rows) = Ledger::open(&place, check)?;
    if let Storage::Disk(dir) = &config.storage {
        // The ledger's lock is ours by now: nobody else writes here.
        sweep(dir);
    }
    let (mut custody, mut changes) =
        Custody::open_under(keys, journal, settings(config), upstream(config), unix_seconds(now))?;
    let mut authorities = custody.set().ok_or(StartError::NoAuthorities)?;
    if !is_known(config, &custody, &authorities, &changes, &ledger) {
        tracing::warn!("the ledger has never seen these signing keys: making new ones");
        changes = custody.condemn(unix_seconds(now))?;
        authorities = custody.set().ok_or(StartError::NoAuthorities)?;
    }
    let states: HashMap<LeaseId, State> = rows.iter().map(|row| (row.id, row.state)).collect();
    let mut denied = denied_rows(&rows);
    let mut numbering = BTreeMap::new();
    for authority in authorities.x509() {
        let id = authority.key_id();
        let mark = ledger.crl_marks().get(&id.to_string()).copied();
        let last = believe(config, authority, mark, &states, now)?;
        let resume = last.as_ref().map(|l| (l.number, l.this_update));
        let resume = resume.max(mark.map(|m| (m.number, m.this_update)));
        deny_listed(&mut denied, authority, last.as_ref(), now);
        numbering.insert(id, CrlNumbering::resume(resume, now));
    }
    Ok(Stored { custody, changes, authorities, ledger, rows, denied, numbering })
}

/// A crash in the middle of a write may have left a half-written key or CRL under another name.
fn sweep(data_dir: &Path) {
    for dir in [data_dir.to_owned(), data_dir.join("authority"), data_dir.join("crl")] {
        match files::sweep(&dir) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, dir = %dir.display(), "removed what a crash left unfinished"),
            Err(error) => tracing::warn!(%error, dir = %dir.display(), "unfinished files stay"),
        }
    }
}

fn settings(config: &Config) -> AuthoritySettings {
    AuthoritySettings {
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
        lead: config.authority.lead,
    }
}

fn upstream(config: &Config) -> Option<Arc<dyn Upstream>> {
    let UpstreamSettings::Disk { certificate, key, revoked } = config.upstream.clone()?;
    let paths = DiskPaths { certificate, key, revoked };
    Some(Arc::new(DiskUpstream::new(paths, config.trust_domain.clone())))
}

fn protection(config: &Config) -> Result<Protection, StartError> {
    let (path, rules) = match &config.authority.passphrase {
        None => return Ok(Protection::Plain),
        Some(Passphrase::File(path)) => (path.clone(), TrustRules::handed_over(4096)),
        // The manager's directory is the unit's alone; the group bits there are those of an access control list.
        Some(Passphrase::Credential(name)) => {
            let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or(StartError::NoCredentials)?;
            (PathBuf::from(dir).join(name), TrustRules::public(4096))
        }
    };
    let unreadable = |why: String| StartError::Passphrase { path: path.clone(), why };
    let read = files::read_trusted(&path, &rules);
    let text = KeyBytes::new(read.map_err(|error| unreadable(error.to_string()))?);
    Protection::passphrase(&text).map_err(|error| unreadable(error.to_string()))
}

/// Whether the ledger, or the last published CRLs beside it, remember any X.509 key that has signed. Keys whose
/// ledger is gone sign nothing any more: without it nobody knows what they signed.
fn is_known(
    config: &Config,
    custody: &Custody,
    authorities: &AuthoritySet,
    changes: &[Change],
    ledger: &Ledger,
) -> bool {
    let is_new =
        |id: &str| changes.iter().any(|change| change.record.id == id && change.record.prepared_at > 0);
    let signed = |id: &str| {
        custody.life().records().iter().any(|one| one.id == id && one.activated_at.is_some()) && !is_new(id)
    };
    let mut earlier = authorities.x509().iter().filter(|one| signed(&one.key_id().to_string())).peekable();
    if earlier.peek().is_none() {
        return true;
    }
    earlier.any(|authority| {
        let known = ledger.crl_marks().contains_key(&authority.key_id().to_string());
        known
            || witness(config, authority).is_some_and(|w| w.read(authority).is_ok_and(|last| last.is_some()))
    })
}

fn witness(config: &Config, authority: &X509Authority) -> Option<Witness> {
    match &config.storage {
        Storage::Disk(dir) => Some(Witness::on_disk(dir, authority.key_id())),
        Storage::Memory => None,
    }
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
    authority: &X509Authority,
    mark: Option<CrlMark>,
    states: &HashMap<LeaseId, State>,
    now: SystemTime,
) -> Result<Option<LastCrl>, StartError> {
    let Some(witness) = witness(config, authority) else { return Ok(None) };
    let data_dir = match &config.storage {
        Storage::Disk(dir) => dir.as_path(),
        Storage::Memory => Path::new("/"),
    };
    let distrust = |why: String| StartError::Rollback { data_dir: data_dir.to_owned(), why };
    let last = witness.read(authority).map_err(|error| distrust(error.to_string()))?;
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

fn denied_rows(rows: &[Row]) -> Denied {
    let mut denied = Denied::default();
    for row in rows {
        if let State::Revoked { at_millis, reason } = row.state {
            denied.add(row.clone(), reason, UNIX_EPOCH + Duration::from_millis(at_millis));
        }
    }
    denied
}

/// What only the CRL knows stays listed for as long as any certificate of ours could still be valid.
fn deny_listed(denied: &mut Denied, authority: &X509Authority, last: Option<&LastCrl>, now: SystemTime) {
    let until = unix_seconds(now) + 3600;
    let issuer = authority.key_id().to_string();
    for one in last.map(|l| l.revoked.as_slice()).unwrap_or_default() {
        let revoked = Revoked { not_after: until, at: one.at, reason: crate::ledger::Reason::Restart };
        denied.add_serial(&issuer, one.serial, revoked);
    }
}
