//! Callers of the HTTP socket under uids of their own.

use std::process::Command;

use mayfly_harness::{Agent, Entry, Holder, Plan, require_root, until};

/// curl as that user, over the Unix socket: status and body.
fn post(agent: &Agent, uid: u32, path: &str, token: &str) -> (String, String) {
    let socket = agent.dir().join("http/http.sock");
    let output = Command::new("setpriv")
        .args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "curl", "-sS"])
        .args(["--max-time", "20", "-w", "\n%{http_code}", "--unix-socket"])
        .arg(socket)
        .args(["--data", &format!("token={token}"), &format!("http://localhost{path}")])
        .output()
        .expect("setpriv and curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.to_owned(), body.to_owned())
}

const HOLDER: u32 = 20_701;
const NEIGHBOUR: u32 = 20_702;
const STRANGER: u32 = 20_703;

#[test]
fn h_only_who_has_an_identity_asks_and_only_its_own_is_given_back() {
    require_root();
    let agent = Plan::with_entries(&[Entry::for_uid(HOLDER), Entry::for_uid(NEIGHBOUR)]).start();
    let mut holder = Holder::start(&agent, HOLDER);
    let token = holder.jwt("peer").unwrap().remove(0).text;
    let is_active = |uid| post(&agent, uid, "/introspect", &token).1.starts_with("{\"active\":true,");
    // curl itself is attested: its uid earns it the identity of that user.
    assert!(is_active(HOLDER) && is_active(NEIGHBOUR) && is_active(0));
    let (status, body) = post(&agent, STRANGER, "/introspect", &token);
    assert_eq!((status.as_str(), body.contains("active")), ("401", false));
    assert_eq!(post(&agent, STRANGER, "/revoke", &token).0, "401");
    let (status, body) = post(&agent, NEIGHBOUR, "/revoke", &token);
    assert_eq!(status, "403", "{body}");
    assert!(is_active(NEIGHBOUR), "it stands");
    assert_eq!(post(&agent, HOLDER, "/revoke", &token).0, "200");
    assert_eq!(post(&agent, NEIGHBOUR, "/introspect", &token).1, "{\"active\":false}");
    // Whoever administers the node may take back what is not his.
    let second = holder.jwt("peer").unwrap().remove(0).text;
    assert_eq!(post(&agent, 0, "/revoke", &second).0, "200");
    assert_eq!(post(&agent, NEIGHBOUR, "/introspect", &second).1, "{\"active\":false}");
    until("the stranger is in the audit log", || {
        let log = std::fs::read_to_string(agent.audit_path()).unwrap();
        (log.contains("no entry matches") && log.contains(&STRANGER.to_string())).then_some(())
    });
    assert!(holder.jwt("peer").is_ok(), "giving back takes nothing but the token");
}
