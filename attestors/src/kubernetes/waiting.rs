//! Attestations that wait for a pod to become known: counted, bounded, and woken by what they wait for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::table::Wanted;

/// At most so many for one pod: its containers have few processes that call at once.
pub(crate) const PER_POD: usize = 64;
/// And in all.
pub(crate) const IN_ALL: usize = 1024;

/// Everybody who waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<Mutex<Rooms>>);

#[derive(Debug, Default)]
struct Rooms {
    rooms: HashMap<Wanted, Room>,
    all: usize,
}

#[derive(Debug)]
struct Room {
    inside: usize,
    bell: watch::Sender<()>,
}

/// One who waits; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    waiting: Waiting,
    wanted: Wanted,
    bell: watch::Receiver<()>,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Full;

impl Waiting {
    /// Takes a place. To be taken *before* the last look at what is waited for, so that nothing slips between.
    pub(crate) fn enter(&self, wanted: &Wanted) -> Result<Waiter, Full> {
        let mut rooms = self.lock();
        if rooms.all >= IN_ALL || rooms.rooms.get(wanted).is_some_and(|room| room.inside >= PER_POD) {
            return Err(Full);
        }
        rooms.all += 1;
        let room = rooms
            .rooms
            .entry(wanted.clone())
            .or_insert_with(|| Room { inside: 0, bell: watch::Sender::new(()) });
        room.inside += 1;
        let bell = room.bell.subscribe();
        drop(rooms);
        Ok(Waiter { waiting: self.clone(), wanted: wanted.clone(), bell })
    }

    /// Wakes who waits for one of these.
    pub(crate) fn wake<'a>(&self, touched: impl IntoIterator<Item = &'a Wanted>) {
        let rooms = self.lock();
        for room in touched.into_iter().filter_map(|wanted| rooms.rooms.get(wanted)) {
            room.bell.send_replace(());
        }
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&self) {
        for room in self.lock().rooms.values() {
            room.bell.send_replace(());
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Resolves when there is news since the place was taken, or since this last resolved.
    pub(crate) async fn woken(&mut self) {
        // The sender lives in the room, and the room as long as somebody is inside.
        self.bell.changed().await.ok();
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut rooms = self.waiting.lock();
        rooms.all = rooms.all.saturating_sub(1);
        if let Some(room) = rooms.rooms.get_mut(&self.wanted) {
            room.inside = room.inside.saturating_sub(1);
            if room.inside == 0 {
                rooms.rooms.remove(&self.wanted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Wanted {
        Wanted::Pod(name.into())
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_waits_for_it_is_woken() {
        let waiting = Waiting::default();
        let (mut a, mut b) = (waiting.enter(&pod("a")).unwrap(), waiting.enter(&pod("b")).unwrap());
        waiting.wake([&pod("a"), &pod("c")]);
        a.woken().await;
        let second = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(second, b.woken()).await.is_err());
        waiting.wake_all();
        b.woken().await;
    }

    #[test]
    fn places_are_bounded_for_each_pod_and_in_all_and_given_back() {
        let waiting = Waiting::default();
        let mut inside: Vec<_> = (0..PER_POD).map(|_| waiting.enter(&pod("a")).unwrap()).collect();
        assert_eq!(waiting.enter(&pod("a")).err(), Some(Full));
        inside.extend((PER_POD..IN_ALL).map(|n| waiting.enter(&pod(&n.to_string())).unwrap()));
        assert_eq!(waiting.enter(&pod("b")).err(), Some(Full));
        inside.clear();
        assert_eq!(waiting.len(), 0);
        assert!(waiting.lock().rooms.is_empty());
        assert!(waiting.enter(&pod("a")).is_ok());
    }
}
