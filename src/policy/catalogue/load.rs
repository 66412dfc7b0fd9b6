//! Files of the catalogue: TOML with `[[targets]]`, `[[agents]]`, `[[templates]]` and `[[people]]`.

mod targets;
mod templates;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::targets::read_target;
use self::templates::{TemplateDraft, read_template};
use super::agents::Agents;
use super::{Agent, Allowed, Catalogue, IdPattern, Person, Target};
use crate::diag::{Found, Place, Problems, Table, is_name, line, nearest, read_toml};
use crate::id::TrustDomain;

/// Makes a catalogue of the texts of files, each with the name to show. All or nothing. `own`: the only trust domain
/// that agents can be in; `None` lets every one pass (a check without a configuration).
///
/// # Errors
/// Every mistake of every file.
pub fn parse_catalogue<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    own: Option<&TrustDomain>,
) -> Result<Catalogue, Problems> {
    let (mut draft, mut problems) = (Draft::default(), Problems::new());
    for (file, bytes) in files {
        read_toml(file, bytes, &mut problems, |table| draft.read(table, own));
    }
    let catalogue = draft.build(&mut problems);
    problems.into_result(Some(catalogue))
}

/// What has been read so far, not yet held against the rest.
#[derive(Default)]
struct Draft {
    targets: Vec<Target>,
    agents: Vec<AgentDraft>,
    templates: Vec<TemplateDraft>,
    people: Vec<Person>,
}

struct AgentDraft {
    agent: Agent,
    templates: Vec<Found<Allowed>>,
}

impl Draft {
    fn read(&mut self, table: &mut Table<'_>, own: Option<&TrustDomain>) {
        let kinds = ["targets", "agents", "templates", "people"];
        // An empty file is more likely one cut short than one that means nothing (threats J02).
        if !kinds.iter().any(|kind| table.has(kind)) {
            table.require("targets", "write `[[targets]]`, `[[agents]]`, `[[templates]]` or `[[people]]`");
        }
        let targets = table.tables("targets", read_target);
        self.targets.extend(targets.into_iter().flatten().flatten());
        let agents = table.tables("agents", |table| read_agent(table, own));
        self.agents.extend(agents.into_iter().flatten().flatten());
        let templates = table.tables("templates", read_template);
        self.templates.extend(templates.into_iter().flatten().flatten());
        let people = table.tables("people", read_person);
        self.people.extend(people.into_iter().flatten().flatten());
    }

    /// What only shows when all files are together.
    fn build(self, problems: &mut Problems) -> Catalogue {
        let mut targets = BTreeMap::new();
        let mut audiences = Unique::new("audience");
        let mut names = Unique::new("name");
        for target in self.targets {
            names.add(&target.name, &target.place, problems);
            audiences.add(&target.audience, &target.place, problems);
            targets.insert(target.name.clone(), Arc::new(target));
        }
        let audiences = targets.values().map(|t| (t.audience.clone(), t.name.clone())).collect();
        let mut templates = BTreeMap::new();
        let mut names = Unique::new("name");
        for TemplateDraft { template, targets: named } in self.templates {
            names.add(&template.name, &template.place, problems);
            for Found { value, place } in named {
                known(&value, &place, "target", &targets, problems);
            }
            templates.insert(template.name.clone(), Arc::new(template));
        }
        let mut agents = Vec::with_capacity(self.agents.len());
        let mut patterns = Unique::new("pattern");
        for AgentDraft { agent, templates: allowed } in self.agents {
            patterns.add(&agent.pattern.to_string(), &agent.place, problems);
            for Found { value, place } in allowed {
                if let Allowed::Named(name) = value {
                    known(&name, &place, "template", &templates, problems);
                }
            }
            agents.push(agent);
        }
        let people = unique_people(self.people, problems);
        Catalogue { targets, audiences, agents: Agents::new(agents), templates, people }
    }
}

/// Nobody is two people, and no two are one.
fn unique_people(list: Vec<Person>, problems: &mut Problems) -> BTreeMap<String, Person> {
    let mut people = BTreeMap::new();
    let (mut names, mut uids, mut subjects) =
        (Unique::new("name"), Unique::new("uid"), Unique::new("subject"));
    for person in list {
        names.add(&person.name, &person.place, problems);
        person.uids.iter().for_each(|uid| uids.add(&uid.to_string(), &person.place, problems));
        person.subjects.iter().for_each(|subject| subjects.add(subject, &person.place, problems));
        people.insert(person.name.clone(), person);
    }
    people
}

