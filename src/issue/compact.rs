//! Compact JWS taken apart: what validators of every kind of token do first.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// The three segments, decoded.
pub(crate) struct Parts<'a> {
    pub(crate) header: Vec<u8>,
    pub(crate) claims: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    /// Header and claims as they were signed.
    pub(crate) signed: &'a str,
}

impl<'a> Parts<'a> {
    /// `None` unless there are three segments of canonical, unpadded base64url, none empty.
    pub(crate) fn split(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        // The engine refuses padding, foreign characters (a fourth segment's dot too) and stray last bits.
        let decode = |segment: &str| URL_SAFE_NO_PAD.decode(segment).ok().filter(|bytes| !bytes.is_empty());
        Some(Self { header: decode(header)?, claims: decode(claims)?, signature: decode(signature)?, signed })
    }
}

/// A member that is a text.
pub(crate) fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Value::as_str)
}

/// A NumericDate that is a whole number of seconds: `Ok(None)` when the member is missing, `Err` when it is
/// anything else (1.5, 1e3, -1, "1", true) or beyond [`LAST_SECOND`].
pub(crate) fn time(members: &Map<String, Value>, name: &str) -> Result<Option<u64>, NoTime> {
    match members.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().filter(|seconds| *seconds <= LAST_SECOND).map(Some).ok_or(NoTime),
    }
}

/// A member that should be a time is none.
#[derive(Debug)]
pub(crate) struct NoTime;

/// The end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;
