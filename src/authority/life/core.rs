//! The state machine itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{AuthorityKind, Inconsistent, LifeSettings, Moment, Record, Refused, Revoking, Step};
use crate::authority::State;

/// All authorities of this agent and where they stand.
#[derive(Clone, Debug)]
pub struct Life {
    settings: LifeSettings,
    records: Vec<Record>,
    /// Since when, of this run's uptime, verifiers can have it.
    published: BTreeMap<String, Duration>,
    /// Those whose trust anchors verifiers had before.
    trusted: BTreeSet<String>,
}

impl Life {
    /// Goes on from what an earlier run wrote down; nothing counts as published yet. Authorities of a kind that is
    /// switched off are revoked: nobody may go on trusting a key that no bundle will name.
    ///
    /// # Errors
    /// [`Inconsistent`] records.
    pub fn restore(mut records: Vec<Record>, settings: LifeSettings, now: u64) -> Result<Self, Inconsistent> {
        let (mut names, mut active) = (BTreeSet::new(), BTreeSet::new());
        for record in &mut records {
            if !names.insert(record.id.clone()) {
                return Err(Inconsistent::Twice(record.id.clone()));
            }
            if record.state == State::Active && !active.insert(record.kind) {
                return Err(Inconsistent::TwoActive(record.kind));
            }
            if !settings.kinds.contains(&record.kind) {
                revoke(record, now);
            }
        }
        Ok(Self { settings, records, published: BTreeMap::new(), trusted: BTreeSet::new() })
    }

    /// Every record, revoked ones included, in the order in which they were made.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The one that signs.
    pub fn active(&self, kind: AuthorityKind) -> Option<&Record> {
        self.of(kind).find(|one| one.state == State::Active)
    }

    /// The successor, if there is one.
    pub fn prepared(&self, kind: AuthorityKind) -> Option<&Record> {
        self.of(kind).find(|one| one.state == State::Prepared)
    }

