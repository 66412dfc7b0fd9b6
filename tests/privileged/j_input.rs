//! Threats J: files and names written by others.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use mayfly_harness::tools::Tool;
use mayfly_harness::{Entry, Holder, Plan, files, full, require_root, until};

use crate::support::{WIDE, entries_and_watcher, entries_for, installed, run, socket, utf8};

const USER: u32 = 20_701;
const OTHER: u32 = 20_702;

fn plan() -> Plan {
    Plan::with_entries(&entries_for(&[USER])).settings(WIDE)
}

const ENTRY: &str =
    "[[entries]]\nspiffe_id = \"spiffe://example.org/new\"\nselectors = [\"unix:uid:20702\"]\n";

/// Puts something in place of `path` that nobody should read from.
fn plant(path: &Path, how: &str) {
    match how {
        "world-writable" => {
            std::fs::write(path, ENTRY).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
        }
        "group-writable" => {
            std::fs::write(path, ENTRY).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o664)).unwrap();
        }
        "foreign owner" => {
            std::fs::write(path, ENTRY).unwrap();
            nix::unistd::chown(path, Some(OTHER.into()), None).unwrap();
        }
        "symbolic link" => {
            let real = path.with_extension("real");
            std::fs::write(&real, ENTRY).unwrap();
            symlink(real, path).unwrap();
        }
        "hard link" => {
            let other = path.with_extension("other");
            std::fs::write(&other, ENTRY).unwrap();
            std::fs::hard_link(other, path).unwrap();
        }
        "fifo" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap(),
        "device" => run("mknod", &[utf8(path), "c", "1", "5"]),
        other => panic!("{other}"),
    }
}

const UNTRUSTED: &[&str] =
    &["world-writable", "group-writable", "foreign owner", "symbolic link", "hard link", "fifo", "device"];

#[test]
fn j01_untrusted_entry_file_stops_the_start() {
    require_root();
    for how in UNTRUSTED {
        let agent = plan().prepare();
        let path = agent.entries_dir().join("planted.toml");
        plant(&path, how);
        let ended = agent.refused();
        assert_eq!(ended.code, Some(10), "{how}: {}", ended.log);
        assert!(ended.log.contains("planted.toml"), "{how}: {}", ended.log);
    }
}

