//! Patterns of SPIFFE IDs: whole segments only, so that `agent/a` never lets `agent/ab` in.

use std::fmt;

use crate::id::{IdError, SCHEME, SpiffeId, TrustDomain, check_segment};

/// A SPIFFE ID in which a path segment may be `*` (exactly one segment) and the last one `**` (one or more).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IdPattern {
    trust_domain: TrustDomain,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Segment {
    Exactly(String),
    One,
    Rest,
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PatternError {
    /// It is not even like a SPIFFE ID.
    #[error("is no pattern of SPIFFE IDs: it {0}")]
    Id(#[from] IdError),
    /// A trust domain's own ID, which no agent has.
    #[error("has no path: write one, such as `/agent/*`")]
    NoPath,
    /// `**` before the end.
    #[error("has `**` before the end: it stands for all the rest")]
    RestInside,
}

impl IdPattern {
    /// Parses the whole pattern.
    ///
    /// # Errors
    /// `PatternError` goes on from the quoted text.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (name, path) = rest.split_once('/').ok_or(PatternError::NoPath)?;
        let trust_domain = TrustDomain::parse(name.as_bytes())?;
        let mut segments = Vec::new();
        for segment in path.split('/') {
            if segments.last() == Some(&Segment::Rest) {
                return Err(PatternError::RestInside);
            }
            segments.push(match segment {
                "*" => Segment::One,
                "**" => Segment::Rest,
                text => {
                    check_segment(text.as_bytes())?;
                    Segment::Exactly(text.to_owned())
                }
            });
        }
        Ok(Self { trust_domain, segments })
    }

    /// Whether the ID fits.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if *id.trust_domain() != self.trust_domain {
            return false;
        }
        let mut path = id.path().split('/').skip(1);
        for wanted in &self.segments {
            let Some(found) = path.next() else { return false };
            match wanted {
                Segment::Rest => return true,
                Segment::One => {}
                Segment::Exactly(text) if text == found => {}
                Segment::Exactly(_) => return false,
            }
        }
        path.next().is_none()
    }

    /// The path that all that fit begin with: up to the first star.
    pub(super) fn beginning(&self) -> String {
        let fixed = self.segments.iter().map_while(|segment| match segment {
            Segment::Exactly(text) => Some(["/", text.as_str()]),
            Segment::One | Segment::Rest => None,
        });
        fixed.flatten().collect()
    }

    /// The trust domain of all that fit.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.trust_domain.id())?;
        for segment in &self.segments {
            match segment {
                Segment::Exactly(text) => write!(f, "/{text}")?,
                Segment::One => f.write_str("/*")?,
                Segment::Rest => f.write_str("/**")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits(pattern: &str, id: &str) -> bool {
        IdPattern::parse(pattern).unwrap().matches(&id.parse().unwrap())
    }

    #[test]
    fn stars_stand_for_whole_segments() {
        assert!(fits("spiffe://td/agent/a", "spiffe://td/agent/a"));
        assert!(fits("spiffe://td/agent/*", "spiffe://td/agent/a"));
        assert!(fits("spiffe://td/*/run", "spiffe://td/a/run"));
        assert!(fits("spiffe://td/agent/**", "spiffe://td/agent/a"));
        assert!(fits("spiffe://td/agent/**", "spiffe://td/agent/a/b/c"));
        assert!(fits("spiffe://td/**", "spiffe://td/a"));
        for (pattern, id) in [
            ("spiffe://td/agent/a", "spiffe://td/agent/ab"),
            ("spiffe://td/agent/a", "spiffe://td/agent/a/b"),
            ("spiffe://td/agent/*", "spiffe://td/agent"),
            ("spiffe://td/agent/*", "spiffe://td/agent/a/b"),
            ("spiffe://td/agent/**", "spiffe://td/agent"),
            ("spiffe://td/agent/**", "spiffe://td/agents/a"),
            ("spiffe://td/**", "spiffe://td2/a"),
            ("spiffe://td/**", "spiffe://td"),
        ] {
            assert!(!fits(pattern, id), "{pattern} {id}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in [
            "",
            "td/a",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/a/",
            "spiffe://td/a*",
            "spiffe://td/**/a",
            "spiffe://td/..",
            "spiffe://*/a",
            "spiffe://TD/a",
        ] {
            assert!(IdPattern::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_without_stars_fits_itself_alone(a in "spiffe://td(/[a-z]{1,2}){1,3}", b in "spiffe://td(/[a-z]{1,2}){1,3}") {
            let pattern = IdPattern::parse(&a).unwrap();
            prop_assert_eq!(pattern.to_string(), a.clone());
            prop_assert_eq!(pattern.matches(&b.parse().unwrap()), a == b);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(spiffe://)?\\PC{0,30}") {
            IdPattern::parse(&text).ok();
        }
    }
}
