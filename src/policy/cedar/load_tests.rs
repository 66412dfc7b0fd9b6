//! What fails the load, and what tells one set from another.

use super::tests::*;
use super::*;
use crate::policy::{PolicySet, Principal};

#[test]
fn every_mistake_of_every_policy_is_in_one_report() {
    let text = "\
permit(principal, action, resource);
@id(\"a\") @max_tll(\"60\") permit(principal, action, resource);
@id(\"b\") permit(principal, action, resource) when { principal.colour == 1 };
@id(\"c\") permit(principal, action, resource) when { ;
@id(\"d\") @until(\"soon\") @max_ttl(\"0\") @binding(\"tls\") @log(\"all\") permit(principal, action, resource);
@id(\"e\") @requires_approval(\"oncall\") permit(principal, action, resource);
@id(\"f\") @until(\"2027-01-01\") @max_ttl(\"60\") forbid(principal, action, resource);
@id(\"f\") forbid(principal, action, resource);
@id(\"g h\") forbid(principal, action, resource);
@id(\"i\") permit(principal == ?principal, action, resource);
@id(\"j\") permit(principal, action == Mayfly::Action::\"fly\", resource);
@id(\"k\") permit(principal, action == Mayfly::Action::\"read\", resource) when { principal.uid == \"0\" };
";
    let found = report(text);
    for part in [
        "a.cedar:1:1: has no name: write `@id",
        "a.cedar:2:1: `@max_tll(\"60\")` is an obligation that nobody would keep: did you mean `@max_ttl`?",
        "a.cedar:3:",
        "a.cedar:4:",
        "a.cedar:5:1: `@until(\"soon\")` is no date",
        "a.cedar:5:1: `@max_ttl(\"0\")` is no lifetime",
        "a.cedar:5:1: `@binding(\"tls\")` is none of",
        "a.cedar:5:1: `@log(\"all\")` names something that is not logged",
        "a.cedar:6:1: `@requires_approval(\"oncall\")` stands on a permit",
        "a.cedar:7:1: `@max_ttl(\"60\")` stands on a forbid",
        "a.cedar:7:1: `@until(\"2027-01-01\")` stands on a forbid",
        "a.cedar:8:1: has the name `f` of the policy at a.cedar:7",
        "a.cedar:9:1: `@id(\"g h\")` is no name",
        "a.cedar:10:",
        "a.cedar:11:",
        "a.cedar:12:",
    ] {
        assert!(found.iter().any(|line| line.starts_with(part)), "{part}\n{}", found.join("\n"));
    }
}

#[test]
fn j02_an_empty_file_or_none_is_no_policy_set() {
    for text in ["", "// nothing\n"] {
        assert!(report(text)[0].contains("holds no policy"), "{:?}", report(text));
    }
    let only = vec![("c.toml".to_owned(), CATALOGUE.into())];
    let problems = PolicySet::parse(&only, None).unwrap_err().to_string();
    assert!(problems.contains("there is no file of policies"), "{problems}");
    let both = PolicySet::parse(&files("permit(", "[[targets]]\nname = 1\n"), None).unwrap_err().to_string();
    assert!(both.contains("a.cedar:1") && both.contains("c.toml:2"), "both kinds at once: {both}");
}

#[test]
fn the_version_hangs_on_every_byte_and_name() {
    let version = |files: &[(&str, &str)]| {
        let files: Vec<_> = files.iter().map(|(n, t)| ((*n).to_owned(), (*t).into())).collect();
        PolicySet::parse(&files, None).unwrap().version().unwrap()
    };
    let (a, b) = (
        "@id(\"a\") permit(principal, action, resource);",
        "@id(\"b\") forbid(principal, action, resource);",
    );
    let first = version(&[("a.cedar", a), ("b.cedar", b)]);
    assert_eq!(first, version(&[("/etc/b.cedar", b), ("/etc/a.cedar", a)]), "neither order nor directory");
    let others = [
        version(&[("a.cedar", b), ("b.cedar", a)]),
        version(&[("c.cedar", a), ("b.cedar", b)]),
        version(&[("a.cedar", &format!("{a} ")), ("b.cedar", b)]),
        version(&[("a.cedar", &format!("{a}{b}"))]),
        version(&[("a.cedar", a), ("b.cedar", b), ("c.toml", "targets = []")]),
    ];
    assert!(!others.contains(&first));
}

/// Loads on as little stack as any thread of the agent has; answers whether it was refused.
fn refused_on_a_small_stack(text: String) -> bool {
    let load = move || {
        let mut problems = Problems::new();
        Rules::load([("a", text.as_bytes())], &mut problems);
        !problems.is_empty()
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(load).unwrap().join().unwrap()
}

#[test]
fn j02_a_policy_nested_without_end_is_refused_and_ends_no_agent() {
    let nested = |open: &str, close: &str, times: usize| {
        let (open, close) = (open.repeat(times), close.repeat(times));
        format!(
            "@id(\"a\") permit(principal, action == Mayfly::Action::\"read\", resource) when {{ {open}true{close} }};"
        )
    };
    let shapes =
        [("(", ")"), ("!", ""), ("[", "]"), ("if true then ", " else true"), ("true && ", ""), ("", ".a")];
    for (open, close) in shapes {
        assert!(refused_on_a_small_stack(nested(open, close, 30_000)), "{open}");
    }
    // What is let through must fit too.
    assert!(!refused_on_a_small_stack(nested("(", ")", 28)));
    assert!(!refused_on_a_small_stack(nested("true && ", "", 180)));
    refused_on_a_small_stack(nested("", ".a", 380));
    assert!(report(&" ".repeat((1 << 20) + 1))[0].contains("larger than"));
}

/// A no that people could lift is one that they are asked about, or the set is not loaded.
#[test]
fn an_approval_that_nobody_would_be_asked_for_fails_the_load() {
    let of = |head: &str| {
        format!("@id(\"a\") @requires_approval(\"oncall\") forbid({head}) unless {{ context.risk > 1000 }};")
    };
    let action = |names: &str| format!("principal, action in [{names}], resource");
    let name = |one: &str| format!("Mayfly::Action::\"{one}\"");
    for (head, what) in [
        ("principal, action, resource".to_owned(), "`fetch` and `approve`"),
        (action(&name("fetch")), "`fetch`"),
        (action(&name("approve")), "`approve`"),
        (action(&format!("{}, {}", name("write"), name("approve"))), "`approve`"),
        ("principal in Mayfly::Group::\"kb\", action, resource".to_owned(), "`fetch` and `approve`"),
        ("principal is Mayfly::User, action, resource".to_owned(), "`approve`"),
        ("principal, action, resource is Mayfly::Identity".to_owned(), "`fetch`"),
    ] {
        let found = report(&of(&head));
        let line = format!(
            "a.cedar:1:1: `@requires_approval(\"oncall\")` stands on a forbid of {what}, which people"
        );
        assert!(found.iter().any(|one| one.starts_with(&line)), "{head}: {found:?}");
    }
    for one in ["join", "renew"] {
        let found = report(&of(&action(&name(one))));
        assert!(!found.is_empty() && found[0].starts_with("a.cedar:1:"), "{one} is no action: {found:?}");
    }
    for head in [
        action(&["read", "write", "delete", "execute", "admin", "begin", "delegate"].map(name).join(", ")),
        "principal is Mayfly::Workload, action, resource is Mayfly::Target".to_owned(),
        "principal is Mayfly::Workload, action, resource is Mayfly::Template".to_owned(),
    ] {
        assert_eq!(set_of(&of(&head)).policies(), 1, "{head}");
    }
}

/// `@max_ttl` on a begin is the end of a task; on an approval, or a binding of a task that begins, nobody would keep it.
#[test]
fn an_obligation_that_means_nothing_on_an_action_fails_the_load() {
    let of = |notes: &str, head: &str| format!("@id(\"a\") {notes}\npermit({head});");
    let action = |name: &str| format!("principal, action == Mayfly::Action::\"{name}\", resource");
    for (notes, names, where_) in [
        ("@max_ttl(\"60s\")", &["approve"][..], "where nothing has a lifetime"),
        ("@binding(\"mtls\")", &["begin", "delegate", "approve"][..], "where nothing is issued"),
        ("@log(\"body-hash\")", &["fetch", "begin", "delegate", "approve"][..], "where there is no request"),
    ] {
        for name in names {
            let found = report(&of(notes, &action(name)));
            let line = format!("a.cedar:1:1: `{notes}` stands on a permit of `{name}`, {where_}");
            assert!(found.len() == 1 && found[0].starts_with(&line), "{found:?}");
            assert!(found[0].contains("write another policy for the rest"), "{found:?}");
        }
        // A head that covers one of them, besides others.
        assert!(report(&of(notes, "principal, action, resource"))[0].contains("`approve`"));
        for name in ["read", "admin"] {
            assert_eq!(set_of(&of(notes, &action(name))).policies(), 1);
        }
        let targets = "principal is Mayfly::Workload, action, resource is Mayfly::Target";
        assert_eq!(set_of(&of(notes, targets)).policies(), 1);
    }
    let log =
        "@id(\"a\") @log(\"body-hash\") forbid(principal, action == Mayfly::Action::\"begin\", resource);";
    assert!(report(log)[0].contains("stands on a forbid of `begin`"));
    for name in ["begin", "delegate", "fetch"] {
        assert_eq!(set_of(&of("@max_ttl(\"60s\")", &action(name))).policies(), 1);
    }
}

#[test]
fn beginning_and_handing_on_can_be_for_people_to_allow() {
    let set = set_of(
        "@id(\"all\") permit(principal, action, resource);
@id(\"begin\") @requires_approval(\"oncall\") forbid(principal, action == Mayfly::Action::\"begin\", resource)
unless { context has approval && context.approval.until > context.now };
@id(\"hand-on\") @requires_approval(\"leads\") forbid(principal, action == Mayfly::Action::\"delegate\", resource)
unless { context has approval && context.approval.quorum >= 2 };",
    );
    let agent = Object::Agent("spiffe://example.org/agent/research/a".parse().unwrap());
    for (action, object, group, quorum) in [
        (Action::Begin, Object::Template(Some("summarise".to_owned())), "oncall", 1),
        (Action::Delegate, agent, "leads", 2),
    ] {
        let question = ask("agent/research/a", action, object.clone());
        let decision = set.decide(&question, crate::policy::Engine::new_evaluation());
        assert_eq!((decision.verdict, decision.reason), (Verdict::Requestable, Reason::ApprovalRequired));
        let needed = decision.obligations.approval.unwrap();
        assert_eq!((needed.groups, needed.quorum), ([group.to_owned()].into(), quorum));
        let explained = set.explain(&question, crate::policy::Engine::new_evaluation());
        assert!(explained.changes.iter().any(|change| change.contains(group)), "{:?}", explained.changes);
        let mut approved = question;
        approved.circumstances.approval = Some(approval("ann", quorum, 60));
        assert!(set.decide(&approved, crate::policy::Engine::new_evaluation()).is_allowed());
        // And somebody can be allowed to say so.
        let user = UserFacts { name: "ann".to_owned(), groups: BTreeSet::new() };
        let principal = Principal::User(user);
        let approve = Question { principal, action: Action::Approve, object, ..approved };
        assert!(set.decide(&approve, crate::policy::Engine::new_evaluation()).is_allowed());
    }
    let failures = set.lint(now()).into_iter().filter(|lint| lint.fails);
    let others = failures.filter(|lint| !lint.problem.to_string().contains("permits every action"));
    assert_eq!(others.count(), 0);
}
