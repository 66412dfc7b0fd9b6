//! `cases.yaml`: what a policy set is expected to decide, so that a change of it can be tested before it is in force.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::sketch::{ApprovalSketch, ProcessSketch, Sketch, TaskSketch};
use super::{
    Action, Binding, Circumstances, Explanation, HttpFacts, Kind, McpFacts, Phase, PolicySet, PostureFacts,
    SqlFacts, UserFacts, Verdict,
};
use crate::diag::{Place, Problem, Problems, Shown, ShownDuration, Table, is_name, line, moment, read_yaml};
use crate::id::SpiffeId;

/// One expectation.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// What is asked.
    pub sketch: Sketch,
    /// When; `None`: whenever it is run.
    pub now: Option<SystemTime>,
    expected: Expected,
    place: Place,
}

#[derive(Clone, Debug)]
struct Expected {
    verdict: Verdict,
    reason: Option<String>,
    policies: Option<BTreeSet<String>>,
    approvers: Option<BTreeSet<String>>,
    quorum: Option<u32>,
    max_ttl: Option<Duration>,
    binding: Option<Binding>,
}

/// Why a case does not hold.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The case, where it stands, and what came instead.
    pub problem: Problem,
    /// What the policies made of it; `None` when it could not even be asked.
    pub explanation: Option<Explanation>,
}

/// Reads a file of cases.
///
/// # Errors
/// Every mistake.
pub fn parse_cases(file: &str, bytes: &[u8]) -> Result<Vec<Case>, Problems> {
    let mut problems = Problems::new();
    let cases = read_yaml(file, bytes, &mut problems, |table| {
        table.require("cases", "write `cases:` and below it a list of what is expected");
        let now = table.parsed("now", moment).map(|found| found.value);
        let cases = table.tables("cases", |table| read_case(table, now)).unwrap_or_default();
        cases.into_iter().flatten().collect::<Vec<_>>()
    });
    if cases.as_ref().is_some_and(Vec::is_empty) && problems.is_empty() {
        problems.push(Problem::whole_file(file, "holds no case: write one, or remove the file"));
    }
    problems.into_result(cases)
}

impl Case {
    /// Holds a set to it. `now`: the present, where neither the case nor its file says a moment.
    ///
    /// # Errors
    /// [`Broken`] says what came instead, and why.
    pub fn run(&self, set: &PolicySet, now: SystemTime) -> Result<(), Box<Broken>> {
        let shown = Shown(&self.name);
        let broken = |what: String, explanation| {
            let problem = self.place.problem(format!("`{shown}` {what}"));
            Box::new(Broken { problem, explanation })
        };
        let question = self.sketch.question(set.catalogue(), self.now.unwrap_or(now));
        let question = question.map_err(|why| broken(why, None))?;
        let explanation = set.explain(&question, super::EvaluationId::from_random([0; 16]));
        match self.expected.misses(&explanation) {
            None => Ok(()),
            Some(what) => Err(broken(what, Some(explanation))),
        }
    }
}

impl Expected {
    /// What came otherwise, if anything did.
    fn misses(&self, explanation: &Explanation) -> Option<String> {
        let decision = &explanation.decision;
        let (reason, by) = (decision.reason.as_str(), decision.policy_ids.join(", "));
        if decision.verdict != self.verdict {
            let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
            let (wanted, came) = (self.verdict.as_str(), decision.verdict.as_str());
            return Some(format!("expects {wanted}, and it is {came} ({reason}{by})"));
        }
        if let Some(wanted) = self.reason.as_ref().filter(|wanted| *wanted != reason) {
            return Some(format!("expects the reason `{}`, and it is `{reason}`", Shown(wanted)));
        }
        let decided: BTreeSet<String> = decision.policy_ids.iter().cloned().collect();
        if let Some(wanted) = self.policies.as_ref().filter(|wanted| **wanted != decided) {
            return Some(format!("expects {} to decide, and {} did", listed(wanted), listed(&decided)));
        }
        self.misses_obligation(&decision.obligations)
    }

