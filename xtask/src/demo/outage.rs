//! Connections made while the agent is killed and started again, or replaced.

use std::time::Duration;

use anyhow::{Context, Result};
use weft_integration::{status::PodStats, testpod::LoadReport};

use super::{
    report::Restart,
    stage::{NAMESPACE, Stage},
};

/// Connections made through each outage.
const CONNECTIONS: u64 = 1_500;
/// New ones each second: the outage falls into the middle of them.
const RATE: u32 = 300;
/// The agent goes when so many have ended.
const GONE_AFTER: u64 = 300;
/// It comes back when so many have ended.
const BACK_AFTER: u64 = 900;
/// How long a connection may take before it counts as lost.
const CONNECTION_TIMEOUT_MS: u64 = 3_000;
/// How long all of it may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How the agent goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Killed, and pods may go direct.
    Open,
    /// Killed, and pods are refused.
    Closed,
    /// Replaced by a new one.
    HandOver,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Open, Self::Closed, Self::HandOver];

    /// The word in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::HandOver => "hand-over",
        }
    }
}

/// Makes the connections and sees what becomes of them.
pub(crate) fn run(stage: &mut Stage, mode: Mode) -> Result<Restart> {
    stage.fail_mode(if mode == Mode::Closed { "closed" } else { "open" })?;
    let before = client_stats(stage)?;
    let mut command = stage.client()?.testpod()?;
    command.args(["load", "--to", &Stage::web_address().to_string(), "--host", super::stage::HOST]);
    command.args(["--connections", &CONNECTIONS.to_string(), "--concurrency", "16", "--rate", &RATE.to_string()]);
    command.args(["--timeout-ms", &CONNECTION_TIMEOUT_MS.to_string(), "--progress", "10"]);
    let mut load = stage.client()?.spawn(command)?;
    let reached = |count: u64| {
        let wanted = format!("done {count}");
        load.wait_line(&wanted, TIMEOUT, |line| (line == wanted).then_some(()))
    };
    reached(GONE_AFTER)?;
    match mode {
        Mode::Open | Mode::Closed => {
            stage.kill_agent()?;
            reached(BACK_AFTER)?;
            stage.start_agent()?;
        }
        Mode::HandOver => stage.hand_over()?,
    }
    let output = load.finish(TIMEOUT)?;
    let last = output.lines().last().context("the load wrote no report")?;
    let report: LoadReport = serde_json::from_str(last).context("cannot read the load's report")?;
    let after = client_stats(stage)?;
    Ok(Restart {
        mode: mode.name(),
        connects: report.connections,
        captured: after.outbound_captured - before.outbound_captured,
        refused: report.refused,
        direct: after.outbound_direct - before.outbound_direct,
        // What the agent held when it was killed ends with it, at once; in a hand-over nothing may.
        cut: if mode == Mode::HandOver { 0 } else { report.reset },
        lost: report.lost() - if mode == Mode::HandOver { 0 } else { report.reset },
        unserved: report.served - report.statuses.get(&200).copied().unwrap_or(0),
    })
}

fn client_stats(stage: &Stage) -> Result<PodStats> {
    stage.agent()?.pod_stats(NAMESPACE, stage.client()?.name())
}
