//! Reads a log from end to end and names the first line that is not as, or where, it was written.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::chain::{self, Flaw, Head, Link};
use super::checkpoint::{Checker, Checkpoints};
use crate::authority::JwtBundle;

/// What a sound log holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// How many lines.
    pub lines: u64,
    /// Number of the first line; not 1 if older files were not given.
    pub first: u64,
    /// The end of the chain. Lines cut off the end show only if this is compared with what the agent, or a
    /// checkpoint kept elsewhere, says.
    pub head: Head,
    /// How many events the log itself says are missing.
    pub lost: u64,
    /// The checkpoints among its lines.
    pub checkpoints: Checkpoints,
}

/// The first bad line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}:{line}: {why}", file.display())]
pub struct BadLine {
    /// The file it is in.
    pub file: PathBuf,
    /// Its place in the file, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: Flaw,
}

/// The log is not sound, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A line is bad.
    #[error(transparent)]
    Bad(#[from] BadLine),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The beginning is missing: allowed only if asked for.
    #[error("the log begins with line number {first}: older lines are missing, or in files not given")]
    Beginning {
        /// Number of the first line.
        first: u64,
    },
    /// The end is missing, or another one.
    #[error("the log ends with line number {found}, not with the expected line number {expected}")]
    End {
        /// Number of the last line.
        found: u64,
        /// Number of the expected last line.
        expected: u64,
    },
    /// There is not one line.
    #[error("the log is empty")]
    Empty,
}

/// What is known beforehand about the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// The first lines may be missing (older files were deleted after a rotation).
    pub partial: bool,
    /// The end, as the agent or a checkpoint says.
    pub head: Option<Head>,
}

/// Reads the files, oldest first, as one log. Checkpoints are compared with the lines before them; their signatures
/// are not checked.
pub fn verify(files: &[&Path], expected: Expected) -> Result<Summary, VerifyError> {
    verify_with(files, expected, None)
}

/// [`verify`], and the signature of each checkpoint by one of `keys` is checked, too.
pub fn verify_with(
    files: &[&Path],
    expected: Expected,
    keys: Option<&JwtBundle>,
) -> Result<Summary, VerifyError> {
    let mut state: Option<Summary> = None;
    let mut checker = Checker::new(keys);
    for path in files {
        let io_error = |source| VerifyError::Io { file: path.to_path_buf(), source };
        let mut reader = BufReader::new(File::open(path).map_err(io_error)?);
        let (mut line, mut number) = (Vec::new(), 0);
        while read_line(&mut reader, &mut line).map_err(io_error)? {
            number += 1;
            let bad = |why| BadLine { file: path.to_path_buf(), line: number, why };
            let text = line.strip_suffix(b"\n").ok_or_else(|| bad(Flaw::Shape))?;
            let (head, link) = step(&mut state, text).map_err(bad)?;
            if let Some(said) = link.checkpoint() {
                checker.check(&said).map_err(bad)?;
            }
            checker.passed(head);
        }
    }
    let summary = Summary { checkpoints: checker.seen, ..state.ok_or(VerifyError::Empty)? };
    if summary.first != 1 && !expected.partial {
        return Err(VerifyError::Beginning { first: summary.first });
    }
    match expected.head {
        Some(head) if head != summary.head => {
            Err(VerifyError::End { found: summary.head.seq, expected: head.seq })
        }
        _ => Ok(summary),
    }
}

pub(super) fn step(state: &mut Option<Summary>, text: &[u8]) -> Result<(Head, Link), Flaw> {
    let link = match state {
        Some(summary) => {
            let link = summary.head.follow(text)?;
            summary.lines += 1;
            link
        }
        None => {
            let (head, link) = chain::read(text)?;
            if head.seq == 1 {
                // The very first line follows nothing.
                Head::default().follow(text)?;
            }
            *state = Some(Summary { lines: 1, first: head.seq, head, ..Summary::default() });
            link
        }
    };
    let summary = state.get_or_insert_default();
    summary.lost = summary.lost.saturating_add(link.lost());
    Ok((summary.head, link))
}

/// Reads one line with its line feed; false at the end. A line longer than any the agent writes comes
/// back without its line feed, as a torn one does.
pub(super) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    io::Read::take(reader, MAX_LINE_BYTES).read_until(b'\n', line).map(|read| read > 0)
}

