//! A stand-in for a Kubernetes API server: it knows the pods (and namespaces) of one cluster, lists and watches them
//! over TLS as a real one does, with versions, bookmarks and expiry, counts what it is asked, and misbehaves as it is
//! told.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::foreign::{Authority, Identity};
use crate::until;

/// The node that every pod is bound to unless it says otherwise.
pub const NODE: &str = "node-1";

/// The API server.
#[derive(Debug)]
pub struct Cluster {
    port: u16,
    authority: Authority,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rung at every change.
    bell: Condvar,
    tls: Arc<ServerConfig>,
}

/// How it answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Manner {
    /// As it should.
    Honest,
    /// Every request with that status.
    Status(u16),
    /// It takes the request and says nothing.
    Silence,
    /// Lists as they were so many versions ago: another server of the control plane, that lags.
    Lags(u64),
    /// Lists pods of all nodes, whatever was asked.
    AllNodes,
    /// Lists by pages of that many.
    Pages(usize),
    /// Ends every watch at once.
    Closes,
}

/// What it was asked so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Asked {
    /// Pages of lists.
    pub lists: usize,
    /// Watches.
    pub watches: usize,
    /// Requests that were refused for their token.
    pub strangers: usize,
}

#[derive(Debug)]
struct State {
    version: u64,
    /// Everything that ever happened: version, kind of event, collection, object.
    log: Vec<(u64, &'static str, Collection, Value)>,
    objects: BTreeMap<(Collection, String), Value>,
    /// Versions before this one are forgotten.
    compacted: u64,
    manner: Manner,
    token: String,
    asked: Asked,
    /// Heads of the requests.
    heads: Vec<String>,
    /// Said word for word to every open watch, once; then the watch ends if the flag says so.
    say: Vec<(Vec<u8>, bool)>,
    /// Watches open now.
    open: usize,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Collection {
    Pods,
    Namespaces,
}

impl Cluster {
    /// Serves on a port of its own until the test ends.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start() -> Self {
        let authority = Authority::new("cluster");
        let tls = tls(authority.server("127.0.0.1"));
        let state = State {
            version: 100,
            log: Vec::new(),
            objects: BTreeMap::new(),
            compacted: 0,
            manner: Manner::Honest,
            token: "token-1".to_owned(),
            asked: Asked::default(),
            heads: Vec::new(),
            say: Vec::new(),
            open: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), bell: Condvar::new(), tls });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A client that goes away is no matter.
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        Self { port, authority, shared }
    }

    /// With the recorded pods of `tests/vectors/kubernetes`.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn recorded() -> Self {
        let cluster = Self::start();
        for pod in &recorded_pods() {
            cluster.put(pod);
        }
        cluster
    }

    /// Writes token and CA into `dir` and returns the `[attest.kubernetes]` table that leads here.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn settings(&self, dir: &Path) -> String {
        let (token, ca) = (dir.join("token"), dir.join("ca.crt"));
        std::fs::write(&token, &self.lock().token).expect("token");
        std::fs::write(&ca, self.authority.pem()).expect("CA");
        format!(
            "[attest.kubernetes]\nenabled = \"on\"\nserver = \"https://127.0.0.1:{}\"\nnode_name = \"{NODE}\"\ntoken_file = {token:?}\nca_file = {ca:?}\n",
            self.port
        )
    }

    /// Its CA as PEM.
    pub fn ca(&self) -> String {
        self.authority.pem()
    }

    /// Only this token counts from now on.
    pub fn set_token(&self, token: &str) {
        token.clone_into(&mut self.lock().token);
    }

    /// Answers so from now on.
    pub fn behave(&self, manner: Manner) {
        self.lock().manner = manner;
        self.shared.bell.notify_all();
    }

    /// Creates a pod, or puts it in place of the one with its name.
    ///
    /// # Panics
    /// When it has no name.
    pub fn put(&self, pod: &Value) {
        self.change(Collection::Pods, pod, false);
    }

    /// Removes a pod.
    ///
    /// # Panics
    /// When it has no name.
    pub fn delete(&self, pod: &Value) {
        self.change(Collection::Pods, pod, true);
    }

    /// Creates a namespace, or gives it other labels.
    ///
    /// # Panics
    /// Never.
    pub fn put_namespace(&self, name: &str, labels: &Value) {
        let object = json!({"metadata": {"name": name, "labels": labels}});
        self.change(Collection::Namespaces, &object, false);
    }

    fn change(&self, collection: Collection, object: &Value, gone: bool) {
        let mut state = self.lock();
        state.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let key = (collection, key(&object));
        let kind = match (gone, state.objects.contains_key(&key)) {
            (true, _) => "DELETED",
            (false, true) => "MODIFIED",
            (false, false) => "ADDED",
        };
        if gone {
            state.objects.remove(&key)
        } else {
            state.objects.insert(key, object.clone())
        };
        let version = state.version;
        state.log.push((version, kind, collection, object));
        drop(state);
        self.shared.bell.notify_all();
    }

    /// Sends every open watch a bookmark.
    pub fn bookmark(&self) {
        let version = self.lock().version;
        self.say(&json!({"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": version.to_string()}}}), false);
    }

    /// Forgets what happened so far, and tells every open watch that it has expired.
    pub fn expire(&self) {
        self.compact();
        let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
        self.say(&json!({"type": "ERROR", "object": status}), true);
    }

    /// Forgets what happened so far: whoever watches from before is told 410.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.compacted = state.version;
    }

    /// Says a line to every open watch.
    pub fn say(&self, line: &Value, then_close: bool) {
        self.say_bytes(format!("{line}\n").as_bytes(), then_close);
    }

    /// Says anything to every open watch.
    pub fn say_bytes(&self, bytes: &[u8], then_close: bool) {
        self.lock().say.push((bytes.to_vec(), then_close));
        self.shared.bell.notify_all();
    }

    /// Ends every open watch in good order.
    pub fn close(&self) {
        self.say_bytes(b"", true);
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Asked {
        self.lock().asked
    }

    /// Heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.lock().heads.clone()
    }

    /// Waits until so many watches are open.
    ///
    /// # Panics
    /// When they never are.
    pub fn watched_by(&self, watches: usize) {
        until("the agent watches", || (self.lock().open == watches).then_some(()));
    }

    /// Watches open now.
    pub fn open(&self) -> usize {
        self.lock().open
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The pods of `tests/vectors/kubernetes`.
///
/// # Panics
/// When they cannot be read.
pub fn recorded_pods() -> Vec<Value> {
    let list = include_str!("../../vectors/kubernetes/podlist.json");
    let mut list: Value = serde_json::from_str(list).expect("recorded pods");
    let Value::Array(pods) = list["items"].take() else { panic!("items") };
    pods
}

/// A running pod with one container `app`, whose id is `container`; none while it is empty.
pub fn pod(namespace: &str, name: &str, uid: &str, container: &str) -> Value {
    let mut status = json!({"name": "app", "image": "registry.example/app:1", "imageID": ""});
    if !container.is_empty() {
        status["containerID"] = format!("containerd://{container}").into();
        status["imageID"] = format!("registry.example/app@sha256:{}", "a".repeat(64)).into();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "uid": uid, "labels": {"app": name},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "serviceAccountName": "default", "nodeName": NODE,
            "containers": [{"name": "app", "image": "registry.example/app:1", "env": [{"name": "SECRET", "value": "do-not-keep"}]}],
        },
        "status": {"phase": "Running", "containerStatuses": [status]},
    })
}

