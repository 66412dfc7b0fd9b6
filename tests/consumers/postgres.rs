//! PostgreSQL with client-certificate login.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Entry, Holder, Svid, files, until};

use crate::support::{Load, Sync, VICTIM, agent, free_port, pem, place, until_refused};

/// The database server's uid: PostgreSQL refuses to run as root.
fn server_uid() -> u32 {
    nix::unistd::User::from_name("postgres").unwrap().expect("the package makes the user").uid.as_raw()
}

/// The newest version's directory of programs.
fn programs() -> PathBuf {
    let mut versions: Vec<_> =
        std::fs::read_dir("/usr/lib/postgresql").expect("postgresql").map(|e| e.unwrap().path()).collect();
    versions.sort();
    versions.pop().expect("a version").join("bin")
}

fn run_as(uid: u32, command: &mut Command) {
    let output = command.uid(uid).gid(uid).current_dir("/").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn cluster(home: &Path, tls: &Path, port: u16, uid: u32) -> PathBuf {
    let data = home.join("data");
    run_as(
        uid,
        Command::new(programs().join("initdb")).args(["-A", "peer", "-U", "postgres", "-D"]).arg(&data),
    );
    let (tls, sockets) = (tls.display(), home.display());
    let conf = format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{sockets}'\nssl = on\n\
         ssl_cert_file = '{tls}/tls.crt'\nssl_key_file = '{tls}/tls.key'\nssl_ca_file = '{tls}/ca.crt'\n\
         ssl_crl_file = '{tls}/crl.pem'\nfsync = off\nlogging_collector = off\n"
    );
    std::fs::write(data.join("conf.extra"), conf).unwrap();
    let mut main = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
    main += "\ninclude 'conf.extra'\n";
    std::fs::write(data.join("postgresql.conf"), main).unwrap();
    // The certificate's common name is the entry's first DNS name; the map makes a role of it.
    std::fs::write(
        data.join("pg_hba.conf"),
        "local all all peer\nhostssl all all 127.0.0.1/32 cert map=spiffe\n",
    )
    .unwrap();
    std::fs::write(data.join("pg_ident.conf"), "spiffe app.example.org postgres\n").unwrap();
    data
}

/// A client's certificate and key as files that libpq accepts.
fn client_files(dir: &Path, svid: &Svid) {
    std::fs::create_dir_all(dir).unwrap();
    files::replace(&dir.join("tls.crt"), pem("CERTIFICATE", &svid.leaf.der).as_bytes(), 0o644);
    files::replace(&dir.join("tls.key"), pem("PRIVATE KEY", &svid.key).as_bytes(), 0o600);
    files::replace(&dir.join("ca.crt"), pem("CERTIFICATE", &svid.bundle).as_bytes(), 0o644);
}

fn target(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=verify-ca connect_timeout=10 \
         sslcert={dir}/tls.crt sslkey={dir}/tls.key sslrootcert={dir}/ca.crt"
    )
}

fn login(dir: &Path, port: u16) -> Result<(), String> {
    let psql = Command::new("psql").args(["-X", "-A", "-t", "-c", "select 42", &target(dir, port)]).output();
    let output = psql.map_err(|why| why.to_string())?;
    match (output.status.success(), output.stdout.as_slice()) {
        (true, b"42\n") => Ok(()),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn entries(uid: u32) -> [Entry; 2] {
    let named = |uid: u32, path: &str, dns: &str| {
        Entry::new(path, &[&format!("unix:uid:{uid}")]).with(&format!("dns_names = [{dns:?}]"))
    };
    [named(uid, "/db", "db.example.org"), named(VICTIM + 1, "/app", "app.example.org")]
}

#[test]
fn postgresql_rotates_without_a_failed_login_and_refuses_the_killed() {
    let uid = server_uid();
    let agent: Agent = agent(&entries(uid));
    let (home, port) = (place(&agent, "pg", uid), free_port());
    let tls = home.join("tls");
    let data = cluster(&home, &tls, port, uid);
    let config = format!("directory = \"{}\"\n[notify]\npause = \"200ms\"\n", tls.display());
    let postgres = programs().join("postgres");
    let program = [postgres.to_str().unwrap(), "-D", data.to_str().unwrap()];
    let sync = Sync::start(&agent, &config, uid, &program);
    // The client keeps its own files by another `mayfly sync`.
    let mine = agent.dir().join("app");
    std::fs::create_dir(&mine).unwrap();
    nix::unistd::chown(&mine, Some((VICTIM + 1).into()), None).unwrap();
    let client = format!("directory = \"{}/tls\"\n[notify]\npause = \"200ms\"\n", mine.display());
    let client_sync = Sync::start(&agent, &client, VICTIM + 1, &[]);
    let mine = mine.join("tls");
    until("a login", || login(&mine, port).ok());
    let written = sync.count("tls.key");
    let load = {
        let mine = mine.clone();
        // A login reads certificate and key one after the other: below one resolved set, so that both belong
        // together whenever they are read.
        Load::start(2, move || login(&std::fs::canonicalize(mine.join("current")).unwrap(), port))
    };
    let began = mayfly_harness::now();
    until("rotations", || (sync.count("tls.key") >= written + 3).then_some(()));
    let (done, failed) = load.finish();
    mayfly_harness::figure(&format!(
        "postgresql: 3 rotations under load in {:.1} s: {done} logins, {} failed",
        began.elapsed().as_secs_f64(),
        failed.len()
    ));
    assert_eq!(failed, Vec::<String>::new());
    drop(client_sync);
    let mut times = Vec::new();
    let stolen = agent.dir().join("stolen");
    for _ in 0..5 {
        let mut victim = Holder::start(&agent, VICTIM + 1);
        client_files(&stolen, &victim.x509().svids.remove(0));
        login(&stolen, port).expect("good while its process lives");
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", &target(&stolen, port)]);
        let mut session = Tool::spawn(psql);
        session.tell("select 41;");
        session.expect("41");
        let killed = mayfly_harness::now();
        victim.kill();
        times.push(until_refused(killed, || login(&stolen, port).is_err()));
        // What PostgreSQL does not do: the session goes on.
        session.tell("select 43;");
        session.expect("43");
        let said = login(&stolen, port).expect_err("refused");
        assert!(said.contains("revoked"), "{said}");
    }
    times.sort();
    mayfly_harness::figure(&format!(
        "postgresql: kill of a client -> refused, p50 {:?}, max {:?} (5 x)",
        times[2], times[4]
    ));
}
