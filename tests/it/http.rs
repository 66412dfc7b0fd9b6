//! What is served over HTTP, seen by curl and OpenSSL.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mayfly_harness::{Agent, Plan, until};
use serde_json::Value;

use crate::support::{client, own_entry, own_uid};

/// Where the agent says it listens.
fn address(agent: &Agent, name: &str) -> String {
    let status = agent.admin().status();
    let listener = status.listeners.iter().find(|listener| listener.name == name);
    listener.unwrap_or_else(|| panic!("no {name}: {:?}", status.listeners)).address.clone()
}

fn curl(arguments: &[&str]) -> Output {
    let fixed = ["--silent", "--show-error", "--max-time", "20", "--include"];
    Command::new("curl").args(fixed).args(arguments).output().expect("curl")
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || holds().then_some(()));
}

/// Status, headers in lower case, body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn read(output: &Output) -> Self {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let end = output.stdout.windows(4).position(|four| four == b"\r\n\r\n").expect("a header");
        let header = String::from_utf8_lossy(&output.stdout[..end]).into_owned();
        let mut lines = header.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let split = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_owned()));
        let headers = lines.filter_map(split).collect();
        Self { status, headers, body: output.stdout[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error}: {} {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }
}

/// Over the Unix socket.
pub(crate) fn local(agent: &Agent, path: &str, more: &[&str]) -> Answer {
    let socket = agent.dir().join("http/http.sock");
    let url = format!("http://localhost{path}");
    let mut arguments = vec!["--unix-socket", socket.to_str().unwrap()];
    arguments.extend(more);
    arguments.push(&url);
    Answer::read(&curl(&arguments))
}

fn pem_of(bundle: &Value) -> String {
    let x509 = bundle["keys"].as_array().unwrap().iter().filter(|jwk| jwk["use"] == "x509-svid");
    let block = |jwk: &Value| {
        let base64 = jwk["x5c"][0].as_str().unwrap().as_bytes();
        let lines: Vec<_> =
            base64.chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    x509.map(block).collect()
}

/// `openssl s_client`, with what it printed.
fn s_client(address: &str, more: &[&str]) -> (bool, String) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", address]).args(more).stdin(Stdio::null());
    let output = command.output().expect("openssl");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn spiffe_endpoint() -> Agent {
    let settings =
        "[x509]\nttl = \"10s\"\n[bundle_endpoint]\nlisten = \"127.0.0.1:0\"\nprofile = \"https_spiffe\"\n";
    Plan::with_entries(&[own_entry("/web")]).settings(settings).start()
}

#[test]
fn fed01_fed19_the_bundle_is_fetched_by_get_and_by_nothing_else() {
    let agent = spiffe_endpoint();
    let url = format!("https://{}/", address(&agent, "bundle_endpoint"));
    eventually("the endpoint has its SVID", || curl(&["-k", &url]).status.success());
    let answer = Answer::read(&curl(&["-k", &url]));
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    assert_eq!(answer.header("cache-control"), "no-cache");
    let bundle = answer.json();
    assert_eq!(bundle["spiffe_refresh_hint"], 300);
    assert!(bundle["spiffe_sequence"].as_u64().unwrap() > 1_700_000_000_000);
    let uses: Vec<_> = bundle["keys"].as_array().unwrap().iter().map(|jwk| jwk["use"].clone()).collect();
    assert_eq!(uses, ["x509-svid", "jwt-svid"]);
    let tag = format!("If-None-Match: {}", answer.header("etag"));
    let again = Answer::read(&curl(&["-k", "-H", &tag, &url]));
    assert_eq!((again.status, again.body.len()), (304, 0));
    let head = Answer::read(&curl(&["-k", "--head", &url]));
    assert_eq!((head.status, head.body.len()), (200, 0));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let refused = Answer::read(&curl(&["-k", "-X", method, &url]));
        assert_eq!(refused.status, 405, "{method}");
    }
    // The same document for everybody on this machine.
    assert_eq!(local(&agent, "/bundle", &[]).body, answer.body);
    // Nothing on this listener changes or tells anything else.
    for path in ["introspect", "revoke", "admin", "../etc/passwd"] {
        let absent = Answer::read(&curl(&["-k", "--path-as-is", "-d", "token=x", &format!("{url}{path}")]));
        assert!([404, 405].contains(&absent.status), "{path}: {}", absent.status);
    }
}

