//! Launchers are this test binary, which waits for a word on its standard input and then becomes what it was told.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::*;
use crate::process::ExecWatch;
use crate::testing::{end, host, set};
use crate::{Attestation, AttestorSet, MeasureLimits};

const PYTHON: &str = "/usr/bin/python3.11";
const SLEEP: &str = "/usr/bin/sleep";
/// Where the launcher finds what to become.
const NEXT: &str = "MAYFLY_TEST_NEXT";
const UID: u32 = 20_301;

/// Not a test: a launcher, when this binary is started as one.
#[test]
fn launcher_entry() {
    let Some(next) = std::env::var_os(NEXT) else { return };
    if std::env::var_os("MAYFLY_TEST_EXPOSED").is_none() {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
    }
    writeln!(io::stdout(), "\nwaiting").unwrap();
    let mut word = String::new();
    io::stdin().read_line(&mut word).unwrap();
    let words: Vec<_> = next.to_str().unwrap().split('|').collect();
    panic!("{}", Command::new(words[0]).args(&words[1..]).exec());
}

struct Launcher {
    child: Child,
    process: Arc<Process>,
}

impl Launcher {
    /// Of `UID`, about to become `next` (words with `|` between).
    fn start(next: &str) -> Self {
        Self::started(Command::new(std::env::current_exe().unwrap()).uid(UID).gid(UID), next)
    }

