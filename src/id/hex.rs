//! Lower-case hexadecimal, the one form in which identifiers are shown and read.

use std::fmt::Write as _;

/// The text is not lower-case hex of the expected length.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected {expected} lower-case hex digits")]
pub struct HexError {
    /// How many digits were expected.
    pub expected: usize,
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a `String` cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

pub(crate) fn decode<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let wrong = HexError { expected: N * 2 };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(wrong);
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            value = value << 4
                | match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return Err(wrong),
                };
        }
        *byte = value;
    }
    Ok(out)
}