    /// Those that leave the bundle as soon as what they signed has been replaced.
    pub fn leaving(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|one| one.in_bundle() && one.revoking_since.is_some())
    }

    /// The kinds there are to be.
    pub fn kinds(&self) -> &[AuthorityKind] {
        &self.settings.kinds
    }

    /// Everything in the bundle is in verifiers' reach from now on.
    pub fn mark_published(&mut self, up: Duration) {
        for record in self.records.iter().filter(|one| one.in_bundle()) {
            self.published.entry(record.id.clone()).or_insert(up);
        }
    }

    /// Verifiers had this one's trust anchors before it was made: it needs no lead.
    pub fn mark_trusted(&mut self, id: &str) {
        self.trusted.insert(id.to_owned());
    }

    /// The first thing that is due by age.
    pub fn due(&self, now: Moment) -> Option<Step> {
        self.due_without(now, None)
    }

    /// As [`Self::due`], but no successor of that kind: it cannot be made just now.
    pub fn due_without(&self, now: Moment, kept_back: Option<AuthorityKind>) -> Option<Step> {
        let due = |kind: &AuthorityKind| {
            let step = self.due_of(*kind, now);
            step.filter(|step| kept_back.is_none_or(|kind| *step != Step::Prepare(kind)))
        };
        self.settings.kinds.iter().find_map(due).or_else(|| self.expired(now))
    }

    /// How long until [`Self::due`] may answer otherwise, if both clocks run on. Never zero when nothing is due.
    pub fn next(&self, now: Moment) -> Option<Duration> {
        self.next_without(now, None)
    }

    /// As [`Self::next`], for [`Self::due_without`].
    pub fn next_without(&self, now: Moment, kept_back: Option<AuthorityKind>) -> Option<Duration> {
        let until = |wall: u64| Duration::from_secs(wall.saturating_sub(now.wall));
        let of_kind = |kind: &AuthorityKind| {
            if kept_back == Some(*kind) && self.prepared(*kind).is_none() {
                return None;
            }
            let Some(active) = self.active(*kind) else { return Some(Duration::ZERO) };
            match self.prepared(*kind) {
                None => Some(until(active.half())),
                Some(successor) => {
                    let by_lead = self.ready_at(successor)?.saturating_sub(now.up);
                    Some(until(self.turn_of(active)).max(by_lead).min(until(active.last_moment())))
                }
            }
        };
        let ends = self.records.iter().filter(|one| one.in_bundle() && one.state != State::Active);
        let all = self.settings.kinds.iter().filter_map(of_kind).chain(ends.map(|one| until(one.not_after)));
        all.min().map(|wait| wait.max(SHORTEST))
    }

    /// Takes a new authority in, as prepared. It counts as published from the next [`Self::mark_published`] on.
    ///
    /// # Errors
    /// [`Refused`]: switched off, or there is a prepared one, or the name was used before.
    pub fn add(&mut self, record: Record) -> Result<(), Refused> {
        self.may_prepare(record.kind)?;
        if self.records.iter().any(|one| one.id == record.id) {
            let kind = record.kind;
            return Err(Refused::AlreadyPrepared { kind, id: record.id });
        }
        self.records.push(Record { state: State::Prepared, ..record });
        Ok(())
    }

    /// Whether a successor may be made now.
    ///
    /// # Errors
    /// [`Refused`]: switched off, or there is one.
    pub fn may_prepare(&self, kind: AuthorityKind) -> Result<(), Refused> {
        if !self.settings.kinds.contains(&kind) {
            return Err(Refused::SwitchedOff(kind));
        }
        match self.prepared(kind) {
            Some(there) => Err(Refused::AlreadyPrepared { kind, id: there.id.clone() }),
            None => Ok(()),
        }
    }

    /// An operator's order: the prepared authority of that kind signs from now on, the active one is old. `hurry`
    /// does without the lead, never without publication. Answers who takes over.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn activate(&mut self, kind: AuthorityKind, hurry: bool, now: Moment) -> Result<String, Refused> {
        if !self.settings.kinds.contains(&kind) {
            return Err(Refused::SwitchedOff(kind));
        }
        let id = self.prepared(kind).ok_or(Refused::NonePrepared(kind))?.id.clone();
        let since = self.published.get(&id).copied();
        let published = since.map_or(Duration::ZERO, |since| now.up.saturating_sub(since));
        let lead = self.lead_of(&id);
        if since.is_none() || (published < lead && !hurry) {
            let lead = lead.as_secs();
            return Err(Refused::TooEarly { id, published: published.as_secs(), lead });
        }
        self.take_over(&id, now.wall);
        Ok(id)
    }

    /// Carries out [`Step::Activate`]. Does nothing for one that is not prepared or not published.
    pub fn take_over(&mut self, id: &str, now: u64) {
        let Some(kind) = self.records.iter().find(|one| one.id == id && one.state == State::Prepared) else {
            return;
        };
        let kind = kind.kind;
        if !self.published.contains_key(id) {
            return;
        }
        for record in self.records.iter_mut().filter(|one| one.kind == kind) {
            if record.state == State::Active {
                record.state = State::Old;
                record.old_at = Some(now);
            } else if record.id == id {
                record.state = State::Active;
                record.activated_at = Some(now);
            }
        }
    }

    /// An operator's order: everything this one signed is to be replaced at once.
    ///
    /// # Errors
    /// [`Refused`] for one that is not old.
    pub fn taint(&mut self, id: &str, now: u64) -> Result<(), Refused> {
        let record = self.find(id)?;
        let instead = match record.state {
            State::Old => {
                record.state = State::Tainted;
                record.tainted_at = Some(now);
                return Ok(());
            }
            State::Active => {
                "prepare and activate a successor first, so that there is something to replace it with"
            }
            State::Prepared => "it has signed nothing; revoke it",
            State::Tainted => "there is nothing to do",
            State::Revoked => "nothing trusts it any more",
        };
        Err(Refused::State { id: id.to_owned(), state: record.state, instead })
    }

    /// An operator's order: this one leaves the bundle. One that signed is tainted first, and leaves when
    /// everything it signed has been replaced.
    ///
    /// # Errors
    /// [`Refused`] for one that is active, or revoked already.
    pub fn revoke(&mut self, id: &str, now: u64) -> Result<Revoking, Refused> {
        let record = self.find(id)?;
        let instead = match record.state {
            State::Prepared => {
                revoke(record, now);
                self.trim();
                return Ok(Revoking::Done);
            }
            State::Old | State::Tainted => {
                record.state = State::Tainted;
                record.tainted_at.get_or_insert(now);
                record.revoking_since.get_or_insert(now);
                return Ok(Revoking::WhenReplaced);
            }
            State::Active => "prepare and activate a successor first",
            State::Revoked => "there is nothing to do",
        };
        Err(Refused::State { id: id.to_owned(), state: record.state, instead })
    }

    /// What this one signed has been replaced: it is out, if it was to leave.
    pub fn finish(&mut self, id: &str, now: u64) {
        if let Some(record) = self.records.iter_mut().find(|one| one.id == id && one.revoking_since.is_some())
        {
            revoke(record, now);
        }
        self.trim();
    }

    /// Carries out [`Step::Expire`]: forgets one whose validity is over. Never the active one.
    pub fn expire(&mut self, id: &str, now: u64) {
        let over = |one: &Record| one.id == id && one.not_after <= now;
        self.records.retain(|one| !over(one) || matches!(one.state, State::Active | State::Revoked));
        self.forget_gone();
    }

    /// Nothing that was ever signed counts any more: all are revoked, and new ones are due.
    pub fn condemn(&mut self, now: u64) {
        self.records.iter_mut().for_each(|record| revoke(record, now));
        self.trim();
    }

    fn due_of(&self, kind: AuthorityKind, now: Moment) -> Option<Step> {
        let successor = self.prepared(kind);
        let active = self.active(kind).filter(|one| now.wall < one.not_after);
        let Some(active) = active else {
            return match successor.filter(|one| now.wall < one.not_after) {
                None if successor.is_some() => None,
                None => Some(Step::Prepare(kind)),
                Some(one) => {
                    let id = one.id.clone();
                    let hurried = self.ready_at(one)? > now.up;
                    Some(Step::Activate { id, hurried })
                }
            };
        };
        let Some(successor) = successor else {
            return (now.wall >= active.half()).then_some(Step::Prepare(kind));
        };
        let hurried = self.ready_at(successor)? > now.up;
        let at = if hurried { active.last_moment() } else { self.turn_of(active) };
        (now.wall >= at).then(|| Step::Activate { id: successor.id.clone(), hurried })
    }

    fn expired(&self, now: Moment) -> Option<Step> {
        let over =
            |one: &&Record| one.not_after <= now.wall && !matches!(one.state, State::Active | State::Revoked);
        self.records.iter().find(over).map(|one| Step::Expire(one.id.clone()))
    }

    /// When, by uptime, verifiers have had the time they are given; `None` while it is not published.
    fn ready_at(&self, record: &Record) -> Option<Duration> {
        self.published.get(&record.id).map(|since| since.saturating_add(self.lead_of(&record.id)))
    }

    fn lead_of(&self, id: &str) -> Duration {
        if self.trusted.contains(id) { Duration::ZERO } else { self.settings.lead }
    }

    /// From when on a successor that verifiers know takes over.
    fn turn_of(&self, active: &Record) -> u64 {
        if self.settings.prompt.contains(&active.kind) { 0 } else { active.last_sixth() }
    }

    fn of(&self, kind: AuthorityKind) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |one| one.kind == kind)
    }

    fn find(&mut self, id: &str) -> Result<&mut Record, Refused> {
        self.records.iter_mut().find(|one| one.id == id).ok_or_else(|| Refused::Unknown(id.to_owned()))
    }

    /// Keeps the latest revoked ones, for people to see.
    fn trim(&mut self) {
        let revoked = self.records.iter().filter(|one| !one.in_bundle()).count();
        let mut surplus = revoked.saturating_sub(REVOKED_KEPT);
        self.records.retain(|one| {
            let drop = surplus > 0 && !one.in_bundle();
            surplus -= usize::from(drop);
            !drop
        });
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        let there: BTreeSet<&str> =
            self.records.iter().filter(|one| one.in_bundle()).map(|one| one.id.as_str()).collect();
        self.published.retain(|id, _| there.contains(id.as_str()));
        self.trusted.retain(|id| there.contains(id.as_str()));
    }
}

fn revoke(record: &mut Record, now: u64) {
    if record.state != State::Revoked {
        record.state = State::Revoked;
        record.revoked_at = Some(now);
        record.revoking_since = None;
    }
}

/// How many revoked authorities are remembered for `mayfly authority show`.
const REVOKED_KEPT: usize = 64;
/// So that a shell never spins.
const SHORTEST: Duration = Duration::from_millis(10);
