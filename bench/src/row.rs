//! The rows of the table: which stand, and which way the client takes.

use crate::{
    peer::Peer,
    stand::{Subject, Way},
};

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// As it is printed.
    pub name: &'static str,
    /// What stands between.
    pub subject: Subject,
    /// Where the client connects to.
    pub way: Way,
    /// The row that it is to be compared with, if Envoy has one that is alike.
    pub envoy: Option<&'static str>,
    /// Whether requests are split one by one, so that their shares must be as configured.
    pub splits: bool,
}

/// Name of the row without any proxy.
pub const DIRECT: &str = "direct";
/// Name of weft's own row.
pub const WEFT: &str = "weft captured";
/// Name of weft's row where the backends are on another node.
pub const WEFT_NODES: &str = "weft between nodes";
/// Name of the row that this one is compared with.
const ENVOY_NODES: &str = "Envoy between nodes";
/// Name of the row that weft is compared with.
pub const ENVOY: &str = "Envoy captured";
const ENVOY_EXPLICIT: &str = "Envoy explicit";

const fn captured(name: &'static str, peer: Peer) -> Row {
    Row { name, subject: Subject::Peer(peer), way: Way::Service, envoy: Some(ENVOY), splits: true }
}

const fn explicit(name: &'static str, peer: Peer) -> Row {
    Row { name, subject: Subject::Peer(peer), way: Way::Explicit, envoy: Some(ENVOY_EXPLICIT), splits: true }
}

/// All of them, in the order of the table.
pub const ROWS: [Row; 16] = [
    Row { name: DIRECT, subject: Subject::Direct, way: Way::Service, envoy: None, splits: false },
    Row { name: WEFT, subject: Subject::Weft, way: Way::Service, envoy: Some(ENVOY), splits: true },
    captured(ENVOY, Peer::Envoy),
    captured("nginx captured", Peer::Nginx),
    captured("haproxy captured", Peer::Haproxy),
    captured("tpc hyper captured", Peer::Tpc),
    captured("raw epoll captured", Peer::Raw),
    Row { name: WEFT_NODES, subject: Subject::WeftNodes, way: Way::Service, envoy: Some(ENVOY_NODES), splits: true },
    Row { name: ENVOY_NODES, subject: Subject::EnvoyNodes, way: Way::Service, envoy: Some(ENVOY_NODES), splits: true },
    Row { name: "weft opaque TCP", subject: Subject::Weft, way: Way::Opaque, envoy: None, splits: false },
    Row {
        name: "TCP copy captured",
        subject: Subject::Peer(Peer::Copy),
        way: Way::Service,
        envoy: None,
        splits: false,
    },
    explicit(ENVOY_EXPLICIT, Peer::Envoy),
    explicit("nginx explicit", Peer::Nginx),
    explicit("haproxy explicit", Peer::Haproxy),
    explicit("tpc hyper explicit", Peer::Tpc),
    explicit("raw epoll explicit", Peer::Raw),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_comparisons_exist() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|other| other.name != row.name), "{}", row.name);
            assert!(row.envoy.is_none_or(|name| ROWS.iter().any(|other| other.name == name)), "{}", row.name);
        }
    }
}
