//! A file's text with its lines, and what was found wrong in it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::{Place, Problem, Problems, Shown};

pub(super) struct Source<'t> {
    file: Arc<str>,
    text: &'t str,
    /// Byte offset at which each line starts.
    starts: Vec<usize>,
    syntax: RefCell<(Problems, BTreeSet<usize>)>,
    meaning: RefCell<Problems>,
}

impl<'t> Source<'t> {
    pub(super) fn new(file: &str, text: &'t str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(ends).collect();
        Self { file: file.into(), text, starts, syntax: RefCell::default(), meaning: RefCell::default() }
    }

    pub(super) fn place(&self, offset: usize, field: &str) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = self.text.get(start..offset).map_or(0, |text| text.chars().count());
        Place { file: Arc::clone(&self.file), line, column: before + 1, field: field.to_owned() }
    }

    /// The first of each line is told; those after it are mostly its consequences.
    pub(super) fn syntax_error(&self, offset: usize, message: &str) {
        let place = self.place(offset, "");
        let (problems, lines) = &mut *self.syntax.borrow_mut();
        if lines.insert(place.line) {
            let message = Shown(message);
            problems.push(place.problem(format!("is not valid TOML: {message}")));
        }
    }

    pub(super) fn add(&self, problem: Problem) {
        self.meaning.borrow_mut().push(problem);
    }

    /// Whether there are so many already that nobody looks for a further one.
    pub(super) fn is_full(&self) -> bool {
        self.meaning.borrow().is_full()
    }

    /// All of them, but of a line with a syntax error only that: the rest of it is guesswork.
    pub(super) fn into_problems(self) -> Problems {
        let (mut problems, lines) = self.syntax.into_inner();
        let mut meaning = self.meaning.into_inner();
        meaning.retain(|problem| !lines.contains(&problem.line));
        problems.append(meaning);
        problems
    }
}
