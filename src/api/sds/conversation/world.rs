//! State of the world: each request names everything that is wanted, each response carries all of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Catalog, Heard, Kind, MAX_NAMES, Piece, TooManyNames, owed};
use crate::id::hex_text;

/// A request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(in crate::api::sds) struct Ask {
    pub(in crate::api::sds) version: String,
    pub(in crate::api::sds) names: Vec<String>,
    pub(in crate::api::sds) nonce: String,
    /// The client's words when it refuses the response with that nonce.
    pub(in crate::api::sds) error: Option<String>,
}

/// A response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::api::sds) struct Answer {
    pub(in crate::api::sds) version: String,
    pub(in crate::api::sds) nonce: String,
    pub(in crate::api::sds) pieces: Vec<Piece>,
}

/// One stream.
#[derive(Debug, Default)]
pub(in crate::api::sds) struct World {
    wanted: Option<Wanted>,
    /// What an earlier stream left the client with; empty for nothing.
    inherited: String,
    /// Nonce of the last response; empty before the first.
    nonce: String,
    /// The last response has not been spoken of yet.
    open: bool,
    /// What the last responses left the client with, of what it still wants.
    sent: BTreeMap<String, (Kind, String)>,
}

#[derive(Debug)]
enum Wanted {
    All,
    Named(BTreeSet<String>),
}

impl World {
    /// Whether anything was asked yet.
    pub(in crate::api::sds) fn has_begun(&self) -> bool {
        self.wanted.is_some()
    }

    /// Takes in a request. A stale one changes nothing: the client sends its wishes again with its answer to
    /// what is on its way (xDS, "ACK and NACK semantics").
    pub(in crate::api::sds) fn hear(&mut self, ask: Ask) -> Result<Heard, TooManyNames> {
        if ask.names.len() > MAX_NAMES {
            return Err(TooManyNames);
        }
        if self.wanted.is_none() {
            self.inherited = ask.version;
            self.want(ask.names);
            return Ok(Heard::Asked);
        }
        if ask.nonce != self.nonce {
            return Ok(Heard::Stale);
        }
        let first_word = std::mem::take(&mut self.open);
        self.want(ask.names);
        Ok(match ask.error {
            Some(words) if first_word => Heard::Refused(words),
            None if first_word => Heard::Accepted,
            _ => Heard::Asked,
        })
    }

    /// No name at all means everything, until names are given; then it means nothing.
    fn want(&mut self, names: Vec<String>) {
        let everything = match self.wanted {
            None | Some(Wanted::All) => names.is_empty(),
            Some(Wanted::Named(_)) => false,
        };
        if everything || names.iter().any(|name| name == "*") {
            self.wanted = Some(Wanted::All);
            return;
        }
        let names: BTreeSet<String> = names.into_iter().filter(|name| !name.is_empty()).collect();
        // Whoever asks for it again has lost it.
        self.sent.retain(|name, _| names.contains(name));
        self.wanted = Some(Wanted::Named(names));
    }

    /// The response that is due now, if any. `nonce` is used up when there is one.
    pub(in crate::api::sds) fn answer(&mut self, catalog: &dyn Catalog, nonce: String) -> Option<Answer> {
        let pieces = self.pieces(catalog);
        let now: BTreeMap<String, (Kind, String)> =
            pieces.iter().map(|p| (p.name.clone(), (p.kind, p.version.clone()))).collect();
        let news = now.iter().any(|(name, is)| self.sent.get(name) != Some(is));
        if !news {
            return None;
        }
        let version = version_of(&now);
        self.sent.extend(now);
        // It has exactly this from an earlier stream.
        let known = self.nonce.is_empty() && version == std::mem::take(&mut self.inherited);
        if known {
            return None;
        }
        (self.nonce, self.open) = (nonce.clone(), true);
        Some(Answer { version, nonce, pieces })
    }

    fn pieces(&self, catalog: &dyn Catalog) -> Vec<Piece> {
        let names: BTreeSet<String> = match &self.wanted {
            None => return Vec::new(),
            Some(Wanted::All) => catalog.names().into_iter().chain(self.sent.keys().cloned()).collect(),
            Some(Wanted::Named(names)) => names.clone(),
        };
        let had = |name: &str| {
            let sent = self.sent.get(name).map(|(kind, version)| (Some(*kind), version.as_str()));
            // Which names the earlier stream had is not told; of those wanted now, any may be among them.
            sent.or_else(|| (!self.inherited.is_empty()).then_some((None, "")))
        };
        names.iter().filter_map(|name| owed(catalog, name, had(name))).collect()
    }
}