/// The agent's longest lines are some 100 KiB.
pub(super) const MAX_LINE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::line::append;
    use super::super::testing::{every_event, origin};
    use super::*;
    use crate::clock::from_unix_seconds;

    /// A sound log, as its lines with their line feeds, and its end.
    fn log() -> (Vec<Vec<u8>>, Head) {
        let (mut head, mut lines) = (Head::default(), Vec::new());
        for event in every_event() {
            let mut line = Vec::new();
            append(&origin(), &mut head, from_unix_seconds(1), &event, &mut line);
            lines.push(line);
        }
        (lines, head)
    }

    fn check(bytes: &[u8], expected: Expected) -> Result<Summary, VerifyError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        verify(&[file.path()], expected)
    }

    #[derive(Clone, Debug)]
    enum Mutation {
        Flip { byte: prop::sample::Index, bit: u8 },
        Insert { byte: prop::sample::Index, what: u8 },
        Cut { byte: prop::sample::Index },
        Remove { line: prop::sample::Index },
        Repeat { line: prop::sample::Index },
        Swap { a: prop::sample::Index, b: prop::sample::Index },
        Truncate { byte: prop::sample::Index },
    }

    fn mutation() -> impl Strategy<Value = Mutation> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            (at(), 0u8..8).prop_map(|(byte, bit)| Mutation::Flip { byte, bit }),
            (at(), any::<u8>()).prop_map(|(byte, what)| Mutation::Insert { byte, what }),
            at().prop_map(|byte| Mutation::Cut { byte }),
            at().prop_map(|line| Mutation::Remove { line }),
            at().prop_map(|line| Mutation::Repeat { line }),
            (at(), at()).prop_map(|(a, b)| Mutation::Swap { a, b }),
            at().prop_map(|byte| Mutation::Truncate { byte }),
        ]
    }

    fn mutate(lines: &[Vec<u8>], mutation: &Mutation) -> Vec<u8> {
        let (mut lines, mut bytes) = (lines.to_vec(), lines.concat());
        match mutation {
            Mutation::Flip { byte, bit } => {
                let at = byte.index(bytes.len());
                bytes[at] ^= 1u8 << bit;
            }
            Mutation::Insert { byte, what } => bytes.insert(byte.index(bytes.len() + 1), *what),
            Mutation::Cut { byte } => drop(bytes.remove(byte.index(bytes.len()))),
            Mutation::Truncate { byte } => bytes.truncate(byte.index(bytes.len())),
            Mutation::Remove { line } => {
                lines.remove(line.index(lines.len()));
                bytes = lines.concat();
            }
            Mutation::Repeat { line } => {
                let line = line.index(lines.len());
                lines.insert(line, lines[line].clone());
                bytes = lines.concat();
            }
            Mutation::Swap { a, b } => {
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                lines.swap(a, b);
                bytes = lines.concat();
            }
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_single_mutation_is_found(mutation in mutation()) {
            let (lines, head) = log();
            let bytes = mutate(&lines, &mutation);
            prop_assume!(bytes != lines.concat());
            let expected = Expected { partial: false, head: Some(head) };
            prop_assert!(check(&bytes, expected).is_err());
            // Without knowing the end, only whole lines cut off the end go unnoticed.
            if check(&bytes, Expected::default()).is_ok() {
                prop_assert!(lines.concat().starts_with(&bytes), "{mutation:?}");
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(check(&bytes, Expected::default()).is_err());
        }
    }

    #[test]
    fn a_sound_log_is_counted() {
        let (lines, head) = log();
        let summary = check(&lines.concat(), Expected { partial: false, head: Some(head) }).unwrap();
        let lines = u64::try_from(lines.len()).unwrap();
        let checkpoints = Checkpoints { found: 1, good: 0 };
        assert_eq!(summary, Summary { lines, first: 1, head, lost: 5, checkpoints });
    }

    #[test]
    fn the_first_bad_line_is_named() {
        let (mut lines, _) = log();
        lines[3][40] ^= 1;
        let Err(VerifyError::Bad(bad)) = check(&lines.concat(), Expected::default()) else { panic!() };
        assert_eq!((bad.line, bad.why), (4, Flaw::Hash));
        let (mut lines, _) = log();
        lines.remove(3);
        let Err(VerifyError::Bad(bad)) = check(&lines.concat(), Expected::default()) else { panic!() };
        assert_eq!((bad.line, bad.why), (4, Flaw::Order { expected: 4, found: 5 }));
    }

    #[test]
    fn a_line_of_another_log_does_not_fit_by_its_number() {
        let (mut lines, _) = log();
        let mut head = Head { seq: 3, hash: [1; 32] };
        lines[3].clear();
        append(&origin(), &mut head, from_unix_seconds(1), &every_event()[3], &mut lines[3]);
        let Err(VerifyError::Bad(bad)) = check(&lines.concat(), Expected::default()) else { panic!() };
        assert_eq!((bad.line, bad.why), (4, Flaw::Link));
    }

    #[test]
    fn a_missing_beginning_must_be_allowed() {
        let (lines, head) = log();
        let rest = lines[4..].concat();
        assert!(matches!(check(&rest, Expected::default()), Err(VerifyError::Beginning { first: 5 })));
        let summary = check(&rest, Expected { partial: true, head: Some(head) }).unwrap();
        assert_eq!(summary.first, 5);
        assert!(matches!(check(b"", Expected::default()), Err(VerifyError::Empty)));
    }

    #[test]
    fn rotated_files_are_one_log() {
        let (lines, head) = log();
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        std::fs::write(&old, lines[..5].concat()).unwrap();
        std::fs::write(&new, lines[5..].concat()).unwrap();
        let expected = Expected { partial: false, head: Some(head) };
        assert_eq!(verify(&[&old, &new], expected).unwrap().head, head);
        // Lines cut off the end of the older file show by themselves.
        std::fs::write(&old, lines[..4].concat()).unwrap();
        let Err(VerifyError::Bad(bad)) = verify(&[&old, &new], Expected::default()) else { panic!() };
        assert_eq!((bad.file.as_path(), bad.line), (new.as_path(), 1));
        assert!(verify(&[&new, &old], Expected::default()).is_err());
    }
}
