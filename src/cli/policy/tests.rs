//! The commands, as they are run: on a desk with policies, a catalogue and cases.

use super::super::testing::{Ran, empty_env, run};
use super::*;

const POLICIES: &str = "\
@id(\"read\") @max_ttl(\"5m\")
permit(principal in Mayfly::Group::\"readers\", action == Mayfly::Action::\"read\", resource);
@id(\"write\")
permit(principal in Mayfly::Group::\"writers\", action == Mayfly::Action::\"write\", resource);
@id(\"approve\")
permit(principal in Mayfly::Group::\"oncall\", action == Mayfly::Action::\"approve\", resource);
@id(\"ask\") @requires_approval(\"oncall\")
forbid(principal, action == Mayfly::Action::\"write\", resource)
unless { context has approval && context.approval.by in Mayfly::Group::\"oncall\" };
";

const CATALOGUE: &str = "\
[[targets]]
name = \"wiki\"
audience = \"https://wiki.example.org\"
data_class = \"internal\"
owner = \"docs\"
[[agents]]
spiffe_id = \"spiffe://example.org/agent/a\"
groups = [\"readers\"]
owner = \"docs\"
reviewed_at = 2026-11-01
[[agents]]
spiffe_id = \"spiffe://example.org/agent/b\"
groups = [\"writers\"]
owner = \"docs\"
reviewed_at = 2026-11-01
[[people]]
name = \"ann\"
groups = [\"oncall\"]
";

const CASES: &str = "\
cases:
  - {name: a reads, as: 'spiffe://example.org/agent/a', action: read, target: wiki, expect: allow, max_ttl: 5m}
  - {name: b does not, as: 'spiffe://example.org/agent/b', action: read, target: wiki, expect: deny, reason: no_permit}
  - {name: b asks, as: 'spiffe://example.org/agent/b', action: write, target: wiki, expect: requestable, approvers: [oncall]}
";

struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().expect("tempdir"));
        desk.put("a.cedar", POLICIES);
        desk.put("c.toml", CATALOGUE);
        desk
    }

    fn put(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("write");
        path.to_str().expect("text").to_owned()
    }

    fn dir(&self) -> &str {
        self.0.path().to_str().expect("text")
    }

    async fn policy(&self, args: &[&str]) -> Ran {
        run(empty_env(), &[&["policy"], args].concat()).await
    }
}

#[tokio::test]
async fn check_counts_what_is_good_and_names_what_is_not() {
    let desk = Desk::new();
    let ran = desk.policy(&["check", desk.dir()]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    assert!(ran.out.starts_with("4 policies are good, for 1 target\nversion "), "{}", ran.out);
    let config = desk.put("../mayfly.toml.of.another", "");
    drop(std::fs::remove_file(config));
    desk.put("b.cedar", "@id(\"b\") @maxttl(\"1\")\npermit(principal, action, resource);");
    let ran = desk.policy(&["check", desk.dir()]).await;
    assert_eq!(ran.exit, Exit::Invalid, "{ran:?}");
    assert!(ran.out.contains("b.cedar:1:1") && ran.out.contains("did you mean `@max_ttl`?"), "{}", ran.out);
}

#[tokio::test]
async fn lint_fails_by_an_exception_without_a_date_and_tells_notes() {
    let desk = Desk::new();
    let ran = desk.policy(&["lint", desk.dir()]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    assert!(ran.out.contains("note: ") && ran.out.contains("`read` has no `@owner`"), "{ran:?}");
    desk.put(
        "b.cedar",
        "@id(\"glass\") permit(principal in Mayfly::Group::\"break-glass\", action == Mayfly::Action::\"write\", resource);",
    );
    let ran = desk.policy(&["lint", desk.dir()]).await;
    assert!(ran.exit == Exit::Invalid && ran.out.contains("b.cedar:1:1"), "{ran:?}");
}

#[tokio::test]
async fn cases_that_do_not_hold_are_named_with_what_came_instead() {
    let desk = Desk::new();
    let cases = desk.put("cases.yaml", CASES);
    let ran = desk.policy(&["test", &cases]).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Ok, "3 cases hold\n"), "{ran:?}");
    let cases = desk.put("cases.yaml", &CASES.replace("expect: requestable", "expect: allow"));
    let ran = desk.policy(&["test", &cases]).await;
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Failed, "mayfly: 1 case does not hold, 2 do\n"));
    let first = ran.out.lines().next().expect("a line");
    assert!(
        first.contains("cases.yaml:4:") && first.contains("expects allow, and it is requestable"),
        "{first}"
    );
    assert!(ran.out.contains("forbid ask"), "{}", ran.out);
    let ran = desk.policy(&["test", &desk.put("cases.yaml", "case: []\n")]).await;
    assert_eq!(ran.exit, Exit::Invalid);
    assert!(
        ran.out.contains("cases.yaml:1:1: case: is not a known key: did you mean `cases`?"),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn explain_says_who_decided_and_what_would_have_to_change() {
    let desk = Desk::new();
    let ask = |more: &[&'static str]| {
        let args = ["explain", "--policy", desk.dir(), "--as", "spiffe://example.org/agent/b"];
        let args: Vec<String> = args.iter().chain(more).map(|word| (*word).to_owned()).collect();
        let desk = &desk;
        async move { desk.policy(&args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let ran = ask(&["--action", "read", "--target", "wiki"]).await;
    assert_eq!(ran.exit, Exit::NoIdentity, "{ran:?}");
    assert!(ran.out.starts_with("deny (no_permit)") && ran.out.contains("to be allowed:"), "{}", ran.out);
    assert!(ran.out.contains("readers"), "{}", ran.out);
    let ran = ask(&["--action", "write", "--target", "https://wiki.example.org"]).await;
    assert!(ran.out.starts_with("requestable (approval_required)"), "{}", ran.out);
    let ran = ask(&["--action", "write", "--target", "wiki", "--approved-by", "ann"]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    let json = ask(&["--action", "write", "--target", "wiki", "--output", "json"]).await.json();
    assert_eq!(
        (json["result"].as_str(), json["approvers"][0].as_str()),
        (Some("requestable"), Some("oncall"))
    );
    let ran = ask(&["--action", "write"]).await;
    assert_eq!(ran.exit, Exit::Usage, "{ran:?}");
    assert!(ran.err.contains("names no target"), "{}", ran.err);
    assert_eq!(ask(&["--action", "wrote", "--target", "wiki"]).await.exit, Exit::Usage);
}

#[tokio::test]
async fn the_schema_is_what_policies_are_held_to() {
    let desk = Desk::new();
    let ran = desk.policy(&["schema"]).await;
    assert!(ran.out.contains("namespace Mayfly") && ran.exit == Exit::Ok);
}

/// What is delivered is tested by the command that it recommends.
#[tokio::test]
async fn the_starter_policies_load_keep_their_promises_and_nobody_has_to_mend_them() {
    let starters = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policy");
    let mut seen = 0;
    for entry in std::fs::read_dir(starters).expect("starters") {
        let dir = entry.expect("entry").path();
        if !dir.is_dir() {
            continue;
        }
        seen += 1;
        let (cases, dir) = (dir.join("cases.yaml"), dir.to_str().expect("text").to_owned());
        let ran = run(empty_env(), &["policy", "test", cases.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Ok, "{dir}: {ran:?}");
        let ran = run(empty_env(), &["policy", "lint", &dir]).await;
        assert_eq!(ran.exit, Exit::Ok, "{dir}: {ran:?}");
        assert!(!ran.out.lines().any(|line| !line.starts_with("note: ")), "{dir}: {}", ran.out);
        told_of_time_alone(&dir, &ran.out);
    }
    assert_eq!(seen, 4);
    let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/agents/policy");
    let ran = run(empty_env(), &["policy", "lint", story.to_str().expect("text")]).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    told_of_time_alone("the story", &ran.out);
}

/// What is delivered gets older; nothing else may be said of it.
fn told_of_time_alone(of: &str, lint: &str) {
    let ages = ["was last reviewed", " ended at "];
    let others: Vec<&str> = lint.lines().filter(|line| !ages.iter().any(|age| line.contains(age))).collect();
    assert!(others.is_empty(), "{of}: {others:?}");
}

#[tokio::test]
async fn a_directory_of_cases_is_told_what_is_wanted_instead() {
    let desk = Desk::new();
    desk.put("cases.yaml", CASES);
    let ran = desk.policy(&["test", desk.dir()]).await;
    assert_eq!(ran.exit, Exit::Invalid, "{ran:?}");
    let said = format!("{}{}", ran.out, ran.err);
    let wanted = format!(
        "{0}: is a directory, and a file of cases is wanted: name it, such as `{0}/cases.yaml`",
        desk.dir()
    );
    assert!(said.contains(&wanted), "{said}");
}
