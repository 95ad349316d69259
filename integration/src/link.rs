//! What lies between the nodes of a cluster: a switch that can lose packets and that can be listened to.
//!
//! Nodes route each other's pods over it, as Calico without an overlay does: what is seen on the link has the pods' own addresses.

use std::fmt::Write as _;

use anyhow::{Context, Result};

pub mod recording;

pub use recording::Recording;

use crate::{Node, command, namespace::Namespace};

/// Name of each node's interface to the link.
const DEVICE: &str = "link0";

/// The link. It goes with its value, and the nodes cannot reach each other any more.
#[derive(Debug)]
pub struct Link {
    switch: Namespace,
    nodes: Vec<Node>,
}

impl Link {
    /// Connects nodes, each with each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn between(nodes: &[Node]) -> Result<Self> {
        let first = nodes.first().context("a link between no nodes")?;
        let switch = Namespace::create(&format!("{}link", first.prefix()))?;
        let mut ports = String::from("link set lo up\nlink add switch address 02:77:00:00:00:01 type bridge\n");
        for node in nodes {
            let (number, netns) = (node.number(), node.namespace().name());
            writeln!(ports, "link add port{number} type veth peer name {DEVICE} netns {netns}")?;
            writeln!(ports, "link set port{number} master switch up")?;
        }
        ports.push_str("link set switch up\n");
        switch.ip(&ports)?;
        for node in nodes {
            // Nobody else is on the link, so no address needs to be tried.
            command::output(node.namespace().command("sysctl").args(["-qw", "net.ipv6.conf.link0.accept_dad=0"]))?;
            let (v4, v6) = addresses(node);
            node.namespace().ip(&format!(
                "addr add {v4}/24 dev {DEVICE}\naddr add {v6}/64 dev {DEVICE} nodad\nlink set {DEVICE} up\n"
            ))?;
        }
        for node in nodes {
            node.namespace().ip(&routes(node, nodes)?)?;
        }
        Ok(Self { switch, nodes: nodes.to_vec() })
    }

    /// From now on the link loses so many of a thousand packets that enter it from each node, at random: none with 0, all with 1000.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn lose(&self, per_mille: u16) -> Result<()> {
        // Declared before it is deleted: so it is no error if it is not there.
        let mut script = "table inet link-loss {}\ndelete table inet link-loss\n".to_owned();
        if per_mille > 0 {
            let some = if per_mille < 1000 { format!("numgen random mod 1000 < {per_mille}") } else { String::new() };
            let rule = format!("oifname {DEVICE} {some} counter drop");
            for hook in ["forward", "output"] {
                writeln!(
                    script,
                    "table inet link-loss {{ chain {hook} {{ type filter hook {hook} priority filter; {rule}; }}; }}"
                )?;
            }
        }
        self.nodes.iter().try_for_each(|node| node.nft(&script))
    }

    /// Listens to everything that crosses the link from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn record(&self) -> Result<Recording> {
        Recording::start(&self.switch)
    }
}

fn addresses(node: &Node) -> (String, String) {
    let host = u16::from(node.number()) + 1;
    (format!("10.77.254.{host}"), format!("fd77:0:0:fffe::{host:x}"))
}

fn routes(node: &Node, nodes: &[Node]) -> Result<String> {
    let (own_v4, own_v6) = node.ips();
    let mut routes = String::new();
    for other in nodes.iter().filter(|other| other.number() != node.number()) {
        let (via_v4, via_v6) = addresses(other);
        let (node_v4, node_v6) = other.ips();
        let [pods_v4, pods_v6] = other.pod_ranges();
        for to in [node_v4.to_string(), pods_v4] {
            writeln!(routes, "route add {to} via {via_v4} dev {DEVICE} src {own_v4}")?;
        }
        for to in [node_v6.to_string(), pods_v6] {
            writeln!(routes, "route add {to} via {via_v6} dev {DEVICE} src {own_v6}")?;
        }
    }
    Ok(routes)
}