#[test]
fn fed11_fed18_fed28_the_handshake_is_by_an_svid_and_asks_for_none() {
    let agent = spiffe_endpoint();
    let address = address(&agent, "bundle_endpoint");
    let anchors = agent.dir().join("anchors.pem");
    std::fs::write(&anchors, pem_of(&local(&agent, "/bundle", &[]).json())).unwrap();
    let anchors = anchors.to_str().unwrap();
    let verified = ["-CAfile", anchors, "-verify_return_error", "-purpose", "sslserver", "-brief"];
    eventually("the endpoint has its SVID", || s_client(&address, &verified).0);
    for version in ["-tls1_2", "-tls1_3"] {
        let (verified, text) = s_client(&address, &["-CAfile", anchors, "-verify_return_error", version]);
        assert!(verified && text.contains("Verify return code: 0 (ok)"), "{text}");
        assert!(text.contains("No client certificate CA names sent"), "{text}");
        assert!(!text.contains("Requested Signature Algorithms"), "a certificate was asked for: {text}");
    }
    for refused in [["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], ["-tls1_2", "-cipher", "AES128-GCM-SHA256"]] {
        assert!(!s_client(&address, &refused).0, "{refused:?}");
    }
    for refused in ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-RSA-AES256-SHA384"] {
        assert!(!s_client(&address, &["-tls1_2", "-cipher", refused]).0, "{refused}");
    }
    // The SVID is replaced at half of its ten seconds; nobody is turned away meanwhile.
    let serial = || serial(&address);
    let first = serial();
    eventually("another SVID is shown", || serial() != first);
}

