//! Takes a decision apart: asks each policy about this action which of its demands hold.

use std::str::FromStr as _;

use cedar_policy::{
    Effect, EntityTypeName, EntityUid, EvalResult, Expression, PrincipalConstraint, ResourceConstraint,
    eval_expression,
};

use super::Rules;
use super::asking::Asked;
use super::index::actions_of;
use super::parse::Rule;
use super::statements::{Piece, Pieces};
use crate::diag::Shown;
use crate::policy::explanation::{Considered, Explanation};
use crate::policy::{Catalogue, Decision, Question, Reason, Verdict};

impl Rules {
    /// See [`crate::policy::PolicySet::explain`].
    pub(in crate::policy) fn explain(
        &self,
        catalogue: &Catalogue,
        question: &Question,
        decision: Decision,
    ) -> Explanation {
        let mut considered = Vec::new();
        if let Ok(asked) = self.types.ask(question, catalogue) {
            let about =
                self.by_id.values().filter(|rule| actions_of(&rule.policy).contains(&question.action));
            considered.extend(about.map(|rule| consider(rule, question, &asked, &decision)));
        }
        // Those that decided, then permits by what they lack, then forbids, which lacking something is good.
        considered.sort_by_key(|c| (!c.decided, !c.permits, c.because.len(), c.id.clone()));
        let changes = changes(&decision, &considered);
        let told = considered.iter().filter(|c| c.decided).count().max(MAX_TOLD);
        considered.truncate(told);
        Explanation { decision, considered, changes }
    }
}

fn consider(rule: &Rule, question: &Question, asked: &Asked, decision: &Decision) -> Considered {
    let mut because = scope_faults(rule, asked);
    if because.is_empty() {
        because = condition_faults(&rule.text, asked);
    }
    if let Some(until) = rule.notes.until.filter(|_| rule.has_ended(question.now)) {
        because.push(format!("it ended at {}", crate::policy::shown_time(until)));
    }
    Considered {
        id: rule.notes.id.clone(),
        place: rule.notes.place.to_string(),
        permits: rule.notes.effect == Effect::Permit,
        decided: decision.policy_ids.contains(&rule.notes.id),
        because,
        text: rule.text.to_string(),
    }
}

/// What of the head of a policy does not fit.
fn scope_faults(rule: &Rule, asked: &Asked) -> Vec<String> {
    let mut faults = Vec::new();
    let is = |uids: &[EntityUid], wanted: &EntityUid| uids.first() == Some(wanted);
    let is_in = |uids: &[EntityUid], wanted: &EntityUid| uids.contains(wanted);
    let of =
        |uids: &[EntityUid], kind: &EntityTypeName| uids.first().is_some_and(|uid| uid.type_name() == kind);
    let who = &asked.parties.principals;
    match rule.policy.principal_constraint() {
        PrincipalConstraint::Eq(uid) if !is(who, &uid) => faults.push(format!("the principal is not {uid}")),
        PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) if !is_in(who, &uid) => {
            faults.push(format!("the principal is not in {uid}"));
        }
        PrincipalConstraint::Is(kind) | PrincipalConstraint::IsIn(kind, _) if !of(who, &kind) => {
            faults.push(format!("the principal is no {kind}"));
        }
        _ => {}
    }
    let what = &asked.parties.resources;
    match rule.policy.resource_constraint() {
        ResourceConstraint::Eq(uid) if !is(what, &uid) => faults.push(format!("the resource is not {uid}")),
        ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) if !is_in(what, &uid) => {
            faults.push(format!("the resource is not in {uid}"));
        }
        ResourceConstraint::Is(kind) | ResourceConstraint::IsIn(kind, _) if !of(what, &kind) => {
            faults.push(format!("the resource is no {kind}"));
        }
        _ => {}
    }
    faults
}

/// What of its conditions does not hold.
fn condition_faults(text: &str, asked: &Asked) -> Vec<String> {
    let mut faults = Vec::new();
    for clause in clauses(text) {
        if clause.unless {
            if evaluate(clause.body, asked) == Some(true) {
                faults.push(format!("its `unless` holds: {}", on_one_line(clause.body)));
            }
            continue;
        }
        for part in conjuncts(clause.body) {
            match evaluate(part, asked) {
                Some(true) => {}
                Some(false) => {
                    faults.push(format!("does not hold: {}{}", on_one_line(part), values(part, asked)))
                }
                None => faults.push(format!("cannot be evaluated: {}", on_one_line(part))),
            }
        }
    }
    faults
}

