//! Cedar behind our question: what loads, what is decided, and that the index changes nothing.

use std::time::UNIX_EPOCH;

use super::*;
use crate::id::EntryId;
use crate::policy::{
    Decision, EvaluationId, IdentityFacts, Phase, PolicySet, PostureFacts, Principal, TaskFacts,
    WorkloadFacts,
};

pub(super) const CATALOGUE: &str = r#"
[[targets]]
name = "wiki"
audience = "https://wiki.example.org"
data_class = "internal"
groups = ["kb"]
owner = "docs"

[[targets]]
name = "board"
audience = "https://board.example.org"
data_class = "public"
groups = ["kb", "open"]
owner = "docs"
binding = "none"

[[agents]]
spiffe_id = "spiffe://example.org/agent/research/*"
groups = ["researchers"]
owner = "research"
templates = ["summarise"]

[[agents]]
spiffe_id = "spiffe://example.org/agent/plan"
groups = ["orchestrators"]
owner = "platform"
templates = ["*"]

[[templates]]
name = "summarise"
owner = "docs"

[[people]]
name = "ann"
groups = ["oncall"]
"#;

/// The policies of the design page.
pub(super) const POLICIES: &str = r#"
@id("kb-read") @max_ttl("600") @owner("docs") @until("2027-03-31")
permit(principal in Mayfly::Group::"researchers", action == Mayfly::Action::"read", resource in Mayfly::Group::"kb")
when { context.task.deadline > context.now && context.requested_ttl <= duration("10m") };

@id("kb-write") @max_ttl("2m") @binding("mtls") @log("body-hash")
permit(principal in Mayfly::Group::"researchers", action in [Mayfly::Action::"write", Mayfly::Action::"delete"],
       resource in Mayfly::Group::"kb");

@id("writes-need-human") @requires_approval("oncall")
forbid(principal, action in [Mayfly::Action::"write", Mayfly::Action::"delete", Mayfly::Action::"admin"], resource)
unless { context has approval && context.approval.until > context.now && context.approval.quorum >= 1 };

@id("deletes-need-two") @requires_approval("oncall")
forbid(principal, action == Mayfly::Action::"delete", resource)
unless { context has approval && context.approval.quorum >= 2 && context.approval.by in Mayfly::Group::"oncall" };

@id("tampered")
forbid(principal is Mayfly::Workload, action, resource is Mayfly::Target)
when { principal.posture.ptraced || principal.posture.exe_deleted || context.risk >= 80 };

@id("may-delegate")
permit(principal in Mayfly::Group::"orchestrators", action == Mayfly::Action::"delegate",
       resource in Mayfly::Group::"researchers")
when { context.task.depth < 3 && context.task.children < 8 };

@id("may-begin")
permit(principal, action == Mayfly::Action::"begin", resource);

@id("may-fetch")
permit(principal in Mayfly::Group::"researchers", action == Mayfly::Action::"fetch", resource)
when { resource.kind != "jwt" || resource.audiences == ["https://wiki.example.org"] };

@id("oncall-approves")
permit(principal is Mayfly::User in Mayfly::Group::"oncall", action == Mayfly::Action::"approve", resource);

@id("not-for-oneself")
forbid(principal, action == Mayfly::Action::"approve", resource)
when { context has on_behalf_of && context.on_behalf_of == principal };
"#;

pub(super) fn files(policies: &str, catalogue: &str) -> Vec<(String, Vec<u8>)> {
    vec![("a.cedar".to_owned(), policies.into()), ("c.toml".to_owned(), catalogue.into())]
}

pub(super) fn set_of(policies: &str) -> PolicySet {
    PolicySet::parse(&files(policies, CATALOGUE), None).unwrap_or_else(|problems| panic!("{problems}"))
}

pub(super) fn report(policies: &str) -> Vec<String> {
    let problems = PolicySet::parse(&files(policies, CATALOGUE), None).unwrap_err();
    problems.to_string().lines().map(str::to_owned).collect()
}

pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_796_000_000)
}

pub(super) fn workload(path: &str) -> WorkloadFacts {
    WorkloadFacts {
        spiffe_id: format!("spiffe://example.org/{path}").parse().unwrap(),
        profile: EntryId::new("agents"),
        uid: 1000,
        selectors: ["unix:uid:1000".to_owned()].into(),
        exe_sha256: "0".repeat(64),
        node: "node-1".to_owned(),
        posture: PostureFacts::default(),
        attested_at: now(),
        groups: BTreeSet::new(),
    }
}

