//! Listening to a workload's SVIDs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::shelf::{Shelf, Shown};
use super::state::Member;
use super::{Admission, Locked, Shared, View, Workloads};
use crate::id::LeaseId;
use crate::issue::wit::WitSvid;
use crate::issue::x509::X509Svid;
use crate::lease::{Form, WorkloadId};
use crate::trust::{TrustSnapshot, TrustView};

/// One open stream. While it lives the workload's SVIDs of its form are kept fresh.
pub struct Subscription<T = X509Svid> {
    shared: Arc<Shared>,
    id: WorkloadId,
    form: Form,
    /// What an SVID is called.
    name: fn(&T) -> LeaseId,
    stream: u64,
    view: watch::Receiver<Shown<T>>,
    trust: watch::Receiver<Arc<TrustSnapshot>>,
}

impl<T> std::fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Workloads {
    /// Opens a subscription to X.509-SVIDs; the first are made if there are none.
    pub fn subscribe(&self, admission: &Admission) -> Subscription {
        self.open(admission, Form::X509, |member| &mut member.x509, |svid| svid.id)
    }

    /// Opens a subscription to WIT-SVIDs; the first are made if there are none. Streams of one workload share them.
    pub fn subscribe_wits(&self, admission: &Admission) -> Subscription<WitSvid> {
        self.open(admission, Form::Wit, Member::wits, |svid| svid.id)
    }

    fn open<T>(
        &self,
        admission: &Admission,
        form: Form,
        shelf: fn(&mut Member) -> &mut Shelf<T>,
        name: fn(&T) -> LeaseId,
    ) -> Subscription<T> {
        let id = admission.id();
        let mut state = self.0.lock();
        let view = match state.members.get_mut(&id) {
            Some(member) => shelf(member).subscribe(),
            None => watch::Sender::new(View::Ended.into()).subscribe(),
        };
        let now = self.0.parts.clock.monotonic();
        let actions = state.core.listen(id, form, now);
        self.0.perform(&mut state, actions, now);
        state.show(id, now);
        let stream = state.new_stream();
        drop(state);
        let trust = self.0.parts.trust.subscribe();
        Subscription { shared: Arc::clone(&self.0), id, form, name, stream, view, trust }
    }
}

impl<T: Clone> Subscription<T> {
    /// Waits until there is something to tell, then says what: latest state wins. The process was found
    /// to be the attested one for exactly this state.
    ///
    /// SVIDs and trust belong together: verifiers are told of an authority before anything it signed is shown, and
    /// it leaves after everything it signed was replaced. An answer made of an older and a newer half could hold an
    /// SVID whose authority is not in the bundle beside it.
    pub async fn next(&mut self) -> (View<T>, TrustView) {
        loop {
            let trust = Arc::clone(&self.trust.borrow_and_update());
            let (view, federates_with) = {
                let seen = self.view.borrow_and_update();
                (seen.view.clone(), Arc::clone(&seen.federates_with))
            };
            match view {
                View::Pending => {}
                View::Ready(_) if !self.shared.may_push(self.id, trust.generation()) => {}
                // A second look ended after the view was read: the process is the attested one again, but of an
                // attestation that earned it something else, or nothing.
                View::Ready(_) if self.view.has_changed().unwrap_or(true) => continue,
                View::Ready(svids) if !self.give(&svids, &trust) => continue,
                other => return (other, TrustView::new(trust, federates_with)),
            }
            self.changed().await;
        }
    }

    /// Writes down what this stream is given; false when it is not of one moment. Under the state lock, so that an
    /// authority cannot leave in between: who counts the holders sees the stream in here or in the view.
    fn give(&self, svids: &[Arc<T>], trust: &TrustSnapshot) -> bool {
        let mut state = self.shared.lock();
        if self.trust.borrow().generation() != trust.generation() || self.view.has_changed().unwrap_or(true) {
            return false;
        }
        state.given.insert(self.stream, svids.iter().map(|svid| (self.name)(svid)).collect());
        true
    }

    /// Resolves when the view or the trust snapshot has changed since [`Subscription::next`] answered.
    pub async fn changed(&mut self) {
        let turn = turn(self.id, self.trust_readers());
        tokio::select! {
            // An error means the sender is gone: the workload ended, and the view says so.
            _ = self.view.changed() => {}
            () = after_change(&mut self.trust, turn) => {}
        }
    }

    fn trust_readers(&self) -> usize {
        self.shared.parts.trust.receiver_count()
    }
}

/// News of others (a CRL, a bundle) says nothing new of a holder's own SVIDs, and goes out with all of them. Sent to
/// a thousand at the same moment it would keep both CPUs from whoever waits for something else: those who only
/// verify, whoever connects, the next revocation. So each workload has a turn of its own.
async fn after_change(trust: &mut watch::Receiver<Arc<TrustSnapshot>>, turn: Duration) {
    // An error means that the agent stops; the view says so.
    trust.changed().await.ok();
    if turn < SHORTEST_TURN {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(turn).await;
    }
}

