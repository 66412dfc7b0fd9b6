//! Reading YAML the way TOML is read: the same tables, the same questions, the same report.
//!
//! Only what both languages have is read: mappings with plain keys, lists, strings, whole numbers, booleans. Anchors,
//! aliases and tags are refused, so that nothing grows by being named twice.

use std::borrow::Cow;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::toml::source::{Source, Syntax};
use super::{Problems, Table, read_text};

/// Largest YAML file that is read, in bytes.
pub const MAX_YAML_BYTES: u64 = 1 << 18;

/// As [`super::read_toml`], of a YAML file with one document, which is a mapping.
pub fn read_yaml<T>(
    file: &str,
    bytes: &[u8],
    problems: &mut Problems,
    body: impl FnOnce(&mut Table<'_>) -> T,
) -> Option<T> {
    let text = read_text(file, bytes, MAX_YAML_BYTES, problems)?;
    let source = Source::new(file, text, Syntax::Yaml);
    let (root, error) = match Reader::new(&source, text).document() {
        Ok(root) => (root, None),
        Err(error) => (DeTable::new(), Some(error)),
    };
    let mut table = Table::root(&source, &root, error.is_some());
    let value = body(&mut table);
    table.finish();
    if let Some((at, message)) = error {
        source.syntax_error(at, &message);
    }
    problems.append(source.into_problems());
    Some(value)
}

/// Byte offset, and what is wrong there.
type Wrong = (usize, String);

struct Reader<'s, 't> {
    source: &'s Source<'t>,
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    text: &'t str,
}

impl<'s, 't> Reader<'s, 't> {
    fn new(source: &'s Source<'t>, text: &'t str) -> Self {
        Self { source, parser: Parser::new_from_str(text), text }
    }

    /// The next event that means something, and where it starts.
    fn next(&mut self) -> Result<(Event<'t>, usize), Wrong> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, self.at(span))),
            Some(Err(error)) => {
                let mark = error.marker();
                Err((self.source.offset(mark.line(), mark.col()), error.info().to_owned()))
            }
            None => Err((self.text.len(), "ends too early".to_owned())),
        }
    }

    fn at(&self, span: Span) -> usize {
        self.source.offset(span.start.line(), span.start.col())
    }

    fn document(&mut self) -> Result<DeTable<'t>, Wrong> {
        let mut root = None;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                Event::StreamEnd => return Ok(root.unwrap_or_default()),
                _ if root.is_some() => return Err((at, "has a second document: write one".to_owned())),
                event => match self.value(event, at, 0)? {
                    DeValue::Table(table) => root = Some(table),
                    _ => return Err((at, "is not a mapping: write `key: value`".to_owned())),
                },
            }
        }
    }

    fn value(&mut self, event: Event<'t>, at: usize, depth: usize) -> Result<DeValue<'t>, Wrong> {
        if depth > MAX_DEPTH {
            return Err((at, format!("is nested deeper than {MAX_DEPTH}")));
        }
        match event {
            Event::Scalar(text, style, 0, None) => {
                // Plain text stands in the file as it is.
                let plain = self.text.get(at..at + text.len()).filter(|plain| *plain == text);
                scalar(text, plain.filter(|_| style == ScalarStyle::Plain)).map_err(|m| (at, m.to_owned()))
            }
            Event::SequenceStart(0, None) => self.list(depth),
            Event::MappingStart(0, None) => self.mapping(depth),
            _ => Err((at, "uses an anchor, an alias or a tag, which are not read here".to_owned())),
        }
    }

    fn list(&mut self, depth: usize) -> Result<DeValue<'t>, Wrong> {
        let mut list = DeArray::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(DeValue::Array(list)),
                (event, at) => list.push(Spanned::new(one(at), self.value(event, at, depth + 1)?)),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<DeValue<'t>, Wrong> {
        let mut table = DeTable::new();
        loop {
            let (key, at) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(DeValue::Table(table)),
                (Event::Scalar(text, _, 0, None), at) => (text.into_owned(), at),
                (_, at) => return Err((at, "is no key: write a plain word".to_owned())),
            };
            if table.contains_key(key.as_str()) {
                return Err((at, "duplicate key".to_owned()));
            }
            let (event, value_at) = self.next()?;
            let value = self.value(event, value_at, depth + 1)?;
            table.insert(Spanned::new(one(at), Cow::Owned(key)), Spanned::new(one(value_at), value));
        }
    }
}

/// A span that is not empty: an empty one stands for what could not be read.
fn one(at: usize) -> Range<usize> {
    at..at + 1
}