/// Things of which there may be one each.
struct Unique {
    what: &'static str,
    seen: BTreeMap<String, Place>,
}

impl Unique {
    fn new(what: &'static str) -> Self {
        Self { what, seen: BTreeMap::new() }
    }

    fn add(&mut self, value: &str, place: &Place, problems: &mut Problems) {
        if let Some(first) = self.seen.insert(value.to_owned(), place.clone()) {
            let what = self.what;
            let shown = crate::diag::Shown(value);
            let message = format!("has the {what} `{shown}` of {first}: change or remove one of the two");
            problems.push(place.problem(message));
        }
    }
}

fn known<T>(name: &str, place: &Place, what: &str, all: &BTreeMap<String, T>, problems: &mut Problems) {
    if all.contains_key(name) {
        return;
    }
    let advice = match nearest(name, all.keys().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("write a `[[{what}s]]` of that name"),
    };
    problems.push(
        place.problem(format!("`{}` is no {what} of the catalogue: {advice}", crate::diag::Shown(name))),
    );
}

fn read_agent(table: &mut Table<'_>, own: Option<&TrustDomain>) -> Option<AgentDraft> {
    table.require("spiffe_id", "write `spiffe_id = \"spiffe://…/agent/*\"`");
    table.require("owner", "say who answers for these agents");
    let pattern = table.parsed("spiffe_id", |text| {
        let pattern = IdPattern::parse(text).map_err(|error| error.to_string())?;
        match own {
            Some(own) if pattern.trust_domain() != own => Err(format!(
                "is in trust domain `{}`: this agent issues for `{own}` only",
                pattern.trust_domain()
            )),
            _ => Ok(pattern),
        }
    });
    let groups = groups(table);
    let owner = owner(table);
    let templates: Vec<_> = table.each_parsed("templates", allowed).found().collect();
    let reviewed_at = table.moment("reviewed_at").map(|found| found.value);
    let agent = Agent {
        pattern: pattern?.value,
        groups,
        owner,
        templates: templates.iter().map(|found| found.value.clone()).collect(),
        reviewed_at,
        place: table.place().clone(),
    };
    Some(AgentDraft { agent, templates })
}

fn allowed(text: &str) -> Result<Allowed, &'static str> {
    if text == "*" { Ok(Allowed::Any) } else { name(text).map(Allowed::Named) }
}

fn read_person(table: &mut Table<'_>) -> Option<Person> {
    table.require("name", "write `name = \"…\"`");
    let name_found = table.parsed("name", name);
    let uids = table.each_parsed("uids", |text| {
        text.parse::<u32>().map_err(|_not_a_number| "is no user number: write it in quotes, such as \"1000\"")
    });
    let subjects = table.each_parsed("subjects", subject).values().collect();
    let groups = groups(table);
    Some(Person {
        name: name_found?.value,
        uids: uids.values().collect(),
        subjects,
        groups,
        place: table.place().clone(),
    })
}

/// `owner`, empty where it is missing or wrong, which has been reported.
fn owner(table: &mut Table<'_>) -> String {
    table.parsed("owner", filled_line).map(|found| found.value).unwrap_or_default()
}

fn groups(table: &mut Table<'_>) -> BTreeSet<String> {
    table.each_parsed("groups", name).values().collect()
}

fn name(text: &str) -> Result<String, &'static str> {
    is_name(text, 64).then(|| text.to_owned()).ok_or("is no name: write 1 to 64 of A-Z a-z 0-9 . - _")
}

/// `ISSUER#SUB`: one that no user can have would keep nobody from anything, and nobody would know.
fn subject(text: &str) -> Result<String, &'static str> {
    let (iss, sub) = text.split_once('#').unwrap_or_default();
    let is_one = iss.len() > "https://".len() && iss.starts_with("https://") && !sub.is_empty();
    let advice = "is no user: write the issuer, `#` and the `sub` of the token, such as \"https://idp.example.org#ann\"";
    if is_one { line(text) } else { Err(advice) }
}

