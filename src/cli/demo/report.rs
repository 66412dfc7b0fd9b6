//! What the demo saw: a line for each step as it happens, or one JSON object at the end.

use std::time::Instant;

use serde::Serialize;

use super::super::failure::Failure;
use super::super::status::LatencyJson;
use super::super::{Context, render};
use crate::clock::{Clock, SystemClock};

/// Steps seen so far.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    seen: Seen,
}

#[derive(Debug, Default, Serialize)]
struct Seen {
    ok: bool,
    steps: Vec<Step>,
    /// The agent's own histogram, microseconds.
    revocation_latency: Vec<LatencyJson>,
}

#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    /// How long it took, measured here; `null` where that means nothing.
    micros: Option<u64>,
    detail: String,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, seen: Seen::default() }
    }

    /// A step that was observed.
    pub(crate) fn step(
        &mut self,
        context: &mut Context,
        step: &'static str,
        micros: Option<u64>,
        detail: String,
    ) -> Result<(), Failure> {
        if !self.json {
            let took = micros.map_or_else(String::new, render::millis);
            context.console.line(&format!("{step:<9} {took:>12}  {detail}"))?;
        }
        self.seen.steps.push(Step { step, micros, detail });
        Ok(())
    }

    /// The agent's own figures; gaps it has not measured are left out.
    pub(crate) fn latency(&mut self, context: &mut Context, rows: Vec<LatencyJson>) -> Result<(), Failure> {
        if !self.json {
            for row in rows.iter().filter(|row| row.count > 0) {
                let (gap, p50) = (row.gap.replace('_', " "), render::millis(row.p50_micros));
                context
                    .console
                    .line(&format!("{:<9} {p50:>12}  {gap}, by the agent's own clock", "latency"))?;
            }
        }
        self.seen.revocation_latency = rows;
        Ok(())
    }

    /// The verdict.
    pub(crate) fn close(&mut self, context: &mut Context, ok: bool) -> Result<(), Failure> {
        self.seen.ok = ok;
        if self.json {
            context.console.json(&self.seen)?;
        }
        Ok(())
    }
}

/// Measures from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(SystemClock.monotonic())
    }

    /// Microseconds since the start.
    pub(crate) fn micros(self) -> u64 {
        let length = SystemClock.monotonic().saturating_duration_since(self.0);
        u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
    }
}
