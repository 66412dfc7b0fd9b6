//! What a task may do: what a detail and the grants made of details are, and how one is read and written. What is
//! inside what, and how a part is handed on, is in `containment`. Pure.

mod containment;

use std::collections::BTreeSet;
use std::fmt;

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

/// For people: `read on https://wiki.example.org/api, only space:DOCS, tools search get_page`.
impl fmt::Display for RawDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.actions.join(" "), self.locations.join(" "))?;
        if !self.identifier.is_empty() {
            write!(f, ", only {}", self.identifier)?;
        }
        let lists = [
            ("data", &self.datatypes),
            ("tools", &self.tools),
            ("methods", &self.methods),
            ("paths", &self.paths),
        ];
        for (label, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
            write!(f, ", {label} {}", list.join(" "))?;
        }
        Ok(())
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
