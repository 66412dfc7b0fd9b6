//! What a condition speaks of, from Cedar's own JSON form of a policy: no words in comments or strings count.

use serde_json::Value;

use crate::policy::cedar::parse::Rule;

/// The conditions of one policy.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    whens: Vec<Value>,
    unlesses: Vec<Value>,
}

impl Conditions {
    /// Of a policy. One that has no such form, which none has, is read as if it had no condition.
    pub(super) fn of(rule: &Rule) -> Self {
        let mut own = Self::default();
        let mut form = rule.policy.to_json().unwrap_or_default();
        let Some(Value::Array(conditions)) = form.get_mut("conditions").map(Value::take) else { return own };
        for mut condition in conditions {
            let body = condition.get_mut("body").map(Value::take).unwrap_or_default();
            let is_unless = condition.get("kind").and_then(Value::as_str) == Some("unless");
            if is_unless { own.unlesses.push(body) } else { own.whens.push(body) }
        }
        own
    }

    /// Whether any of them reads (or asks for) that attribute of that variable.
    pub(super) fn read(&self, variable: &str, attribute: &str) -> bool {
        self.all().any(|one| reads(one, variable, attribute))
    }

    /// Whether any of them reads that attribute of an attribute of a variable.
    pub(super) fn read_within(&self, variable: &str, outer: &str, attribute: &str) -> bool {
        let fits = |node: &Value| {
            let of = accessed(node, attribute);
            of.and_then(|left| accessed(left, outer)).is_some_and(|left| is_variable(left, variable))
        };
        self.all().any(|one| any(one, &fits))
    }

    /// Whether any of them speaks of the variable at all.
    pub(super) fn speak_of(&self, variable: &str) -> bool {
        self.all().any(|one| any(one, &|node| is_variable(node, variable)))
    }

    /// Whether any of them says by name who asks.
    pub(super) fn name_principals(&self) -> bool {
        self.all().any(names_principals)
    }

    /// Each way out of the policy: the parts of an `unless`, and of a `when` that holds for all but some.
    pub(super) fn ways_out(&self) -> Vec<&Value> {
        let mut found = Vec::new();
        self.unlesses.iter().for_each(|body| split(body, "||", &mut found));
        // Open to all but some: nobody's exception.
        found.retain(|way| way.get("!").is_none());
        let mut parts = Vec::new();
        self.whens.iter().for_each(|body| split(body, "&&", &mut parts));
        for part in parts {
            match part.pointer("/!/arg") {
                Some(but) => split(but, "||", &mut found),
                None if part.get("!=").is_some() => found.push(part),
                None => {}
            }
        }
        found
    }

    fn all(&self) -> impl Iterator<Item = &Value> {
        self.whens.iter().chain(&self.unlesses)
    }
}

/// Whether it reads (or asks for) that attribute of that variable.
pub(super) fn reads(value: &Value, variable: &str, attribute: &str) -> bool {
    any(value, &|node| accessed(node, attribute).is_some_and(|left| is_variable(left, variable)))
}

/// Whether it compares the present with a date.
pub(super) fn has_a_date(value: &Value) -> bool {
    reads(value, "context", "now") && any(value, &|node| node.get("datetime").is_some())
}

/// Whether it says by name who asks: a group, an identity, an entry, a user. What is merely odd about a process is no
/// name.
pub(super) fn names_principals(value: &Value) -> bool {
    let by_attribute = NAMES.iter().any(|name| reads(value, "principal", name));
    by_attribute
        || any(value, &|node| {
            COMPARISONS.iter().filter_map(|word| node.get(word)).any(|sides| {
                let side = |at: &str| sides.get(at);
                let principal = |at| side(at).is_some_and(|side| is_variable(side, "principal"));
                let named = |at| side(at).is_some_and(|side| any(side, &is_entity));
                principal("left") && (named("right") || named("in")) || principal("right") && named("left")
            })
        })
}

/// The left side of an access to that attribute.
fn accessed<'v>(node: &'v Value, attribute: &str) -> Option<&'v Value> {
    let access = node.get(".").or_else(|| node.get("has"))?;
    let fits = access.get("attr").and_then(Value::as_str) == Some(attribute);
    access.get("left").filter(|_| fits)
}

fn is_variable(node: &Value, name: &str) -> bool {
    node.get("Var").and_then(Value::as_str) == Some(name)
}

fn is_entity(node: &Value) -> bool {
    node.get("__entity").is_some()
}

/// The parts that an operator connects.
fn split<'v>(value: &'v Value, operator: &str, found: &mut Vec<&'v Value>) {
    match value.get(operator).map(|sides| (sides.get("left"), sides.get("right"))) {
        Some((Some(left), Some(right))) => {
            split(left, operator, found);
            split(right, operator, found);
        }
        _ => found.push(value),
    }
}

/// Whether any part of it fits. As deep as policies may be nested, which is bounded when they are read.
fn any(value: &Value, fits: &impl Fn(&Value) -> bool) -> bool {
    fits(value)
        || match value {
            Value::Array(parts) => parts.iter().any(|part| any(part, fits)),
            Value::Object(members) => members.values().any(|part| any(part, fits)),
            _ => false,
        }
}

/// Attributes that say who a process is.
const NAMES: [&str; 4] = ["spiffe_id", "profile", "uid", "selectors"];
const COMPARISONS: [&str; 7] = ["in", "==", "!=", "is", "contains", "containsAll", "containsAny"];
