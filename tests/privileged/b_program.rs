//! Threats B: is it still, and was it ever, the program we think it is?

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Entry, Holder, Plan, files, require_root};

use crate::support::{
    Pause, SHORT, WIDE, Watcher, entries_and_watcher, hash_of, installed, run, socket, svids,
    uid_selector as uid, utf8, variant,
};

const USER: u32 = 20_101;
const OTHER: u32 = 20_102;

/// An agent that knows one program of `USER` by its hash; the good program, and another with the same code
/// but a different hash.
struct Scene {
    agent: Agent,
    good: std::path::PathBuf,
    evil: std::path::PathBuf,
}

impl Scene {
    fn new(failpoints: Option<&str>) -> Self {
        let mut scene = Self::prepare(&[]);
        if let Some(spec) = failpoints {
            let plan = scene.agent.plan().clone().failpoints(spec);
            *scene.agent.plan() = plan;
        }
        scene.agent.launch();
        scene
    }

    fn prepare(more: &[Entry]) -> Self {
        require_root();
        let agent = Plan::default().settings(WIDE).prepare();
        let good = installed(&agent, "program");
        let evil = agent.dir().join("evil");
        variant(&good, &evil);
        let mut entries = entries_and_watcher(more);
        entries.push(Entry::new("/good", &[&uid(USER), &hash_of(&good)]));
        agent.write_entries(&entries);
        Self { agent, good, evil }
    }

    fn run(&self, args: &[&str]) -> Tool {
        Tool::run_program(&self.good, USER, args)
    }
}

fn exec_into_another(mode: &str) {
    let scene = Scene::new(None);
    let mut watcher = Watcher::start(&scene.agent);
    let mut tool = scene.run(&[mode, &socket(&scene.agent), utf8(&scene.evil), "held"]);
    let serial = tool.expect("svid");
    tool.expect("ready");
    tool.tell("go");
    tool.expect("running-next");
    let crl = watcher.sees("the serial of the program that is no more", &[&serial]);
    assert_eq!(crl.serials.len(), 1);
    scene.agent.audited(&["exec_mismatch"]);
    // The stream over the kept connection ends; nothing comes over it.
    let end = tool.expect_within("after-status", std::time::Duration::from_secs(5));
    assert!(end.as_deref() == Some("7") || tool.expect("after-eof").is_empty(), "{end:?}");
    assert!(tool.expect_within("after-svid", std::time::Duration::ZERO).is_none());
    assert!(scene.agent.admin().live_leases_of(tool.pid()).is_empty());
    // The reason is the program's, not the connection's or the process's end.
    scene.agent.audited(&["credential.revoke", &serial, "exec_mismatch"]);
}

/// Where the kernel gives no word of exec, the next push looks again: here one that another process's end causes.
#[test]
fn b01_exec_unseen_by_the_watch_ends_at_the_next_push() {
    let mut scene = Scene::prepare(&[Entry::for_uid(OTHER)]);
    // The process connector speaks only to the first network namespace.
    let plan = scene.agent.plan().clone().wrapped(&["unshare", "--net", "--"]);
    *scene.agent.plan() = plan;
    scene.agent.launch();
    assert!(scene.agent.admin().status().exec_watch.starts_with("re-read only"));
    assert!(scene.agent.log().contains("no early word of exec"), "{}", scene.agent.log());
    let mut watcher = Watcher::start(&scene.agent);
    // Several rounds: the old SVID once went out when the second look ended just before it was sent.
    for round in 0..10 {
        let mut other = Holder::start(&scene.agent, OTHER);
        let pushed = other.x509().svids[0].serial().to_owned();
        let mut tool = scene.run(&["exec", &socket(&scene.agent), utf8(&scene.evil), "held"]);
        let serial = tool.expect("svid");
        tool.expect("ready");
        tool.tell("go");
        tool.expect("running-next");
        other.kill();
        watcher.sees("the other's serial, which makes the agent push", &[&pushed]);
        watcher.sees("the serial of the program that is no more", &[&serial]);
        scene.agent.audited(&["agent.cut", "exec_mismatch", &tool.pid().to_string()]);
        tool.expect("after-status");
        assert!(tool.expect_within("after-svid", std::time::Duration::ZERO).is_none(), "round {round}");
    }
}

#[test]
fn b01_exec_into_another_program_revokes() {
    exec_into_another("exec");
}

#[test]
fn b01_exec_by_a_second_thread_revokes() {
    exec_into_another("thread-exec");
}

