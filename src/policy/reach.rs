//! What a frozen target stands for: its name and its audience, by the catalogue in force and by every one since it was
//! frozen. Another name, or another audience, thaws nothing. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::Catalogue;
use super::freeze::{Freeze, Frozen};

/// From names and audiences to the words that were frozen.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Reach {
    names: BTreeMap<String, BTreeSet<String>>,
    audiences: BTreeMap<String, BTreeSet<String>>,
}

impl Reach {
    /// Of everything that is frozen. What the catalogue says of a frozen target is kept with it, for a later one may say
    /// something else.
    pub(super) fn learn(all: &mut BTreeMap<Frozen, Freeze>, catalogue: &Catalogue) -> Self {
        let mut reach = Self::default();
        for (what, freeze) in all {
            let Frozen::Target(word) = what else { continue };
            // A word that is no name is an audience: of no target yet, or of one that is gone.
            let audience = catalogue.target(word).map_or(word, |target| &target.audience);
            freeze.audiences.insert(audience.clone());
            reach.add(word, &freeze.audiences, catalogue);
        }
        reach
    }

    fn add(&mut self, word: &str, audiences: &BTreeSet<String>, catalogue: &Catalogue) {
        let named = audiences.iter().filter_map(|audience| catalogue.target_for(audience));
        for name in named.map(|target| target.name.as_str()).chain([word]) {
            self.names.entry(name.to_owned()).or_default().insert(word.to_owned());
        }
        for audience in audiences {
            self.audiences.entry(audience.clone()).or_default().insert(word.to_owned());
        }
    }

    /// What was frozen that stops a target of that name.
    pub(super) fn of_name(&self, name: &str) -> impl Iterator<Item = &String> {
        self.names.get(name).into_iter().flatten()
    }

    /// What was frozen that stops everything for an audience.
    pub(super) fn of_audience(&self, audience: &str) -> impl Iterator<Item = &String> {
        self.audiences.get(audience).into_iter().flatten()
    }
}
