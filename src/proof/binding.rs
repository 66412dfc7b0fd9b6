//! What a token is bound to, by its own word (RFC 7800 `cnf`).

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::refusal::Refusal;

/// What a token is bound to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Binding {
    /// A key, by its RFC 7638 thumbprint (`jkt`, RFC 9449 §6.1).
    Key(String),
    /// A certificate, by its SHA-256 (`x5t#S256`, RFC 8705 §3.1).
    Certificate([u8; 32]),
}

impl Binding {
    /// By the claims of a token; `None` where it is bound to nothing.
    ///
    /// # Errors
    /// [`Refusal::Binding`] where it is bound to something else, or to more than one: what is not understood is not
    /// passed over, or nothing would be bound.
    pub fn of(claims: &Map<String, Value>) -> Result<Option<Self>, Refusal> {
        let Some(cnf) = claims.get("cnf") else { return Ok(None) };
        let members = cnf.as_object().filter(|members| members.len() == 1).ok_or(Refusal::Binding)?;
        let hash = |name: &str| {
            let text = members.get(name)?.as_str()?;
            let bytes: [u8; 32] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
            Some((text.to_owned(), bytes))
        };
        let key = hash("jkt").map(|(text, _)| Self::Key(text));
        let binding = key.or_else(|| hash("x5t#S256").map(|(_, bytes)| Self::Certificate(bytes)));
        binding.map(Some).ok_or(Refusal::Binding)
    }

    /// Whether it is bound to this certificate (DER).
    ///
    /// # Errors
    /// [`Refusal::OtherCertificate`].
    pub fn check_certificate(&self, der: &[u8]) -> Result<(), Refusal> {
        match self {
            Self::Certificate(sha256) if digest(&SHA256, der).as_ref() == sha256 => Ok(()),
            Self::Certificate(_) | Self::Key(_) => Err(Refusal::OtherCertificate),
        }
    }
}
