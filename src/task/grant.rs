//! What a task may do, and how a part of it is handed on: requested ∩ parent ∩ policy. Pure, and only ever narrower.
//!
//! Two operations. [`Grants::part`] is for what an agent asks for: whatever it names must be inside the parent's, or
//! the whole request is refused; what it leaves open is filled with the parent's. [`Grants::cap`] is for what has to
//! follow a parent that has become narrower: everything outside it goes. After either, whatever the result allows, the
//! parent allows.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Action;
use super::place::{Location, PathPattern, PlaceError};

/// The one type of detail there is.
pub const TARGET_ACCESS: &str = "urn:mayfly:rar:target-access";

/// A set of names, or no limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Only<T: Ord> {
    /// No limit of its own.
    Any,
    /// These and no others. Never empty.
    These(BTreeSet<T>),
}

/// One kind of access.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Detail {
    /// Where; never empty.
    pub locations: BTreeSet<Location>,
    /// What; never empty.
    pub actions: BTreeSet<Action>,
    /// To which classes of data.
    pub datatypes: Only<String>,
    /// To which one resource.
    pub identifier: Option<String>,
    /// With which MCP tools.
    pub tools: Only<String>,
    /// With which HTTP methods.
    pub methods: Only<String>,
    /// At which HTTP paths.
    pub paths: Only<PathPattern>,
}

/// A detail as somebody wrote it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawDetail {
    /// See [`TARGET_ACCESS`].
    pub kind: String,
    /// See [`Detail::locations`]; an empty list is a mistake.
    pub locations: Vec<String>,
    /// See [`Detail::actions`]; an empty list is a mistake.
    pub actions: Vec<String>,
    /// Empty: [`Only::Any`], as in the lists below.
    pub datatypes: Vec<String>,
    /// Empty: none.
    pub identifier: String,
    /// See [`Detail::tools`].
    pub tools: Vec<String>,
    /// See [`Detail::methods`].
    pub methods: Vec<String>,
    /// See [`Detail::paths`].
    pub paths: Vec<String>,
}

impl RawDetail {
    /// As RFC 9396 has it: a member that sets no limit is left out.
    pub fn to_json(&self) -> Value {
        let mut members = Map::new();
        members.insert("type".to_owned(), self.kind.clone().into());
        let lists = [
            ("locations", &self.locations),
            ("actions", &self.actions),
            ("datatypes", &self.datatypes),
            ("tools", &self.tools),
            ("methods", &self.methods),
            ("paths", &self.paths),
        ];
        let named = lists.into_iter().filter(|(_, list)| !list.is_empty());
        members.extend(named.map(|(name, list)| (name.to_owned(), list.clone().into())));
        if !self.identifier.is_empty() {
            members.insert("identifier".to_owned(), self.identifier.clone().into());
        }
        Value::Object(members)
    }
}

