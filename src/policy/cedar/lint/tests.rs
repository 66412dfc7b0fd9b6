//! What the lint fails by, and what it only tells, rule by rule.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::policy::PolicySet;

const CATALOGUE: &str = r#"
[[targets]]
name = "wiki"
audience = "https://wiki.example.org"
data_class = "internal"
groups = ["kb"]
owner = "docs"

[[targets]]
name = "cluster"
audience = "https://cluster.example.org"
data_class = "internal"
owner = "platform"

[[agents]]
spiffe_id = "spiffe://example.org/agent/*"
groups = ["editors"]
owner = "docs"
templates = ["edit"]
reviewed_at = 2026-11-01

[[templates]]
name = "edit"
owner = "docs"

[[people]]
name = "ann"
groups = ["oncall", "emergency"]

[[people]]
name = "bob"
groups = ["writers"]
"#;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_796_000_000)
}

/// What fails, and what is told, of policies in which `Group::`, `Action::` and so on stand without `Mayfly::`.
fn lint(policies: &str) -> (Vec<String>, Vec<String>) {
    let kinds = ["Group", "Action", "Workload", "User", "Target", "Template", "Agent"];
    let text = kinds.iter().fold(policies.to_owned(), |text, kind| {
        text.replace(&format!("{kind}::"), &format!("Mayfly::{kind}::"))
            .replace(&format!(" is {kind}"), &format!(" is Mayfly::{kind}"))
    });
    let files = [("a.cedar".to_owned(), text.into_bytes()), ("c.toml".to_owned(), CATALOGUE.into())];
    let set = PolicySet::parse(&files, None).unwrap_or_else(|problems| panic!("{problems}"));
    let (fails, told): (Vec<_>, Vec<_>) = set.lint(now()).into_iter().partition(|lint| lint.fails);
    let texts = |all: Vec<crate::policy::Lint>| all.into_iter().map(|one| one.problem.to_string()).collect();
    (texts(fails), texts(told))
}

#[track_caller]
fn fails(policies: &str, what: &str) {
    let (found, _) = lint(policies);
    assert!(found.iter().any(|one| one.contains(what)), "{policies}\n{found:?}");
}

#[track_caller]
fn passes(policies: &str) {
    let (found, _) = lint(policies);
    assert!(found.is_empty(), "{policies}\n{found:?}");
}

const ALL: &str = r#"action in [Action::"fetch", Action::"begin", Action::"delegate", Action::"read", Action::"write",
    Action::"delete", Action::"execute", Action::"admin"]"#;

