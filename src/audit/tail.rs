//! Shows a log, and goes on showing it: waits for the kernel to say that the file grew or was rotated.

use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::mpsc;

use notify::{RecursiveMode, Watcher as _};
use serde_json::Value;

use super::text::visible;
use super::verify::read_line;

/// Which lines are wanted; an empty filter wants all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// One of these events, or of what comes before their dots: `credential` matches `credential.issue`; none: any.
    pub events: Vec<String>,
    /// Exact SPIFFE ID.
    pub spiffe_id: Option<String>,
    /// Process number.
    pub pid: Option<u64>,
    /// Serial number or `jti`.
    pub credential: Option<String>,
    /// The task, this one alone.
    pub task: Option<String>,
}

/// What of the log is shown.
#[derive(Clone, Debug, Default)]
pub struct TailOptions {
    /// Only so many of the lines that are there; none: all.
    pub last: Option<usize>,
    /// Go on when the end is reached.
    pub follow: bool,
    /// Which lines.
    pub filter: Filter,
}

/// Gives each wanted line (without line feed) to `each` until it breaks off, or, without `follow`, until the end.
///
/// With `follow` it sleeps until the file grows or another file takes its name, and never looks by itself.
pub fn tail(
    path: &Path,
    options: &TailOptions,
    each: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> io::Result<()> {
    // Watched before the first look: what is written in between is not missed.
    let news = if options.follow { Some(News::of(path)?) } else { None };
    let mut source = Source::open(path)?;
    if source.show_first(options, each)?.is_break() {
        return Ok(());
    }
    let Some(news) = news else { return Ok(()) };
    loop {
        news.wait()?;
        if source.show_rest(&options.filter, each)?.is_break() {
            return Ok(());
        }
        if source.was_replaced(path) {
            source = Source::open(path)?;
            if source.show_rest(&options.filter, each)?.is_break() {
                return Ok(());
            }
        }
    }
}

/// A line for a person: time, event, who, what. Safe on any terminal.
pub fn human(line: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return visible(line) };
    let text = |pointer: &str| match value.pointer(pointer) {
        Some(Value::String(text)) => Some(visible(text)),
        Some(Value::Null) | None => None,
        Some(Value::Array(all)) => Some(
            all.iter().map(|one| visible(one.as_str().unwrap_or_default())).collect::<Vec<_>>().join(","),
        ),
        Some(other) => Some(visible(&other.to_string())),
    };
    let mut out = [text("/ts"), text("/severity"), text("/event")].into_iter().flatten().collect::<Vec<_>>();
    for (label, pointer) in SHOWN {
        out.extend(text(pointer).map(|value| format!("{label}={value}")));
    }
    out.join(" ")
}

impl Filter {
    fn wants(&self, line: &str) -> bool {
        self.is_empty() || serde_json::from_str(line).is_ok_and(|value| self.wants_value(&value))
    }

    pub(super) fn is_empty(&self) -> bool {
        let texts = [&self.spiffe_id, &self.credential, &self.task];
        self.events.is_empty() && self.pid.is_none() && texts.iter().all(|text| text.is_none())
    }

