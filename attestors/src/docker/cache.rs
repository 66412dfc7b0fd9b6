//! Which answers may be used again. Pure: events and answers come in, nothing is asked and no clock is read.
//!
//! What an engine says of a container does not change while it exists, but for its name, and that is told by an event.
//! So an answer stands until an event is about its container, and nothing stands while events are not heard. An answer
//! that was asked for before such an event, and comes after it, is used once and not remembered.

use std::collections::HashMap;
use std::hash::Hash;

/// Answers by container.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    hears: bool,
    answers: HashMap<K, V>,
    /// Rises with everything that could make an answer under way old.
    moment: u64,
    /// The moment from which on all events were heard.
    since: u64,
    /// When an event was last about a container of which an answer is under way.
    touched: HashMap<K, u64>,
    under_way: HashMap<K, usize>,
    most: usize,
}

/// A question under way.
#[derive(Debug)]
#[must_use]
pub(super) struct Asked<K> {
    key: K,
    moment: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    /// Hears nothing yet. Remembers so many at most.
    pub(super) fn new(most: usize) -> Self {
        Self {
            hears: false,
            answers: HashMap::new(),
            moment: 0,
            since: 0,
            touched: HashMap::new(),
            under_way: HashMap::new(),
            most,
        }
    }

    /// The answer that stands.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.answers.get(key).cloned()
    }

    /// Whether events are heard.
    pub(super) fn hears(&self) -> bool {
        self.hears
    }

    /// From now on every event is heard.
    pub(super) fn begin_to_hear(&mut self) {
        self.forget_all();
        self.hears = true;
    }

    /// Events may have been missed from now on.
    pub(super) fn stop_to_hear(&mut self) {
        self.forget_all();
        self.hears = false;
    }

    /// Something happened to that container.
    pub(super) fn heard(&mut self, key: &K) {
        self.answers.remove(key);
        self.moment += 1;
        if self.under_way.contains_key(key) {
            self.touched.insert(key.clone(), self.moment);
        }
    }

    /// The engine is about to be asked.
    pub(super) fn ask(&mut self, key: K) -> Asked<K> {
        *self.under_way.entry(key.clone()).or_default() += 1;
        Asked { key, moment: self.moment }
    }

    /// It has answered (or not: `None`).
    pub(super) fn answered(&mut self, asked: &Asked<K>, answer: Option<V>) {
        let key = &asked.key;
        let old = self.touched.get(key).is_some_and(|at| *at > asked.moment);
        // Asked before events were heard, so some may have been missed.
        let stands = self.hears && !old && asked.moment >= self.since;
        if let Some(left) = self.under_way.get_mut(key) {
            *left -= 1;
            if *left == 0 {
                self.under_way.remove(key);
                self.touched.remove(key);
            }
        }
        if let Some(answer) = answer.filter(|_| stands && self.answers.len() < self.most) {
            self.answers.insert(key.clone(), answer);
        }
    }

    fn forget_all(&mut self) {
        self.answers.clear();
        self.moment += 1;
        self.since = self.moment;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn remembered(cache: &mut Cache<u8, u32>, key: u8, value: u32) -> Option<u32> {
        let asked = cache.ask(key);
        cache.answered(&asked, Some(value));
        cache.get(&key)
    }

    #[test]
    fn an_answer_stands_until_an_event_is_about_its_container() {
        let mut cache = Cache::new(8);
        assert_eq!(remembered(&mut cache, 1, 10), None, "nothing is heard yet");
        cache.begin_to_hear();
        assert_eq!(remembered(&mut cache, 1, 11), Some(11));
        assert_eq!(remembered(&mut cache, 2, 20), Some(20));
        cache.heard(&1);
        assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(20)));
        cache.stop_to_hear();
        assert_eq!(cache.get(&2), None);
    }

    #[test]
    fn an_answer_that_an_event_overtook_is_not_remembered() {
        let mut cache = Cache::new(8);
        cache.begin_to_hear();
        let (first, second) = (cache.ask(1), cache.ask(1));
        cache.heard(&1);
        let third = cache.ask(1);
        cache.answered(&first, Some(1));
        assert_eq!(cache.get(&1), None);
        cache.answered(&third, Some(3));
        assert_eq!(cache.get(&1), Some(3), "asked after the event");
        cache.heard(&1);
        cache.answered(&second, Some(2));
        assert_eq!(cache.get(&1), None);
        let before = cache.ask(4);
        cache.stop_to_hear();
        cache.begin_to_hear();
        cache.answered(&before, Some(4));
        assert_eq!(cache.get(&4), None, "events between may have been missed");
    }

    #[test]
    fn it_remembers_so_many_and_no_more() {
        let mut cache = Cache::new(2);
        cache.begin_to_hear();
        assert_eq!((1..=3).filter_map(|key| remembered(&mut cache, key, 0)).count(), 2);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Ask(u8),
        Answer(usize),
        GiveUp(usize),
        Heard(u8),
        Begin,
        Stop,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => (0_u8..3).prop_map(Op::Ask),
            4 => (0_usize..6).prop_map(Op::Answer),
            1 => (0_usize..6).prop_map(Op::GiveUp),
            2 => (0_u8..3).prop_map(Op::Heard),
            1 => Just(Op::Begin),
            1 => Just(Op::Stop),
        ];
        proptest::collection::vec(op, 0..60)
    }

    proptest! {
        /// Whatever comes when: an answer that is given was asked for after the last event about its container, and
        /// while every event since was heard.
        #[test]
        fn no_history_gives_an_old_answer(ops in ops()) {
            let mut cache: Cache<u8, u64> = Cache::new(8);
            let (mut time, mut last, mut deaf) = (0_u64, HashMap::<u8, u64>::new(), 0);
            let mut open: Vec<(Asked<u8>, u8, u64)> = Vec::new();
            for op in ops {
                time += 1;
                match op {
                    Op::Ask(key) => open.push((cache.ask(key), key, time)),
                    // An answer is known by the time it was asked for.
                    Op::Answer(at) if at < open.len() => {
                        let (asked, _, when) = open.remove(at);
                        cache.answered(&asked, Some(when));
                    }
                    Op::GiveUp(at) if at < open.len() => cache.answered(&open.remove(at).0, None),
                    Op::Answer(_) | Op::GiveUp(_) => {}
                    Op::Heard(key) => {
                        cache.heard(&key);
                        last.insert(key, time);
                    }
                    Op::Begin => {
                        cache.begin_to_hear();
                        deaf = time;
                    }
                    Op::Stop => {
                        cache.stop_to_hear();
                        deaf = u64::MAX;
                    }
                }
                for key in 0..3 {
                    if let Some(when) = cache.get(&key) {
                        prop_assert!(when > last.get(&key).copied().unwrap_or_default() && when > deaf);
                    }
                }
            }
            for (asked, ..) in open {
                cache.answered(&asked, None);
            }
            prop_assert!(cache.under_way.is_empty() && cache.touched.is_empty(), "nothing is left behind");
        }
    }
}
