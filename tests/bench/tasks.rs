//! What tasks cost: each call, and the end of a tree. The tree is as great as the agent's limits allow, held by one
//! process of many identities below the roots of another one, which is killed; greater ones are made of the cores alone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use mayfly::id::{EntryId, LeaseId, TaskId};
use mayfly::lease::WorkloadId;
use mayfly::ledger::{Kind, Reason, Row};
use mayfly::task::{
    self, Bounds, Charter, Detail, Ending, Grants, Limits, NewOffer, NewTask, RawDetail, Tree,
};
use mayfly::workload::Denied;
use mayfly_attestors::{BootId, ProcessKey};
use mayfly_harness::tasks::detail;
use mayfly_harness::wire::Client;
use mayfly_harness::{Agent, Entry, Plan, files};
use mayfly_proto::task as proto;
use prost::Message;
use serde_json::Value;

use crate::{DRIVER, PATIENCE, SETTINGS, line, percentiles, socket};

/// Makes this program the holder of two roots.
pub(crate) const HOLD: &str = "--hold-roots";

const WIKI: &str = "https://wiki.example.org";

const POLICY: &str = "@id(\"all\") permit(principal, action, resource);";

const CATALOGUE: &str = r#"
[[agents]]
spiffe_id = "spiffe://example.org/**"
groups = ["agents"]
owner = "bench"
templates = ["*"]

[[targets]]
name = "wiki"
audience = "https://wiki.example.org"
data_class = "internal"
groups = ["kb"]
owner = "bench"
binding = "none"
location = "https://wiki.example.org"
"#;

/// So many live tasks one identity may have, and some to spare.
const TASKS_OF_ONE: usize = 28;
const CHILDREN: usize = 8;
const ROOTS: usize = 2;

