//! Tables that know which keys they were asked for.

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::duration::{ShownDuration, parse_duration};
use super::super::nearest::near_enough;
use super::super::{Place, Problem, Problems, Shown, moment};
use super::source::{Source, Syntax};

/// A value and where it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

impl<T: PartialOrd> Found<T> {
    /// The value if it lies in `range`, else a problem that names both ends.
    pub fn within(self, range: &RangeInclusive<T>, problems: &mut Problems) -> Option<T>
    where
        T: ShowBound,
    {
        let (value, problem) = self.bounded(range);
        if let Some(problem) = problem {
            problems.push(problem);
        }
        value
    }

    fn bounded(self, range: &RangeInclusive<T>) -> (Option<T>, Option<Problem>)
    where
        T: ShowBound,
    {
        if range.contains(&self.value) {
            return (Some(self.value), None);
        }
        let (value, low, high) = (self.value.shown(), range.start().shown(), range.end().shown());
        let message = format!("is {value}: write a value from {low} to {high}");
        (None, Some(self.place.problem(message)))
    }
}

/// What [`Table::each_parsed`] found: an empty place for each value that is wrong and has been reported, and
/// nothing at all when the key is not there.
#[derive(Clone, Debug)]
pub struct Each<T>(pub Option<Found<Vec<Option<Found<T>>>>>);

impl<T> Each<T> {
    /// Those that were right.
    pub fn values(self) -> impl Iterator<Item = T> {
        self.found().map(|found| found.value)
    }

    /// Those that were right, and where they stand.
    pub fn found(self) -> impl Iterator<Item = Found<T>> {
        self.0.into_iter().flat_map(|found| found.value).flatten()
    }

