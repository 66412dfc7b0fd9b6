//! What `mayfly sync` writes, for whom, and how it tells: everything that `docs/sync.md` says can be asked for.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use mayfly_harness::pki::claims;
use mayfly_harness::{Agent, Entry, Holder, Plan, files, until};

use crate::support::{SHORT, Sync, VICTIM, agent, place, wait_for_file};

fn directory(home: &Path) -> String {
    format!("directory = \"{}/tls\"\n", home.display())
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn the_process_that_a_pid_file_names_is_signalled_at_each_change() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let script = format!(
        "trap 'echo >> {0}/told' USR1; echo $$ > {0}/pid; while :; do sleep 0.05; done",
        home.display()
    );
    let mut program = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    wait_for_file(&home.join("pid"));
    let notify = format!(
        "[notify]\non = [\"certificate\"]\npid_file = \"{}/pid\"\nsignal = \"USR1\"\n",
        home.display()
    );
    let sync = Sync::start(&agent, &(directory(&home) + &notify), 0, &[]);
    until("the first set and two rotations", || (lines(&home.join("told")) >= 3).then_some(()));
    drop(sync);
    program.kill().unwrap();
    program.wait().unwrap();
}

/// `systemctl` is asked as a shell would be: here is another one of that name.
#[test]
fn a_unit_is_reloaded_at_each_change() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let script = format!("#!/bin/sh\necho \"$@ $MAYFLY_SYNC_DIRECTORY\" >> {}/asked\n", home.display());
    files::replace(&home.join("systemctl"), script.as_bytes(), 0o755);
    let config = directory(&home) + "[notify]\nsystemd_reload = \"nginx.service\"\n";
    let mut command = Sync::command(&agent, &config, 0);
    let path = format!("{}:{}", home.display(), std::env::var("PATH").unwrap());
    command.env("PATH", path);
    let _sync = Sync::spawn(&agent, command, 0);
    let asked = wait_for_file(&home.join("asked"));
    assert_eq!(asked.lines().next(), Some(&*format!("reload nginx.service {}/tls", home.display())));
    until("a rotation", || (lines(&home.join("asked")) >= 2).then_some(()));
}

#[test]
fn modes_and_owners_are_as_the_configuration_says() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = format!(
        "owner = \"{VICTIM}\"\ngroup = \"33\"\n{}[x509]\ncombined = \"both.pem\"\nmode = \"0444\"\n\
         key_mode = \"0640\"\n[[jwt]]\naudience = [\"db\"]\nfile = \"db.jwt\"\n[[copies]]\nof = \"tls.key\"\n\
         to = \"{}/copy.key\"\n",
        directory(&home),
        home.display()
    );
    let sync = Sync::start(&agent, &config, 0, &[]);
    // Also after a rotation.
    until("two sets", || (sync.count("tls.key") >= 2).then_some(()));
    let dir = home.join("tls");
    for (path, mode) in [
        (dir.join("tls.crt"), 0o444),
        (dir.join("ca.crt"), 0o444),
        (dir.join("crl.pem"), 0o444),
        (dir.join("tls.key"), 0o640),
        (dir.join("both.pem"), 0o640),
        (dir.join("db.jwt"), 0o640),
        (home.join("copy.key"), 0o640),
    ] {
        let found = until("no change under our eyes", || std::fs::metadata(&path).ok());
        let is = (found.mode() & 0o7777, found.uid(), found.gid());
        assert_eq!(is, (mode, VICTIM, 33), "{}", path.display());
    }
    // Its owner gets through to it, and nobody else.
    let reads = |uid: u32| {
        use std::os::unix::process::CommandExt as _;
        let path = dir.join("tls.key");
        let read = Command::new("cat").arg(path).uid(uid).gid(uid).current_dir("/").output();
        read.unwrap().status.success()
    };
    assert!(reads(VICTIM) && !reads(VICTIM + 1));
}

#[test]
fn each_audience_has_a_token_of_its_own_that_is_renewed() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = directory(&home)
        + "[[jwt]]\naudience = [\"db\", \"cache\"]\nfile = \"store.jwt\"\n\
           [[jwt]]\naudience = [\"mail\"]\nfile = \"mail.jwt\"\n[jwks]\nfile = \"jwks.json\"\n";
    let _sync = Sync::start(&agent, &config, 0, &[]);
    let token = |name: &str| wait_for_file(&home.join("tls").join(name));
    let (store, mail) = (token("store.jwt"), token("mail.jwt"));
    assert_eq!(claims(&store)["aud"], serde_json::json!(["db", "cache"]));
    assert_eq!(claims(&mail)["sub"], "spiffe://example.org/uid/0");
    let mut other = Holder::start(&agent, VICTIM);
    assert!(other.validate("cache", &store).is_ok() && other.validate("mail", &mail).is_ok());
    assert!(other.validate("mail", &store).is_err(), "for others it is worth nothing");
    let keys: serde_json::Value = serde_json::from_str(&token("jwks.json")).unwrap();
    assert!(!keys["keys"].as_array().unwrap().is_empty(), "{keys}");
    // A lifetime of ten seconds: the next comes while this one is good.
    until("the next tokens", || (token("mail.jwt") != mail && token("store.jwt") != store).then_some(()));
    assert!(other.validate("mail", &token("mail.jwt")).is_ok());
}

fn show(agent: &Agent, domain: &str, format: &str) -> String {
    let (code, out, said) = agent.mayfly(&["bundle", "show", domain, "--format", format]);
    assert_eq!(code, Some(0), "{said}");
    out
}

