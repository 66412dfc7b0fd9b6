//! A policy directory as tests want it: few rules, and a catalogue of a few targets, agents and people. Each test says
//! only in what its own differs.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::{Agent, files};

/// The place of the target `wiki`, its audience.
pub const WIKI: &str = "https://wiki.example.org";

/// A write is nothing without the yes of somebody on call.
pub const WRITES_NEED_A_PERSON: &str = r#"
@id("writes-need-a-person") @requires_approval("oncall")
forbid(principal, action == Mayfly::Action::"write", resource)
unless { context has approval && context.approval.quorum >= 1 };
"#;

/// A task by the template `deep`, and whatever is handed on, is nothing without the yes of somebody on call.
pub const TASKS_NEED_A_PERSON: &str = r#"
@id("deep-needs-a-person") @requires_approval("oncall")
forbid(principal, action == Mayfly::Action::"begin", resource == Mayfly::Template::"deep")
unless { context has approval && context.approval.until > context.now };
@id("handing-on-needs-a-person") @requires_approval("oncall")
forbid(principal, action == Mayfly::Action::"delegate", resource)
unless { context has approval && context.approval.until > context.now };
"#;

/// Whoever is on call answers.
pub const ONCALL_APPROVES: &str = r#"
@id("oncall-approves") permit(principal in Mayfly::Group::"oncall", action == Mayfly::Action::"approve", resource);
"#;

/// Rules and catalogue.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// Cedar.
    pub rules: String,
    /// TOML.
    pub catalogue: String,
}

impl Policies {
    /// With these rules, and nobody and nothing in the catalogue.
    pub fn of(rules: &str) -> Self {
        Self { rules: rules.to_owned(), catalogue: String::new() }
    }

    /// Every identity is known, may be fetched, and may begin tasks by every template.
    pub fn open() -> Self {
        Self::default().permit("fetch").permit("begin").agents("**", "researchers", &["*"])
    }

    /// A rule, named for the action that it permits to everybody.
    #[must_use]
    pub fn permit(self, action: &str) -> Self {
        let rule = format!("permit(principal, action == Mayfly::Action::\"{action}\", resource);");
        self.rule(&format!("@id(\"{action}\") {rule}"))
    }

    /// One more rule, as it is written.
    #[must_use]
    pub fn rule(mut self, text: &str) -> Self {
        self.rules += text;
        self.rules.push('\n');
        self
    }

    /// Identities of `example.org` below that path.
    #[must_use]
    pub fn agents(self, path: &str, group: &str, templates: &[&str]) -> Self {
        let fields = [("spiffe_id", &*format!("spiffe://example.org/{path}")), ("owner", "docs")];
        self.table("agents", &fields).more(&format!("groups = [{group:?}]\ntemplates = {templates:?}"))
    }

    /// A target that takes tokens as they are, its audience named for it; `fields` say what is otherwise.
    #[must_use]
    pub fn target(self, name: &str, fields: &[(&str, &str)]) -> Self {
        let audience = format!("https://{name}.example.org");
        let usual = [
            ("name", name),
            ("audience", &*audience),
            ("data_class", "internal"),
            ("owner", "docs"),
            ("binding", "none"),
        ];
        let usual = usual.into_iter().filter(|(key, _)| fields.iter().all(|(other, _)| other != key));
        let all: Vec<(&str, &str)> = usual.chain(fields.iter().copied()).collect();
        self.table("targets", &all).more("groups = [\"kb\"]")
    }

    /// A template by which that may be done at one target.
    #[must_use]
    pub fn template(self, name: &str, target: &str, actions: &[&str]) -> Self {
        let detail = format!("[[templates.details]]\ntarget = {target:?}\nactions = {actions:?}");
        self.table("templates", &[("name", name), ("owner", "docs")]).more(&detail)
    }

    /// Somebody with an account here.
    #[must_use]
    pub fn person(self, name: &str, uid: u32, group: &str) -> Self {
        let lists = format!("uids = [\"{uid}\"]\ngroups = [{group:?}]");
        self.table("people", &[("name", name)]).more(&lists)
    }

    /// More of the catalogue, as it is written: it goes on with the last table.
    #[must_use]
    pub fn more(mut self, text: &str) -> Self {
        self.catalogue += text.trim_start_matches('\n');
        self.catalogue.push('\n');
        self
    }

    /// Makes it the policy directory of an agent that is to be launched yet.
    ///
    /// # Panics
    /// When the files cannot be written, or are there already.
    pub fn install(&self, agent: &mut Agent) {
        let dir = agent.policy_dir();
        std::fs::create_dir(&dir).expect("a policy directory");
        agent.plan().settings += &format!("\n[policy]\ndir = {dir:?}\n");
        agent.write_config();
        agent.write_policies(&self.rules);
        agent.write_catalogue(&self.catalogue);
    }

    fn table(mut self, kind: &str, fields: &[(&str, &str)]) -> Self {
        write!(self.catalogue, "\n[[{kind}]]\n").expect("memory");
        for (key, value) in fields {
            writeln!(self.catalogue, "{key} = {value:?}").expect("memory");
        }
        self
    }
}

impl Agent {
    /// Where [`Policies::install`] puts its files.
    pub fn policy_dir(&self) -> PathBuf {
        self.dir().join("policy.d")
    }

    /// Puts other rules in place of those that were installed.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write_policies(&self, rules: &str) {
        files::replace(&self.policy_dir().join("a.cedar"), rules.as_bytes(), 0o644);
    }
    /// Puts another catalogue in place of the one that was installed.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_catalogue(&self, catalogue: &str) {
        files::replace(&self.policy_dir().join("b.toml"), catalogue.as_bytes(), 0o644);
    }
}
