//! Real client processes: each is a `mayfly-holder` under a uid of its own.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::pki::{Crl, Leaf, claims};
use crate::{Agent, PATIENCE, files, until};

/// An X.509-SVID as it came.
#[derive(Clone, Debug)]
pub struct Svid {
    /// SPIFFE ID.
    pub spiffe_id: String,
    /// Hint.
    pub hint: String,
    /// The leaf, read.
    pub leaf: Leaf,
    /// The leaf and what is between it and the bundle, concatenated DER.
    pub chain: Vec<u8>,
    /// PKCS#8 DER.
    pub key: Vec<u8>,
    /// Bundle, concatenated DER.
    pub bundle: Vec<u8>,
}

impl Svid {
    /// Serial number, lower-case hex.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }
}

/// A JWT-SVID as it came.
#[derive(Clone, Debug)]
pub struct Token {
    /// SPIFFE ID.
    pub spiffe_id: String,
    /// Compact JWS.
    pub text: String,
    /// Hint.
    pub hint: String,
}

impl Token {
    /// `jti`, which is the lease id.
    ///
    /// # Panics
    /// When there is none.
    pub fn jti(&self) -> String {
        claims(&self.text)["jti"].as_str().expect("jti").to_owned()
    }
}

/// A WIT-SVID as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wit {
    /// SPIFFE ID.
    pub spiffe_id: String,
    /// Hint.
    pub hint: String,
    /// Compact JWS.
    pub token: String,
    /// Private JWK, as JSON.
    pub key: String,
}

impl Wit {
    /// `jti`, which is the lease id.
    ///
    /// # Panics
    /// When there is none.
    pub fn jti(&self) -> String {
        claims(&self.token)["jti"].as_str().expect("jti").to_owned()
    }
}

/// A gRPC status other than OK; code 0 means that the stream simply ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// gRPC code.
    pub code: i64,
    /// Its message.
    pub message: String,
}

/// A message of the X.509-SVID stream.
#[derive(Clone, Debug)]
pub struct X509Update {
    /// The identities.
    pub svids: Vec<Svid>,
    /// The CRLs sent with them.
    pub crls: Vec<Crl>,
}

/// A message of the X.509 bundle stream.
#[derive(Clone, Debug)]
pub struct BundlesUpdate {
    /// Trust domain ID and its authorities, concatenated DER.
    pub bundles: Vec<(String, Vec<u8>)>,
    /// The CRLs.
    pub crls: Vec<Crl>,
}

/// A client process.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    events: Receiver<Value>,
    waiting: VecDeque<Value>,
}

/// How a holder is to be started.
#[derive(Clone, Debug)]
pub struct Who {
    uid: u32,
    gid: u32,
    program: Option<PathBuf>,
    wrapper: Vec<String>,
}

impl Who {
    /// Uid and gid; no supplementary groups.
    pub fn uid(uid: u32) -> Self {
        Self { uid, gid: uid, program: None, wrapper: Vec::new() }
    }

    /// Runs that copy of the holder.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Puts a program in front that ends by exec'ing the holder.
    #[must_use]
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Starts it for that agent.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(self, agent: &Agent) -> Holder {
        let program = self.program.unwrap_or_else(|| holder_program(agent));
        let mut words = self.wrapper;
        words.push(program.to_str().expect("UTF-8 path").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(agent.public());
        command.uid(self.uid).gid(self.gid).current_dir("/");
        Holder::spawn(command)
    }
}

/// The holder's program, where every uid can run it.
pub fn holder_program(agent: &Agent) -> PathBuf {
    files::install(agent.dir(), &files::built("mayfly-holder"))
}

impl Holder {
    /// A client of that uid.
    pub fn start(agent: &Agent, uid: u32) -> Self {
        Who::uid(uid).start(agent)
    }

    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // The program is a copy just made. Another thread's child holds it open for writing until its own exec.
        let started = until("the program is not written to", || match command.spawn() {
            Err(why) if why.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
            started => Some(started),
        });
        let mut child = started.unwrap_or_else(|why| panic!("start {command:?}: {why}"));
        let (sender, events) = channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({"event": line}));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        let mut holder = Self { child, input, events, waiting: VecDeque::new() };
        holder.expect("started");
        holder
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn order(&mut self, order: &Value) {
        let input = self.input.as_mut().expect("standard input is open");
        writeln!(input, "{order}").expect("the holder reads");
    }

    /// The next event of one of these kinds, in order of arrival; others wait their turn.
    ///
    /// # Panics
    /// When none comes.
    pub fn expect_any(&mut self, kinds: &[&str]) -> Value {
        self.wait_any(kinds, PATIENCE)
            .unwrap_or_else(|| panic!("no {kinds:?} from {}; it said {:?}", self.pid(), self.waiting))
    }

    /// The next event of that kind.
    ///
    /// # Panics
    /// When none comes.
    pub fn expect(&mut self, kind: &str) -> Value {
        self.expect_any(&[kind])
    }

