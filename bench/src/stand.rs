//! A test stand: a node of its own with a client pod, two backend pods, and one proxy or none. All stands are alike but for the proxy,
//! and stand side by side, so that runs can take turns without anything being restarted.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_integration::{
    AgentOptions, Manifests, Node, Pod, PodSpec, Process, agent,
    link::Link,
    objects::{ServicePort, cluster_ips, meshed_namespace, service, traffic_split},
    wait,
};

use crate::{
    accounting::{self, MemoryGroup},
    limits,
    load::LoadReport,
    peer::{self, Peer, Programs},
    place::{Place, own_binary},
    steer::{self, Steering},
    tls,
};

const NAMESPACE: &str = "bench";
/// Port of the backends.
const POD_PORT: u16 = 8080;
/// Port of the Service that is declared HTTP.
const HTTP_PORT: u16 = 80;
/// Port of the Service that is declared opaque TCP; the backends' is the same.
const TCP_PORT: u16 = 9000;
/// What the responders write when they listen, and holders of connections when all are open.
pub const READY: &str = "ready";

/// What stands between the client and the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Nothing but kube-proxy's rules.
    Direct,
    /// weft's agent.
    Weft,
    /// Two nodes: an agent on each, and mutual TLS between them.
    WeftNodes,
    /// The same with Envoys: HTTP/2 and mutual TLS between them.
    EnvoyNodes,
    /// A peer.
    Peer(Peer),
}

impl Subject {
    /// Whether the backends are on another node than the client.
    #[must_use]
    pub fn crosses(self) -> bool {
        matches!(self, Self::WeftNodes | Self::EnvoyNodes)
    }
}

/// Where the client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the Service's HTTP port, as every application does.
    Service,
    /// To the Service's opaque port.
    Opaque,
    /// To the proxy itself.
    Explicit,
}

/// A stand.
#[derive(Debug)]
pub struct Stand {
    // Dropped in this order: the proxy before the pods that it is in, the memory group once its processes are gone, the node last.
    _steering: Option<Steering>,
    proxies: Vec<Proxy>,
    _responders: Vec<Process>,
    memory: MemoryGroup,
    client: Pod,
    backends: [Pod; 2],
    subject: Subject,
    _manifests: Manifests,
    _link: Option<Link>,
    /// Of the backends, if they have one of their own.
    far: Option<Node>,
    node: Node,
}

/// A pod as its agent publishes it.
fn published(pod: &Pod) -> Value {
    let ips: Vec<String> = pod.ips().iter().map(ToString::to_string).collect();
    json!({"uid": pod.uid(), "namespace": pod.kube_namespace(), "name": pod.name(), "serviceAccount": "default", "ips": ips})
}

/// The process of a proxy; the agent's leftovers are cleaned up with it.
#[derive(Debug)]
struct Proxy {
    process: Process,
    agent_of: Option<Node>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill().ok();
        if let Some(node) = &self.agent_of {
            // What cannot be undone goes with the node.
            agent::cleanup(node).ok();
        }
    }
}

impl Stand {
    /// Builds it. `name` tells it from others in the log.
    ///
    /// # Errors
    /// When the kernel refuses, or the proxy does not come up.
    pub fn build(subject: Subject, name: &str, programs: &Programs) -> Result<Self> {
        let node = Node::new("bench")?;
        let client = node.pod(PodSpec::new(NAMESPACE, "client"))?;
        let far = if subject.crosses() { Some(Node::numbered("bench-far", 1)?) } else { None };
        let link = far.as_ref().map(|far| Link::between(&[node.clone(), far.clone()])).transpose()?;
        let backend = |name: &str| {
            let spec = PodSpec::new(NAMESPACE, name).label("app", "web").label("name", name);
            match &far {
                // Nodes number their pods by themselves, each from one.
                Some(far) => far.pod_of(spec, &format!("00000000-0000-4000-8001-00000000000{name}")),
                None => node.pod(spec),
            }
        };
        let backends = [backend("a")?, backend("b")?];
        let mut manifests = Manifests::new(&node)?;
        manifests.put(&meshed_namespace(NAMESPACE))?;
        for pod in backends.iter().chain([&client]) {
            manifests.put_pod(pod)?;
        }
        let ports = [ServicePort::http(HTTP_PORT, POD_PORT), ServicePort::tcp(TCP_PORT, POD_PORT)];
        let selectors: [(&str, (&str, &str)); 3] =
            [("web", ("app", "web")), ("web-a", ("name", "a")), ("web-b", ("name", "b"))];
        for (number, (name, selector)) in (1..).zip(selectors) {
            manifests.put(&service(NAMESPACE, name, &[selector], &cluster_ips(number), &ports))?;
        }
        let [first, second] = [limits::FIRST_SHARE_PERCENT, 100 - limits::FIRST_SHARE_PERCENT];
        manifests.put(&traffic_split(NAMESPACE, "web", "web", &[("web-a", first), ("web-b", second)]))?;
        node.sync_kube_proxy(&manifests)?;

        let memory = MemoryGroup::new(&node.cgroup().join("agent"), &format!("{}{name}", node.prefix()))?;
        let mut stand = Self {
            _steering: None,
            proxies: Vec::new(),
            _responders: Vec::new(),
            memory,
            client,
            backends,
            subject,
            _manifests: manifests,
            _link: link,
            far,
            node,
        };
        stand._responders = stand.start_responders()?;
        match subject {
            Subject::Direct => {}
            Subject::Weft => stand.start_agent(&stand.node.clone(), 3, Vec::new())?,
            Subject::WeftNodes => stand.start_agents()?,
            Subject::EnvoyNodes => stand.start_envoys(programs)?,
            Subject::Peer(peer) => stand.start_peer(peer, programs)?,
        }
        Ok(stand)
    }