pub(super) fn task() -> TaskFacts {
    TaskFacts {
        id: "tsk_1".to_owned(),
        root: "tsk_1".to_owned(),
        depth: 0,
        purpose: "summarise".to_owned(),
        template: Some("summarise".to_owned()),
        started: now(),
        deadline: now() + Duration::from_secs(900),
        calls: 0,
        denials: 0,
        children: 0,
        audiences: 0,
    }
}

pub(super) fn ask(path: &str, action: Action, object: Object) -> Question {
    let ttl = Duration::from_secs(300);
    Question::of_task(workload(path), action, object, Phase::Issue, task(), ttl, now())
}

pub(super) fn on_wiki(action: Action) -> Question {
    ask("agent/research/a", action, Object::Target("wiki".to_owned()))
}

pub(super) fn decide(set: &PolicySet, question: &Question) -> Decision {
    set.decide(question, EvaluationId::from_random([0; 16]))
}

pub(super) fn approval(by: &str, quorum: u32, left: u64) -> ApprovalFacts {
    let by = UserFacts { name: by.to_owned(), groups: BTreeSet::new() };
    ApprovalFacts { id: "apr_1".to_owned(), by, at: now(), until: now() + Duration::from_secs(left), quorum }
}

pub(super) fn verdict(set: &PolicySet, question: &Question) -> (Verdict, Reason) {
    let decision = decide(set, question);
    (decision.verdict, decision.reason)
}

#[test]
fn the_policies_of_the_design_load_and_permit() {
    let set = set_of(POLICIES);
    assert_eq!(set.policies(), 10);
    let read = decide(&set, &on_wiki(Action::Read));
    assert_eq!((read.verdict, read.policy_ids.as_slice()), (Verdict::Allow, &["kb-read".to_owned()][..]));
    assert_eq!(read.obligations.max_ttl, Some(Duration::from_secs(600)));
    assert_eq!(read.obligations.binding, Some(Binding::Mtls), "the target's own");
    assert_eq!(read.policy_version, set.version());
    let long = Question { requested_ttl: Duration::from_secs(601), ..on_wiki(Action::Read) };
    assert_eq!(verdict(&set, &long), (Verdict::Deny, Reason::NoPermit));
    let stranger = ask("agent/other", Action::Read, Object::Target("wiki".to_owned()));
    assert_eq!(verdict(&set, &stranger), (Verdict::Deny, Reason::NoPermit), "default deny");
}

#[test]
fn a_denial_that_an_approval_would_lift_is_requestable() {
    let set = set_of(POLICIES);
    let asked = decide(&set, &on_wiki(Action::Write));
    assert_eq!((asked.verdict, asked.code()), (Verdict::Requestable, "approval_required"));
    assert_eq!(asked.policy_ids, ["writes-need-human"]);
    let needed = ApprovalNeeded { groups: ["oncall".to_owned()].into(), quorum: 1 };
    assert_eq!(asked.obligations.approval, Some(needed));
    let delete = decide(&set, &on_wiki(Action::Delete));
    assert_eq!(delete.obligations.approval.unwrap().quorum, 2, "the least number of people that is enough");
    // Nobody permits `admin`: an approval would lift the forbid and still nothing would allow.
    assert_eq!(verdict(&set, &on_wiki(Action::Admin)), (Verdict::Deny, Reason::Forbidden));
    let mut traced = on_wiki(Action::Write);
    traced.circumstances.risk = 80;
    assert_eq!(verdict(&set, &traced), (Verdict::Deny, Reason::Forbidden), "one forbid is final");
}

