//! Threats B, continued: is the hash of a program that of what runs?

use std::io::Write as _;
use std::path::Path;

use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Entry, Holder, Plan, files, require_root};

use crate::support::{
    Mount, WIDE, entries_and_watcher, hash_of, installed, run, socket, uid_selector as uid, utf8, variant,
};

const USER: u32 = 20_101;
const OTHER: u32 = 20_102;

/// Runs the program at `path` to its first answer: the serial, or the status.
fn answer(agent: &Agent, path: &Path, user: u32) -> Result<String, String> {
    let mut tool = Tool::run_program(path, user, &["call", &socket(agent)]);
    let first = mayfly_harness::until("an answer", || {
        let short = std::time::Duration::from_millis(10);
        let served = tool.expect_within("svid", short).map(Ok);
        served.or_else(|| tool.expect_within("status", short).map(Err))
    });
    tool.kill();
    first
}

/// The place of a byte in the padding at the end of a file, where a flipped bit breaks nothing.
fn harmless_offset(path: &Path) -> String {
    (std::fs::metadata(path).unwrap().len() - 100).to_string()
}

/// On overlayfs a mapping made before exec still writes: the file changes while it runs and no timestamp moves.
#[test]
fn b09_patched_overlay_program_is_hashed_afresh() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let program = installed(&agent, "program");
    let base = agent.dir().join("overlay");
    for dir in ["lower", "upper", "work"] {
        std::fs::create_dir_all(base.join(dir)).unwrap();
    }
    let at = base.join("merged");
    let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", utf8(&base));
    let _mount = Mount::new(&["-t", "overlay", "overlay", "-o", &options], &at);
    let target = at.join("bin");
    variant(&program, &target);
    patched_program_is_refused(agent, &target, "keep");
}

/// On tmpfs a store through a mapping moves no timestamp at all.
#[test]
fn b10_patched_tmpfs_program_is_hashed_afresh() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let program = installed(&agent, "program");
    let at = agent.dir().join("tmpfs");
    let _mount = Mount::new(&["-t", "tmpfs", "-o", "size=16m", "tmpfs"], &at);
    let target = at.join("bin");
    variant(&program, &target);
    patched_program_is_refused(agent, &target, "once");
}

fn patched_program_is_refused(agent: Agent, target: &Path, how: &str) {
    agent.write_entries(&entries_and_watcher(&[Entry::new("/good", &[&uid(USER), &hash_of(target)])]));
    let mut agent = agent;
    agent.launch();
    let patch = installed(&agent, "patch");
    let offset = harmless_offset(target);
    if how == "keep" {
        let mut patcher = Tool::run_program(&patch, 0, &[utf8(target), &offset, "keep"]);
        patcher.expect("ready");
        answer(&agent, target, USER).expect("the genuine program is served");
        answer(&agent, target, USER).expect("and served again");
        patcher.tell("flip");
        patcher.expect("flipped");
    } else {
        answer(&agent, target, USER).expect("the genuine program is served");
        answer(&agent, target, USER).expect("and served again");
        Tool::run_program(&patch, 0, &[utf8(target), &offset, "once"]).expect("flipped");
    }
    assert_eq!(answer(&agent, target, USER), Err("7".to_owned()), "the old hash was reused");
}