    fn start_responders(&self) -> Result<Vec<Process>> {
        // Without a proxy the backend has the proxy's core: the row then tells what the other end of a connection costs by itself.
        let core = if self.subject == Subject::Direct { limits::PROXY_CORE } else { limits::LOAD_CORE };
        self.backends
            .iter()
            .map(|pod| {
                let mut command = Place::new(pod.cgroup(), &pod.netns_path(), core).command(own_binary()?);
                command.args(["respond", "--name", pod.name(), "--listen", &format!("0.0.0.0:{POD_PORT}")]);
                let process = pod.spawn(command)?;
                process
                    .wait_line("that it listens", limits::PROXY_READY_TIMEOUT, |line| (line == READY).then_some(()))?;
                Ok(process)
            })
            .collect()
    }

    fn start_agent(&mut self, node: &Node, pods: usize, arguments: Vec<String>) -> Result<()> {
        let options = AgentOptions { workers: Some(1), log: "warn".to_owned(), arguments, ..AgentOptions::default() };
        let inner = agent::run_command(node, self._manifests.dir(), &options)?;
        let mut command = self.proxy_place().around(&inner);
        command.env("WEFT_LOG", &options.log);
        let process = Process::start(command, &node.state_dir().join("proxy.log"))?;
        self.proxies.push(Proxy { process, agent_of: Some(node.clone()) });
        let node = node.clone();
        self.wait_for("the agent to capture all pods", |_| {
            let status = agent::status(&node)?;
            if status.ready && status.pods.len() == pods && status.pods.iter().all(|pod| pod.captured) {
                return Ok(Some(()));
            }
            bail!("its status is {status:?}")
        })
    }