/// Of the certificate shown, with its SPIFFE ID checked.
fn serial(address: &str) -> String {
    let script = format!(
        "openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial -ext subjectAltName"
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("openssl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("URI:spiffe://example.org/mayfly"), "{text}");
    text.lines().find(|line| line.starts_with("serial=")).expect("a serial number").to_owned()
}

/// A self-signed certificate for `localhost`, and its key.
fn web_certificate(dir: &Path, name: &str, san: &str) -> (PathBuf, PathBuf) {
    let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let script = format!(
        "umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
         -addext subjectAltName={san} -out {} -keyout {} && chmod 644 {}",
        certificate.display(),
        key.display(),
        certificate.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (certificate, key)
}

fn web_endpoint(certificate: &Path, key: &Path, names: &str) -> String {
    format!(
        "[x509]\nttl = \"15m\"\n[bundle_endpoint]\nlisten = \"127.0.0.1:0\"\nprofile = \"https_web\"\n\
         certificate = {certificate:?}\nkey = {key:?}\nnames = [{names}]\n"
    )
}

#[test]
fn fed17_https_web_follows_its_files_and_keeps_the_last_that_worked() {
    let mut agent = Plan::with_entries(&[]).prepare();
    let files = agent.dir().join("tls");
    std::fs::create_dir(&files).unwrap();
    let (certificate, key) = web_certificate(&files, "one", "DNS:localhost");
    agent.plan().settings = web_endpoint(&certificate, &key, "\"localhost\"");
    agent.write_config();
    agent.launch();
    let port = address(&agent, "bundle_endpoint").rsplit_once(':').unwrap().1.to_owned();
    let url = format!("https://localhost:{port}/");
    let fetch = |anchor: &Path| curl(&["--cacert", anchor.to_str().unwrap(), &url]).status.success();
    assert!(fetch(&certificate));
    // A half-written pair: the earlier one is shown, and somebody is told.
    let old = std::fs::read(&certificate).unwrap();
    let kept = files.join("kept.pem");
    std::fs::write(&kept, &old).unwrap();
    std::fs::write(&certificate, "half").unwrap();
    eventually("the bad file is noticed", || {
        agent.admin().status().concerns.iter().any(|concern| concern.contains("the earlier one is shown"))
    });
    assert!(fetch(&kept));
    let (next, next_key) = web_certificate(&files, "two", "DNS:localhost");
    std::fs::rename(&next, &certificate).unwrap();
    std::fs::rename(&next_key, &key).unwrap();
    eventually("the new certificate is shown", || fetch(&certificate));
    assert!(!fetch(&kept));
    eventually("the concern is gone", || agent.admin().status().concerns.is_empty());
}

#[test]
fn fed17_a_certificate_for_another_name_is_refused_at_the_start() {
    let mut agent = Plan::with_entries(&[]).prepare();
    let files = agent.dir().join("tls");
    std::fs::create_dir(&files).unwrap();
    let (certificate, key) = web_certificate(&files, "one", "DNS:localhost");
    agent.plan().settings = web_endpoint(&certificate, &key, "\"localhost\", \"id.example.org\"");
    agent.write_config();
    let ended = agent.refused();
    assert!(ended.log.contains("is not a certificate for `id.example.org`"), "{}", ended.log);
}

#[test]
fn plain_http_is_on_loopback_when_asked_for_and_knows_nobody() {
    let agent = Plan::with_entries(&[own_entry("/web")]).settings("[http]\ntcp = \"127.0.0.1:0\"\n").start();
    let url = format!("http://{}", address(&agent, "http.tcp"));
    assert_eq!(Answer::read(&curl(&[&format!("{url}/health")])).status, 200);
    let set = Answer::read(&curl(&[&format!("{url}/keys")])).json();
    assert_eq!((&set["keys"][0]["use"], &set["keys"][0]["alg"]), (&"sig".into(), &"ES256".into()));
    // Without an issuer that is a URL there is nothing to discover.
    assert_eq!(Answer::read(&curl(&[&format!("{url}/.well-known/openid-configuration")])).status, 404);
    // Too much of anything.
    let long = format!("X-Long: {}", "x".repeat(20_000));
    assert_eq!(Answer::read(&curl(&["-H", &long, &format!("{url}/health")])).status, 431);
    let many: Vec<String> = (0..80).map(|n| format!("X-{n}: 1")).collect();
    let mut arguments: Vec<&str> = many.iter().flat_map(|header| ["-H", header.as_str()]).collect();
    let health = format!("{url}/health");
    arguments.push(&health);
    assert_eq!(Answer::read(&curl(&arguments)).status, 431);
}

#[test]
fn crls_are_served_with_dates_and_read_by_openssl() {
    let agent = Plan::with_entries(&[own_entry("/web")]).start();
    let mut holder = client(&agent);
    holder.connect();
    holder.open_x509();
    let update = holder.x509();
    let key_id = agent.admin().status().authorities[0].key_id.clone();
    let file = format!("/crl/{key_id}.crl");
    let first = local(&agent, &file, &[]);
    assert_eq!((first.status, first.header("content-type")), (200, "application/pkix-crl"));
    let age = first.header("cache-control");
    assert_eq!(age, "public, max-age=60, must-revalidate");
    let since = format!("If-Modified-Since: {}", first.header("last-modified"));
    assert_eq!(local(&agent, &file, &["-H", &since]).status, 304);
    holder.kill();
    let serial = update.svids[0].serial().to_uppercase();
    eventually("the CRL lists it", || {
        let answer = local(&agent, "/crl/bundle.pem", &[]);
        let path = agent.dir().join("bundle.crl");
        std::fs::write(&path, &answer.body).unwrap();
        let read =
            Command::new("openssl").args(["crl", "-noout", "-text", "-in"]).arg(&path).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        String::from_utf8_lossy(&read.stdout).contains(&serial)
    });
    let second = local(&agent, &file, &[]);
    assert_ne!(second.header("etag"), first.header("etag"));
    let der = agent.dir().join("own.crl");
    std::fs::write(&der, &second.body).unwrap();
    let anchors = agent.dir().join("anchors.pem");
    std::fs::write(&anchors, pem_of(&local(&agent, "/bundle", &[]).json())).unwrap();
    let mut command = Command::new("openssl");
    command.args(["crl", "-inform", "DER", "-noout", "-CAfile"]).arg(&anchors).arg("-in").arg(&der);
    let output = command.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("verify OK"), "{output:?}");
    assert_eq!(local(&agent, &format!("/crl/{}.crl", "0".repeat(40)), &[]).status, 404);
}

#[test]
fn tdb04_the_sequence_stands_still_through_a_restart() {
    let mut agent = Plan::for_uids(&[own_uid()]).start();
    let first = local(&agent, "/bundle", &[]).json();
    agent.stop();
    agent.launch();
    assert_eq!(local(&agent, "/bundle", &[]).json(), first);
    std::fs::remove_file(agent.data_dir().join("bundle-sequence.json")).unwrap();
    agent.stop();
    agent.launch();
    let after = local(&agent, "/bundle", &[]).json();
    assert_eq!(after["keys"], first["keys"]);
    assert!(after["spiffe_sequence"].as_u64() > first["spiffe_sequence"].as_u64());
}

/// Nobody without an SVID of ours gets in; on the plain listener nobody has a name.
fn strangers_stay_out(agent: &Agent, base: &str) {
    assert!(!curl(&["-k", &format!("{base}/health")]).status.success());
    let (foreign, foreign_key) = web_certificate(agent.dir(), "foreign", "URI:spiffe://example.org/web");
    let foreign = [foreign.to_str().unwrap(), "--key", foreign_key.to_str().unwrap()];
    assert!(
        !curl(&["-k", "--cert", foreign[0], foreign[1], foreign[2], &format!("{base}/health")])
            .status
            .success()
    );
    let plain = format!("http://{}/introspect", address(agent, "http.tcp"));
    assert_eq!(Answer::read(&curl(&["--data", "token=x", &plain])).status, 401);
}

/// Certificate and key of a holder, as curl takes them.
fn credentials(agent: &Agent, name: &str, svid: &mayfly_harness::Svid) -> [String; 2] {
    let write = |what: &str, label: &str, der: &[u8]| {
        let path = agent.dir().join(format!("{name}.{what}"));
        std::fs::write(&path, mayfly_harness::pki::pem(label, der)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    [write("pem", "CERTIFICATE", &svid.leaf.der), write("key", "PRIVATE KEY", &svid.key)]
}

#[test]
fn callers_by_mtls_ask_and_give_back_and_strangers_do_not() {
    let settings = "[http]\ntcp = \"127.0.0.1:0\"\nmtls = \"127.0.0.1:0\"\n";
    let agent = Plan::with_entries(&[own_entry("/web")]).settings(settings).start();
    let mut caller = client(&agent);
    let [certificate, key] = credentials(&agent, "caller", &caller.x509().svids[0]);
    let mut other = client(&agent);
    let tokens: Vec<String> = (0..2).map(|_| other.jwt("peer").unwrap().remove(0).text).collect();
    let base = format!("https://{}", address(&agent, "http.mtls"));
    until("the listener has its SVID", || {
        curl(&["-k", "--cert", &certificate, "--key", &key, &format!("{base}/health")])
            .status
            .success()
            .then_some(())
    });
    let post = |path: &str, token: &str, more: &[&str]| {
        let (url, form) = (format!("{base}{path}"), format!("token={token}"));
        let mut arguments =
            vec!["-k", "--cert", certificate.as_str(), "--key", key.as_str(), "--data", form.as_str()];
        arguments.extend(more);
        arguments.push(&url);
        curl(&arguments)
    };
    let answer = Answer::read(&post("/introspect", &tokens[0], &[]));
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    let said = answer.json();
    for (name, value) in [("active", true.into()), ("sub", Value::from("spiffe://example.org/web"))] {
        assert_eq!(said[name], value, "{said}");
    }
    assert_eq!((&said["client_id"], &said["aud"]), (&said["sub"], &serde_json::json!(["peer"])));
    let mut names: Vec<_> = said.as_object().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["active", "aud", "client_id", "exp", "iat", "iss", "jti", "sub", "token_type"]);
    // Tokens in headers open nothing, forms have to be forms.
    let bearer = format!("Authorization: Bearer {}", tokens[0]);
    let refused = Answer::read(&post("/introspect", &tokens[0], &["-H", &bearer]));
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, "X509-SVID realm=\"mayfly\""));
    assert_eq!(Answer::read(&post("/introspect", &format!("a&token={}", tokens[0]), &[])).status, 400);
    assert_eq!(Answer::read(&post("/introspect", &"x".repeat(70_000), &[])).status, 413);
    assert_eq!(
        Answer::read(&curl(&["-k", "--cert", &certificate, "--key", &key, &format!("{base}/introspect")]))
            .status,
        405
    );
    let inactive = |token: &str| Answer::read(&post("/introspect", token, &[])).body == b"{\"active\":false}";
    let torn = tokens[0].strip_suffix(tokens[0].chars().last().unwrap()).unwrap();
    assert!(inactive("rubbish") && inactive(torn));
    // Given back by one who has the same identity; the other token stands.
    assert_eq!(Answer::read(&post("/revoke", &tokens[0], &[])).status, 200);
    assert!(inactive(&tokens[0]) && !inactive(&tokens[1]));
    assert!(other.validate("peer", &tokens[0]).is_err());
    assert_eq!(Answer::read(&post("/revoke", &tokens[0], &[])).status, 200, "again");
    assert_eq!(Answer::read(&post("/revoke", "rubbish", &[])).status, 200);
    let audit = std::fs::read_to_string(agent.audit_path()).unwrap();
    assert!(audit.contains("\"returned\"") && audit.contains("\"holder\""), "{audit}");
    // The process is gone, and in that instant its token.
    other.kill();
    eventually("the token of a dead process is inactive", || inactive(&tokens[1]));
    strangers_stay_out(&agent, &base);
    caller.kill();
    eventually("a revoked SVID opens nothing", || !post("/introspect", "x", &[]).status.success());
}

#[test]
fn a_connection_outlives_no_svid_that_was_revoked() {
    let agent = Plan::with_entries(&[own_entry("/web")]).settings("[http]\nmtls = \"127.0.0.1:0\"\n").start();
    let mut caller = client(&agent);
    let [certificate, key] = credentials(&agent, "caller", &caller.x509().svids[0]);
    let address = address(&agent, "http.mtls");
    let connected = || {
        let arguments = ["s_client", "-quiet", "-connect", &address, "-cert", &certificate, "-key", &key];
        let mut command = Command::new("openssl");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("openssl")
    };
    let ask = |client: &mut std::process::Child| -> String {
        use std::io::{BufRead as _, BufReader, Write as _};
        let request = "POST /introspect HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\
                       Content-Type: application/x-www-form-urlencoded\r\n\r\ntoken=x";
        client.stdin.as_mut().unwrap().write_all(request.as_bytes()).ok();
        let mut line = String::new();
        BufReader::with_capacity(16, client.stdout.as_mut().unwrap()).read_line(&mut line).ok();
        line
    };
    let mut client = connected();
    until("the listener has its SVID", || {
        let answered = ask(&mut client).contains("200");
        if !answered {
            client.kill().ok();
            client.wait().ok();
            client = connected();
        }
        answered.then_some(())
    });
    client.kill().unwrap();
    client.wait().unwrap();
    let mut client = connected();
    assert!(ask(&mut client).contains("200"));
    caller.kill();
    eventually("the lease is revoked", || agent.admin().status().revoked_leases > 0);
    // The rest of the first answer is still in the pipe: read on to the next status line.
    use std::io::{BufRead as _, BufReader, Write as _};
    let request = "POST /introspect HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    client.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
    let lines = BufReader::new(client.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
    let status = lines.filter_map(|line| line.split_once("HTTP/1.1 ").map(|(_, s)| s.to_owned())).next();
    assert_eq!(status.as_deref(), Some("401 Unauthorized"));
    client.kill().unwrap();
    client.wait().unwrap();
}
