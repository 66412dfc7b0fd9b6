//! Listening to a workload's SVIDs.

use std::sync::{Arc, MutexGuard};

use tokio::sync::watch;

use super::shelf::Shelf;
use super::state::Member;
use super::{Admission, Shared, State, View, Workloads};
use crate::id::LeaseId;
use crate::issue::wit::WitSvid;
use crate::issue::x509::X509Svid;
use crate::lease::{Form, WorkloadId};
use crate::trust::TrustSnapshot;

/// One open stream. While it lives the workload's SVIDs of its form are kept fresh.
pub struct Subscription<T = X509Svid> {
    shared: Arc<Shared>,
    id: WorkloadId,
    form: Form,
    /// What an SVID is called.
    name: fn(&T) -> LeaseId,
    stream: u64,
    view: watch::Receiver<View<T>>,
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
            None => watch::Sender::new(View::Ended).subscribe(),
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
    pub async fn next(&mut self) -> (View<T>, Arc<TrustSnapshot>) {
        loop {
            let trust = Arc::clone(&self.trust.borrow_and_update());
            let view = self.view.borrow_and_update().clone();
            match view {
                View::Pending => {}
                View::Ready(_) if !self.shared.may_push(self.id, trust.generation()) => {}
                // A second look ended after the view was read: the process is the attested one again, but of an
                // attestation that earned it something else, or nothing.
                View::Ready(_) if self.view.has_changed().unwrap_or(true) => continue,
                View::Ready(svids) if !self.give(&svids, &trust) => continue,
                other => return (other, trust),
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
        tokio::select! {
            // An error means the sender is gone: the workload ended, and the view says so.
            _ = self.view.changed() => {}
            _ = self.trust.changed() => {}
        }
    }
}

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
    view: watch::Receiver<View>,
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
            None => watch::Sender::new(View::Ended).subscribe(),
        };
        state.core.hold(id);
        drop(state);
        Attendance { shared: Arc::clone(&self.0), id, view, trust: self.0.parts.trust.subscribe() }
    }
}

impl Attendance {
    /// The trust snapshot now, or `None` when the process has no identity any more.
    pub fn now(&mut self) -> Option<Arc<TrustSnapshot>> {
        let trust = Arc::clone(&self.trust.borrow_and_update());
        let ended = matches!(*self.view.borrow_and_update(), View::NoIdentity | View::Ended);
        (!ended).then_some(trust)
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
    fn forget_if(&self, idle: bool, id: WorkloadId, mut state: MutexGuard<'_, State>) {
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
