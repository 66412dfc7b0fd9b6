//! The ready-made configurations in `deploy/examples`, each started as it stands but for its paths and ports.

use std::path::Path;

use mayfly_harness::{files, until};

use crate::support::{Own, Sync, agent, free_port, get, place};

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The example's text with its paths, ports and users replaced; each must be there to be replaced.
fn adapted(name: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(example(name), |text, (from, to)| {
        assert!(text.contains(from), "{name} no longer says `{from}`");
        text.replace(from, to)
    })
}

fn write(path: &Path, text: &str) -> String {
    files::replace(path, text.as_bytes(), 0o644);
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_nginx_example_starts_and_serves() {
    let agent = agent(&[]);
    let (home, port) = (place(&agent, "nginx", 0), free_port());
    let (dir, listen) = (home.display().to_string(), format!("127.0.0.1:{port}"));
    let conf = adapted(
        "nginx/nginx.conf",
        &[
            ("/run/mayfly-sync/nginx", &format!("{dir}/tls")),
            ("/run/nginx.pid", &format!("{dir}/pid")),
            ("0.0.0.0:8443", &listen),
            ("/var/log/nginx", &dir),
            ("user www-data;", "user root;"),
        ],
    );
    let conf = write(&home.join("nginx.conf"), &conf);
    let sync = adapted("nginx/sync.toml", &[("/run/mayfly-sync/nginx", &format!("{dir}/tls"))]);
    let _sync = Sync::start(&agent, &sync, 0, &["nginx", "-c", &conf, "-g", "daemon off;"]);
    let own = Own::start(&agent);
    until("nginx answers", || (get(&own.source, port) == Ok(200)).then_some(()));
}

#[test]
fn the_haproxy_example_starts_and_serves() {
    let agent = agent(&[]);
    let (home, port) = (place(&agent, "haproxy", 0), free_port());
    let (dir, listen) = (home.display().to_string(), format!("127.0.0.1:{port}"));
    let cfg = adapted(
        "haproxy/haproxy.cfg",
        &[
            ("/run/mayfly-sync/haproxy", &format!("{dir}/tls")),
            ("/run/haproxy/admin.sock", &format!("{dir}/admin.sock")),
            ("0.0.0.0:8443", &listen),
        ],
    );
    let cfg = write(&home.join("haproxy.cfg"), &cfg);
    let sync = adapted("haproxy/sync.toml", &[("/run/mayfly-sync/haproxy", &format!("{dir}/tls"))]);
    let _sync = Sync::start(&agent, &sync, 0, &["haproxy", "-W", "-db", "-f", &cfg]);
    let own = Own::start(&agent);
    until("HAProxy answers", || (get(&own.source, port) == Ok(200)).then_some(()));
}

/// ztunnel itself cannot be had here: what it would read is what is checked.
#[test]
fn the_ztunnel_example_writes_the_file_that_crl_path_names() {
    let agent = agent(&[]);
    let home = place(&agent, "ztunnel", 0);
    let dir = home.join("tls");
    let sync = adapted("ztunnel/sync.toml", &[("/run/mayfly-sync/ztunnel", dir.to_str().unwrap())]);
    let sync = Sync::start(&agent, &sync, 0, &[]);
    sync.expect("wrote");
    let named = example("ztunnel/ztunnel.env");
    let path = named.lines().find_map(|line| line.strip_prefix("CRL_PATH=")).expect("CRL_PATH");
    let name = Path::new(path).file_name().unwrap();
    let text = std::fs::read_to_string(dir.join(name)).unwrap();
    assert!(text.starts_with("-----BEGIN X509 CRL-----"), "{text}");
    assert!(!dir.join("tls.key").exists(), "ztunnel needs no key of ours");
}