/// Finding 16: eight actions written out are as good as all of them.
#[test]
fn a_permit_that_lets_everybody_change_something_is_an_exception() {
    fails(
        &format!(r#"@id("a") permit(principal, {ALL}, resource);"#),
        "lets everybody `write`, `delete`, `execute`, `admin`",
    );
    fails(
        r#"@id("a") @owner("x") permit(principal is Workload, action == Action::"write", resource);"#,
        "write `@until",
    );
    fails(
        r#"@id("a") permit(principal, action == Action::"admin", resource in Group::"kb") when { context.requested_ttl < duration("1m") };"#,
        "write `@owner(\"…\")` and `@until",
    );
    passes(
        r#"@id("a") @owner("x") @until("2027-01-01") permit(principal, action == Action::"write", resource);"#,
    );
    passes(r#"@id("a") permit(principal, action in [Action::"read", Action::"begin"], resource);"#);
    passes(r#"@id("a") permit(principal in Group::"editors", action == Action::"write", resource);"#);
    for condition in [
        r#"principal in Group::"editors""#,
        r#"[Workload::"spiffe://example.org/agent/a"].contains(principal)"#,
        r#"principal.profile == "editors""#,
        r#"context has approval && context.approval.until > context.now"#,
        r#"context.chain.contains(Agent::"spiffe://example.org/agent/a")"#,
        r#"context has on_behalf_of && context.on_behalf_of in Group::"writers""#,
    ] {
        passes(&format!(
            r#"@id("a") permit(principal, action == Action::"write", resource) when {{ {condition} }};"#
        ));
    }
}

#[test]
fn a_permit_that_is_called_an_exception_is_one_whoever_it_is_for() {
    for name in ["exception-for-bob", "Break_Glass", "emergency.1", "temporary-write", "bypass", "OVERRIDE"] {
        let permit = r#"permit(principal == Workload::"spiffe://example.org/agent/bob", action == Action::"read", resource);"#;
        fails(&format!(r#"@id("{name}") @owner("x") {permit}"#), "is for emergencies: write `@until");
        passes(&format!(r#"@id("{name}") @owner("x") @until("2027-01-01") {permit}"#));
    }
    fails(
        r#"@id("a") permit(principal in Group::"emergency", action == Action::"read", resource);"#,
        "is for emergencies",
    );
    passes(
        r#"@id("glassblowers-read") permit(principal in Group::"editors", action == Action::"read", resource);"#,
    );
}

/// The way round a forbid is an exception as much as a permit is.
#[test]
fn a_forbid_that_does_not_hold_for_somebody_whom_it_names_is_an_exception() {
    let forbid = |notes: &str, condition: &str| {
        format!(r#"@id("a") {notes} forbid(principal, action == Action::"write", resource) {condition};"#)
    };
    let dated = r#"principal in Group::"emergency" && context.now < datetime("2026-12-05")"#;
    for condition in [
        r#"unless { principal in Group::"emergency" }"#,
        r#"unless { principal == Workload::"spiffe://example.org/agent/bob" }"#,
        r#"unless { principal is Workload in Group::"emergency" }"#,
        r#"unless { principal.spiffe_id == "spiffe://example.org/agent/bob" }"#,
        r#"unless { principal.selectors.contains("unix:uid:0") }"#,
        r#"unless { (context has approval && context.approval.quorum >= 1) || principal in Group::"emergency" }"#,
        r#"when { !(principal in Group::"emergency") }"#,
        r#"when { context.new_destination && !(context.risk < 80 || principal in Group::"emergency") }"#,
        r#"when { principal != Workload::"spiffe://example.org/agent/bob" }"#,
        &format!(r#"unless {{ ({dated}) || principal in Group::"editors" }}"#),
    ] {
        fails(&forbid(r#"@owner("x")"#, condition), "whom it names: write `context.now < datetime");
    }
    fails(&forbid("", &format!("unless {{ {dated} }}")), "whom it names: write `@owner(\"…\")`");
    passes(&forbid(r#"@owner("x")"#, &format!("unless {{ {dated} }}")));
    for condition in [
        "unless { principal.posture.isolated }",
        r#"unless { context has approval && context.approval.by in Group::"oncall" }"#,
        r#"unless { context has approval && principal in Group::"editors" }"#,
        r#"unless { !(principal in Group::"editors") }"#,
        r#"when { principal in Group::"editors" }"#,
        r#"when { principal.posture.ptraced }"#,
        "unless { // principal in Group::\"emergency\"\n resource.owner == \"principal in Group\" }",
    ] {
        passes(&forbid("", condition));
    }
}

#[test]
fn a_policy_that_nobody_answers_for_is_told() {
    let (fails, told) =
        lint(r#"@id("a") permit(principal in Group::"editors", action == Action::"read", resource);"#);
    assert!(fails.is_empty() && told.iter().any(|one| one.contains("`a` has no `@owner`")), "{told:?}");
    let (_, told) = lint(
        r#"@id("a") @owner("x") permit(principal in Group::"editors", action == Action::"read", resource);"#,
    );
    assert!(told.is_empty(), "{told:?}");
}

const ASKS: &str = r#"@id("ask") @owner("x") @requires_approval("oncall")
forbid(principal, action == Action::"write", resource) unless { context has approval && context.approval.quorum >= 1 };
"#;

/// Finding 4: who asks people that may not answer waits for ever.
#[test]
fn an_approval_that_nobody_may_give_fails_the_lint() {
    let nobody = "`ask` asks people in `oncall`, and policy lets none of them approve anything";
    fails(ASKS, nobody);
    let with = |permit: &str| format!("{ASKS} @id(\"approve\") @owner(\"x\") {permit}");
    for permit in [
        r#"permit(principal in Group::"writers", action == Action::"approve", resource);"#,
        r#"permit(principal == User::"bob", action == Action::"approve", resource);"#,
        r#"permit(principal in Group::"oncall", action == Action::"approve", resource is Template);"#,
        r#"permit(principal in Group::"oncall", action == Action::"approve", resource in Group::"kbs");"#,
        r#"@until("2026-01-01") permit(principal in Group::"oncall", action == Action::"approve", resource);"#,
        r#"permit(principal in Group::"oncall", action == Action::"approve", resource) when { principal in Group::"writers" };"#,
    ] {
        fails(&with(permit), nobody);
    }
    for permit in [
        r#"permit(principal in Group::"oncall", action == Action::"approve", resource);"#,
        r#"permit(principal == User::"ann", action == Action::"approve", resource is Target);"#,
        r#"permit(principal, action == Action::"approve", resource) when { principal in Group::"oncall" };"#,
        r#"permit(principal in Group::"oncall", action == Action::"approve", resource) when { context has http };"#,
    ] {
        passes(&with(permit));
    }
    let forbidden = r#"permit(principal in Group::"oncall", action == Action::"approve", resource);
        @id("no") @owner("x") forbid(principal, action == Action::"approve", resource);"#;
    fails(&with(forbidden), nobody);
    // A part of what is asked about.
    let (fails, told) = lint(&with(
        r#"permit(principal in Group::"oncall", action == Action::"approve", resource in Group::"kb");"#,
    ));
    assert!(fails.is_empty(), "{fails:?}");
    assert!(told.iter().any(|one| one.contains("may approve what is done to `cluster`")), "{told:?}");
    let narrow = ASKS.replace("resource)", "resource in Group::\"kb\")");
    let approve = r#"@id("b") @owner("x") permit(principal in Group::"oncall", action == Action::"approve", resource in Group::"kb");"#;
    let (fails, told) = lint(&format!("{narrow} {approve}"));
    assert!(fails.is_empty() && told.is_empty(), "{fails:?} {told:?}");
}

#[test]
fn tasks_and_parts_that_nobody_may_allow_fail_the_lint_too() {
    for (action, object) in [("begin", "Template"), ("delegate", "Agent")] {
        let ask = ASKS.replace("write", action);
        fails(&ask, "policy lets none of them approve");
        let approve = format!(
            r#"@id("b") @owner("x") permit(principal in Group::"oncall", action == Action::"approve", resource is {object} );"#
        );
        passes(&format!("{ask} {approve}"));
        fails(&format!("{ask} {}", approve.replace(object, "Target")), "policy lets none of them approve");
    }
}

/// Finding 7: a token outside of a task is for whatever audience its agent names.
#[test]
fn a_fetch_for_every_audience_is_told() {
    let fetch = |condition: &str| {
        let (fails, told) = lint(&format!(
            r#"@id("f") @owner("x") permit(principal in Group::"editors", action == Action::"fetch", resource) {condition};"#
        ));
        assert!(fails.is_empty(), "{fails:?}");
        told.iter().any(|one| one.contains("`f` lets an agent fetch tokens for every audience"))
    };
    for open in [
        "",
        "when { !principal.posture.ptraced }",
        "when { principal.selectors.contains(\"unix:uid:7\") }",
        "when { resource.kind != \"wit\" }",
        "when { resource.kind == \"x509\" || resource.kind == \"jwt\" }",
        "unless { resource.audiences.contains(\"https://payroll.example.org\") }",
    ] {
        assert!(fetch(open), "{open}");
    }
    for held in [
        "when { resource.kind == \"x509\" }",
        "when { resource.kind == \"x509\" || resource.audiences == [\"https://wiki.example.org\"] }",
        "when { [\"https://wiki.example.org\"].containsAll(resource.audiences) && resource.kind == \"jwt\" }",
    ] {
        assert!(!fetch(held), "{held}");
    }
}

#[test]
fn what_says_less_than_it_seems_to_is_told() {
    let told = |condition: &str| {
        lint(&format!(
            r#"@id("a") @owner("x") permit(principal in Group::"editors", action == Action::"read", resource) when {{ {condition} }};"#
        ))
        .1
    };
    let purpose = told("context.task.purpose == \"tidy\"");
    assert!(purpose.iter().any(|one| one.contains("the agent's own words")), "{purpose:?}");
    let risk = told("context.risk < 80");
    assert!(risk.iter().any(|one| one.contains("always 0")), "{risk:?}");
    assert!(told("context.task.depth == 0").is_empty());
}