/// No stream open, so that only the exec event can tell: the holder has a token and nothing pending.
#[test]
fn b01_exec_of_a_client_with_only_a_token_revokes_it() {
    let scene = Scene::new(None);
    let program = mayfly_harness::holder::holder_program(&scene.agent);
    let mut entries = entries_and_watcher(&[]);
    entries.push(Entry::new("/holder", &[&uid(USER), &hash_of(&program)]));
    scene.agent.write_entries(&entries);
    let mut holder = Holder::start(&scene.agent, USER);
    let token = mayfly_harness::until("the new entry", || holder.jwt("aud").ok()).remove(0);
    let mut watcher = Watcher::start(&scene.agent);
    assert!(watcher.holder().validate("aud", &token.text).is_ok());
    holder.exec(Path::new("/bin/sleep"), &["60"]);
    mayfly_harness::until("the token is refused", || watcher.holder().validate("aud", &token.text).err());
    scene.agent.audited(&["credential.revoke", &token.jti(), "exec_mismatch"]);
}

/// A notice that comes while an earlier one is being looked into is about something that look may have missed.
#[test]
fn b01_notice_during_a_second_look_is_not_lost() {
    let mut scene = Scene::prepare(&[]);
    let (pause, spec) = Pause::at(scene.agent.dir(), "look.before_settle");
    let plan = scene.agent.plan().clone().failpoints(&spec);
    *scene.agent.plan() = plan;
    let program = mayfly_harness::holder::holder_program(&scene.agent);
    let mut entries = entries_and_watcher(&[]);
    for user in [USER, OTHER] {
        entries.push(Entry::new("/holder", &[&uid(user), &hash_of(&program)]));
    }
    scene.agent.write_entries(&entries);
    scene.agent.launch();
    let mut watcher = Watcher::start(&scene.agent);
    let [mut holder, mut marker] = [USER, OTHER].map(|user| Holder::start(&scene.agent, user));
    let [token, mark] = [&mut holder, &mut marker].map(|h| h.jwt("aud").unwrap().remove(0));
    // The same program again: the look finds nothing, and is held before it says so.
    holder.exec(&program, &[&socket(&scene.agent)]);
    holder.expect("started");
    pause.hit();
    holder.exec(Path::new("/bin/sleep"), &["60"]);
    let exe = format!("/proc/{}/exe", holder.pid());
    mayfly_harness::until("the other program runs", || {
        std::fs::read_link(&exe).is_ok_and(|exe| exe.ends_with("sleep")).then_some(())
    });
    // Notices come in order: when this later one is on the agent's table, so is the one before.
    marker.exec(Path::new("/bin/sleep"), &["60"]);
    mayfly_harness::until("the marker's token is refused", || {
        watcher.holder().validate("aud", &mark.text).err()
    });
    assert!(
        watcher.holder().validate("aud", &token.text).is_ok(),
        "the look under way knows nothing of it yet"
    );
    pause.release();
    scene.agent.audited(&["credential.revoke", &token.jti(), "exec_mismatch"]);
    assert_eq!(watcher.holder().validate("aud", &token.text).unwrap_err().code, 3);
}

/// The program changes after the rows are durable and before the credentials leave.
fn nothing_is_released(mut scene: Scene, rows: usize) {
    let (pause, spec) = Pause::at(scene.agent.dir(), "issue.before_release");
    let plan = scene.agent.plan().clone().failpoints(&spec);
    *scene.agent.plan() = plan;
    scene.agent.launch();
    let mut tool = scene.run(&["exec-early", &socket(&scene.agent), utf8(&scene.evil), "held"]);
    tool.expect("ready");
    pause.hit();
    tool.tell("go");
    tool.expect("running-next");
    pause.release();
    let mut watcher = Watcher::start(&scene.agent);
    watcher.sees_count("the rows of the credentials that never left", rows);
    assert!(tool.expect_within("after-svid", std::time::Duration::from_secs(1)).is_none());
}

#[test]
fn b02_exec_between_commit_and_release_releases_nothing() {
    nothing_is_released(Scene::prepare(&[]), 1);
}

/// Several identities are minted and written down together, and looked at together before they leave.
#[test]
fn b02_exec_between_commit_and_release_releases_none_of_many() {
    let scene = Scene::prepare(&[]);
    let good = |n: usize| Entry::new(&format!("/good/{n}"), &[&uid(USER), &hash_of(&scene.good)]);
    scene.agent.write_entries(&entries_and_watcher(&(0..20).map(good).collect::<Vec<_>>()));
    nothing_is_released(scene, 20);
}

#[test]
fn b03_exec_of_the_same_program_keeps_its_identity() {
    let scene = Scene::new(None);
    let mut tool = scene.run(&["exec", &socket(&scene.agent), utf8(&scene.good), "ask"]);
    tool.expect("svid");
    tool.expect("ready");
    tool.tell("go");
    tool.expect("running-next");
    tool.expect("after-svid");
    // It is on record all the same: the same file may do something else with other arguments.
    let explained = scene.agent.admin().explain(tool.pid()).unwrap();
    assert!(explained.posture.contains(&"reexec".to_owned()), "{:?}", explained.posture);
}

