//! The application inside a test pod: a small, honest server and client, and what they report.
//!
//! It knows nothing of weft. The server tells which address it saw; the client tells what became of every connection.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub mod conformance;
pub mod control;
pub mod flood;
pub mod frames;
pub mod http_server;
pub mod load;
pub mod talk;
pub mod tcp_server;
pub mod watch;

/// What the server writes when its ports are open.
pub const READY: &str = "ready";

/// Where the binary is.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> Result<PathBuf> {
    crate::agent::binary("weft-testpod")
}

/// What a server has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStats {
    /// By port.
    pub ports: BTreeMap<u16, PortStats>,
}

/// What one port has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// Connections accepted.
    pub connections: u64,
    /// HTTP requests begun.
    pub requests: u64,
    /// Connections by the peer's address.
    pub peers: BTreeMap<String, u64>,
    /// Connections to a port of TCP whose first bytes were those of a TLS ClientHello (RFC 8446, section 5.1).
    #[serde(default)]
    pub client_hellos: u64,
}

impl ServerStats {
    /// Connections of all ports.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.ports.values().map(|port| port.connections).sum()
    }

    /// Connections to one port.
    #[must_use]
    pub fn connections_to(&self, port: u16) -> u64 {
        self.ports.get(&port).map_or(0, |port| port.connections)
    }

    /// TLS handshakes that came to ports which know no TLS.
    #[must_use]
    pub fn client_hellos(&self) -> u64 {
        self.ports.values().map(|port| port.client_hellos).sum()
    }

    /// Requests of all ports.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.ports.values().map(|port| port.requests).sum()
    }
}

/// What became of a load's connections. Each is in exactly one of `served`, `refused`, `reset`, `timed_out`, `failed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Connections tried.
    pub connections: u64,
    /// Got the answer that the protocol promises (HTTP: any complete response).
    pub served: u64,
    /// Connect said ECONNREFUSED.
    pub refused: u64,
    /// Connected, and ended before an answer was complete.
    pub reset: u64,
    /// Neither within the time for one connection.
    pub timed_out: u64,
    /// Any other error, by its name.
    pub failed: BTreeMap<String, u64>,
    /// Who served, by the name in the answer.
    pub servers: BTreeMap<String, u64>,
    /// HTTP statuses.
    pub statuses: BTreeMap<u16, u64>,
    /// Longest time until a refusal, microseconds.
    pub refused_us_max: u64,
    /// Longest time until a reset, microseconds.
    pub reset_us_max: u64,
    /// Median time until an answer, microseconds.
    pub served_us_p50: u64,
    /// 99th percentile of the same.
    pub served_us_p99: u64,
    /// Longest of the same.
    pub served_us_max: u64,
    /// From the first connection's start to the last one's end, milliseconds.
    pub elapsed_ms: u64,
}

impl LoadReport {
    /// Connections that nobody served and nobody refused.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.connections - self.served - self.refused
    }

    /// Connections that ended with an unnamed error.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// The machine's monotonic clock, nanoseconds: the same in every process.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
