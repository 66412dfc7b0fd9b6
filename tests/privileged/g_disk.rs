//! Threats G: disks that fill, freeze, lie or are shared.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use mayfly_harness::{Agent, Crl, Holder, Plan, full, until};

use crate::support::{Mount, SHORT, WIDE, Watcher, entries_for, run, utf8};

const USER: u32 = 20_601;
const OTHER: u32 = 20_602;

fn plan() -> Plan {
    Plan::with_entries(&entries_for(&[USER, OTHER])).settings(WIDE)
}

/// Fills a file system to the last byte.
fn fill(dir: &std::path::Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    let mut block = vec![0u8; 1 << 16];
    while !block.is_empty() {
        if file.write_all(&block).is_err() {
            block.truncate(block.len() / 2);
        }
    }
    path
}

/// Until the holder is refused: some issues may still fit.
fn until_refused(agent: &Agent) -> mayfly_harness::Refusal {
    until("issue stops", || {
        let mut holder = Holder::start(agent, OTHER);
        holder.open_x509();
        holder.next_x509().err()
    })
}

#[test]
fn g02_full_disk_stops_issue_and_never_revocation() {
    let mut agent = plan().prepare();
    let _mount = Mount::new(&["-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs"], &agent.data_dir());
    agent.launch();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    let filler = fill(&agent.data_dir());
    let refusal = until_refused(&agent);
    assert_eq!(refusal.code, 14, "{refusal:?}");
    holder.kill();
    watcher.sees("a revocation on a full disk", &[&serial]);
    assert!(!agent.admin().status().concerns.is_empty(), "it says that something is wrong");
    std::fs::remove_file(filler).unwrap();
    until("issue goes on once there is room", || {
        let mut fresh = Holder::start(&agent, USER);
        fresh.open_x509();
        fresh.next_x509().ok()
    });
    // What was revoked meanwhile is durable now.
    agent.crash_and_restart();
    let watcher = Watcher::start(&agent);
    assert!(watcher.crl.serials.contains(&serial));
}

#[test]
fn g03_read_only_data_directory_refuses_to_start() {
    let mut agent = plan().start();
    agent.stop();
    let dir = agent.data_dir();
    run("mount", &["--bind", utf8(&dir), utf8(&dir)]);
    let _mount = Mount::adopt(&dir);
    run("mount", &["-o", "remount,bind,ro", utf8(&dir)]);
    let ended = agent.refused();
    assert_eq!(ended.code, Some(5), "{}", ended.log);
    assert!(ended.log.contains(utf8(&dir)), "{}", ended.log);
}

#[test]
fn g03_data_directory_that_turns_read_only_stops_issue_not_revocation() {
    let mut agent = plan().prepare();
    let mount = Mount::new(&["-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"], &agent.data_dir());
    agent.launch();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    // Files that are open for writing keep a file system writable; a full one is the nearest thing to
    // losing it that works on a busy mount.
    let filler = fill(&agent.data_dir());
    assert_eq!(until_refused(&agent).code, 14);
    holder.kill();
    watcher.sees("a revocation without a disk", &[&serial]);
    std::fs::remove_file(filler).unwrap();
    drop(mount);
}

/// The file is the second witness of what is revoked: it must not stay behind until somebody else dies.
#[test]
fn g03_crl_that_could_not_be_kept_is_kept_soon() {
    let agent = plan().start();
    let mut watcher = Watcher::start(&agent);
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    let crls = agent.data_dir().join("crl");
    let closed = Mount::new(&["-t", "tmpfs", "-o", "ro", "tmpfs"], &crls);
    holder.kill();
    watcher.sees("a revocation that cannot be kept", &[&serial]);
    until("it says so", || {
        agent.admin().status().concerns.iter().any(|c| c.contains("CRL file")).then_some(())
    });
    drop(closed);
    until("the file lists the serial", || {
        let file = std::fs::read_dir(&crls).unwrap().filter_map(Result::ok).map(|entry| entry.path());
        let file = file.into_iter().find(|path| path.extension().is_some_and(|e| e == "crl"))?;
        Crl::parse(&std::fs::read(file).unwrap()).serials.contains(&serial).then_some(())
    });
    until("ready again", || agent.admin().status().ready.then_some(()));
}

/// Ways to damage a file, numbered.
fn damage(bytes: &mut Vec<u8>, seed: u64) {
    // splitmix64: the same damage for the same number, for ever.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let at = usize::try_from(next()).unwrap() % bytes.len();
    match seed % 4 {
        0 => bytes[at] ^= 1 << (next() % 8),
        1 => bytes.truncate(at),
        2 => {
            let page = at / 4096 * 4096;
            let end = (page + 4096).min(bytes.len());
            bytes[page..end].fill(0);
        }
        _ => {
            let end = (at + 64).min(bytes.len());
            for byte in &mut bytes[at..end] {
                *byte = u8::try_from(next() % 256).unwrap();
            }
        }
    }
}