    /// Agents of both nodes, with one authority, that know of each other's pods.
    fn start_agents(&mut self) -> Result<()> {
        let far = self.far.clone().context("there is only one node")?;
        let published: Vec<_> = self.backends.iter().map(published).collect();
        self._manifests.put(&json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads", "metadata": {"name": format!("{}-0", far.name())},
            "spec": {"node": far.name(), "pods": published},
        }))?;
        let keys = self.node.state_dir().join("authority.pem").display().to_string();
        for (node, pods) in [(self.node.clone(), 1), (far, 2)] {
            self.start_agent(&node, pods, vec!["--ca-keys-file".to_owned(), keys.clone()])?;
        }
        Ok(())
    }

    /// An Envoy in front of the client, and one on the node of the backends.
    fn start_envoys(&mut self, programs: &Programs) -> Result<()> {
        let far = self.far.clone().context("there is only one node")?;
        let backends = [0, 1].map(|index| SocketAddr::from((self.backends[index].ipv4(), POD_PORT)));
        let place = Place::new(&far.cgroup().join("agent"), &far.namespace().path(), limits::PROXY_CORE);
        let [near, beyond] = tls::write(&self.node.state_dir(), far.ips().0, backends)?;
        let process =
            Process::start(peer::envoy_command(programs, &place, &beyond), &far.state_dir().join("proxy.log"))?;
        let pid = process.id();
        self.proxies.push(Proxy { process, agent_of: None });
        self.wait_for("the far Envoy to listen", |_| steer::listening_inode(pid, tls::PORTS[1]).map(Some))?;
        let process = Process::start(peer::envoy_command(programs, &self.proxy_place(), &near), &self.log())?;
        let pid = process.id();
        self.proxies.push(Proxy { process, agent_of: None });
        self.wait_for("the near Envoy to listen", |_| steer::listening_inode(pid, peer::PORT).map(Some))?;
        let service = self.target(Way::Service);
        self._steering = Some(Steering::start(&self.node, &self.client, pid, peer::PORT, &[service])?);
        Ok(())
    }

    fn start_peer(&mut self, peer: Peer, programs: &Programs) -> Result<()> {
        let backends = [0, 1].map(|index| SocketAddr::from((self.backends[index].ipv4(), POD_PORT)));
        let command = peer.command(programs, &self.proxy_place(), &self.node.state_dir(), backends)?;
        let process = Process::start(command, &self.log())?;
        let pid = process.id();
        self.proxies.push(Proxy { process, agent_of: None });
        self.wait_for("the proxy to listen", |_| steer::listening_inode(pid, peer::PORT).map(Some))?;
        let service = self.target(Way::Service);
        self._steering = Some(Steering::start(&self.node, &self.client, pid, peer::PORT, &[service])?);
        Ok(())
    }

    /// Waits for the proxy; its log is in the error.
    fn wait_for<T>(&mut self, what: &str, probe: impl Fn(&Self) -> Result<Option<T>>) -> Result<()> {
        let deadline = Instant::now() + limits::PROXY_READY_TIMEOUT;
        loop {
            let last = match probe(self) {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => None,
                Err(error) => Some(error),
            };
            let proxy = self.proxies.last_mut().context("no proxy was started")?;
            let ended = proxy.process.has_ended()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = proxy.process.log_tail(20);
                let error = last.map_or_else(String::new, |error| format!(": {error:#}"));
                bail!("waited for {what}{error} (ended: {ended:?}); its log ends:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where the proxy runs: a peer inside the client pod's namespace, where weft's sockets are too; the agent itself goes to the node's.
    fn proxy_place(&self) -> Place {
        Place::new(&self.proxy_cgroup(), &self.client.netns_path(), limits::PROXY_CORE).with_memory(&self.memory)
    }

    fn proxy_cgroup(&self) -> PathBuf {
        self.node.cgroup().join("agent")
    }

    fn log(&self) -> PathBuf {
        self.node.state_dir().join("proxy.log")
    }

    /// What the client connects to.
    #[must_use]
    pub fn target(&self, way: Way) -> SocketAddr {
        let service = cluster_ips(1)[0];
        match way {
            Way::Service => SocketAddr::new(service, HTTP_PORT),
            Way::Opaque => SocketAddr::new(service, TCP_PORT),
            Way::Explicit => SocketAddr::new(IpAddr::V4(self.client.ipv4()), peer::PORT),
        }
    }

    /// The cgroups whose CPU time counts: the proxy's (or the backends', twice, if there is none), then the client's, then those of
    /// the backends, then that of the other node's proxy.
    #[must_use]
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let backends = self.backends.iter().map(|pod| pod.cgroup().to_path_buf());
        let far = self.far.iter().map(|far| far.cgroup().join("agent"));
        [self.proxy_cgroup(), self.client.cgroup().to_path_buf()].into_iter().chain(backends).chain(far).collect()
    }

    /// Runs the load generator in the client pod. `wrapper` is put before its command line.
    ///
    /// # Errors
    /// When it fails or does not end.
    pub fn load(&self, way: Way, args: &[String], expected: Duration, wrapper: &[String]) -> Result<LoadReport> {
        let place = Place::new(self.client.cgroup(), &self.client.netns_path(), limits::LOAD_CORE);
        let binary = own_binary()?.to_string_lossy().into_owned();
        let line: Vec<String> = wrapper.iter().cloned().chain([binary, "load".to_owned()]).collect();
        let mut command = place.command(&line[0]);
        command.args(&line[1..]).args(["--target", &self.target(way).to_string()]).args(args);
        for cgroup in self.cgroups() {
            command.arg("--cgroup").arg(cgroup);
        }
        let mut process = self.client.spawn(command)?;
        let output = process.finish(expected + limits::RUN_GRACE)?;
        let line = output.lines().find(|line| line.starts_with('{')).context("the load generator reported nothing")?;
        serde_json::from_str(line).with_context(|| format!("cannot read the load generator's report: {line}"))
    }

    /// Opens connections from the client pod, one answered request on each. They are open until the process is dropped.
    ///
    /// # Errors
    /// When they cannot all be opened.
    pub fn hold(&self, way: Way, connections: usize) -> Result<Process> {
        let place = Place::new(self.client.cgroup(), &self.client.netns_path(), limits::LOAD_CORE);
        let mut command = place.command(own_binary()?);
        command.args(["hold", "--target", &self.target(way).to_string(), "--connections", &connections.to_string()]);
        let process = self.client.spawn(command)?;
        process
            .wait_line("that all connections are open", limits::HOLD_TIMEOUT, |line| (line == READY).then_some(()))?;
        Ok(process)
    }

    /// What the proxy's memory is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn memory(&self) -> Result<accounting::Memory> {
        let cgroup = self.proxy_cgroup();
        self.memory.read(&cgroup)
    }

    /// Waits until a holder's connections are gone; the proxy's own to the backends may stay.
    ///
    /// # Errors
    /// When they do not go.
    pub fn wait_released(&self) -> Result<()> {
        const ESTABLISHED: &str = "01";
        wait::until("the client's connections to be closed", limits::HOLD_TIMEOUT, || {
            let table = self.client.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")?))?;
            let open = table.lines().filter(|line| line.split_whitespace().nth(3) == Some(ESTABLISHED)).count();
            Ok((open < limits::HELD_CONNECTIONS[0] / 2).then_some(()))
        })
    }

    /// The processes of the proxy.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub fn proxy_processes(&self) -> Result<Vec<u32>> {
        let mut all = accounting::processes(&self.proxy_cgroup())?;
        if let Some(far) = &self.far {
            all.extend(accounting::processes(&far.cgroup().join("agent"))?);
        }
        Ok(all)
    }

    /// The process that answers, if there is no proxy.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub fn backend_processes(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for pod in &self.backends {
            all.extend(accounting::processes(pod.cgroup())?);
        }
        Ok(all)
    }

    /// What stands there.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.subject
    }
}
