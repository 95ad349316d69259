//! The mesh's authority on a cluster of the harness: its replicas as processes, its agents' pods and tokens as objects, and what the
//! kubelet would mount.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Cluster, Faults, reviews::Token, server::text};
use crate::{Node, Process, agent::binary, http, limits, node::NODE_IPV4, slot, wait};

/// Namespace of weft itself.
pub const NAMESPACE: &str = "weft-system";
/// Service account of the agents.
pub const AGENT_ACCOUNT: &str = "weft";
/// For whom agents' tokens are meant.
pub const AUDIENCE: &str = "weft-ca";
/// Name in the authority's own certificate.
pub const SERVER_NAME: &str = "weft-ca.weft-system.svc";
/// Where the root's Secret is.
const ROOT_PATH: &str = "/api/v1/namespaces/weft-system/secrets/weft-ca-root";
/// Where the first replica listens for agents, and where it has its metrics; the second one port further.
const PORT: u16 = 15012;
const METRICS_PORT: u16 = 15030;
/// How often what is published is written to where agents have it mounted. A kubelet takes up to two minutes.
const MOUNT_PERIOD: Duration = Duration::from_millis(100);

/// How an authority is started.
#[derive(Clone, Debug)]
pub struct AuthorityOptions {
    /// How many replicas.
    pub replicas: u16,
    /// Further arguments of each.
    pub arguments: Vec<String>,
}

impl Default for AuthorityOptions {
    fn default() -> Self {
        Self { replicas: 1, arguments: Vec::new() }
    }
}

/// A running authority. Killed with its value.
#[derive(Debug)]
pub struct Authority {
    replicas: Vec<Option<Process>>,
    kubelet: Option<Kubelet>,
    agents: BTreeMap<String, AgentPod>,
    options: AuthorityOptions,
    kubeconfig: PathBuf,
    node: Node,
    dir: PathBuf,
    /// Between the authority and the API server: it reviews tokens, and can do worse.
    pub faults: Faults,
}

/// An agent, as the API server knows it.
#[derive(Clone, Debug)]
pub struct AgentPod {
    /// Its name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Its token.
    pub token: String,
    token_file: PathBuf,
}

/// Writes the published roots to a file, as a mounted ConfigMap.
#[derive(Debug)]
struct Kubelet {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Authority {
    /// Starts one replica, makes a pod and a token for the agent of each node, and waits until there are roots.
    ///
    /// # Errors
    /// When it does not become ready; the error carries its log.
    pub fn start(cluster: &mut Cluster) -> Result<Self> {
        Self::start_with(cluster, AuthorityOptions::default())
    }

    /// As [`start`](Self::start), with options.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(cluster: &mut Cluster, options: AuthorityOptions) -> Result<Self> {
        let mut authority = Self::prepare(cluster, options)?;
        for replica in 0..authority.options.replicas {
            authority.launch(replica)?;
        }
        for replica in 0..authority.options.replicas {
            authority.wait_ready(replica)?;
        }
        Ok(authority)
    }

