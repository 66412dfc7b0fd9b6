//! Lines of this agent's own log as they are written, for somebody who may be slow. Whoever reads asks for the next
//! lines and they are read from the file then: nothing is kept for a reader. One that falls too far behind is told so
//! and let go, and so is one for whom lines are gone.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::sync::watch;

use super::chain::Head;
use super::tail::{Filter, Source, TailOptions};

/// Why a reader is let go.
#[derive(Debug, thiserror::Error)]
pub enum TailingError {
    /// It reads more slowly than is written.
    #[error("{0} lines behind: read faster, or ask for less")]
    Behind(u64),
    /// The file was rotated before it was read to its end.
    #[error("lines after number {0} were rotated away")]
    Gap(u64),
    /// The file cannot be read.
    #[error("the audit log cannot be read")]
    Io(#[from] io::Error),
}

/// One line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NumberedLine {
    /// Its number in the chain.
    pub seq: u64,
    /// As it stands in the log.
    pub text: String,
}

/// A reader's place in the log.
#[derive(Debug)]
pub struct Tailing {
    path: PathBuf,
    head: watch::Receiver<Head>,
    options: TailOptions,
    place: Option<Place>,
    /// So many lines behind is too many.
    patience: u64,
}

/// How far was read.
#[derive(Debug)]
struct Place {
    source: Source,
    /// Number of the last line that was read; 0 before the first.
    seq: u64,
}

/// What one look found.
struct Look {
    lines: Vec<NumberedLine>,
    /// There was nothing to read.
    dry: bool,
}

impl Tailing {
    pub(super) fn new(path: PathBuf, head: watch::Receiver<Head>, mut options: TailOptions) -> Self {
        options.last = Some(options.last.unwrap_or_default().min(MOST_LAST));
        Self { path, head, options, place: None, patience: MOST_BEHIND }
    }

    /// The next lines that are wanted, at least one; `None` at the end, which with `follow` is the end of the agent.
    ///
    /// # Errors
    /// [`TailingError`]; there is nothing more then.
    pub async fn next(&mut self) -> Result<Option<Vec<NumberedLine>>, TailingError> {
        loop {
            let Some(place) = self.place.take() else {
                let lines = self.begin().await?;
                if lines.is_empty() {
                    continue;
                }
                return Ok(Some(lines));
            };
            if !self.options.follow {
                return Ok(None);
            }
            let head = self.head.borrow_and_update().seq;
            let behind = head.saturating_sub(place.seq);
            if behind > self.patience {
                return Err(TailingError::Behind(behind));
            }
            if behind == 0 {
                self.place = Some(place);
                if self.head.changed().await.is_err() {
                    return Ok(None);
                }
                continue;
            }
            let lines = self.go_on(place).await?;
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }

    async fn begin(&mut self) -> Result<Vec<NumberedLine>, TailingError> {
        let (path, options) = (self.path.clone(), self.options.clone());
        let (place, lines) = blocking(move || first(&path, &options)).await?;
        self.place = Some(place);
        Ok(lines)
    }

    async fn go_on(&mut self, mut place: Place) -> Result<Vec<NumberedLine>, TailingError> {
        let (path, filter) = (self.path.clone(), self.options.filter.clone());
        let (place, look) = blocking(move || {
            let mut look = place.look(&filter)?;
            if look.dry && place.source.was_replaced(&path) {
                place.source = Source::open(&path)?;
                look = place.look(&filter)?;
            }
            Ok((place, look))
        })
        .await?;
        if look.dry {
            // The head is told after the line is in the file: what is not there was taken away.
            return Err(TailingError::Gap(place.seq));
        }
        self.place = Some(place);
        Ok(look.lines)
    }
}

/// The last lines that fit, and the place behind them.
fn first(path: &Path, options: &TailOptions) -> Result<(Place, Vec<NumberedLine>), TailingError> {
    let mut place = Place { source: Source::open(path)?, seq: 0 };
    let most = options.last.unwrap_or_default();
    let mut lines = VecDeque::new();
    let seq = &mut place.seq;
    let _to_the_end = place.source.show_rest(&Filter::default(), &mut |text| {
        let Some((number, wanted)) = read(text, &options.filter) else { return ControlFlow::Continue(()) };
        *seq = number;
        if wanted && most > 0 {
            if lines.len() == most {
                lines.pop_front();
            }
            lines.push_back(NumberedLine { seq: number, text: text.to_owned() });
        }
        ControlFlow::Continue(())
    })?;
    Ok((place, lines.into()))
}

impl Place {
    /// Reads on, but not for long.
    fn look(&mut self, filter: &Filter) -> Result<Look, TailingError> {
        let mut look = Look { lines: Vec::new(), dry: true };
        let (mut left, mut gap) = (LINES_AT_ONCE, false);
        let seq = &mut self.seq;
        let _more = self.source.show_rest(&Filter::default(), &mut |text| {
            let Some((number, wanted)) = read(text, filter) else { return ControlFlow::Continue(()) };
            gap = *seq != 0 && number != *seq + 1;
            if gap {
                return ControlFlow::Break(());
            }
            look.dry = false;
            *seq = number;
            if wanted {
                look.lines.push(NumberedLine { seq: number, text: text.to_owned() });
            }
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if gap { Err(TailingError::Gap(self.seq)) } else { Ok(look) }
    }
}

/// The number of a line, and whether it is wanted. What is no line of the log has neither.
fn read(text: &str, filter: &Filter) -> Option<(u64, bool)> {
    let value = serde_json::from_str::<Value>(text).ok()?;
    Some((value.get("seq")?.as_u64()?, filter.is_empty() || filter.wants_value(&value)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TailingError> + Send + 'static,
) -> Result<T, TailingError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_stopped| Err(io::Error::other("stopped").into()))
}

const LINES_AT_ONCE: usize = 256;
const MOST_LAST: usize = 1_000;
const MOST_BEHIND: u64 = 20_000;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::super::line::append;
    use super::super::testing::{every_event, origin};
    use super::*;
    use crate::clock::from_unix_seconds;

    /// A log that grows line by line.
    struct Growing {
        dir: tempfile::TempDir,
        head: Head,
        told: watch::Sender<Head>,
    }

    impl Growing {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (told, _) = watch::channel(Head::default());
            let log = Self { dir, head: Head::default(), told };
            File::create(log.path()).unwrap();
            log
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("audit.jsonl")
        }

        /// Writes every event once, and says so.
        fn write(&mut self) -> u64 {
            let mut file = File::options().append(true).create(true).open(self.path()).unwrap();
            for event in every_event() {
                let mut line = Vec::new();
                append(&origin(), &mut self.head, from_unix_seconds(1), &event, &mut line);
                file.write_all(&line).unwrap();
            }
            self.told.send_replace(self.head);
            self.head.seq
        }

        fn rotate(&self, to: &str) {
            std::fs::rename(self.path(), self.dir.path().join(to)).unwrap();
        }

        fn tail(&self, last: usize, follow: bool, filter: Filter) -> Tailing {
            let options = TailOptions { last: Some(last), follow, filter };
            Tailing::new(self.path(), self.told.subscribe(), options)
        }
    }

