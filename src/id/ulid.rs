//! Names of tasks and of what belongs to them: a prefix that says what it is, and the 26 characters of a ULID (48
//! bits of time, 80 of chance). They are names, never secrets: knowing one gives nobody anything.

use std::fmt;
use std::str::FromStr;

/// The text is not such a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected `{prefix}` and 26 digits of Crockford's base32 in capitals")]
pub struct NameError {
    /// What the name begins with.
    pub prefix: &'static str,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal,)+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
            pub struct $name([u8; 16]);

            impl $name {
                /// A new name: the time it is made at, Unix milliseconds, and random bytes.
                pub fn new(unix_millis: u64, random: [u8; 10]) -> Self {
                    Self(compose(unix_millis, random))
                }

                /// From stored bytes.
                pub fn from_bytes(bytes: [u8; 16]) -> Self {
                    Self(bytes)
                }

                /// To store.
                pub fn as_bytes(&self) -> &[u8; 16] {
                    &self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str($prefix)?;
                    write(&self.0, f)
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    fmt::Display::fmt(self, f)
                }
            }

            impl FromStr for $name {
                type Err = NameError;

                fn from_str(text: &str) -> Result<Self, NameError> {
                    let digits = text.strip_prefix($prefix).and_then(read);
                    digits.map(Self).ok_or(NameError { prefix: $prefix })
                }
            }
        )+
    };
}

names! {
    /// One task.
    TaskId = "tsk_",
    /// An offer of a part of a task to somebody else.
    DelegationId = "dlg_",
    /// Something that people were asked to allow.
    ApprovalId = "apr_",
}

fn compose(unix_millis: u64, random: [u8; 10]) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (time, chance) = bytes.split_at_mut(6);
    // The first two bytes are zero until the year 10889.
    let [_, _, millis @ ..] = unix_millis.to_be_bytes();
    time.copy_from_slice(&millis);
    chance.copy_from_slice(&random);
    bytes
}

fn write(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use fmt::Write as _;
    let number = u128::from_be_bytes(*bytes);
    for at in (0..LENGTH).rev() {
        let digit = usize::try_from((number >> (at * 5)) & 31).unwrap_or_default();
        f.write_char(char::from(DIGITS.get(digit).copied().unwrap_or(b'0')))?;
    }
    Ok(())
}

/// One way to write each name: no small letters, no look-alikes.
fn read(text: &str) -> Option<[u8; 16]> {
    let digits = text.as_bytes();
    if digits.len() != LENGTH {
        return None;
    }
    let mut number: u128 = 0;
    for (at, digit) in digits.iter().enumerate() {
        let value = DIGITS.iter().position(|one| one == digit)?;
        // 26 digits hold 130 bits: the first has only three.
        if at == 0 && value > 7 {
            return None;
        }
        number = number << 5 | u128::try_from(value).ok()?;
    }
    Some(number.to_be_bytes())
}

const LENGTH: usize = 26;
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_ulid_behind_its_prefix() {
        // The example of the ULID specification: 01ARYZ6S41 is 1469918176385.
        let id = TaskId::new(1_469_918_176_385, [0xff; 10]);
        assert_eq!(id.to_string(), "tsk_01ARYZ6S41ZZZZZZZZZZZZZZZZ");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(TaskId::new(1, [0xff; 10]) < TaskId::new(2, [0; 10]), "sorted by time");
    }

    #[test]
    fn there_is_one_way_to_write_a_name() {
        let max = TaskId::from_bytes([0xff; 16]);
        assert_eq!(max.to_string(), "tsk_7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
        assert_eq!(max.to_string().parse(), Ok(max));
        for bad in [
            "",
            "tsk_",
            "01ARYZ6S41ZZZZZZZZZZZZZZZZ",
            "dlg_01ARYZ6S41ZZZZZZZZZZZZZZZZ",
            "tsk_01aryz6s41zzzzzzzzzzzzzzzz",
            "tsk_01ARYZ6S41ZZZZZZZZZZZZZZZ",
            "tsk_01ARYZ6S41ZZZZZZZZZZZZZZZZZ",
            "tsk_8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "tsk_01ARYZ6S41ZZZZZZZZZZZZZZZU",
            "tsk_01ARYZ6S41ZZZZZZZZZZZZZZZO",
        ] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
    }
}
