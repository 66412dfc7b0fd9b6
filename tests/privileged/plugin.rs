//! External attestors: the example in Python with a real process, and ones that lie, fail and hang.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mayfly_harness::holder::Who;
use mayfly_harness::{Agent, Entry, Holder, Plan, files, require_root, until};

use crate::support::{WIDE, utf8};

const UNAVAILABLE: i64 = 14;
const USER: u32 = 20_070;
const LOGIN: u32 = 20_071;

/// Runs with the Python of the peers until dropped.
struct Python(Child);

impl Python {
    fn start(script: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(files::peers().join("venv/bin/python"))
            .arg(script)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "serving\n");
        Self(child)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/attestor/login_attestor.py")
}

fn agent(socket: &Path, entries: &[Entry]) -> Agent {
    require_root();
    let plugin = format!(
        "[[attest.plugin]]\nname = \"login\"\nsocket = {:?}\nkeys = [\"uid\", \"user\"]\ndeadline = \"2s\"\n",
        utf8(socket)
    );
    Plan::with_entries(entries).settings(&format!("{WIDE}{plugin}")).start()
}

/// A client that somebody logged in for: what PAM does, in one line.
fn logged_in(agent: &Agent) -> Holder {
    let script = format!(
        "echo {LOGIN} > /proc/self/loginuid && exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$0\" \"$@\""
    );
    Who::uid(0).wrapped(&["/bin/sh", "-c", &script]).start(agent)
}

fn entries() -> [Entry; 2] {
    [Entry::new("/login", &[&format!("login:uid:{LOGIN}")]), Entry::for_uid(USER)]
}

#[test]
fn the_example_tells_who_logged_in_and_its_loss_is_no_denial() {
    let dir = files::roots_dir();
    let socket = dir.path().join("login.sock");
    let agent = agent(&socket, &entries());
    // Nobody serves yet: whoever could have it by the plug-in is told to try again.
    let mut holder = logged_in(&agent);
    assert_eq!(holder.x509_refused().code, UNAVAILABLE);
    let plugin = Python::start(&example(), &[utf8(&socket)]);
    let mut ids = until("the attestor is asked", || {
        holder.open_x509();
        holder
            .next_x509()
            .ok()
            .map(|update| update.svids.into_iter().map(|svid| svid.spiffe_id).collect::<Vec<_>>())
    });
    ids.sort();
    assert_eq!(ids, ["spiffe://example.org/login".to_owned(), format!("spiffe://example.org/uid/{USER}")]);
    let explained = agent.admin().explain(holder.pid()).unwrap();
    let found = explained.selectors.iter().find(|one| one.text == format!("login:uid:{LOGIN}")).unwrap();
    assert_eq!(found.strength, "controller");
    // Another process of the same user, for whom nobody logged in.
    let mut other = Holder::start(&agent, USER);
    let svids = other.x509().svids;
    assert_eq!(
        (svids.len(), svids[0].spiffe_id.as_str()),
        (1, format!("spiffe://example.org/uid/{USER}").as_str())
    );
    // It goes away: who had an identity by it keeps it.
    drop(plugin);
    let mut third = logged_in(&agent);
    assert_eq!(third.x509_refused().code, UNAVAILABLE);
    assert!(!holder.x509_has_ended());
    let explained = agent.admin().explain(third.pid()).unwrap();
    let outcome = &explained.attestors.iter().find(|one| one.kind == "login").unwrap().outcome;
    assert!(outcome.contains("login.sock"), "{outcome}");
    // And comes back.
    let _plugin = Python::start(&example(), &[utf8(&socket)]);
    until("it is asked again", || {
        third.open_x509();
        third.next_x509().ok()
    });
}

/// The example, made to misbehave by lines at its end.
fn misbehaving(dir: &Path, name: &str, code: &str) -> PathBuf {
    let text = std::fs::read_to_string(example()).unwrap();
    let (head, tail) = text.split_once("if __name__").unwrap();
    let path = dir.join(format!("{name}.py"));
    std::fs::write(&path, format!("{head}{code}\n\nif __name__{tail}")).unwrap();
    path
}

#[test]
fn an_attestor_that_says_what_it_may_not_says_nothing() {
    for (name, code, expected) in [
        ("key", "a.selectors.add(key='root', value='1')", "does not list"),
        ("empty", "a.selectors.add(key='uid', value='')", "1 to 1024 bytes"),
        ("long", "a.selectors.add(key='uid', value='x' * 1025)", "1 to 1024 bytes"),
        ("many", "[a.selectors.add(key='uid', value=str(n)) for n in range(65)]", "more than 64 selectors"),
        ("huge", "a.selectors.add(key='uid', value='x' * 1000000)", "login.sock"),
        // Whoever is first: the deadline of the call, or the one that every back-end has.
        ("hang", "__import__('time').sleep(30)", "Timeout expired|no answer within"),
    ] {
        let dir = files::roots_dir();
        let socket = dir.path().join("login.sock");
        let code = format!(
            "def attest(request, context):\n    a = AttestResponse()\n    a.selectors.add(key='uid', value='{LOGIN}')\n    {code}\n    return a"
        );
        let _plugin = Python::start(&misbehaving(dir.path(), name, &code), &[utf8(&socket)]);
        let agent = agent(&socket, &entries());
        let mut holder = Holder::start(&agent, USER);
        assert_eq!(holder.x509_refused().code, UNAVAILABLE, "{name}");
        let explained = agent.admin().explain(holder.pid()).unwrap();
        let answer = explained.attestors.iter().find(|one| one.kind == "login").unwrap();
        assert!(expected.split('|').any(|one| answer.outcome.contains(one)), "{name}: {}", answer.outcome);
        assert!(!explained.selectors.iter().any(|one| one.text.starts_with("login:")), "{name}");
    }
}

#[test]
fn c03_a_socket_that_others_could_replace_is_not_asked() {
    let dir = files::roots_dir();
    let socket = dir.path().join("login.sock");
    let _plugin = Python::start(&example(), &[utf8(&socket)]);
    nix::unistd::chown(dir.path(), Some(USER.into()), None).unwrap();
    let agent = agent(&socket, &entries());
    let mut holder = logged_in(&agent);
    assert_eq!(holder.x509_refused().code, UNAVAILABLE);
    let explained = agent.admin().explain(holder.pid()).unwrap();
    let answer = explained.attestors.iter().find(|one| one.kind == "login").unwrap();
    assert!(answer.outcome.contains("not in root's hands"), "{}", answer.outcome);
}
