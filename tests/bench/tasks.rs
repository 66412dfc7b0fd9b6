//! What tasks cost: each call, and the end of a tree. The tree is as great as the agent's limits allow, held by one
//! process of many identities below the roots of another one, which is killed.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::detail;
use mayfly_harness::wire::Client;
use mayfly_harness::{Agent, Entry, Plan, Policies};
use mayfly_proto::task as proto;
use prost::Message;
use serde_json::Value;

use crate::{DRIVER, PATIENCE, SETTINGS, line, percentiles, socket};

/// Makes this program the holder of two roots.
pub(crate) const HOLD: &str = "--hold-roots";

/// So many live tasks one identity may have, and some to spare.
const TASKS_OF_ONE: usize = 28;
const CHILDREN: usize = 8;
/// Below one root, with three levels.
const BELOW_ROOT: usize = CHILDREN + CHILDREN * CHILDREN + CHILDREN * CHILDREN * CHILDREN;
/// All that an agent allows are 10,000, and the roots are among them.
pub(crate) const MOST: usize = 9_900;

/// An agent with a policy set, in which this program has as many identities as are asked for.
fn agent(identities: usize) -> Result<Agent> {
    let entries: Vec<Entry> = (0..identities)
        .map(|n| Entry::new(&format!("/agent/{n:03}"), &[&format!("unix:uid:{DRIVER}")]))
        .collect();
    let settings = format!("{SETTINGS}[wit]\nenabled = true\n");
    let mut agent = Plan::with_entries(&entries).settings(&settings).prepare();
    let all = "@id(\"all\") permit(principal, action, resource);";
    Policies::of(all)
        .agents("**", "agents", &["*"])
        .target("wiki", &[("location", WIKI)])
        .install(&mut agent);
    agent.launch();
    Ok(agent)
}

fn identity(n: usize) -> String {
    format!("spiffe://example.org/agent/{n:03}")
}

/// A client that opens a new connection before the old one has used up its streams.
struct Caller {
    socket: std::path::PathBuf,
    client: Client,
    calls: usize,
}

impl Caller {
    async fn new(socket: &std::path::Path) -> Result<Self> {
        Ok(Self { socket: socket.to_owned(), client: Client::connect(socket).await?, calls: 0 })
    }

    /// The answer, and how long it took.
    async fn call<A: Message + Default>(&mut self, method: &str, request: &impl Message) -> Result<(A, f64)> {
        self.calls += 1;
        if self.calls.is_multiple_of(150) {
            self.client = Client::connect(&self.socket).await?;
        }
        let begin = Instant::now();
        let answer = self.client.task_call(method, request.encode_to_vec().into()).await;
        let took = begin.elapsed().as_secs_f64() * 1e6;
        let answer = answer.with_context(|| method.to_owned())?;
        Ok((A::decode(answer)?, took))
    }

    async fn begin(&mut self) -> Result<(proto::Task, f64)> {
        let details = vec![detail(WIKI, &["read"])];
        // By name: which of many is the default, and so has fewer tasks to give, is not ours to say.
        let spiffe_id = identity(0);
        self.call("Begin", &proto::BeginRequest { details, spiffe_id, ..Default::default() }).await
    }

    async fn end(&mut self, task: &str) -> Result<(proto::TaskSummary, f64)> {
        self.call("End", &proto::EndRequest { task_id: task.to_owned(), ..Default::default() }).await
    }

    async fn delegate(&mut self, task: &str, to: String) -> Result<(proto::Delegation, f64)> {
        let request = proto::DelegateRequest {
            task_id: task.to_owned(),
            spiffe_id: to,
            details: vec![detail(WIKI, &["read"])],
            ..Default::default()
        };
        self.call("Delegate", &request).await
    }

    async fn join(&mut self, offer: &str) -> Result<(proto::Task, f64)> {
        let request = proto::JoinRequest { delegation_id: offer.to_owned(), ..Default::default() };
        self.call("Join", &request).await
    }

    async fn issue(&mut self, task: &str, format: proto::Format) -> Result<(proto::Credential, f64)> {
        let request = proto::IssueRequest {
            task_id: task.to_owned(),
            format: format.into(),
            audience: vec![WIKI.to_owned()],
            // It must not run out while the tree is made.
            ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            ..Default::default()
        };
        self.call("Issue", &request).await
    }
}

