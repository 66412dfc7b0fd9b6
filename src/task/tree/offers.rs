//! Delegation: a part of a task is offered to one identity, and exists once that one has joined.

use std::time::{Duration, Instant, SystemTime};

use super::{Cascade, NewTask, Parent, Repeat, Timer, Times, Tree};
use crate::id::{DelegationId, SpiffeId, TaskId};
use crate::task::{Caller, Charter, Detail, Ending, Grants, Key, Limit, Refused, Task};

/// A part of a task, offered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    /// Its name; no secret.
    pub id: DelegationId,
    /// Whose part.
    pub parent: TaskId,
    /// What the child would be; its entry is the child's own, found when it joins.
    pub charter: Charter,
    /// How long the child would live; `None`: as long as the parent.
    pub life: Option<Duration>,
    /// Until then it can be taken up.
    pub expires: Instant,
    /// By whom it was, if it was.
    pub taken_by: Option<TaskId>,
    /// It waits for people: nobody can take it up.
    pub pending: bool,
    /// People have allowed it. What they said is not kept over a restart, so that nobody can take it up then.
    pub by_people: bool,
    /// What the request can be told by.
    pub key: Option<Key>,
}

/// An offer to make.
#[derive(Clone, Debug)]
pub struct NewOffer {
    /// Its name; never used twice.
    pub id: DelegationId,
    /// Whose part.
    pub parent: TaskId,
    /// `grants`: what is asked for, not yet held against the parent's.
    pub charter: Charter,
    /// What is asked for; nothing is inherited that is not.
    pub asked: Vec<Detail>,
    /// How long the child would live.
    pub life: Option<Duration>,
    /// The child works for itself, not for the parent's user.
    pub drops_user: bool,
    /// It waits for people first, so long at most; `None`: it does not.
    pub waits: Option<Duration>,
    /// What the request can be told by.
    pub key: Option<Key>,
}

impl Tree {
    /// The charter that such a child would have: within the parent's in every respect.
    ///
    /// # Errors
    /// [`Refused`] says in which respect it is not.
    pub fn part_of(&self, new: &NewOffer, caller: &Caller) -> Result<Charter, Refused> {
        let parent = self.of_caller(new.parent, caller)?;
        self.standing(new.parent)?;
        self.check_room_below(parent, true)?;
        let asked = new.charter.weight() + new.asked.iter().map(Detail::weight).sum::<usize>();
        if new.asked.len() > self.bounds.details || asked > self.bounds.charter {
            return Err(Refused::Limit(Limit::Details));
        }
        if new.charter.purpose.len() > self.bounds.purpose {
            return Err(Refused::Limit(Limit::Purpose));
        }
        Ok(within(new, parent, parent.charter.grants.part(&new.asked)?))
    }

    /// The offer that an earlier request with the same key made.
    ///
    /// # Errors
    /// [`Refused::Conflict`]: it was another request.
    pub fn offer_of_key(&self, key: Option<&Key>) -> Result<Option<&Offer>, Refused> {
        match key.map(|key| self.repeated(key)).transpose()?.flatten() {
            Some(Repeat::Offer(id)) => Ok(self.offers.get(id)),
            Some(Repeat::Task(_)) => Err(Refused::Conflict),
            Some(Repeat::NotAllowed(_)) | None => Ok(None),
        }
    }

