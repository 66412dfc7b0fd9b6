//! What README and the docs tell to type, typed: with a starter set as it is delivered, by a shell.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mayfly_harness::pki::claims;
use mayfly_harness::{Agent, Entry, Plan};

use crate::support::own_uid;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// An agent with all files of a starter set, and us in it as that.
fn agent(set: &str, path: &str) -> Agent {
    let entry = Entry::new(path, &[&format!("unix:uid:{}", own_uid())]);
    let mut agent = Plan::with_entries(&[entry]).prepare();
    let dir = agent.policy_dir();
    std::fs::create_dir(&dir).unwrap();
    for file in std::fs::read_dir(Path::new(ROOT).join("deploy/policy").join(set)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(dir.join(file.file_name()), mode).unwrap();
    }
    agent.plan().settings += &format!("\n[policy]\ndir = {dir:?}\n");
    agent.write_config();
    agent.launch();
    agent
}

/// The commands of a page that begin so, each on one line.
fn commands(page: &str, beginning: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join(page)).unwrap().replace("\\\n", " ");
    text.lines().filter(|line| line.starts_with(beginning)).map(str::to_owned).collect()
}

/// In a directory with an `./agent` that says its task and what is in its files.
fn type_it(agent: &Agent, line: &str) -> Output {
    let place = agent.dir().join("place");
    std::fs::create_dir_all(&place).unwrap();
    let program = "#!/bin/sh\necho $MAYFLY_TASK; cat $WIKI_TOKEN_FILE; echo\n\
                   test -z \"$ANTHROPIC_IDENTITY_TOKEN_FILE\" || cat $ANTHROPIC_IDENTITY_TOKEN_FILE; echo\n";
    std::fs::write(place.join("agent"), program).unwrap();
    std::fs::set_permissions(place.join("agent"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let own = agent.binary().parent().unwrap().display().to_string();
    Command::new("sh")
        .args(["-c", line])
        .current_dir(place)
        .env("PATH", format!("{own}:/usr/bin:/bin"))
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.public().display()))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Finding 11: no starter set worked with what README says.
#[test]
fn what_the_pages_tell_to_type_works_on_the_starter_set_that_they_name() {
    let agent = agent("research-agent", "/agent/research/a");
    let mut typed = 0;
    for page in ["README.md", "docs/running-agents.md"] {
        for line in commands(page, "mayfly run --task summarise ") {
            typed += 1;
            let ran = type_it(&agent, &line);
            let said = text(&ran.stdout);
            assert!(ran.status.success(), "{page}: {line}\n{said}{}", text(&ran.stderr));
            let said: Vec<&str> = said.lines().collect();
            assert!(said[0].starts_with("tsk_"), "{said:?}");
            let token = claims(said[1]);
            assert_eq!(token["aud"], "https://wiki.example.org");
            assert_eq!(token["authorization_details"][0]["identifier"], "space:DOCS");
            assert_eq!(token["urn:mayfly:task"]["id"], said[0]);
            if line.contains("--jwt-svid") {
                let svid = claims(said[2]);
                assert_eq!(svid["aud"], serde_json::json!(["https://api.anthropic.com"]));
                assert_eq!(svid["mayfly_task"], said[0]);
            }
        }
    }
    assert_eq!(typed, 2, "one command on each page");
}

/// Where a target wants a key, whoever types it learns what to do.
#[test]
fn a_token_that_must_be_bound_is_refused_with_a_hint() {
    let agent = agent("writes-need-a-human", "/agent/editor/a");
    let ran =
        type_it(&agent, "mayfly run --task edit --token WIKI_TOKEN_FILE=https://wiki.example.org -- ./agent");
    let why = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(125), "{why}");
    assert!(why.contains("binding_required") && why.contains("`binding = \"none\"`"), "{why}");
}

/// Finding 7: outside of a task there is a certificate, and a token for nobody.
#[test]
fn no_starter_set_gives_tokens_outside_of_a_task() {
    for (set, path) in [
        ("research-agent", "/agent/research/a"),
        ("writes-need-a-human", "/agent/editor/a"),
        ("orchestrator-and-workers", "/agent/worker/a"),
        ("break-glass", "/agent/responder"),
    ] {
        let agent = agent(set, path);
        for audience in ["https://payroll.example.org", "https://wiki.example.org"] {
            let (code, out, err) = agent.mayfly(&["fetch", "jwt", "--audience", audience]);
            assert!(code != Some(0) && out.is_empty(), "{set} {audience}: {code:?} {err}");
        }
        let (code, _, err) = agent.mayfly(&["fetch", "x509"]);
        assert_eq!(code, Some(0), "{set}: {err}");
    }
}
