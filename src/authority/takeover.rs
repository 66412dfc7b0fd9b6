//! Taking over what agents before version 0.2 kept: one key with its certificate in `x509.pem` and in `jwt.pem`,
//! both active. The old files go once the journal speaks of their keys.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::State;
use super::check::{self, AuthoritySettings, LoadError, Unusable};
use super::journal::{Content, Journal, Line};
use super::keys::{SigningKey, SigningPair};
use super::life::{AuthorityKind, Record};
use super::store::{KeyStore, StoreError, form_of, name_of};
use crate::files::{self, TrustRules};
use crate::pem;
use crate::secret::KeyBytes;

const FILES: [(AuthorityKind, &str); 2] =
    [(AuthorityKind::X509, "x509.pem"), (AuthorityKind::Jwt, "jwt.pem")];
const MAX_BYTES: u64 = 65_536;

/// The journal that speaks of what is there, if anything is; its keys are in the store when this returns.
pub(super) fn content(
    keys: &Arc<dyn KeyStore>,
    journal: &Journal,
    settings: &AuthoritySettings,
) -> Result<Option<Content>, LoadError> {
    let mut content = Content::empty(&settings.trust_domain);
    for (kind, path) in paths(journal) {
        let document = match files::read_trusted(&path, &TrustRules::private(MAX_BYTES)) {
            Ok(document) => KeyBytes::new(document),
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(StoreError::from(error).into()),
        };
        let unusable = |why| LoadError::Unusable { place: path.display().to_string(), why };
        let part = |label| pem::decode(label, document.expose()).ok_or_else(|| unusable(Unusable::Malformed));
        let certificate = part(pem::CERTIFICATE)?;
        let pkcs8 = KeyBytes::new(part(pem::PRIVATE_KEY)?.to_vec());
        let pair = SigningPair::parse(pkcs8.expose(), super::keys::SignatureForm::X509);
        let pair: Arc<dyn SigningKey> = Arc::new(pair.map_err(|_error| unusable(Unusable::Malformed))?);
        let is_ca = kind == AuthorityKind::X509;
        let (not_before, not_after) =
            check::certificate(&certificate, &pair, is_ca, &settings.trust_domain).map_err(unusable)?;
        let key = keys.import(kind, &pkcs8)?;
        debug_assert_eq!(key.form(), form_of(kind));
        let record = Record {
            state: State::Active,
            activated_at: Some(not_before),
            ..Record::prepared(kind, name_of(kind, &key)?, not_after, not_before)
        };
        let chain = if is_ca { vec![STANDARD.encode(&*certificate)] } else { Vec::new() };
        content.authorities.push(Line { record, not_before, chain, roots: Vec::new() });
    }
    Ok((!content.authorities.is_empty()).then_some(content))
}

/// Removes old files whose keys the journal names. One that stays, or is another's, does no harm.
pub(super) fn clean_up(journal: &Journal, content: &Content) {
    for (kind, path) in paths(journal) {
        let Ok(document) = files::read_trusted(&path, &TrustRules::private(MAX_BYTES)).map(KeyBytes::new)
        else {
            continue;
        };
        let named = || {
            let pkcs8 = pem::decode(pem::PRIVATE_KEY, document.expose())?;
            let key: Arc<dyn SigningKey> = Arc::new(SigningPair::parse(&pkcs8, form_of(kind)).ok()?);
            let id = name_of(kind, &key).ok()?;
            content.authorities.iter().any(|line| line.record.id == id).then_some(())
        };
        if named().is_none() {
            tracing::warn!(path = %path.display(), "an old key file that is no longer used: remove it");
        } else if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "an old key file could not be removed: remove it");
        }
    }
}

fn paths(journal: &Journal) -> impl Iterator<Item = (AuthorityKind, PathBuf)> {
    let dir = journal.directory();
    FILES.into_iter().filter_map(move |(kind, name)| Some((kind, dir?.join(name))))
}
