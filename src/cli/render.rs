//! What reaches a terminal or a pipe: the only writer of standard output and standard error.
//!
//! Every line goes through [`clean`], so that text from elsewhere (process names, paths, cgroups, hints,
//! an agent's message) cannot move the cursor, hide or reorder what is shown (threat J05). JSON is
//! escaped to the same end by [`Escaping`]. Shapes are documented in `docs/cli.md`.

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::diag::{Shown, is_plain};

/// The two streams of a command. Tests put buffers in their place.
pub(crate) struct Console {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}

impl Console {
    /// Standard output and standard error of this process.
    pub(crate) fn stdio() -> Self {
        Self { out: Box::new(io::stdout()), err: Box::new(io::stderr()) }
    }

    /// Other places to write to.
    #[cfg(test)]
    pub(crate) fn to(out: Box<dyn Write>, err: Box<dyn Write>) -> Self {
        Self { out, err }
    }

    /// One line of the answer. Line breaks inside are escaped like any other control character.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", clean(text))?;
        self.out.flush()
    }

    /// Several lines, each filtered.
    pub(crate) fn lines<S: AsRef<str>>(&mut self, lines: impl IntoIterator<Item = S>) -> io::Result<()> {
        for line in lines {
            writeln!(self.out, "{}", clean(line.as_ref()))?;
        }
        self.out.flush()
    }

    /// Text of our own making (help, a completion script), as it is.
    pub(crate) fn raw(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// The answer as indented JSON.
    pub(crate) fn json<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        self.write_json(value, Escaping { pretty: true, ..Escaping::default() })
    }

    /// One event as one line of JSON.
    pub(crate) fn json_line<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        self.write_json(value, Escaping::default())
    }

    /// A remark for the person, on standard error. There is nobody to tell when that fails.
    pub(crate) fn note(&mut self, text: &str) {
        writeln!(self.err, "mayfly: {}", clean(text)).ok();
        self.err.flush().ok();
    }

    /// Text of our own making on standard error, as it is.
    pub(crate) fn raw_error(&mut self, text: &str) {
        self.err.write_all(text.as_bytes()).ok();
        self.err.flush().ok();
    }

    fn write_json<T: Serialize>(&mut self, value: &T, format: Escaping) -> io::Result<()> {
        let mut bytes = Vec::new();
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, format))?;
        bytes.push(b'\n');
        self.out.write_all(&bytes)?;
        self.out.flush()
    }
}

/// Escapes what could deceive a reader: control characters, bidirectional overrides, invisible and tag
/// characters, line and paragraph separators. The rest passes, whatever the script.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if deceives(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Foreign text for one value or cell: escaped, and cut after 256 characters.
pub(crate) fn cell(text: &str) -> String {
    Shown(text).to_string()
}

/// True for characters that show as nothing, or change how their neighbours show.
fn deceives(c: char) -> bool {
    !is_plain(c.encode_utf8(&mut [0; 4]))
}

