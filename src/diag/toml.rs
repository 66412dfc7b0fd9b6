//! Reading TOML so that every mistake is told at once: syntax, unknown keys, wrong types.
//!
//! A [`Table`] is asked for the keys it may hold; whatever it holds besides is an unknown key. Each answer
//! carries its [`Place`], so that later checks can point at the line too.

pub(super) mod reader;
pub(super) mod source;

pub use self::reader::{Each, Found, ShowBound, Table};
use self::source::{Source, Syntax};
use super::{Lines, Problem, Problems};

/// Largest TOML file that is read, in bytes.
pub const MAX_TOML_BYTES: u64 = 1 << 20;

/// Parses a whole file and hands its top table to `body`. Everything that is wrong goes to `problems`;
/// `body` runs on what is left after syntax errors, so that its findings stand in the same report. `None`
/// when nothing could be read at all. `file` is the name to show.
pub fn read_toml<T>(
    file: &str,
    bytes: &[u8],
    problems: &mut Problems,
    body: impl FnOnce(&mut Table<'_>) -> T,
) -> Option<T> {
    let text = read_text(file, bytes, MAX_TOML_BYTES, problems)?;
    let source = Source::new(file, text, Syntax::Toml);
    let (root, errors) = toml::de::DeTable::parse_recoverable(text);
    let mut table = Table::root(&source, root.get_ref(), !errors.is_empty());
    let value = body(&mut table);
    table.finish();
    for error in &errors {
        let at = error.span().map_or(text.len(), |span| span.start);
        source.syntax_error(at, error.message());
    }
    problems.append(source.into_problems());
    Some(value)
}

/// The text of a file of at most `max` bytes; what is in the way goes to `problems`.
pub fn read_text<'t>(file: &str, bytes: &'t [u8], max: u64, problems: &mut Problems) -> Option<&'t str> {
    if u64::try_from(bytes.len()).map_or(true, |len| len > max) {
        let message = format!("is larger than {max} bytes: make it smaller or split it");
        problems.push(Problem::whole_file(file, message));
        return None;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let lines = Lines::new(file, std::str::from_utf8(good).unwrap_or_default());
            let place = lines.place(good.len(), "");
            problems.push(place.problem("is not UTF-8 text from here on: save the file as UTF-8"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body that uses every kind of question.
    fn body(table: &mut Table<'_>) {
        table.require("name", "write `name = \"…\"`");
        table.text("name");
        table.boolean("flag");
        table.integer("count");
        table.choice("mode", &[("one", 1), ("two", 2)]);
        table.path("path");
        table.text_or_date("until");
        table.section("part", |part| {
            part.duration("ttl");
            part.duration("grace");
        });
        table.tables("items", |item| item.texts("names"));
    }

    fn report(text: &[u8]) -> Vec<String> {
        let mut problems = Problems::new();
        read_toml("f.toml", text, &mut problems, body);
        let problems = problems.into_result::<()>(None).unwrap_err();
        problems.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_mistake_is_in_one_report() {
        let text = r#"
nmae = "x"
flag = "yes"
count = 99999999999999999999
mode = "three"
path = "relative"
until = 2026-12-31
strange = 1

[part]
ttl = "15x"
  tll = 3
grace = 10

[[items]]
names = ["a", 2, "c", false]
other = 1
[[items]]
names = "a"
"#;
        assert_eq!(
            report(text.as_bytes()),
            [
                "f.toml: name: is missing: write `name = \"…\"`",
                "f.toml:2:1: nmae: is not a known key: did you mean `name`?",
                "f.toml:3:8: flag: is a string: write `true` or `false`",
                "f.toml:4:9: count: is an integer of more than 64 bits: write a smaller one",
                "f.toml:5:8: mode: `three` is none of \"one\", \"two\": write one of them",
                "f.toml:6:8: path: `relative` is not an absolute path: start it with `/`",
                "f.toml:8:1: strange: is not a known key: remove it, or use one of name, flag, count, mode, \
                 path, until, part, items",
                "f.toml:11:7: part.ttl: `15x` is not a duration: write a number and a unit (ms, s, m, h, d), \
                 such as \"15m\" or \"1h30m\"",
                "f.toml:12:3: part.tll: is not a known key: did you mean `ttl`?",
                "f.toml:13:9: part.grace: is an integer: write a string in quotes",
                "f.toml:16:15: items[0].names[1]: is an integer: write a string in quotes",
                "f.toml:16:23: items[0].names[3]: is a boolean: write a string in quotes",
                "f.toml:17:1: items[0].other: is not a known key: remove it, or use one of names",
                "f.toml:19:9: items[1].names: is a string: write an array of strings",
            ]
        );
    }

    #[test]
    fn syntax_errors_and_duplicates_come_with_the_rest() {
        let found = report(b"name = \"a\"\nname = \"b\"\nflag = tru\n[part]\nttl = 7\ngrace = = 3\n");
        let lines = found.iter().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>();
        assert_eq!(lines, ["f.toml:2:1:", "f.toml:3:8:", "f.toml:5:7:", "f.toml:6:9:"], "{found:#?}");
        assert!(found[0].contains("duplicate key"), "{found:#?}");
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(
            report("mode = \"ü\" # é\nname = \"ö\" \"\"".as_bytes())[1].split(' ').next(),
            Some("f.toml:2:12:")
        );
    }

    #[test]
    fn what_is_not_text_is_said_where_it_starts() {
        let found = report(b"name = \"a\"\nmode = \"\xff\"");
        assert_eq!(found, ["f.toml:2:9: is not UTF-8 text from here on: save the file as UTF-8"]);
    }

    #[test]
    fn hostile_files_cost_neither_the_stack_nor_the_day() {
        let mebibyte = 1 << 20;
        let deep_key = ["a."].repeat(mebibyte / 2 - 4).concat() + "a=1";
        assert!(report(deep_key.as_bytes())[0].contains("recursion limit"));
        assert!(report("[".repeat(mebibyte).as_bytes()).len() < 200);
        assert!(report(("x=".to_owned() + &"[".repeat(mebibyte - 2)).as_bytes()).len() < 200);
        assert!(report(("x=".to_owned() + &"{a=".repeat(mebibyte / 3 - 2)).as_bytes()).len() < 200);
        let keys = (0..120_000).map(|n| format!("k{n}=1\n")).collect::<String>();
        let keys = report(keys.get(..mebibyte).unwrap().as_bytes());
        assert_eq!(keys.len(), super::super::MAX_PROBLEMS + 1);
        let deepest_line = ["a."].repeat(78).concat() + "a={\n";
        let deepest = deepest_line.repeat(mebibyte / deepest_line.len());
        assert!(!report(deepest.as_bytes()).is_empty());
        assert!(
            !report(("x={\n".to_owned() + &deepest_line.repeat(70) + "b=1" + &"}".repeat(71)).as_bytes())
                .is_empty()
        );
        assert!(report(&vec![b' '; mebibyte + 1])[0].contains("larger than 1048576 bytes"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_toml("f", &bytes, &mut Problems::new(), body);
        }

        #[test]
        fn no_toml_like_text_makes_the_reader_panic(text in r#"((name|flag|count|mode|part|items|ttl|until|a)|[\[\]{}=.,"'\n #:T0-9-]){0,60}"#) {
            read_toml("f", text.as_bytes(), &mut Problems::new(), body);
        }
    }
}
