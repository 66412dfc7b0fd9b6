//! How a part of what a task may do is handed on: requested ∩ parent ∩ policy. Pure, and only ever narrower.
//!
//! Two operations. [`Grants::part`] is for what an agent asks for: whatever it names must be inside the parent's, or
//! the whole request is refused; what it leaves open is filled with the parent's. [`Grants::cap`] is for what has to
//! follow a parent that has become narrower: everything outside it goes. After either, whatever the result allows, the
//! parent allows.

use std::collections::BTreeSet;

use super::{Access, Detail, Exceeds, Grants, Only};
use crate::task::Action;
use crate::task::place::{Location, PathPattern};

impl<T: Clone + Ord> Only<T> {
    fn lets(&self, name: Option<&T>) -> bool {
        match (self, name) {
            (Self::Any, _) | (_, None) => true,
            (Self::These(names), Some(name)) => names.contains(name),
        }
    }

    /// Both at once. `None` when nothing is left. `inner` finds what two names have in common.
    fn both(&self, other: &Self, inner: impl Fn(&T, &T) -> Option<T>) -> Option<Self> {
        match (self, other) {
            (Self::Any, one) | (one, Self::Any) => Some(one.clone()),
            (Self::These(own), Self::These(theirs)) => {
                let pairs = own.iter().flat_map(|a| theirs.iter().map(move |b| (a, b)));
                let common: BTreeSet<T> = pairs.filter_map(|(a, b)| inner(a, b)).collect();
                (!common.is_empty()).then_some(Self::These(common))
            }
        }
    }

    /// Whether each name that is named is inside one of the other's.
    fn is_inside(&self, other: &Self, contains: impl Fn(&T, &T) -> bool) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::These(own), Self::These(theirs)) => {
                own.iter().all(|a| theirs.iter().any(|b| contains(b, a)))
            }
        }
    }
}

impl Detail {
    /// Whether everything that this one names is inside the other.
    fn is_inside(&self, outer: &Self) -> bool {
        let place = |own: &Location| outer.locations.iter().any(|theirs| theirs.contains(own));
        self.locations.iter().all(place)
            && self.actions.is_subset(&outer.actions)
            && self.datatypes.is_inside(&outer.datatypes, |a, b| a == b)
            && identifier_inside(self.identifier.as_deref(), outer.identifier.as_deref())
            && self.tools.is_inside(&outer.tools, |a, b| a == b)
            && self.methods.is_inside(&outer.methods, |a, b| a == b)
            && self.paths.is_inside(&outer.paths, PathPattern::contains)
    }

    /// What both allow. `None` when that is nothing.
    pub fn both(&self, other: &Self) -> Option<Self> {
        let pairs = self.locations.iter().flat_map(|a| other.locations.iter().map(move |b| (a, b)));
        let locations: BTreeSet<Location> = pairs.filter_map(|(a, b)| a.overlap(b)).cloned().collect();
        let actions: BTreeSet<Action> = self.actions.intersection(&other.actions).copied().collect();
        if locations.is_empty() || actions.is_empty() {
            return None;
        }
        let identifier = match (self.identifier.as_deref(), other.identifier.as_deref()) {
            (one, None) | (None, one) => one,
            (Some(a), Some(b)) if identifier_inside(Some(a), Some(b)) => Some(a),
            (Some(a), Some(b)) if identifier_inside(Some(b), Some(a)) => Some(b),
            _ => return None,
        };
        let same = |a: &String, b: &String| (a == b).then(|| a.clone());
        let deeper = |a: &PathPattern, b: &PathPattern| {
            let inner = if a.contains(b) { Some(b) } else { b.contains(a).then_some(a) };
            inner.cloned()
        };
        Some(Self {
            locations,
            actions,
            datatypes: self.datatypes.both(&other.datatypes, same)?,
            identifier: identifier.map(str::to_owned),
            tools: self.tools.both(&other.tools, same)?,
            methods: self.methods.both(&other.methods, same)?,
            paths: self.paths.both(&other.paths, deeper)?,
        })
    }

    /// Whether it lets that through.
    pub fn allows(&self, access: &Access<'_>) -> bool {
        let tool = access.tool.map(str::to_owned);
        let datatype = access.datatype.map(str::to_owned);
        self.actions.contains(&access.action)
            && self.is_about(access)
            && self.datatypes.lets(datatype.as_ref())
            && self.tools.lets(tool.as_ref())
            && self.allows_http(access)
            && (!access.whole_target || self.is_plain())
    }

