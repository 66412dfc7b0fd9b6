//! People in the loop with nothing but `mayfly agent --dev`, in the very words that it says itself: a program waits, its own
//! user cannot allow it, root can, and then it has its credential.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use mayfly_harness::pki::claims;
use mayfly_harness::{files, require_root, until};

const USER: u32 = 20_841;

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// As somebody types it, with nothing in the environment that would help.
fn command(words: &[&str], uid: u32, home: &Path) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).uid(uid).gid(uid).current_dir(home).stdin(Stdio::null());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TMPDIR", home);
    command
}

fn run(words: &[&str], uid: u32, home: &Path) -> Output {
    command(words, uid, home).output().unwrap()
}

/// A development agent of that user, and what it says to type.
fn developing(home: &Path) -> (Running, PathBuf, Vec<String>) {
    let mayfly = files::install(home, &files::built("mayfly"));
    nix::unistd::chown(home, Some(USER.into()), Some(USER.into())).unwrap();
    let words = [mayfly.to_str().unwrap(), "agent", "--dev"];
    let log = std::fs::File::create(home.join("log")).unwrap();
    let mut child = command(&words, USER, home).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    let agent = Running(child);
    let said: Vec<String> =
        said.lines().map_while(Result::ok).take_while(|line| !line.contains("Ctrl-C stops")).collect();
    let socket = home.join(format!("mayfly-{USER}/public/api.sock"));
    until("the agent serves", || UnixStream::connect(&socket).ok());
    (agent, socket, said.iter().map(|line| line.trim().to_owned()).collect())
}

/// Finding 4: a newcomer can try people in the loop.
#[test]
fn what_a_development_agent_asks_root_can_allow_and_its_user_cannot() {
    require_root();
    let home = files::short_dir();
    let (_agent, socket, said) = developing(home.path());
    let wait = said.iter().find(|line| line.contains("demo-asks")).expect("what waits");
    let allow = said.iter().find_map(|line| line.strip_prefix("sudo ")).expect("who allows it");
    let allow: Vec<&str> = allow.split_whitespace().collect();
    let (mayfly, flags) = (allow[0], &allow[2..]);
    assert_eq!(allow[1], "approve", "{allow:?}");

    let shell =
        ["sh", "-c", &format!("export SPIFFE_ENDPOINT_SOCKET=unix://{}; exec {wait}", socket.display())];
    let mut waiting = command(&shell, USER, home.path());
    let mut waiting = Running(waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut complaints = BufReader::new(waiting.0.stderr.take().unwrap());
    let mut line = String::new();
    complaints.read_line(&mut line).unwrap();
    let id = line.split(['`', ' ', '\n']).find(|word| word.starts_with("apr_")).expect(&line).to_owned();

    let grant: Vec<&str> = [&[mayfly, "approve", "grant", &id][..], flags].concat();
    let own = run(&grant, USER, home.path());
    let why = String::from_utf8_lossy(&own.stderr).into_owned();
    assert!(!own.status.success() && why.contains("somebody else must decide"), "{why}");
    assert!(waiting.0.try_wait().unwrap().is_none(), "nothing has begun");
    let root = run(&grant, 0, home.path());
    assert!(root.status.success(), "{}", String::from_utf8_lossy(&root.stderr));

    let mut token = String::new();
    waiting.0.stdout.take().unwrap().read_to_string(&mut token).unwrap();
    assert!(waiting.0.wait().unwrap().success());
    let said = claims(token.trim());
    assert_eq!(said["aud"], "https://demo.mayfly.internal");
    assert_eq!(said["urn:mayfly:task"]["template"], "demo-asks");
    assert_eq!(said["authorization_details"][0]["actions"], serde_json::json!(["read", "write"]));
}
