//! From files to policies, with every mistake of every file at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy::{
    Policy, PolicyId, PolicySet, Schema, ValidationError, ValidationMode, ValidationResult, Validator,
};
use miette::Diagnostic;

use super::approvable::unheard;
use super::notes::Notes;
use super::statements::{excess, statements};
use crate::diag::{Lines, Place, Problem, Problems, Shown, read_text};
use crate::policy::MAX_POLICY_BYTES;

/// One policy.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) policy: Policy,
    pub(super) notes: Notes,
    /// As it is written.
    pub(super) text: Arc<str>,
    /// Where in its file it starts.
    offset: usize,
}

/// One file of policies.
pub(super) struct File<'t> {
    lines: Lines<'t>,
    rules: Vec<Rule>,
}

/// Reads files of policies, each with the name to show.
pub(super) fn parse<'t>(
    files: impl IntoIterator<Item = (&'t str, &'t [u8])>,
    problems: &mut Problems,
) -> Vec<File<'t>> {
    let mut parsed = Vec::new();
    let mut seen = BTreeMap::<String, Place>::new();
    for (name, bytes) in files {
        let Some(text) = read_text(name, bytes, MAX_POLICY_BYTES, problems) else { continue };
        let lines = Lines::new(name, text);
        let mut rules: Vec<Rule> = Vec::new();
        let mut none = true;
        for range in statements(text) {
            none = false;
            let offset = range.start;
            let Some(source) = text.get(range) else { continue };
            let Some(rule) = parse_one(source, offset, &lines, problems) else { continue };
            if let Some(first) = seen.insert(rule.notes.id.clone(), rule.notes.place.clone()) {
                let message =
                    format!("has the name `{}` of the policy at {first}: give it another", rule.notes.id);
                problems.push(rule.notes.place.problem(message));
                continue;
            }
            rules.push(rule);
        }
        if none {
            // More likely cut short than meant (threats J02).
            problems.push(Problem::whole_file(name, "holds no policy: write one, or remove the file"));
        }
        parsed.push(File { lines, rules });
    }
    parsed
}

fn parse_one(source: &str, offset: usize, lines: &Lines<'_>, problems: &mut Problems) -> Option<Rule> {
    if let Some(excess) = excess(source) {
        problems.push(lines.place(offset, "").problem(excess));
        return None;
    }
    let policy = match Policy::parse(None, source) {
        Ok(policy) => policy,
        Err(errors) => {
            for error in errors.iter() {
                problems.push(lines.place(offset + at(error), "").problem(said(error)));
            }
            return None;
        }
    };
    let notes = Notes::read(&policy, &lines.place(offset, ""), problems)?;
    for (key, value) in policy.annotations() {
        if let Some(why) = unheard(key, &policy) {
            problems.push(notes.place.problem(format!("`@{key}(\"{}\")` {why}", Shown(value))));
        }
    }
    let policy = policy.new_id(PolicyId::new(&notes.id));
    Some(Rule { policy, notes, text: source.into(), offset })
}

/// Holds all of them to the schema; answers with what is odd but right.
pub(super) fn validate(files: &[File<'_>], schema: &Schema, problems: &mut Problems) -> Vec<Problem> {
    let mut set = PolicySet::new();
    let mut places = BTreeMap::new();
    for (file, rule) in files.iter().flat_map(|file| file.rules.iter().map(move |rule| (file, rule))) {
        places.insert(rule.notes.id.as_str(), (&file.lines, rule));
        if let Err(error) = set.add(rule.policy.clone()) {
            problems.push(rule.notes.place.problem(format!("{}", Shown(&error.to_string()))));
        }
    }
    let result: ValidationResult = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    let place = |id: &PolicyId, error: &dyn Diagnostic| -> Option<Place> {
        let (lines, rule) = places.get(id.as_ref() as &str)?;
        let mut place = lines.place(rule.offset + at(error), "");
        place.field = format!("@id(\"{}\")", rule.notes.id);
        Some(place)
    };
    for error in result.validation_errors() {
        let place = place(ValidationError::policy_id(error), error);
        problems.push(place.map_or_else(
            || Problem::whole_file("policies", said(error)),
            |place| place.problem(said(error)),
        ));
    }
    let warnings = result.validation_warnings();
    warnings.filter_map(|w| Some(place(w.policy_id(), w)?.problem(said(w)))).collect()
}

/// Every policy, in the order of files.
pub(super) fn rules(files: Vec<File<'_>>) -> Vec<Rule> {
    files.into_iter().flat_map(|file| file.rules).collect()
}

/// Where in its policy.
fn at(error: &dyn Diagnostic) -> usize {
    error.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset())
}

/// On one line, with Cedar's own advice.
fn said(error: &dyn Diagnostic) -> String {
    let text = error.to_string();
    // Cedar names the policy first; the place does that already.
    let text = text
        .split_once(", ")
        .filter(|(first, _)| first.starts_with("for policy `"))
        .map_or(&*text, |(_, t)| t);
    match error.help() {
        Some(help) => format!("{}: {}", Shown(text), Shown(&help.to_string())),
        None => Shown(text).to_string(),
    }
}