    /// As [`Self::expect_any`], but gives up after `patience`.
    pub fn wait_any(&mut self, kinds: &[&str], patience: Duration) -> Option<Value> {
        let wanted = |event: &Value| event["event"].as_str().is_some_and(|kind| kinds.contains(&kind));
        if let Some(at) = self.waiting.iter().position(wanted) {
            return self.waiting.remove(at);
        }
        let end = Instant::now() + patience;
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) if wanted(&event) => return Some(event),
                Ok(event) => self.waiting.push_back(event),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Opens a connection.
    ///
    /// # Panics
    /// When the agent cannot be reached.
    pub fn connect(&mut self) {
        self.order(&json!({"do": "connect"}));
        self.expect("connected");
    }

    /// Opens the X.509-SVID stream without waiting for anything.
    pub fn open_x509(&mut self) {
        self.order(&json!({"do": "x509"}));
    }

    /// Opens the X.509-SVID stream and returns its first message.
    ///
    /// # Panics
    /// When it is refused.
    pub fn x509(&mut self) -> X509Update {
        self.open_x509();
        self.next_x509().unwrap_or_else(|refusal| panic!("no X.509-SVID: {refusal:?}"))
    }

    /// Opens the stream and expects it to be refused.
    ///
    /// # Panics
    /// When an identity comes.
    pub fn x509_refused(&mut self) -> Refusal {
        self.open_x509();
        self.next_x509().expect_err("an identity was issued")
    }

    /// The next message of the open X.509-SVID stream.
    ///
    /// # Errors
    /// How the stream ended.
    pub fn next_x509(&mut self) -> Result<X509Update, Refusal> {
        let event = self.expect_any(&["x509", "x509_end"]);
        if event["event"] == "x509_end" { Err(refusal(&event)) } else { Ok(x509_update(&event)) }
    }

    /// Waits for the end of the X.509-SVID stream, past any messages before it.
    ///
    /// # Panics
    /// When it does not end.
    pub fn x509_end(&mut self) -> Refusal {
        refusal(&self.expect("x509_end"))
    }

    /// Whether the X.509-SVID stream has ended so far.
    pub fn x509_has_ended(&mut self) -> bool {
        self.wait_any(&["x509_end"], Duration::ZERO).is_some()
    }

    /// Opens the bundle stream and returns its first message.
    ///
    /// # Panics
    /// When it is refused.
    pub fn bundles(&mut self) -> BundlesUpdate {
        self.order(&json!({"do": "bundles"}));
        self.next_bundles().unwrap_or_else(|refusal| panic!("no bundles: {refusal:?}"))
    }

    /// The next message of the open bundle stream.
    ///
    /// # Errors
    /// How the stream ended.
    pub fn next_bundles(&mut self) -> Result<BundlesUpdate, Refusal> {
        let event = self.expect_any(&["bundles", "bundles_end"]);
        if event["event"] == "bundles_end" { Err(refusal(&event)) } else { Ok(bundles_update(&event)) }
    }

    /// Follows the open bundle stream until its CRL satisfies `wanted`.
    ///
    /// # Panics
    /// When the stream ends, or the CRL never does.
    pub fn crl_until(&mut self, what: &str, wanted: impl Fn(&Crl) -> bool) -> Crl {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < end {
            let Some(event) =
                self.wait_any(&["bundles", "bundles_end"], end.saturating_duration_since(Instant::now()))
            else {
                break;
            };
            assert_eq!(event["event"], "bundles", "the bundle stream ended: {event}");
            for crl in bundles_update(&event).crls {
                if wanted(&crl) {
                    return crl;
                }
                last = Some(crl);
            }
        }
        panic!("no CRL came: {what}; the last one was {last:?}");
    }

    /// JWT-SVIDs for one audience.
    ///
    /// # Errors
    /// The status.
    pub fn jwt(&mut self, audience: &str) -> Result<Vec<Token>, Refusal> {
        self.order(&json!({"do": "jwt", "audience": [audience]}));
        let event = self.expect("jwt");
        let Some(svids) = event["svids"].as_array() else { return Err(refusal(&event)) };
        Ok(svids
            .iter()
            .map(|s| Token { spiffe_id: text(s, "spiffe_id"), text: text(s, "token"), hint: text(s, "hint") })
            .collect())
    }

    /// Begins a task that may read at a location, and asks for an access token for an audience there: the task's name,
    /// and the token.
    ///
    /// # Errors
    /// The status.
    pub fn task(&mut self, location: &str, audience: &str) -> Result<(String, String), Refusal> {
        self.order(&json!({"do": "task", "location": location, "audience": audience}));
        let event = self.expect("task");
        if event["token"].is_string() {
            Ok((text(&event, "task"), text(&event, "token")))
        } else {
            Err(refusal(&event))
        }
    }

    /// Any unary call of the service at its socket, such as `mayfly.task.v1.TaskAPI/Begin`.
    ///
    /// # Errors
    /// The status, with its details.
    ///
    /// # Panics
    /// When the answer is not of that type.
    pub fn rpc<T: prost::Message + Default>(
        &mut self,
        path: &str,
        message: &impl prost::Message,
    ) -> Result<T, (Refusal, Vec<u8>)> {
        self.rpc_at(Path::new(""), path, message)
    }

