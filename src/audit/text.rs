//! Text that anybody may have chosen, on its way into a log line or a terminal.

use std::fmt::Write as _;
use std::io;

use serde_json::ser::Formatter;

/// Cuts `text` to 256 characters, the last of them `…` if something is missing.
pub(super) fn capped(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        None => text.to_owned(),
        Some(_) => text.chars().take(MAX_CHARS - 1).chain(['…']).collect(),
    }
}

/// Makes `text` fit to be shown on a terminal: one line, in the order in which it is stored.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Compact JSON in which no control, invisible or direction-changing character stands for itself: what is
/// read back is what was written, yet no line can break, hide or reverse anything when it is printed.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlainJson;

impl Formatter for PlainJson {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_hidden(*c)) {
            let (before, after) = rest.split_at(at);
            out.write_all(before.as_bytes())?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = after.strip_prefix(c).unwrap_or_default();
        }
        out.write_all(rest.as_bytes())
    }
}

/// Lower-case hex of a digest.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a `String` cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// Control characters, and those that are invisible or change the direction of what follows.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

const MAX_CHARS: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize as _;

    use super::*;

    fn json(text: &str) -> String {
        let mut out = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PlainJson)).unwrap();
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left_and_nothing_is_lost(text in "(.|[\\p{C}\u{202e}\n\"\\\\]){0,40}") {
            let line = json(&text);
            prop_assert!(!line.chars().any(is_hidden), "{line}");
            prop_assert!(!visible(&text).chars().any(is_hidden));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }

        #[test]
        fn never_more_than_256_characters(text in "(é|a|\u{1f600}){0,600}") {
            prop_assert!(capped(&text).chars().count() <= 256);
            prop_assert!(text.chars().count() > 256 || capped(&text) == text);
        }
    }

    #[test]
    fn the_classic_tricks_show() {
        assert_eq!(json("a\u{202e}b\n\u{7f}\u{e0041}"), r#""a\u202eb\n\u007f\udb40\udc41""#);
        assert_eq!(visible("a\u{202e}b\u{1b}[2J"), r"a\u{202e}b\u{1b}[2J");
    }
}