fn filled_line(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("is empty: write something, or remove it") } else { line(text) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::id::SpiffeId;
    use crate::policy::{
        Action, Binding, Ceilings, Operation, ParamError, ParamType, TargetKind, TemplateDetail,
    };

    fn load(text: &str) -> Result<Catalogue, Problems> {
        let own = "example.org".parse().unwrap();
        parse_catalogue([("c.toml", text.as_bytes())], Some(&own))
    }

    fn good(text: &str) -> Catalogue {
        load(text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn report(text: &str) -> Vec<String> {
        load(text).unwrap_err().to_string().lines().map(str::to_owned).collect()
    }

    const WIKI: &str = r#"
[[targets]]
name = "wiki"
audience = "https://wiki.example.org"
data_class = "internal"
owner = "docs team"
"#;

    const WHOLE: &str = r#"
[[targets]]
name = "wiki"
audience = "https://wiki.example.org"
kind = "http"
data_class = "internal"
groups = ["kb", "docs"]
owner = "docs team"
binding = "dpop"
location = "https://wiki.example.org/api"

[targets.actions]
read = ["GET", "POST /search"]
write = ["POST"]

[[targets]]
name = "tools"
audience = "urn:tools"
kind = "mcp"
data_class = "public"
owner = "platform"
[targets.actions]
read = ["search"]
execute = ["run:job"]

[[agents]]
spiffe_id = "spiffe://example.org/agent/research/*"
groups = ["researchers"]
owner = "research"
templates = ["summarise"]
reviewed_at = 2026-11-01

[[agents]]
spiffe_id = "spiffe://example.org/**"
groups = ["everybody"]
owner = "platform"
templates = ["*"]

[[templates]]
name = "summarise"
description = "read a space, write nothing"
owner = "docs team"
groups = ["harmless"]

[[templates.params]]
name = "space"
type = "name"

[[templates.params]]
name = "pages"
type = "integer"
min = 1
max = 50
default = "10"

[templates.ceilings]
ttl = "30m"
credential_ttl = "5m"
idle = "2m"
max_calls = 100
max_children = 2
max_depth = 1

[[templates.details]]
target = "wiki"
actions = ["read"]
locations = ["https://wiki.example.org/api/{space}"]
datatypes = ["page"]
identifier = "space:{space}"
tools = ["search"]
methods = ["GET"]
paths = ["/api/{space}/**"]

[[people]]
name = "ann"
uids = ["1000", "1001"]
subjects = ["https://idp.example.org#ann"]
groups = ["oncall"]
"#;

    #[test]
    fn everything_that_is_written_is_taken_over() {
        let catalogue = good(WHOLE);
        let wiki = catalogue.target("wiki").unwrap();
        assert_eq!((wiki.kind, wiki.binding), (TargetKind::Http, Binding::Dpop));
        assert_eq!((wiki.data_class.as_str(), wiki.owner.as_str()), ("internal", "docs team"));
        assert_eq!(wiki.groups, ["docs".to_owned(), "kb".to_owned()].into());
        assert_eq!(wiki.location.as_deref(), Some("https://wiki.example.org/api"));
        let http = |method, path| wiki.action_of(&Operation::Http { method, path });
        assert_eq!(http("GET", "/x"), Some(Action::Read));
        assert_eq!(http("POST", "/search/x"), Some(Action::Read));
        assert_eq!((http("POST", "/x"), http("DELETE", "/x")), (Some(Action::Write), None));
        let tools = catalogue.target_for("urn:tools").unwrap();
        assert_eq!(tools.action_of(&Operation::Named("run:job")), Some(Action::Execute));
        assert_eq!(tools.action_of(&Operation::Named("other")), None);
        let id = |path: &str| format!("spiffe://example.org/{path}").parse::<SpiffeId>().unwrap();
        assert_eq!(catalogue.groups_of(&id("agent/research/a")), ["everybody", "researchers"].into());
        assert_eq!(catalogue.groups_of(&id("other")), ["everybody"].into());
        assert!(catalogue.may_begin(&id("other"), None));
        let ann = catalogue.person_of_uid(1001).unwrap();
        assert_eq!((ann.name.as_str(), &ann.groups), ("ann", &["oncall".to_owned()].into()));
        assert!(catalogue.person_of_subject("https://idp.example.org", "ann").is_some());
        // Another issuer's is another one, and so is a `sub` that is somebody's name here.
        assert!(catalogue.person_of_subject("https://other.example.org", "ann").is_none());
        assert_eq!(catalogue.name_of_user("https://idp.example.org", "ann"), "ann");
        assert_eq!(
            catalogue.name_of_user("https://other.example.org", "ann"),
            "https://other.example.org#ann"
        );
        assert!(catalogue.person_of_uid(1).is_none());
    }

    #[test]
    fn a_template_is_taken_over_and_filled() {
        let catalogue = good(WHOLE);
        let template = catalogue.template("summarise").unwrap();
        let ceilings = Ceilings {
            ttl: Some(Duration::from_secs(1800)),
            credential_ttl: Some(Duration::from_secs(300)),
            idle: Some(Duration::from_secs(120)),
            max_calls: Some(100),
            max_children: Some(2),
            max_depth: Some(1),
        };
        assert_eq!(template.ceilings, ceilings);
        assert_eq!(template.params["pages"].kind, ParamType::Integer { min: 1, max: 50 });
        let given = |list: &[(&str, &str)]| {
            template.fill(&list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        let filled = given(&[("space", "DOCS")]).unwrap();
        let set = |text: &str| BTreeSet::from([text.to_owned()]);
        let detail = TemplateDetail {
            target: "wiki".to_owned(),
            actions: [Action::Read].into(),
            locations: vec!["https://wiki.example.org/api/DOCS".to_owned()],
            datatypes: set("page"),
            identifier: "space:DOCS".to_owned(),
            tools: set("search"),
            methods: set("GET"),
            paths: set("/api/DOCS/**"),
        };
        assert_eq!(filled.details, [detail]);
        assert_eq!(filled.params["pages"], "10");
        let error = |list: &[(&str, &str)]| given(list).unwrap_err();
        assert_eq!(error(&[]), ParamError::Missing("space".to_owned()));
        assert_eq!(error(&[("space", "a"), ("x", "")]), ParamError::Unknown("x".to_owned()));
        assert_eq!(error(&[("space", "../a")]), ParamError::Value("space".to_owned()));
        assert_eq!(error(&[("space", "a"), ("pages", "51")]), ParamError::Value("pages".to_owned()));
    }

    #[test]
    fn what_is_not_written_allows_nothing() {
        let catalogue =
            good(&format!("{WIKI}\n[[agents]]\nspiffe_id = \"spiffe://example.org/a\"\nowner = \"x\"\n"));
        let wiki = catalogue.target("wiki").unwrap();
        assert_eq!(wiki.binding, Binding::Mtls, "bearer tokens only where somebody wrote so");
        assert_eq!(wiki.action_of(&Operation::Http { method: "DELETE", path: "/" }), Some(Action::Delete));
        let a = "spiffe://example.org/a".parse().unwrap();
        assert!(!catalogue.may_begin(&a, None) && !catalogue.may_begin(&a, Some("x")));
        assert!(!Catalogue::default().may_begin(&a, None));
    }

    const WRONG: &str = r#"
[[targets]]
name = "wi ki"
audience = ""
kind = "ftp"
binding = "bearer"
location = "https://a/?q"
[targets.actions]
read = ["get", "GET", "POST /a/../b"]
write = ["GET"]
erase = ["DELETE"]

[[agents]]
spiffe_id = "spiffe://other.org/a"
groups = ["a b"]
templates = ["none"]
reviewed_at = "soon"

[[templates]]
name = "t"
owner = "x"
[[templates.params]]
name = "p"
type = "integer"
min = 1
default = "0"
[[templates.params]]
name = "q"
type = "name"
choices = ["a"]
[templates.ceilings]
ttl = "9h"
max_children = 65
[[templates.details]]
target = "wicki"
actions = ["fetch"]
identifier = "{x}"

[[people]]
uids = ["-1"]
"#;

    #[test]
    fn every_mistake_of_every_part_is_in_one_report() {
        let expected = [
            "targets[0].data_class: is missing",
            "3:8: targets[0].name: `wi ki` is no name",
            "4:12: targets[0].audience: `` is empty",
            "5:8: targets[0].kind: `ftp` is none of",
            "6:11: targets[0].binding: `bearer` is none of",
            "7:12: targets[0].location: `https://a/?q` is no location",
            "9:9: targets[0].actions.read[0]: `get` is no operation",
            "9:23: targets[0].actions.read[2]: `POST /a/../b` is no operation",
            "10:10: targets[0].actions.write[0]: is listed under `read` already",
            "11:1: targets[0].actions.erase: is not a known key",
            "14:13: agents[0].spiffe_id: `spiffe://other.org/a` is in trust domain `other.org`",
            "15:11: agents[0].groups[0]: `a b` is no name",
            "17:15: agents[0].reviewed_at: is no date",
            "26:11: templates[0].params[0].default: `0` is no value of its own type",
            "29:8: templates[0].params[1].type: and `choices` go together",
            "32:7: templates[0].ceilings.ttl: is \"9h\": write a value from",
            "33:16: templates[0].ceilings.max_children: is 65",
            "35:10: templates[0].details[0].target: `wicki` is no target of the catalogue",
            "36:12: templates[0].details[0].actions[0]: `fetch` is none of read",
            "templates[0].details[0]: has `{x}`, and the template has no parameter",
            "people[0].name: is missing",
            "40:9: people[0].uids[0]: `-1` is no user number",
        ];
        let found = report(WRONG);
        for expected in expected {
            assert!(found.iter().any(|line| line.contains(expected)), "{expected}\n{found:#?}");
        }
        // Two owners are missing besides.
        assert_eq!(found.len(), expected.len() + 2, "{found:#?}");
    }

    #[test]
    fn a_ceiling_that_nobody_counts_is_refused_with_its_place() {
        let template = "[[templates]]\nname = \"t\"\nowner = \"x\"\n[templates.ceilings]\nmax_calls = 1\n";
        assert_eq!(good(template).template("t").unwrap().ceilings.max_calls, Some(1));
        let found = report(&format!("{template}max_bytes = 5\nmax_cost_microusd = 0\n"));
        for (n, expected) in
            ["6:13: templates[0].ceilings.max_bytes:", "7:21: templates[0].ceilings.max_cost_microusd:"]
                .into_iter()
                .enumerate()
        {
            assert!(found[n].contains(expected) && found[n].contains("nobody counts that yet"), "{found:#?}");
        }
        assert_eq!(found.len(), 2, "{found:#?}");
    }

    #[test]
    fn no_two_are_one() {
        let other = WIKI.replace("\"wiki\"", "\"other\"");
        let found = report(&format!("{WIKI}{other}"));
        assert!(found[0].contains("has the audience `https://wiki.example.org` of c.toml:2"), "{found:#?}");
        let found = report(&format!("{WIKI}{}", WIKI.replace("https://wiki", "https://w")));
        assert!(found[0].contains("has the name `wiki`"), "{found:#?}");
        let agent = "[[agents]]\nspiffe_id = \"spiffe://example.org/a\"\nowner = \"x\"\n";
        assert!(report(&format!("{agent}{agent}"))[0].contains("has the pattern"));
        let found = report(
            "[[people]]\nname = \"a\"\nuids = [\"1\"]\nsubjects = [\"https://i#s\"]\n[[people]]\nname = \"b\"\nuids = [\"1\"]\nsubjects = [\"https://i#s\"]",
        );
        assert!(
            found[0].contains("subject `https://i#s`") || found[1].contains("subject `https://i#s`"),
            "{found:#?}"
        );
        assert_eq!(found.len(), 2, "uid and subject: {found:#?}");
        for wrong in [
            "ann",
            "idp#ann",
            "https://idp.example.org/users/ann",
            "https://idp.example.org#",
            "https://#ann",
        ] {
            let found = report(&format!("[[people]]\nname = \"a\"\nsubjects = [\"{wrong}\"]"));
            assert!(found[0].contains("is no user: write the issuer"), "{wrong}: {found:#?}");
        }
        let found = report(&format!(
            "{WIKI}[[agents]]\nspiffe_id = \"spiffe://example.org/a\"\nowner = \"x\"\ntemplates = [\"t\"]"
        ));
        assert!(found[0].contains("`t` is no template of the catalogue"), "{found:#?}");
    }

    #[test]
    fn j02_an_empty_file_is_no_catalogue() {
        for text in ["", "# nothing\n"] {
            assert!(report(text)[0].contains("targets: is missing"), "{text}");
        }
        assert_eq!(good("targets = []").targets().count(), 0);
    }

    proptest! {
        #[test]
        fn no_file_makes_loading_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            text in r#"(\[\[(targets|agents|templates|people|templates\.params|templates\.details)\]\]\n|\[(targets\.actions|templates\.ceilings)\]\n|(name|audience|kind|type|min|default|actions|read|target|identifier|spiffe_id|uids|owner|ttl) = |"[a-z{}/:.*]{0,6}"|\["[A-Z /{}]{0,6}"\]|[0-9]{1,3}|\n){0,40}"#,
        ) {
            parse_catalogue([("a", bytes.as_slice()), ("b", text.as_bytes())], None).ok();
        }
    }
}