#[test]
fn j01_writable_parent_directory_stops_the_start() {
    require_root();
    let agent = plan().prepare();
    std::fs::set_permissions(agent.entries_dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let ended = agent.refused();
    assert_eq!(ended.code, Some(10), "{}", ended.log);
    let agent = plan().prepare();
    std::fs::set_permissions(agent.config(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let ended = agent.refused();
    assert_eq!(ended.code, Some(10), "{}", ended.log);
}

#[test]
fn j01_untrusted_file_on_reload_keeps_the_last_good_set() {
    require_root();
    for how in UNTRUSTED {
        let agent = plan().start();
        let version = agent.admin().entries().version;
        plant(&agent.entries_dir().join("planted.toml"), how);
        agent.signal(nix::sys::signal::Signal::SIGHUP);
        agent.audited(&["planted.toml"]);
        assert_eq!(agent.admin().entries().version, version, "{how}");
        assert!(!agent.admin().status().last_reload_error.is_empty(), "{how}");
        assert_eq!(Holder::start(&agent, OTHER).x509_refused().code, 7, "{how}");
        Holder::start(&agent, USER).x509();
    }
}

#[test]
fn j02_broken_entry_file_keeps_the_last_good_set() {
    let duplicate = format!(
        "{}{}",
        ENTRY.replace("[[entries]]", "[[entries]]\nid = \"x\""),
        ENTRY.replace("[[entries]]", "[[entries]]\nid = \"x\"")
    );
    let cases: [(&str, String); 6] = [
        ("cut off", ENTRY.chars().take(60).collect()),
        ("empty", String::new()),
        ("unknown key", format!("{ENTRY}selector = 1\n")),
        ("duplicate ids", duplicate),
        ("not UTF-8 text", "[[entries]]\nspiffe_id = \"\\u0000\"\n".to_owned()),
        ("100 MiB", "#".repeat(100 << 20)),
    ];
    for (what, text) in cases {
        let agent = plan().start();
        let version = agent.admin().entries().version;
        agent.write_entry_file("broken.toml", &text);
        agent.signal(nix::sys::signal::Signal::SIGHUP);
        until(&format!("{what}: the reload is refused"), || {
            (!agent.admin().status().last_reload_error.is_empty()).then_some(())
        });
        assert!(agent.admin().status().last_reload_error.contains("broken.toml"), "{what}");
        assert_eq!(agent.admin().entries().version, version, "{what}");
        Holder::start(&agent, USER).x509();
        // Mended, it loads.
        agent.write_entry_file("broken.toml", ENTRY);
        agent.signal(nix::sys::signal::Signal::SIGHUP);
        until(&format!("{what}: mended"), || {
            let mut holder = Holder::start(&agent, OTHER);
            holder.open_x509();
            holder.next_x509().ok()
        });
        let ended = {
            let mut agent = plan().prepare();
            agent.write_entry_file("broken.toml", &text);
            agent.try_launch().expect_err("started on broken entries")
        };
        assert_eq!(ended.code, Some(10), "{what}: {}", ended.log);
    }
}

/// Names nobody should see raw: newline, escape, right-to-left override, very long.
const HOSTILE: &str = "a\n{\"event\":\"x\"}\u{1b}[2J\u{202e}b";

#[test]
fn j05_hostile_names_stay_on_their_line() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let program = installed(&agent, "program");
    let dir = agent.dir().join("x".repeat(200));
    std::fs::create_dir(&dir).unwrap();
    let hostile = dir.join(HOSTILE);
    files::install_as(&program, &hostile);
    let hash = format!("unix:sha256:{}", files::sha256(&program));
    let uid = format!("unix:uid:{USER}");
    agent.write_entries(&entries_and_watcher(&[Entry::new("/named", &[&uid, &hash])]));
    let mut agent = agent;
    agent.launch();
    // A stranger under the same name is refused: that line, too, must be one line.
    let lines = Tool::run_program(&hostile, OTHER, &["call", &socket(&agent)]).finish();
    assert!(lines.contains(&"status 7".to_owned()), "{lines:?}");
    // Asks for fifteen seconds, no longer.
    let mut tool = Tool::run_program(&hostile, USER, &["call", &socket(&agent)]);
    let serial = tool.expect("svid");
    for arguments in [
        ["explain", "--pid", &tool.pid().to_string()].as_slice(),
        ["lease", "list"].as_slice(),
        ["status"].as_slice(),
    ] {
        let (code, out, err) = agent.mayfly(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
        for text in [&out, &err] {
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{arguments:?} lets control characters through");
        }
    }
    tool.kill();
    agent.audited(&["credential.revoke", &serial]);
    for line in agent.audit() {
        let text = line.to_string();
        assert!(!text.contains(['\u{1b}', '\u{202e}']) && text.len() < 64 << 10, "{text}");
        assert_ne!(line["event"], "x");
    }
    let (code, out, err) = agent.mayfly(&["audit", "verify", utf8(&agent.audit_path())]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(!agent.log().contains(['\u{1b}', '\u{202e}']), "the log lets control characters through");
}

/// While entries change back and forth every answer is one whole set.
#[test]
fn j08_no_answer_mixes_two_sets() {
    let set = |name: &str| {
        let uid = format!("unix:uid:{USER}");
        let entries =
            [Entry::new(&format!("/{name}/1"), &[&uid]), Entry::new(&format!("/{name}/2"), &[&uid])];
        entries_and_watcher(&entries)
    };
    let agent = Plan::with_entries(&set("a")).settings(WIDE).start();
    for round in 0..if full() { 60 } else { 10 } {
        agent.write_entries(&set(if round % 2 == 0 { "b" } else { "a" }));
        for _ in 0..10 {
            let mut holder = Holder::start(&agent, USER);
            let update = holder.x509();
            let paths: Vec<&str> = update.svids.iter().map(|s| s.spiffe_id.as_str()).collect();
            assert_eq!(paths.len(), 2, "{paths:?}");
            let side = |path: &str| path.contains("/a/");
            assert_eq!(side(paths[0]), side(paths[1]), "{paths:?}");
        }
    }
}
