//! Task templates: a name, typed parameters, and the most that a task begun by one may be and do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::diag::{Place, is_name};
use crate::policy::Action;

/// No task lives longer.
pub const MAX_TASK_TTL: Duration = Duration::from_secs(8 * 3600);
/// No credential of a task lives longer.
pub const MAX_CREDENTIAL_TTL: Duration = Duration::from_secs(3600);

/// A kind of task that agents may begin.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// What it is for, for people.
    pub description: String,
    /// Who answers for it.
    pub owner: String,
    /// Groups, for policies.
    pub groups: BTreeSet<String>,
    /// Its parameters, by name.
    pub params: BTreeMap<String, Param>,
    /// The most that a task may be.
    pub ceilings: Ceilings,
    /// The most that a task may do; where an agent asks for nothing in particular, what it gets.
    pub details: Vec<TemplateDetail>,
    /// Where it stands.
    pub place: Place,
}

/// A parameter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Param {
    /// What it must be.
    pub kind: ParamType,
    /// What it is where nothing is given; `None`: it must be given.
    pub default: Option<String>,
}

/// What a parameter must be. Values are text on the wire; none can hold more than its type says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ParamType {
    /// A name: 1 to 128 of `A-Z a-z 0-9 . - _`, not `.` or `..`, so that it can stand in a path or an identifier and
    /// never ends one.
    Name,
    /// A whole number between two.
    Integer {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// `true` or `false`.
    Boolean,
    /// One of these.
    Choice(BTreeSet<String>),
}

/// Upper limits. Each is `None` where the template leaves it to the agent's configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ceilings {
    /// Of the task.
    pub ttl: Option<Duration>,
    /// Of each credential.
    pub credential_ttl: Option<Duration>,
    /// Nothing asked for so long ends the task.
    pub idle: Option<Duration>,
    /// Credentials and calls.
    pub max_calls: Option<u64>,
    /// Live children.
    pub max_children: Option<u32>,
    /// Levels below the task.
    pub max_depth: Option<u32>,
}

/// One grant. Its texts may hold `{name}` for a parameter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TemplateDetail {
    /// The target, by name.
    pub target: String,
    /// What may be done.
    pub actions: BTreeSet<Action>,
    /// URLs at or below which it may be done; empty: the whole target.
    pub locations: Vec<String>,
    /// Kinds of data; empty: any.
    pub datatypes: BTreeSet<String>,
    /// A thing within the target; empty: all.
    pub identifier: String,
    /// MCP tools; empty: any.
    pub tools: BTreeSet<String>,
    /// HTTP methods; empty: any that the actions cover.
    pub methods: BTreeSet<String>,
    /// HTTP paths; empty: any.
    pub paths: BTreeSet<String>,
}

/// A template with its parameters filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filled {
    /// Each parameter's value, those of defaults too.
    pub params: BTreeMap<String, String>,
    /// The grants.
    pub details: Vec<TemplateDetail>,
}

/// Why parameters do not fit a template.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParamError {
    /// The template has none of that name.
    #[error("the template has no parameter `{0}`")]
    Unknown(String),
    /// One without a default is not given.
    #[error("the parameter `{0}` is missing")]
    Missing(String),
    /// The value is not of its type.
    #[error("the parameter `{0}` is not what the template asks for")]
    Value(String),
}

impl Template {
    /// Puts values into the template.
    ///
    /// # Errors
    /// [`ParamError`] names the parameter, never the value.
    pub fn fill(&self, given: &BTreeMap<String, String>) -> Result<Filled, ParamError> {
        if let Some(unknown) = given.keys().find(|name| !self.params.contains_key(*name)) {
            return Err(ParamError::Unknown(unknown.clone()));
        }
        let mut params = BTreeMap::new();
        for (name, param) in &self.params {
            let value = given.get(name).or(param.default.as_ref());
            let value = value.ok_or_else(|| ParamError::Missing(name.clone()))?;
            if !param.kind.takes(value) {
                return Err(ParamError::Value(name.clone()));
            }
            params.insert(name.clone(), value.clone());
        }
        let details = self.details.iter().map(|detail| detail.filled(&params)).collect();
        Ok(Filled { params, details })
    }
}

