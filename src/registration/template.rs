//! SPIFFE IDs with placeholders, filled from what was attested.

use std::collections::BTreeSet;
use std::fmt;

use mayfly_attestors::{Selector, Strength};

use super::selector;
use crate::diag::Shown;
use crate::id::{IdError, SCHEME, SpiffeId, TrustDomain, check_segment};

/// A SPIFFE ID whose path may hold placeholders such as `{unix.user}`, at most one in each path segment:
/// two would let different values (`a` and `bc`, `ab` and `c`) make the same identity.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct IdTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Part {
    Literal(String),
    Placeholder { kind: String, key: String },
}

/// Why a text is no template. Each message ends in what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// The ID around the placeholders is wrong.
    #[error("is not a SPIFFE ID: it {0}")]
    Id(#[from] IdError),
    /// A trust domain's own ID.
    #[error("has no path, and a workload's ID must have one: add it, such as `/workload`")]
    NoPath,
    /// Another trust domain than the agent's.
    #[error("is in trust domain `{found}`, but this agent issues for `{own}` only")]
    Foreign {
        /// The entry's.
        found: TrustDomain,
        /// The agent's.
        own: TrustDomain,
    },
    /// `{` and `}` do not pair up.
    #[error("has an unpaired brace at byte {0}: placeholders are written `{{unix.user}}`")]
    Brace(usize),
    /// A placeholder in the trust domain.
    #[error("has a placeholder in the trust domain: placeholders belong in the path")]
    InTrustDomain,
    /// Not `{type.key}` of a selector that exists.
    #[error("has the placeholder `{{{0}}}`, which no attestor fills: write one such as `{{unix.user}}`")]
    Unknown(String),
    /// Two placeholders in one segment.
    #[error("has two placeholders in one path segment: put a `/` between them")]
    Crowded,
}

/// Why a template gives no ID for a process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FillError {
    /// No selector for the placeholder that may fill it.
    Missing(String),
    /// More than one.
    Ambiguous(String, usize),
    /// A value that cannot stand in a path.
    Value(String, IdError),
    /// The whole ID is too long.
    Id(IdError),
}

impl IdTemplate {
    /// Parses; `own` is the agent's trust domain where it is known.
    pub fn parse(text: &str, own: Option<&TrustDomain>) -> Result<Self, TemplateError> {
        let parts = split(text)?;
        // Placeholders become a run of `a` of the same length, so that positions in errors stay true.
        let sample = parts.iter().fold(String::new(), |sample, part| match part {
            Part::Literal(text) => sample + text,
            Part::Placeholder { kind, key } => sample + &"a".repeat(kind.len() + key.len() + 3),
        });
        if authority(text).contains('{') {
            return Err(TemplateError::InTrustDomain);
        }
        let id = SpiffeId::parse(sample.as_bytes())?;
        if id.path().is_empty() {
            return Err(TemplateError::NoPath);
        }
        if let Some(own) = own.filter(|own| *own != id.trust_domain()) {
            return Err(TemplateError::Foreign { found: id.trust_domain().clone(), own: own.clone() });
        }
        if text.split('/').any(|segment| segment.matches('{').count() > 1) {
            return Err(TemplateError::Crowded);
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The type and key of each placeholder's selector, in order.
    pub fn placeholders(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Placeholder { kind, key } => Some((kind.as_str(), key.as_str())),
        })
    }

    /// The ID for a process of which `selectors` are known. Each placeholder needs exactly one, whose value
    /// is checked as one path segment; advisory ones count only with `advisory`.
    pub fn fill(&self, selectors: &BTreeSet<Selector>, advisory: bool) -> Result<SpiffeId, FillError> {
        let mut text = String::with_capacity(self.text.len());
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Placeholder { kind, key } => {
                    text.push_str(only_value(selectors, advisory, kind, key)?);
                }
            }
        }
        SpiffeId::parse(text.as_bytes()).map_err(FillError::Id)
    }
}

impl IdTemplate {
    /// Whether it could still be filled if every selector that is `open` were known.
    pub(super) fn may_fill(
        &self,
        selectors: &BTreeSet<Selector>,
        advisory: bool,
        open: impl Fn(&str, &str) -> bool,
    ) -> bool {
        self.placeholders().all(|(kind, key)| match only_value(selectors, advisory, kind, key) {
            Ok(_) => true,
            Err(FillError::Missing(_)) => open(kind, key),
            Err(_) => false,
        })
    }

    /// Whether that ID could have come of it.
    pub fn gives(&self, id: &str) -> bool {
        let (mut ours, mut theirs) = (self.text.split('/'), id.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(ours), Some(theirs)) if segment_gives(ours, theirs) => {}
                _ => return false,
            }
        }
    }
}