/// Quoted text is text; plain text may be a number or a boolean.
fn scalar<'t>(text: Cow<'t, str>, plain: Option<&'t str>) -> Result<DeValue<'t>, &'static str> {
    match plain {
        None => Ok(DeValue::String(text)),
        Some("true") => Ok(DeValue::Boolean(true)),
        Some("false") => Ok(DeValue::Boolean(false)),
        Some("" | "~" | "null") => Err("has no value: write one, or remove the key"),
        Some(plain) if is_integer(plain) => {
            DeValue::parse(plain).map(Spanned::into_inner).map_err(|_not_a_number| "is no number")
        }
        Some(_) => Ok(DeValue::String(text)),
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits == "0"
        || (!digits.is_empty() && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()))
}

const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(table: &mut Table<'_>) -> (Option<String>, Option<i64>, Option<bool>, Vec<Vec<String>>) {
        let name = table.text("name").map(|found| found.value);
        let count = table.integer("count").map(|found| found.value);
        let flag = table.boolean("flag").map(|found| found.value);
        let items = table.tables("items", |item| item.each_parsed("names", line_of).values().collect());
        (name, count, flag, items.unwrap_or_default())
    }

    fn line_of(text: &str) -> Result<String, &'static str> {
        Ok(text.to_owned())
    }

    fn report(text: &str) -> Vec<String> {
        let mut problems = Problems::new();
        read_yaml("f.yaml", text.as_bytes(), &mut problems, body);
        let problems = problems.into_result::<()>(None).unwrap_err();
        problems.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_both_languages_have_is_read() {
        let text = "# comment\nname: \"12\"\ncount: -12\nflag: true\nitems:\n  - names: [a, 'b c']\n  - {names: [https://x]}\n";
        let mut problems = Problems::new();
        let read = read_yaml("f.yaml", text.as_bytes(), &mut problems, body).unwrap();
        assert!(problems.is_empty(), "{problems}");
        let items = vec![vec!["a".to_owned(), "b c".to_owned()], vec!["https://x".to_owned()]];
        assert_eq!(read, (Some("12".to_owned()), Some(-12), Some(true), items));
    }

    #[test]
    fn every_mistake_is_in_one_report_with_its_place() {
        let text = "nmae: x\ncount: twelve\nflag: yes\nitems:\n  - names: a\n  - names: [1]\n    ü: 1\n";
        let expected = [
            "f.yaml:1:1: nmae: is not a known key: did you mean `name`?",
            "f.yaml:2:8: count: is a string: write an integer",
            "f.yaml:3:7: flag: is a string: write `true` or `false`",
            "f.yaml:5:12: items[0].names: is a string: write an array of strings",
            "f.yaml:6:13: items[1].names[0]: is an integer: write a string in quotes",
            "f.yaml:7:5: items[1].ü: is not a known key: remove it, or use one of names",
        ];
        assert_eq!(report(text), expected);
        assert_eq!(
            report("items: a\n"),
            ["f.yaml:1:8: items: is a string: write a list, each item with its own keys"]
        );
    }

    #[test]
    fn what_is_not_read_is_said_where_it_stands() {
        for (text, message) in [
            ("name: &a x\n", "f.yaml:1:7: is not valid YAML: uses an anchor"),
            ("name: x\nflag: *a\n", "f.yaml:2:7: is not valid YAML"),
            ("name: !!int x\n", "f.yaml:1:7: is not valid YAML: uses an anchor"),
            ("name: x\nname: y\n", "f.yaml:2:1: is not valid YAML: duplicate key"),
            ("name: x\n---\nname: y\n", "is not valid YAML: has a second document"),
            ("- a\n", "f.yaml:1:1: is not valid YAML: is not a mapping"),
            ("name:\n", "is not valid YAML: has no value"),
            ("? [a]\n: b\n", "is not valid YAML: is no key"),
            ("name: [a\n", "is not valid YAML"),
        ] {
            let found = report(text);
            assert!(found[0].contains(message), "{text:?} {found:?}");
        }
        let deep = format!("name: {}{}", "[".repeat(100), "]".repeat(100));
        assert!(report(&deep)[0].contains("nested deeper"), "{:?}", report(&deep));
        assert!(report(&" ".repeat(1 << 19))[0].contains("larger than"));
    }

    proptest! {
        #[test]
        fn no_yaml_like_text_makes_the_reader_panic(text in r#"((name|flag|count|items|names|ü)|[\[\]{}:,&*!|>"'?~-]|\n  |[ \n#]|- |: |1){0,60}"#) {
            read_yaml("f", text.as_bytes(), &mut Problems::new(), body);
        }
    }
}