    pub(super) fn wants_value(&self, value: &Value) -> bool {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let is_event = |wanted: &String| {
            let rest = text("/event").and_then(|event| event.strip_prefix(wanted.as_str()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let event = self.events.is_empty() || self.events.iter().any(is_event);
        let spiffe_id = self.spiffe_id.as_deref();
        let pid = value.pointer("/agent/pid").and_then(Value::as_u64);
        let names = [text("/credential/serial"), text("/credential/jti")];
        event
            && spiffe_id.is_none_or(|wanted| text("/agent/spiffe_id") == Some(wanted))
            && self.pid.is_none_or(|wanted| pid == Some(wanted))
            && self.credential.as_deref().is_none_or(|wanted| names.contains(&Some(wanted)))
            && self.task.as_deref().is_none_or(|wanted| text("/task/id") == Some(wanted))
    }
}

/// An open log and how far it was read.
#[derive(Debug)]
pub(super) struct Source {
    reader: BufReader<File>,
    inode: u64,
    at: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { inode: file.metadata()?.ino(), reader: BufReader::new(file), at: 0 })
    }

    pub(super) fn show_first(
        &mut self,
        options: &TailOptions,
        each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let Some(last) = options.last else { return self.show_rest(&options.filter, each) };
        let mut lines = std::collections::VecDeque::new();
        let keep = &mut |line: &str| {
            lines.push_back(line.to_owned());
            if lines.len() > last {
                lines.pop_front();
            }
            ControlFlow::Continue(())
        };
        // It keeps every line and never breaks off.
        if self.show_rest(&options.filter, keep)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        Ok(lines.iter().try_for_each(|line| each(line)))
    }

    /// Shows the whole lines that are there; the beginning of an unfinished one is read again next time.
    pub(super) fn show_rest(
        &mut self,
        filter: &Filter,
        each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        if self.reader.get_ref().metadata()?.len() < self.at {
            // Cut short in place: begin again.
            self.at = 0;
        }
        self.reader.seek(SeekFrom::Start(self.at))?;
        let mut line = Vec::new();
        while read_line(&mut self.reader, &mut line)? {
            let Some(text) = line.strip_suffix(b"\n") else { break };
            self.at += u64::try_from(line.len()).unwrap_or(0);
            let text = String::from_utf8_lossy(text);
            if filter.wants(&text) && each(&text).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    pub(super) fn was_replaced(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|meta| meta.ino() != self.inode)
    }
}

/// Wakes when something happens in the log's directory.
struct News {
    _watcher: notify::RecommendedWatcher,
    events: mpsc::Receiver<notify::Result<notify::Event>>,
}

impl News {
    fn of(path: &Path) -> io::Result<Self> {
        let (to, events) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(to).map_err(io::Error::other)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        watcher.watch(dir, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
        Ok(Self { _watcher: watcher, events })
    }

    /// Waits for at least one event and takes all that are there.
    fn wait(&self) -> io::Result<()> {
        let first = self.events.recv().map_err(io::Error::other)?;
        first.map_err(io::Error::other)?;
        while let Ok(more) = self.events.try_recv() {
            more.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// What [`human`] shows of a line, in this order.
const SHOWN: [(&str, &str); 32] = [
    ("spiffe_id", "/agent/spiffe_id"),
    ("pid", "/agent/pid"),
    ("uid", "/agent/uid"),
    ("ns", "/agent/k8s/ns"),
    ("pod", "/agent/k8s/pod"),
    ("serial", "/credential/serial"),
    ("jti", "/credential/jti"),
    ("entry", "/credential/entry"),
    ("ttl", "/credential/ttl"),
    ("target", "/credential/target"),
    ("scope", "/credential/scope"),
    ("evaluations", "/credential/evaluations"),
    ("task", "/task/id"),
    ("phase", "/decision/phase"),
    ("action", "/decision/action"),
    ("target", "/decision/target"),
    ("reason", "/decision/reason"),
    ("policies", "/decision/policy_ids"),
    ("evaluation", "/decision/evaluation_id"),
    ("action", "/approval/action"),
    ("target", "/approval/target"),
    ("evaluation", "/approval/evaluation_id"),
    ("reason", "/revocation/reason"),
    ("initiator", "/revocation/initiator"),
    ("latency_ms", "/revocation/latency_ms"),
    ("what", "/detail/what"),
    ("reason", "/detail/reason"),
    ("target", "/detail/target"),
    ("source", "/detail/source"),
    ("total", "/detail/total"),
    ("lost", "/detail/lost"),
    ("trace", "/trace_id"),
];

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::super::chain::Head;
    use super::super::line::append;
    use super::super::testing::{every_event, origin};
    use super::*;
    use crate::clock::from_unix_seconds;

    fn log() -> Vec<String> {
        let mut head = Head::default();
        let line = |event| {
            let mut line = Vec::new();
            append(&origin(), &mut head, from_unix_seconds(1), &event, &mut line);
            String::from_utf8(line).unwrap()
        };
        every_event().into_iter().map(line).collect()
    }

    fn shown(path: &Path, options: &TailOptions) -> Vec<u64> {
        let mut seen = Vec::new();
        let mut each = |line: &str| {
            seen.push(serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap());
            ControlFlow::Continue(())
        };
        tail(path, options, &mut each).unwrap();
        seen
    }

    #[test]
    fn filters_choose_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), log().concat()).unwrap();
        let with = |filter| shown(file.path(), &TailOptions { filter, ..TailOptions::default() });
        let event = |name: &str| Filter { events: vec![name.to_owned()], ..Filter::default() };
        assert_eq!(with(Filter::default()).len(), every_event().len());
        assert_eq!(with(event("credential")), [6, 7, 8, 9, 27, 30]);
        assert_eq!(with(event("credential.issue")), [6, 27]);
        assert_eq!(with(event("task")), [25, 28]);
        assert_eq!(with(event("decision")), [26]);
        assert_eq!(with(event("cred")), [0; 0]);
        assert_eq!(with(Filter { pid: Some(4242), ..event("agent") }), [3, 4, 29, 34, 35, 36, 37]);
        let web = Filter { spiffe_id: Some("spiffe://example.org/web".to_owned()), ..Filter::default() };
        assert_eq!(with(web), [4, 6, 7, 8, 9]);
        let jti = crate::ledger::testing::id(2).to_string();
        assert_eq!(with(Filter { credential: Some(jti), ..Filter::default() }), [7, 8]);
        let last = TailOptions { last: Some(2), filter: event("credential"), ..TailOptions::default() };
        assert_eq!(shown(file.path(), &last), [27, 30]);
    }

    #[test]
    fn following_sees_growth_and_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let lines = log();
        std::fs::write(&path, &lines[0]).unwrap();
        let (to, seen) = mpsc::channel();
        let watched = path.clone();
        let follower = std::thread::spawn(move || {
            let options = TailOptions { follow: true, ..TailOptions::default() };
            let mut count = 0;
            tail(&watched, &options, &mut |line| {
                to.send(format!("{line}\n")).unwrap();
                count += 1;
                if count == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        let next = || seen.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(next(), lines[0]);
        let mut file = File::options().append(true).open(&path).unwrap();
        // A line in two halves is shown once, whole.
        let (head, rest) = lines[1].split_at(50);
        file.write_all(head.as_bytes()).unwrap();
        file.write_all(rest.as_bytes()).unwrap();
        assert_eq!(next(), lines[1]);
        std::fs::rename(&path, dir.path().join("audit.jsonl.1")).unwrap();
        file.write_all(lines[2].as_bytes()).unwrap();
        assert_eq!(next(), lines[2]);
        std::fs::write(&path, &lines[3]).unwrap();
        assert_eq!(next(), lines[3]);
        follower.join().unwrap().unwrap();
    }

    #[test]
    fn people_see_which_policies_decided_in_which_evaluation() {
        let log = log();
        let shown = |event: &str| human(log.iter().rev().find(|line| line.contains(event)).unwrap());
        let decided = shown("\"decision.requestable\"");
        let evaluation = format!("policies=writes-need-human evaluation=evl_{}", "0".repeat(32));
        assert!(decided.contains(&evaluation), "{decided}");
        let several = human(r#"{"event":"e","decision":{"policy_ids":["a","b\u202e"]}}"#);
        assert_eq!(several, r"e policies=a,b\u{202e}");
        assert!(shown("\"approval.granted\"").contains("evaluation=evl_00"));
        let frozen = shown("\"freeze\"");
        assert!(frozen.contains("what=agent spiffe://example.org/web reason=incident 4711"), "{frozen}");
    }

    #[test]
    fn people_see_no_tricks() {
        let line = r#"{"ts":"t","severity":"info","event":"e","agent":{"spiffe_id":"a\u202eb","pid":7},"detail":{"reason":"x\u001b[2J"}}"#;
        assert_eq!(human(line), r"t info e spiffe_id=a\u{202e}b pid=7 reason=x\u{1b}[2J");
        assert_eq!(human("\u{1b}rubbish"), r"\u{1b}rubbish");
    }
}
