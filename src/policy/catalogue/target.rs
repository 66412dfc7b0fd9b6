//! What agents act on, and which of its own operations count as which action.

use std::collections::{BTreeMap, BTreeSet};

use crate::diag::Place;
use crate::policy::{Action, Binding};

/// One thing that credentials are issued for.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name that policies know it by.
    pub name: String,
    /// The one `aud` of credentials for it. No two targets share one.
    pub audience: String,
    /// How it is spoken to.
    pub kind: TargetKind,
    /// How sensitive what it holds is: a word of the operator's, such as `internal`.
    pub data_class: String,
    /// Its groups.
    pub groups: BTreeSet<String>,
    /// Who answers for it.
    pub owner: String,
    /// The weakest binding it takes.
    pub binding: Binding,
    /// Where it is, for grants and for the secret proxy: a URL without query or fragment.
    pub location: Option<String>,
    /// Its own operations, and the action each counts as.
    pub operations: Operations,
    /// Where it stands.
    pub place: Place,
}

impl Target {
    /// The action that one of its operations counts as; `None`, which is a denial, for one that nobody listed.
    pub fn action_of(&self, operation: &Operation<'_>) -> Option<Action> {
        match operation {
            Operation::Http { method, path } => self.operations.of_http(method, path),
            Operation::Named(name) => self.operations.named.get(*name).copied(),
        }
    }
}

/// How a target is spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TargetKind {
    /// HTTP; operations are methods, with or without the beginning of a path.
    Http,
    /// An MCP server; operations are tools.
    Mcp,
    /// A database; operations are the first words of statements.
    Sql,
    /// Anything else; operations have whatever names it has.
    Other,
}

impl TargetKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Mcp => "mcp",
            Self::Sql => "sql",
            Self::Other => "other",
        }
    }
}

/// One operation of a target.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// An HTTP request: method in capitals, normalised path without a query.
    Http {
        /// The method.
        method: &'a str,
        /// The path.
        path: &'a str,
    },
    /// A tool, a statement's first word, or any other name.
    Named(&'a str),
}

/// Operations and their actions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Operations {
    /// Method and beginning of the path (empty: any path).
    pub(super) http: BTreeMap<(String, String), Action>,
    /// By name.
    pub(super) named: BTreeMap<String, Action>,
}

impl Operations {
    /// What the methods of HTTP mean (RFC 9110 §9): the safe ones read.
    pub(super) fn of_methods() -> Self {
        let mut http = BTreeMap::new();
        for (action, methods) in [
            (Action::Read, &["GET", "HEAD", "OPTIONS"][..]),
            (Action::Write, &["POST", "PUT", "PATCH"]),
            (Action::Delete, &["DELETE"]),
        ] {
            for method in methods {
                http.insert(((*method).to_owned(), String::new()), action);
            }
        }
        Self { http, named: BTreeMap::new() }
    }

    /// The entry with the longest beginning of the path decides.
    fn of_http(&self, method: &str, path: &str) -> Option<Action> {
        let fits = |((wanted, prefix), _): &(&(String, String), &Action)| {
            wanted == method && is_at_or_below(path, prefix)
        };
        self.http.iter().filter(fits).max_by_key(|((_, prefix), _)| prefix.len()).map(|(_, action)| *action)
    }
}

/// Whether a path is the prefix or goes on below it, by whole segments.
fn is_at_or_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(operations: &Operations, method: &str, path: &str) -> Option<Action> {
        operations.of_http(method, path)
    }

    #[test]
    fn the_longest_beginning_of_a_path_decides() {
        let mut operations = Operations::of_methods();
        operations.http.insert(("POST".to_owned(), "/search".to_owned()), Action::Read);
        operations.http.insert(("POST".to_owned(), "/search/admin".to_owned()), Action::Admin);
        assert_eq!(ask(&operations, "GET", "/x"), Some(Action::Read));
        assert_eq!(ask(&operations, "POST", "/x"), Some(Action::Write));
        assert_eq!(ask(&operations, "POST", "/search"), Some(Action::Read));
        assert_eq!(ask(&operations, "POST", "/search/a"), Some(Action::Read));
        assert_eq!(ask(&operations, "POST", "/searches"), Some(Action::Write), "whole segments");
        assert_eq!(ask(&operations, "POST", "/search/admin/x"), Some(Action::Admin));
        assert_eq!(ask(&operations, "DELETE", "/search"), Some(Action::Delete));
        assert_eq!(ask(&operations, "TRACE", "/"), None, "nobody listed it");
        assert_eq!(ask(&operations, "get", "/"), None);
    }
}