    async fn numbers(tailing: &mut Tailing) -> Vec<u64> {
        tailing.next().await.unwrap().unwrap().into_iter().map(|line| line.seq).collect()
    }

    #[tokio::test]
    async fn the_last_lines_come_first_and_then_each_as_it_is_written() {
        let mut log = Growing::new();
        let n = log.write();
        let mut plain = log.tail(2, false, Filter::default());
        assert_eq!(numbers(&mut plain).await, [n - 1, n]);
        assert!(plain.next().await.unwrap().is_none(), "without follow there is an end");
        let mut tailing = log.tail(0, true, Filter::default());
        let first = tokio::select! {
            biased;
            lines = tailing.next() => Some(lines),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => None,
        };
        assert!(first.is_none(), "nothing was written yet: {first:?}");
        log.write();
        assert_eq!(numbers(&mut tailing).await, (n + 1..=2 * n).collect::<Vec<_>>());
        // Through a rotation nothing is lost and nothing comes twice.
        log.rotate("1");
        log.write();
        assert_eq!(numbers(&mut tailing).await, (2 * n + 1..=3 * n).collect::<Vec<_>>());
        drop(log);
        assert!(tailing.next().await.unwrap().is_none(), "the end of the agent is the end");
    }

    #[tokio::test]
    async fn only_wanted_lines_come() {
        let mut log = Growing::new();
        let n = log.write();
        let filter = Filter { events: vec!["task".to_owned(), "freeze".to_owned()], ..Filter::default() };
        let mut tailing = log.tail(100, true, filter);
        let events = |lines: Vec<NumberedLine>| -> Vec<String> {
            let event =
                |line: &NumberedLine| serde_json::from_str::<Value>(&line.text).unwrap()["event"].clone();
            lines.iter().map(|line| event(line).as_str().unwrap().to_owned()).collect()
        };
        let first = events(tailing.next().await.unwrap().unwrap());
        assert!(
            !first.is_empty() && first.iter().all(|e| e.starts_with("task.") || e == "freeze"),
            "{first:?}"
        );
        log.write();
        let more = tailing.next().await.unwrap().unwrap();
        assert!(more[0].seq > n);
        assert_eq!(events(more), first);
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_so() {
        let mut log = Growing::new();
        let n = log.write();
        let mut tailing = log.tail(1, true, Filter::default());
        tailing.patience = n;
        numbers(&mut tailing).await;
        log.write();
        assert_eq!(numbers(&mut tailing).await.len() as u64, n, "as far behind as it may be");
        log.write();
        log.write();
        assert!(matches!(tailing.next().await, Err(TailingError::Behind(behind)) if behind == 2 * n));
    }

    #[tokio::test]
    async fn lines_that_were_rotated_away_unread_are_missed() {
        let mut log = Growing::new();
        let n = log.write();
        let mut tailing = log.tail(1, true, Filter::default());
        numbers(&mut tailing).await;
        for name in ["1", "2"] {
            log.rotate(name);
            log.write();
        }
        assert!(matches!(tailing.next().await, Err(TailingError::Gap(seq)) if seq == n));
    }
}