    /// Whether the key is there.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// How a bound is written in a message: as it would be written in the file.
pub trait ShowBound {
    /// The text.
    fn shown(&self) -> String;
}

impl ShowBound for Duration {
    fn shown(&self) -> String {
        format!("\"{}\"", ShownDuration(*self))
    }
}

impl ShowBound for i64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

/// One table of a file. Ask it for every key that it may hold, whether the answer matters or not: those it
/// was not asked for are reported as unknown.
pub struct Table<'d> {
    source: &'d Source<'d>,
    table: &'d DeTable<'d>,
    place: Place,
    asked: Vec<&'static str>,
    /// Some of the file could not be read: what seems to be missing may be there.
    damaged: bool,
}

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<'d> Table<'d> {
    pub(in crate::diag) fn root(source: &'d Source<'d>, table: &'d DeTable<'d>, damaged: bool) -> Self {
        let place = Place { line: 0, ..source.place(0, "") };
        Self { source, table, place, asked: Vec::new(), damaged }
    }

    /// Where the table starts.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Records a mistake at `place`.
    pub fn problem(&self, place: &Place, message: impl Into<String>) {
        self.source.add(place.problem(message));
    }

    /// Whether the key is there, right or wrong.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Records that a key must be there and is not; `advice` says what to write.
    pub fn require(&self, key: &str, advice: &str) {
        if !self.has(key) && !self.damaged {
            let place = Place { field: join(&self.place.field, key), ..self.place.clone() };
            self.problem(&place, format!("is missing: {advice}"));
        }
    }

    /// A string.
    pub fn text(&mut self, key: &'static str) -> Option<Found<String>> {
        let (value, place) = self.ask(key)?;
        self.as_text(value, place)
    }

    /// A string, or a date or time written without quotes.
    pub fn text_or_date(&mut self, key: &'static str) -> Option<Found<String>> {
        let (value, place) = self.ask(key)?;
        match value.as_datetime() {
            Some(date) => Some(Found { value: date.to_string(), place }),
            None => self.as_text(value, place),
        }
    }

    /// A string that `parse` turns into something better. Its error goes on from the quoted text: `is not …`.
    pub fn parsed<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Found<T>> {
        let Found { value, place } = self.text(key)?;
        match parse(&value) {
            Ok(value) => Some(Found { value, place }),
            Err(error) => {
                self.problem(&place, format!("`{}` {error}", Shown(&value)));
                None
            }
        }
    }

    /// A duration such as `"15m"`.
    pub fn duration(&mut self, key: &'static str) -> Option<Found<Duration>> {
        self.parsed(key, parse_duration)
    }

    /// An absolute path.
    pub fn path(&mut self, key: &'static str) -> Option<Found<PathBuf>> {
        self.parsed(key, |text| {
            let path = PathBuf::from(text);
            let usable = path.is_absolute() && !text.contains('\0');
            if usable { Ok(path) } else { Err("is not an absolute path: start it with `/`") }
        })
    }

    /// One of several words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<Found<T>> {
        self.parsed(key, |text| {
            let chosen = choices.iter().find(|choice| choice.0 == text);
            chosen.map(|choice| choice.1).ok_or_else(|| {
                let all = choices.iter().map(|choice| format!("\"{}\"", choice.0)).collect::<Vec<_>>();
                format!("is none of {}: write one of them", all.join(", "))
            })
        })
    }

    /// An integer.
    pub fn integer(&mut self, key: &'static str) -> Option<Found<i64>> {
        let (value, place) = self.ask(key)?;
        let Some(integer) = value.as_integer() else { return self.wrong_type(value, &place, "an integer") };
        let Ok(value) = i64::from_str_radix(integer.as_str(), integer.radix()) else {
            self.problem(&place, "is an integer of more than 64 bits: write a smaller one");
            return None;
        };
        Some(Found { value, place })
    }

    /// A value that was asked for here, if it lies in `range`.
    pub fn within<T: PartialOrd + ShowBound>(&self, found: Found<T>, range: &RangeInclusive<T>) -> Option<T> {
        let (value, problem) = found.bounded(range);
        if let Some(problem) = problem {
            self.source.add(problem);
        }
        value
    }

    /// A boolean.
    pub fn boolean(&mut self, key: &'static str) -> Option<Found<bool>> {
        let (value, place) = self.ask(key)?;
        match value.as_bool() {
            Some(value) => Some(Found { value, place }),
            None => self.wrong_type(value, &place, "`true` or `false`"),
        }
    }

    /// An array of strings; `None` stands for one that is something else, which has been reported.
    pub fn texts(&mut self, key: &'static str) -> Option<Found<Vec<Option<Found<String>>>>> {
        let (value, place) = self.ask(key)?;
        let Some(array) = value.as_array() else {
            return self.wrong_type(value, &place, "an array of strings");
        };
        let each = array.iter().enumerate().map(|(index, item)| {
            let place = self.source.place(item.span().start, &format!("{}[{index}]", place.field));
            self.as_text(item.get_ref(), place)
        });
        let value = each.collect();
        Some(Found { value, place })
    }

    /// An array of strings, each of which `parse` turns into something better, as [`Table::parsed`] does.
    pub fn each_parsed<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Each<T> {
        let Some(Found { value, place }) = self.texts(key) else { return Each(None) };
        let mut parsed = Vec::with_capacity(value.len());
        for found in value {
            parsed.push(found.and_then(|Found { value, place }| match parse(&value) {
                Ok(value) => Some(Found { value, place }),
                Err(error) => {
                    self.problem(&place, format!("`{}` {error}", Shown(&value)));
                    None
                }
            }));
        }
        Each(Some(Found { value: parsed, place }))
    }

    /// A moment in time, as a string or as TOML's own date.
    pub fn moment(&mut self, key: &'static str) -> Option<Found<SystemTime>> {
        let Found { value, place } = self.text_or_date(key)?;
        match moment(&value) {
            Ok(value) => Some(Found { value, place }),
            Err(message) => {
                self.problem(&place, message);
                None
            }
        }
    }

    /// A table within this one; `body` also runs, on an empty one, when it is not there.
    pub fn section<T>(&mut self, key: &'static str, body: impl FnOnce(&mut Table<'_>) -> T) -> T {
        let empty = DeTable::new();
        let (table, place) = match self.ask(key) {
            Some((value, place)) => match value.as_table() {
                Some(table) => (table, place),
                None => {
                    self.wrong_type::<()>(value, &place, &self.table_words(&format!("[{}]", place.field)));
                    (&empty, place)
                }
            },
            None => (&empty, Place { field: join(&self.place.field, key), ..self.place.clone() }),
        };
        let mut inner = Table { source: self.source, table, place, asked: Vec::new(), damaged: self.damaged };
        let value = body(&mut inner);
        inner.finish();
        value
    }

    /// An array of tables; `body` runs on each. `None` when the key is not there or is something else.
    pub fn tables<T>(&mut self, key: &'static str, body: impl Fn(&mut Table<'_>) -> T) -> Option<Vec<T>> {
        let (value, place) = self.ask(key)?;
        let Some(array) = value.as_array() else {
            let wanted = match self.source.syntax_is {
                Syntax::Toml => format!("an array of tables: `[[{key}]]`"),
                Syntax::Yaml => "a list, each item with its own keys".to_owned(),
            };
            return self.wrong_type(value, &place, &wanted);
        };
        let mut values = Vec::with_capacity(array.len());
        for (index, item) in array.iter().enumerate() {
            let place = self.source.place(item.span().start, &format!("{}[{index}]", place.field));
            let Some(table) = item.get_ref().as_table() else {
                self.wrong_type::<()>(item.get_ref(), &place, &self.table_words(&format!("[[{key}]]")));
                continue;
            };
            let asked = Vec::new();
            let mut inner = Table { source: self.source, table, place, asked, damaged: self.damaged };
            values.push(body(&mut inner));
            inner.finish();
        }
        Some(values)
    }

    /// Reports every key that was not asked for.
    pub(in crate::diag) fn finish(self) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if self.asked.contains(&name) || self.source.is_full() {
                continue;
            }
            let Range { start, .. } = key.span();
            let place = self.source.place(start, &join(&self.place.field, name));
            let message = match near_enough(name, self.asked.iter().copied()) {
                Some(known) => format!("is not a known key: did you mean `{known}`?"),
                None => format!("is not a known key: remove it, or use one of {}", self.asked.join(", ")),
            };
            self.problem(&place, message);
        }
    }

    fn ask(&mut self, key: &'static str) -> Option<(&'d DeValue<'d>, Place)> {
        self.asked.push(key);
        let value: &Spanned<DeValue<'d>> = self.table.get(key)?;
        // The parser's stand-in for a value it could not read, which it has reported.
        if self.damaged && value.span().is_empty() {
            return None;
        }
        let place = self.source.place(value.span().start, &join(&self.place.field, key));
        Some((value.get_ref(), place))
    }

    fn as_text(&self, value: &DeValue<'_>, place: Place) -> Option<Found<String>> {
        match value.as_str() {
            Some(text) => Some(Found { value: text.to_owned(), place }),
            None => self.wrong_type(value, &place, "a string in quotes"),
        }
    }

    fn table_words(&self, head: &str) -> String {
        match self.source.syntax_is {
            Syntax::Toml => format!("a table: `{head}`"),
            Syntax::Yaml => "keys and values".to_owned(),
        }
    }

    fn wrong_type<T>(&self, value: &DeValue<'_>, place: &Place, wanted: &str) -> Option<T> {
        let kind = value.type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        self.problem(place, format!("is {article} {kind}: write {wanted}"));
        None
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}
