//! How long starting takes: of the agent until it serves, and of client commands.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use mayfly_harness::{Agent, Plan, files};

use super::{SETTINGS, entries, line, percentiles};

pub(super) fn measure(quick: bool) -> Result<()> {
    let mut took = Vec::new();
    let mut last = None;
    for _ in 0..if quick { 5 } else { 20 } {
        let begin = Instant::now();
        let agent: Agent = Plan::with_entries(&entries(0)).settings(SETTINGS).start();
        took.push(begin.elapsed().as_secs_f64() * 1e6);
        last = Some(agent);
    }
    line("start of a new agent to serving, keys made", &percentiles(&mut took))?;
    let agent = last.context("an agent")?;
    let public = format!("unix://{}", agent.public().display());
    for arguments in [&["--help"][..], &["whoami"], &["fetch", "x509"]] {
        let mut took = Vec::new();
        for _ in 0..if quick { 20 } else { 100 } {
            let begin = Instant::now();
            let status = Command::new(files::built("mayfly"))
                .args(arguments)
                .env("SPIFFE_ENDPOINT_SOCKET", &public)
                .current_dir(agent.dir())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            took.push(begin.elapsed().as_secs_f64() * 1e6);
            anyhow::ensure!(status.success(), "mayfly {arguments:?}: {status}");
        }
        line(&format!("mayfly {}", arguments.join(" ")), &percentiles(&mut took))?;
    }
    Ok(())
}
