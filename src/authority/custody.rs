//! Custody of the authorities: the life cycle's core, the journal and the keys, kept in step.
//!
//! Every step is crash-safe by its order. A key is kept before the journal names it, so that the journal never names
//! a key that is not there; it is destroyed after the journal has stopped naming it; and between two writes of the
//! journal nothing counts. Blocking; driven by one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mayfly_attestors::failpoint;

use super::check::{AuthoritySettings, LoadError, Unusable};
use super::journal::{Content, Journal, Line, from_text, to_text};
use super::jws::JwsAuthority;
use super::life::{AuthorityKind, Life, LifeSettings, Moment, Record, Revoking, Step};
use super::store::{KeyStore, Memory, name_of};
use super::upstream::Upstream;
use super::x509::{AuthorityError, X509Authority};
use super::{AuthoritySet, takeover};
use crate::clock::unix_seconds;

mod opening;
mod under;

pub use self::under::Trouble;
use self::under::Under;

/// All authorities of this agent, durable.
#[derive(Debug)]
pub struct Custody {
    keys: Arc<dyn KeyStore>,
    journal: Journal,
    settings: AuthoritySettings,
    life: Life,
    held: BTreeMap<String, Held>,
    under: Option<Under>,
    /// The last CRL of each authority above ours.
    parent_crls: Vec<Bytes>,
}

/// What a step changed, for the audit log and for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The authority, as it stands now.
    pub record: Record,
    /// Verifiers had less time to learn it than they should have.
    pub hurried: bool,
}

/// A key and what is public about it.
#[derive(Clone, Debug)]
struct Held {
    authority: Authority,
    line: Line,
}

#[derive(Clone, Debug)]
enum Authority {
    X509(X509Authority),
    Jws(JwsAuthority),
}

impl Custody {
    /// Opens what is there, takes over what an older agent left, and makes what is missing. When it returns, every
    /// kind has an active authority; what is in [`Custody::set`] must be published before anybody is served.
    ///
    /// # Errors
    /// [`LoadError`]; nothing that was found is changed then, but for steps of the life cycle that were due.
    pub fn open(
        keys: Arc<dyn KeyStore>,
        journal: Journal,
        settings: AuthoritySettings,
        now: u64,
    ) -> Result<(Self, Vec<Change>), LoadError> {
        Self::open_under(keys, journal, settings, None, now)
    }

