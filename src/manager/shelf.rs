//! What the manager keeps for us, by name. Pure: it decides what is sent, and sends nothing.

use std::collections::BTreeSet;

/// Names that the manager holds a descriptor for.
#[derive(Debug)]
pub(super) struct Shelf {
    room: usize,
    held: BTreeSet<String>,
    /// Passed at start, and not claimed yet. Part of `held`.
    inherited: BTreeSet<String>,
    full: bool,
}

/// What to do about a descriptor that is to be kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// Hand it over.
    Send,
    /// The manager has it.
    Known,
    /// It would be refused.
    Full {
        /// Nobody was told since there was room.
        first: bool,
    },
}

impl Shelf {
    /// With so much room, and what is there already.
    pub(super) fn new(room: usize, names: impl IntoIterator<Item = String>) -> Self {
        let held: BTreeSet<String> = names.into_iter().collect();
        Self { room: room.min(MOST), inherited: held.clone(), held, full: false }
    }

    pub(super) fn keep(&mut self, name: &str) -> Answer {
        self.inherited.remove(name);
        if self.held.contains(name) {
            return Answer::Known;
        }
        if self.held.len() >= self.room {
            return Answer::Full { first: !std::mem::replace(&mut self.full, true) };
        }
        self.full = false;
        self.held.insert(name.to_owned());
        Answer::Send
    }

    /// Whether there was something to let go.
    pub(super) fn let_go(&mut self, name: &str) -> bool {
        self.inherited.remove(name);
        self.held.remove(name)
    }

    /// What nobody has claimed since the start.
    pub(super) fn unclaimed(&self) -> Vec<String> {
        self.inherited.iter().cloned().collect()
    }
}

/// A pidfd's name is its inode, in base 36. All names travel to the next start in one environment variable, and the
/// kernel takes no more than 128 KiB of that.
pub(super) fn pidfd_name(inode: u64) -> String {
    let mut digits = Vec::new();
    let mut rest = inode;
    loop {
        let digit = u32::try_from(rest % 36).ok().and_then(|digit| char::from_digit(digit, 36));
        digits.push(digit.unwrap_or('0'));
        rest /= 36;
        if rest == 0 {
            break;
        }
    }
    digits.push('p');
    digits.iter().rev().collect()
}

/// 8,192 names of 15 bytes are 120 KiB; whatever the manager allows, more would keep us from being started.
const MOST: usize = 8192;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_passed_and_not_claimed_is_given_up() {
        let mut shelf = Shelf::new(10, ["a", "b", "c"].map(str::to_owned));
        assert_eq!(shelf.keep("b"), Answer::Known);
        assert!(shelf.let_go("c"));
        assert_eq!(shelf.unclaimed(), ["a"]);
    }

    #[test]
    fn a_full_shelf_says_so_once_until_there_is_room() {
        let mut shelf = Shelf::new(1, []);
        assert_eq!(shelf.keep("a"), Answer::Send);
        assert_eq!(shelf.keep("b"), Answer::Full { first: true });
        assert_eq!(shelf.keep("b"), Answer::Full { first: false });
        assert!(shelf.let_go("a") && !shelf.let_go("a"));
        assert_eq!(shelf.keep("b"), Answer::Send);
        assert_eq!(shelf.keep("c"), Answer::Full { first: true });
    }

    #[test]
    fn all_names_together_fit_into_one_environment_variable() {
        let longest = pidfd_name(u64::MAX).len() + 1;
        assert!(MOST * longest < 128 * 1024, "{longest}");
        assert_eq!((pidfd_name(0), pidfd_name(35), pidfd_name(36)), ("p0".into(), "pz".into(), "p10".into()));
    }

    proptest! {
        #[test]
        fn different_processes_have_different_names(a: u64, b: u64) {
            prop_assert_eq!(a == b, pidfd_name(a) == pidfd_name(b));
        }

        #[test]
        fn the_manager_is_never_sent_more_than_it_takes(
            room in 0_usize..5,
            steps in proptest::collection::vec((any::<bool>(), 0_u8..8), 0..60),
        ) {
            let mut shelf = Shelf::new(room, []);
            let mut sent = BTreeSet::new();
            for (keep, name) in steps {
                let name = name.to_string();
                if keep {
                    match shelf.keep(&name) {
                        Answer::Send => prop_assert!(sent.insert(name)),
                        Answer::Known => prop_assert!(sent.contains(&name)),
                        Answer::Full { .. } => prop_assert!(!sent.contains(&name)),
                    }
                } else {
                    prop_assert_eq!(shelf.let_go(&name), sent.remove(&name));
                }
                prop_assert!(sent.len() <= room);
            }
        }
    }
}