#[test]
fn a_federated_trust_domain_has_files_of_its_own_while_it_is_trusted() {
    let foreign = Plan { trust_domain: "other.test".to_owned(), ..Plan::with_entries(&[]) }.start();
    let entry = Entry::for_uid(0).with("federates_with = [\"other.test\"]");
    let agent = Plan::with_entries(&[entry]).settings(SHORT).start();
    let home = place(&agent, "s", 0);
    let config = directory(&home)
        + "[x509]\nfederated = \"ca-%.crt\"\n[jwks]\nfile = \"jwks.json\"\nfederated = \"jwks-%.json\"\n\
           [notify]\npause = \"100ms\"\n";
    let sync = Sync::start(&agent, &config, 0, &[]);
    sync.expect("wrote");
    let path = |name: &str| home.join("tls").join(name);
    assert!(!path("ca-other.test.crt").exists() && !path("jwks-other.test.json").exists());
    let file = agent.dir().join("other.json");
    std::fs::write(&file, show(&foreign, "other.test", "spiffe")).unwrap();
    let set = agent.mayfly(&["bundle", "set", "other.test", file.to_str().unwrap()]);
    assert_eq!(set.0, Some(0), "{}", set.2);
    let theirs = wait_for_file(&path("ca-other.test.crt"));
    assert_eq!(theirs.trim(), show(&foreign, "other.test", "pem").trim());
    let keys = |text: &str| {
        let set: serde_json::Value = serde_json::from_str(text).unwrap();
        let ids = set["keys"].as_array().unwrap().iter().map(|key| key["kid"].to_string());
        ids.collect::<BTreeSet<_>>()
    };
    let found = keys(&wait_for_file(&path("jwks-other.test.json")));
    assert_eq!(found, keys(&show(&foreign, "other.test", "jwks")));
    let own = std::fs::read_to_string(path("ca.crt")).unwrap();
    assert!(!own.contains(theirs.trim()), "never pooled unless it is asked for");
    assert_eq!(agent.mayfly(&["bundle", "delete", "other.test"]).0, Some(0));
    until("they go", || {
        (!path("ca-other.test.crt").exists() && !path("jwks-other.test.json").exists()).then_some(())
    });
    assert!(path("ca.crt").exists());
}

#[test]
fn a_program_that_may_not_run_without_an_identity_is_stopped() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let config = directory(&home) + "[child]\non_end = \"stop\"\n";
    let script = format!("trap 'exit 3' TERM; echo > {}/up; while :; do sleep 0.05; done", home.display());
    let mut sync = Sync::start(&agent, &config, 0, &["sh", "-c", &script]);
    wait_for_file(&home.join("up"));
    agent.write_entries(&[Entry::for_uid(VICTIM)]);
    sync.expect("stopping the program");
    assert_eq!(sync.wait().code(), Some(3));
}

/// The guide's way to a keystore: a script that is run with each set, by the example in `deploy/examples/java`.
#[test]
fn a_pkcs12_keystore_is_made_by_the_command_of_the_example() {
    let agent = agent(&[]);
    let home = place(&agent, "s", 0);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/java");
    let script = example.join("keystore.sh");
    let text = std::fs::read_to_string(example.join("sync.toml")).unwrap();
    let password = home.join("password");
    files::replace(&password, b"changeit\n", 0o600);
    let config = [
        ("/run/mayfly-sync/java/keystores", home.join("out")),
        ("/run/mayfly-sync/java", home.join("tls")),
        ("/etc/mayfly/keystore.sh", script),
        ("/etc/mayfly/keystore.password", password.clone()),
    ]
    .into_iter()
    .fold(text, |text, (from, to)| {
        assert!(text.contains(from), "sync.toml no longer says `{from}`");
        text.replace(from, to.to_str().unwrap())
    });
    let sync = Sync::start(&agent, &config, 0, &[]);
    let store = home.join("out/keystore.p12");
    wait_for_file_of_bytes(&store);
    let read = |store: &str, more: &[&str]| {
        let store = home.join("out").join(store);
        let mut openssl = Command::new("openssl");
        openssl.args(["pkcs12", "-in"]).arg(store).arg("-passin").arg(format!("file:{}", password.display()));
        let output = openssl.args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let key = |text: &str| {
        let begin = text.find("-----BEGIN PRIVATE KEY-----").unwrap();
        text.get(begin..).unwrap().trim().to_owned()
    };
    // Which set it is of is decided when it is read twice the same.
    until("key and certificate are those of the set", || {
        let ours = std::fs::read_to_string(home.join("tls/tls.key")).ok()?;
        (key(&read("keystore.p12", &["-nodes", "-nocerts"])) == ours.trim()).then_some(())
    });
    // With Java's own tool there is a truststore as well; without it, one that Java takes cannot be made by any OpenSSL.
    if Command::new("sh").args(["-c", "command -v keytool"]).output().unwrap().status.success() {
        let trusted = read("truststore.p12", &["-nokeys"]);
        let root = std::fs::read_to_string(home.join("tls/ca.crt")).unwrap();
        assert!(trusted.contains(root.trim()), "{trusted}");
    } else if !home.join("out/truststore.p12").exists() {
        sync.expect("no truststore.p12");
    }
    let found = std::fs::metadata(&store).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o600);
    let first = std::fs::read(&store).unwrap();
    until("a rotation makes another", || (std::fs::read(&store).ok()? != first).then_some(()));
    assert_eq!(sync.count("trying again"), 0);
}

fn wait_for_file_of_bytes(path: &Path) -> Vec<u8> {
    until(&format!("{}", path.display()), || std::fs::read(path).ok())
}
