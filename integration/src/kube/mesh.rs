//! Two nodes with the mesh's own authority: agents that publish their pods to each other through the API server, and talk mutual TLS.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Authority, AuthorityOptions, Cluster,
    mixed::{self, CLIENT, ECHO, HTTP, Mixed, NAMESPACE, PROGRAMS, SERVER},
};
use crate::{Agent, AgentOptions, Process, agent::Source, command, limits, wait};

/// The nodes.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
/// Whatever two nodes have to agree on is agreed on by then, also on a busy machine.
const IN_TIME: Duration = Duration::from_secs(60);

/// How a mesh is started.
#[derive(Clone, Debug, Default)]
pub struct MeshOptions {
    /// How many replicas the authority has, and their arguments.
    pub authority: AuthorityOptions,
    /// Further arguments of every agent.
    pub agents: Vec<String>,
}

/// The nodes, their agents, the authority, and pods of all kinds.
#[derive(Debug)]
pub struct Mesh {
    // Agents end before the authority does.
    /// Nodes, agents and pods.
    pub cluster: Cluster,
    /// Who signs.
    pub authority: Authority,
    /// What runs in the pods.
    pub mixed: Mixed,
    /// Address of the Service of [`SERVER`]: to be had without the API server.
    pub service: IpAddr,
    agents: Vec<String>,
}

impl Mesh {
    /// Two nodes whose agents have certificates of the authority, and have told each other of their pods.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn start(options: MeshOptions) -> Result<Self> {
        let mut cluster = Cluster::with_nodes(2)?;
        cluster.install_crds()?;
        let mixed = Mixed::start(&mut cluster)?;
        let authority = Authority::start_with(&mut cluster, options.authority)?;
        let service = cluster.service_ip(NAMESPACE, SERVER)?;
        let mut mesh = Self { cluster, authority, mixed, service, agents: options.agents };
        for node in NODES {
            mesh.launch(node)?;
        }
        for node in NODES {
            mesh.wait_ready(node)?;
        }
        mesh.wait_mutual()?;
        Ok(mesh)
    }

    /// Starts the agent of a node, and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, node: &str) -> Result<()> {
        let mut arguments = self.authority.agent_arguments(node)?;
        arguments.extend(self.agents.iter().cloned());
        let options = AgentOptions { workers: Some(1), arguments, ..AgentOptions::default() };
        let kubeconfig: PathBuf = self.cluster.kubeconfig_on(node)?;
        let agent = Agent::launch_from(self.cluster.node_named(node)?, Source::Kubeconfig(&kubeconfig), options)?;
        self.cluster.set_agent_on(node, agent)
    }

    /// Waits until the agent of a node is ready.
    ///
    /// # Errors
    /// When that takes too long; the error carries its log.
    pub fn wait_ready(&mut self, node: &str) -> Result<()> {
        let mut agent = self.cluster.take_agent_on(node)?;
        let ready = agent.wait_ready();
        self.cluster.set_agent_on(node, agent)?;
        ready.with_context(|| node.to_owned())
    }

    /// Waits until all pods are captured and published, and the client's agent has heard of it.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_mutual(&self) -> Result<()> {
        self.cluster.wait_captured(NAMESPACE)?;
        let mut last = Vec::new();
        wait::until("all pods to be published", IN_TIME, || {
            last = self.published()?;
            Ok((last == [CLIENT, PROGRAMS, SERVER]).then_some(()))
        })
        .with_context(|| format!("published are {last:?}"))?;
        // The other agent hears of it a moment later. Bytes have a connection of their own.
        wait::until("a connection by mutual TLS", IN_TIME, || {
            let before = self.made("mutual_tls")?;
            self.say("hello")?;
            Ok((self.made("mutual_tls")? > before).then_some(()))
        })
    }

    /// The pods that agents say take mutual TLS.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn published(&self) -> Result<Vec<String>> {
        let objects = self.cluster.server.list("/apis/weft.dev/v1alpha1/nodeworkloads")?;
        let pods = objects.iter().filter_map(|object| object["spec"]["pods"].as_array()).flatten();
        let mut names: Vec<String> = pods.filter_map(|pod| Some(pod["name"].as_str()?.to_owned())).collect();
        names.sort();
        Ok(names)
    }

    /// Where the server's HTTP is asked for by its Service.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.service, HTTP)
    }

    /// One request of the client to the server, on a connection of its own.
    ///
    /// # Errors
    /// When it is not answered with success.
    pub fn ask(&self) -> Result<()> {
        let url = format!("http://{}/", self.target());
        let mut curl = self.cluster.pod(NAMESPACE, CLIENT)?.pod.command("curl");
        command::output(curl.args(["-sSf", "--max-time", "20", "-o", "/dev/null", &url])).map(drop)
    }

    /// The client sends a word on a connection of its own, and gets it back.
    ///
    /// # Errors
    /// When it does not.
    pub fn say(&self, word: &str) -> Result<()> {
        let to = SocketAddr::new(self.service, ECHO);
        let client = &self.cluster.pod(NAMESPACE, CLIENT)?.pod;
        let steps = [&format!("send:{word}"), &format!("until:{word}"), "shutdown", "end"];
        let said = mixed::talk(client, to, limits::PROCESS_READY_TIMEOUT, &steps)?;
        ensure!(said.end == "eof" && said.received == word, "{said:?}");
        Ok(())
    }

    /// Begins to ask on `connections` connections that are kept, until the first request that is not answered with 200, and waits until
    /// requests flow.
    ///
    /// # Errors
    /// When they do not.
    pub fn watch(&self, connections: usize) -> Result<Process> {
        let client = &self.cluster.pod(NAMESPACE, CLIENT)?.pod;
        let mut asking = client.testpod()?;
        asking.args(["watch", "--connections", &connections.to_string(), "--to", &self.target().to_string()]);
        let mut asking = client.spawn(asking)?;
        self.goes_on(&mut asking)?;
        Ok(asking)
    }

    /// Waits until a hundred more requests have been answered, and none has failed.
    ///
    /// # Errors
    /// When one has, or that takes too long.
    pub fn goes_on(&self, asking: &mut Process) -> Result<()> {
        let served = || -> Result<u64> { Ok(self.cluster.pod(NAMESPACE, SERVER)?.stats()?.requests()) };
        let before = served()?;
        wait::until("requests to go on", IN_TIME, || {
            if let Some(status) = asking.has_ended()? {
                // Waiting on would be in vain.
                return Ok(Some(Err(anyhow::anyhow!(
                    "a request failed ({status}): {}",
                    asking.log_tail(limits::LOG_TAIL_LINES)
                ))));
            }
            Ok((served()? > before + 100).then_some(Ok(())))
        })?
    }

    /// How many connections the client's agent has made, by how they are protected.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn made(&self, encryption: &str) -> Result<f64> {
        let label = format!("encryption=\"{encryption}\"");
        self.cluster.agent_on("node-a")?.metric("weft_upstream_connections_total", &[&label])
    }
}
