//! nginx and HAProxy.

use std::path::Path;

use mayfly_harness::{Agent, Holder, until};

use crate::support::{Https, Load, Own, Sync, VICTIM, agent, free_port, get, place, thief, until_refused};

const ROTATIONS: usize = 3;

fn nginx_conf(home: &Path, tls: &Path, port: u16) -> String {
    let (home, tls) = (home.display(), tls.display());
    format!(
        "user root;\ndaemon off;\npid {home}/nginx.pid;\nerror_log {home}/error.log;\nworker_processes 2;\n\
         events {{}}\nhttp {{\naccess_log off;\nserver {{\nlisten 127.0.0.1:{port} ssl;\n\
         ssl_protocols TLSv1.2 TLSv1.3;\nssl_session_cache off;\nssl_session_tickets off;\n\
         ssl_certificate {tls}/tls.crt;\nssl_certificate_key {tls}/tls.key;\n\
         ssl_client_certificate {tls}/ca.crt;\nssl_crl {tls}/crl.pem;\nssl_verify_client on;\n\
         location / {{ return 200 ok; }}\n}}\n}}\n"
    )
}

fn haproxy_cfg(home: &Path, tls: &Path, port: u16) -> String {
    let (home, tls) = (home.display(), tls.display());
    format!(
        "global\n  stats socket {home}/admin.sock level admin expose-fd listeners\n  tune.ssl.cachesize 0\n\
         defaults\n  mode http\n  timeout client 10s\n  timeout connect 5s\n  timeout server 10s\n\
         frontend in\n  bind 127.0.0.1:{port} ssl crt {tls}/tls.pem ca-file {tls}/ca.crt \
         crl-file {tls}/crl.pem verify required no-tls-tickets\n  http-request return status 200\n"
    )
}

/// Rotations under load without a failed request, then a killed client that is refused.
fn scenario(name: &str, agent: &Agent, sync: &Sync, port: u16) {
    let own = Own::start(agent);
    until(&format!("{name} answers"), || (get(&own.source, port) == Ok(200)).then_some(()));
    let written = sync.count("tls.key");
    let source = own.source.clone();
    let load = Load::start(2, move || match get(&source, port) {
        Ok(200) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let began = mayfly_harness::now();
    until("rotations", || (sync.count("tls.key") >= written + ROTATIONS).then_some(()));
    let (done, failed) = load.finish();
    mayfly_harness::figure(&format!(
        "{name}: {ROTATIONS} rotations under load in {:.1} s: {done} requests, {} failed",
        began.elapsed().as_secs_f64(),
        failed.len()
    ));
    assert_eq!(failed, Vec::<String>::new());
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut victim = Holder::start(agent, VICTIM);
        let stolen = thief(&victim.x509().svids.remove(0));
        assert_eq!(get(&stolen, port), Ok(200), "good while its process lives");
        let mut open = Https::open(&stolen, port).unwrap();
        assert_eq!(open.get(), Ok(200));
        let killed = mayfly_harness::now();
        victim.kill();
        times.push(until_refused(killed, || get(&stolen, port) != Ok(200)));
        let closed = until("the reload ends what was open", || open.get().err());
        mayfly_harness::figure(&format!("{name}: a connection from before the kill: {closed}"));
        // What comes back is a refusal, not an accident: others are still served.
        assert_eq!(get(&own.source, port), Ok(200));
        mayfly_harness::figure(&format!("{name}: says to the revoked {:?}", get(&stolen, port)));
    }
    times.sort();
    mayfly_harness::figure(&format!(
        "{name}: kill of a client -> refused, p50 {:?}, max {:?} (5 x)",
        times[2], times[4]
    ));
}

#[test]
fn nginx_rotates_without_a_failed_request_and_refuses_the_killed() {
    let agent = agent(&[]);
    let (home, port) = (place(&agent, "nginx", 0), free_port());
    let conf = home.join("nginx.conf");
    std::fs::write(&conf, nginx_conf(&home, &home.join("tls"), port)).unwrap();
    let config = format!("directory = \"{}/tls\"\n[notify]\npause = \"200ms\"\n", home.display());
    let sync = Sync::start(&agent, &config, 0, &["nginx", "-c", conf.to_str().unwrap()]);
    scenario("nginx", &agent, &sync, port);
}

#[test]
fn haproxy_rotates_without_a_failed_request_and_refuses_the_killed() {
    let agent = agent(&[]);
    let (home, port) = (place(&agent, "haproxy", 0), free_port());
    let cfg = home.join("haproxy.cfg");
    std::fs::write(&cfg, haproxy_cfg(&home, &home.join("tls"), port)).unwrap();
    let config = format!(
        "directory = \"{}/tls\"\n[x509]\ncombined = \"tls.pem\"\n[notify]\npause = \"500ms\"\n\
         [child]\nsignal = \"USR2\"\n",
        home.display()
    );
    let program = ["haproxy", "-W", "-db", "-f", cfg.to_str().unwrap()];
    let sync = Sync::start(&agent, &config, 0, &program);
    scenario("haproxy", &agent, &sync, port);
}
