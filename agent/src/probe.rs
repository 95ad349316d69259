//! What a container's probes ask: whether *this* agent is alive, and whether it is the one that carries connections.
//!
//! The admin socket lies in a directory of the node, and during an upgrade two agents share it: the answer of the other one must not
//! make this one ready, or the old pod would be stopped before the new one has taken over. So the probe looks at who answers. A probe
//! runs in the container of its agent, that is, in its mount namespace (mount_namespaces(7)).

use std::{io, path::Path};

use http::Method;
use tokio::net::UnixStream;

use crate::admin::{
    api::Status,
    client::{ClientError, ask},
    server::ADMIN_SOCKET,
};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Question {
    /// Whether the data path moves. An agent that is not in charge, or not yet, is alive.
    Live,
    /// Whether this agent is in charge of the node, and has applied policy.
    Ready,
}

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody, or not in time, or not understood.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Who answers cannot be told.
    #[error("it cannot be told whose admin socket this is")]
    Peer(#[source] io::Error),
    /// The agent of another pod.
    #[error("another agent is in charge of this node")]
    Other,
    /// It starts, or ends.
    #[error("the agent is {0}")]
    NotReady(&'static str),
    /// It hangs.
    #[error("a worker has not moved for {0} ms")]
    Stuck(u64),
}

/// Who holds the admin socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    Own,
    Other,
}

/// Asks the agent whose container this runs in.
///
/// # Errors
/// When the answer is no.
pub async fn probe(run_dir: &Path, question: Question) -> Result<(), ProbeError> {
    match (question, holder(run_dir).await?) {
        // A start waits for the API server as long as that takes; an end waits for connections. Neither is a hang.
        (Question::Live, Holder::Nobody | Holder::Other) => return Ok(()),
        (Question::Ready, Holder::Other) => return Err(ProbeError::Other),
        (Question::Ready, Holder::Nobody) | (_, Holder::Own) => {}
    }
    let status: Status = ask(run_dir, Method::GET, "/status", "").await?;
    judge(question, status.heartbeat_age_ms, status.ready, status.draining)
}

fn judge(question: Question, heartbeat_age_ms: u64, ready: bool, draining: bool) -> Result<(), ProbeError> {
    match question {
        Question::Live if u128::from(heartbeat_age_ms) * 1_000_000 >= heartbeat_age_max_ns() => {
            Err(ProbeError::Stuck(heartbeat_age_ms))
        }
        Question::Ready if draining => Err(ProbeError::NotReady("draining")),
        Question::Ready if !ready => Err(ProbeError::NotReady("not ready")),
        Question::Live | Question::Ready => Ok(()),
    }
}

fn heartbeat_age_max_ns() -> u128 {
    u128::from(weft_abi::limits::HEARTBEAT_MAX_AGE_NS)
}

async fn holder(run_dir: &Path) -> Result<Holder, ProbeError> {
    let Ok(stream) = UnixStream::connect(run_dir.join(ADMIN_SOCKET)).await else { return Ok(Holder::Nobody) };
    // A process that has no process id here is in another container, and so is one that is not visible.
    let Some(pid) = stream.peer_cred().map_err(ProbeError::Peer)?.pid().filter(|pid| *pid > 0) else {
        return Ok(Holder::Other);
    };
    let own = std::fs::read_link("/proc/self/ns/mnt").map_err(ProbeError::Peer)?;
    let same = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|of_peer| of_peer == own);
    Ok(if same { Holder::Own } else { Holder::Other })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_agents_state() {
        for (age_ms, is_ready, draining, live, ready) in [
            (0, true, false, true, true),
            (0, false, false, true, false),
            (0, true, true, true, false),
            (3_600_000, true, false, false, true),
        ] {
            assert_eq!(judge(Question::Live, age_ms, is_ready, draining).is_ok(), live);
            assert_eq!(judge(Question::Ready, age_ms, is_ready, draining).is_ok(), ready);
        }
    }

    #[tokio::test]
    async fn an_agent_that_waits_for_its_turn_is_alive_and_not_ready() {
        let run_dir = tempfile::tempdir().unwrap();
        assert!(probe(run_dir.path(), Question::Live).await.is_ok());
        assert!(matches!(probe(run_dir.path(), Question::Ready).await, Err(ProbeError::Client(_))));
    }
}