/// The kernel's buffer for notices of exec overflows, twice: everybody is looked at again, and the agent says that it
/// cannot rely on the watch.
#[test]
fn b16_exec_watch_that_is_lost_twice_makes_the_agent_not_ready() {
    let mut scene = Scene::prepare(&[Entry::for_uid(OTHER)]);
    let plan = scene.agent.plan().clone().failpoints("exec.small_buffer=fail");
    *scene.agent.plan() = plan;
    scene.agent.launch();
    let mut holder = Holder::start(&scene.agent, OTHER);
    let serial = holder.x509().svids[0].serial().to_owned();
    assert!(scene.agent.admin().status().ready);
    let losses =
        |agent: &Agent| agent.audit().iter().filter(|line| line["event"] == "agent.exec_watch_lost").count();
    for _ in 0..2 {
        let before = losses(&scene.agent);
        scene.agent.freeze();
        for _ in 0..600 {
            run("/bin/true", &[]);
        }
        scene.agent.thaw();
        mayfly_harness::until("the loss is on record", || (losses(&scene.agent) > before).then_some(()));
    }
    let status = mayfly_harness::until("it is not ready", || {
        let status = scene.agent.admin().status();
        (!status.ready).then_some(status)
    });
    assert!(
        status.concerns.iter().any(|why| why.starts_with("exec watch: lost twice")),
        "{:?}",
        status.concerns
    );
    let (code, out, err) = scene.agent.mayfly(&["healthcheck"]);
    assert_ne!(code, Some(0), "{out}{err}");
    // Nobody lost anything by it.
    assert_eq!(scene.agent.admin().live_leases_of(holder.pid())[0].id, serial);
}

/// Any user can make `/proc/self/exe` be any file, inside a user namespace.
#[test]
fn b04_forged_executable_in_a_user_namespace_earns_nothing() {
    let scene = Scene::new(None);
    let sock = socket(&scene.agent);
    let args = ["forge", &sock, utf8(&scene.good), "inside"];
    let lines = Tool::run_program(&scene.evil, USER, &args).finish();
    assert_eq!(lines[0], "forged ok", "{lines:?}");
    assert!(svids(&lines).is_empty() && lines.contains(&"status 7".to_owned()), "{lines:?}");
}

/// With a helper in the namespace the caller itself stays outside. The uid still tells it apart.
#[test]
fn b05_forged_executable_does_not_cross_uids() {
    let scene = Scene::new(None);
    let sock = socket(&scene.agent);
    let args = ["forge", &sock, utf8(&scene.good), "helper"];
    let lines = Tool::run_program(&scene.evil, OTHER, &args).finish();
    assert_eq!(lines[0], "forged ok", "{lines:?}");
    assert!(svids(&lines).is_empty() && lines.contains(&"status 7".to_owned()), "{lines:?}");
}

#[test]
fn b05_hash_alone_does_not_load() {
    let scene = Scene::new(None);
    let file = scene.agent.dir().join("hash-only.toml");
    let entry = format!(
        "[[entries]]\nspiffe_id = \"spiffe://example.org/x\"\nselectors = [{:?}]\n",
        hash_of(&scene.good)
    );
    std::fs::write(&file, entry).unwrap();
    let (code, out, err) = scene.agent.mayfly(&["entry", "check", utf8(&file)]);
    assert_eq!(code, Some(10), "{out}{err}");
    assert!((out + &err).contains("advisory"));
}

/// The executable of a watched process changes although it never called exec.
#[test]
fn b05_executable_forged_after_issue_revokes() {
    let scene = Scene::new(None);
    let mut watcher = Watcher::start(&scene.agent);
    let mut tool = scene.run(&["forge-later", &socket(&scene.agent), utf8(&scene.evil)]);
    let serial = tool.expect("svid");
    tool.tell("go");
    assert_eq!(tool.expect("forged"), "ok");
    watcher.sees("the serial", &[&serial]);
    assert!(tool.expect_within("svid", std::time::Duration::ZERO).is_none());
    scene.agent.audited(&["agent.cut", "exe_forged", &tool.pid().to_string()]);
}

#[test]
fn b06_traced_process_is_refused_unless_the_entry_says_otherwise() {
    let traced = Entry::new("/debuggable", &[&uid(OTHER)]).with("allow_traced = true");
    let mut scene = Scene::prepare(&[Entry::for_uid(USER), traced]);
    scene.agent.launch();
    let mut holder = Holder::start(&scene.agent, USER);
    let mut tracer = Tool::run(&scene.agent, USER, "tracer", &["trace", &holder.pid().to_string()]);
    tracer.expect("tracing");
    assert_eq!(holder.x509_refused().code, 7);
    scene.agent.audited(&["traced"]);
    let mut open = Holder::start(&scene.agent, OTHER);
    let mut tracer = Tool::run(&scene.agent, OTHER, "tracer", &["trace", &open.pid().to_string()]);
    tracer.expect("tracing");
    open.x509();
}

