//! What whoever follows a task is told, and when. Pure: each look is given the task as it is and the credentials that it
//! holds; out comes what has changed since the last look. However late a look comes, only the newest state counts, and
//! what is remembered is no more than what the task holds.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::id::LeaseId;

/// A live credential of the task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Held {
    /// Its lease.
    pub lease: LeaseId,
    /// For whom.
    pub audience: String,
    /// Since when.
    pub issued: SystemTime,
    /// Until when.
    pub expires: SystemTime,
}

impl Held {
    /// Time to ask for another: four fifths of its life are over.
    fn ripe(&self) -> SystemTime {
        let life = self.expires.duration_since(self.issued).unwrap_or_default();
        self.issued + life * 4 / 5
    }
}

/// What there is to tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Note<T> {
    /// The task is otherwise than before, or has been seen for the first time.
    Changed(T),
    /// A credential runs out soon. Once for each.
    Expiring(Held),
    /// A credential is refused though its time was not over.
    Revoked(Held),
}

/// What one follower has been told.
#[derive(Clone, Debug)]
pub struct Follower<T> {
    shown: Option<T>,
    known: BTreeMap<LeaseId, (Held, bool)>,
}

impl<T> Default for Follower<T> {
    fn default() -> Self {
        Self { shown: None, known: BTreeMap::new() }
    }
}

impl<T: Clone + PartialEq> Follower<T> {
    /// What is new. What expired by itself needs no word.
    pub fn look(&mut self, task: T, held: Vec<Held>, now: SystemTime) -> Vec<Note<T>> {
        let mut notes = Vec::new();
        if self.shown.as_ref() != Some(&task) {
            self.shown = Some(task.clone());
            notes.push(Note::Changed(task));
        }
        let mut before = std::mem::take(&mut self.known);
        for one in held {
            let told = before.remove(&one.lease).is_some_and(|(_, told)| told);
            let ripe = one.ripe() <= now;
            if ripe && !told {
                notes.push(Note::Expiring(one.clone()));
            }
            self.known.insert(one.lease, (one, told || ripe));
        }
        let revoked = before.into_values().map(|(gone, _)| gone).filter(|gone| gone.expires > now);
        notes.extend(revoked.map(Note::Revoked));
        notes
    }

    /// When there will be something to tell though nothing changes.
    pub fn wakes_at(&self) -> Option<SystemTime> {
        self.known.values().filter(|(_, told)| !told).map(|(held, _)| held.ripe()).min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::from_unix_seconds;

    fn at(seconds: u64) -> SystemTime {
        from_unix_seconds(1_800_000_000 + seconds)
    }

    fn held(n: u8, issued: u64, life: u64) -> Held {
        let lease = LeaseId::from_bytes([n; 16]);
        Held { lease, audience: "a".to_owned(), issued: at(issued), expires: at(issued + life) }
    }

    #[test]
    fn the_first_look_shows_the_task_and_the_next_only_what_is_new() {
        let mut follower = Follower::default();
        assert_eq!(follower.look(1, Vec::new(), at(0)), [Note::Changed(1)]);
        assert_eq!(follower.look(1, Vec::new(), at(1)), []);
        assert_eq!(follower.wakes_at(), None);
        let one = held(1, 0, 100);
        assert_eq!(follower.look(2, vec![one.clone()], at(2)), [Note::Changed(2)]);
        assert_eq!(follower.wakes_at(), Some(at(80)));
        assert_eq!(follower.look(2, vec![one.clone()], at(79)), []);
        assert_eq!(follower.look(2, vec![one.clone()], at(80)), [Note::Expiring(one.clone())]);
        assert_eq!(follower.wakes_at(), None);
        assert_eq!(follower.look(2, vec![one.clone()], at(90)), [], "once");
        assert_eq!(follower.look(2, Vec::new(), at(99)), [Note::Revoked(one)]);
        let other = held(2, 100, 10);
        follower.look(2, vec![other], at(101));
        assert_eq!(follower.look(2, Vec::new(), at(110)), [], "it has expired");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Issue(u8),
        Revoke(u8),
        Wait(u8),
        Look,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (1..60_u8).prop_map(Step::Issue),
            1 => any::<u8>().prop_map(Step::Revoke),
            2 => (0..30_u8).prop_map(Step::Wait),
            3 => Just(Step::Look),
        ]
    }

    proptest! {
        #[test]
        fn each_credential_is_told_of_once_and_only_what_was_taken_back_counts_as_revoked(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let (mut follower, mut now, mut next) = (Follower::default(), 0_u64, 0_u8);
            let (mut live, mut taken): (Vec<Held>, BTreeSet<LeaseId>) = (Vec::new(), BTreeSet::new());
            let (mut expiring, mut revoked) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Issue(life) if next < u8::MAX => {
                        next += 1;
                        live.push(held(next, now, life.into()));
                    }
                    Step::Issue(_) => {}
                    Step::Revoke(n) if !live.is_empty() => {
                        let gone = live.remove(usize::from(n) % live.len());
                        taken.insert(gone.lease);
                    }
                    Step::Revoke(_) => {}
                    Step::Wait(seconds) => {
                        now += u64::from(seconds);
                        live.retain(|one| one.expires > at(now));
                    }
                    Step::Look => {
                        for note in follower.look((), live.clone(), at(now)) {
                            match note {
                                Note::Changed(()) => {}
                                Note::Expiring(one) => {
                                    prop_assert!(expiring.insert(one.lease), "twice");
                                    prop_assert!(at(now) + Duration::from_secs(1) > one.ripe());
                                    prop_assert!(live.contains(&one));
                                }
                                Note::Revoked(one) => {
                                    prop_assert!(revoked.insert(one.lease), "twice");
                                    prop_assert!(taken.contains(&one.lease));
                                }
                            }
                        }
                        prop_assert_eq!(follower.known.len(), live.len(), "nothing else is remembered");
                        let late = live.iter().filter(|one| one.ripe() <= at(now));
                        prop_assert!(late.map(|one| one.lease).all(|lease| expiring.contains(&lease)));
                        prop_assert!(follower.wakes_at().is_none_or(|wake| wake > at(now)));
                    }
                }
            }
        }
    }
}
