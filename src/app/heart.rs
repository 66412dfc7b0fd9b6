//! Listens to the core that revokes, and says so: to the service manager's watchdog, to `live` of the health service,
//! and to readiness.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::manager::{self, Manager};
use crate::ready::Readiness;
use crate::workload::{Pulse, Workloads};

/// Follows whether the agent lives.
pub(super) type Life = watch::Receiver<bool>;

/// Starts the thread; it ends when nobody follows any more.
pub(super) fn start(workloads: Workloads, readiness: Readiness, manager: Manager) -> std::io::Result<Life> {
    let (life, follow) = watch::channel(true);
    // Three signs of life in the time within which the watchdog wants one.
    let every = manager::watchdog().map_or(EVERY, |period| (period / 3).min(EVERY));
    let heart = Heart { workloads, readiness, manager, life: Arc::new(life), every };
    std::thread::Builder::new().name("heart".to_owned()).spawn(move || heart.run())?;
    Ok(follow)
}

struct Heart {
    workloads: Workloads,
    readiness: Readiness,
    manager: Manager,
    life: Arc<watch::Sender<bool>>,
    every: Duration,
}

impl Heart {
    fn run(self) {
        while !self.life.is_closed() {
            let pulse = self.workloads.pulse(self.every);
            if pulse.is_alive() {
                self.manager.beat();
            }
            match trouble(pulse) {
                None => self.readiness.clear(CONCERN),
                Some(why) => self.readiness.raise(CONCERN, why),
            }
            self.life
                .send_if_modified(|alive| std::mem::replace(alive, pulse.is_alive()) != pulse.is_alive());
            std::thread::sleep(self.every);
        }
    }
}

fn trouble(pulse: Pulse) -> Option<&'static str> {
    match pulse {
        Pulse::Alive => None,
        Pulse::WaitingForDisk => Some("the revoker waits for the disk; memory refuses what has ended"),
        Pulse::NoWatch => Some("exits are not looked at; restart the agent"),
        Pulse::NoRevoker => Some("the revoker does not answer; restart the agent"),
    }
}

const CONCERN: &str = "revocation";
const EVERY: Duration = Duration::from_secs(10);