/// One call at a time, from request to answer, through everything: policy, ledger, audit log.
pub(crate) async fn calls(rounds: usize) -> Result<()> {
    let agent = agent(1)?;
    let mut caller = Caller::new(&agent.public()).await?;
    let (mut begins, mut pairs, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut issues: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        let (root, took) = caller.begin().await?;
        begins.push(took);
        let (offered, one) = caller.delegate(&root.id, identity(0)).await?;
        let (child, other) = caller.join(&offered.id).await?;
        pairs.push(one + other);
        for (name, format) in [
            ("access token", proto::Format::AccessToken),
            ("JWT-SVID", proto::Format::JwtSvid),
            ("X.509-SVID", proto::Format::X509Svid),
            ("WIT-SVID", proto::Format::WitSvid),
        ] {
            issues.entry(name).or_default().push(caller.issue(&child.id, format).await?.1);
        }
        ends.push(caller.end(&root.id).await?.1);
    }
    line("task: Begin", &percentiles(&mut begins))?;
    line("task: Delegate and Join", &percentiles(&mut pairs))?;
    for (name, mut took) in issues {
        line(&format!("task: Issue, {name}"), &percentiles(&mut took))?;
    }
    line("task: End of two tasks with four credentials", &percentiles(&mut ends))
}

/// The identity of the descendant that is made as the n-th.
fn heir(n: usize) -> String {
    identity(1 + n / TASKS_OF_ONE)
}

/// The holder of the roots: says what it offers, and waits to be killed.
pub(crate) fn hold(socket: &str, roots: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut caller = Caller::new(socket.as_ref()).await?;
        for root in 0..roots {
            let (task, _) = caller.begin().await?;
            for child in 0..CHILDREN {
                let (offer, _) = caller.delegate(&task.id, heir(root * CHILDREN + child)).await?;
                writeln!(std::io::stdout(), "{}", offer.id)?;
            }
        }
        writeln!(std::io::stdout(), "done")?;
        std::future::pending().await
    })
}

/// The process with the roots; it ends with this.
struct Roots(Child);

impl Drop for Roots {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn roots(agent: &Agent, count: usize) -> Result<(Roots, Vec<String>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([HOLD, &socket(agent)?, &count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("a pipe")?;
    let roots = Roots(child);
    let mut offers = Vec::new();
    for said in BufReader::new(output).lines() {
        match said? {
            done if done == "done" => return Ok((roots, offers)),
            offer => offers.push(offer),
        }
    }
    bail!("the holder of the roots ended")
}

/// From the exit of the roots' holder, as the agent saw it, to the last effect on this machine: every task below has
/// ended and every credential is refused. The figures are the agent's own, from the audit log.
pub(crate) async fn cascade(descendants: usize) -> Result<()> {
    let count = descendants.div_ceil(BELOW_ROOT);
    let agent = agent(descendants / TASKS_OF_ONE + 2)?;
    let (mut holder, offers) = roots(&agent, count)?;
    let mut caller = Caller::new(&agent.public()).await?;
    let (mut made, mut last) = (Vec::new(), String::new());
    for offer in offers {
        made.push(caller.join(&offer).await?.0);
    }
    let mut at = 0;
    while made.len() < descendants {
        let parent = made.get(at).context("a parent with room")?.id.clone();
        for _ in 0..CHILDREN.min(descendants - made.len()) {
            let (offer, _) = caller.delegate(&parent, heir(made.len())).await?;
            made.push(caller.join(&offer.id).await?.0);
        }
        at += 1;
    }
    for task in &made {
        last = caller.issue(&task.id, proto::Format::AccessToken).await?.0.id;
    }
    holder.0.kill()?;
    let (ended, revoked) = latencies(&agent, made.len() + count, made.len()).await?;
    anyhow::ensure!(!last.is_empty(), "credentials were issued");
    let what = format!("exit of the holder of {count} roots, {} descendants below", made.len());
    line(&format!("{what}: each task ended"), &percentiles(&mut ended.clone()))?;
    line(
        "  each of as many credentials refused, in the ledger and listed",
        &percentiles(&mut revoked.clone()),
    )
}

/// Of each task that ended and of each credential that was revoked, in microseconds.
async fn latencies(agent: &Agent, tasks: usize, credentials: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        // The whole record is read each time: not while the agent is at it.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let log = std::fs::read_to_string(agent.audit_path())?;
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let (mut ended, mut revoked) = (Vec::new(), Vec::new());
        for event in lines {
            let took = event.pointer("/revocation/latency_ms").and_then(Value::as_f64);
            let Some(took) = took else { continue };
            match event.get("event").and_then(Value::as_str) {
                Some("task.ended") => ended.push(took * 1e3),
                Some("credential.revoke") => revoked.push(took * 1e3),
                _ => {}
            }
        }
        if ended.len() == tasks && revoked.len() == credentials {
            return Ok((ended, revoked));
        }
    }
    bail!("not everything ended, or the record lost some of it")
}