    /// As [`Custody::open`], with the X.509 authority's certificates from that upstream. One that fails keeps
    /// nobody from starting while there is a certificate of an earlier run.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn open_under(
        keys: Arc<dyn KeyStore>,
        journal: Journal,
        settings: AuthoritySettings,
        upstream: Option<Arc<dyn Upstream>>,
        now: u64,
    ) -> Result<(Self, Vec<Change>), LoadError> {
        let content = match journal.read()? {
            Some(content) => content.map_err(|fault| LoadError::Journal { place: journal.place(), fault })?,
            None => match takeover::content(&keys, &journal, &settings)? {
                Some(content) => content,
                None if keys.list()?.is_empty() => Content::empty(&settings.trust_domain),
                None => return Err(LoadError::JournalLost(journal.place())),
            },
        };
        // Before the first key: keys without a journal are then always keys whose journal was lost.
        journal.write(&content)?;
        takeover::clean_up(&journal, &content);
        if content.trust_domain != settings.trust_domain.as_str() && !content.authorities.is_empty() {
            let why = Unusable::TrustDomain(settings.trust_domain.clone());
            return Err(LoadError::Unusable { place: journal.place(), why });
        }
        let lines = content.authorities;
        let records = lines.iter().map(|line| line.record.clone()).collect();
        let malformed = || LoadError::Unusable { place: journal.place(), why: Unusable::Malformed };
        let parent_crls = from_text(&content.parent_crls).ok_or_else(malformed)?;
        let life = Life::restore(records, life_settings(&settings, upstream.is_some()), now)
            .map_err(|why| LoadError::Inconsistent { place: journal.place(), why })?;
        let (held, under) = (BTreeMap::new(), upstream.map(Under::new));
        let mut custody = Self { keys, journal, settings, life, held, under, parent_crls };
        let is_news = !lines.iter().map(|line| &line.record).eq(custody.life.records());
        custody.open_keys(lines, now)?;
        custody.mark_trusted();
        if is_news {
            // A kind was switched off. Its keys go only after the journal says so.
            custody.write(|_| Ok(()))?;
        }
        custody.sweep()?;
        let changes = custody.tend_all(Moment { wall: now, up: Duration::ZERO })?;
        Ok((custody, changes))
    }

    /// Where everything stands.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// What verifiers are to be told and signers to use; `None` while some kind has no active authority.
    pub fn set(&self) -> Option<AuthoritySet> {
        let (mut x509, mut tokens) = (Vec::new(), Vec::new());
        for record in self.life.records().iter().filter(|record| record.in_bundle()) {
            match &self.held.get(&record.id)?.authority {
                Authority::X509(one) => x509.push(one.in_state(record.state)),
                Authority::Jws(one) => tokens.push(one.in_state(record.state)),
            }
        }
        Some(AuthoritySet::new(x509, tokens)?.with_parent_crls(self.parents()))
    }

    /// What is in [`Custody::set`] is in verifiers' reach from now on.
    pub fn mark_published(&mut self, up: Duration) {
        self.life.mark_published(up);
    }

    /// Takes one step that is due by age, if there is one. Publish before asking again.
    ///
    /// # Errors
    /// [`LoadError`]; the step was not taken.
    pub fn tend(&mut self, now: Moment) -> Result<Option<Change>, LoadError> {
        if self.has_moved(now) {
            match self.prepare(AuthorityKind::X509, now.wall) {
                Ok(change) => return Ok(Some(change)),
                Err(error) => self.endure(error, now.up)?,
            }
        }
        match self.life.due_without(now, self.kept_back(now)) {
            None => Ok(None),
            Some(Step::Prepare(kind)) => match self.prepare(kind, now.wall) {
                Ok(change) => Ok(Some(change)),
                Err(error) => {
                    self.endure(error, now.up)?;
                    // It is kept back now; what else is due must not wait for it.
                    self.tend(now)
                }
            },
            Some(Step::Activate { id, hurried }) => {
                let change = self.commit(&id, |life| {
                    life.take_over(&id, now.wall);
                    Ok(())
                })?;
                Ok(Some(Change { hurried, ..change }))
            }
            Some(Step::Expire(id)) => {
                let record = self.record(&id);
                self.write(|life| {
                    life.expire(&id, now.wall);
                    Ok(())
                })?;
                Ok(record.map(|record| Change { record, hurried: false }))
            }
        }
    }

    /// Makes a successor.
    ///
    /// # Errors
    /// [`LoadError::Refused`] when there is one; the rest when it cannot be made or kept.
    pub fn prepare(&mut self, kind: AuthorityKind, now: u64) -> Result<Change, LoadError> {
        self.life.may_prepare(kind)?;
        let key = self.keys.generate(kind, self.key_type(kind))?;
        failpoint::hit("life.after_key");
        let id = name_of(kind, &key)?;
        let added = self.found(kind, key, now).and_then(|(held, crls)| {
            let record = held.line.record.clone();
            self.held.insert(id.clone(), held);
            self.write_with(&crls, |life| Ok(life.add(record)?))
        });
        if let Err(error) = added {
            self.held.remove(&id);
            // An orphan that stays is swept at the next start.
            self.keys.remove(kind, &id).ok();
            return Err(error);
        }
        self.mark_trusted();
        self.change(&id)
    }

    /// Lets the prepared authority sign.
    ///
    /// # Errors
    /// [`LoadError::Refused`]; or the journal cannot be written, and nothing has changed.
    pub fn activate(&mut self, kind: AuthorityKind, hurry: bool, now: Moment) -> Result<Change, LoadError> {
        let mut next = self.life.clone();
        let early = next.activate(kind, false, now).is_err();
        let mut next = self.life.clone();
        let id = next.activate(kind, hurry, now)?;
        let change = self.commit(&id, |life| {
            *life = next;
            Ok(())
        })?;
        Ok(Change { hurried: early, ..change })
    }

    /// Marks an old authority as one whose credentials must all be replaced.
    ///
    /// # Errors
    /// As [`Custody::activate`].
    pub fn taint(&mut self, id: &str, now: u64) -> Result<Change, LoadError> {
        self.commit(id, |life| Ok(life.taint(id, now)?))
    }

    /// Orders an authority out of the bundle.
    ///
    /// # Errors
    /// As [`Custody::activate`].
    pub fn revoke(&mut self, id: &str, now: u64) -> Result<(Change, Revoking), LoadError> {
        let mut revoking = self.life.clone().revoke(id, now)?;
        if revoking == Revoking::Done {
            self.disown(id, now)?;
        }
        let change = self.commit(id, |life| {
            revoking = life.revoke(id, now)?;
            Ok(())
        })?;
        Ok((change, revoking))
    }

    /// What it signed has been replaced: it is out of the bundle. Publish next.
    ///
    /// # Errors
    /// As [`Custody::activate`].
    pub fn finish(&mut self, id: &str, now: u64) -> Result<Change, LoadError> {
        self.disown(id, now)?;
        self.commit(id, |life| {
            life.finish(id, now);
            Ok(())
        })
    }

    /// Revokes everything there is and makes it anew: for a ledger that is lost or was rolled back (G04, G05).
    ///
    /// # Errors
    /// [`LoadError`]; the next start goes on from wherever it failed.
    pub fn condemn(&mut self, now: u64) -> Result<Vec<Change>, LoadError> {
        for id in self.held.keys().cloned().collect::<Vec<_>>() {
            self.disown(&id, now)?;
        }
        self.write(|life| {
            life.condemn(now);
            Ok(())
        })?;
        self.tend_all(Moment { wall: now, up: Duration::ZERO })
    }

    /// At start, when nobody is served: everything counts as published as soon as it is there.
    fn tend_all(&mut self, now: Moment) -> Result<Vec<Change>, LoadError> {
        let mut changes = Vec::new();
        self.life.mark_published(now.up);
        while let Some(change) = self.tend(now)? {
            changes.push(change);
            self.life.mark_published(now.up);
        }
        Ok(changes)
    }

    fn commit(
        &mut self,
        id: &str,
        step: impl FnOnce(&mut Life) -> Result<(), LoadError>,
    ) -> Result<Change, LoadError> {
        self.write(step)?;
        self.change(id)
    }

    fn change(&self, id: &str) -> Result<Change, LoadError> {
        let record = self.record(id).ok_or_else(|| super::life::Refused::Unknown(id.to_owned()))?;
        Ok(Change { record, hurried: false })
    }

    fn record(&self, id: &str) -> Option<Record> {
        self.life.records().iter().find(|one| one.id == id).cloned()
    }

    /// Takes a step in the core, writes it down, and only then lets it count.
    fn write(&mut self, step: impl FnOnce(&mut Life) -> Result<(), LoadError>) -> Result<(), LoadError> {
        let mut next = self.life.clone();
        step(&mut next)?;
        let line = |record: &Record| {
            let held = self.held.get(&record.id).map(|held| held.line.clone());
            let bare =
                || Line { record: record.clone(), not_before: 0, chain: Vec::new(), roots: Vec::new() };
            Line { record: record.clone(), ..held.unwrap_or_else(bare) }
        };
        let authorities = next.records().iter().map(line).collect();
        let trust_domain = self.settings.trust_domain.to_string();
        failpoint::hit("life.before_journal");
        let parent_crls = to_text(&self.parent_crls);
        self.journal.write(&Content { trust_domain, authorities, parent_crls })?;
        failpoint::hit("life.after_journal");
        self.life = next;
        self.drop_gone();
        Ok(())
    }

    /// Destroys the keys of authorities that are out of the bundle. One that stays for now is swept at start.
    fn drop_gone(&mut self) {
        let gone: Vec<_> = self.held.iter().filter(|(id, _)| !self.is_in_bundle(id)).collect();
        let gone: Vec<_> = gone.iter().map(|(id, held)| ((*id).clone(), held.line.record.kind)).collect();
        for (id, kind) in gone {
            self.held.remove(&id);
            if let Err(error) = self.keys.remove(kind, &id) {
                tracing::warn!(%error, "the key of a gone authority is still there");
            }
        }
    }

    fn is_in_bundle(&self, id: &str) -> bool {
        self.life.records().iter().any(|one| one.id == id && one.in_bundle())
    }

    /// Keys that the journal does not name belong to steps that were never finished.
    fn sweep(&self) -> Result<(), LoadError> {
        for (kind, id) in self.keys.list()? {
            if !self.is_in_bundle(&id) {
                tracing::info!(%kind, id, "removing the key of an authority that never was, or is no more");
                self.keys.remove(kind, &id)?;
            }
        }
        Ok(())
    }
}

/// Authorities that nobody will find again: for tests and tools.
///
/// # Errors
/// [`LoadError`].
pub fn in_memory(settings: &AuthoritySettings, now: SystemTime) -> Result<AuthoritySet, LoadError> {
    let keys = Arc::new(Memory::default());
    let (custody, _) = Custody::open(keys, Journal::in_memory(), settings.clone(), unix_seconds(now))?;
    custody.set().ok_or(LoadError::Make(AuthorityError::Time))
}

fn life_settings(settings: &AuthoritySettings, is_under: bool) -> LifeSettings {
    let mut kinds = vec![AuthorityKind::X509, AuthorityKind::Jwt];
    kinds.extend(settings.wit_key.map(|_| AuthorityKind::Wit));
    let prompt = if is_under { vec![AuthorityKind::X509] } else { Vec::new() };
    LifeSettings { kinds, lead: settings.lead, prompt }
}
