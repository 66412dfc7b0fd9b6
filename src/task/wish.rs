//! What a credential would be for: the part of a task's grants that is about one target, as far as it was asked for.
//! Pure, and only ever narrower. Policy decides about each action of it afterwards.

use std::collections::BTreeSet;

use super::place::{Location, PathPattern};
use super::{Access, Action, Detail, Grants, Operation, Refused};
use crate::policy::{Binding, Decision, Target};

/// One request for one target.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// For whom.
    pub target: &'a Target,
    /// What was asked for; empty: whatever the task has there.
    pub details: &'a [Detail],
    /// The operation itself, if it was named.
    pub operation: Option<&'a Operation>,
    /// One action class, if it was named.
    pub action: Option<Action>,
    /// The credential says what it is for. Where it cannot, only grants that are limited to no part of the target do.
    pub carries_details: bool,
}

impl Wish<'_> {
    /// The part of a task's grants that this is.
    ///
    /// # Errors
    /// [`Refused::NotGranted`]: some of what was asked for is not the task's to use, or nothing is left.
    pub fn part(&self, own: &Grants) -> Result<Grants, Refused> {
        let location = self.location().ok_or(Refused::NotGranted)?;
        let here = own.at(&location);
        let wanted = if self.details.is_empty() {
            here
        } else {
            let part = here.part(self.details).map_err(|_exceeds| Refused::NotGranted)?;
            let part = part.at(&location);
            let asked: BTreeSet<Action> =
                self.details.iter().flat_map(|d| d.actions.iter().copied()).collect();
            if part.actions() != asked {
                return Err(Refused::NotGranted);
            }
            part
        };
        let counts_as = self.action.map(|action| match self.operation {
            Some(operation) => operation.counts_as(self.target, action),
            None => Some(action),
        });
        let left = wanted.keep(|detail, action| {
            let is_it = match (counts_as, self.operation) {
                (Some(counts), _) => counts == Some(action) && self.action == Some(action),
                (None, Some(operation)) => operation.counts_as(self.target, action) == Some(action),
                (None, None) => true,
            };
            is_it && self.allows(detail, action, &location)
        });
        let whole = self.details.is_empty() || left.actions() == wanted.actions() || self.operation.is_some();
        if left.is_empty() || !whole { Err(Refused::NotGranted) } else { Ok(left) }
    }

    /// Where the target is: its audience, when the catalogue does not say more.
    fn location(&self) -> Option<Location> {
        Location::parse(self.target.location.as_ref().unwrap_or(&self.target.audience)).ok()
    }

    fn allows(&self, detail: &Detail, action: Action, location: &Location) -> bool {
        let http: Option<(&str, &str, &PathPattern)> = match self.operation {
            Some(Operation::Http { method, host, path, .. }) => Some((method, host, path)),
            _ => None,
        };
        detail.allows(&Access {
            location,
            action,
            datatype: Some(&self.target.data_class),
            tool: self.operation.and_then(Operation::tool),
            http,
            whole_target: !self.carries_details,
        })
    }
}

/// How a credential is bound to its holder's key, by its form or by its claims.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bound {
    /// Not at all.
    No,
    /// To the key of a proof.
    Dpop,
    /// To the key of a certificate.
    Mtls,
}

impl Bound {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "none",
            Self::Dpop => "dpop",
            Self::Mtls => "mtls",
        }
    }

    /// Whether that is what decisions ask for. What asks for nothing takes everything.
    pub fn satisfies(self, decisions: &[Decision]) -> bool {
        decisions.iter().all(|decision| match decision.obligations.binding {
            None | Some(Binding::Bearer) => true,
            Some(Binding::Dpop) => self == Self::Dpop,
            Some(Binding::Mtls) => self == Self::Mtls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_catalogue;
    use crate::task::RawDetail;

    const TARGET: &str = r#"
        [[targets]]
        name = "wiki"
        audience = "https://wiki.example.org"
        data_class = "internal"
        groups = ["kb"]
        owner = "docs"
        binding = "none"
        location = "https://wiki.example.org/api"
    "#;

    fn detail(location: &str, actions: &[&str], paths: &[&str]) -> Detail {
        let texts = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        Detail::read(&RawDetail {
            kind: crate::task::grant::TARGET_ACCESS.to_owned(),
            locations: texts(&[location]),
            actions: texts(actions),
            paths: texts(paths),
            ..RawDetail::default()
        })
        .unwrap()
    }

    fn ask(own: &[Detail], asked: &[Detail], operation: Option<&Operation>, carries: bool) -> Vec<Action> {
        let catalogue = parse_catalogue([("t.toml", TARGET.as_bytes())], None).unwrap();
        let target = catalogue.target("wiki").unwrap();
        let wish = Wish { target, details: asked, operation, action: None, carries_details: carries };
        let part = wish.part(&Grants::of(own.to_vec()));
        part.map(|part| part.actions().into_iter().collect()).unwrap_or_default()
    }

    const API: &str = "https://wiki.example.org/api";

    #[test]
    fn only_what_is_about_the_target_and_was_asked_for_is_left() {
        let own = [
            detail(API, &["read", "write"], &[]),
            detail("https://tickets.example.org", &["read", "delete"], &[]),
        ];
        assert_eq!(ask(&own, &[], None, true), [Action::Read, Action::Write]);
        assert_eq!(ask(&own, &[detail(API, &["read"], &[])], None, true), [Action::Read]);
        assert_eq!(ask(&own, &[detail(API, &["read", "delete"], &[])], None, true), []);
        assert_eq!(ask(&own, &[detail("https://tickets.example.org", &["read"], &[])], None, true), []);
        assert_eq!(ask(&own[1..], &[], None, true), []);
        let get = Operation::http("GET", "wiki.example.org", "/api/x", 0, &[]).unwrap();
        assert_eq!(ask(&own, &[], Some(&get), true), [Action::Read]);
        let elsewhere = Operation::http("GET", "wiki.example.org", "/other", 0, &[]).unwrap();
        assert_eq!(ask(&own, &[], Some(&elsewhere), true), []);
        let delete = Operation::http("DELETE", "wiki.example.org", "/api/x", 0, &[]).unwrap();
        assert_eq!(ask(&own, &[], Some(&delete), true), []);
        let unlisted = Operation::http("TRACE", "wiki.example.org", "/api/x", 0, &[]).unwrap();
        assert_eq!(ask(&own, &[], Some(&unlisted), true), []);
    }

    #[test]
    fn a_credential_that_cannot_say_which_part_needs_a_grant_of_the_whole() {
        let part = [detail(API, &["read"], &["/api/pages/*"])];
        assert_eq!(ask(&part, &[], None, true), [Action::Read]);
        assert_eq!(ask(&part, &[], None, false), []);
        let below = [detail("https://wiki.example.org/api/pages", &["read"], &[])];
        assert_eq!(ask(&below, &[], None, true), [Action::Read]);
        assert_eq!(ask(&below, &[], None, false), []);
        assert_eq!(ask(&[detail(API, &["read"], &[])], &[], None, false), [Action::Read]);
    }
}