fn key(object: &Value) -> String {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

fn tls(identity: Identity) -> Arc<ServerConfig> {
    let (chain, key) = identity.into_parts();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate and its key");
    Arc::new(config)
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

fn serve(stream: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(&shared.tls)).expect("a connection");
    let mut tls = StreamOwned::new(connection, stream);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        tls.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let query = Query::of(&target);
    let (manner, known) = {
        let mut state = shared.lock();
        state.heads.push(head.clone());
        let known = head.to_lowercase().contains(&format!("authorization: bearer {}\r\n", state.token));
        match (known, query.has("watch", "true")) {
            (false, _) => state.asked.strangers += 1,
            (true, true) => state.asked.watches += 1,
            (true, false) => state.asked.lists += 1,
        }
        (state.manner.clone(), known)
    };
    match manner {
        _ if !known => refuse(&mut tls, 401, "Unauthorized"),
        Manner::Silence => tls.read_exact(&mut byte),
        Manner::Status(status) => refuse(&mut tls, status, "as told"),
        _ if query.collection().is_none() => refuse(&mut tls, 403, "forbidden"),
        manner if query.has("watch", "true") => watch(&mut tls, shared, &query, &manner),
        manner => list(&mut tls, shared, &query, &manner),
    }
}

fn refuse(tls: &mut Tls, status: u16, message: &str) -> std::io::Result<()> {
    let body = json!({"kind": "Status", "status": "Failure", "code": status, "message": message}).to_string();
    answer(tls, status, &body)
}

fn answer(tls: &mut Tls, status: u16, body: &str) -> std::io::Result<()> {
    write!(
        tls,
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    tls.conn.send_close_notify();
    tls.flush()
}

fn list(tls: &mut Tls, shared: &Shared, query: &Query, manner: &Manner) -> std::io::Result<()> {
    let state = shared.lock();
    let collection = query.collection().expect("checked");
    let lag = if let Manner::Lags(lag) = manner { *lag } else { 0 };
    let wanted = query.get("resourceVersion").unwrap_or_default();
    // Only a list that does not ask for the newest may be answered from memory.
    let at = if wanted.is_empty() { state.version } else { state.version - lag };
    if wanted.parse().is_ok_and(|wanted: u64| wanted > at) {
        drop(state);
        return refuse(tls, 504, "Too large resource version");
    }
    let mut objects: Vec<Value> = if at == state.version {
        state
            .objects
            .iter()
            .filter(|((of, _), _)| *of == collection)
            .map(|(_, object)| object.clone())
            .collect()
    } else {
        state.as_of(at, collection)
    };
    if !matches!(manner, Manner::AllNodes) {
        objects.retain(|object| query.selects(object));
    }
    let from: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or_default();
    let size = if let Manner::Pages(size) = manner { *size } else { usize::MAX };
    let page: Vec<Value> = objects.iter().skip(from).take(size).cloned().collect();
    let rest = objects.len().saturating_sub(from + page.len());
    let next = if rest > 0 { (from + page.len()).to_string() } else { String::new() };
    let metadata = json!({"resourceVersion": at.to_string(), "continue": next});
    drop(state);
    answer(tls, 200, &json!({"kind": "List", "metadata": metadata, "items": page}).to_string())
}

impl State {
    fn as_of(&self, version: u64, collection: Collection) -> Vec<Value> {
        let mut objects = BTreeMap::new();
        for (at, kind, of, object) in &self.log {
            if *at > version || *of != collection {
                continue;
            }
            if *kind == "DELETED" {
                objects.remove(&key(object))
            } else {
                objects.insert(key(object), object.clone())
            };
        }
        objects.into_values().collect()
    }
}

fn watch(tls: &mut Tls, shared: &Shared, query: &Query, manner: &Manner) -> std::io::Result<()> {
    let collection = query.collection().expect("checked");
    let mut from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or_default();
    let mut said = {
        let mut state = shared.lock();
        if from < state.compacted {
            drop(state);
            return refuse(tls, 410, "too old resource version");
        }
        state.open += 1;
        state.say.len()
    };
    let _open = Open(shared);
    tls.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    tls.flush()?;
    loop {
        let (lines, words, over) = {
            let mut state = shared.lock();
            loop {
                let lines: Vec<String> = state
                    .log
                    .iter()
                    .filter(|(at, _, of, object)| *at > from && *of == collection && query.selects(object))
                    .map(|(_, kind, _, object)| format!("{}\n", json!({"type": kind, "object": object})))
                    .collect();
                from = state.version;
                let words: Vec<_> = state.say[said..].to_vec();
                said = state.say.len();
                let closes = *manner == Manner::Closes || state.manner == Manner::Closes;
                let over = closes || words.iter().any(|(_, close)| *close);
                if !lines.is_empty() || !words.is_empty() || over {
                    break (lines, words, over);
                }
                state = shared.bell.wait_timeout(state, Duration::from_millis(200)).unwrap().0;
                // A client that has gone away is noticed when there is something to write; tests end sooner.
            }
        };
        for bytes in lines.iter().map(String::as_bytes).chain(words.iter().map(|(bytes, _)| bytes.as_slice()))
        {
            if !bytes.is_empty() {
                write!(tls, "{:x}\r\n", bytes.len())?;
                tls.write_all(bytes)?;
                tls.write_all(b"\r\n")?;
            }
        }
        if over {
            tls.write_all(b"0\r\n\r\n")?;
            tls.conn.send_close_notify();
            return tls.flush();
        }
        tls.flush()?;
    }
}

/// Counts an open watch.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
    }
}

struct Query {
    path: String,
    pairs: Vec<(String, String)>,
}

impl Query {
    fn of(target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.replace("%3D", "="))).collect();
        Self { path: path.to_owned(), pairs }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }

    /// `None` for what the account of an agent may not read: pods of all nodes among it.
    fn collection(&self) -> Option<Collection> {
        match self.path.as_str() {
            "/api/v1/pods" if self.get("fieldSelector")?.starts_with("spec.nodeName=") => {
                Some(Collection::Pods)
            }
            "/api/v1/namespaces" => Some(Collection::Namespaces),
            _ => None,
        }
    }

    fn selects(&self, object: &Value) -> bool {
        let node = self.get("fieldSelector").and_then(|text| text.strip_prefix("spec.nodeName="));
        node.is_none_or(|node| object["spec"]["nodeName"] == node)
    }
}
