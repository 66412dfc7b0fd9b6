//! Hands work to one OS thread that takes it in batches. Bounded by weight for those who may be refused;
//! unbounded for those who may not (revocations, of which there are never more than leases).

mod worker;

pub use self::worker::{Attempts, Health, Worker};

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The sending half; when the last clone is dropped the receiver drains what is left and closes.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// The one receiving half. When it is dropped, what waits is dropped too and every offer is refused.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

/// What [`Receiver::take`] found.
#[derive(Debug)]
pub enum Taken<T> {
    /// Everything that waited, in order.
    Batch(Vec<T>),
    /// Nothing came while it was willing to wait.
    Idle,
    /// Nothing waits and nobody is left to send.
    Closed,
}

/// Why an item was not accepted; it was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// Too much waits already.
    Full,
    /// The receiver is gone.
    Closed,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
    limit: usize,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    weight: usize,
    senders: usize,
    receiving: bool,
}

/// A queue that refuses an offer once `limit` is waiting.
pub fn channel<T>(limit: usize) -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { items: Vec::new(), weight: 0, senders: 1, receiving: true });
    let shared = Arc::new(Shared { state, wake: Condvar::new(), limit });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Adds an item that counts as `weight`, unless that would be more than the limit.
    pub fn offer(&self, item: T, weight: usize) -> Result<(), Refused> {
        let mut state = self.0.lock();
        if state.weight.saturating_add(weight) > self.0.limit {
            return Err(Refused::Full);
        }
        state.weight += weight;
        self.add(state, item)
    }

    /// Adds an item that may be lost: only while less than half of the limit waits, so that those who need an answer have
    /// room.
    pub fn spare(&self, item: T, weight: usize) -> Result<(), Refused> {
        let mut state = self.0.lock();
        if state.weight.saturating_add(weight) > self.0.limit / 2 {
            return Err(Refused::Full);
        }
        state.weight += weight;
        self.add(state, item)
    }

    /// Adds an item whatever waits already.
    pub fn push(&self, item: T) -> Result<(), Refused> {
        self.add(self.0.lock(), item)
    }

    fn add(&self, mut state: MutexGuard<'_, State<T>>, item: T) -> Result<(), Refused> {
        if !state.receiving {
            return Err(Refused::Closed);
        }
        state.items.push(item);
        drop(state);
        self.0.wake.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// Waits for something, at most `patience` (for ever without), and takes everything that waits.
    pub fn take(&self, patience: Option<Duration>) -> Taken<T> {
        let idle = |state: &mut State<T>| state.items.is_empty() && state.senders > 0;
        let state = self.0.lock();
        let mut state = match patience {
            None => self.0.wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                let waited = self.0.wake.wait_timeout_while(state, patience, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.weight = 0;
        match std::mem::take(&mut state.items) {
            batch if !batch.is_empty() => Taken::Batch(batch),
            _ if state.senders > 0 => Taken::Idle,
            _ => Taken::Closed,
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.wake.notify_one();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiving = false;
        let left = std::mem::take(&mut state.items);
        // Items may hold senders of their own: never drop them under the lock.
        drop(state);
        drop(left);
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_everything_that_waits_in_order() {
        let (tx, rx) = channel(10);
        tx.offer('a', 1).unwrap();
        tx.clone().push('b').unwrap();
        assert!(matches!(rx.take(None), Taken::Batch(b) if b == ['a', 'b']));
        assert!(matches!(rx.take(Some(Duration::ZERO)), Taken::Idle));
        tx.push('c').unwrap();
        drop(tx);
        assert!(matches!(rx.take(None), Taken::Batch(b) if b == ['c']));
        assert!(matches!(rx.take(None), Taken::Closed));
    }

    #[test]
    fn offers_are_bounded_and_pushes_are_not() {
        let (tx, rx) = channel(3);
        assert_eq!(tx.offer(0, 3), Ok(()));
        assert_eq!(tx.offer(1, 1), Err(Refused::Full));
        assert_eq!(tx.push(2), Ok(()));
        assert!(matches!(rx.take(None), Taken::Batch(b) if b == [0, 2]));
        assert_eq!(tx.offer(3, 1), Ok(()), "taking makes room");
        drop(rx);
        assert_eq!(tx.offer(4, 1), Err(Refused::Closed));
    }

    #[test]
    fn a_waiting_receiver_is_woken() {
        let (tx, rx) = channel::<()>(1);
        let waiter = std::thread::spawn(move || matches!(rx.take(None), Taken::Closed));
        drop(tx);
        assert!(waiter.join().unwrap());
    }
}
