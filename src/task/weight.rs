//! How much room a task takes: the bytes of its texts, and something for each. Agents write most of it, so that the agent
//! must not keep more of it than it has set aside.

use super::{Charter, Detail, Grants, Only};

/// For the text's place in a list.
const EACH: usize = 32;

impl Charter {
    /// Bytes, about.
    pub fn weight(&self) -> usize {
        let params = self.params.iter().map(|(name, value)| name.len() + value.len() + 2 * EACH);
        let user = self.user.iter().map(|user| user.iss.len() + user.sub.len());
        self.purpose.len() + params.chain(user).sum::<usize>() + self.grants.weight()
    }
}

impl Grants {
    /// Bytes, about.
    pub(super) fn weight(&self) -> usize {
        self.details().iter().map(Detail::weight).sum()
    }
}

impl Detail {
    /// Bytes, about.
    pub(super) fn weight(&self) -> usize {
        let places = self.locations.iter().map(|place| place.bytes() + EACH);
        let paths = self.paths.names().map(|path| path.bytes() + EACH);
        let lists: [&Only<String>; 3] = [&self.datatypes, &self.tools, &self.methods];
        let words = lists.into_iter().flat_map(Only::names).map(|word| word.len() + EACH);
        let rest = self.actions.len() + self.identifier.as_ref().map_or(0, String::len);
        places.chain(paths).chain(words).sum::<usize>() + rest
    }
}