    /// Everything but the authority's own processes.
    ///
    /// # Errors
    /// When the API server refuses an object.
    pub fn prepare(cluster: &mut Cluster, options: AuthorityOptions) -> Result<Self> {
        let node = cluster.node.clone();
        let dir = node.state_dir().join("authority");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let faults = Faults::before(&node, &cluster.server)?;
        let kubeconfig = cluster.server.kubeconfig_through("weft-ca", "reviews", &faults.url())?;
        let nodes: Vec<String> = cluster.nodes().map(|node| node.name().to_owned()).collect();
        let mut objects = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
        for node in &nodes {
            objects += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: weft-agent-{node}, namespace: {NAMESPACE}}}\nspec:\n  \
                 nodeName: {node}\n  serviceAccountName: {AGENT_ACCOUNT}\n  hostNetwork: true\n  containers: [{{name: agent, image: pause}}]\n"
            );
        }
        cluster.apply(&objects)?;
        let kubelet = Some(Kubelet::start(cluster, &dir.join("ca.crt"))?);
        let mut authority = Self {
            replicas: (0..options.replicas).map(|_| None).collect(),
            kubelet,
            agents: BTreeMap::new(),
            options,
            kubeconfig,
            node,
            dir,
            faults,
        };
        for node in nodes {
            let name = format!("weft-agent-{node}");
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
            let uid = text(&cluster.server.call("GET", &path, None)?, "/metadata/uid").to_owned();
            let token = format!("token-of-{name}");
            let bound = Token::bound((NAMESPACE, AGENT_ACCOUNT), AUDIENCE, (&name, &uid), &node);
            authority.faults.put_token(&token, bound);
            let token_file = authority.dir.join(format!("{node}.token"));
            fs::write(&token_file, &token)?;
            authority.agents.insert(node, AgentPod { name, uid, token, token_file });
        }
        Ok(authority)
    }

    /// Starts a replica, and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, replica: u16) -> Result<()> {
        let mut command = self.node.command(&binary("weft-agent")?.to_string_lossy());
        command.arg("ca").arg("--kubeconfig").arg(&self.kubeconfig);
        command.args(["--namespace", NAMESPACE, "--replica", &format!("weft-ca-{replica}")]);
        command.args(["--listen", &format!("0.0.0.0:{}", PORT + replica)]);
        command.args(["--metrics-addr", &Self::metrics_address(replica).to_string()]);
        command.args(&self.options.arguments).env("RUST_BACKTRACE", "1");
        let process = Process::start(command, &self.log_path(replica))?;
        self.replicas[usize::from(replica)] = Some(process);
        Ok(())
    }

    /// Waits until a replica can sign.
    ///
    /// # Errors
    /// When that takes too long; the error carries its log.
    pub fn wait_ready(&self, replica: u16) -> Result<()> {
        wait::until("the authority to be ready", limits::AUTHORITY_READY_TIMEOUT, || {
            let (code, body) = self.fetch(replica, "/readyz")?;
            if code == 200 { Ok(Some(())) } else { bail!("/readyz answered {code}: {body}") }
        })
        .with_context(|| self.log(replica))?;
        wait::until("the roots to be mounted", limits::AUTHORITY_READY_TIMEOUT, || {
            Ok(self.bundle_file().is_file().then_some(()))
        })
    }

    /// An answer of a replica's metrics port: status and body.
    ///
    /// # Errors
    /// When there is none.
    pub fn fetch(&self, replica: u16, path: &str) -> Result<(u16, String)> {
        self.node.namespace().run(|| http::fetch(Self::metrics_address(replica), path))
    }

    fn metrics_address(replica: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], METRICS_PORT + replica))
    }

    /// Where a replica listens for agents; every node reaches it there.
    #[must_use]
    pub fn address(&self, replica: u16) -> SocketAddr {
        SocketAddr::from((NODE_IPV4, PORT + replica))
    }

    /// The node that it runs on.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The published roots, as agents have them mounted.
    #[must_use]
    pub fn bundle_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn agent(&self, node: &str) -> Result<&AgentPod> {
        self.agents.get(node).with_context(|| format!("no agent on {node}; there are {:?}", self.agents.keys()))
    }

    /// What an agent on a node needs on its command line to use the authority.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn agent_arguments(&self, node: &str) -> Result<Vec<String>> {
        let agent = self.agent(node)?;
        let pairs = [
            ("--ca-address", self.address(0).to_string()),
            ("--ca-server-name", SERVER_NAME.to_owned()),
            ("--ca-token-file", agent.token_file.display().to_string()),
            ("--ca-bundle-file", self.bundle_file().display().to_string()),
        ];
        Ok(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect())
    }

    /// Asks for another root.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn rotate_root(&self, cluster: &Cluster) -> Result<()> {
        let ask = json!({"metadata": {"annotations": {"weft.dev/rotate-root": "now"}}});
        cluster.server.call("PATCH", ROOT_PATH, Some(&ask)).map(drop)
    }

    /// At which step the rotation of the root is; `steady` if none is under way.
    ///
    /// # Errors
    /// When there is no root.
    pub fn phase(&self, cluster: &Cluster) -> Result<String> {
        let root = cluster.server.call("GET", ROOT_PATH, None)?;
        let phase = root["metadata"]["annotations"]["weft.dev/rotation"].as_str().unwrap_or("steady/0");
        Ok(phase.split(['@', '/']).next().unwrap_or_default().to_owned())
    }

    /// The replica that leads.
    ///
    /// # Errors
    /// When none does.
    pub fn leader(&self, cluster: &Cluster) -> Result<u16> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/weft-ca");
        let lease = cluster.server.call("GET", &path, None)?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        holder.rsplit('-').next().and_then(|number| number.parse().ok()).with_context(|| format!("holder {holder:?}"))
    }

    /// Kills a replica (SIGKILL).
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, replica: u16) -> Result<()> {
        self.replicas[usize::from(replica)].take().context("this replica does not run")?.kill()
    }

    /// Lets a replica stand still (SIGSTOP), or go on (SIGCONT).
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self, replica: u16, frozen: bool) -> Result<()> {
        let process = self.replicas[usize::from(replica)].as_ref().context("this replica does not run")?;
        process.signal(if frozen { Signal::STOP } else { Signal::CONT })
    }

    /// Asks a replica to stop (SIGTERM), and waits for its end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(&mut self, replica: u16) -> Result<()> {
        let mut process = self.replicas[usize::from(replica)].take().context("this replica does not run")?;
        process.signal(Signal::TERM)?;
        process.finish(limits::AUTHORITY_READY_TIMEOUT).map(drop)
    }

    /// The log of a replica.
    #[must_use]
    pub fn log(&self, replica: u16) -> String {
        fs::read_to_string(self.log_path(replica)).unwrap_or_default()
    }

    fn log_path(&self, replica: u16) -> PathBuf {
        self.dir.join(format!("replica-{replica}.log"))
    }

    /// The sum of a replica's samples of a metric whose labels contain every fragment.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, replica: u16, name: &str, label_fragments: &[&str]) -> Result<f64> {
        let (_, text) = self.fetch(replica, "/metrics")?;
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && label_fragments.iter().all(|fragment| line.contains(fragment))
        });
        Ok(samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Keeps what is mounted as it is from now on, as a kubelet does that cannot reach the API server.
    pub fn stop_mounting(&mut self) {
        self.kubelet = None;
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        for (number, replica) in self.replicas.iter().enumerate() {
            if let Some(replica) = replica {
                let tail = replica.log_tail(limits::LOG_TAIL_LINES);
                slot::complain(&format!("the log of the authority's replica {number} ends:\n{tail}"));
            }
        }
    }
}

impl Kubelet {
    fn start(cluster: &Cluster, file: &Path) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let (of_thread, file, staged) = (Arc::clone(&ended), file.to_owned(), file.with_extension("new"));
        let (netns, address) = (cluster.node.namespace().path(), cluster.server.plain_address());
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/weft-trust-bundle");
        let thread = thread::Builder::new().name("kubelet".to_owned()).spawn(move || {
            let mut written = String::new();
            crate::namespace::run_in(&netns, || {
                while !of_thread.load(Ordering::Relaxed) {
                    thread::sleep(MOUNT_PERIOD);
                    // An API server that is away changes nothing that is mounted.
                    let Ok((200, body)) = http::fetch(address, &path) else { continue };
                    let map: Value = serde_json::from_str(&body).unwrap_or_default();
                    let roots = map["data"]["ca.crt"].as_str().unwrap_or_default();
                    if !roots.is_empty() && roots != written {
                        fs::write(&staged, roots)?;
                        fs::rename(&staged, &file)?;
                        roots.clone_into(&mut written);
                    }
                }
                Ok(())
            })
            .ok();
        })?;
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
