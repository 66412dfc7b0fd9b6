//! Threats F: the daemon's own memory, files and descriptors.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Entry, Holder, Plan, require_root};

use crate::support::{WIDE, entries_for};

const OWN: u32 = 20_401;

/// An agent that is no more than a user, beside workloads of the same user.
#[test]
fn f01_same_uid_takes_nothing_from_the_agent() {
    require_root();
    let mut plan = Plan::with_entries(&[Entry::for_uid(OWN)]).settings(WIDE);
    plan.uid = Some(OWN);
    let agent = plan.start();
    let lines = Tool::run(&agent, OWN, "steal", &[&agent.pid().to_string()]).finish();
    assert_eq!(lines.last().map(String::as_str), Some("end"), "{lines:?}");
    let taken: Vec<&String> = lines.iter().filter(|line| line.ends_with(" taken")).collect();
    assert!(taken.is_empty() && lines.len() > 6, "{lines:?}");
    assert!(agent.log().contains("same uid"), "the start warns: {}", agent.log());
}

/// The same tool takes everything from a process that does not defend itself.
#[test]
fn f01_the_attack_itself_works() {
    require_root();
    let agent = Plan::with_entries(&entries_for(&[OWN])).settings(WIDE).start();
    let holder = Holder::start(&agent, OWN);
    let lines = Tool::run(&agent, OWN, "steal", &[&holder.pid().to_string()]).finish();
    assert!(lines.iter().filter(|line| line.ends_with(" taken")).count() >= 5, "{lines:?}");
}

/// Files of the data directory that hold keys.
fn key_files(agent: &Agent) -> Vec<PathBuf> {
    let dir = agent.data_dir().join("authority");
    let keys: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(keys.len() >= 2, "{keys:?}");
    keys
}

fn ledger_file(agent: &Agent) -> PathBuf {
    agent.data_dir().join("ledger.redb")
}

/// Makes the file or directory untrustworthy in one of four ways.
fn spoil(path: &Path, how: &str) {
    match how {
        "writable by others" => {
            let mode = std::fs::metadata(path).unwrap().permissions().mode() | 0o022;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        "foreign owner" => nix::unistd::chown(path, Some(OWN.into()), None).unwrap(),
        "symbolic link" => {
            let moved = path.with_extension("moved");
            std::fs::rename(path, &moved).unwrap();
            symlink(&moved, path).unwrap();
        }
        "hard link" => std::fs::hard_link(path, path.with_extension("second")).unwrap(),
        other => panic!("{other}"),
    }
}

#[test]
fn f06_untrustworthy_files_stop_the_start() {
    let template = || {
        let mut agent = Plan::with_entries(&entries_for(&[OWN])).settings(WIDE).start();
        Holder::start(&agent, OWN).x509();
        agent.stop();
        agent
    };
    let probe = template();
    let mut targets: Vec<(PathBuf, bool)> = key_files(&probe).into_iter().map(|key| (key, false)).collect();
    targets.push((ledger_file(&probe), false));
    targets.push((probe.data_dir(), true));
    drop(probe);
    let mut cases = 0;
    for (path, is_dir) in targets {
        // A key's file is named after the kind and the key; the next agent's has another key.
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = name.split_once('-').map_or_else(|| name.to_owned(), |(kind, _)| format!("{kind}-"));
        for how in ["writable by others", "foreign owner", "symbolic link", "hard link"] {
            if is_dir && how == "hard link" {
                continue; // there is no such thing
            }
            let agent = template();
            let here = if is_dir { agent.data_dir() } else { find(&agent.data_dir(), &kind) };
            spoil(&here, how);
            let ended = agent.refused();
            assert_eq!(ended.code, Some(5), "{} {how}: {}", here.display(), ended.log);
            assert!(ended.log.contains(here.to_str().unwrap()), "names the path: {}", ended.log);
            cases += 1;
        }
    }
    assert!(cases >= 12, "{cases}");
}

/// The file whose name begins so.
fn find(dir: &Path, name: &str) -> PathBuf {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|own| own.to_str().unwrap().starts_with(name)) {
            return path;
        }
        if path.is_dir() {
            let below = find(&path, name);
            if below.exists() {
                return below;
            }
        }
    }
    dir.join("not-found")
}

/// Keys never appear in what the agent prints or records.
#[test]
fn f04_no_key_in_log_or_audit() {
    let mut plan =
        Plan::with_entries(&entries_for(&[OWN])).settings(&format!("{WIDE}[log]\nlevel = \"trace\"\n"));
    plan.environment.push(("RUST_BACKTRACE".to_owned(), "1".to_owned()));
    let agent = plan.start();
    let mut holder = Holder::start(&agent, OWN);
    let svid = holder.x509().svids.remove(0);
    let token = holder.jwt("aud").unwrap().remove(0);
    agent.audited(&["credential.issue", &token.jti()]);
    let mut said = agent.log().into_bytes();
    said.extend(std::fs::read(agent.audit_path()).unwrap());
    // The last 32 bytes of the PKCS#8 key are of the point; the private scalar comes before it.
    let secret = &svid.key[36..68];
    let signature = token.text.rsplit('.').next().unwrap().as_bytes();
    for needle in [secret, mayfly_harness::pki::hex(secret).as_bytes(), signature] {
        assert!(!said.windows(needle.len()).any(|window| window == needle), "a secret was printed");
    }
}
