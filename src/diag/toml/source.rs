//! A file's text with its lines, and what was found wrong in it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::super::{Lines, Place, Problem, Problems, Shown};

/// How a file is written; messages say what to write in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::diag) enum Syntax {
    Toml,
    Yaml,
}

pub(in crate::diag) struct Source<'t> {
    lines: Lines<'t>,
    pub(super) syntax_is: Syntax,
    syntax: RefCell<(Problems, BTreeSet<usize>)>,
    meaning: RefCell<Problems>,
}

impl<'t> Source<'t> {
    pub(in crate::diag) fn new(file: &str, text: &'t str, syntax_is: Syntax) -> Self {
        Self {
            lines: Lines::new(file, text),
            syntax_is,
            syntax: RefCell::default(),
            meaning: RefCell::default(),
        }
    }

    pub(in crate::diag) fn place(&self, offset: usize, field: &str) -> Place {
        self.lines.place(offset, field)
    }

    /// Byte offset of a character of a line, both as a scanner counts them: from 1 and from 0.
    pub(in crate::diag) fn offset(&self, line: usize, column: usize) -> usize {
        self.lines.offset(line, column)
    }

    /// The first of each line is told; those after it are mostly its consequences.
    pub(in crate::diag) fn syntax_error(&self, offset: usize, message: &str) {
        let place = self.place(offset, "");
        let (problems, lines) = &mut *self.syntax.borrow_mut();
        if lines.insert(place.line) {
            let name = match self.syntax_is {
                Syntax::Toml => "TOML",
                Syntax::Yaml => "YAML",
            };
            problems.push(place.problem(format!("is not valid {name}: {}", Shown(message))));
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
    pub(in crate::diag) fn into_problems(self) -> Problems {
        let (mut problems, lines) = self.syntax.into_inner();
        let mut meaning = self.meaning.into_inner();
        meaning.retain(|problem| !lines.contains(&problem.line));
        problems.append(meaning);
        problems
    }
}