    fn is_about(&self, access: &Access<'_>) -> bool {
        self.locations.iter().any(|own| {
            if access.whole_target {
                own.contains(access.location)
            } else {
                own.overlap(access.location).is_some()
            }
        })
    }

    fn allows_http(&self, access: &Access<'_>) -> bool {
        let Some((method, host, path)) = access.http else { return true };
        let text = path.to_string();
        let method = method.to_owned();
        path.is_one_path()
            && self.methods.lets(Some(&method))
            && (self.paths.is_any() || self.paths.names().any(|own| own.contains(path)))
            && self.locations.iter().any(|own| {
                let inside = own.overlap(access.location).is_some();
                inside && own.contains_request(host, &text) && access.location.contains_request(host, &text)
            })
    }

    /// Whether it is limited by nothing but place, action and class of data.
    pub fn is_plain(&self) -> bool {
        self.identifier.is_none() && self.tools.is_any() && self.methods.is_any() && self.paths.is_any()
    }

    /// What of it is about that place, and no more of where else it reaches.
    fn at(&self, location: &Location) -> Option<Self> {
        let locations: BTreeSet<Location> =
            self.locations.iter().filter_map(|own| own.overlap(location)).cloned().collect();
        (!locations.is_empty()).then(|| Self { locations, ..self.clone() })
    }
}

impl Grants {
    /// These details, whatever they are: for a root, before policy.
    pub fn of(details: Vec<Detail>) -> Self {
        let mut own = Self::default();
        details.into_iter().for_each(|detail| own.add(detail));
        own
    }

    /// The details.
    pub fn details(&self) -> &[Detail] {
        &self.0
    }

    /// Whether nothing at all is granted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The part of these that was asked for. Asked for nothing in particular: nothing.
    ///
    /// # Errors
    /// [`Exceeds`] names the first detail that is inside none of these.
    pub fn part(&self, asked: &[Detail]) -> Result<Self, Exceeds> {
        let mut part = Self::default();
        for (at, detail) in asked.iter().enumerate() {
            let outer = self.0.iter().filter(|own| detail.is_inside(own));
            let inner: Vec<Detail> = outer.filter_map(|own| detail.both(own)).collect();
            if inner.is_empty() {
                return Err(Exceeds(at));
            }
            inner.into_iter().for_each(|detail| part.add(detail));
        }
        Ok(part)
    }

    /// What these and a parent that has become narrower still have in common.
    pub fn cap(&self, parent: &Self) -> Self {
        let mut left = Self::default();
        for own in &self.0 {
            parent.0.iter().filter_map(|theirs| own.both(theirs)).for_each(|detail| left.add(detail));
        }
        left
    }

    /// Without the actions that `keep` does not want.
    pub fn keep(&self, mut keep: impl FnMut(&Detail, Action) -> bool) -> Self {
        let mut left = Self::default();
        for own in &self.0 {
            let actions: BTreeSet<Action> =
                own.actions.iter().copied().filter(|action| keep(own, *action)).collect();
            if !actions.is_empty() {
                left.add(Detail { actions, ..own.clone() });
            }
        }
        left
    }

    /// Whether one of the details lets that through.
    pub fn allows(&self, access: &Access<'_>) -> bool {
        self.0.iter().any(|detail| detail.allows(access))
    }

    /// What of these is about one place.
    pub fn at(&self, location: &Location) -> Self {
        let mut here = Self::default();
        self.0.iter().filter_map(|detail| detail.at(location)).for_each(|detail| here.add(detail));
        here
    }

    /// Every action of any detail.
    pub fn actions(&self) -> BTreeSet<Action> {
        self.0.iter().flat_map(|detail| &detail.actions).copied().collect()
    }

    /// What another detail allows anyway needs no line of its own.
    fn add(&mut self, detail: Detail) {
        if self.0.iter().any(|own| detail.both(own).as_ref() == Some(&detail)) {
            return;
        }
        self.0.retain(|own| own.both(&detail).as_ref() != Some(own));
        self.0.push(detail);
    }
}

/// `space:DOCS/7` and `space:DOCS:7` are inside `space:DOCS`. Nothing is inside everything; everything is inside
/// nothing in particular.
fn identifier_inside(own: Option<&str>, outer: Option<&str>) -> bool {
    match (own, outer) {
        (_, None) | (None, Some(_)) => true,
        (Some(own), Some(outer)) => {
            own.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
        }
    }
}