    /// Makes an offer whose grants policy has cut. A repeated request makes none: the answer is the one that is there.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn offer(
        &mut self,
        new: NewOffer,
        cut: &Grants,
        caller: &Caller,
        now: Instant,
    ) -> Result<&Offer, Refused> {
        if let Some(known) = self.offer_of_key(new.key.as_ref())?.map(|offer| offer.id) {
            return self.offers.get(known).ok_or(Refused::NoSuchDelegation);
        }
        let charter = self.part_of(&new, caller)?;
        let charter = Charter { grants: charter.grants.cap(cut), ..charter };
        if charter.grants.is_empty() {
            return Err(Refused::NotGranted);
        }
        if let Some(parent) = self.tasks.get_mut(&new.parent) {
            parent.last_call = now;
        }
        let NewOffer { id, parent, life, waits, key, .. } = new;
        let expires = now + waits.unwrap_or(self.bounds.offer);
        let pending = waits.is_some();
        let offer =
            Offer { id, parent, charter, life, expires, taken_by: None, pending, by_people: false, key };
        Ok(self.take_in_offer(offer))
    }

    /// People have allowed an offer: it can be taken up until then, or as long as any other; whether it was there.
    pub fn allow_offer(&mut self, id: DelegationId, until: Instant, now: Instant) -> bool {
        let expires = until.min(now + self.bounds.offer);
        let allowed = self.offers.allow(id, expires);
        if allowed {
            self.timers.set(Timer::Offer(id), expires);
        }
        allowed
    }

    /// An offer, as long as it is remembered.
    pub fn offered(&self, id: DelegationId) -> Option<&Offer> {
        self.offers.get(id)
    }

    /// What the task has taken up, as long as that is remembered.
    pub fn taken_up(&self, task: TaskId) -> Option<&Offer> {
        self.offers.taken_by(task)
    }

    /// Every offer.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.offers.iter()
    }

    /// What somebody who joins now would be, and until when.
    ///
    /// # Errors
    /// [`Refused`]: the offer is not for that identity, was used, or nothing of it is left.
    pub fn part_offered(
        &self,
        id: DelegationId,
        who: &SpiffeId,
        now: Instant,
    ) -> Result<(Charter, Instant), Refused> {
        let offer = self.offers.get(id).ok_or(Refused::NoSuchDelegation)?;
        if offer.charter.spiffe_id != *who {
            return Err(Refused::NotYours);
        }
        if offer.taken_by.is_some() {
            return Err(Refused::DelegationUsed);
        }
        if offer.expires <= now {
            return Err(Refused::NoSuchDelegation);
        }
        if offer.pending {
            return Err(Refused::Pending);
        }
        self.standing(offer.parent)?;
        let parent = self.tasks.get(&offer.parent).ok_or(Refused::NoSuchTask)?;
        self.check_room_below(parent, false)?;
        // The parent may have become narrower since.
        let grants = offer.charter.grants.cap(&parent.charter.grants);
        if grants.is_empty() {
            return Err(Refused::NotGranted);
        }
        let limits = offer.charter.limits.within(&parent.charter.limits);
        let deadline = offer.life.map_or(parent.deadline, |life| parent.deadline.min(now + life));
        Ok((Charter { grants, limits, ..offer.charter.clone() }, deadline))
    }

    /// Takes up an offer: the charter of `new` is what [`Tree::part_offered`] said, cut by policy, and `life` the most that
    /// policy gives it. The offer is used then, whatever becomes of the task, unless it is [given back](Tree::give_back). A
    /// repeated request takes up nothing: the answer is the task that is there.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn join(&mut self, id: DelegationId, mut new: NewTask, now: Instant) -> Result<&Task, Refused> {
        if let Some(known) = self.task_of_key(new.key.as_ref())? {
            return self.tasks.get(&known).ok_or(Refused::NoSuchTask);
        }
        let (charter, deadline) = self.part_offered(id, &new.charter.spiffe_id, now)?;
        let deadline = new.life.map_or(deadline, |life| deadline.min(now + life));
        let grants = charter.grants.cap(&new.charter.grants);
        if grants.is_empty() {
            return Err(Refused::NotGranted);
        }
        let Charter { entry, evaluation, policy_version, .. } = new.charter;
        new.charter = Charter { grants, entry, evaluation, policy_version, ..charter };
        self.room_for(&new.charter, &new.seat)?;
        let parent = self.offers.get(id).and_then(|offer| self.tasks.get(&offer.parent));
        let parent = parent.ok_or(Refused::NoSuchTask)?;
        let times = Times { deadline, latest: parent.latest };
        let parent = Parent { id: parent.id, root: parent.root, depth: parent.depth };
        self.offers.take(id, new.id);
        Ok(self.insert(new, Some(&parent), times, now))
    }

    /// The offer that an earlier request with the same key made, and people did not allow.
    pub fn not_allowed(&self, key: Option<&Key>) -> Option<DelegationId> {
        match self.repeated(key?) {
            Ok(Some(Repeat::NotAllowed(id))) => Some(id),
            _ => None,
        }
    }

    /// People have not allowed an offer that waited for them: it is gone. Its key stands for that, so that who asks again
    /// without having heard the answer does not ask people again, until [`Tree::forget_answer`].
    pub fn refuse_offer(&mut self, id: DelegationId) {
        let key = self.offers.get(id).and_then(|offer| offer.key.clone());
        self.forget_offer(id);
        if let Some(key) = key {
            let name = (key.process, key.text.clone());
            self.not_allowed.insert(id, name.clone());
            self.keys.insert(name, (key, Repeat::NotAllowed(id)));
        }
    }

    /// Nobody knows any more what people said to an offer that they did not allow: its key is free.
    pub fn forget_answer(&mut self, id: DelegationId) {
        if let Some(name) = self.not_allowed.remove(&id) {
            self.keys.remove(&name);
        }
    }

    /// Takes an offer back, and ends what has come of it already.
    pub fn withdraw(&mut self, id: DelegationId, now: Instant, wall: SystemTime) -> Cascade {
        match self.take_back(id) {
            Some(child) => self.end(child, Ending::Failed, now, wall),
            None => Cascade::default(),
        }
    }

    /// Takes an offer back, and says what has come of it already.
    #[must_use = "what has come of it goes on"]
    pub fn take_back(&mut self, id: DelegationId) -> Option<TaskId> {
        let taken_by = self.offers.get(id)?.taken_by;
        self.forget_offer(id);
        taken_by
    }

    pub(super) fn take_in_offer(&mut self, offer: Offer) -> &Offer {
        if let Some(key) = &offer.key {
            self.keys.insert((key.process, key.text.clone()), (key.clone(), Repeat::Offer(offer.id)));
        }
        self.timers.set(Timer::Offer(offer.id), offer.expires);
        self.offers.insert(offer)
    }

    /// `offering`: one more than there are now, offers included.
    fn check_room_below(&self, parent: &Task, offering: bool) -> Result<(), Refused> {
        let limits = &parent.charter.limits;
        let deepest = limits.depth.unwrap_or(self.bounds.depth).min(self.bounds.depth);
        if parent.depth >= deepest {
            return Err(Refused::Limit(Limit::Depth));
        }
        let open = u32::try_from(self.offers.open_of(parent.id)).unwrap_or(u32::MAX);
        let live = u32::try_from(parent.children.len()).unwrap_or(u32::MAX);
        let most = limits.children.unwrap_or(self.bounds.children).min(self.bounds.children);
        // Whoever takes up an offer was counted when it was made.
        let (taken, ever) = if offering { (live.saturating_add(open), open) } else { (live, 0) };
        let ever = parent.children_ever.saturating_add(ever);
        if taken >= most || ever >= self.bounds.children_ever {
            return Err(Refused::Limit(Limit::Children));
        }
        Ok(())
    }

    pub(super) fn forget_offer(&mut self, id: DelegationId) {
        self.timers.cancel(&Timer::Offer(id));
        let Some(offer) = self.offers.remove(id) else { return };
        if let Some(key) = offer.key {
            self.keys.remove(&(key.process, key.text));
        }
    }
}

fn within(new: &NewOffer, parent: &Task, grants: Grants) -> Charter {
    let above = &parent.charter;
    let shortest = new.charter.credential_ttl.into_iter().chain(above.credential_ttl).min();
    Charter {
        grants,
        limits: new.charter.limits.within(&above.limits),
        require_isolated: new.charter.require_isolated || above.require_isolated,
        // The parent's or nobody's, never another's.
        user: above.user.clone().filter(|_| !new.drops_user),
        credential_ttl: shortest,
        ..new.charter.clone()
    }
}
