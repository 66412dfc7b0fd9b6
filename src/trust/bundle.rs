//! The bundle of one trust domain: what its verifiers need, without its name and without where it came from.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::jwk::{UnsupportedKey, certificate_jwk};
use crate::authority::{AuthoritySet, JwtBundle};

/// The authorities of one trust domain. Empty means that nothing of that domain is to be believed.
#[derive(Clone, Debug)]
pub struct DomainBundle {
    x509: Vec<Bytes>,
    x509_concatenated: Bytes,
    jwt: Arc<JwtBundle>,
    wit: Arc<JwtBundle>,
}

impl DomainBundle {
    /// A bundle of certificates (DER, one each; repeated ones count once), JWT keys and WIT keys.
    pub fn new(x509: impl IntoIterator<Item = Bytes>, jwt: JwtBundle, wit: JwtBundle) -> Self {
        let mut unique: Vec<Bytes> = Vec::new();
        for certificate in x509 {
            if !unique.contains(&certificate) {
                unique.push(certificate);
            }
        }
        let x509_concatenated = unique.concat().into();
        Self { x509: unique, x509_concatenated, jwt: Arc::new(jwt), wit: Arc::new(wit) }
    }

    /// The bundle of our own authorities.
    pub fn of(authorities: &AuthoritySet) -> Self {
        let jwt = JwtBundle::of(authorities.jwt().iter().map(Arc::as_ref));
        let wit = JwtBundle::of(authorities.wit().iter().map(Arc::as_ref));
        Self::new(authorities.anchors(), jwt, wit)
    }

    /// X.509 authorities: certificates, DER.
    pub fn x509(&self) -> &[Bytes] {
        &self.x509
    }

    /// The same, one after the other: the form of the Workload API.
    pub fn x509_concatenated(&self) -> &Bytes {
        &self.x509_concatenated
    }

    /// Keys for JWT-SVIDs.
    pub fn jwt(&self) -> &Arc<JwtBundle> {
        &self.jwt
    }

    /// Keys for WIT-SVIDs.
    pub fn wit(&self) -> &Arc<JwtBundle> {
        &self.wit
    }

    /// Whether every credential of the domain is to be refused.
    pub fn is_empty(&self) -> bool {
        self.x509.is_empty() && self.jwt.is_empty() && self.wit.is_empty()
    }

    /// Whether verifiers would see no difference.
    pub fn same_as(&self, other: &Self) -> bool {
        self.x509 == other.x509 && self.jwt.json() == other.jwt.json() && self.wit.json() == other.wit.json()
    }

    /// The SPIFFE bundle document (Trust Domain and Bundle §4), JSON with a final newline. The same bundle
    /// and form always give the same bytes.
    ///
    /// # Errors
    /// [`UnsupportedKey`] when a certificate's key is of a type that readers would choke on.
    pub fn document(&self, form: &DocumentForm) -> Result<Bytes, UnsupportedKey> {
        let mut keys = self.x509.iter().map(x509_jwk).collect::<Result<Vec<Value>, _>>()?;
        keys.extend(jwks(&self.jwt));
        if form.wit_keys {
            keys.extend(jwks(&self.wit));
        }
        let mut members = Map::from_iter([("keys".to_owned(), Value::Array(keys))]);
        if let Some(sequence) = form.sequence {
            members.insert("spiffe_sequence".to_owned(), sequence.into());
        }
        if let Some(hint) = form.refresh_hint {
            members.insert("spiffe_refresh_hint".to_owned(), hint.as_secs().into());
        }
        Ok(format!("{}\n", crate::json::sorted(Value::Object(members))).into())
    }
}

/// What goes into a document besides the authorities.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DocumentForm {
    /// `spiffe_sequence`; left out when `None`.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`, in whole seconds; left out when `None`.
    pub refresh_hint: Option<Duration>,
    /// Whether WIT keys go in: readers that do not know their `use` lose the whole document (SPIRE before WIT).
    pub wit_keys: bool,
}

fn x509_jwk(certificate: &Bytes) -> Result<Value, UnsupportedKey> {
    let mut jwk = certificate_jwk(certificate)?;
    // No `kid` here, and base64 with padding: X509-SVID §6.1.
    jwk.insert("use".to_owned(), "x509-svid".into());
    jwk.insert("x5c".to_owned(), json!([STANDARD.encode(certificate)]));
    Ok(Value::Object(jwk))
}

/// The JWKs of a set that we wrote ourselves.
fn jwks(bundle: &JwtBundle) -> Vec<Value> {
    let set: Option<Value> = serde_json::from_slice(bundle.json()).ok();
    set.and_then(|mut set| Some(set.get_mut("keys")?.as_array_mut()?.split_off(0))).unwrap_or_default()
}