/// What is wrong with a detail: the field, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DetailError {
    /// Another type than [`TARGET_ACCESS`].
    #[error("`type` must be `{TARGET_ACCESS}`")]
    Type,
    /// A list that must name something names nothing.
    #[error("`{0}` must name at least one")]
    Empty(&'static str),
    /// Longer than [`MAX_NAMES`].
    #[error("`{0}` may name at most {MAX_NAMES}")]
    Long(&'static str),
    /// A location or path.
    #[error("`{0}`: a value {1}")]
    Place(&'static str, PlaceError),
    /// A word of another list.
    #[error("`{0}`: a value is not one of those that exist, or has characters that no name has")]
    Word(&'static str),
}

/// One operation on one target, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Where the target is.
    pub location: &'a Location,
    /// Of which class.
    pub action: Action,
    /// Of the target, if it is known.
    pub datatype: Option<&'a str>,
    /// The MCP tool.
    pub tool: Option<&'a str>,
    /// Method, host and path.
    pub http: Option<(&'a str, &'a str, &'a PathPattern)>,
    /// Nothing downstream will see the grant: only what is limited to no part of the target will do.
    pub whole_target: bool,
}

/// What a task may do: the union of its details.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Grants(Vec<Detail>);

/// Which of the details asked for is not inside anything the parent has; the first is 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("detail {0} is not inside what the parent may do")]
pub struct Exceeds(pub usize);

impl<T: Clone + Ord> Only<T> {
    /// [`Only::Any`] when there are none.
    pub fn of(names: impl IntoIterator<Item = T>) -> Self {
        let names: BTreeSet<T> = names.into_iter().collect();
        if names.is_empty() { Self::Any } else { Self::These(names) }
    }

    /// Whether it lets everything through.
    pub fn is_any(&self) -> bool {
        *self == Self::Any
    }

    /// The names; empty for [`Only::Any`].
    pub fn names(&self) -> impl Iterator<Item = &T> {
        let names = match self {
            Self::Any => None,
            Self::These(names) => Some(names),
        };
        names.into_iter().flatten()
    }

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
    /// Reads a detail.
    ///
    /// # Errors
    /// [`DetailError`] names the field, never the value.
    pub fn read(raw: &RawDetail) -> Result<Self, DetailError> {
        if raw.kind != TARGET_ACCESS {
            return Err(DetailError::Type);
        }
        let action = |text: &String| text.parse::<Action>().ok().filter(|action| action.is_on_target());
        let path = |text: &String| PathPattern::parse(text).map_err(|e| DetailError::Place("paths", e));
        let location = |text: &String| Location::parse(text).map_err(|e| DetailError::Place("locations", e));
        let locations: BTreeSet<Location> =
            short("locations", &raw.locations)?.iter().map(location).collect::<Result<_, _>>()?;
        let actions: Option<BTreeSet<Action>> = short("actions", &raw.actions)?.iter().map(action).collect();
        let actions = actions.ok_or(DetailError::Word("actions"))?;
        if locations.is_empty() {
            return Err(DetailError::Empty("locations"));
        }
        if actions.is_empty() {
            return Err(DetailError::Empty("actions"));
        }
        let paths: Vec<PathPattern> =
            short("paths", &raw.paths)?.iter().map(path).collect::<Result<_, _>>()?;
        Ok(Self {
            locations,
            actions,
            datatypes: words("datatypes", &raw.datatypes, is_word)?,
            identifier: identifier(&raw.identifier)?,
            tools: words("tools", &raw.tools, is_word)?,
            methods: words("methods", &raw.methods, is_method)?,
            paths: Only::of(paths),
        })
    }

    /// As it is written.
    pub fn raw(&self) -> RawDetail {
        let text = |names: &Only<String>| names.names().cloned().collect();
        RawDetail {
            kind: TARGET_ACCESS.to_owned(),
            locations: self.locations.iter().map(ToString::to_string).collect(),
            actions: self.actions.iter().map(ToString::to_string).collect(),
            datatypes: text(&self.datatypes),
            identifier: self.identifier.clone().unwrap_or_default(),
            tools: text(&self.tools),
            methods: text(&self.methods),
            paths: self.paths.names().map(ToString::to_string).collect(),
        }
    }

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

fn identifier(text: &str) -> Result<Option<String>, DetailError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = DetailError::Word("identifier");
    let segment = |part: &str| !part.is_empty() && part != "." && part != "..";
    let fits = text.len() <= MAX_IDENTIFIER_BYTES
        && text.bytes().all(|b| b.is_ascii_graphic() && !b"%\\;?#\"".contains(&b))
        && text.split([':', '/']).all(segment);
    if fits { Ok(Some(text.to_owned())) } else { Err(wrong) }
}

fn short<'a>(field: &'static str, list: &'a [String]) -> Result<&'a [String], DetailError> {
    if list.len() > MAX_NAMES { Err(DetailError::Long(field)) } else { Ok(list) }
}

fn words(field: &'static str, list: &[String], fits: fn(&str) -> bool) -> Result<Only<String>, DetailError> {
    let list = short(field, list)?;
    if list.iter().all(|word| fits(word)) {
        Ok(Only::of(list.iter().cloned()))
    } else {
        Err(DetailError::Word(field))
    }
}

fn is_word(word: &str) -> bool {
    (1..=MAX_WORD_BYTES).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b))
}

fn is_method(word: &str) -> bool {
    (1..=32).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
}

/// Most values of one list.
pub const MAX_NAMES: usize = 32;
const MAX_WORD_BYTES: usize = 128;
const MAX_IDENTIFIER_BYTES: usize = 256;