#[test]
fn an_approval_counts_while_it_lasts_and_binds_what_it_allows() {
    let set = set_of(POLICIES);
    let with = |action, approval| {
        let mut question = on_wiki(action);
        question.circumstances.approval = Some(approval);
        decide(&set, &question)
    };
    let granted = with(Action::Write, approval("ann", 1, 60));
    assert_eq!(
        (granted.verdict, granted.policy_ids.as_slice()),
        (Verdict::Allow, &["kb-write".to_owned()][..])
    );
    assert_eq!(granted.obligations.max_ttl, Some(Duration::from_secs(120)));
    assert_eq!(granted.obligations.log, [crate::policy::Log::BodyHash].into());
    assert_eq!(with(Action::Write, approval("ann", 1, 0)).verdict, Verdict::Requestable, "it has run out");
    assert_eq!(with(Action::Delete, approval("ann", 1, 60)).verdict, Verdict::Requestable, "one is too few");
    assert_eq!(with(Action::Delete, approval("ann", 2, 60)).verdict, Verdict::Allow);
    assert_eq!(
        with(Action::Delete, approval("bob", 2, 60)).verdict,
        Verdict::Requestable,
        "bob is not on call"
    );
}

#[test]
fn a_permit_stops_at_its_date() {
    let set = set_of(POLICIES);
    let end = set.next_end(now()).unwrap();
    let at = |now| {
        let mut question = Question { now, ..on_wiki(Action::Read) };
        question.task.as_mut().unwrap().deadline = now + Duration::from_secs(900);
        decide(&set, &question)
    };
    assert_eq!(at(end - Duration::from_secs(1)).verdict, Verdict::Allow);
    let ended = at(end);
    assert_eq!((ended.verdict, ended.reason), (Verdict::Deny, Reason::Expired));
    assert_eq!(ended.policy_ids, ["kb-read"]);
    assert_eq!(set.next_end(end), None);
}

#[test]
fn a_policy_that_cannot_be_evaluated_denies() {
    // Cedar alone would pass over the forbid and allow.
    let text = "@id(\"yes\") permit(principal, action == Mayfly::Action::\"read\", resource);\n\
                @id(\"broken\") forbid(principal, action == Mayfly::Action::\"read\", resource)\n\
                when { context.task.calls * 9223372036854775807 > 0 && false };";
    let set = set_of(text);
    let mut question = on_wiki(Action::Read);
    assert_eq!(verdict(&set, &question), (Verdict::Allow, Reason::Allowed));
    question.task.as_mut().unwrap().calls = 2;
    let decision = decide(&set, &question);
    assert_eq!((decision.verdict, decision.reason), (Verdict::Deny, Reason::EvaluationError));
    assert_eq!(decision.policy_ids, ["broken"]);
}

#[test]
fn other_actions_are_decided_too() {
    let set = set_of(POLICIES);
    let researcher = Object::Agent("spiffe://example.org/agent/research/b".parse().unwrap());
    let delegate = |object| ask("agent/plan", Action::Delegate, object);
    assert_eq!(decide(&set, &delegate(researcher.clone())).verdict, Verdict::Allow);
    let stranger = Object::Agent("spiffe://example.org/x".parse().unwrap());
    assert_eq!(decide(&set, &delegate(stranger)).verdict, Verdict::Deny);
    let mut deep = delegate(researcher);
    deep.task.as_mut().unwrap().depth = 3;
    assert_eq!(decide(&set, &deep).verdict, Verdict::Deny);
    let begin = |path, template: Option<&str>| {
        verdict(&set, &ask(path, Action::Begin, Object::Template(template.map(str::to_owned)))).1
    };
    assert_eq!(begin("agent/research/a", Some("summarise")), Reason::Allowed);
    assert_eq!(begin("agent/research/a", None), Reason::TemplateNotAllowed);
    assert_eq!(begin("agent/research/a", Some("other")), Reason::UnknownTemplate);
    assert_eq!(begin("agent/plan", None), Reason::Allowed);
    assert_eq!(begin("agent/nobody", Some("summarise")), Reason::TemplateNotAllowed);
    let approve = |name: &str, for_whom: &str| {
        let user = |name: &str| UserFacts { name: name.to_owned(), groups: BTreeSet::new() };
        let mut question = on_wiki(Action::Approve);
        question.principal = Principal::User(user(name));
        question.circumstances.on_behalf_of = Some(user(for_whom));
        decide(&set, &question).verdict
    };
    assert_eq!(approve("ann", "bob"), Verdict::Allow);
    assert_eq!(approve("ann", "ann"), Verdict::Deny, "four eyes");
    assert_eq!(approve("bob", "ann"), Verdict::Deny);
}