/// XFS swaps the contents of two files of one owner under unmoved timestamps.
#[test]
fn b10_swapped_xfs_program_is_hashed_afresh() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let image = agent.dir().join("xfs.img");
    let mut file = std::fs::File::create(&image).unwrap();
    file.set_len(320 << 20).unwrap();
    file.flush().unwrap();
    run("mkfs.xfs", &["-q", utf8(&image)]);
    let at = agent.dir().join("xfs");
    let _mount = Mount::new(&["-o", "loop", utf8(&image)], &at);
    let program = installed(&agent, "program");
    let (target, donor) = (at.join("bin"), at.join("donor"));
    // Made elsewhere and copied, so that both are one extent each: XFS swaps only files of like layout, and a
    // copy within it would share its blocks with the original.
    let genuine = agent.dir().join("genuine");
    variant(&program, &genuine);
    files::install_as(&genuine, &target);
    let mut forged = std::fs::read(&genuine).unwrap();
    *forged.iter_mut().nth_back(99).unwrap() ^= 1;
    let forgery = agent.dir().join("forgery");
    std::fs::write(&forgery, forged).unwrap();
    files::install_as(&forgery, &donor);
    agent.write_entries(&entries_and_watcher(&[Entry::new("/good", &[&uid(USER), &hash_of(&target)])]));
    let mut agent = agent;
    agent.launch();
    // Older than the youngest age that is ever remembered.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    answer(&agent, &target, USER).expect("the genuine program is served");
    answer(&agent, &target, USER).expect("and served again");
    let swap = installed(&agent, "swapext");
    Tool::run_program(&swap, 0, &[utf8(&target), utf8(&donor)]).expect("swapped");
    assert_eq!(answer(&agent, &target, USER), Err("7".to_owned()), "the old hash was reused");
}

/// A file system whose server does not answer costs its own programs their hash, and nobody anything else.
#[test]
fn b13_stalled_file_system_harms_nobody() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let program = installed(&agent, "program");
    let at = agent.dir().join("fuse");
    std::fs::create_dir(&at).unwrap();
    agent.write_entries(&entries_and_watcher(&[
        Entry::new("/plain", &[&uid(USER)]),
        Entry::new("/hashed", &[&uid(USER), &hash_of(&program)]),
        Entry::new("/other", &[&uid(OTHER)]),
    ]));
    let mut agent = agent;
    agent.launch();
    let _mount = Mount::adopt(&at);
    let mut server = Tool::run(&agent, 0, "fusefs", &[utf8(&at), utf8(&program)]);
    server.expect("mounted");
    let sock = socket(&agent);
    // The processes are there before the server goes quiet; they ask afterwards.
    let mut clients: Vec<Tool> =
        (0..6).map(|_| Tool::run_program(&at.join("bin"), USER, &["late", &sock])).collect();
    for client in &mut clients {
        client.expect("ready");
    }
    server.tell("stall");
    server.expect("stalled");
    for client in &mut clients {
        client.tell("go");
    }
    Tool::run_program(&program, OTHER, &["call", &sock]).expect("svid");
    for client in &clients {
        let leases = mayfly_harness::until("the identity that needs no hash", || {
            let leases = agent.admin().live_leases_of(client.pid());
            (!leases.is_empty()).then_some(leases)
        });
        assert!(leases.iter().all(|l| l.spiffe_id.ends_with("/plain")), "{leases:?}");
        agent.audited(&["credential.issue", "exe_fs_not_trusted", &client.pid().to_string()]);
    }
    // It can end, and start again, while the server is still silent.
    assert!(agent.stop().code().is_some());
    agent.launch();
    Holder::start(&agent, OTHER).x509();
    server.tell("resume");
    server.expect("resumed");
}

/// A huge sparse program is not read at all; everything but its hash stands.
#[test]
fn b14_program_over_the_size_cap_has_no_hash() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let program = installed(&agent, "program");
    let huge = agent.dir().join("huge");
    files::install_as(&program, &huge);
    std::fs::File::options().append(true).open(&huge).unwrap().set_len(40 << 30).unwrap();
    agent.write_entries(&entries_and_watcher(&[
        Entry::new("/plain", &[&uid(USER)]),
        Entry::new("/path", &[&uid(USER), &format!("unix:path:{}", utf8(&huge))]),
    ]));
    let mut agent = agent;
    agent.launch();
    let mut tool = Tool::run_program(&huge, USER, &["call", &socket(&agent)]);
    tool.expect("svid");
    let explained = agent.admin().explain(tool.pid()).unwrap();
    let texts: Vec<&str> = explained.selectors.iter().map(|s| s.text.as_str()).collect();
    assert!(!texts.iter().any(|t| t.starts_with("unix:sha256:")), "{texts:?}");
    assert_eq!(agent.admin().live_leases_of(tool.pid()).len(), 2, "path and uid stand");
}
