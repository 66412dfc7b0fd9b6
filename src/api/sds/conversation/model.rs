//! Random conversations against a client that knows the rules.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Catalog, Finding, Heard, Kind, Piece, delta, world};

/// A catalog that tests fill.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    values: BTreeMap<String, u32>,
    withheld: BTreeSet<String>,
}

impl Shelf {
    pub(super) fn put(&mut self, name: &str, version: u32) {
        self.withheld.remove(name);
        self.values.insert(name.to_owned(), version);
    }

    pub(super) fn take(&mut self, name: &str) {
        self.values.remove(name);
    }

    pub(super) fn withhold(&mut self, name: &str) {
        self.values.remove(name);
        self.withheld.insert(name.to_owned());
    }
}

impl Catalog for Shelf {
    fn find(&self, name: &str) -> Finding {
        let certificate = name == "default";
        let kind = if certificate { Kind::Certificate } else { Kind::Context };
        match self.values.get(name) {
            Some(version) => Finding::Value(kind, version.to_string()),
            None if self.withheld.contains(name) => Finding::Withheld,
            None => Finding::Gone(certificate.then_some(kind)),
        }
    }

    fn names(&self) -> Vec<String> {
        self.values.keys().cloned().collect()
    }
}

const NAMES: [&str; 4] = ["default", "a", "b", "c"];

#[derive(Clone, Debug)]
enum Step {
    /// The agent's side.
    Put(usize, u32),
    Take(usize),
    /// The client wants these from now on.
    Want(Vec<usize>),
    /// It reads everything on its way and accepts it, or refuses it.
    Read {
        refuse: bool,
    },
    /// It repeats an answer to an earlier response.
    Repeat,
    /// The agent looks whether something is due.
    Push,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    prop_oneof![
        (name.clone(), 0..4_u32).prop_map(|(name, version)| Step::Put(name, version)),
        name.clone().prop_map(Step::Take),
        prop::collection::vec(name, 1..4).prop_map(Step::Want),
        any::<bool>().prop_map(|refuse| Step::Read { refuse }),
        Just(Step::Repeat),
        Just(Step::Push),
    ]
}

/// What a client knows.
#[derive(Debug, Default)]
struct Client {
    wants: BTreeSet<String>,
    has: BTreeMap<String, String>,
    /// Responses it has not read.
    on_the_way: Vec<(String, Vec<Piece>)>,
    read: Vec<String>,
}

impl Client {
    fn receive(&mut self, nonce: &str, pieces: &[Piece]) {
        for piece in pieces {
            self.has.insert(piece.name.clone(), piece.version.clone());
        }
        self.read.push(nonce.to_owned());
    }

    /// Once everything is read and nothing more is due, it has what it wants.
    fn is_content_with(&self, shelf: &Shelf) -> Result<(), TestCaseError> {
        for name in &self.wants {
            let has = self.has.get(name).map(String::as_str);
            match shelf.find(name) {
                Finding::Value(_, version) => prop_assert_eq!(has, Some(version.as_str()), "{}", name),
                _ => prop_assert!(has.is_none_or(|v| v == "closed"), "{name} should be closed, is {has:?}"),
            }
        }
        Ok(())
    }
}

fn wanted(indexes: &[usize]) -> BTreeSet<String> {
    indexes.iter().map(|n| NAMES[*n].to_owned()).collect()
}

