//! Cuts a file into its policies, so that each has a place and a mistake in one says nothing about the rest.

use std::ops::Range;

/// The byte range of each policy, its annotations and its semicolon included. What stands after the last semicolon, if
/// it is more than space and comments, is the last one.
pub(super) fn statements(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = None;
    for (at, piece) in Pieces::new(text) {
        match piece {
            Piece::Space => {}
            Piece::Semicolon => found.push(start.take().unwrap_or(at)..at + 1),
            Piece::Text => drop(start.get_or_insert(at)),
        }
    }
    found.extend(start.map(|start| start..text.len()));
    found
}

/// What is in the way of parsing a policy: one that is nested so deeply, or so long a chain, that reading it would take
/// more stack than there is. Cedar bounds its evaluation itself, and not all of its reading.
pub(super) fn excess(policy: &str) -> Option<&'static str> {
    let (mut depth, mut operators, mut word) = (0_usize, 0_usize, String::new());
    let mut ifs = 0;
    for (at, piece) in Pieces::new(policy) {
        let Some(c) = policy.get(at..).and_then(|rest| rest.chars().next()) else { continue };
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        ifs += usize::from(word == "if");
        word.clear();
        match c {
            _ if piece != Piece::Text => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '!' | '-' | '+' | '*' | '.' | '&' | '|' | '<' | '>' | '=' => operators += 1,
            _ => {}
        }
        if depth > MAX_DEPTH || ifs > MAX_DEPTH {
            return Some("is nested deeper than 32: split it");
        }
        if operators > MAX_OPERATORS {
            return Some("has more than 400 operators: split it, or list values in a set");
        }
    }
    None
}

const MAX_DEPTH: usize = 32;
const MAX_OPERATORS: usize = 400;

/// What a lexer must know of Cedar to find the ends of policies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Piece {
    /// White space or a comment.
    Space,
    /// The end of a policy.
    Semicolon,
    /// Anything else: a string as a whole, or one character.
    Text,
}

/// Each piece and where it starts.
pub(super) struct Pieces<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Pieces<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// Length of the string that starts here, quotes included; to the end where it is not closed.
    fn string(rest: &str) -> usize {
        let mut escaped = false;
        for (at, byte) in rest.bytes().enumerate().skip(1) {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => return at + 1,
                _ => {}
            }
        }
        rest.len()
    }
}

impl Iterator for Pieces<'_> {
    type Item = (usize, Piece);

    fn next(&mut self) -> Option<(usize, Piece)> {
        let rest = self.text.get(self.at..)?;
        let first = rest.chars().next()?;
        let (length, piece) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), Piece::Space)
        } else if first == '"' {
            (Self::string(rest), Piece::Text)
        } else if first == ';' {
            (1, Piece::Semicolon)
        } else if first.is_whitespace() {
            (first.len_utf8(), Piece::Space)
        } else {
            (first.len_utf8(), Piece::Text)
        };
        let at = self.at;
        self.at += length;
        Some((at, piece))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        statements(text).into_iter().map(|range| text.get(range).unwrap()).collect()
    }

    #[test]
    fn a_semicolon_in_a_string_or_a_comment_ends_nothing() {
        assert_eq!(cut("a; b;"), ["a;", "b;"]);
        assert_eq!(cut("// x; y\n @id(\"a;\\\";b\") permit;// ;\n"), ["@id(\"a;\\\";b\") permit;"]);
        assert_eq!(cut("a;\n b"), ["a;", "b"], "the rest is one too, and wrong");
        assert_eq!(cut(" // nothing"), Vec::<&str>::new());
        assert_eq!(cut(";;"), [";", ";"]);
        assert_eq!(cut("a \"open; b;"), ["a \"open; b;"]);
        assert_eq!(cut("a /\n/ b;"), ["a /\n/ b;"], "two slashes on two lines are no comment");
    }

    proptest! {
        #[test]
        fn nothing_but_space_and_comments_is_lost(text in r#"([;"/\\ab\n é]|// c;){0,40}"#) {
            let ranges = statements(&text);
            let mut end = 0;
            for range in ranges {
                prop_assert!(range.start >= end && range.end > range.start);
                let between = text.get(end..range.start).unwrap();
                prop_assert!(Pieces::new(between).all(|(_, piece)| piece == Piece::Space), "{between:?}");
                end = range.end;
            }
            let rest = text.get(end..).unwrap();
            prop_assert!(Pieces::new(rest).all(|(_, piece)| piece == Piece::Space), "{rest:?}");
        }
    }
}