/// What would have to change for a yes.
fn changes(decision: &Decision, considered: &[Considered]) -> Vec<String> {
    let permits = || considered.iter().filter(|c| c.permits && !c.because.is_empty());
    match decision.reason {
        Reason::Allowed => Vec::new(),
        Reason::ApprovalRequired => decision
            .obligations
            .approval
            .iter()
            .map(|needed| {
                let groups: Vec<&str> = needed.groups.iter().map(String::as_str).collect();
                format!("an approval by {} of {}", needed.quorum, groups.join(" and "))
            })
            .collect(),
        Reason::Forbidden => {
            let lifted = considered.iter().filter(|c| c.decided).map(lifted);
            lifted.chain(without_a_permit(considered)).collect()
        }
        Reason::NoPermit if considered.iter().all(|c| !c.permits) => {
            vec!["no policy permits this action to anybody: write one".to_owned()]
        }
        Reason::NoPermit => permits()
            .take(MAX_TOLD)
            .map(|c| format!("`{}` would permit it if this were otherwise: {}", c.id, c.because.join("; ")))
            .collect(),
        Reason::Expired => vec!["a permit that has not ended".to_owned()],
        Reason::EvaluationError => vec!["mend the policies that cannot be evaluated".to_owned()],
        Reason::Obligations => {
            vec!["a binding that the target and every permit that applies agree on".to_owned()]
        }
        Reason::UnknownTarget => vec!["write a `[[targets]]` of that name into the catalogue".to_owned()],
        Reason::UnknownTemplate => vec!["write a `[[templates]]` of that name into the catalogue".to_owned()],
        Reason::TemplateNotAllowed => {
            vec!["name the template in `templates` of the `[[agents]]` that fits this SPIFFE ID".to_owned()]
        }
        Reason::BodyHash => {
            vec!["an operation that says what it carries (`body_sha256`, the tool's arguments, `statement_sha256`)".to_owned()]
        }
        Reason::NoPolicy => vec!["load a policy set".to_owned()],
        Reason::Frozen => vec!["it must be thawed".to_owned()],
        Reason::Malformed if decision.verdict == Verdict::Allow => Vec::new(),
        Reason::Malformed => vec!["ask about something that this action is done to".to_owned()],
    }
}

/// Beside a forbid: what is missing even without it. The nearest permit is the one with the fewest demands left.
fn without_a_permit(considered: &[Considered]) -> Option<String> {
    let permits = || considered.iter().filter(|c| c.permits);
    if permits().any(|c| c.because.is_empty()) {
        return None;
    }
    let nearest = permits().min_by_key(|c| c.because.len());
    let wanted = nearest.map_or_else(
        || "no policy permits this action to anybody: write one".to_owned(),
        |c| format!("the nearest, `{}`, would if this were otherwise: {}", c.id, c.because.join("; ")),
    );
    Some(format!("lifting that is not enough: no permit applies either; {wanted}"))
}

/// What would lift a forbid.
fn lifted(forbid: &Considered) -> String {
    let exceptions: Vec<String> =
        clauses(&forbid.text).into_iter().filter(|c| c.unless).map(|c| on_one_line(c.body)).collect();
    if exceptions.is_empty() {
        format!("`{}` forbids it, without exception: its conditions would have to fail", forbid.id)
    } else {
        format!("`{}` forbids it unless {}", forbid.id, exceptions.join(", or "))
    }
}

fn evaluate(text: &str, asked: &Asked) -> Option<bool> {
    let expression = Expression::from_str(text).ok()?;
    match eval_expression(&asked.request, &asked.entities, &expression) {
        Ok(EvalResult::Bool(holds)) => Some(holds),
        _ => None,
    }
}

/// The values of what a condition looks at: ` (context.risk is 90)`.
fn values(text: &str, asked: &Asked) -> String {
    let mut shown: Vec<String> = Vec::new();
    for path in paths(text) {
        let Ok(expression) = Expression::from_str(path) else { continue };
        let value = match eval_expression(&asked.request, &asked.entities, &expression) {
            Ok(value) => Shown(&value.to_string()).to_string(),
            Err(_absent) => "absent".to_owned(),
        };
        let text = format!("{path} is {value}");
        if !shown.contains(&text) {
            shown.push(text);
        }
    }
    if shown.is_empty() { String::new() } else { format!(" ({})", shown.join(", ")) }
}