/// Rows under headings, columns as wide as their widest cell, two spaces between, no trailing spaces.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.iter().map(|&h| h.to_owned()).collect()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|text| cell(&text)).collect());
    }

    /// Nothing at all when there are only headings.
    pub(crate) fn lines(&self) -> Vec<String> {
        if self.rows.len() == 1 {
            return Vec::new();
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(text, &width)| format!("{text:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// Wall time as `2026-11-22T07:40:00Z`; a time no calendar can hold shows as `never`.
pub(crate) fn stamp(at: SystemTime) -> String {
    let whole = crate::clock::unix_seconds(at);
    stamp_unix(i64::try_from(whole).unwrap_or(i64::MAX))
}

/// Unix seconds as `2026-11-22T07:40:00Z`.
pub(crate) fn stamp_unix(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "never".to_owned())
}

/// How long, in the two largest units that fit: `850ms`, `12s`, `14m50s`, `3h05m`, `6d04h`.
pub(crate) fn span(length: Duration) -> String {
    let s = length.as_secs();
    match s {
        0 => format!("{}ms", length.as_millis()),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// How far `at` (Unix seconds) is from `now`: `in 4m10s` or `12s ago`.
pub(crate) fn relative(at: i64, now: SystemTime) -> String {
    let now = i64::try_from(crate::clock::unix_seconds(now)).unwrap_or(i64::MAX);
    let gap = span(Duration::from_secs(at.abs_diff(now)));
    if at >= now { format!("in {gap}") } else { format!("{gap} ago") }
}

/// Microseconds as milliseconds with three digits: `0.412 ms`.
pub(crate) fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

/// Bytes in the largest binary unit that keeps one digit: `14.2 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or('?');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// `1 lease`, `2 leases`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// JSON whose strings are safe to show: what [`clean`] escapes is escaped as `\uXXXX`.
#[derive(Default)]
struct Escaping {
    pretty: bool,
    depth: usize,
    filled: bool,
}

impl Escaping {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if self.filled {
            self.indent(writer)?;
        }
        self.filled = true;
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        self.indent(writer)
    }

    fn indent<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        if self.pretty {
            writer.write_all(b"\n")?;
            for _ in 0..self.depth {
                writer.write_all(b"  ")?;
            }
        }
        Ok(())
    }
}

impl serde_json::ser::Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| deceives(*c)) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = tail.get(c.len_utf8()..).unwrap_or("");
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _writer: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(if self.pretty { b": " } else { b":" })
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _writer: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::Screen;
    use super::*;

    const HOSTILE: &str = "evil\u{1b}[2J\nallowed\u{202e}gpj.exe\u{200b}\u{e0041}\u{9b}\u{2028}end";

    #[test]
    fn nothing_that_moves_the_cursor_or_reorders_text_reaches_the_terminal() {
        let screen = Screen::default();
        let mut console = screen.console();
        console.line(HOSTILE).expect("write");
        console.note(HOSTILE);
        let want = "evil\\u{1b}[2J\\nallowed\\u{202e}gpj.exe\\u{200b}\\u{e0041}\\u{9b}\\u{2028}end\n";
        assert_eq!(screen.out(), want);
        assert_eq!(screen.err(), format!("mayfly: {want}"));
    }

    #[test]
    fn other_scripts_pass_unchanged() {
        for text in ["größe", "日本語", "עברית", "naïve — ok", r"app\x2dname.slice"] {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn json_strings_are_escaped_and_mean_the_same() {
        let screen = Screen::default();
        let value = json!({ "name": HOSTILE, "list": [1, [], {}, "x"] });
        screen.console().json_line(&value).expect("write");
        let text = screen.out();
        assert!(text.trim_end().chars().all(|c| !deceives(c)), "{text:?}");
        assert!(text.contains("\\u202e") && text.contains("\\udb40\\udc41"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }

    #[test]
    fn pretty_json_reads_like_everybody_elses() {
        let value = json!({ "a": [1, { "b": [] }], "c": {} });
        let screen = Screen::default();
        screen.console().json(&value).expect("write");
        assert_eq!(screen.out(), format!("{}\n", serde_json::to_string_pretty(&value).expect("JSON")));
    }

    #[test]
    fn long_foreign_text_is_cut() {
        let shown = cell(&"x".repeat(4096));
        assert_eq!(shown.chars().count(), 257);
        assert!(shown.ends_with('…'));
    }

    #[test]
    fn tables_line_up_without_trailing_spaces() {
        let mut table = Table::new(["ID", "WHO"]);
        table.row(["1".into(), "zoë".into()]);
        table.row(["23456".into(), String::new()]);
        assert_eq!(table.lines(), ["ID     WHO", "1      zoë", "23456"]);
        assert_eq!(Table::new(["ID", "WHO"]).lines(), [""; 0]);
    }

    #[test]
    fn spans_sizes_and_stamps_read_well() {
        let spans: Vec<String> =
            [0, 59, 890, 11_100, 360_000].map(|s| span(Duration::from_secs(s))).into_iter().collect();
        assert_eq!(spans, ["0ms", "59s", "14m50s", "3h05m", "4d04h"]);
        assert_eq!(size(14_890_000), "14.2 MiB");
        assert_eq!(stamp_unix(1_763_797_200), "2025-11-22T07:40:00Z");
        assert_eq!(stamp_unix(i64::MAX), "never");
        assert_eq!(millis(412), "0.412 ms");
        assert_eq!(hex(&[0x0f, 0xa0]), "0fa0");
    }
}
