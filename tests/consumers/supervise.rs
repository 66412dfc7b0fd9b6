//! `mayfly sync` as a supervisor, with shell scripts as programs; and the end of an identity.

use std::process::Command;

use mayfly_harness::{Entry, files, until};
use nix::sys::signal::Signal;

use crate::support::{Sync, VICTIM, agent, place, wait_for_file};

#[test]
fn the_programs_exit_code_is_ours_and_its_end_takes_keys_and_lease_away() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = format!("directory = \"{}/tls\"\n", home.display());
    let script = format!(
        "cp {0}/tls/tls.key {0}/seen; while [ ! -e {0}/go ]; do sleep 0.05; done; exit 42",
        home.display()
    );
    let mut sync = Sync::start(&agent, &config, 0, &["sh", "-c", &script]);
    wait_for_file(&home.join("seen"));
    assert_eq!(agent.admin().live_leases_of(sync.pid()).len(), 1);
    std::fs::write(home.join("go"), "").unwrap();
    assert_eq!(sync.wait().code(), Some(42));
    assert!(!home.join("tls/tls.key").exists(), "the key goes");
    assert!(home.join("tls/tls.crt").exists(), "what is public may stay");
    until("the lease ends", || agent.admin().live_leases_of(sync.pid()).is_empty().then_some(()));
}

#[test]
fn a_program_that_is_not_there_ends_us_as_a_shell_would() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = format!("directory = \"{}/tls\"\n", home.display());
    assert_eq!(Sync::start(&agent, &config, 0, &["/nonexistent"]).wait().code(), Some(127));
    assert_eq!(Sync::start(&agent, &config, 0, &[agent.config().to_str().unwrap()]).wait().code(), Some(126));
}

#[test]
fn signals_are_passed_on_and_a_signals_death_is_128_and_its_number() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = format!("directory = \"{}/tls\"\n", home.display());
    let script =
        format!("trap 'echo > {0}/usr1' USR1; echo > {0}/up; while :; do sleep 0.05; done", home.display());
    let mut sync = Sync::start(&agent, &config, 0, &["sh", "-c", &script]);
    wait_for_file(&home.join("up"));
    sync.signal(Signal::SIGUSR1);
    wait_for_file(&home.join("usr1"));
    sync.signal(Signal::SIGTERM);
    assert_eq!(sync.wait().code(), Some(128 + 15));
}

/// Whoever kills `sync` revokes the program's certificate: the program must not go on without knowing.
#[test]
fn the_program_is_told_when_we_are_killed() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = format!("directory = \"{}/tls\"\n", home.display());
    let script = format!(
        "trap 'echo > {0}/told; exit' TERM; echo > {0}/up; while :; do sleep 0.05; done",
        home.display()
    );
    let mut sync = Sync::start(&agent, &config, 0, &["sh", "-c", &script]);
    wait_for_file(&home.join("up"));
    sync.signal(Signal::SIGKILL);
    sync.wait();
    wait_for_file(&home.join("told"));
}

#[test]
fn a_restarted_program_sees_each_certificate_once() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = format!(
        "directory = \"{}/tls\"\n[notify]\non = [\"certificate\"]\n[child]\non_change = \"restart\"\n",
        home.display()
    );
    let script = format!("md5sum < {0}/tls/tls.crt >> {0}/log; exec sleep 300", home.display());
    let _sync = Sync::start(&agent, &config, 0, &["sh", "-c", &script]);
    let seen = until("three starts", || {
        let text = std::fs::read_to_string(home.join("log")).unwrap_or_default();
        (text.lines().count() >= 3).then_some(text)
    });
    let mut sums: Vec<&str> = seen.lines().collect();
    sums.sort_unstable();
    sums.dedup();
    assert_eq!(sums.len(), seen.lines().count());
}

/// The entry goes while `sync` runs: keys and tokens go, loudly; it comes back: they come back.
#[test]
fn the_end_of_the_identity_leaves_nothing_secret_behind() {
    let entry = Entry::for_uid(VICTIM + 2);
    let agent = agent(std::slice::from_ref(&entry));
    let home = place(&agent, "s", VICTIM + 2);
    let config = format!(
        "directory = \"{}/tls\"\n[x509]\ncombined = \"tls.pem\"\n[[jwt]]\naudience = [\"db\"]\nfile = \"db.jwt\"\n\
         [jwks]\nfile = \"jwks.json\"\n[notify]\npause = \"100ms\"\n",
        home.display()
    );
    let sync = Sync::start(&agent, &config, VICTIM + 2, &[]);
    sync.expect("wrote");
    let there = |name: &str| home.join("tls").join(name).exists();
    let secrets = ["tls.key", "tls.pem", "db.jwt"];
    let public = ["tls.crt", "ca.crt", "crl.pem", "jwks.json"];
    assert!(secrets.iter().chain(&public).all(|name| there(name)));
    agent.write_entries(&[Entry::for_uid(0)]);
    sync.expect("IDENTITY ENDED");
    until("the secrets go", || secrets.iter().all(|name| !there(name)).then_some(()));
    assert!(public.iter().all(|name| there(name)));
    until("no old set with a key in it is left", || {
        let names = std::fs::read_dir(home.join("tls")).unwrap().map(|entry| entry.unwrap().file_name());
        (names.filter(|name| name.to_string_lossy().starts_with("..v-")).count() == 1).then_some(())
    });
    agent.write_entries(&[Entry::for_uid(0), entry]);
    until("they come back", || secrets.iter().all(|name| there(name)).then_some(()));
}

/// For an init container: one set, then the end, and the files stay.
#[test]
fn once_writes_and_ends() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let text = format!(
        "directory = \"{}/tls\"\n[[copies]]\nof = \"ca.crt\"\nto = \"{0}/root.pem\"\n",
        home.display()
    );
    let file = agent.dir().join("once.toml");
    files::replace(&file, text.as_bytes(), 0o644);
    let command = |more: &[&str]| {
        let mut command = Command::new(files::built("mayfly"));
        command.args(["sync", "--config"]).arg(&file).arg("--once").args(more);
        command
    };
    let mut sync = Sync::spawn(&agent, command(&["--wait", "20s"]), 0);
    sync.expect("revoked now that this command ends");
    assert_eq!(sync.wait().code(), Some(0));
    let (copy, original) = (home.join("root.pem"), home.join("tls/ca.crt"));
    assert_eq!(std::fs::read(copy).unwrap(), std::fs::read(original).unwrap());
    agent.write_entries(&[Entry::for_uid(VICTIM)]);
    until("the entry is gone", || {
        let mut sync = Sync::spawn(&agent, command(&["--wait", "300ms"]), 0);
        (sync.wait().code() == Some(7)).then_some(())
    });
}

/// A failing notification is repeated until somebody was told.
#[test]
fn a_notification_that_fails_is_repeated() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let script =
        format!("echo >> {0}/tries; [ $(wc -l < {0}/tries) -ge 3 ] && echo > {0}/told", home.display());
    let config = format!(
        "directory = \"{}/tls\"\n[notify]\npause = \"100ms\"\ncommand = [\"sh\", \"-c\", {script:?}]\n",
        home.display()
    );
    let sync = Sync::start(&agent, &config, 0, &[]);
    sync.expect("trying again");
    wait_for_file(&home.join("told"));
}
