//! Turns the health of the ledger and of the audit log, and the validity of the authorities, into readiness.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::authority::Authorities;
use crate::clock::Clock;
use crate::drain::Watch;
use crate::queue::Health;
use crate::ready::Readiness;

/// Follows both until the drain starts.
pub(super) async fn follow(
    readiness: Readiness,
    mut ledger: watch::Receiver<Health>,
    mut audit: watch::Receiver<Health>,
    mut drain: Watch,
) {
    loop {
        for (name, health) in [("ledger", &mut ledger), ("audit log", &mut audit)] {
            let now = health.borrow_and_update().clone();
            match now {
                Health::Good => readiness.clear(name),
                Health::Failing { why } => readiness.raise(name, format!("{why}; nothing is issued")),
            }
        }
        tokio::select! {
            changed = ledger.changed() => if changed.is_err() { return },
            changed = audit.changed() => if changed.is_err() { return },
            () = drain.stopping() => return,
        }
    }
}

/// An authority outside its validity signs nothing for anybody. Looked at all the time, so that the concern comes
/// and goes with the clock and not with the next caller. Until the drain starts.
pub(super) async fn watch_validity(
    readiness: Readiness,
    authorities: Authorities,
    clock: Arc<dyn Clock>,
    mut drain: Watch,
) {
    loop {
        let current = authorities.current();
        let (x509, jwt) = (current.active_x509(), current.active_jwt());
        let wit = current.active_wit().map(|wit| ("WIT authority", (wit.not_before(), wit.not_after())));
        for (name, validity) in [
            ("X.509 authority", (x509.not_before(), x509.not_after())),
            ("JWT authority", (jwt.not_before(), jwt.not_after())),
        ]
        .into_iter()
        .chain(wit)
        {
            match outside(validity, clock.wall()) {
                Some(why) => readiness.raise(name, format!("{why}; nothing is issued")),
                None => readiness.clear(name),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = drain.stopping() => return,
        }
    }
}

/// The same bounds as an issuance has.
fn outside((from, until): (SystemTime, SystemTime), now: SystemTime) -> Option<&'static str> {
    match now {
        now if now < from => Some("not valid yet, the clock is behind"),
        now if now >= until => Some("expired"),
        _ => None,
    }
}

const LOOK: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;
    use crate::authority::KeyType;
    use crate::authority::testing::{authorities, now};
    use crate::drain;

    struct Set(Mutex<SystemTime>);

    impl Clock for Set {
        fn wall(&self) -> SystemTime {
            *self.0.lock().unwrap()
        }

        #[expect(clippy::disallowed_methods, reason = "an Instant cannot be made up")]
        fn monotonic(&self) -> Instant {
            Instant::now()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g08_the_concern_comes_and_goes_with_the_clock_alone() {
        let clock = Arc::new(Set(Mutex::new(now())));
        let readiness = Readiness::default();
        let set = authorities("example.org", KeyType::EcP256);
        let end = set.active_x509().not_after();
        let (_drain, watch) = drain::channel();
        let mut watching = Box::pin(watch_validity(
            readiness.clone(),
            Authorities::new(set),
            Arc::<Set>::clone(&clock),
            watch,
        ));
        for (wall, concerns) in
            [(now(), 0), (now() - Duration::from_secs(86_400), 3), (now(), 0), (end, 3), (now(), 0)]
        {
            *clock.0.lock().unwrap() = wall;
            assert!(tokio::time::timeout(LOOK * 2, &mut watching).await.is_err());
            assert_eq!(readiness.concerns().len(), concerns, "{:?}", readiness.concerns());
        }
    }
}