fn check_pieces(pieces: &[Piece], shelf: &Shelf, wants: &BTreeSet<String>) -> Result<(), TestCaseError> {
    prop_assert!(!pieces.is_empty(), "Envoy refuses an empty response");
    for piece in pieces {
        prop_assert!(wants.contains(&piece.name), "{} was not asked for", piece.name);
        match shelf.find(&piece.name) {
            Finding::Value(kind, version) => {
                prop_assert_eq!((kind, &version, false), (piece.kind, &piece.version, piece.closed));
            }
            _ => prop_assert!(piece.closed),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn state_of_the_world_conversations_end_well(steps in prop::collection::vec(step(), 0..60)) {
        let (mut world, mut shelf, mut client) = (world::World::default(), Shelf::default(), Client::default());
        let mut nonces = 0;
        client.wants = wanted(&[0]);
        let list = |client: &Client| client.wants.iter().cloned().collect::<Vec<_>>();
        world.hear(world::Ask { names: list(&client), ..world::Ask::default() }).unwrap();
        // What the agent was last told is wanted; a stale request does not count.
        let mut known = client.wants.clone();
        let settle = [Step::Push, Step::Read { refuse: false }, Step::Push, Step::Read { refuse: false }];
        for step in steps.into_iter().chain(settle) {
            match step {
                Step::Put(name, version) => shelf.put(NAMES[name], version),
                Step::Take(name) => shelf.take(NAMES[name]),
                Step::Want(names) => {
                    client.wants = wanted(&names);
                    client.has.retain(|name, _| client.wants.contains(name));
                    let nonce = client.read.last().cloned().unwrap_or_default();
                    let ask = world::Ask { names: list(&client), nonce, ..world::Ask::default() };
                    let heard = world.hear(ask).unwrap();
                    prop_assert_eq!(heard == Heard::Stale, !client.on_the_way.is_empty());
                    if heard != Heard::Stale {
                        known = client.wants.clone();
                    }
                }
                Step::Read { refuse } => for (nonce, pieces) in std::mem::take(&mut client.on_the_way) {
                    client.receive(&nonce, &pieces);
                    client.has.retain(|name, _| client.wants.contains(name));
                    let error = refuse.then(|| "no".to_owned());
                    let ask = world::Ask { names: list(&client), nonce, error, ..world::Ask::default() };
                    if world.hear(ask).unwrap() != Heard::Stale {
                        known = client.wants.clone();
                    }
                },
                Step::Repeat => if let Some(nonce) = client.read.iter().rev().nth(1).cloned() {
                    let ask = world::Ask { names: vec!["c".to_owned()], nonce, ..world::Ask::default() };
                    prop_assert_eq!(world.hear(ask).unwrap(), Heard::Stale);
                },
                Step::Push => {
                    nonces += 1;
                    if let Some(answer) = world.answer(&shelf, nonces.to_string()) {
                        check_pieces(&answer.pieces, &shelf, &known)?;
                        client.on_the_way.push((answer.nonce, answer.pieces));
                    }
                    prop_assert_eq!(world.answer(&shelf, "again".to_owned()), None, "nothing is said twice");
                }
            }
        }
        client.is_content_with(&shelf)?;
    }

    #[test]
    fn incremental_conversations_end_well(steps in prop::collection::vec(step(), 0..60)) {
        let (mut delta, mut shelf, mut client) = (delta::Delta::default(), Shelf::default(), Client::default());
        let mut nonces = 0;
        client.wants = wanted(&[0]);
        let subscribe = client.wants.iter().cloned().collect();
        delta.hear(delta::Ask { subscribe, ..delta::Ask::default() }).unwrap();
        let settle = [Step::Push, Step::Read { refuse: false }];
        for step in steps.into_iter().chain(settle) {
            match step {
                Step::Put(name, version) => shelf.put(NAMES[name], version),
                Step::Take(name) => shelf.take(NAMES[name]),
                Step::Want(names) => {
                    let next = wanted(&names);
                    let ask = delta::Ask {
                        subscribe: next.difference(&client.wants).cloned().collect(),
                        unsubscribe: client.wants.difference(&next).cloned().collect(),
                        ..delta::Ask::default()
                    };
                    client.wants = next;
                    client.has.retain(|name, _| client.wants.contains(name));
                    prop_assert_eq!(delta.hear(ask).unwrap(), Heard::Asked);
                }
                Step::Read { refuse } => for (nonce, pieces) in std::mem::take(&mut client.on_the_way) {
                    client.receive(&nonce, &pieces);
                    client.has.retain(|name, _| client.wants.contains(name));
                    let error = refuse.then(|| "no".to_owned());
                    let expected = error.clone().map_or(Heard::Accepted, Heard::Refused);
                    prop_assert_eq!(delta.hear(delta::Ask { nonce, error, ..delta::Ask::default() }).unwrap(), expected);
                },
                Step::Repeat => if let Some(nonce) = client.read.last().cloned() {
                    let ask = delta::Ask { nonce, ..delta::Ask::default() };
                    prop_assert_eq!(delta.hear(ask).unwrap(), Heard::Stale);
                },
                Step::Push => {
                    nonces += 1;
                    if let Some(answer) = delta.answer(&shelf, nonces.to_string()) {
                        check_pieces(&answer.pieces, &shelf, &client.wants)?;
                        client.on_the_way.push((answer.nonce, answer.pieces));
                    }
                    prop_assert_eq!(delta.answer(&shelf, "again".to_owned()), None, "nothing is said twice");
                }
            }
        }
        client.is_content_with(&shelf)?;
    }
}
