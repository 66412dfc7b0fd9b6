//! The rules that hold after every step.

use super::*;
use crate::task::{Access, Action, Cascade, Ended};

impl Model {
    /// Carries out what an end has brought about, and holds it to the rules.
    pub(super) fn take(&mut self, cascade: &Cascade) -> Result<(), TestCaseError> {
        self.journal.forget(cascade.notes(), self.now);
        for ended in &cascade.ended {
            prop_assert!(self.ended.insert(ended.task), "{} ended twice", ended.task);
            for lease in &ended.leases {
                prop_assert_eq!(self.live.remove(lease), Some(ended.task));
                prop_assert!(self.revoked.insert(*lease), "revoked twice");
            }
            let held = self.live.iter().find(|(_, task)| **task == ended.task);
            prop_assert!(held.is_none(), "{held:?} survives its task");
        }
        let tolls = cascade.tolls(|id| self.tree.get(id).and_then(|task| task.parent));
        prop_assert_eq!(tolls.len(), cascade.ended.len());
        for (ended, toll) in cascade.ended.iter().zip(tolls) {
            let is_below = |other: &&Ended| {
                self.tree.lineage(other.task).iter().skip(1).any(|above| above.id == ended.task)
            };
            let below: Vec<&Ended> = cascade.ended.iter().filter(is_below).collect();
            let leases = below.iter().map(|other| other.leases.len()).sum::<usize>() + ended.leases.len();
            prop_assert_eq!((toll.descendants, toll.credentials), (below.len(), leases));
        }
        for (at, ended) in cascade.ended.iter().enumerate() {
            let parent = self.tree.get(ended.task).and_then(|task| task.parent);
            let later = cascade.ended.iter().skip(at + 1).any(|other| Some(other.task) == parent);
            prop_assert!(!later, "a child before its parent");
        }
        for void in &cascade.void {
            self.offers.retain(|offer| offer != void);
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        let all = self.tree.all();
        let live = all.iter().filter(|task| task.ended_at.is_none());
        prop_assert_eq!(live.clone().count(), self.tree.live());
        for task in live.clone() {
            self.check_live(task)?;
        }
        for task in all.iter().filter(|task| task.ended_at.is_some()) {
            prop_assert!(self.ended.contains(&task.id) && task.leases.is_empty() && task.children.is_empty());
            prop_assert!(matches!(self.tree.standing(task.id), Err(Refused::Ended(_))));
        }
        for (lease, task) in &self.live {
            prop_assert_eq!(self.tree.task_of(*lease), Some(*task));
            prop_assert!(!self.ended.contains(task));
        }
        prop_assert!(self.tree.counts_its_offers());
        for offer in self.tree.offers() {
            prop_assert!(!self.ended.contains(&offer.parent), "an offer of the dead");
        }
        let agents = live.map(|task| &task.charter.spiffe_id).fold(BTreeMap::new(), |mut counts, id| {
            *counts.entry(id).or_insert(0_usize) += 1;
            counts
        });
        prop_assert!(agents.values().all(|count| *count <= self.tree.bounds().tasks_per_agent));
        Ok(())
    }

    fn check_live(&self, task: &Task) -> Result<(), TestCaseError> {
        prop_assert!(!self.ended.contains(&task.id), "alive again");
        prop_assert!(task.deadline <= task.latest && task.deadline > self.now, "outlives its time");
        prop_assert!(task.latest <= task.begun + self.tree.bounds().life);
        let limits = &task.charter.limits;
        prop_assert!(limits.calls.is_none_or(|most| task.used.calls <= most), "over budget");
        prop_assert_eq!(task.used.calls, self.spent.get(&task.id).copied().unwrap_or_default());
        prop_assert!(task.children.len() <= usize::try_from(self.tree.bounds().children).unwrap());
        prop_assert!(task.depth <= self.tree.bounds().depth);
        prop_assert!(!task.charter.grants.is_empty());
        let Some(id) = task.parent else { return Ok(()) };
        let parent = self.tree.get(id).expect("an orphan");
        prop_assert!(parent.ended_at.is_none(), "outlives its parent");
        prop_assert!(parent.children.contains(&task.id) && parent.root == task.root);
        prop_assert!(task.deadline <= parent.deadline && task.latest <= parent.latest);
        prop_assert!(!parent.charter.require_isolated || task.charter.require_isolated);
        prop_assert!(limits.calls <= parent.charter.limits.calls || parent.charter.limits.calls.is_none());
        if self.tree.standing(id).is_err() {
            prop_assert!(self.tree.standing(task.id).is_err(), "acts while its parent may not");
        }
        Ok(())
    }

    /// Grants change when somebody joins, is renewed or narrowed, and never else.
    pub(super) fn check_grants(&self) -> Result<(), TestCaseError> {
        for task in self.tree.all().into_iter().filter(|task| task.ended_at.is_none()) {
            let Some(parent) = task.parent.and_then(|id| self.tree.get(id)) else { continue };
            let inside = parent.charter.grants.part(task.charter.grants.details());
            prop_assert!(inside.is_ok(), "{:?} beyond {:?}", task.charter.grants, parent.charter.grants);
            sampled(task, parent)?;
        }
        Ok(())
    }
}

/// Some operations, each allowed to the child only if to the parent.
fn sampled(child: &Task, parent: &Task) -> Result<(), TestCaseError> {
    for location in child.charter.grants.details().iter().flat_map(|detail| &detail.locations) {
        for (action, tool, whole_target) in [
            (Action::Read, None, true),
            (Action::Write, Some("edit"), false),
            (Action::Delete, Some("search"), false),
        ] {
            let access =
                Access { location, action, datatype: Some("internal"), tool, http: None, whole_target };
            let (own, above) = (child.charter.grants.allows(&access), parent.charter.grants.allows(&access));
            prop_assert!(!own || above, "{access:?}");
        }
    }
    Ok(())
}
