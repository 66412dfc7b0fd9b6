//! Agent records by the fixed beginning of their patterns, so that a question looks at those that could be about it and
//! not at all of them.

use std::collections::HashMap;

use super::Agent;
use crate::id::SpiffeId;

/// All agent records of a catalogue.
#[derive(Clone, Debug, Default)]
pub(super) struct Agents {
    /// In the order of the files.
    all: Vec<Agent>,
    /// Places in `all`, by the path of the pattern up to its first star.
    by_beginning: HashMap<String, Vec<usize>>,
}

impl Agents {
    pub(super) fn new(all: Vec<Agent>) -> Self {
        let mut by_beginning: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, agent) in all.iter().enumerate() {
            by_beginning.entry(agent.pattern.beginning()).or_default().push(place);
        }
        Self { all, by_beginning }
    }

    pub(super) fn all(&self) -> &[Agent] {
        &self.all
    }

    /// Those whose pattern fits, in the order of the files.
    pub(super) fn about(&self, id: &SpiffeId) -> impl Iterator<Item = &Agent> {
        let named = beginnings(id.path()).filter_map(|beginning| self.by_beginning.get(beginning));
        let mut places: Vec<usize> = named.flatten().copied().collect();
        places.sort_unstable();
        places.dedup();
        places.into_iter().filter_map(|place| self.all.get(place)).filter(|agent| agent.pattern.matches(id))
    }
}

/// The empty path, then one segment more each time, to the whole.
fn beginnings(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _slash)| at);
    ends.filter_map(|end| path.get(..end)).chain(std::iter::once(path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::diag::Place;
    use crate::policy::IdPattern;

    fn agent(pattern: &str) -> Agent {
        Agent {
            pattern: IdPattern::parse(pattern).unwrap(),
            groups: BTreeSet::new(),
            owner: "x".to_owned(),
            templates: BTreeSet::new(),
            reviewed_at: None,
            place: Place { file: "a.toml".into(), line: 1, column: 1, field: String::new() },
        }
    }

    #[test]
    fn a_path_begins_with_nothing_and_ends_with_itself() {
        assert_eq!(beginnings("/a/b/c").collect::<Vec<_>>(), ["", "/a", "/a/b", "/a/b/c"]);
        assert_eq!(beginnings("").collect::<Vec<_>>(), [""]);
    }

    proptest! {
        #[test]
        fn whoever_is_looked_up_is_whoever_fits(
            patterns in proptest::collection::vec("spiffe://t[de](/(a|b|\\*)){0,3}/(a|b|\\*|\\*\\*)", 0..12),
            id in "spiffe://t[de](/(a|b|c)){1,5}",
        ) {
            let all: Vec<Agent> = patterns.iter().map(|pattern| agent(pattern)).collect();
            let id: SpiffeId = id.parse().unwrap();
            let fit = |agents: &[&Agent]| agents.iter().map(|agent| agent.pattern.to_string()).collect::<Vec<_>>();
            let wanted: Vec<&Agent> = all.iter().filter(|agent| agent.pattern.matches(&id)).collect();
            let wanted = fit(&wanted);
            let agents = Agents::new(all.clone());
            prop_assert_eq!(fit(&agents.about(&id).collect::<Vec<_>>()), wanted);
        }
    }
}
