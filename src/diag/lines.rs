//! Offsets in a text, as lines and columns.

use std::sync::Arc;

use super::Place;

/// The lines of a file.
#[derive(Clone, Debug)]
pub struct Lines<'t> {
    file: Arc<str>,
    text: &'t str,
    /// Byte offset at which each line starts.
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    /// Of a file under the name to show.
    pub fn new(file: &str, text: &'t str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(ends).collect();
        Self { file: file.into(), text, starts }
    }

    /// Where that byte stands.
    pub fn place(&self, offset: usize, field: &str) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = self.text.get(start..offset).map_or(0, |text| text.chars().count());
        Place { file: Arc::clone(&self.file), line, column: before + 1, field: field.to_owned() }
    }

    /// Byte offset of the character before which `column` others stand in a line (counted from 1); the end of the text
    /// where there is none.
    pub fn offset(&self, line: usize, column: usize) -> usize {
        let Some(start) = line.checked_sub(1).and_then(|line| self.starts.get(line)) else {
            return self.text.len();
        };
        let rest = self.text.get(*start..).unwrap_or_default();
        rest.char_indices().nth(column).map_or(self.text.len(), |(at, _)| start + at)
    }
}