/// When a workload's turn comes if so many read the trust: as fast as they can be served, and never later than
/// [`LONGEST_TURN`]. Neighbours by number are spread.
fn turn(id: WorkloadId, readers: usize) -> Duration {
    let readers = u64::try_from(readers).unwrap_or(u64::MAX).max(1);
    let place = u32::try_from(id.0 % readers).unwrap_or(u32::MAX);
    EACH_TURN.saturating_mul(place).min(LONGEST_TURN)
}

/// About what one message costs.
const EACH_TURN: Duration = Duration::from_micros(60);
const LONGEST_TURN: Duration = Duration::from_millis(250);
/// What the timers can tell apart.
const SHORTEST_TURN: Duration = Duration::from_millis(1);

impl<T> Drop for Subscription<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.given.remove(&self.stream);
        let idle = state.core.unlisten(self.id, self.form);
        self.shared.forget_if(idle, self.id, state);
    }
}

/// One open stream of something that is not secret (bundles): it ends with the identity, like any other.
pub struct Attendance {
    shared: Arc<Shared>,
    id: WorkloadId,
    view: watch::Receiver<Shown>,
    trust: watch::Receiver<Arc<TrustSnapshot>>,
}

impl std::fmt::Debug for Attendance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attendance").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Workloads {
    /// Attends: the workload is watched while the answer lives, and no SVID is made for it.
    pub fn attend(&self, admission: &Admission) -> Attendance {
        let id = admission.id();
        let mut state = self.0.lock();
        let view = match state.members.get(&id) {
            Some(member) => member.x509.attend(),
            None => watch::Sender::new(View::Ended.into()).subscribe(),
        };
        state.core.hold(id);
        drop(state);
        Attendance { shared: Arc::clone(&self.0), id, view, trust: self.0.parts.trust.subscribe() }
    }
}

impl Attendance {
    /// What the process may know of the trust now, or `None` when it has no identity any more.
    pub fn now(&mut self) -> Option<TrustView> {
        let trust = Arc::clone(&self.trust.borrow_and_update());
        let seen = self.view.borrow_and_update();
        let ended = matches!(seen.view, View::Ended) || !seen.has_identity;
        (!ended).then(|| TrustView::new(trust, Arc::clone(&seen.federates_with)))
    }

    /// Resolves when [`Attendance::now`] may answer otherwise.
    pub async fn changed(&mut self) {
        tokio::select! {
            // An error means the workload ended; `now` says so.
            _ = self.view.changed() => {}
            _ = self.trust.changed() => {}
        }
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let idle = state.core.unhold(self.id);
        self.shared.forget_if(idle, self.id, state);
    }
}

impl Shared {
    fn forget_if(&self, idle: bool, id: WorkloadId, mut state: Locked<'_>) {
        if idle && state.core.forget(id) {
            state.remove(id);
            drop(state);
            self.reaper.forget(id.0);
        }
    }

    /// Whether the workload's program is still the attested one; asked once for each trust generation.
    fn may_push(self: &Arc<Self>, id: WorkloadId, generation: u64) -> bool {
        let (process, attestation) = {
            let state = self.lock();
            let Some(member) = state.members.get(&id) else { return false };
            if member.suspect {
                return false;
            }
            if member.checked_for == Some(generation) {
                return true;
            }
            (Arc::clone(&member.process), Arc::clone(&member.attestation))
        };
        // Also when it could not be looked at: the second look is repeated until it can.
        if self.compare(&process, &attestation).is_err() {
            self.suspect(id);
            return false;
        }
        if let Some(member) = self.lock().members.get_mut(&id) {
            member.checked_for = Some(generation);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::authorities;

    #[test]
    fn few_are_told_at_once_and_many_one_after_the_other() {
        assert!((0..100).all(|id| turn(WorkloadId(id), 10) < SHORTEST_TURN));
        let turns: BTreeSet<Duration> = (0..1_000).map(|id| turn(WorkloadId(id), 1_000)).collect();
        assert_eq!(turns.len(), 1_000, "no two at the same moment");
        assert_eq!(turns.last(), Some(&(EACH_TURN * 999)));
        assert!(turn(WorkloadId(u64::MAX), usize::MAX) <= LONGEST_TURN);
        assert_eq!(turn(WorkloadId(99_999), 100_000), LONGEST_TURN);
        assert_eq!(turn(WorkloadId(7), 0), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_begins_with_the_change_and_shows_the_latest() {
        let domain = "example.org".parse().unwrap();
        let snapshot = TrustSnapshot::new(&domain, &authorities("example.org", KeyType::EcP256));
        let (sender, mut trust) = watch::channel(Arc::new(snapshot.clone()));
        let began = tokio::time::Instant::now();
        let wait = after_change(&mut trust, Duration::from_millis(5));
        let change = async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            sender.send_replace(Arc::new(
                snapshot.with_crls(&[(crate::id::KeyId::from_bytes([1; 20]), Bytes::from_static(b"one"))]),
            ));
        };
        tokio::join!(wait, change);
        assert_eq!(began.elapsed(), Duration::from_millis(8));
        assert_eq!(trust.borrow_and_update().crls(), [Bytes::from_static(b"one")]);
    }
}