/// At most one placeholder stands in a segment.
fn segment_gives(ours: &str, theirs: &str) -> bool {
    let Some((before, rest)) = ours.split_once('{') else { return ours == theirs };
    let after = rest.split_once('}').map_or("", |(_, after)| after);
    theirs
        .strip_prefix(before)
        .and_then(|rest| rest.strip_suffix(after))
        .is_some_and(|value| !value.is_empty())
}

impl fmt::Display for IdTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for FillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(slot) => write!(f, "nothing known of the process may fill {{{}}}", Shown(slot)),
            Self::Ambiguous(slot, count) => {
                write!(f, "{{{}}} has {count} values where it needs exactly one", Shown(slot))
            }
            Self::Value(slot, error) => {
                write!(f, "the value of {{{}}} cannot be a path segment: it {error}", Shown(slot))
            }
            Self::Id(error) => write!(f, "the filled-in SPIFFE ID {error}"),
        }
    }
}

fn only_value<'a>(
    selectors: &'a BTreeSet<Selector>,
    advisory: bool,
    kind: &str,
    key: &str,
) -> Result<&'a str, FillError> {
    let slot = || format!("{kind}.{key}");
    let mut found = selectors.iter().filter(|selector| {
        selector.kind() == kind
            && selector.key() == key
            && (advisory || selector.strength() > Strength::Advisory)
    });
    let value = found.next().ok_or_else(|| FillError::Missing(slot()))?.value();
    match found.count() {
        0 => check_segment(value.as_bytes()).map_err(|error| FillError::Value(slot(), error))?,
        more => return Err(FillError::Ambiguous(slot(), more + 1)),
    }
    Ok(value)
}

fn split(text: &str) -> Result<Vec<Part>, TemplateError> {
    let (mut parts, mut rest) = (Vec::new(), text);
    let at = |rest: &str| text.len() - rest.len();
    while let Some((literal, after)) = rest.split_once('{') {
        check_literal(literal, at(rest))?;
        let (name, next) = after.split_once('}').ok_or_else(|| TemplateError::Brace(at(after) - 1))?;
        let (kind, key) = name
            .split_once('.')
            .filter(|(kind, key)| selector::can_fill(kind, key))
            .ok_or_else(|| TemplateError::Unknown(Shown(name).to_string()))?;
        parts.push(Part::Literal(literal.to_owned()));
        parts.push(Part::Placeholder { kind: kind.to_owned(), key: key.to_owned() });
        rest = next;
    }
    check_literal(rest, at(rest))?;
    parts.push(Part::Literal(rest.to_owned()));
    Ok(parts)
}

fn check_literal(literal: &str, start: usize) -> Result<(), TemplateError> {
    literal.find('}').map_or(Ok(()), |at| Err(TemplateError::Brace(start + at)))
}

