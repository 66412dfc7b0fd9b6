//! The `process` attestor: where a process comes from and what is being done to it. All advice: any process can
//! arrange most of it, so it narrows and never suffices.
//!
//! `exe_deleted:true`: its program has no name any more. `no_new_privs:true`: neither it nor its children gain rights
//! by exec. `traced:true`: some thread has a tracer. `ancestor_sha256:HEX`: the program of each live ancestor, up to a
//! number; each is pinned while it is read, and is an ancestor only if its child still called it parent after it was
//! pinned, and it is older than its child. An ancestor that cannot be measured is left out, with a note.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::{Found, Silent};
use crate::host::Host;
use crate::measure::{MeasureError, Measurer};
use crate::process::procfs::Stat;
use crate::process::{PinError, Pinned, ProcDir, Process};
use crate::selector::Selector;
use crate::target::{Exe, MOST_THREADS, Target};
use crate::{failpoint, text, ticks};

/// Looks at threads and ancestors.
#[derive(Debug)]
pub(crate) struct Lineage {
    pub(crate) ancestors: usize,
}

/// What was found, and whether some thread is traced.
#[derive(Debug)]
pub(crate) struct LineageFound {
    pub(crate) found: Found,
    pub(crate) traced: bool,
    /// Why an ancestor is missing, if only for want of time or place.
    pub(crate) unmeasured: Option<String>,
}

impl Lineage {
    /// Ends by itself at `until` at the latest, with what it has.
    pub(crate) async fn attest(
        &self,
        target: &Target<'_>,
        measurer: &Measurer,
        with_ancestors: bool,
        until: Instant,
    ) -> Result<LineageFound, Silent> {
        let mut found = Found::default();
        if target.exe.as_ref().is_ok_and(|exe| exe.facts.anonymous) {
            found.add("process", "exe_deleted", "true".to_owned());
        }
        if target.status.no_new_privs {
            found.add("process", "no_new_privs", "true".to_owned());
        }
        let traced = match traced(target).await.map_err(|e| Silent::of("/proc/PID/task", &e))? {
            Some(traced) => traced,
            None => {
                found.note("traced", "too many threads to look at: taken as traced");
                true
            }
        };
        if traced {
            found.add("process", "traced", "true".to_owned());
        }
        let mut found = LineageFound { found, traced, unmeasured: None };
        if with_ancestors {
            self.ancestors(target, measurer, until, &mut found).await?;
        }
        Ok(found)
    }

    /// Whatever cannot be read is left out with a note, except for want of a descriptor: that is about us. What was not
    /// measured in time is unknown.
    async fn ancestors(
        &self,
        target: &Target<'_>,
        measurer: &Measurer,
        until: Instant,
        found: &mut LineageFound,
    ) -> Result<(), Silent> {
        let mut child = match target.dir.stat() {
            Ok(stat) => Link { stat, dir: None },
            Err(error) => return left_out(&mut found.found, Silent::of("stat", &error)),
        };
        for _ in 0..self.ancestors {
            let parent = match parent_of(
                target.process.host(),
                child.dir.as_ref().unwrap_or(&target.dir),
                &child.stat,
            ) {
                Ok(Some(parent)) => parent,
                Ok(None) => return Ok(()),
                Err(why) => return left_out(&mut found.found, why),
            };
            let left = until.saturating_duration_since(ticks::now());
            let of_parent = |why| format!("process {}: {why}", parent.process.pid());
            match tokio::time::timeout(left, measure(&parent, target.process.uid(), measurer)).await {
                Ok(Ok(selector)) => found.found.selectors.push(selector),
                Ok(Err(Unmeasured::Passing(why))) => found.unmeasured = Some(of_parent(why)),
                Ok(Err(Unmeasured::Silent(why))) => {
                    left_out(&mut found.found, why.about(&format!("process {}", parent.process.pid())))?;
                }
                Err(_) => {
                    found.unmeasured = Some(of_parent("no time left for it".to_owned()));
                    return Ok(());
                }
            }
            child = Link { stat: parent.stat, dir: Some(parent.dir) };
        }
        Ok(())
    }
}

/// Why an ancestor has no hash.
enum Unmeasured {
    /// Another try may succeed.
    Passing(String),
    Silent(Silent),
}