impl ParamType {
    /// Whether the text is a value of this type.
    pub fn takes(&self, text: &str) -> bool {
        match self {
            Self::Name => is_name(text, 128) && text != "." && text != "..",
            Self::Integer { min, max } => {
                // One way to write each number, so that two texts are never one value.
                text.parse::<i64>().is_ok_and(|n| (*min..=*max).contains(&n) && n.to_string() == text)
            }
            Self::Boolean => text == "true" || text == "false",
            Self::Choice(all) => all.contains(text),
        }
    }
}

impl TemplateDetail {
    fn filled(&self, params: &BTreeMap<String, String>) -> Self {
        let each = |texts: &BTreeSet<String>| texts.iter().map(|text| filled(text, params)).collect();
        Self {
            target: self.target.clone(),
            actions: self.actions.clone(),
            locations: self.locations.iter().map(|text| filled(text, params)).collect(),
            datatypes: each(&self.datatypes),
            identifier: filled(&self.identifier, params),
            tools: each(&self.tools),
            methods: self.methods.clone(),
            paths: each(&self.paths),
        }
    }

    /// All texts that may hold parameters.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let sets = [&self.datatypes, &self.tools, &self.paths].into_iter().flatten();
        self.locations.iter().chain(sets).chain([&self.identifier]).map(String::as_str)
    }
}

/// Each `{name}` gives way to its value. The loader has made sure that every one has a parameter.
fn filled(text: &str, params: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in Pieces(text) {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Param(name) => out.push_str(params.get(name).map(String::as_str).unwrap_or_default()),
        }
    }
    out
}

/// Text and parameters in turn.
pub(super) struct Pieces<'a>(pub(super) &'a str);

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    Param(&'a str),
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.0.is_empty() {
            return None;
        }
        if let Some((name, rest)) = self.0.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            self.0 = rest;
            return Some(Piece::Param(name));
        }
        // A brace that opens nothing is text.
        let first = self.0.chars().next().map_or(1, char::len_utf8);
        let end = self.0.get(first..).and_then(|rest| rest.find('{')).map_or(self.0.len(), |at| at + first);
        let (text, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        Some(Piece::Text(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_parameters_and_nothing_else_is() {
        let pieces = |text| Pieces(text).collect::<Vec<_>>();
        assert_eq!(pieces("a{b}c"), [Piece::Text("a"), Piece::Param("b"), Piece::Text("c")]);
        assert_eq!(pieces("{a}{b}"), [Piece::Param("a"), Piece::Param("b")]);
        assert_eq!(pieces("ü{"), [Piece::Text("ü"), Piece::Text("{")]);
        assert_eq!(pieces("a}b"), [Piece::Text("a}b")]);
        assert!(pieces("").is_empty());
    }

    #[test]
    fn no_value_leaves_its_type() {
        for (kind, good, bad) in [
            (
                ParamType::Name,
                &["DOCS", "a.b-c_1"][..],
                &["", ".", "..", "a/b", "a:b", "a b", "é", "{x}"][..],
            ),
            (
                ParamType::Integer { min: -1, max: 10 },
                &["-1", "0", "10"],
                &["11", "-2", "+1", "01", "1.0", ""],
            ),
            (ParamType::Boolean, &["true", "false"], &["True", "1", ""]),
            (ParamType::Choice(["a".to_owned()].into()), &["a"], &["b", "", "A"]),
        ] {
            assert!(good.iter().all(|text| kind.takes(text)), "{kind:?}");
            assert!(!bad.iter().any(|text| kind.takes(text)), "{kind:?}");
        }
    }
}
