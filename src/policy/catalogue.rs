//! What there is to decide about: targets, agents, task templates, people. Read from the `*.toml` files of the policy
//! directory, whole or not at all.

mod agents;
mod load;
mod pattern;
mod target;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

pub use self::load::parse_catalogue;
pub use self::pattern::IdPattern;
pub use self::target::{Operation, Target, TargetKind};
pub use self::template::{
    Ceilings, Filled, MAX_CREDENTIAL_TTL, MAX_TASK_TTL, Param, ParamError, ParamType, Template,
    TemplateDetail,
};
use crate::diag::Place;
use crate::id::SpiffeId;

/// All of them. Never changes once it is made.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    targets: BTreeMap<String, Arc<Target>>,
    /// Audience to name.
    audiences: BTreeMap<String, String>,
    agents: agents::Agents,
    templates: BTreeMap<String, Arc<Template>>,
    people: BTreeMap<String, Person>,
}

impl Catalogue {
    /// The target of that name.
    pub fn target(&self, name: &str) -> Option<&Arc<Target>> {
        self.targets.get(name)
    }

    /// The target that accepts that audience.
    pub fn target_for(&self, audience: &str) -> Option<&Arc<Target>> {
        self.targets.get(self.audiences.get(audience)?)
    }

    /// Every target, by name.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.targets.values()
    }

    /// The template of that name.
    pub fn template(&self, name: &str) -> Option<&Arc<Template>> {
        self.templates.get(name)
    }

    /// Every template, by name.
    pub fn templates(&self) -> impl Iterator<Item = &Arc<Template>> {
        self.templates.values()
    }

    /// Every agent record, in the order of the files.
    pub fn agents(&self) -> &[Agent] {
        self.agents.all()
    }

    /// The records that are about this identity. What several of them say adds up.
    pub fn agents_of(&self, id: &SpiffeId) -> impl Iterator<Item = &Agent> {
        self.agents.about(id)
    }

    /// The groups of an agent.
    pub fn groups_of(&self, id: &SpiffeId) -> BTreeSet<&str> {
        self.agents_of(id).flat_map(|agent| &agent.groups).map(String::as_str).collect()
    }

    /// Whether an agent may begin tasks by this template, `None`: by none.
    pub fn may_begin(&self, id: &SpiffeId, template: Option<&str>) -> bool {
        self.agents_of(id).flat_map(|agent| &agent.templates).any(|allowed| match allowed {
            Allowed::Any => true,
            Allowed::Named(name) => Some(name.as_str()) == template,
        })
    }

    /// The person of that name.
    pub fn person(&self, name: &str) -> Option<&Person> {
        self.people.get(name)
    }

    /// The person who works here as that user.
    pub fn person_of_uid(&self, uid: u32) -> Option<&Person> {
        self.people.values().find(|person| person.uids.contains(&uid))
    }

    /// The person whom that issuer calls by that `sub`.
    pub fn person_of_subject(&self, iss: &str, sub: &str) -> Option<&Person> {
        let subject = subject(iss, sub);
        self.people.values().find(|person| person.subjects.contains(&subject))
    }

    /// What policies know a user by: the person's name, or what no name of the catalogue can be.
    pub fn name_of_user(&self, iss: &str, sub: &str) -> String {
        self.person_of_subject(iss, sub).map_or_else(|| subject(iss, sub), |person| person.name.clone())
    }

    /// Every person, by name.
    pub fn people(&self) -> impl Iterator<Item = &Person> {
        self.people.values()
    }
}

/// What is known of the agents whose SPIFFE IDs fit a pattern.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Which agents.
    pub pattern: IdPattern,
    /// Their groups.
    pub groups: BTreeSet<String>,
    /// Who answers for them.
    pub owner: String,
    /// The templates they may begin tasks by.
    pub templates: BTreeSet<Allowed>,
    /// When somebody last looked at whether all this is still right.
    pub reviewed_at: Option<SystemTime>,
    /// Where it stands.
    pub place: Place,
}

/// A template that an agent may use.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Allowed {
    /// `"*"`: any, or none at all.
    Any,
    /// That one.
    Named(String),
}

/// A user in one text. No issuer has a `#`, so that no two users are one.
fn subject(iss: &str, sub: &str) -> String {
    format!("{iss}#{sub}")
}

/// Somebody who approves, or for whom agents act.
#[derive(Clone, Debug)]
pub struct Person {
    /// The name that policies know them by.
    pub name: String,
    /// Their users on this machine.
    pub uids: BTreeSet<u32>,
    /// What issuers of users' tokens call them: `ISSUER#SUB`. A `sub` means nothing without its issuer.
    pub subjects: BTreeSet<String>,
    /// Their groups.
    pub groups: BTreeSet<String>,
    /// Where it stands.
    pub place: Place,
}