/// The tracer comes when the process already has its identity: nothing new leaves, and the old is taken back.
#[test]
fn b06_tracer_that_comes_later_ends_the_identity_at_the_next_issue() {
    require_root();
    let traced = Entry::new("/debuggable", &[&uid(OTHER)]).with("allow_traced = true");
    let entries = entries_and_watcher(&[Entry::for_uid(USER), traced]);
    let agent = Plan::with_entries(&entries).settings(SHORT).start();
    let mut watcher = Watcher::start(&agent);
    let [mut strict, mut open] = [USER, OTHER].map(|user| Holder::start(&agent, user));
    let serial = strict.x509().svids[0].serial().to_owned();
    open.x509();
    let trace = |pid: u32, user| Tool::run(&agent, user, "tracer", &["trace", &pid.to_string()]);
    let mut tracers = [trace(strict.pid(), USER), trace(open.pid(), OTHER)];
    for tracer in &mut tracers {
        tracer.expect("tracing");
    }
    // The renewal, after half of the ten seconds.
    let end = loop {
        match strict.next_x509() {
            // Another's revocation: the new CRL, with what it has.
            Ok(same) => assert_eq!(same.svids[0].serial(), serial, "a renewed SVID left"),
            Err(end) => break end,
        }
    };
    assert_eq!(end.code, 7, "{end:?}");
    watcher.sees("the serial of before", &[&serial]);
    agent.audited(&["agent.cut", "traced", &strict.pid().to_string()]);
    open.next_x509().expect("this entry allows a tracer");
}

#[test]
fn b07_anonymous_executable_has_no_path_and_no_hash() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let program = installed(&agent, "program");
    // A directory in which any user may unlink.
    let open = agent.dir().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = open.join("copy");
    files::install_as(&program, &copy);
    let by_path = |path: &str| [uid(USER), format!("unix:path:{path}")];
    let mut entries = entries_and_watcher(&[]);
    for path in ["/usr/bin/passwd", "/memfd:/usr/bin/passwd", "/memfd:/usr/bin/passwd (deleted)"] {
        let [user, path] = by_path(path);
        entries.push(Entry::new("/path", &[&user, &path]));
    }
    let [user, path] = by_path(utf8(&copy));
    entries.push(Entry::new("/path", &[&user, &path]));
    entries.push(Entry::new("/hash", &[&uid(USER), &hash_of(&program)]));
    entries.push(Entry::new("/deleted", &[&uid(OTHER), "process:exe_deleted:true"]));
    let entries: Vec<Entry> =
        entries.into_iter().enumerate().map(|(n, entry)| entry.with(&format!("id = \"e{n}\""))).collect();
    agent.write_entries(&entries);
    let mut agent = agent;
    agent.launch();
    let sock = socket(&agent);
    for args in [["memfd", &sock, "/usr/bin/passwd"], ["unlink", &sock, utf8(&copy)]] {
        let lines =
            Tool::run_program(if args[0] == "memfd" { &program } else { &copy }, USER, &args).finish();
        assert!(svids(&lines).is_empty() && lines.contains(&"status 7".to_owned()), "{args:?}: {lines:?}");
    }
    files::install_as(&program, &copy);
    let mut tool = Tool::run_program(&copy, OTHER, &["unlink", &sock, utf8(&copy)]);
    tool.expect("svid");
}

/// In a mount namespace of its own a program can have any path.
#[test]
fn b08_path_counts_only_in_the_hosts_mount_namespace() {
    require_root();
    let agent = Plan::default().settings(WIDE).prepare();
    let evil = installed(&agent, "program");
    let target = agent.dir().join("trusted");
    variant(&evil, &target);
    let path = format!("unix:path:{}", utf8(&target));
    agent.write_entries(&entries_and_watcher(&[
        Entry::new("/trusted", &[&uid(USER), &path]),
        Entry::new("/other", &[&uid(OTHER), &path]),
    ]));
    let mut agent = agent;
    agent.launch();
    let sock = socket(&agent);
    // Unprivileged, in a user namespace; and by root for a user, without one.
    let args = ["bind", &sock, utf8(&evil), utf8(&target)];
    let unprivileged = Tool::run_program(&evil, USER, &args).finish();
    let user = OTHER.to_string();
    let args = ["bind", &sock, utf8(&evil), utf8(&target), &user];
    let by_root = Tool::run_program(&evil, 0, &args).finish();
    for lines in [unprivileged, by_root] {
        assert!(svids(&lines).is_empty() && lines.contains(&"status 7".to_owned()), "{lines:?}");
    }
    // The real one is served.
    Tool::run_program(&target, USER, &["call", &sock]).expect("svid");
}
