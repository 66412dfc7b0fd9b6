//! Reads a log for somebody who asks about it: every line that is there, and whether the chain proves it. Whoever
//! breaks one line must not hide those after it, so reading goes on; what follows is marked.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::checkpoint::{Checker, Checkpoints};
use super::verify::{BadLine, MAX_LINE_BYTES, Summary, VerifyError, read_line, step};
use super::{Flaw, Head};
use crate::authority::JwtBundle;

/// What was read.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reading {
    /// How many lines, proven or not.
    pub lines: u64,
    /// Number of the first proven line; above 1, older lines are missing, or in files that were not given.
    pub first: u64,
    /// The end of what is proven.
    pub head: Head,
    /// How many events the log itself says are missing.
    pub lost: u64,
    /// The first line that is not as, or where, it was written. It and all lines after it are unproven.
    pub flaw: Option<BadLine>,
    /// The agent had not finished the last line; it was left out.
    pub unfinished: bool,
    /// The checkpoints among the proven lines.
    pub checkpoints: Checkpoints,
}

/// Gives each line (without line feed), and whether it is proven, to `each`. The files are one log, oldest first;
/// with `keys` the signatures of its checkpoints are checked, too.
///
/// # Errors
/// A file cannot be read. A broken chain is no error, but in the answer.
pub fn read(
    files: &[&Path],
    keys: Option<&JwtBundle>,
    each: &mut dyn FnMut(&str, bool),
) -> Result<Reading, VerifyError> {
    let mut reader = Reader { state: None, checker: Checker::new(keys), reading: Reading::default() };
    for (index, path) in files.iter().enumerate() {
        let failed = |source| VerifyError::Io { file: path.to_path_buf(), source };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let (mut line, mut number) = (Vec::new(), 0);
        while read_line(&mut file, &mut line).map_err(failed)? {
            number += 1;
            let is_whole = line.ends_with(b"\n");
            let is_torn = !is_whole && u64::try_from(line.len()).is_ok_and(|length| length < MAX_LINE_BYTES);
            if is_torn && index + 1 == files.len() {
                reader.reading.unfinished = true;
                break;
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            reader.take(path, number, text, is_whole);
            each(&String::from_utf8_lossy(text), reader.reading.flaw.is_none());
        }
    }
    Ok(reader.done())
}

struct Reader<'a> {
    state: Option<Summary>,
    checker: Checker<'a>,
    reading: Reading,
}

impl Reader<'_> {
    fn take(&mut self, path: &Path, line: u64, text: &[u8], is_whole: bool) {
        self.reading.lines += 1;
        if self.reading.flaw.is_some() {
            return;
        }
        let found = if is_whole { self.follow(text) } else { Err(Flaw::Shape) };
        if let Err(why) = found {
            self.reading.flaw = Some(BadLine { file: path.to_path_buf(), line, why });
        }
    }

    fn follow(&mut self, text: &[u8]) -> Result<(), Flaw> {
        // A line that does not fit leaves what was proven before as it is.
        let mut next = self.state.clone();
        let (head, link) = step(&mut next, text)?;
        if let Some(said) = link.checkpoint() {
            self.checker.check(&said)?;
        }
        self.checker.passed(head);
        self.state = next;
        Ok(())
    }

    fn done(self) -> Reading {
        let proven = self.state.unwrap_or_default();
        Reading {
            first: proven.first,
            head: proven.head,
            lost: proven.lost,
            checkpoints: self.checker.seen,
            ..self.reading
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::every_line;
    use super::*;

    fn read_all(bytes: &[u8]) -> (Reading, Vec<bool>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut seen = Vec::new();
        let reading = read(&[file.path()], None, &mut |_, proven| seen.push(proven)).unwrap();
        (reading, seen)
    }

    #[test]
    fn a_sound_log_is_proven_to_its_end() {
        let lines = every_line();
        let (reading, seen) = read_all(&lines.concat());
        assert!(reading.flaw.is_none() && !reading.unfinished && seen.iter().all(|proven| *proven));
        assert_eq!((seen.len(), reading.first), (lines.len(), 1));
        assert_eq!(reading.head.seq, reading.lines);
    }

    #[test]
    fn what_follows_a_broken_line_is_shown_and_not_proven() {
        let mut lines = every_line();
        lines[3][40] ^= 1;
        let (reading, seen) = read_all(&lines.concat());
        let flaw = reading.flaw.unwrap();
        assert_eq!((flaw.line, flaw.why, reading.head.seq), (4, Flaw::Hash, 3));
        assert_eq!(seen.len(), lines.len());
        assert!(seen[..3].iter().all(|proven| *proven) && !seen[3..].iter().any(|proven| *proven));
    }

    #[test]
    fn a_line_taken_out_breaks_the_chain_where_it_was() {
        let mut lines = every_line();
        lines.remove(5);
        let (reading, seen) = read_all(&lines.concat());
        let flaw = reading.flaw.unwrap();
        assert_eq!((flaw.line, flaw.why), (6, Flaw::Order { expected: 6, found: 7 }));
        assert!(!seen[5]);
    }

    #[test]
    fn the_line_that_is_being_written_is_left_out_and_a_torn_one_in_an_older_file_is_a_flaw() {
        let lines = every_line();
        let bytes = lines.concat();
        let (torn, rest) = bytes.split_at(bytes.len() - 10);
        let (reading, seen) = read_all(torn);
        assert!(reading.unfinished && reading.flaw.is_none());
        assert_eq!(seen.len(), lines.len() - 1);
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        std::fs::write(&old, torn).unwrap();
        std::fs::write(&new, rest).unwrap();
        let reading = read(&[&old, &new], None, &mut |_, _| ()).unwrap();
        assert_eq!(reading.flaw.unwrap().file, old);
    }

    #[test]
    fn a_missing_beginning_is_told_and_is_no_flaw() {
        let lines = every_line();
        let (reading, _) = read_all(&lines[4..].concat());
        assert!(reading.flaw.is_none());
        assert_eq!(reading.first, 5);
        assert_eq!(read_all(b"").0, Reading::default());
    }
}
