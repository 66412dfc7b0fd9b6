//! Answers of many attestors put together into one attestation.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::attestation::{Answer, Attestation, Gap, Outcome};
use crate::backend::{Backend, Found, Silent, Subject};
use crate::selector::Strength;
use crate::set::AttestError;
use crate::ticks;

/// Whoever asks for an attestation, and what for. It is asked while back-ends are still at work, so that nobody waits
/// for an answer that changes nothing: with [`Attestation::gaps`] for what is not known yet.
pub trait Interest: Send + Sync {
    /// Whether what is still open could change what follows from the attestation.
    fn needs_more(&self, so_far: &Attestation) -> bool;
}

/// Wants to know everything.
#[derive(Clone, Copy, Debug)]
pub struct Everything;

impl Interest for Everything {
    fn needs_more(&self, _so_far: &Attestation) -> bool {
        true
    }
}

/// An attestor's answer and how long it took.
#[derive(Debug)]
pub(crate) struct Timed {
    pub(crate) name: &'static str,
    pub(crate) gap: Gap,
    pub(crate) took: Duration,
    pub(crate) found: Result<Found, Silent>,
}

type Running<'a> = Pin<Box<dyn Future<Output = (usize, Timed)> + Send + 'a>>;

/// Back-ends at work on one subject.
pub(crate) struct Asked<'a> {
    backends: &'a [Box<dyn Backend>],
    running: FuturesUnordered<Running<'a>>,
    /// By the back-end's place in the list, so that answers are in that order whoever came first.
    answers: Vec<Option<Answer>>,
    advice: bool,
}

impl fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

impl<'a> Asked<'a> {
    /// Sets all of them to work.
    pub(crate) fn all(backends: &'a [Box<dyn Backend>], subject: &'a Subject<'a>, advice: bool) -> Self {
        let running = FuturesUnordered::new();
        for (place, backend) in backends.iter().enumerate() {
            running.push(Box::pin(ask(place, backend.as_ref(), subject)) as Running<'a>);
        }
        Self { running, answers: backends.iter().map(|_| None).collect(), backends, advice }
    }

    /// Lets them work while `local` runs, then waits for those whose answer is needed.
    pub(crate) async fn beside(
        mut self,
        local: impl Future<Output = Result<Attestation, AttestError>>,
        interest: &dyn Interest,
    ) -> Result<Attestation, AttestError> {
        let mut early = Vec::new();
        let mut local = std::pin::pin!(local);
        let mut attestation = loop {
            tokio::select! {
                biased;
                done = &mut local => break done?,
                Some(one) = self.running.next(), if !self.running.is_empty() => early.push(one),
            }
        };
        for (place, timed) in early {
            self.take(&mut attestation, place, timed)?;
        }
        while !self.running.is_empty() {
            // What is open counts as unknown while the question is asked.
            let silent = attestation.gaps.len();
            attestation.gaps.extend(self.open().map(Gap::of));
            let needed = interest.needs_more(&attestation);
            attestation.gaps.truncate(silent);
            if !needed {
                break;
            }
            let Some((place, timed)) = self.running.next().await else { break };
            self.take(&mut attestation, place, timed)?;
        }
        self.close(&mut attestation);
        Ok(attestation)
    }

    fn open(&self) -> impl Iterator<Item = &'a dyn Backend> {
        let all = self.backends.iter().zip(&self.answers);
        all.filter(|(_, answer)| answer.is_none()).map(|(backend, _)| backend.as_ref())
    }

    fn take(&mut self, attestation: &mut Attestation, place: usize, timed: Timed) -> Result<(), AttestError> {
        let gap = Some(timed.gap);
        let answer = Answer { gap, ..absorb(attestation, timed, self.advice)? };
        if let Some(at) = self.answers.get_mut(place) {
            *at = Some(answer);
        }
        Ok(())
    }

    /// Nobody needs those that are still at work.
    fn close(self, attestation: &mut Attestation) {
        for (backend, answer) in self.backends.iter().zip(self.answers) {
            let answer = answer.unwrap_or_else(|| {
                attestation.gaps.push(Gap::of(backend.as_ref()));
                let gap = Some(Gap::of(backend.as_ref()));
                Answer {
                    kind: backend.name(),
                    took: Duration::ZERO,
                    outcome: Outcome::NotNeeded,
                    notes: Vec::new(),
                    gap,
                }
            });
            attestation.answers.push(answer);
        }
    }
}

async fn ask(place: usize, backend: &dyn Backend, subject: &Subject<'_>) -> (usize, Timed) {
    let (began, deadline) = (ticks::now(), backend.deadline());
    let answer = tokio::time::timeout(deadline, backend.attest(subject)).await;
    let found = answer.unwrap_or_else(|_late| Err(format!("no answer within {deadline:?}").into()));
    (place, Timed { name: backend.name(), gap: Gap::of(backend), took: began.elapsed(), found })
}

/// Takes over what an attestor found; what it could not say becomes a gap.
pub(crate) fn absorb(
    attestation: &mut Attestation,
    timed: Timed,
    advice: bool,
) -> Result<Answer, AttestError> {
    let Timed { name, gap, took, found } = timed;
    let mut answer = Answer { kind: name, took, outcome: Outcome::Answered(0), notes: Vec::new(), gap: None };
    match found {
        Err(Silent::Descriptors) => return Err(AttestError::Descriptors),
        Err(Silent::Because(why)) => {
            attestation.gaps.push(gap);
            answer.outcome = Outcome::Silent(why);
        }
        Ok(mut found) => {
            let before = found.selectors.len();
            if !advice {
                found.selectors.retain(|selector| selector.strength() > Strength::Advisory);
                if before > found.selectors.len() {
                    found.note("advice", "left out: the process is in another user namespace");
                }
            }
            answer.outcome = Outcome::Answered(found.selectors.len());
            answer.notes = found.notes;
            attestation.selectors.extend(found.selectors);
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests;
