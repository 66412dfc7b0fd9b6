//! How often, and how many at once, the processes of one uid may have themselves attested. One cheap call
//! costs several reads of `/proc`, a hash and calls to engines, so this stands before all of them. On a machine full of
//! containers many of them run as one uid: there each container is charged by itself, so that one does not starve
//! another. (Who is in which container is the kernel's word; a user cannot make himself more of them.)
//!
//! Pure but for a mutex: time is passed in. Memory is bounded: at most [`AdmissionLimits::keys`] uids are
//! remembered, and one that took nothing lately is forgotten first; a flood of uids beyond that is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mayfly_attestors::origin::ContainerId;

use super::wire::budget::{Bucket, Rate};

/// Limits for each uid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AdmissionLimits {
    /// Attestations started.
    pub rate: Rate,
    /// Attestations running at once.
    pub in_flight: usize,
    /// Uids remembered at once.
    pub keys: usize,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self { rate: Rate { per_second: 50, burst: 100 }, in_flight: 4, keys: 8_192 }
    }
}

/// Why an attestation may not start now; the caller is told to try again.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RateLimited {
    /// The uid has used up its share.
    #[error("too many attestations a second for this uid")]
    Rate,
    /// The uid has too many running.
    #[error("too many attestations of this uid at once")]
    InFlight,
    /// Too many different uids were busy lately.
    #[error("too many busy uids")]
    Keys,
}

/// Who is charged for an attestation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Payer {
    /// The user.
    pub uid: u32,
    /// In that container.
    pub container: Option<ContainerId>,
}

impl From<u32> for Payer {
    fn from(uid: u32) -> Self {
        Self { uid, container: None }
    }
}

/// Lets attestations start.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Shared>);

impl Admission {
    /// Nothing running, all buckets full.
    pub fn new(limits: AdmissionLimits) -> Self {
        Self(Arc::new(Shared { limits, uids: Mutex::default() }))
    }

    /// Lets one attestation start for `payer`. It counts as running until the ticket is dropped.
    ///
    /// # Errors
    /// When the payer is over its share; nothing is charged then.
    pub fn try_start(&self, payer: impl Into<Payer>, now: Instant) -> Result<Ticket, RateLimited> {
        let uid = payer.into();
        let limits = self.0.limits;
        let mut uids = self.0.lock();
        if !uids.contains_key(&uid) {
            if uids.len() >= limits.keys {
                uids.retain(|_, state| state.in_flight > 0 || !state.bucket.is_full(now));
            }
            if uids.len() >= limits.keys {
                return Err(RateLimited::Keys);
            }
            uids.insert(uid, State { bucket: Bucket::new(limits.rate, now), in_flight: 0 });
        }
        let state = uids.get_mut(&uid).ok_or(RateLimited::Keys)?;
        if state.in_flight >= limits.in_flight {
            return Err(RateLimited::InFlight);
        }
        if !state.bucket.take(1, now) {
            return Err(RateLimited::Rate);
        }
        state.in_flight += 1;
        Ok(Ticket { shared: Arc::clone(&self.0), uid })
    }
}

/// One running attestation; it has ended when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    shared: Arc<Shared>,
    uid: Payer,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(state) = self.shared.lock().get_mut(&self.uid) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
    }
}

#[derive(Debug)]
struct Shared {
    limits: AdmissionLimits,
    uids: Mutex<HashMap<Payer, State>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Payer, State>> {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    bucket: Bucket,
    in_flight: usize,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any starting point will do")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn one_uid_over_its_rate_does_not_touch_another() {
        let (admission, start) = (Admission::new(AdmissionLimits::default()), start());
        for _ in 0..100 {
            assert!(admission.try_start(1000, start).is_ok());
        }
        assert_eq!(admission.try_start(1000, start).err(), Some(RateLimited::Rate));
        assert!(admission.try_start(1001, start).is_ok());
        // 50 a second: one more after 20 ms, and only one.
        let later = start + Duration::from_millis(20);
        assert!(admission.try_start(1000, later).is_ok());
        assert_eq!(admission.try_start(1000, later).err(), Some(RateLimited::Rate));
    }

    #[test]
    fn a_fifth_attestation_at_once_waits_for_one_to_end() {
        let (admission, start) = (Admission::new(AdmissionLimits::default()), start());
        let mut running: Vec<_> = (0..4).map(|_| admission.try_start(7, start).unwrap()).collect();
        assert_eq!(admission.try_start(7, start).err(), Some(RateLimited::InFlight));
        running.pop();
        assert!(admission.try_start(7, start).is_ok());
    }

    #[test]
    fn containers_of_one_uid_do_not_starve_each_other() {
        let (admission, start) = (Admission::new(AdmissionLimits::default()), start());
        let of =
            |n: u8| Payer { uid: 7, container: ContainerId::parse(format!("{n:02x}").repeat(32).as_bytes()) };
        let running: Vec<_> = (0..4).map(|_| admission.try_start(of(1), start).unwrap()).collect();
        assert_eq!(admission.try_start(of(1), start).err(), Some(RateLimited::InFlight));
        assert!(admission.try_start(of(2), start).is_ok() && admission.try_start(7, start).is_ok());
        drop(running);
    }

    #[test]
    fn a_flood_of_uids_is_refused_until_they_have_been_quiet() {
        let limits = AdmissionLimits { keys: 10, ..AdmissionLimits::default() };
        let (admission, start) = (Admission::new(limits), start());
        let held = admission.try_start(0, start).unwrap();
        for uid in 1..10 {
            assert!(admission.try_start(uid, start).is_ok());
        }
        assert_eq!(admission.try_start(99, start).err(), Some(RateLimited::Keys));
        assert!(admission.try_start(5, start).is_ok(), "a known uid goes on");
        let later = start + Duration::from_secs(1);
        assert!(admission.try_start(99, later).is_ok());
        assert_eq!(admission.0.lock().len(), 2, "the running one is kept");
        drop(held);
    }

    proptest! {
        #[test]
        fn keys_and_running_attestations_stay_within_their_limits(
            steps in prop::collection::vec((0..20_u32, 0..50_u64, any::<bool>()), 0..300),
        ) {
            let limits = AdmissionLimits { rate: Rate { per_second: 5, burst: 5 }, in_flight: 3, keys: 8 };
            let (admission, mut now) = (Admission::new(limits), start());
            let mut running = Vec::new();
            for (uid, millis, ends) in steps {
                now += Duration::from_millis(millis);
                if ends && !running.is_empty() {
                    drop(running.swap_remove(uid as usize % running.len()));
                }
                running.extend(admission.try_start(uid, now).ok());
                let uids = admission.0.lock();
                prop_assert!(uids.len() <= limits.keys);
                prop_assert!(uids.values().all(|state| state.in_flight <= limits.in_flight));
                prop_assert_eq!(uids.values().map(|state| state.in_flight).sum::<usize>(), running.len());
            }
        }
    }
}
