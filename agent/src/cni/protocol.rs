//! What plugin and agent say to each other, over a Unix socket: one line of JSON each. With the first byte of the question comes a
//! descriptor of the sandbox's network namespace, because the agent's container does not see the path that the plugin was given.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Name of the socket inside the agent's run directory.
pub const CNI_SOCKET: &str = "cni.sock";

/// A sandbox whose network is ready, and in which nothing runs yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; not every container runtime says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The addresses that the plugins before gave it.
    pub ips: Vec<IpAddr>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Answer {
    /// Its connections are captured from the first packet on.
    Captured,
    /// It is not in the mesh.
    NotMeshed,
    /// It is not captured, and is tried again; until then its connections go by no policy of weft's.
    NotCaptured {
        /// Why.
        reason: String,
    },
}

impl Answer {
    /// As a label of metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::NotMeshed => "not_meshed",
            Self::NotCaptured { .. } => "not_captured",
        }
    }
}
