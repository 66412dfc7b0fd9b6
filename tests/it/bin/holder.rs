//! A real workload for tests: connects to the agent, holds what it is given, and does as it is told.
//!
//! `mayfly-holder SOCKET` reads commands (one JSON object a line, `{"do": …}`) on standard input and writes
//! events (`{"event": …}`) on standard output; end of input ends it. It is one thread for gRPC and one for
//! standard input, so that `setresuid` and `exec` mean what they mean for a simple program.
//! Built only with the feature `failpoints`, that is, for the test suite.

#[path = "../../harness/src/wire.rs"]
#[expect(unreachable_pub, reason = "public in the harness crate, which shares the file")]
mod wire;
#[path = "../../harness/src/xds.rs"]
#[expect(unreachable_pub, reason = "public in the harness crate, which shares the file")]
#[expect(dead_code, reason = "the harness crate uses all of it")]
#[expect(clippy::expect_used, reason = "what a test reads is what it expects, or the test fails")]
mod xds;

use std::io::{BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use mayfly_proto::workload::{WitBundlesResponse, WitsvidResponse, X509BundlesResponse, X509svidResponse};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

use crate::wire::Client;

fn main() -> Result<()> {
    let socket = std::env::args_os().nth(1).map(PathBuf::from).context("usage: mayfly-holder SOCKET")?;
    let (orders, inbox) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if orders.send(line).is_err() {
                return;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(hold(socket, inbox));
    // Streams still open must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Carries out orders until standard input ends.
async fn hold(socket: PathBuf, mut inbox: mpsc::UnboundedReceiver<String>) -> Result<()> {
    let mut holder =
        Holder { socket, client: None, streams: JoinSet::new(), calls: JoinSet::new(), ballast: Vec::new() };
    say(&json!({"event": "started", "pid": std::process::id()}))?;
    while let Some(line) = inbox.recv().await {
        let order: Value = serde_json::from_str(&line)?;
        let answer = holder.obey(&order).await?;
        if !answer.is_null() {
            say(&answer)?;
        }
    }
    Ok(())
}

struct Holder {
    socket: PathBuf,
    client: Option<Client>,
    streams: JoinSet<Result<()>>,
    calls: JoinSet<()>,
    ballast: Vec<Vec<u64>>,
}

impl Holder {
    async fn obey(&mut self, order: &Value) -> Result<Value> {
        match text(order, "do")?.as_str() {
            "connect" => self.connect().await,
            "x509" => self.x509().await,
            "bundles" => self.bundles().await,
            "jwt" => self.jwt(order).await,
            "wit" => self.wit(order).await,
            "wit_bundles" => self.wit_bundles().await,
            "jwt_begin" => self.jwt_begin().await,
            "jwt_cancel" => self.jwt_cancel().await,
            "validate" => self.validate(order).await,
            "task" => self.task(order).await,
            "task_call" => self.task_call(order).await,
            "task_begin_call" => self.task_begin_call(order).await,
            "task_loop" => self.task_loop(order).await,
            "task_stream" => self.task_stream(order).await,
            "rpc" => self.rpc(order).await,
            "traces" => traces(order),
            "follow" => self.follow(order).await,
            "setresuid" => become_uid(order),
            "exec" => exec(order),
            "allocate" => self.allocate(order),
            other => Err(anyhow!("unknown order {other}")),
        }
    }

    /// A fresh connection; streams of the old one go on.
    async fn connect(&mut self) -> Result<Value> {
        match Client::connect(&self.socket).await {
            Ok(client) => {
                self.client = Some(client);
                Ok(json!({"event": "connected"}))
            }
            Err(why) => Ok(json!({"event": "unreachable", "why": why.to_string()})),
        }
    }

    async fn client(&mut self) -> Result<Client> {
        if self.client.is_none() {
            self.connect().await?;
        }
        self.client.clone().context("the agent cannot be reached")
    }

    async fn x509(&mut self) -> Result<Value> {
        match self.client().await?.x509().await {
            Ok(stream) => {
                self.streams.spawn(follow(stream, x509_event, "x509_end"));
                Ok(Value::Null)
            }
            Err(status) => Ok(ended("x509_end", Some(&status))),
        }
    }

    async fn bundles(&mut self) -> Result<Value> {
        match self.client().await?.bundles().await {
            Ok(stream) => {
                self.streams.spawn(follow(stream, bundles_event, "bundles_end"));
                Ok(Value::Null)
            }
            Err(status) => Ok(ended("bundles_end", Some(&status))),
        }
    }

    async fn jwt(&mut self, order: &Value) -> Result<Value> {
        let audience = order.get("audience").and_then(Value::as_array).cloned().unwrap_or_default();
        let audience = audience.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let spiffe_id = order.get("spiffe_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(match self.client().await?.jwt(audience, spiffe_id).await {
            Ok(response) => {
                let tokens: Vec<Value> = response
                    .svids
                    .iter()
                    .map(|s| json!({"spiffe_id": s.spiffe_id, "token": s.svid, "hint": s.hint}))
                    .collect();
                json!({"event": "jwt", "svids": tokens})
            }
            Err(status) => ended("jwt", Some(&status)),
        })
    }

    async fn task(&mut self, order: &Value) -> Result<Value> {
        let text = |name: &str| order.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(match self.client().await?.task(text("location"), text("audience")).await {
            Ok((task, token)) => json!({"event": "task", "task": task, "token": token}),
            Err(status) => ended("task", Some(&status)),
        })
    }

    /// Any call of the task API, in base64.
    async fn task_call(&mut self, order: &Value) -> Result<Value> {
        let (method, request) = (text(order, "method")?, bytes(order)?);
        Ok(called(self.client().await?.task_call(&method, request).await))
    }

    /// Begins a call and does not wait for its answer.
    async fn task_begin_call(&mut self, order: &Value) -> Result<Value> {
        let (method, request) = (text(order, "method")?, bytes(order)?);
        let client = self.client().await?;
        let patience = order["give_up_ms"].as_u64().map_or(Duration::MAX, Duration::from_millis);
        self.streams.spawn(async move {
            let answer = tokio::time::timeout(patience, client.task_call(&method, request)).await;
            say(&called(answer.unwrap_or_else(|_elapsed| Err(Status::deadline_exceeded("given up")))))
        });
        Ok(Value::Null)
    }

    /// The same call again and again until it is refused; each answer is told of.
    async fn task_loop(&mut self, order: &Value) -> Result<Value> {
        let (method, request) = (text(order, "method")?, bytes(order)?);
        let client = self.client().await?;
        self.streams.spawn(async move {
            loop {
                let answer = client.task_call(&method, request.clone()).await;
                let over = answer.is_err();
                say(&called(answer))?;
                if over {
                    return Ok(());
                }
            }
        });
        Ok(Value::Null)
    }

    async fn task_stream(&mut self, order: &Value) -> Result<Value> {
        let (method, request) = (text(order, "method")?, bytes(order)?);
        match self.client().await?.task_stream(&method, request).await {
            Ok(stream) => {
                let event =
                    |message: &Bytes| json!({"event": "task_event", "message": BASE64.encode(message)});
                self.streams.spawn(follow(stream, event, "task_end"));
                Ok(Value::Null)
            }
            Err(status) => Ok(ended("task_end", Some(&status))),
        }
    }

    /// Any unary call: its path, its message in base64; on a connection of its own to another socket, if one is named.
    async fn rpc(&mut self, order: &Value) -> Result<Value> {
        let text = |name: &str| order.get(name).and_then(Value::as_str).unwrap_or_default();
        let message = BASE64.decode(text("message"))?;
        let client = match text("socket") {
            "" => self.client().await?,
            elsewhere => Client::connect(std::path::Path::new(elsewhere)).await?,
        };
        Ok(match client.raw(text("path"), message.into()).await {
            Ok(answer) => json!({"event": "rpc", "answer": BASE64.encode(answer)}),
            Err(status) => ended("rpc", Some(&status)),
        })
    }

    async fn wit(&mut self, order: &Value) -> Result<Value> {
        let spiffe_id = order.get("spiffe_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        match self.client().await?.wit(spiffe_id).await {
            Ok(stream) => {
                self.streams.spawn(follow(stream, wit_event, "wit_end"));
                Ok(Value::Null)
            }
            Err(status) => Ok(ended("wit_end", Some(&status))),
        }
    }

    async fn wit_bundles(&mut self) -> Result<Value> {
        match self.client().await?.wit_bundles().await {
            Ok(stream) => {
                self.streams.spawn(follow(stream, wit_bundles_event, "wit_bundles_end"));
                Ok(Value::Null)
            }
            Err(status) => Ok(ended("wit_bundles_end", Some(&status))),
        }
    }

    /// Asks for a token and does not wait.
    async fn jwt_begin(&mut self) -> Result<Value> {
        let client = self.client().await?;
        self.calls.spawn(async move { drop(client.jwt(vec!["aud".to_owned()], String::new()).await) });
        Ok(Value::Null)
    }

    /// Gives up what was begun; the agent is told by a stream reset.
    async fn jwt_cancel(&mut self) -> Result<Value> {
        self.calls.shutdown().await;
        Ok(json!({"event": "jwt_cancelled"}))
    }

    async fn validate(&mut self, order: &Value) -> Result<Value> {
        let (audience, token) = (text(order, "audience")?, text(order, "token")?);
        Ok(match self.client().await?.validate(audience, token).await {
            Ok(valid) => json!({"event": "validate", "spiffe_id": valid.spiffe_id}),
            Err(status) => ended("validate", Some(&status)),
        })
    }

    /// Opens streams of several kinds, all on one connection of their own, and reports of each message whether its
    /// parts belong together.
    async fn follow(&mut self, order: &Value) -> Result<Value> {
        let sds = xds::Sds::connect(&self.socket).await?;
        let kinds = order.get("kinds").and_then(Value::as_array).cloned().unwrap_or_default();
        for (tag, kind) in kinds.iter().filter_map(Value::as_str).enumerate() {
            match kind {
                "world" => self.streams.spawn(follow_world(tag, sds.world().await?)),
                "delta" => self.streams.spawn(follow_delta(tag, sds.delta().await?)),
                // Opened only now: a connection that asks nothing for long is cut.
                _ => {
                    let client = self.client().await?;
                    self.streams.spawn(follow_x509(tag, client))
                }
            };
        }
        Ok(Value::Null)
    }

    /// Takes and touches that many MiB, for memory limits.
    fn allocate(&mut self, order: &Value) -> Result<Value> {
        let mebibytes = order.get("mebibytes").and_then(Value::as_u64).context("mebibytes")?;
        for n in 0..mebibytes {
            self.ballast.push(vec![n; 1 << 17]);
        }
        Ok(json!({"event": "allocated", "mebibytes": self.ballast.len()}))
    }
}

/// From now on calls are part of these traces.
fn traces(order: &Value) -> Result<Value> {
    let values = order.get("values").and_then(Value::as_array).cloned().unwrap_or_default();
    let values: Vec<String> = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    wire::call_in_traces(&values)?;
    Ok(json!({"event": "traces"}))
}

fn bytes(order: &Value) -> Result<Bytes> {
    Ok(BASE64.decode(text(order, "request")?)?.into())
}

/// What a call of the task API came to.
fn called(answer: Result<Bytes, Status>) -> Value {
    match answer {
        Ok(answer) => json!({"event": "task_call", "answer": BASE64.encode(&answer)}),
        Err(status) => ended("task_call", Some(&status)),
    }
}

/// Becomes another program: same process, same start time, no connection any more.
fn exec(order: &Value) -> Result<Value> {
    let arguments = order.get("args").and_then(Value::as_array).cloned().unwrap_or_default();
    let arguments = arguments.iter().filter_map(Value::as_str);
    let failed = Command::new(text(order, "path")?).args(arguments).exec();
    Ok(json!({"event": "exec_failed", "why": failed.to_string()}))
}

/// Reports every message of a stream, then how it ended.
async fn follow<M>(mut stream: Streaming<M>, event: fn(&M) -> Value, end: &'static str) -> Result<()> {
    loop {
        match stream.message().await {
            Ok(Some(message)) => say(&event(&message))?,
            Ok(None) => return say(&ended(end, None)),
            Err(status) => return say(&ended(end, Some(&status))),
        }
    }
}

fn x509_event(message: &X509svidResponse) -> Value {
    let svids: Vec<Value> = message
        .svids
        .iter()
        .map(|s| {
            json!({"spiffe_id": s.spiffe_id, "hint": s.hint, "chain": BASE64.encode(&s.x509_svid),
                   "key": BASE64.encode(&s.x509_svid_key), "bundle": BASE64.encode(&s.bundle)})
        })
        .collect();
    json!({"event": "x509", "svids": svids, "crl": encoded(&message.crl)})
}

fn bundles_event(message: &X509BundlesResponse) -> Value {
    let bundles: serde_json::Map<String, Value> =
        message.bundles.iter().map(|(td, der)| (td.clone(), BASE64.encode(der).into())).collect();
    json!({"event": "bundles", "bundles": bundles, "crl": encoded(&message.crl)})
}

fn wit_event(message: &WitsvidResponse) -> Value {
    let svids: Vec<Value> = message
        .svids
        .iter()
        .map(
            |s| json!({"spiffe_id": s.spiffe_id, "hint": s.hint, "token": s.wit_svid, "key": s.wit_svid_key}),
        )
        .collect();
    json!({"event": "wit", "svids": svids})
}

fn wit_bundles_event(message: &WitBundlesResponse) -> Value {
    json!({"event": "wit_bundles", "bundles": message.bundles})
}

fn encoded(list: &[Bytes]) -> Vec<String> {
    list.iter().map(|der| BASE64.encode(der)).collect()
}

/// `code` 0 stands for an end without an error.
fn ended(event: &str, status: Option<&Status>) -> Value {
    let code = status.map_or(0, |s| i32::from(s.code()));
    let details = BASE64.encode(status.map_or(&[][..], Status::details));
    json!({"event": event, "code": code, "message": status.map_or("", |s| s.message()), "details": details})
}

async fn follow_world(tag: usize, mut stream: xds::World) -> Result<()> {
    const NAMES: [&str; 2] = ["default", "ROOTCA"];
    stream.ask(xds::ask(&NAMES, "", "")).await;
    loop {
        match stream.next().await {
            Ok(Some(reply)) => {
                report(tag, &Whole::of_secrets(&xds::Seen::all(&reply)))?;
                stream.ask(xds::ask(&NAMES, &reply.version_info, &reply.nonce)).await;
            }
            Ok(None) => return say(&json!({"event": "lost", "tag": tag})),
            Err(status) => return say(&json!({"event": "lost", "tag": tag, "why": status.to_string()})),
        }
    }
}

async fn follow_delta(tag: usize, mut stream: xds::Delta) -> Result<()> {
    use mayfly_proto::xds::envoy::service::discovery::v3::DeltaDiscoveryRequest;
    let ask = DeltaDiscoveryRequest {
        node: Some(xds::node("holder", 40)),
        resource_names_subscribe: vec!["default".to_owned(), "ALL".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    stream.ask(ask).await;
    // Only what changes comes: the whole is what has come so far.
    let mut held = std::collections::BTreeMap::new();
    loop {
        match stream.next().await {
            Ok(Some(reply)) => {
                for seen in xds::Seen::all_delta(&reply) {
                    held.insert(seen.name.clone(), seen);
                }
                report(tag, &Whole::of_secrets(&held.values().cloned().collect::<Vec<_>>()))?;
                stream.ask(DeltaDiscoveryRequest { response_nonce: reply.nonce, ..Default::default() }).await;
            }
            Ok(None) => return say(&json!({"event": "lost", "tag": tag})),
            Err(status) => return say(&json!({"event": "lost", "tag": tag, "why": status.to_string()})),
        }
    }
}

async fn follow_x509(tag: usize, client: Client) -> Result<()> {
    let mut stream = loop {
        match client.x509().await {
            Ok(stream) => break stream,
            // Busy: as any client of the Workload API would.
            Err(status) if status.code() == tonic::Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(status) => return say(&json!({"event": "lost", "tag": tag, "why": status.to_string()})),
        }
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                let svid = message.svids.first().context("an SVID")?;
                let whole = Whole {
                    leaf: svid.x509_svid.to_vec(),
                    key: svid.x509_svid_key.to_vec(),
                    anchors: vec![svid.bundle.to_vec()],
                    crls: message.crl.iter().map(|der| der.to_vec()).collect(),
                };
                report(tag, &whole)?;
            }
            Ok(None) => return say(&json!({"event": "lost", "tag": tag})),
            Err(status) => return say(&json!({"event": "lost", "tag": tag, "why": status.to_string()})),
        }
    }
}

/// Everything a workload has at one moment.
#[derive(Default)]
struct Whole {
    leaf: Vec<u8>,
    key: Vec<u8>,
    anchors: Vec<Vec<u8>>,
    crls: Vec<Vec<u8>>,
}

impl Whole {
    fn of_secrets(secrets: &[xds::Seen]) -> Self {
        let mut whole = Self::default();
        for seen in secrets {
            if let Some(leaf) = seen.chain.first() {
                (whole.leaf, whole.key) = (leaf.clone(), seen.key.clone());
            }
            whole.anchors.extend(seen.anchors.iter().cloned());
            whole.crls.extend(seen.crls.iter().cloned());
        }
        whole
    }

    /// The serial number, or what does not belong together.
    fn check(&self) -> Result<(String, usize)> {
        let (_, leaf) = x509_parser::parse_x509_certificate(&self.leaf)?;
        let key = rcgen::KeyPair::try_from(self.key.as_slice())?;
        anyhow::ensure!(
            leaf.public_key().raw == rcgen::PublicKeyData::subject_public_key_info(&key),
            "a certificate with another's key"
        );
        let mut issued = false;
        let mut revoked = 0;
        for anchor in &self.anchors {
            let (_, anchor) = x509_parser::parse_x509_certificate(anchor)?;
            issued |= anchor.subject().as_raw() == leaf.issuer().as_raw();
            let mut own = 0;
            for der in &self.crls {
                let (_, crl) = x509_parser::parse_x509_crl(der)?;
                if crl.issuer().as_raw() == anchor.subject().as_raw() {
                    own += 1;
                    revoked += crl.iter_revoked_certificates().count();
                    let listed = crl.iter_revoked_certificates().any(|r| r.raw_serial() == leaf.raw_serial());
                    anyhow::ensure!(!listed, "a certificate with the CRL that revokes it");
                }
            }
            anyhow::ensure!(own == 1, "an authority with {own} CRLs");
        }
        anyhow::ensure!(issued, "a certificate without its authority");
        Ok((leaf.raw_serial_as_string(), revoked))
    }
}

#[expect(clippy::disallowed_methods, reason = "stamps its reports")]
fn report(tag: usize, whole: &Whole) -> Result<()> {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let micros = u64::try_from(since_epoch.as_micros())?;
    match whole.check() {
        Ok((serial, revoked)) => say(
            &json!({"event": "whole", "tag": tag, "serial": serial, "revoked": revoked, "micros": micros}),
        ),
        Err(fault) => say(&json!({"event": "mixed", "tag": tag, "fault": fault.to_string()})),
    }
}

fn become_uid(order: &Value) -> Result<Value> {
    let wanted: Vec<u32> = order
        .get("uids")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_u64).filter_map(|n| u32::try_from(n).ok()).collect())
        .unwrap_or_default();
    let [real, effective, saved] = wanted.as_slice() else {
        return Err(anyhow!("`uids` wants real, effective and saved"));
    };
    let uid = nix::unistd::Uid::from_raw;
    nix::unistd::setresuid(uid(*real), uid(*effective), uid(*saved))?;
    Ok(json!({"event": "setresuid"}))
}

fn text(order: &Value, field: &str) -> Result<String> {
    order.get(field).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("no `{field}`"))
}

fn say(event: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{event}")?;
    Ok(out.flush()?)
}