/// The same for the same secrets, whichever stream, and whichever run of the agent, sends them.
fn version_of(pieces: &BTreeMap<String, (Kind, String)>) -> String {
    let mut text = String::new();
    for (name, (_, version)) in pieces {
        text.push_str(name);
        text.push('\n');
        text.push_str(version);
        text.push('\n');
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    hex_text(digest.as_ref().first_chunk::<8>().unwrap_or(&[0; 8]))
}

#[cfg(test)]
mod tests {
    use super::super::model::Shelf;
    use super::*;

    fn ask(names: &[&str], version: &str, nonce: &str) -> Ask {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Ask { version: version.to_owned(), names, nonce: nonce.to_owned(), error: None }
    }

    fn nack(names: &[&str], nonce: &str) -> Ask {
        Ask { error: Some("no good".to_owned()), ..ask(names, "", nonce) }
    }

    fn names(answer: &Answer) -> Vec<(&str, &str, bool)> {
        answer.pieces.iter().map(|p| (p.name.as_str(), p.version.as_str(), p.closed)).collect()
    }

    #[test]
    fn an_accepted_response_is_not_repeated_and_a_change_is_sent() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        shelf.put("default", 1);
        world.hear(ask(&["default"], "", "")).unwrap();
        let first = world.answer(&shelf, "n1".to_owned()).unwrap();
        assert_eq!(names(&first), [("default", "1", false)]);
        assert_eq!(world.hear(ask(&["default"], &first.version, "n1")).unwrap(), Heard::Accepted);
        assert_eq!(world.answer(&shelf, "n2".to_owned()), None);
        shelf.put("default", 2);
        let second = world.answer(&shelf, "n2".to_owned()).unwrap();
        assert_eq!(names(&second), [("default", "2", false)]);
        assert_ne!(first.version, second.version);
    }

    #[test]
    fn a_refused_response_is_not_repeated_until_something_changes() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        shelf.put("a", 1);
        world.hear(ask(&["a"], "", "")).unwrap();
        world.answer(&shelf, "n1".to_owned()).unwrap();
        assert_eq!(world.hear(nack(&["a"], "n1")).unwrap(), Heard::Refused("no good".to_owned()));
        assert_eq!(world.answer(&shelf, "n2".to_owned()), None);
        assert_eq!(world.hear(nack(&["a"], "n1")).unwrap(), Heard::Asked, "said once, counted once");
        shelf.put("a", 2);
        assert_eq!(names(&world.answer(&shelf, "n2".to_owned()).unwrap()), [("a", "2", false)]);
    }

    #[test]
    fn a_stale_nonce_changes_nothing() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        shelf.put("a", 1);
        shelf.put("b", 1);
        world.hear(ask(&["a"], "", "")).unwrap();
        world.answer(&shelf, "n1".to_owned()).unwrap();
        shelf.put("a", 2);
        world.answer(&shelf, "n2".to_owned()).unwrap();
        assert_eq!(world.hear(ask(&["a", "b"], "", "n1")).unwrap(), Heard::Stale);
        assert_eq!(world.hear(ask(&["a", "b"], "", "")).unwrap(), Heard::Stale);
        assert_eq!(world.answer(&shelf, "n3".to_owned()), None);
        assert_eq!(world.hear(ask(&["a", "b"], "", "n2")).unwrap(), Heard::Accepted);
        let both = world.answer(&shelf, "n3".to_owned()).unwrap();
        assert_eq!(names(&both), [("a", "2", false), ("b", "1", false)]);
    }

    #[test]
    fn unknown_names_are_silence_and_then_appear() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        world.hear(ask(&["file-root:x", "default"], "", "")).unwrap();
        assert_eq!(world.answer(&shelf, "n1".to_owned()), None);
        shelf.put("default", 1);
        let first = world.answer(&shelf, "n1".to_owned()).unwrap();
        assert_eq!(names(&first), [("default", "1", false)]);
        world.hear(ask(&["file-root:x", "default", "later"], "", "n1")).unwrap();
        assert_eq!(world.answer(&shelf, "n2".to_owned()), None);
    }

    #[test]
    fn what_ends_is_closed_once_and_opens_again() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        shelf.put("default", 1);
        world.hear(ask(&["default"], "", "")).unwrap();
        world.answer(&shelf, "n1".to_owned()).unwrap();
        shelf.take("default");
        assert_eq!(names(&world.answer(&shelf, "n2".to_owned()).unwrap()), [("default", "closed", true)]);
        assert_eq!(world.answer(&shelf, "n3".to_owned()), None);
        shelf.put("default", 2);
        assert_eq!(names(&world.answer(&shelf, "n3".to_owned()).unwrap()), [("default", "2", false)]);
    }

    #[test]
    fn a_name_dropped_and_asked_for_again_is_sent_again() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        shelf.put("a", 1);
        shelf.put("b", 1);
        world.hear(ask(&["a", "b"], "", "")).unwrap();
        world.answer(&shelf, "n1".to_owned()).unwrap();
        world.hear(ask(&["a"], "", "n1")).unwrap();
        assert_eq!(world.answer(&shelf, "n2".to_owned()), None);
        shelf.take("b");
        assert_eq!(world.answer(&shelf, "n2".to_owned()), None, "nobody wants to know");
        shelf.put("b", 1);
        world.hear(ask(&["a", "b"], "", "n1")).unwrap();
        assert!(world.answer(&shelf, "n2".to_owned()).is_some());
    }

    #[test]
    fn a_reconnecting_client_with_the_same_version_is_left_alone_and_with_an_older_one_is_not() {
        let mut shelf = Shelf::default();
        shelf.put("default", 1);
        let mut before = World::default();
        before.hear(ask(&["default"], "", "")).unwrap();
        let version = before.answer(&shelf, "n1".to_owned()).unwrap().version;
        let mut same = World::default();
        same.hear(ask(&["default"], &version, "")).unwrap();
        assert_eq!(same.answer(&shelf, "m1".to_owned()), None);
        shelf.put("default", 2);
        assert!(same.answer(&shelf, "m1".to_owned()).is_some());
        let mut older = World::default();
        older.hear(ask(&["default"], &version, "n1")).unwrap();
        assert_eq!(names(&older.answer(&shelf, "m1".to_owned()).unwrap()), [("default", "2", false)]);
    }

    /// The identity ended while the client was away: it still holds the certificate.
    #[test]
    fn a_reconnecting_client_whose_identity_ended_meanwhile_is_closed() {
        let shelf = Shelf::default();
        let mut world = World::default();
        world.hear(ask(&["default", "ROOTCA"], "0123456789abcdef", "")).unwrap();
        assert_eq!(names(&world.answer(&shelf, "n1".to_owned()).unwrap()), [("default", "closed", true)]);
        assert_eq!(world.answer(&shelf, "n2".to_owned()), None);
    }

    #[test]
    fn what_is_withheld_stays_as_it_is() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        shelf.put("ROOTCA", 1);
        world.hear(ask(&["ROOTCA"], "", "")).unwrap();
        world.answer(&shelf, "n1".to_owned()).unwrap();
        shelf.withhold("ROOTCA");
        assert_eq!(world.answer(&shelf, "n2".to_owned()), None);
    }

    #[test]
    fn no_names_mean_everything_until_names_are_given() {
        let (mut world, mut shelf) = (World::default(), Shelf::default());
        shelf.put("a", 1);
        world.hear(ask(&[], "", "")).unwrap();
        assert_eq!(names(&world.answer(&shelf, "n1".to_owned()).unwrap()), [("a", "1", false)]);
        shelf.put("b", 1);
        world.hear(ask(&[], "", "n1")).unwrap();
        let both = world.answer(&shelf, "n2".to_owned()).unwrap();
        assert_eq!(names(&both), [("a", "1", false), ("b", "1", false)]);
        world.hear(ask(&["a"], "", "n2")).unwrap();
        world.hear(ask(&[], "", "n2")).unwrap();
        shelf.put("a", 2);
        assert_eq!(world.answer(&shelf, "n3".to_owned()), None);
    }

    #[test]
    fn too_many_names_are_refused() {
        let names: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        let ask = Ask { names, ..Ask::default() };
        assert_eq!(World::default().hear(ask), Err(TooManyNames));
    }
}