    fn started(command: &mut Command, next: &str) -> Self {
        command.args(["--exact", "launch::tests::launcher_entry", "--nocapture"]).env(NEXT, next);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while lines.next().unwrap().unwrap() != "waiting" {}
        let process = Arc::new(Process::of_pid(&host(), child.id()).unwrap());
        Self { child, process }
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Waits until the program is that one.
    fn becomes(&self, program: &str) {
        let exe = format!("/proc/{}/exe", self.child.id());
        // There is none for a moment: the exec comes from another thread than the first.
        while !std::fs::read_link(&exe).is_ok_and(|exe| exe == Path::new(program)) {
            std::thread::yield_now();
        }
    }
}

fn agent() -> (AttestorSet, ExecWatch) {
    let (set, watch) = (set(MeasureLimits::default()), ExecWatch::start(&host(), Box::new(drop)));
    set.launches().count_with(watch.counter().unwrap());
    (set, watch)
}

fn claim(program: &str, files: &[&str]) -> LaunchClaim {
    let open = |path| rustix::fs::openat(CWD, path, OFlags::PATH, Mode::empty()).unwrap();
    LaunchClaim { program: open(program), path: program.into(), files: files.iter().map(sealed).collect() }
}

fn sealed(content: &&str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    sealed_copy(file.as_fd()).unwrap()
}

fn sha256(content: &str) -> String {
    text::hex(&sealed_digest(sealed(&content).as_fd()).unwrap())
}

fn launched(attestation: &Attestation) -> Vec<&str> {
    attestation.values("launch", "sha256").collect()
}

async fn refusal(set: &AttestorSet, launcher: &Launcher, claim: LaunchClaim) -> LaunchError {
    set.record_launch(&launcher.process, claim).await.unwrap_err()
}

#[tokio::test]
async fn a_launcher_stands_for_what_it_is_about_to_become_and_the_exec_changes_nothing() {
    let (set, _watch) = agent();
    let mut launcher = Launcher::start(&format!("{SLEEP}|30"));
    let before = set.attest(&launcher.process).await.unwrap();
    let digests = set.record_launch(&launcher.process, claim(SLEEP, &["b", "a", "b"])).await.unwrap();
    assert_eq!(digests.iter().map(|d| text::hex(d)).collect::<Vec<_>>(), ["b", "a", "b"].map(sha256));
    let armed = set.attest(&launcher.process).await.unwrap();
    let mut expected = ["a", "b"].map(sha256);
    expected.sort();
    assert!(launched(&before).is_empty() && launched(&armed) == expected);
    assert_eq!(armed.values("unix", "path").collect::<Vec<_>>(), [SLEEP]);
    assert_ne!(before.fingerprint(), armed.fingerprint());
    launcher.go();
    launcher.becomes(SLEEP);
    let after = set.attest(&launcher.process).await.unwrap();
    assert_eq!(after.selectors(), armed.selectors());
    assert_eq!(after.fingerprint(), armed.fingerprint(), "who had an identity keeps it");
    assert!(after.selectors().iter().any(|s| s.key() == "sha256" && s.kind() == "unix"));
    assert_eq!(set.launches().live(), 1);
    end(launcher.child);
    while set.launches().live() > 0 {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_second_exec_of_the_same_program_ends_it_for_good() {
    let (set, _watch) = agent();
    let code = "import os,sys\nsys.stdin.readline()\nos.execv(sys.executable,[sys.executable,'-c','import time;print(1,flush=True);time.sleep(30)'])";
    let mut launcher = Launcher::start(&format!("{PYTHON}|-c|{code}"));
    set.record_launch(&launcher.process, claim(PYTHON, &["script"])).await.unwrap();
    launcher.go();
    launcher.becomes(PYTHON);
    let first = set.attest(&launcher.process).await.unwrap();
    assert_eq!(launched(&first), [sha256("script")]);
    launcher.go();
    while set.fingerprint(&launcher.process).unwrap() == *first.fingerprint() {}
    let second = set.attest(&launcher.process).await.unwrap();
    assert!(second.fingerprint().same_program(first.fingerprint()));
    assert!(launched(&second).is_empty());
    assert_eq!(set.launches().live(), 0);
    end(launcher.child);
}

#[tokio::test]
async fn an_exec_of_another_program_than_was_said_ends_it() {
    let (set, _watch) = agent();
    let mut launcher = Launcher::start(&format!("{PYTHON}|-c|import time;time.sleep(30)"));
    set.record_launch(&launcher.process, claim(SLEEP, &["script"])).await.unwrap();
    launcher.go();
    launcher.becomes(PYTHON);
    let attestation = set.attest(&launcher.process).await.unwrap();
    assert!(launched(&attestation).is_empty());
    assert_eq!(attestation.values("unix", "path").collect::<Vec<_>>(), [PYTHON]);
    end(launcher.child);
}

#[tokio::test]
async fn a_child_of_the_program_has_none_of_it() {
    let (set, _watch) = agent();
    let code = "import os,time,sys\np=os.fork()\nif p: open(sys.argv[1],'w').write(str(p))\ntime.sleep(30)";
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("child");
    std::fs::write(&told, "").unwrap();
    std::os::unix::fs::chown(&told, Some(UID), None).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let mut launcher = Launcher::start(&format!("{PYTHON}|-c|{code}|{}", told.display()));
    set.record_launch(&launcher.process, claim(PYTHON, &["script"])).await.unwrap();
    launcher.go();
    let child = loop {
        if let Ok(pid) = std::fs::read_to_string(&told).unwrap().parse() {
            break pid;
        }
    };
    let child = Process::of_pid(&host(), child).unwrap();
    assert!(launched(&set.attest(&child).await.unwrap()).is_empty());
    assert_eq!(launched(&set.attest(&launcher.process).await.unwrap()), [sha256("script")]);
    rustix::process::pidfd_send_signal(child.pidfd(), rustix::process::Signal::KILL).unwrap();
    end(launcher.child);
}

#[tokio::test]
async fn lost_notices_of_exec_end_every_launch() {
    let (set, _watch) = agent();
    let launcher = Launcher::start(&format!("{SLEEP}|30"));
    set.record_launch(&launcher.process, claim(SLEEP, &["script"])).await.unwrap();
    let key = launcher.process.key();
    let exe = crate::target::fingerprint(&launcher.process).unwrap().exe;
    let standing = set.launches().of(&key).unwrap();
    assert_eq!(standing.execs, Some(0));
    assert!(set.launches().settle(&key, Standing { execs: None, ..standing }, &exe).is_none());
    assert!(launched(&set.attest(&launcher.process).await.unwrap()).is_empty());
    end(launcher.child);
}

#[tokio::test]
async fn without_word_of_exec_nothing_is_recorded() {
    let set = set(MeasureLimits::default());
    let launcher = Launcher::start(&format!("{SLEEP}|30"));
    assert!(matches!(refusal(&set, &launcher, claim(SLEEP, &["x"])).await, LaunchError::NoWord));
    end(launcher.child);
}

#[tokio::test]
async fn another_program_is_no_launcher() {
    let (set, _watch) = agent();
    let child = Command::new(SLEEP).arg("30").uid(UID).gid(UID).spawn().unwrap();
    let process = Arc::new(Process::of_pid(&host(), child.id()).unwrap());
    let launcher = Launcher { child, process };
    launcher.becomes(SLEEP);
    let refused = refusal(&set, &launcher, claim(SLEEP, &["x"])).await;
    // It can be read by its user, too; as root it is found to be another program.
    assert!(matches!(refused, LaunchError::Exposed), "{refused}");
    end(launcher.child);
    let child = Command::new(SLEEP).arg("30").spawn().unwrap();
    let process = Arc::new(Process::of_pid(&host(), child.id()).unwrap());
    let launcher = Launcher { child, process };
    launcher.becomes(SLEEP);
    let refused = refusal(&set, &launcher, claim(SLEEP, &["x"])).await;
    assert!(matches!(refused, LaunchError::NotOurs), "{refused}");
    end(launcher.child);
}

#[tokio::test]
async fn f04_a_launcher_that_others_of_its_user_can_reach_into_is_refused() {
    let (set, _watch) = agent();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let command = command.uid(UID).gid(UID).env("MAYFLY_TEST_EXPOSED", "1");
    let launcher = Launcher::started(command, SLEEP);
    let refused = refusal(&set, &launcher, claim(SLEEP, &["x"])).await;
    assert!(matches!(refused, LaunchError::Exposed), "{refused}");
    end(launcher.child);
}

#[tokio::test]
async fn f07_a_launcher_with_a_preloaded_library_is_refused() {
    let (set, _watch) = agent();
    let library = ["/lib/x86_64-linux-gnu/libz.so.1", "/lib/aarch64-linux-gnu/libz.so.1"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let launcher = Launcher::started(command.uid(UID).gid(UID).env("LD_PRELOAD", library), SLEEP);
    let refused = refusal(&set, &launcher, claim(SLEEP, &["x"])).await;
    assert!(matches!(refused, LaunchError::Code(Code::Foreign)), "{refused}");
    end(launcher.child);
}

#[tokio::test]
async fn a_launcher_in_other_namespaces_is_refused() {
    let (set, _watch) = agent();
    for unshare in [&["-U", "-r"][..], &["-m"]] {
        let mut command = Command::new("/usr/bin/unshare");
        let launcher = Launcher::started(command.args(unshare).arg(std::env::current_exe().unwrap()), SLEEP);
        let refused = refusal(&set, &launcher, claim(SLEEP, &["x"])).await;
        assert!(matches!(refused, LaunchError::Elsewhere), "{unshare:?}: {refused}");
        end(launcher.child);
    }
}

#[tokio::test]
async fn a_program_that_its_user_can_replace_is_no_interpreter() {
    let (set, _watch) = agent();
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("sleep");
    std::fs::copy(SLEEP, &own).unwrap();
    std::os::unix::fs::chown(&own, Some(UID), None).unwrap();
    let own = own.to_str().unwrap();
    let launcher = Launcher::start(SLEEP);
    let refused = refusal(&set, &launcher, claim(own, &["x"])).await;
    assert!(matches!(refused, LaunchError::Program(_)), "{refused}");
    let mixed = LaunchClaim { path: "/usr/bin/true".into(), ..claim(SLEEP, &["x"]) };
    let refused = refusal(&set, &launcher, mixed).await;
    assert!(matches!(refused, LaunchError::Program(_)), "{refused}");
    // Nothing is said of a file then, only of the program, as `unix:path` does.
    set.record_launch(&launcher.process, claim(own, &[])).await.unwrap();
    let armed = set.attest(&launcher.process).await.unwrap();
    assert_eq!(armed.values("unix", "path").collect::<Vec<_>>(), [own]);
    end(launcher.child);
}

#[tokio::test]
async fn a_file_that_can_still_change_is_refused() {
    let (set, _watch) = agent();
    let launcher = Launcher::start(SLEEP);
    let open = LaunchClaim { files: vec![tempfile::tempfile().unwrap().into()], ..claim(SLEEP, &[]) };
    let refused = refusal(&set, &launcher, open).await;
    assert!(matches!(refused, LaunchError::File(SealError::NotSealed)), "{refused}");
    assert!(launched(&set.attest(&launcher.process).await.unwrap()).is_empty());
    end(launcher.child);
}