    /// The same at another socket.
    ///
    /// # Errors
    /// As [`Holder::rpc`].
    ///
    /// # Panics
    /// As [`Holder::rpc`].
    pub fn rpc_at<T: prost::Message + Default>(
        &mut self,
        socket: &Path,
        path: &str,
        message: &impl prost::Message,
    ) -> Result<T, (Refusal, Vec<u8>)> {
        let message = BASE64.encode(message.encode_to_vec());
        self.order(&json!({"do": "rpc", "socket": socket, "path": format!("/{path}"), "message": message}));
        let event = self.expect("rpc");
        let bytes = |name: &str| BASE64.decode(text(&event, name)).expect("base64");
        if event["answer"].is_string() {
            Ok(T::decode(bytes("answer").as_slice()).expect("a message"))
        } else {
            Err((refusal(&event), bytes("details")))
        }
    }

    /// Opens the WIT-SVID stream, for all identities when `spiffe_id` is empty, and returns its first message.
    ///
    /// # Errors
    /// The status.
    pub fn wits(&mut self, spiffe_id: &str) -> Result<Vec<Wit>, Refusal> {
        self.order(&json!({"do": "wit", "spiffe_id": spiffe_id}));
        self.next_wits()
    }

    /// The next message of the open WIT-SVID stream.
    ///
    /// # Errors
    /// How the stream ended.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn next_wits(&mut self) -> Result<Vec<Wit>, Refusal> {
        let event = self.expect_any(&["wit", "wit_end"]);
        let Some(svids) = event["svids"].as_array() else { return Err(refusal(&event)) };
        let wit = |s: &Value| Wit {
            spiffe_id: text(s, "spiffe_id"),
            hint: text(s, "hint"),
            token: text(s, "token"),
            key: text(s, "key"),
        };
        Ok(svids.iter().map(wit).collect())
    }

    /// Opens the WIT bundle stream and returns its first message: trust domain ID to JWK Set.
    ///
    /// # Errors
    /// The status.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn wit_bundles(&mut self) -> Result<Value, Refusal> {
        self.order(&json!({"do": "wit_bundles"}));
        let event = self.expect_any(&["wit_bundles", "wit_bundles_end"]);
        if event["bundles"].is_object() { Ok(event["bundles"].clone()) } else { Err(refusal(&event)) }
    }

    /// Asks the agent to validate a token: the SPIFFE ID.
    ///
    /// # Errors
    /// The status.
    pub fn validate(&mut self, audience: &str, token: &str) -> Result<String, Refusal> {
        self.order(&json!({"do": "validate", "audience": audience, "token": token}));
        let event = self.expect("validate");
        if event["spiffe_id"].is_string() { Ok(text(&event, "spiffe_id")) } else { Err(refusal(&event)) }
    }

    /// From now on each call has these `traceparent`s, each in a header of its own.
    ///
    /// # Panics
    /// When one cannot be sent.
    pub fn traces(&mut self, values: &[&str]) {
        self.order(&json!({"do": "traces", "values": values}));
        self.expect("traces");
    }

    /// Replaces the program by another one.
    pub fn exec(&mut self, path: &Path, args: &[&str]) {
        self.order(&json!({"do": "exec", "path": path, "args": args}));
    }

    /// Changes real, effective and saved uid.
    pub fn setresuid(&mut self, uids: [u32; 3]) {
        self.order(&json!({"do": "setresuid", "uids": uids}));
        self.expect("setresuid");
    }

    /// Sends a signal and does not wait.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).expect("pid")), signal).expect("signal");
    }

    /// SIGKILL and reap.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGKILL without reaping: a zombie stays until the holder is dropped.
    pub fn kill_unreaped(&mut self) {
        let _ = self.child.kill();
    }

    /// Closes standard input, so that it exits by itself, and reaps it.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn leave(&mut self) -> ExitStatus {
        self.input = None;
        self.child.wait().expect("wait")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

fn x509_update(event: &Value) -> X509Update {
    let svids = event["svids"].as_array().expect("svids");
    let svids = svids
        .iter()
        .map(|s| Svid {
            spiffe_id: text(s, "spiffe_id"),
            hint: text(s, "hint"),
            leaf: Leaf::parse(&bytes(&s["chain"])),
            chain: bytes(&s["chain"]),
            key: bytes(&s["key"]),
            bundle: bytes(&s["bundle"]),
        })
        .collect();
    X509Update { svids, crls: crls(event) }
}

fn bundles_update(event: &Value) -> BundlesUpdate {
    let bundles = event["bundles"].as_object().expect("bundles");
    BundlesUpdate {
        bundles: bundles.iter().map(|(td, der)| (td.clone(), bytes(der))).collect(),
        crls: crls(event),
    }
}

fn crls(event: &Value) -> Vec<Crl> {
    event["crl"].as_array().expect("crl").iter().map(|der| Crl::parse(&bytes(der))).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64.decode(value.as_str().expect("base64")).expect("base64")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn refusal(event: &Value) -> Refusal {
    Refusal { code: event["code"].as_i64().unwrap_or(-1), message: text(event, "message") }
}
