//! The other nodes of a cluster: each with its pods, its agent, and its own way to the API server.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Cluster, Door, server};
use crate::{Agent, AgentOptions, Node, agent::Source, link::Link};

/// A node that is not the first.
#[derive(Debug)]
pub(super) struct Member {
    // Ended before the way to the API server is.
    agent: Option<Agent>,
    kubeconfig: PathBuf,
    _door: Door,
    node: Node,
}

impl Cluster {
    /// A cluster whose nodes are called `node-a`, `node-b` and so on, with a link between them. The API server is on the first. A pod is
    /// placed by its `spec.nodeName`, on the first if it has none.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_nodes(count: u8) -> Result<Self> {
        let mut cluster = Self::new()?;
        for number in 1..count {
            let node = Node::numbered(&format!("node-{}", char::from(b'a' + number)), number)?;
            cluster.register(&node)?;
            let door = Door::from(&node, &cluster.node, &cluster.server)?;
            let url = format!("https://{}", door.address());
            let kubeconfig = cluster.server.kubeconfig_through(server::AGENT, node.name(), &url)?;
            cluster.others.push(Member { agent: None, kubeconfig, _door: door, node });
        }
        let nodes: Vec<Node> = cluster.nodes().cloned().collect();
        cluster.link = Some(Link::between(&nodes)?);
        Ok(cluster)
    }

    /// All nodes, the first one first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.node).chain(self.others.iter().map(|member| &member.node))
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_named(&self, name: &str) -> Result<&Node> {
        self.nodes().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    /// What lies between the nodes.
    ///
    /// # Errors
    /// When there is only one.
    pub fn link(&self) -> Result<&Link> {
        self.link.as_ref().context("a cluster of one node has no link")
    }

    /// Starts an agent on every node that has none, and waits until all are ready.
    ///
    /// # Errors
    /// When one does not become ready.
    pub fn start_agents(&mut self, options: &AgentOptions) -> Result<()> {
        let names: Vec<String> = self.nodes().map(|node| node.name().to_owned()).collect();
        // All begin before any is waited for.
        for name in &names {
            if self.agent_on(name).is_err() {
                let agent = Agent::launch_from(
                    self.node_named(name)?,
                    Source::Kubeconfig(&self.kubeconfig_on(name)?),
                    options.clone(),
                )?;
                self.set_agent_on(name, agent)?;
            }
        }
        for name in &names {
            let mut agent = self.take_agent_on(name)?;
            let ready = agent.wait_ready();
            self.set_agent_on(name, agent)?;
            ready.with_context(|| name.clone())?;
        }
        Ok(())
    }

    /// The kubeconfig of a node's agent.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn kubeconfig_on(&self, node: &str) -> Result<PathBuf> {
        if node == self.node.name() {
            return Ok(self.kubeconfig());
        }
        Ok(self.member(node)?.kubeconfig.clone())
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// When none runs there.
    pub fn agent_on(&self, node: &str) -> Result<&Agent> {
        if node == self.node.name() {
            return self.agent();
        }
        self.member(node)?.agent.as_ref().with_context(|| format!("no agent runs on {node}"))
    }

    /// Takes the agent of a node out, to kill it or replace it.
    ///
    /// # Errors
    /// When none runs there.
    pub fn take_agent_on(&mut self, node: &str) -> Result<Agent> {
        if node == self.node.name() {
            return self.take_agent();
        }
        self.member_mut(node)?.agent.take().with_context(|| format!("no agent runs on {node}"))
    }

    /// Puts an agent of a node in.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn set_agent_on(&mut self, node: &str, agent: Agent) -> Result<()> {
        if node == self.node.name() {
            self.set_agent(agent);
            return Ok(());
        }
        self.member_mut(node)?.agent = Some(agent);
        Ok(())
    }

    fn member(&self, node: &str) -> Result<&Member> {
        self.others.iter().find(|member| member.node.name() == node).with_context(|| format!("no node {node}"))
    }

    fn member_mut(&mut self, node: &str) -> Result<&mut Member> {
        self.others.iter_mut().find(|member| member.node.name() == node).with_context(|| format!("no node {node}"))
    }
}