/// An agent with a policy set, in which this program has as many identities as are asked for.
fn agent(identities: usize) -> Result<Agent> {
    let entries: Vec<Entry> = (0..identities)
        .map(|n| Entry::new(&format!("/agent/{n:03}"), &[&format!("unix:uid:{DRIVER}")]))
        .collect();
    let settings = format!("{SETTINGS}[wit]\nenabled = true\n");
    let mut agent = Plan::with_entries(&entries).settings(&settings).prepare();
    let dir = agent.dir().join("policy.d");
    agent.plan().settings += &format!("[policy]\ndir = {dir:?}\n");
    agent.write_config();
    std::fs::create_dir_all(&dir)?;
    files::replace(&dir.join("a.cedar"), POLICY.as_bytes(), 0o644);
    files::replace(&dir.join("b.toml"), CATALOGUE.as_bytes(), 0o644);
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
        self.call("Begin", &proto::BeginRequest { details, ..Default::default() }).await
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

/// The holder of the roots: says what it offers, and waits to be killed.
pub(crate) fn hold(socket: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut caller = Caller::new(socket.as_ref()).await?;
        for root in 0..ROOTS {
            let (task, _) = caller.begin().await?;
            for child in 0..CHILDREN {
                let (offer, _) = caller.delegate(&task.id, identity(1 + root * CHILDREN + child)).await?;
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

fn roots(agent: &Agent) -> Result<(Roots, Vec<String>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([HOLD, &socket(agent)?])
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
    let agent = agent(descendants / TASKS_OF_ONE + ROOTS * CHILDREN + 4)?;
    let (mut holder, offers) = roots(&agent)?;
    let mut caller = Caller::new(&agent.public()).await?;
    let (mut made, mut last) = (Vec::new(), String::new());
    for offer in offers {
        made.push(caller.join(&offer).await?.0);
    }
    let (mut at, first) = (0, 1 + ROOTS * CHILDREN);
    while made.len() < descendants {
        let parent = made.get(at).context("a parent with room")?.id.clone();
        for _ in 0..CHILDREN.min(descendants - made.len()) {
            let to = first + (made.len() - ROOTS * CHILDREN) / TASKS_OF_ONE;
            let (offer, _) = caller.delegate(&parent, identity(to)).await?;
            made.push(caller.join(&offer.id).await?.0);
        }
        at += 1;
    }
    for task in &made {
        last = caller.issue(&task.id, proto::Format::AccessToken).await?.0.id;
    }
    holder.0.kill()?;
    let (ended, revoked) = latencies(&agent, made.len() + ROOTS, made.len()).await?;
    anyhow::ensure!(!last.is_empty(), "credentials were issued");
    let what = format!("exit of the roots' holder, {} descendants below", made.len());
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
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("not everything ended, or the record lost some of it")
}

/// Trees wider than any agent allows: from the order to every task ended and every lease refused in memory.
pub(crate) fn cores(sizes: &[usize]) -> Result<()> {
    for size in sizes {
        let mut took = Vec::new();
        for _ in 0..20 {
            took.push(Big::new(*size)?.end());
        }
        line(&format!("cores alone: end of a tree with {size} descendants"), &percentiles(&mut took))?;
    }
    Ok(())
}

/// One root with that many children, each with one credential.
struct Big {
    tree: Tree,
    root: TaskId,
    rows: BTreeMap<LeaseId, Row>,
    now: Instant,
}

impl Big {
    fn new(size: usize) -> Result<Self> {
        let children = u32::try_from(size)?;
        let bounds = Bounds {
            children,
            children_ever: children + 1,
            tasks_per_agent: size + 1,
            tasks: size + 1,
            ..Bounds::default()
        };
        let now = Instant::now();
        let mut big = Self { tree: Tree::new(bounds), root: name(0), rows: BTreeMap::new(), now };
        let grants = Grants::of(vec![whole()?]);
        let root = new_task(name(0), charter(grants.clone())?, 0);
        big.tree.begin(root, now)?;
        let caller = task::Caller { process: process(0), cgroup: None, identities: Vec::new() };
        for n in 1..=children {
            let offer = NewOffer {
                id: mayfly::id::DelegationId::from_bytes(u128::from(n).to_be_bytes()),
                parent: name(0),
                charter: charter(Grants::default())?,
                asked: grants.details().to_vec(),
                life: None,
                drops_user: false,
                key: None,
            };
            let id = big.tree.offer(offer, &grants, &caller, now)?.id;
            big.tree.join(id, new_task(name(n), charter(grants.clone())?, n), now)?;
            let lease = LeaseId::from_bytes((1 << 120 | u128::from(n)).to_be_bytes());
            big.tree.hold(name(n), lease);
            big.rows.insert(lease, row(lease, name(n)));
        }
        Ok(big)
    }

    fn end(mut self) -> f64 {
        let mut denied = Denied::default();
        let begin = Instant::now();
        let wall = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let cascade = self.tree.end(self.root, Ending::ProcessExit, self.now, wall);
        for lease in cascade.leases() {
            if let Some(row) = self.rows.remove(&lease) {
                denied.add(row, Reason::TaskEnded, wall);
            }
        }
        let tree = &self.tree;
        std::hint::black_box(cascade.tolls(|id| tree.get(id)?.parent));
        begin.elapsed().as_secs_f64() * 1e6
    }
}

fn name(n: u32) -> TaskId {
    TaskId::from_bytes(u128::from(n).to_be_bytes())
}

fn process(n: u32) -> ProcessKey {
    ProcessKey { boot_id: BootId::from_bytes([1; 16]), pid: n + 1, start_time: 1, pidfs_inode: None }
}

fn whole() -> Result<Detail> {
    Ok(Detail::read(&RawDetail {
        kind: task::grant::TARGET_ACCESS.to_owned(),
        locations: vec![WIKI.to_owned()],
        actions: vec!["read".to_owned()],
        ..RawDetail::default()
    })?)
}

fn charter(grants: Grants) -> Result<Charter> {
    Ok(Charter {
        spiffe_id: mayfly::id::SpiffeId::parse(b"spiffe://example.org/agent")?,
        entry: EntryId::new("agent"),
        purpose: String::new(),
        template: None,
        params: BTreeMap::new(),
        grants,
        limits: Limits::default(),
        require_isolated: false,
        user: None,
        credential_ttl: None,
        evaluation: String::new(),
        policy_version: String::new(),
    })
}

fn new_task(id: TaskId, charter: Charter, holder: u32) -> NewTask {
    let seat = task::Seat {
        holder: WorkloadId(holder.into()),
        process: process(holder),
        uid: 0,
        scope: task::Scope::Process,
    };
    NewTask { id, charter, seat, life: None, pending: false, begun_at: UNIX_EPOCH, key: None }
}

fn row(id: LeaseId, task: TaskId) -> Row {
    Row {
        id,
        kind: Kind::Access,
        issuer: "kid".to_owned(),
        spiffe_id: "spiffe://example.org/agent".to_owned(),
        entry: EntryId::new("agent"),
        uid: 0,
        process: process(0),
        issued_at: 1_800_000_000,
        not_after: 1_800_000_300,
        audience: vec![WIKI.to_owned()],
        state: mayfly::ledger::State::Live,
        status: None,
        task: Some(task),
    }
}
