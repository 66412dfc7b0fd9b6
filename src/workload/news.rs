//! News of back-ends about processes that live: a pod has other labels, a pod is gone, an attestor answers again.
//!
//! Whoever is known is looked at again, or loses what it has. Whoever is just being looked at is not known yet, and may
//! have been told what no longer holds: so news are remembered for a while, and an attestation counts only if none
//! came about its process since it began.

use std::collections::VecDeque;

use mayfly_attestors::{Attestation, News};

use super::{Shared, Workloads};
use crate::audit;
use crate::lease::{Cause, WorkloadId};

/// How many are remembered. An attestation that takes longer than so many of them is made again.
const REMEMBERED: usize = 4096;

/// The latest news, numbered.
#[derive(Debug, Default)]
pub(super) struct NewsLog {
    /// How many there have ever been.
    count: u64,
    recent: VecDeque<News>,
}

impl NewsLog {
    /// The moment, to be given to [`Self::overtook`] later.
    pub(super) fn now(&self) -> u64 {
        self.count
    }

    fn add(&mut self, news: News) {
        self.count += 1;
        self.recent.push_back(news);
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }

    /// Whether something came, after that moment, that may be about the process of this attestation.
    pub(super) fn overtook(&self, since: u64, attestation: &Attestation) -> bool {
        let new = usize::try_from(self.count.saturating_sub(since)).unwrap_or(usize::MAX);
        new > self.recent.len() || self.recent.iter().rev().take(new).any(|news| concerns(news, attestation))
    }
}

impl Workloads {
    /// Told by back-ends, on any thread; waits for nothing but the tables.
    pub fn on_news(&self, news: &News) {
        let mut state = self.0.lock();
        state.news.add(news.clone());
        let mut about = Vec::new();
        for (id, member) in &mut state.members {
            if concerns(news, &member.attestation) {
                member.stale = true;
                about.push(*id);
            }
        }
        drop(state);
        for id in about {
            match news {
                News::PodGone(_) | News::ContainerGone(_) => self.0.pod_is_gone(id),
                News::Container(_) | News::Pod(_) | News::Kind(_) => self.0.suspect(id),
            }
        }
    }
}

impl Shared {
    /// It lives, and its pod is no more: whoever deleted the pod by force meant the process to be gone.
    fn pod_is_gone(self: &std::sync::Arc<Self>, id: WorkloadId) {
        let process = {
            let state = self.lock();
            let Some(member) = state.members.get(&id).filter(|member| !member.identities.is_empty()) else {
                return;
            };
            std::sync::Arc::clone(&member.process)
        };
        self.note_cut(&process, audit::Cut::PodDeleted);
        self.drop_all(id, Cause::PodDeleted);
    }
}

fn concerns(news: &News, attestation: &Attestation) -> bool {
    let container = attestation.origin().container();
    match news {
        News::Container(id) => container.is_some_and(|container| container.id == *id),
        // Of a container whose cgroup names its pod, the pod decides.
        News::ContainerGone(id) => {
            container.is_some_and(|container| container.id == *id && container.pod.is_none())
        }
        News::Pod(uid) | News::PodGone(uid) => {
            container.is_some_and(|container| container.pod.as_ref() == Some(uid))
        }
        News::Kind(kind) => attestation.lacks(kind),
    }
}