    fn misses_obligation(&self, came: &super::Obligations) -> Option<String> {
        if let Some(wanted) = self.max_ttl.filter(|wanted| came.max_ttl != Some(*wanted)) {
            let had = came.max_ttl.map_or_else(|| "none".to_owned(), |ttl| ShownDuration(ttl).to_string());
            return Some(format!("expects the longest lifetime {}, and it is {had}", ShownDuration(wanted)));
        }
        if let Some(wanted) = self.binding.filter(|wanted| came.binding != Some(*wanted)) {
            let had = came.binding.map_or("nothing", Binding::as_str);
            return Some(format!("expects the binding {}, and it is {had}", wanted.as_str()));
        }
        let (groups, quorum) =
            came.approval.as_ref().map(|a| (a.groups.clone(), a.quorum)).unwrap_or_default();
        if let Some(wanted) = self.approvers.as_ref().filter(|wanted| **wanted != groups) {
            return Some(format!("expects approvers in {}, and it is {}", listed(wanted), listed(&groups)));
        }
        let wanted = self.quorum.filter(|wanted| quorum != *wanted)?;
        Some(format!("expects {wanted} approvers, and it is {quorum}"))
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") }
}

fn read_case(table: &mut Table<'_>, now: Option<SystemTime>) -> Option<Case> {
    table.require("name", "say in a few words what is expected");
    table.require("action", "write what is done, such as `read`");
    table.require("expect", "write `allow`, `deny` or `requestable`");
    let name = table.parsed("name", line).map(|found| found.value);
    let own_now = table.parsed("now", moment).map(|found| found.value);
    let verdict = table.choice("expect", &VERDICTS).map(|found| found.value);
    let expected = Expected {
        verdict: verdict.unwrap_or(Verdict::Deny),
        reason: table.parsed("reason", line).map(|found| found.value),
        policies: names(table, "policies"),
        approvers: names(table, "approvers"),
        quorum: number(table, "quorum"),
        max_ttl: table.duration("max_ttl").map(|found| found.value),
        binding: table.choice("binding", &BINDINGS).map(|found| found.value),
    };
    let sketch = read_sketch(table);
    let place = table.place().clone();
    let (name, _) = (name?, verdict?);
    Some(Case { name, sketch, now: own_now.or(now), expected, place })
}

fn read_sketch(table: &mut Table<'_>) -> Sketch {
    let id = |table: &mut Table<'_>, key| table.parsed(key, spiffe_id).map(|found| found.value);
    let word = |table: &mut Table<'_>, key| table.parsed(key, line).map(|found| found.value);
    Sketch {
        agent: id(table, "as"),
        person: word(table, "as_user"),
        action: table.parsed("action", str::parse::<Action>).map(|found| found.value),
        target: word(table, "target"),
        to: id(table, "agent"),
        template: word(table, "template"),
        phase: table.parsed("phase", str::parse::<Phase>).map(|found| found.value),
        ttl: table.duration("ttl").map(|found| found.value),
        kind: table.choice("kind", &KINDS).map(|found| found.value),
        audiences: names(table, "audiences").unwrap_or_default(),
        entry: table.parsed("entry", plain_name).map(|found| found.value),
        process: read_process(table),
        task: table.section("task", read_task),
        approval: table.has("approval").then(|| table.section("approval", read_approval)).flatten(),
        circumstances: read_circumstances(table),
    }
}

fn read_process(table: &mut Table<'_>) -> ProcessSketch {
    let mut posture = PostureFacts::default();
    let words =
        table.each_parsed("posture", |text| PostureFacts::default().set(text).map(|()| text.to_owned()));
    // Every word was tried above.
    words.values().for_each(|word| {
        posture.set(&word).ok();
    });
    ProcessSketch {
        uid: number(table, "uid").unwrap_or_default(),
        selectors: names(table, "selectors").unwrap_or_default(),
        exe_sha256: table.parsed("exe_sha256", line).map(|found| found.value).unwrap_or_default(),
        node: table.parsed("node", line).map(|found| found.value).unwrap_or_default(),
        posture,
    }
}

fn read_task(table: &mut Table<'_>) -> TaskSketch {
    TaskSketch {
        depth: number(table, "depth").unwrap_or_default(),
        calls: number(table, "calls").map(u64::from).unwrap_or_default(),
        denials: number(table, "denials").map(u64::from).unwrap_or_default(),
        children: number(table, "children").map(u64::from).unwrap_or_default(),
        audiences: number(table, "audiences").map(u64::from).unwrap_or_default(),
        purpose: table.parsed("purpose", line).map(|found| found.value).unwrap_or_default(),
        age: table.duration("age").map(|found| found.value),
        left: table.duration("left").map(|found| found.value),
    }
}

fn read_approval(table: &mut Table<'_>) -> Option<ApprovalSketch> {
    table.require("by", "say who approved");
    table.require("until", "write for how long it is good, such as `5m`");
    let by = table.parsed("by", line).map(|found| found.value);
    let left = table.duration("until").map(|found| found.value);
    let quorum = number(table, "quorum").unwrap_or(1);
    Some(ApprovalSketch { by: by?, left: left?, quorum })
}

fn read_circumstances(table: &mut Table<'_>) -> Circumstances {
    let text =
        |table: &mut Table<'_>, key| table.parsed(key, line).map(|found| found.value).unwrap_or_default();
    let user = table.parsed("on_behalf_of", line).map(|found| found.value);
    let risk = table.integer("risk").and_then(|found| table.within(found, &(0..=100)));
    Circumstances {
        chain: table.each_parsed("chain", spiffe_id).values().collect(),
        tasks_above: Vec::new(),
        on_behalf_of: user.map(|name| UserFacts { name, groups: BTreeSet::new() }),
        approval: None,
        http: table.has("http").then(|| {
            table.section("http", |t| HttpFacts {
                method: text(t, "method"),
                host: text(t, "host"),
                path: text(t, "path"),
                bytes: number(t, "bytes").map(u64::from).unwrap_or_default(),
            })
        }),
        mcp: table
            .has("mcp")
            .then(|| table.section("mcp", |t| McpFacts { server: text(t, "server"), tool: text(t, "tool") })),
        sql: table
            .has("sql")
            .then(|| table.section("sql", |t| SqlFacts { db: text(t, "db"), role: text(t, "role") })),
        body_sha256: None,
        risk: risk.and_then(|risk| u8::try_from(risk).ok()).unwrap_or_default(),
        new_destination: table.boolean("new_destination").is_some_and(|found| found.value),
    }
}

fn names(table: &mut Table<'_>, key: &'static str) -> Option<BTreeSet<String>> {
    let each = table.each_parsed(key, line);
    each.is_there().then(|| each.values().collect())
}

fn number(table: &mut Table<'_>, key: &'static str) -> Option<u32> {
    let found = table.integer(key)?;
    table.within(found, &(0..=i64::from(u32::MAX))).and_then(|number| u32::try_from(number).ok())
}

fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text.as_bytes()).map_err(|error| error.to_string())
}