#[test]
fn a_question_that_does_not_fit_itself_is_denied() {
    let set = set_of("@id(\"all\") permit(principal, action, resource);");
    let wiki = || Object::Target("wiki".to_owned());
    let reason = |question: Question| verdict(&set, &question);
    assert_eq!(reason(on_wiki(Action::Read)), (Verdict::Allow, Reason::Allowed));
    for action in [Action::Fetch, Action::Begin, Action::Delegate, Action::Approve] {
        assert_eq!(reason(ask("a", action, wiki())), (Verdict::Deny, Reason::Malformed), "{action}");
    }
    assert_eq!(reason(ask("a", Action::Read, Object::Template(None))).1, Reason::Malformed);
    let user = Principal::User(UserFacts::default());
    assert_eq!(reason(Question { principal: user, ..on_wiki(Action::Read) }).1, Reason::Malformed);
    assert_eq!(reason(Question { task: None, ..on_wiki(Action::Read) }).1, Reason::Malformed);
    let nowhere = ask("a", Action::Read, Object::Target("wikki".to_owned()));
    assert_eq!(reason(nowhere), (Verdict::Deny, Reason::UnknownTarget));
}

#[test]
fn what_the_workload_api_gives_is_decided_form_by_form() {
    let set = set_of(POLICIES);
    let identity = |path: &str, kind, audiences: &[&str]| IdentityFacts {
        spiffe_id: workload(path).spiffe_id,
        kind,
        audiences: audiences.iter().map(|&a| a.to_owned()).collect(),
        entry: EntryId::new("agents"),
    };
    let fetch = |path, kind, audiences| {
        let question =
            Question::fetch(workload(path), identity(path, kind, audiences), Duration::from_secs(60), now());
        decide(&set, &question).verdict
    };
    let path = "agent/research/a";
    assert_eq!(fetch(path, Kind::X509, &[]), Verdict::Allow);
    assert_eq!(fetch(path, Kind::Jwt, &["https://wiki.example.org"]), Verdict::Allow);
    assert_eq!(fetch(path, Kind::Jwt, &["https://wiki.example.org", "b"]), Verdict::Deny);
    let fetchable =
        |path| set.fetchable(&workload(path), &identity(path, Kind::X509, &[]), |_| Duration::ZERO, now());
    assert!(fetchable(path).x509 && fetchable(path).jwt && fetchable(path).wit);
    assert!(!fetchable("agent/plan").any());
    let nothing = PolicySet::none();
    assert!(
        nothing.fetchable(&workload("x"), &identity("x", Kind::X509, &[]), |_| Duration::ZERO, now()).any()
    );
    let bound = set_of(&POLICIES.replace("@id(\"may-fetch\")", "@id(\"may-fetch\") @binding(\"mtls\")"));
    let kinds = [Kind::X509, Kind::Jwt, Kind::Wit].map(|kind| {
        let identity = identity(path, kind, &["https://wiki.example.org"]);
        decide(&bound, &Question::fetch(workload(path), identity, Duration::ZERO, now())).is_allowed()
    });
    assert_eq!(kinds, [true, false, false], "only a certificate is bound by TLS");
}

#[test]
fn bindings_that_do_not_agree_deny() {
    let permit = |id: &str, notes: &str| {
        format!("@id(\"{id}\") {notes} permit(principal, action == Mayfly::Action::\"read\", resource);\n")
    };
    let on = |set: &PolicySet, target: &str| {
        let decision = decide(set, &ask("a", Action::Read, Object::Target(target.to_owned())));
        (decision.reason, decision.obligations.binding)
    };
    let set = set_of(&permit("a", "@binding(\"dpop\")"));
    assert_eq!(on(&set, "board"), (Reason::Allowed, Some(Binding::Dpop)), "stricter than the target asks");
    assert_eq!(on(&set, "wiki").0, Reason::Obligations, "the target takes mtls only");
    let set = set_of(&(permit("a", "@binding(\"dpop\")") + &permit("b", "@binding(\"mtls\")")));
    assert_eq!(on(&set, "board").0, Reason::Obligations);
    let set = set_of(&permit("a", ""));
    assert_eq!(on(&set, "board"), (Reason::Allowed, Some(Binding::Bearer)));
}

