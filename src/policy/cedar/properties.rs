//! What holds for every set of policies and every question: the index changes no answer, what Cedar is asked fits the
//! schema, and no text makes loading panic.

use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::tests::{CATALOGUE, approval, ask, workload};
use super::*;
use crate::id::EntryId;
use crate::policy::{IdentityFacts, Principal};

/// The parts of which random sets and questions are made.
fn any_policy() -> impl Strategy<Value = String> {
    let principal = prop_oneof![
        Just("principal"),
        Just("principal is Mayfly::Workload"),
        Just("principal in Mayfly::Group::\"researchers\""),
        Just("principal in Mayfly::Group::\"orchestrators\""),
        Just("principal is Mayfly::Workload in Mayfly::Group::\"extra\""),
        Just("principal == Mayfly::Workload::\"spiffe://example.org/agent/plan\""),
        Just("principal in Mayfly::Workload::\"spiffe://example.org/agent/research/a\""),
    ];
    let action = prop_oneof![
        Just("action"),
        Just("action == Mayfly::Action::\"read\""),
        Just("action in [Mayfly::Action::\"read\", Mayfly::Action::\"write\"]"),
        Just("action in Mayfly::Action::\"write\""),
    ];
    let resource = prop_oneof![
        Just("resource"),
        Just("resource is Mayfly::Target"),
        Just("resource in Mayfly::Group::\"kb\""),
        Just("resource is Mayfly::Target in Mayfly::Group::\"open\""),
        Just("resource == Mayfly::Target::\"wiki\""),
        Just("resource in Mayfly::Target::\"board\""),
    ];
    let condition = prop_oneof![
        4 => Just(""),
        1 => Just("when { context.risk < 50 }"),
        1 => Just("unless { context.risk < 50 }"),
        1 => Just("when { context.risk * 9223372036854775807 >= 0 }"),
    ];
    (any::<bool>(), principal, action, resource, condition).prop_map(|(permit, p, a, r, c)| {
        format!("{}({p}, {a}, {r}) {c};", if permit { "permit" } else { "forbid" })
    })
}

fn any_question() -> impl Strategy<Value = Question> {
    let path = prop_oneof![Just("agent/plan"), Just("agent/research/a"), Just("agent/other")];
    let action = prop_oneof![Just(Action::Read), Just(Action::Write), Just(Action::Delete)];
    let target = prop_oneof![Just("wiki"), Just("board")];
    (path, action, target, any::<bool>(), 0..100_u8).prop_map(|(path, action, target, extra, risk)| {
        let mut question = ask(path, action, Object::Target(target.to_owned()));
        question.circumstances.risk = risk;
        if let Principal::Workload(facts) = &mut question.principal
            && extra
        {
            facts.groups.insert("extra".to_owned());
        }
        question
    })
}