fn plain_name(text: &str) -> Result<String, &'static str> {
    is_name(text, 64).then(|| text.to_owned()).ok_or("is no name: write 1 to 64 of A-Z a-z 0-9 . - _")
}

const VERDICTS: [(&str, Verdict); 3] =
    [("allow", Verdict::Allow), ("deny", Verdict::Deny), ("requestable", Verdict::Requestable)];
const BINDINGS: [(&str, Binding); 3] =
    [("none", Binding::Bearer), ("dpop", Binding::Dpop), ("mtls", Binding::Mtls)];
const KINDS: [(&str, Kind); 3] = [("x509", Kind::X509), ("jwt", Kind::Jwt), ("wit", Kind::Wit)];

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn report(text: &str) -> Vec<String> {
        let problems = parse_cases("c.yaml", text.as_bytes()).unwrap_err().to_string();
        problems.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_mistake_of_a_file_of_cases_is_named_with_its_place() {
        let text = "now: soon\ncases:\n  - name: a\n    as: example.org\n    action: raed\n    expect: maybe\n    posture: [tired]\n    approval: {by: ann}\n    polices: [x]\n";
        let expected = [
            "c.yaml:1:6: now: `soon` is no date",
            "c.yaml:4:9: cases[0].as: ",
            "c.yaml:5:13: cases[0].action: `raed` is none of",
            "c.yaml:6:13: cases[0].expect: `maybe` is none of",
            "c.yaml:7:15: cases[0].posture[0]: `tired` is none of",
            "c.yaml:8:15: cases[0].approval.until: is missing",
            "c.yaml:9:5: cases[0].polices: is not a known key: did you mean `policies`?",
        ];
        let found = report(text);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}\n{expected}");
        }
        assert!(report("cases: []\n")[0].contains("holds no case"), "{:?}", report("cases: []\n"));
        assert!(report("")[0].contains("cases: is missing"));
    }

    #[test]
    fn a_case_that_cannot_be_asked_is_broken() {
        let text = "cases:\n  - name: nobody\n    action: read\n    target: wiki\n    expect: deny\n  - name: nothing\n    as: spiffe://example.org/a\n    action: read\n    expect: deny\n";
        let cases = parse_cases("c.yaml", text.as_bytes()).unwrap();
        let set = PolicySet::none();
        let said: Vec<String> =
            cases.iter().map(|c| c.run(&set, UNIX_EPOCH).unwrap_err().problem.to_string()).collect();
        assert!(
            said[0].starts_with("c.yaml:2:") && said[0].contains("`nobody` says nobody who asks"),
            "{said:?}"
        );
        assert!(said[1].contains("`nothing` names no target"), "{said:?}");
    }

    proptest! {
        #[test]
        fn no_file_of_cases_makes_the_reader_panic(
            lines in proptest::collection::vec(
                (
                    "(as|as_user|action|target|agent|template|phase|ttl|kind|task|approval|http|chain|posture|risk|expect|quorum|uid|name)",
                    "([a-z:/.0-9]{0,12}|\\[[a-z,]{0,6}\\]|\\{by: [a-z]{0,3}, until: [0-9]{0,3}m\\}|-?[0-9]{1,20}|true)",
                ),
                0..8,
            )
        ) {
            let body: String = lines.iter().map(|(key, value)| format!("    {key}: {value}\n")).collect();
            let text = format!("cases:\n  - x: 1\n{body}");
            if let Ok(cases) = parse_cases("f", text.as_bytes()) {
                cases.iter().for_each(|case| drop(case.run(&PolicySet::none(), UNIX_EPOCH)));
            }
        }
    }
}
