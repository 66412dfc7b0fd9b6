//! An authority from its key: opened again at start, or founded anew.

use std::sync::Arc;

use bytes::Bytes;

use super::{Authority, Custody, Held, Line};
use crate::authority::State;
use crate::authority::check::{self, LoadError, Unusable};
use crate::authority::journal::to_text;
use crate::authority::jws::{JwsAuthority, JwsUse};
use crate::authority::keys::{KeyType, SigningKey, refused};
use crate::authority::life::{AuthorityKind, Record};
use crate::authority::store::name_of;
use crate::authority::x509::{AuthorityError, BACKDATE, X509Authority, self_sign};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::id::LeaseId;

impl Custody {
    pub(super) fn open_keys(&mut self, lines: Vec<Line>, now: u64) -> Result<(), LoadError> {
        for line in lines {
            let record = &line.record;
            if !self.is_in_bundle(&record.id) {
                continue;
            }
            let (kind, id) = (record.kind, record.id.clone());
            let unusable = |why| LoadError::Unusable { place: self.keys.place(kind, &id), why };
            let key = self.keys.open(kind, &id)?;
            if name_of(kind, &key)? != id {
                return Err(unusable(Unusable::KeyMismatch));
            }
            let held = self.assemble(key, line)?.ok_or_else(|| unusable(Unusable::KeyMismatch))?;
            if held.line.record.state == State::Active && now < held.line.not_before {
                return Err(unusable(Unusable::NotYetValid(held.line.not_before - now)));
            }
            self.held.insert(id, held);
        }
        Ok(())
    }

    /// `None` when the certificate is not the one that the journal speaks of.
    pub(super) fn assemble(&self, key: Arc<dyn SigningKey>, line: Line) -> Result<Option<Held>, LoadError> {
        let domain = self.settings.trust_domain.clone();
        let record = &line.record;
        let validity = (line.not_before, record.not_after);
        let times = check::times(validity);
        let usage = match record.kind {
            AuthorityKind::Jwt => JwsUse::JwtSvid,
            AuthorityKind::Wit => JwsUse::WitSvid,
            AuthorityKind::X509 => {
                let Some(path) = line.path() else { return Ok(None) };
                let Some(der) = path.chain.first() else { return Ok(None) };
                let found = match path.roots.as_slice() {
                    [] => check::certificate(der, &key, true, &domain),
                    _ => check::issued(der, &key, &domain),
                };
                let found = found.map_err(|why| LoadError::Unusable { place: self.journal.place(), why })?;
                if found != validity {
                    return Ok(None);
                }
                let one = X509Authority::assemble(key, domain, path, times, record.state)?;
                return Ok(Some(Held { authority: Authority::X509(one), line }));
            }
        };
        let one = JwsAuthority::assemble(key, usage, domain, times, record.state)?;
        Ok(Some(Held { authority: Authority::Jws(one), line }))
    }

    /// A new authority with that key, from now on, and the CRLs that come with it.
    pub(super) fn found(
        &mut self,
        kind: AuthorityKind,
        key: Arc<dyn SigningKey>,
        now: u64,
    ) -> Result<(Held, Vec<Bytes>), LoadError> {
        if kind == AuthorityKind::X509
            && let Some(found) = self.found_above(&key, now)?
        {
            return Ok(found);
        }
        let at = from_unix_seconds(now);
        let not_before = unix_seconds(at.checked_sub(BACKDATE).unwrap_or(at));
        let not_after = at.checked_add(self.settings.ttl).map(unix_seconds).ok_or(AuthorityError::Time)?;
        let chain = match kind {
            AuthorityKind::X509 => {
                let mut serial = [0; 16];
                aws_lc_rs::rand::fill(&mut serial).map_err(|error| AuthorityError::Crypto(refused(error)))?;
                let validity = check::times((not_before, not_after));
                let serial = LeaseId::from_random(serial);
                let der = self_sign(&key, &self.settings.trust_domain, validity, serial)?;
                to_text(&[der])
            }
            AuthorityKind::Jwt | AuthorityKind::Wit => Vec::new(),
        };
        let record = Record::prepared(kind, name_of(kind, &key)?, not_after, now);
        let held = self.assemble(key, Line { record, not_before, chain, roots: Vec::new() })?;
        Ok((held.ok_or(LoadError::Make(AuthorityError::Time))?, Vec::new()))
    }

    pub(super) fn key_type(&self, kind: AuthorityKind) -> KeyType {
        match kind {
            AuthorityKind::X509 => self.settings.x509_key,
            AuthorityKind::Jwt => self.settings.jwt_key,
            AuthorityKind::Wit => self.settings.wit_key.unwrap_or_default(),
        }
    }
}