fn authority(text: &str) -> &str {
    let rest = text.strip_prefix(SCHEME).unwrap_or(text);
    rest.split_once('/').map_or(rest, |(authority, _)| authority)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(selectors: &[(&'static str, &'static str, &str)]) -> BTreeSet<Selector> {
        selectors.iter().map(|(kind, key, value)| Selector::new(kind, key, *value)).collect()
    }

    fn fill(template: &str, selectors: &[(&'static str, &'static str, &str)]) -> Result<String, FillError> {
        let template = IdTemplate::parse(template, None).unwrap();
        template.fill(&facts(selectors), false).map(|id| id.to_string())
    }

    #[test]
    fn placeholders_are_filled_from_what_was_attested() {
        let ann = [("unix", "user", "ann"), ("unix", "uid", "1000")];
        assert_eq!(
            fill("spiffe://example.org/user/{unix.user}/run", &ann).unwrap(),
            "spiffe://example.org/user/ann/run"
        );
        assert_eq!(
            fill("spiffe://example.org/u-{unix.uid}.x/{unix.user}", &ann).unwrap(),
            "spiffe://example.org/u-1000.x/ann"
        );
        assert_eq!(fill("spiffe://example.org/fixed", &[]).unwrap(), "spiffe://example.org/fixed");
    }

    #[test]
    fn a_value_is_one_segment_or_nothing() {
        let template = "spiffe://example.org/user/{unix.user}/run";
        for bad in ["a/b", "..", ".", "", "a b", "a:b", "ü", "a%2fb", "{unix.uid}", "a\n", "a@b", "$x"] {
            let filled = fill(template, &[("unix", "user", bad)]);
            assert!(matches!(filled, Err(FillError::Value(..))), "{bad}: {filled:?}");
        }
        assert_eq!(fill(template, &[]), Err(FillError::Missing("unix.user".to_owned())));
        assert_eq!(
            fill(template, &[("unix", "user", "a"), ("unix", "user", "b")]),
            Err(FillError::Ambiguous("unix.user".to_owned(), 2))
        );
        // A dot beside a value is not a dot segment, but a dot alone around nothing would be.
        assert_eq!(fill("spiffe://td/.{unix.user}", &[("unix", "user", "a")]).unwrap(), "spiffe://td/.a");
    }

    #[test]
    fn the_whole_id_has_at_most_2048_bytes() {
        let template = "spiffe://example.org/{unix.user}";
        let name = |len: usize| "a".repeat(len - 21);
        assert_eq!(fill(template, &[("unix", "user", &name(2048))]).unwrap().len(), 2048);
        assert_eq!(
            fill(template, &[("unix", "user", &name(2049))]),
            Err(FillError::Id(IdError::TooLong { len: 2049 }))
        );
    }

    #[test]
    fn advisory_facts_write_no_identity_without_the_entrys_word() {
        let template = IdTemplate::parse("spiffe://td/{unix.sha256}", None).unwrap();
        let facts = facts(&[("unix", "sha256", "abc")]);
        assert_eq!(template.fill(&facts, false), Err(FillError::Missing("unix.sha256".to_owned())));
        assert_eq!(template.fill(&facts, true).unwrap().as_str(), "spiffe://td/abc");
    }

    #[test]
    fn wrong_templates_are_refused_when_they_are_written() {
        let own = "example.org".parse::<TrustDomain>().unwrap();
        let refused = |text: &str| IdTemplate::parse(text, Some(&own)).unwrap_err();
        assert_eq!(refused("spiffe://example.org"), TemplateError::NoPath);
        assert_eq!(
            refused("spiffe://other.org/w").to_string(),
            "is in trust domain `other.org`, but this agent issues for `example.org` only"
        );
        assert_eq!(refused("spiffe://{unix.user}/w"), TemplateError::InTrustDomain);
        assert_eq!(refused("spiffe://example.org/{unix.user}{unix.uid}"), TemplateError::Crowded);
        assert_eq!(refused("spiffe://example.org/{unix.user}-{unix.uid}"), TemplateError::Crowded);
        assert_eq!(refused("spiffe://example.org/{unix.user"), TemplateError::Brace(21));
        assert_eq!(refused("spiffe://example.org/a}b"), TemplateError::Brace(22));
        for unknown in ["{}", "{user}", "{unix.uuid}", "{unix.path}", "{cgroup.path}", "{a/b}"] {
            let error = refused(&format!("spiffe://example.org/{unknown}"));
            assert!(matches!(error, TemplateError::Unknown(_)), "{unknown}: {error}");
        }
        for bad in ["https://example.org/w", "spiffe://example.org/", "spiffe://example.org/../w", ""] {
            assert!(matches!(refused(bad), TemplateError::Id(_)), "{bad}");
        }
        assert_eq!(
            refused("spiffe://example.org/{unix.user}/a:b").to_string(),
            "is not a SPIFFE ID: it has `:` at byte 34: a path segment has only a-z A-Z 0-9 . - _",
            "positions are those of the text as written"
        );
    }

    #[test]
    fn an_id_is_told_to_come_of_its_template_or_not() {
        let template = |text: &str| IdTemplate::parse(text, None).unwrap();
        let user = template("spiffe://td/user/u-{unix.user}.x/run");
        assert!(user.gives("spiffe://td/user/u-ann.x/run"));
        for other in [
            "spiffe://td/user/u-.x/run",
            "spiffe://td/user/ann.x/run",
            "spiffe://td/user/u-ann.x",
            "spiffe://td/user/u-ann.x/run/more",
            "spiffe://to/user/u-ann.x/run",
        ] {
            assert!(!user.gives(other), "{other}");
        }
        assert!(
            template("spiffe://td/a").gives("spiffe://td/a")
                && !template("spiffe://td/a").gives("spiffe://td/b")
        );
    }

    proptest! {
        #[test]
        fn what_is_filled_in_never_leaves_its_segment(value in "\\PC{0,12}", nasty in "[a./{}:-]{0,6}") {
            for value in [value, nasty] {
                if let Ok(filled) = fill("spiffe://td/x/{unix.user}/z", &[("unix", "user", &value)]) {
                    let id = SpiffeId::parse(filled.as_bytes()).unwrap();
                    prop_assert_eq!(id.path().split('/').collect::<Vec<_>>(), ["", "x", value.as_str(), "z"]);
                }
            }
        }

        #[test]
        fn no_text_makes_parsing_panic(text in "\\PC{0,40}", like in "spiffe://[a-z{}./]{0,10}/[a-z{}./]{0,30}") {
            IdTemplate::parse(&text, None).ok();
            IdTemplate::parse(&like, None).ok();
        }
    }
}
