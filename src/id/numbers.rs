//! Identifiers that are numbers underneath: leases, keys, entries.

use std::fmt;
use std::str::FromStr;

use super::hex::{self, HexError};

/// One issued credential: the X.509 serial number, or the JWT's `jti`. 128 bits, random, never zero and
/// never negative as a DER integer, so that the same 16 bytes serve both.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LeaseId([u8; 16]);

impl LeaseId {
    /// From random bytes. Clears the sign bit and sets the next, so that DER needs exactly 16 octets
    /// (RFC 5280 §4.1.2.2 wants a positive serial of at most 20).
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self(bytes)
    }

    /// From stored or parsed bytes, as they are.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Big-endian serial number.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Key identifier of an X.509 authority (SKI of its certificate, AKI of what it signs), 20 bytes.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId([u8; 20]);

impl KeyId {
    /// From stored or computed bytes.
    pub fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The 20 bytes.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

/// Names a registration entry: its `id` in the file, or the first 16 hex digits of a hash of what it
/// says (SPIFFE ID and selectors), so that it survives reloads and reordering.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EntryId(String);

impl EntryId {
    /// Takes a checked name.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! hex_text {
    ($name:ident, $bytes:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                hex::decode::<$bytes>(text).map(Self)
            }
        }
    };
}

hex_text!(LeaseId, 16);
hex_text!(KeyId, 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_id_is_a_positive_sixteen_octet_integer() {
        for fill in [0x00, 0x80, 0xff] {
            let first = LeaseId::from_random([fill; 16]).as_bytes()[0];
            assert!((0x40..0x80).contains(&first), "{first:#x}");
        }
    }

    #[test]
    fn text_form_round_trips_and_refuses_the_rest() {
        let id = LeaseId::from_random([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "25", "25A5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", "zza5a5a5a5a5a5a5a5a5a5a5a5a5a5a5"] {
            assert!(bad.parse::<LeaseId>().is_err(), "{bad}");
        }
    }
}