/// Without policies that mention things which only some environments have.
fn loadable(policies: &[String]) -> Rules {
    let text: String =
        policies.iter().enumerate().map(|(n, text)| format!("@id(\"p{n}\") {text}\n")).collect();
    let mut problems = Problems::new();
    Rules::load([("a.cedar", text.as_bytes())], &mut problems).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_index_changes_no_answer(
        policies in proptest::collection::vec(any_policy(), 1..12),
        questions in proptest::collection::vec(any_question(), 1..6),
    ) {
        let catalogue = crate::policy::parse_catalogue([("c.toml", CATALOGUE.as_bytes())], None).unwrap();
        let rules = loadable(&policies);
        let mut whole = Bucket::new();
        for rule in rules.by_id.values() {
            whole.add(rule.policy.clone()).unwrap();
        }
        for question in &questions {
            let asked = rules.types.ask(question, &catalogue).unwrap();
            let indexed = rules.settle(&catalogue, question);
            let plain = rules.judge(&catalogue, question, rules.evaluate(&asked, std::iter::once(&whole)));
            prop_assert_eq!(indexed.verdict, plain.verdict);
            prop_assert_eq!(indexed.reason, plain.reason);
            prop_assert_eq!(indexed.policy_ids, plain.policy_ids);
            prop_assert_eq!(indexed.obligations, plain.obligations);
        }
    }

    #[test]
    fn what_is_remembered_changes_no_question(questions in proptest::collection::vec(any_question(), 1..20)) {
        let catalogue = crate::policy::parse_catalogue([("c.toml", CATALOGUE.as_bytes())], None).unwrap();
        let remembering = Types::new().unwrap();
        for question in questions.iter().chain(&questions) {
            let fresh = Types::new().unwrap().ask(question, &catalogue).unwrap();
            let again = remembering.ask(question, &catalogue).unwrap();
            prop_assert_eq!(again.request.principal(), fresh.request.principal());
            prop_assert_eq!(again.request.resource(), fresh.request.resource());
            prop_assert_eq!(again.entities, fresh.entities);
            let all = |parties: &parties::Parties| -> std::collections::HashSet<_> {
                parties.principals.iter().chain(&parties.resources).cloned().collect()
            };
            prop_assert_eq!(all(&again.parties), all(&fresh.parties));
        }
    }

    #[test]
    fn what_is_asked_of_cedar_fits_the_schema(
        question in any_question(),
        approver in proptest::option::of("\\PC{0,8}"),
        purpose in "\\PC{0,30}",
        calls in any::<u64>(),
        seconds in 0..253_402_300_000_u64,
    ) {
        let catalogue = crate::policy::parse_catalogue([("c.toml", CATALOGUE.as_bytes())], None).unwrap();
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).unwrap();
        let mut question = question;
        question.now = UNIX_EPOCH + Duration::from_secs(seconds);
        question.circumstances.chain = vec!["spiffe://example.org/agent/plan".parse().unwrap()];
        question.circumstances.approval = approver.as_deref().map(|name| approval(name, 1, 60));
        question.circumstances.on_behalf_of = approver.map(|name| UserFacts { name, groups: BTreeSet::new() });
        question.circumstances.http = Some(crate::policy::HttpFacts::default());
        question.circumstances.mcp = Some(crate::policy::McpFacts::default());
        question.circumstances.sql = Some(crate::policy::SqlFacts::default());
        let facts = question.task.as_mut().unwrap();
        facts.purpose = purpose;
        facts.calls = calls;
        let types = Types::new().unwrap();
        let id: crate::id::SpiffeId = "spiffe://example.org/agent/research/a".parse().unwrap();
        let identity = IdentityFacts { spiffe_id: id.clone(), kind: Kind::Jwt, audiences: ["a".to_owned()].into(), entry: EntryId::new("e") };
        let user = UserFacts { name: "ann".to_owned(), groups: ["x".to_owned()].into() };
        let variants = [
            question.clone(),
            Question { action: Action::Delegate, object: Object::Agent(id.clone()), ..question.clone() },
            Question { principal: Principal::Workload(workload("agent/plan")), action: Action::Begin, object: Object::Template(None), ..question.clone() },
            Question { principal: Principal::Workload(workload("agent/plan")), action: Action::Begin, object: Object::Template(Some("summarise".to_owned())), ..question.clone() },
            Question::fetch(workload("a"), identity, Duration::from_secs(1), question.now),
            Question { principal: Principal::User(user.clone()), action: Action::Approve, object: Object::Template(None), ..question.clone() },
            Question { principal: Principal::User(user.clone()), action: Action::Approve, object: Object::Agent(id.clone()), ..question.clone() },
            Question { principal: Principal::User(user), action: Action::Approve, ..question },
        ];
        for question in variants {
            let asked = types.ask(&question, &catalogue).unwrap();
            let Asked { request, entities, .. } = asked;
            let (p, a, r) = (request.principal().unwrap(), request.action().unwrap(), request.resource().unwrap());
            let context = request.context().unwrap().clone();
            let checked = cedar_policy::Request::new(p.clone(), a.clone(), r.clone(), context, Some(&schema));
            prop_assert!(checked.is_ok(), "{} {:?}", question.action, checked.err().map(|e| e.to_string()));
            let checked = cedar_policy::Entities::from_entities(entities.iter().cloned(), Some(&schema));
            prop_assert!(checked.is_ok(), "{} {:?}", question.action, checked.err().map(|e| e.to_string()));
        }
    }

    #[test]
    fn no_text_makes_loading_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..60),
        text in r#"(permit|forbid|\(|\)|principal|action|resource|in|==|is|when|unless|\{|\}|@id|@until|"[a-z0-9-]{0,4}"|Mayfly::|Group::|context|\.|has|&&|,|;|\n| ){0,40}"#,
    ) {
        Rules::load([("a", bytes.as_slice()), ("b", text.as_bytes())], &mut Problems::new());
    }
}
