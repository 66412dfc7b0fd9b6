//! Text that somebody else wrote, made safe for one line of a terminal or a log.

use std::fmt;

/// Characters of foreign text that are shown; what is longer ends in `…`.
pub const MAX_SHOWN_CHARS: usize = 256;

/// Shows foreign text (names of programs, paths, cgroups, values from files) on one line: control
/// characters, line ends and characters that change the direction or the look of their surroundings come
/// out as `\u{..}`, and nothing is longer than [`MAX_SHOWN_CHARS`] characters of the original.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, character) in self.0.chars().enumerate() {
            if index == MAX_SHOWN_CHARS {
                return f.write_str("…");
            }
            match character {
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                _ if is_treacherous(character) => write!(f, "{}", character.escape_unicode())?,
                _ => write!(f, "{character}")?,
            }
        }
        Ok(())
    }
}

/// Whether the text would be shown as it is, apart from its length.
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(is_treacherous)
}

/// Controls, bidirectional marks and overrides, zero-width and line-separating characters, tags and
/// variation selectors: they show nothing of themselves and change what stands beside them.
fn is_treacherous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_and_direction_tricks_come_out_as_escapes() {
        let shown = Shown("a\u{1b}[31m\u{202e}gpj.exe\u{9b}\u{2066}\r\n\tü").to_string();
        assert_eq!(shown, r"a\u{1b}[31m\u{202e}gpj.exe\u{9b}\u{2066}\r\n\tü");
    }

    #[test]
    fn long_names_are_cut() {
        let shown = Shown(&"é".repeat(4096)).to_string();
        assert_eq!(shown.chars().count(), MAX_SHOWN_CHARS + 1);
        assert!(shown.ends_with("é…"));
    }
}