/// Either the damage is of no consequence and every dead serial is still listed, or the agent refuses to
/// start and says what to do; never a crash, never an agent that has forgotten.
#[test]
fn g04_damaged_ledger_never_forgets_silently() {
    let mut agent = plan().start();
    let mut dead = Vec::new();
    for _ in 0..4 {
        let mut holder = Holder::start(&agent, USER);
        dead.push(holder.x509().svids[0].serial().to_owned());
        holder.kill();
    }
    let serials: Vec<&str> = dead.iter().map(String::as_str).collect();
    Watcher::start(&agent).sees("the dead", &serials);
    agent.stop();
    let ledger = agent.data_dir().join("ledger.redb");
    let saved = agent.dir().join("saved");
    run("cp", &["-a", utf8(&agent.data_dir()), utf8(&saved)]);
    let good = std::fs::read(&ledger).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for seed in 0..if full() { 400 } else { 24 } {
        run("rm", &["-rf", utf8(&agent.data_dir())]);
        run("cp", &["-a", utf8(&saved), utf8(&agent.data_dir())]);
        let mut bytes = good.clone();
        damage(&mut bytes, seed);
        let unchanged = bytes == good;
        std::fs::write(&ledger, &bytes).unwrap();
        match agent.try_launch() {
            Ok(()) => {
                harmless += 1;
                let watcher = Watcher::start(&agent);
                for serial in &dead {
                    assert!(watcher.crl.serials.contains(serial), "seed {seed}: forgotten");
                }
                agent.stop();
            }
            Err(ended) => {
                refused += 1;
                assert!(!unchanged);
                assert_eq!(ended.code, Some(5), "seed {seed}: {}", ended.log);
                assert!(!ended.log.contains("panicked"), "seed {seed}: {}", ended.log);
                assert!(ended.log.contains("ledger"), "seed {seed}: {}", ended.log);
            }
        }
    }
    assert!(refused > 0, "{refused} refused, {harmless} harmless: the damage did nothing");
}

/// An older ledger put back: what it has forgotten, the last CRL remembers.
#[test]
fn g05_rolled_back_ledger_does_not_revive_the_revoked() {
    let mut agent = plan().start();
    let mut holder = Holder::start(&agent, USER);
    let serial = holder.x509().svids[0].serial().to_owned();
    agent.stop();
    let ledger = agent.data_dir().join("ledger.redb");
    let old = std::fs::read(&ledger).unwrap();
    agent.launch();
    let mut watcher = Watcher::start(&agent);
    holder.kill();
    watcher.sees("the serial", &[&serial]);
    agent.stop();
    std::fs::write(&ledger, old).unwrap();
    match agent.try_launch() {
        Ok(()) => assert!(Watcher::start(&agent).crl.serials.contains(&serial), "revived"),
        Err(ended) => {
            assert_eq!(ended.code, Some(5), "{}", ended.log);
            assert!(ended.log.contains("ledger"), "{}", ended.log);
        }
    }
}

#[test]
fn g06_second_agent_on_the_same_data_directory_exits_6() {
    let first = plan().start();
    let mut second = plan().prepare();
    let config = std::fs::read_to_string(second.config()).unwrap();
    let theirs = format!("data_dir = {:?}", second.data_dir());
    let ours = format!("data_dir = {:?}", first.data_dir());
    assert!(config.contains(&theirs));
    std::fs::write(second.config(), config.replace(&theirs, &ours)).unwrap();
    let ended = second.try_launch().expect_err("two agents on one data directory");
    assert_eq!(ended.code, Some(6), "{}", ended.log);
    Holder::start(&first, USER).x509();
}

/// A reader never sees half a file, neither of the agent's CRL nor of what `fetch --write` leaves.
#[test]
fn g14_files_are_whole_at_every_moment() {
    let mut agent = plan().settings(SHORT).start();
    let crls = agent.data_dir().join("crl");
    let out = agent.dir().join("out");
    agent.write_entries(&entries_for(&[0, USER, OTHER]));
    std::fs::create_dir(&out).unwrap();
    until("root's identity", || {
        (agent.mayfly(&["fetch", "x509", "--write", utf8(&out)]).0 == Some(0)).then_some(())
    });
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = {
        let (stop, out) = (std::sync::Arc::clone(&stop), out.clone());
        std::thread::spawn(move || {
            let mut reads = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for entry in std::fs::read_dir(&crls).unwrap() {
                    let path = entry.unwrap().path();
                    if path.extension().is_some_and(|e| e == "crl") {
                        Crl::parse(&std::fs::read(path).unwrap());
                    }
                }
                for (name, end) in [
                    ("svid.0.pem", "-----END CERTIFICATE-----\n"),
                    ("svid.0.key", "-----END PRIVATE KEY-----\n"),
                    ("bundle.0.pem", "-----END CERTIFICATE-----\n"),
                    ("crl.0.pem", "-----END X509 CRL-----\n"),
                ] {
                    let text = std::fs::read_to_string(out.join(name)).unwrap();
                    assert!(text.starts_with("-----BEGIN ") && text.ends_with(end), "{name}: {text}");
                }
                reads += 1;
            }
            reads
        })
    };
    for _ in 0..if full() { 100 } else { 15 } {
        let mut holder = Holder::start(&agent, USER);
        holder.x509();
        holder.kill();
        let (code, _, err) = agent.mayfly(&["fetch", "x509", "--write", utf8(&out)]);
        assert_eq!(code, Some(0), "{err}");
        std::thread::sleep(Duration::from_millis(20));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(reader.join().unwrap() > 50);
    agent.stop();
}
