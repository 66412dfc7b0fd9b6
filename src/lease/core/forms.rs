//! One thing for each form of SVID.

use std::collections::BTreeMap;

use super::{Slot, Workload};
use crate::id::EntryId;
use crate::lease::Form;

/// One `T` for each [`Form`].
#[derive(Debug, Default)]
pub(super) struct Forms<T> {
    pub(super) x509: T,
    pub(super) wit: T,
}

impl Form {
    pub(super) const ALL: [Self; 2] = [Self::X509, Self::Wit];
}

impl<T> Forms<T> {
    pub(super) fn get(&self, form: Form) -> &T {
        match form {
            Form::X509 => &self.x509,
            Form::Wit => &self.wit,
        }
    }

    pub(super) fn get_mut(&mut self, form: Form) -> &mut T {
        match form {
            Form::X509 => &mut self.x509,
            Form::Wit => &mut self.wit,
        }
    }
}

/// The slots of a workload. Each entry it holds has one among `x509`; among `wit` only once somebody has listened.
impl Forms<BTreeMap<EntryId, Slot>> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (Form, &EntryId, &Slot)> {
        Form::ALL
            .into_iter()
            .flat_map(|form| self.get(form).iter().map(move |(entry, slot)| (form, entry, slot)))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (Form, &EntryId)> {
        self.iter().map(|(form, entry, _)| (form, entry))
    }

    pub(super) fn of_entry_mut(&mut self, entry: &EntryId) -> impl Iterator<Item = &mut Slot> {
        self.x509.get_mut(entry).into_iter().chain(self.wit.get_mut(entry))
    }

    pub(super) fn remove(&mut self, entry: &EntryId) {
        self.x509.remove(entry);
        self.wit.remove(entry);
    }
}

impl Workload {
    /// Gives each entry held a slot for WIT-SVIDs, if somebody listens for these.
    pub(super) fn open_slots(&mut self) {
        if self.listeners.wit == 0 {
            return;
        }
        for (entry, held) in &self.slots.x509 {
            self.slots.wit.entry(entry.clone()).or_insert_with(|| Slot::new(held.subject, held.revision));
        }
    }
}
