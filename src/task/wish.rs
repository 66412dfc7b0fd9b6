//! What a credential would be for: the part of a task's grants that is about one target, as far as it was asked for.
//! Pure, and only ever narrower. Policy decides about each action of it afterwards, and believes the operation that was
//! named: so what comes out is for that operation alone, and what could not be held to it is refused.

use std::collections::BTreeSet;

use super::place::{Location, PathPattern};
use super::{Access, Action, Detail, Grants, Operation, Refused, only};
use crate::policy::{Binding, Decision, Target};

/// How much of what was asked for whoever gets the credential can read in it, and hold its user to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Says {
    /// All of it: nothing is issued, or the digest of the operation stands beside the details.
    Everything,
    /// The details: place, method, path, tool.
    Details,
    /// Nothing: it is good for the whole target.
    Nothing,
}

/// Why a credential cannot be held to the operation that was named, and what to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotHeld {
    /// It does not say what it is for.
    #[error(
        "only an access token can be held to the operation that is named: ask for one, or for this form without an \
         operation"
    )]
    Form,
    /// What is granted has no words for statements.
    #[error(
        "no credential can be held to a database statement that nobody has approved: name an approval of it, or no \
         operation"
    )]
    Statement,
}

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
    /// Where that is nothing, only grants that are limited to no part of the target do.
    pub says: Says,
}

impl Wish<'_> {
    /// The part of a task's grants that this is: where an operation is named, that operation and nothing else.
    ///
    /// # Errors
    /// [`Refused::NotGranted`]: some of what was asked for is not the task's to use, or nothing is left.
    /// [`Refused::NotHeld`]: what would be issued could be used for more than was named.
    pub fn part(&self, own: &Grants) -> Result<Grants, Refused> {
        self.can_be_held()?;
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
        let left = match self.operation {
            Some(operation) => only(&left, operation),
            None => left,
        };
        if left.is_empty() || !whole { Err(Refused::NotGranted) } else { Ok(left) }
    }

    fn can_be_held(&self) -> Result<(), Refused> {
        match (self.says, self.operation) {
            (Says::Nothing, Some(_)) => Err(Refused::NotHeld(NotHeld::Form)),
            (Says::Details, Some(Operation::Sql { .. })) => Err(Refused::NotHeld(NotHeld::Statement)),
            _ => Ok(()),
        }
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
            whole_target: self.says == Says::Nothing,
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

        [[targets]]
        name = "tools"
        audience = "https://tools.example.org"
        kind = "mcp"
        data_class = "internal"
        groups = ["kb"]
        owner = "docs"
        binding = "none"
        [targets.actions]
        read = ["search"]
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

    fn part(
        own: &[Detail],
        asked: &[Detail],
        operation: Option<&Operation>,
        says: Says,
    ) -> Result<Grants, Refused> {
        let catalogue = parse_catalogue([("t.toml", TARGET.as_bytes())], None).unwrap();
        let is_tool = matches!(operation, Some(Operation::Mcp { .. }));
        let target = catalogue.target(if is_tool { "tools" } else { "wiki" }).unwrap();
        let action = matches!(operation, Some(Operation::Sql { .. })).then_some(Action::Read);
        Wish { target, details: asked, operation, action, says }.part(&Grants::of(own.to_vec()))
    }

    fn ask(own: &[Detail], asked: &[Detail], operation: Option<&Operation>, carries: bool) -> Vec<Action> {
        let says = if carries { Says::Details } else { Says::Nothing };
        let part = part(own, asked, operation, says);
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

    #[test]
    fn whoever_names_an_operation_gets_that_and_nothing_else() {
        let get = Operation::http("GET", "wiki.example.org", "/api/x", 0, &[]).unwrap();
        for own in [detail(API, &["read", "write"], &[]), detail(API, &["read"], &["/api/*"])] {
            let left = part(std::slice::from_ref(&own), &[], Some(&get), Says::Details).unwrap();
            let raw = left.details()[0].raw();
            assert_eq!((raw.actions, raw.methods), (vec!["read".to_owned()], vec!["GET".to_owned()]));
            assert_eq!(raw.paths, ["/api/x"]);
            let again = part(left.details(), &[], Some(&get), Says::Everything).unwrap();
            assert_eq!(again, left, "an approval of it makes it no other");
        }
        let search = Operation::mcp("any", "search", "").unwrap();
        let tools = detail("https://tools.example.org", &["read"], &[]);
        let left = part(&[tools], &[], Some(&search), Says::Details).unwrap();
        assert_eq!(left.details()[0].raw().tools, ["search"]);
    }

    #[test]
    fn what_cannot_be_held_to_an_operation_is_not_given_for_it() {
        let whole = [detail(API, &["read"], &[])];
        let get = Operation::http("GET", "wiki.example.org", "/api/x", 0, &[]).unwrap();
        let select = Operation::sql("db", "reader", &[]).unwrap();
        let form = Err(Refused::NotHeld(NotHeld::Form));
        assert_eq!(part(&whole, &[], Some(&get), Says::Nothing), form);
        assert_eq!(part(&whole, &[], Some(&select), Says::Nothing), form);
        assert_eq!(
            part(&whole, &[], Some(&select), Says::Details),
            Err(Refused::NotHeld(NotHeld::Statement))
        );
        // Where its digest goes along, or nothing is given at all.
        assert!(part(&whole, &[], Some(&select), Says::Everything).is_ok());
        assert!(part(&whole, &[], None, Says::Nothing).is_ok());
    }
}
