//! Foreign bytes as selector text: one text for each byte string, and nothing in it that a terminal obeys.
//!
//! Percent-encoded as `%XX`: `%` itself, bytes that are not UTF-8, control characters (C0, DEL, C1), and the
//! invisible or text-turning characters U+061C, U+200B–200F, U+2028–202E, U+2060–206F, U+FEFF. Everything else is
//! left alone, blanks and colons included. An entry must write its value the same way.

use std::fmt::Write;

/// The text of `bytes`. Different bytes never give the same text.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '%' || c.is_control() || is_invisible(c) {
                let mut buffer = [0; 4];
                encode(&mut out, c.encode_utf8(&mut buffer).as_bytes());
            } else {
                out.push(c);
            }
        }
        encode(&mut out, chunk.invalid());
    }
    out
}

fn encode(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String cannot fail.
        write!(out, "%{byte:02X}").unwrap_or_default();
    }
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap_or_default();
        out
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_paths_are_themselves() {
        for path in ["/usr/bin/env", "/srv/a b:c (deleted)", "/opt/größe/λ"] {
            assert_eq!(of_bytes(path.as_bytes()), path);
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_encoded() {
        assert_eq!(of_bytes(b"/x\x1b[31m\n\r\x7f"), "/x%1B[31m%0A%0D%7F");
        assert_eq!(of_bytes("/a\u{202e}b\u{9b}".as_bytes()), "/a%E2%80%AEb%C2%9B");
        assert_eq!(of_bytes(b"/100%\xff"), "/100%25%FF");
    }

    proptest! {
        #[test]
        fn encoding_can_be_undone(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let text = of_bytes(&bytes);
            let (mut back, mut rest) = (Vec::new(), text.as_bytes());
            while let Some((first, more)) = rest.split_first() {
                if *first == b'%' {
                    back.push(u8::from_str_radix(std::str::from_utf8(&more[..2]).unwrap(), 16).unwrap());
                    rest = &more[2..];
                } else {
                    back.push(*first);
                    rest = more;
                }
            }
            prop_assert_eq!(back, bytes);
            prop_assert!(!text.chars().any(char::is_control));
        }
    }
}