#[test]
fn an_explanation_says_what_decided_and_what_would_have_to_change() {
    let set = set_of(POLICIES);
    let explain = |question: &Question| set.explain(question, EvaluationId::from_random([0; 16])).to_string();
    let long = explain(&Question { requested_ttl: Duration::from_secs(3600), ..on_wiki(Action::Read) });
    for part in [
        "deny (no_permit)",
        "permit kb-read (a.cedar:2): does not apply",
        "does not hold: context.requested_ttl <= duration(\"10m\")",
        "context.requested_ttl is",
        "to be allowed:",
    ] {
        assert!(long.contains(part), "{part}\n{long}");
    }
    assert!(!long.contains("does not hold: context.task.deadline"), "that part holds\n{long}");
    let stranger = explain(&ask("agent/plan", Action::Read, Object::Target("wiki".to_owned())));
    assert!(stranger.contains("the principal is not in Mayfly::Group::\"researchers\""), "{stranger}");
    let write = explain(&on_wiki(Action::Write));
    assert!(
        write.contains("an approval by 1 of oncall") && write.contains("forbid writes-need-human"),
        "{write}"
    );
    let mut risky = on_wiki(Action::Read);
    risky.circumstances.risk = 90;
    let risky = explain(&risky);
    assert!(risky.contains("`tampered` forbids it, without exception"), "{risky}");
    // A permit applies there: to lift the forbid is enough.
    assert!(!risky.contains("not enough"), "{risky}");
    // Here none does, and who lifts the forbid alone is told no again.
    let mut nobody = ask("agent/plan", Action::Read, Object::Target("wiki".to_owned()));
    nobody.circumstances.risk = 90;
    let nobody = explain(&nobody);
    assert!(nobody.contains("`tampered` forbids it, without exception"), "{nobody}");
    let more = "lifting that is not enough: no permit applies either; the nearest, `kb-read`, would if this were \
                otherwise: the principal is not in Mayfly::Group::\"researchers\"";
    assert!(nobody.contains(more), "{nobody}");
    let admin = explain(&on_wiki(Action::Admin));
    assert!(admin.contains("`writes-need-human` forbids it unless"), "{admin}");
    assert!(admin.contains("no permit applies either; no policy permits this action to anybody"), "{admin}");
    assert!(explain(&on_wiki(Action::Read)).starts_with("allow (allowed)\n  for at most 10m\n"));
}

#[test]
fn an_exception_without_owner_and_date_fails_the_lint() {
    let lint = |text: &str| {
        let found = set_of(text).lint(now());
        let fails: Vec<String> = found.iter().filter(|l| l.fails).map(|l| l.problem.to_string()).collect();
        let notes: Vec<String> = found.iter().filter(|l| !l.fails).map(|l| l.problem.to_string()).collect();
        (fails, notes)
    };
    let read =
        "permit(principal in Mayfly::Group::\"researchers\", action == Mayfly::Action::\"read\", resource);";
    for (notes, what) in [
        ("@id(\"a\") @until(\"2027-01-01\")", "has a date: write `@owner"),
        ("@id(\"break-glass\") @owner(\"ann\")", "is for emergencies: write `@until"),
        ("@id(\"BreakGlass\")", "is for emergencies: write `@owner(\"…\")` and `@until"),
    ] {
        let (fails, _) = lint(&format!("{notes} {read}"));
        assert!(fails.len() == 1 && fails[0].contains(what), "{notes} {fails:?}");
    }
    assert!(lint("@id(\"a\") permit(principal, action, resource);").0[0].contains("permits every action"));
    assert!(
        lint(&format!("@id(\"break-glass\") @owner(\"ann\") @until(\"2027-01-01\") {read}")).0.is_empty()
    );
    let blind = "@id(\"a\") @requires_approval(\"oncall\") forbid(principal, action == Mayfly::Action::\"write\", resource);";
    assert!(lint(blind).0.iter().any(|one| one.contains("none would lift it")));
    let strange = read.replace("researchers", "researchrs");
    let (fails, notes) = lint(&format!("@id(\"a\") {strange}"));
    assert!(fails.is_empty() && notes.iter().any(|n| n.contains("`researchrs`")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("was never reviewed")), "{notes:?}");
    let (_, notes) = lint(&format!("@id(\"a\") @owner(\"x\") @until(\"2026-01-01\") {read}"));
    assert!(notes.iter().any(|n| n.contains("ended at 2026-01-02T00:00:00Z: remove it")), "{notes:?}");
}
