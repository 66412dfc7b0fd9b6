//! How long a change of the bundles takes to everybody who listens. The change is a new CRL, brought about by the
//! `kill` of a small process, because that is the one that happens all the time; every other takes the same way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mayfly_harness::tools::Tool;
use mayfly_harness::wire::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::{PATIENCE, VICTIM, line, percentiles, socket, start};

const CONNECTIONS: usize = 200;

/// `FetchX509Bundles` streams, as many as each of `sizes` says, over 200 connections. The readers share the cores with
/// the agent, so the figures hold the cost of reading as well.
pub(crate) async fn fan_out(sizes: &[usize], rounds: usize) -> Result<()> {
    let agent = start(0);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Client::connect(&agent.public()).await?);
    }
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut readers = JoinSet::new();
    for size in sizes {
        while readers.len() < *size {
            let client = connections.get(readers.len() % CONNECTIONS).context("a connection")?;
            let mut stream = client.bundles().await?;
            stream.message().await?.context("a first message")?;
            let tell = tell.clone();
            readers.spawn(async move {
                while let Ok(Some(_)) = stream.message().await {
                    if tell.send(Instant::now()).is_err() {
                        return;
                    }
                }
            });
        }
        let (mut each, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let mut victim = Tool::run(&agent, VICTIM, "peer", &["call", &socket(&agent)?]);
            victim.expect_within("svid", PATIENCE).context("the victim was not served")?;
            let pid = nix::unistd::Pid::from_raw(i32::try_from(victim.pid())?);
            let begin = Instant::now();
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
            let mut last = Duration::ZERO;
            for _ in 0..*size {
                let at = tokio::time::timeout(PATIENCE, told.recv()).await?.context("a stream ended")?;
                let took = at.saturating_duration_since(begin);
                each.push(took.as_secs_f64() * 1e6);
                last = last.max(took);
            }
            whole.push(last.as_secs_f64() * 1e6);
            // One at a time, past the window in which revocations are gathered.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        line(&format!("kill to new CRL at each of {size} streams"), &percentiles(&mut each))?;
        line(&format!("  at the last of {size} streams"), &percentiles(&mut whole))?;
    }
    Ok(())
}