/// `context.task.depth` and the like.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    text.split(move |c: char| !part(c)).filter_map(|word| {
        let (root, rest) = word.split_once('.')?;
        let path = ["context", "principal", "resource"].contains(&root) && !rest.is_empty();
        // A method at the end belongs to the condition, not to the value.
        let methods = [".contains", ".containsAll", ".containsAny", ".isEmpty"];
        let stem = methods.iter().find_map(|method| word.strip_suffix(method)).unwrap_or(word);
        path.then_some(stem.trim_end_matches('.'))
    })
}

/// One `when { … }` or `unless { … }`.
struct Clause<'t> {
    unless: bool,
    body: &'t str,
}

/// The conditions of a policy that parses.
fn clauses(text: &str) -> Vec<Clause<'_>> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    let mut head = 0;
    for (at, piece) in Pieces::new(text) {
        if piece != Piece::Text {
            continue;
        }
        match text.as_bytes().get(at) {
            Some(b'(' | b'[') => depth += 1,
            Some(b')' | b']') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    head = at + 1;
                }
            }
            Some(b'{') => {
                if depth == 0 {
                    start = at + 1;
                }
                depth += 1;
            }
            Some(b'}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    let word = text.get(head..start.saturating_sub(1)).unwrap_or_default();
                    let body = text.get(start..at).unwrap_or_default().trim();
                    found.push(Clause { unless: word.contains("unless"), body });
                    head = at + 1;
                }
            }
            _ => {}
        }
    }
    found
}

/// The parts of a condition that must all hold; itself where it cannot be cut.
fn conjuncts(body: &str) -> Vec<&str> {
    let (mut depth, mut start) = (0_usize, 0);
    let mut parts = Vec::new();
    for (at, piece) in Pieces::new(body) {
        if piece != Piece::Text {
            continue;
        }
        let rest = body.get(at..).unwrap_or_default();
        match rest.as_bytes().first() {
            Some(b'(' | b'[' | b'{') => depth += 1,
            Some(b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            Some(_) if depth == 0 && rest.starts_with("||") => return vec![body],
            Some(_) if depth == 0 && rest.starts_with("&&") => {
                parts.push(body.get(start..at).unwrap_or_default().trim());
                start = at + 2;
            }
            _ => {}
        }
    }
    parts.push(body.get(start..).unwrap_or_default().trim());
    // The branches of an `if` reach to the end.
    let has_if = parts.iter().any(|part| part.starts_with("if ") || part.starts_with("if("));
    if has_if { vec![body] } else { parts }
}

fn on_one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    Shown(&words.join(" ")).to_string()
}

/// How many policies are told of, unless more decided.
const MAX_TOLD: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_cut_where_all_parts_must_hold() {
        let text = "@id(\"a{\") permit(principal in G::\"(\", action in [A::\"x\", A::\"y\"], resource)\nwhen { a && (b || c) && d.contains(\"&&\") } unless { {x: 1} == e };";
        let found: Vec<(bool, &str)> = clauses(text).into_iter().map(|c| (c.unless, c.body)).collect();
        assert_eq!(found, [(false, "a && (b || c) && d.contains(\"&&\")"), (true, "{x: 1} == e")]);
        assert_eq!(conjuncts(found[0].1), ["a", "(b || c)", "d.contains(\"&&\")"]);
        assert_eq!(conjuncts("a && b || c"), ["a && b || c"]);
        assert_eq!(conjuncts("a && if b then c && d else e"), ["a && if b then c && d else e"]);
        assert!(clauses("permit(principal, action, resource);").is_empty());
    }

    #[test]
    fn what_a_condition_looks_at_is_found() {
        let text = "context.task.depth < 3 && principal.selectors.contains(\"unix:uid:0\") && resource.owner == \"a.b\"";
        let found: Vec<&str> = paths(text).collect();
        assert_eq!(found, ["context.task.depth", "principal.selectors", "resource.owner"]);
    }
}
