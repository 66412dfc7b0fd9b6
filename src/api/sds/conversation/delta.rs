//! Incremental: requests add and remove names, responses carry what changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Catalog, Heard, Kind, MAX_NAMES, Piece, TooManyNames, owed};

/// A request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(in crate::api::sds) struct Ask {
    pub(in crate::api::sds) subscribe: Vec<String>,
    pub(in crate::api::sds) unsubscribe: Vec<String>,
    /// What the client holds from an earlier stream; heeded in the first request only.
    pub(in crate::api::sds) initial: Vec<(String, String)>,
    pub(in crate::api::sds) nonce: String,
    /// The client's words when it refuses the response with that nonce.
    pub(in crate::api::sds) error: Option<String>,
}

/// A response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::api::sds) struct Answer {
    pub(in crate::api::sds) nonce: String,
    pub(in crate::api::sds) pieces: Vec<Piece>,
}

/// One stream.
#[derive(Debug, Default)]
pub(in crate::api::sds) struct Delta {
    begun: bool,
    /// Everything, whatever it is called.
    all: bool,
    names: BTreeSet<String>,
    /// What the client has of us, as far as we know; the kind is not known of what it brought along.
    held: BTreeMap<String, (Option<Kind>, String)>,
    /// Nonces not spoken of yet, oldest first.
    open: VecDeque<String>,
}

impl Delta {
    /// Whether anything was asked yet.
    pub(in crate::api::sds) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Takes in a request. What it changes counts whatever nonce it carries.
    pub(in crate::api::sds) fn hear(&mut self, ask: Ask) -> Result<Heard, TooManyNames> {
        let first = !std::mem::replace(&mut self.begun, true);
        for name in &ask.unsubscribe {
            if name == "*" {
                self.all = false;
            }
            self.names.remove(name);
            self.doubt(name);
        }
        for name in &ask.subscribe {
            if name == "*" {
                self.all = true;
            } else if !name.is_empty() {
                self.names.insert(name.clone());
                // Asked for again: it is sent again.
                self.doubt(name);
            }
        }
        if first {
            self.all |= ask.subscribe.is_empty();
            if ask.initial.len() > MAX_NAMES {
                return Err(TooManyNames);
            }
            for (name, version) in ask.initial {
                if self.all || self.names.contains(&name) {
                    self.held.insert(name, (None, version));
                }
            }
        }
        if self.names.len() > MAX_NAMES {
            return Err(TooManyNames);
        }
        Ok(self.word(&ask.nonce, ask.error, first))
    }

    /// The client may have dropped what it had, or may just be receiving it: whatever the name stands for next is
    /// sent, be it nothing.
    fn doubt(&mut self, name: &str) {
        if let Some((_, version)) = self.held.get_mut(name) {
            version.clear();
        }
    }

    fn word(&mut self, nonce: &str, error: Option<String>, first: bool) -> Heard {
        if nonce.is_empty() || first {
            return Heard::Asked;
        }
        let Some(at) = self.open.iter().position(|open| open == nonce) else { return Heard::Stale };
        self.open.remove(at);
        error.map_or(Heard::Accepted, Heard::Refused)
    }

    /// The response that is due now, if any. `nonce` is used up when there is one.
    pub(in crate::api::sds) fn answer(&mut self, catalog: &dyn Catalog, nonce: String) -> Option<Answer> {
        let mut names = self.names.clone();
        if self.all {
            names.extend(catalog.names());
            names.extend(self.held.keys().cloned());
        }
        let mut pieces = Vec::new();
        for name in names {
            let had = self.held.get(&name).map(|(kind, version)| (*kind, version.as_str()));
            let Some(piece) = owed(catalog, &name, had) else { continue };
            let same = had.is_some_and(|(_, version)| version == piece.version);
            self.held.insert(name, (Some(piece.kind), piece.version.clone()));
            if !same {
                pieces.push(piece);
            }
        }
        if pieces.is_empty() {
            return None;
        }
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        self.open.push_back(nonce.clone());
        Some(Answer { nonce, pieces })
    }
}