impl From<Silent> for Unmeasured {
    fn from(why: Silent) -> Self {
        Self::Silent(why)
    }
}

fn left_out(found: &mut Found, why: Silent) -> Result<(), Silent> {
    match why {
        Silent::Descriptors => Err(why),
        Silent::Because(why) => {
            found.note("ancestor_sha256", &why);
            Ok(())
        }
    }
}

/// A process whose parent is looked for; without a directory it is the target itself.
struct Link {
    stat: Stat,
    dir: Option<ProcDir>,
}

/// Pins the parent. `None` at the top, or when the parent went meanwhile: its child then has another one, and the
/// chain as it was is gone.
fn parent_of(host: &Arc<Host>, child: &ProcDir, stat: &Stat) -> Result<Option<Pinned>, Silent> {
    let number = stat.parent;
    if number == 0 {
        return Ok(None);
    }
    let parent = match Process::of_number(host, number) {
        Ok(parent) => parent,
        Err(PinError::Exited) => return Ok(None),
        Err(PinError::Descriptors) => return Err(Silent::Descriptors),
        Err(error) => return Err(format!("process {number}: {error}").into()),
    };
    // Asked after the parent was pinned: so the one that was pinned is the parent, or was when it was pinned.
    match child.stat() {
        Ok(still) if still.parent == number && parent.stat.start_time <= still.start_time => Ok(Some(parent)),
        Ok(_) => Ok(None),
        Err(error) => Err(Silent::of(&format!("a child of process {number}"), &error)),
    }
}

impl Process {
    /// What is seen of those that it descends from, nearest first, at most `limit`: each is pinned while it is looked at.
    /// Good to refuse by and for nothing else: a process can arrange to have other parents, and what cannot be read ends
    /// the list.
    pub fn ancestors<T>(&self, limit: usize, mut see: impl FnMut(&Self) -> T) -> Vec<T> {
        let mut found = Vec::new();
        let Ok(mut dir) = ProcDir::open(self.host(), self.pid()) else { return found };
        while found.len() < limit {
            let Ok(stat) = dir.stat() else { break };
            // The number may be another's by now.
            if found.is_empty() && stat.start_time != self.key().start_time {
                break;
            }
            let Ok(Some(parent)) = parent_of(self.host(), &dir, &stat) else { break };
            found.push(see(&parent.process));
            dir = parent.dir;
        }
        found
    }
}

async fn measure(parent: &Pinned, uid: u32, measurer: &Measurer) -> Result<Selector, Unmeasured> {
    let open = || Exe::open(&parent.dir.live_task_in(parent.stat)?);
    let subject = open().map_err(|e| Silent::of("program", &e))?.subject(&parent.process, uid);
    let sha256 = if failpoint::fails("attest.ancestor") {
        Err(MeasureError::Deadline)
    } else {
        measurer.sha256(&subject).await
    };
    let sha256 = sha256.map_err(|e| unmeasured(&e))?;
    if !parent.process.is_alive() {
        return Err(Silent::from("exited while it was measured").into());
    }
    Ok(Selector::new("process", "ancestor_sha256", text::hex(&sha256)))
}

fn unmeasured(error: &MeasureError) -> Unmeasured {
    match error {
        error if error.is_ours() => Unmeasured::Silent(Silent::Descriptors),
        error if error.is_passing() => Unmeasured::Passing(error.to_string()),
        error => Unmeasured::Silent(error.to_string().into()),
    }
}

/// Whether any thread has a tracer; `None` when there are more than can be looked at.
async fn traced(target: &Target<'_>) -> io::Result<Option<bool>> {
    if target.status.tracer != 0 {
        return Ok(Some(true));
    }
    let tasks = target.dir.tasks()?;
    if tasks.len() > MOST_THREADS {
        return Ok(None);
    }
    if tasks.len() == 1 {
        return Ok(Some(false));
    }
    for (at, task) in tasks.into_iter().enumerate() {
        if at % 64 == 63 {
            // A thousand reads take some ten milliseconds: others run in between.
            tokio::task::yield_now().await;
        }
        if target.dir.is_task_traced(&task)? {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
}
