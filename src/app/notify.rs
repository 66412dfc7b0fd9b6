//! Tells people that they are asked: by a program, by a webhook. Whoever is told decides nothing by that, and who cannot
//! be told is an alarm: the request stands until it is answered or runs out.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use crate::config::ApprovalSettings;
use crate::drain::Watch;
use crate::federation::post_json;
use crate::files;
use crate::id::hex_text;
use crate::workload::{ApprovalView, Workloads};

/// Until the drain starts. Each request is told once; nobody is told of those that were asked before a restart, which
/// ended them.
pub(super) async fn follow(workloads: Workloads, settings: ApprovalSettings, mut drain: Watch) {
    if settings.notify_exec.is_empty() && settings.notify_webhook.is_none() {
        return;
    }
    let settings = Arc::new(settings);
    let mut news = workloads.approval_news();
    let (mut told, mut queue, mut running) = (HashSet::new(), VecDeque::new(), JoinSet::new());
    loop {
        news.mark_unchanged();
        let all = workloads.approvals(None, true);
        told.retain(|id| all.iter().any(|view| view.approval.id == *id));
        let pending: HashSet<_> =
            all.iter().filter(|view| view.is_pending()).map(|view| view.approval.id).collect();
        // What was answered or is void by the time its turn comes is nobody's business any more.
        queue.retain(|view: &ApprovalView| pending.contains(&view.approval.id));
        queue.extend(all.into_iter().filter(|view| view.is_pending() && told.insert(view.approval.id)));
        while running.len() < AT_ONCE
            && let Some(view) = queue.pop_front()
        {
            running.spawn(tell(workloads.clone(), Arc::clone(&settings), view));
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            _ = running.join_next(), if !running.is_empty() => {}
            () = drain.stopping() => break,
        }
    }
    // Whoever is being told is given a moment; what is left then ends with its whole group.
    drop(tokio::time::timeout(GRACE, async { while running.join_next().await.is_some() {} }).await);
    running.shutdown().await;
}

async fn tell(workloads: Workloads, settings: Arc<ApprovalSettings>, view: ApprovalView) {
    let body = Bytes::from(message(&view).to_string());
    let exec = async {
        match settings.notify_exec.split_first() {
            Some((program, arguments)) => run(program, arguments, &body).await,
            None => Ok(()),
        }
    };
    let webhook = async {
        let Some(url) = &settings.notify_webhook else { return Ok(()) };
        let posted = post_json(url, settings.webhook_ca_file.clone(), body.clone()).await;
        // Not the whole URL: with many services its path is the secret.
        posted.map_err(|error| format!("the webhook at {}: {error}", url.authority()))
    };
    let (exec, webhook) = tokio::join!(exec, webhook);
    for why in [exec, webhook].into_iter().filter_map(Result::err) {
        tracing::error!(approval = %view.approval.id, why, "people could not be told that they are asked");
        workloads.note_not_told(view.approval.id, &why);
    }
}

/// What people are told. What the agent wants to pass to a tool stays here: `mayfly approve` shows it.
fn message(view: &ApprovalView) -> Value {
    let approval = &view.approval;
    let subject = &approval.subject;
    let facts: Vec<Value> = view
        .facts
        .iter()
        .filter(|(name, _)| !["arguments", "parameter"].contains(name))
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    json!({
        "event": "approval.requested",
        "approval": approval.id.to_string(),
        "task": subject.task.to_string(),
        "agent": view.spiffe_id,
        "action": subject.action.as_str(),
        "target": subject.target,
        "operation_sha256": subject.operation.as_ref().map(|digest| hex_text(digest)),
        "approvers": approval.jury.groups,
        "quorum": approval.jury.quorum,
        "expires_at": crate::clock::unix_seconds(approval.expires_at),
        "facts": facts,
        "untrusted_purpose": view.purpose,
    })
}

/// Runs the program with that on its standard input and nothing else: no environment, no output that we would read. It
/// has a process group of its own, and nothing of that outlives it, or us.
async fn run(program: &str, arguments: &[String], body: &Bytes) -> Result<(), String> {
    let wrong = |why: &dyn std::fmt::Display| format!("`{program}` {why}");
    let path = Path::new(program).to_owned();
    let trusted = tokio::task::spawn_blocking(move || files::check_trusted(&path)).await;
    trusted
        .map_err(|error| wrong(&format!("cannot be looked at: {error}")))?
        .map_err(|error| wrong(&format!("is not run: {error}")))?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| wrong(&format!("cannot be started: {error}")))?;
    let group = Group::of(&child);
    let input = child.stdin.take();
    let work = async {
        if let Some(mut input) = input {
            // One that does not read it all says by its exit what that means.
            input.write_all(body).await.ok();
        }
        group.leader_ends().await
    };
    let in_time = tokio::time::timeout(DEADLINE, work).await;
    // As long as the first of the group is not reaped nobody else can have its number.
    drop(group);
    let ended = child.wait().await;
    match (in_time, ended) {
        (Err(_elapsed), _) => Err(wrong(&format!("was killed after {} s", DEADLINE.as_secs()))),
        (Ok(_), Ok(status)) if status.success() => Ok(()),
        (Ok(_), Ok(status)) => Err(wrong(&format!("failed: {status}"))),
        (Ok(_), Err(error)) => Err(wrong(&format!("is lost: {error}"))),
    }
}

/// A program that we run, and what it has started: all of it is gone when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw))
    }

    /// Resolves when the first of them has ended, which is not reaped yet.
    async fn leader_ends(&self) {
        let Some(pid) = self.0 else { return };
        let wait = move || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        while let Ok(Err(Errno::INTR)) = tokio::task::spawn_blocking(wait).await {}
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            rustix::process::kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

/// So many are told at once.
const AT_ONCE: usize = 4;
/// At drain.
const GRACE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);
