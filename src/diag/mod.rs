//! Diagnostics for people: problems with file, line and field, collected so that one edit can fix all.
//!
//! Nothing here stops at the first mistake. Whoever reads a file goes on with what is left and hands the
//! whole list over at the end; a list that is not empty means that nothing of the file is used.

mod duration;
mod lines;
mod nearest;
mod text;
mod toml;
mod values;
mod yaml;

use std::fmt;
use std::sync::Arc;

pub use self::duration::{DurationError, ShownDuration, parse_duration};
pub use self::lines::Lines;
pub use self::nearest::{near_enough, nearest};
pub use self::text::{MAX_SHOWN_CHARS, Shown, is_plain};
pub use self::toml::{Each, Found, MAX_TOML_BYTES, ShowBound, Table, read_text, read_toml};
pub use self::values::{MAX_LINE_BYTES, is_name, line, moment};
pub use self::yaml::{MAX_YAML_BYTES, read_yaml};

/// One mistake and what to do about it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Problem {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// Line, counted from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// Column in characters, counted from 1; 0 when the file as a whole is meant.
    pub column: usize,
    /// The field such as `x509.ttl` or `entries[2].selectors[0]`; empty when no field is meant.
    pub field: String,
    /// What is wrong and what to do next, lower case, no full stop.
    pub message: String,
}

impl Problem {
    /// About a file as a whole: it cannot be read, or is not trusted.
    pub fn whole_file(file: &str, message: impl Into<String>) -> Self {
        Place { file: file.into(), line: 0, column: 0, field: String::new() }.problem(message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", Shown(&self.file))?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", Shown(&self.field))?;
        }
        write!(f, " {}", self.message)
    }
}

/// Where something stands, kept beside its value so that a later check can point at it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// Line, counted from 1; 0 for a value that came from no line.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The field.
    pub field: String,
}

impl Place {
    /// A mistake at this place.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        let Self { file, line, column, field } = self.clone();
        Problem { file, line, column, field, message: message.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Shown(&self.file), self.line)
    }
}

/// Every mistake found, in the order of files and lines. As an error it means: nothing was taken over.
/// Of a file that is wrong all over only [`MAX_PROBLEMS`] are kept, the rest is counted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Problems {
    list: Vec<Problem>,
    more: usize,
}

/// How many problems one report spells out.
pub const MAX_PROBLEMS: usize = 100;

impl Problems {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        if self.is_full() {
            self.more += 1;
        } else {
            self.list.push(problem);
        }
    }

    /// Adds all of another list.
    pub fn append(&mut self, other: Self) {
        self.more += other.more;
        for problem in other.list {
            self.push(problem);
        }
    }

    /// Whether a further one would only be counted.
    pub fn is_full(&self) -> bool {
        self.list.len() >= MAX_PROBLEMS
    }

    /// Keeps only those that `keep` wants.
    pub fn retain(&mut self, keep: impl FnMut(&Problem) -> bool) {
        self.list.retain(keep);
    }

    /// Whether everything was right.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.more == 0
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len() + self.more
    }

    /// Each, sorted by file, line and column once [`Problems::into_result`] was called.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    /// The value if nothing was wrong with it, else every problem in order.
    pub fn into_result<T>(mut self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => {
                self.list.sort();
                Err(self)
            }
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { list: vec![problem], more: 0 }
    }
}

impl<'a> IntoIterator for &'a Problems {
    type IntoIter = std::slice::Iter<'a, Problem>;
    type Item = &'a Problem;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The ```` ```toml ```` blocks of a Markdown page, for tests that hold documentation to the code.
#[cfg(test)]
pub(crate) fn toml_blocks(page: &str) -> impl Iterator<Item = &str> {
    page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_print_one_per_line_in_file_order() {
        let at = |line, column| Place { file: "a.toml".into(), line, column, field: "x.ttl".into() };
        let mut problems = Problems::new();
        problems.push(at(10, 3).problem("is too long, write at most `1h`"));
        problems.push(at(2, 7).problem("is not a duration"));
        problems.push(Problem::whole_file("a.toml", "is empty"));
        let problems = problems.into_result(Some(())).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "a.toml: is empty\na.toml:2:7: x.ttl: is not a duration\n\
             a.toml:10:3: x.ttl: is too long, write at most `1h`"
        );
    }

    #[test]
    fn a_hostile_file_name_stays_on_its_line() {
        let shown = Problem::whole_file("a\n\u{1b}[2Jb", "is empty").to_string();
        assert_eq!(shown, "a\\n\\u{1b}[2Jb: is empty");
    }
}