/// Responses whose fate is still of interest.
const MAX_OPEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::model::Shelf;
    use super::*;

    fn subscribe(names: &[&str]) -> Ask {
        Ask { subscribe: names.iter().map(|n| (*n).to_owned()).collect(), ..Ask::default() }
    }

    fn word(nonce: &str, error: Option<&str>) -> Ask {
        Ask { nonce: nonce.to_owned(), error: error.map(str::to_owned), ..Ask::default() }
    }

    fn names(answer: &Answer) -> Vec<(&str, &str, bool)> {
        answer.pieces.iter().map(|p| (p.name.as_str(), p.version.as_str(), p.closed)).collect()
    }

    #[test]
    fn only_what_changed_is_sent() {
        let (mut delta, mut shelf) = (Delta::default(), Shelf::default());
        shelf.put("a", 1);
        shelf.put("b", 1);
        delta.hear(subscribe(&["a", "b"])).unwrap();
        let first = delta.answer(&shelf, "n1".to_owned()).unwrap();
        assert_eq!(names(&first), [("a", "1", false), ("b", "1", false)]);
        assert_eq!(delta.hear(word("n1", None)).unwrap(), Heard::Accepted);
        shelf.put("b", 2);
        assert_eq!(names(&delta.answer(&shelf, "n2".to_owned()).unwrap()), [("b", "2", false)]);
        assert_eq!(delta.answer(&shelf, "n3".to_owned()), None);
    }

    #[test]
    fn names_come_and_go_whatever_nonce_they_come_with() {
        let (mut delta, mut shelf) = (Delta::default(), Shelf::default());
        shelf.put("a", 1);
        shelf.put("b", 1);
        delta.hear(subscribe(&["a"])).unwrap();
        delta.answer(&shelf, "n1".to_owned()).unwrap();
        let add = Ask { nonce: "n0".to_owned(), ..subscribe(&["b"]) };
        assert_eq!(delta.hear(add).unwrap(), Heard::Stale);
        assert_eq!(names(&delta.answer(&shelf, "n2".to_owned()).unwrap()), [("b", "1", false)]);
        let remove = Ask { unsubscribe: vec!["a".to_owned()], ..Ask::default() };
        delta.hear(remove).unwrap();
        shelf.put("a", 2);
        assert_eq!(delta.answer(&shelf, "n3".to_owned()), None);
        delta.hear(subscribe(&["a"])).unwrap();
        assert_eq!(names(&delta.answer(&shelf, "n3".to_owned()).unwrap()), [("a", "2", false)]);
    }

    #[test]
    fn asking_again_for_a_name_sends_it_again() {
        let (mut delta, mut shelf) = (Delta::default(), Shelf::default());
        shelf.put("a", 1);
        delta.hear(subscribe(&["a"])).unwrap();
        delta.answer(&shelf, "n1".to_owned()).unwrap();
        delta.hear(subscribe(&["a"])).unwrap();
        assert!(delta.answer(&shelf, "n2".to_owned()).is_some());
    }

    /// A response with the name is still on its way when the name is dropped, asked for again, and ends.
    #[test]
    fn what_may_be_on_its_way_is_closed() {
        let (mut delta, mut shelf) = (Delta::default(), Shelf::default());
        shelf.put("a", 1);
        delta.hear(subscribe(&["a"])).unwrap();
        delta.answer(&shelf, "n1".to_owned()).unwrap();
        delta.hear(Ask { unsubscribe: vec!["a".to_owned()], ..Ask::default() }).unwrap();
        shelf.take("a");
        assert_eq!(delta.answer(&shelf, "n2".to_owned()), None);
        delta.hear(subscribe(&["a"])).unwrap();
        assert_eq!(names(&delta.answer(&shelf, "n2".to_owned()).unwrap()), [("a", "closed", true)]);
    }

    #[test]
    fn refusals_are_told_once_and_not_answered() {
        let (mut delta, mut shelf) = (Delta::default(), Shelf::default());
        shelf.put("a", 1);
        delta.hear(subscribe(&["a"])).unwrap();
        delta.answer(&shelf, "n1".to_owned()).unwrap();
        shelf.put("a", 2);
        delta.answer(&shelf, "n2".to_owned()).unwrap();
        assert_eq!(delta.hear(word("n2", Some("bad"))).unwrap(), Heard::Refused("bad".to_owned()));
        assert_eq!(delta.hear(word("n1", None)).unwrap(), Heard::Accepted, "in any order");
        assert_eq!(delta.hear(word("n2", Some("bad"))).unwrap(), Heard::Stale);
        assert_eq!(delta.answer(&shelf, "n3".to_owned()), None);
    }

    #[test]
    fn a_reconnecting_client_gets_what_changed_and_what_ended() {
        let mut shelf = Shelf::default();
        shelf.put("same", 1);
        shelf.put("changed", 2);
        let brought =
            [("same", "1"), ("changed", "1"), ("default", "1"), ("unasked", "1"), ("file-root:", "1")];
        let initial = brought.map(|(name, version)| (name.to_owned(), version.to_owned())).to_vec();
        let ask = Ask { initial, ..subscribe(&["same", "changed", "default", "file-root:"]) };
        let mut delta = Delta::default();
        delta.hear(ask).unwrap();
        let first = delta.answer(&shelf, "n1".to_owned()).unwrap();
        assert_eq!(names(&first), [("changed", "2", false), ("default", "closed", true)]);
    }

    #[test]
    fn a_first_request_without_names_wants_everything() {
        let (mut delta, mut shelf) = (Delta::default(), Shelf::default());
        shelf.put("a", 1);
        delta.hear(Ask::default()).unwrap();
        assert_eq!(names(&delta.answer(&shelf, "n1".to_owned()).unwrap()), [("a", "1", false)]);
        shelf.take("a");
        assert_eq!(names(&delta.answer(&shelf, "n2".to_owned()).unwrap()), [("a", "closed", true)]);
        delta.hear(Ask { unsubscribe: vec!["*".to_owned()], ..Ask::default() }).unwrap();
        shelf.put("b", 1);
        assert_eq!(delta.answer(&shelf, "n3".to_owned()), None);
    }

    #[test]
    fn too_many_names_are_refused() {
        let names: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        assert_eq!(Delta::default().hear(Ask { subscribe: names, ..Ask::default() }), Err(TooManyNames));
    }
}
