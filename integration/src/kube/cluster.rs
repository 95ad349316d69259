//! A cluster of one node or a few: an API server on the first, and stand-ins for the scheduler, the controllers of Deployments and EndpointSlices, kube-proxy,
//! DNS and the kubelet. They act in [`Cluster::sync`], not on their own, so a test decides when.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    controllers,
    members::Member,
    server::{self, ApiServer, text},
};
use crate::{
    Agent, AgentOptions, Node, Pod, PodSpec, Process, agent::Source, command, kube_proxy, limits, link::Link, testpod,
};

/// Image of a container whose arguments are those of the test application's `serve`.
pub const TESTPOD_IMAGE: &str = "weft-testpod";
/// Image of the application of the SMI conformance suite, in any version.
pub const CONFORMANCE_IMAGE: &str = "layer5/learn-layer5";
/// Image of a container that does nothing: the pod is a place to run clients in.
pub const PAUSE_IMAGE: &str = "pause";
/// The chart's image.
const AGENT_IMAGE: &str = "weft-agent";
/// Rounds until nothing is left to do: Deployments make pods, pods make endpoints.
const SYNC_ROUNDS: usize = 5;

/// Namespace and name.
type Key = (String, String);

/// A pod that runs.
#[derive(Debug)]
pub struct ClusterPod {
    // Ended before their pod.
    containers: Vec<Process>,
    control: PathBuf,
    _pause: Process,
    /// Its network namespace and cgroup.
    pub pod: Pod,
}

impl ClusterPod {
    /// What the test application in it has seen.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub fn stats(&self) -> Result<testpod::ServerStats> {
        testpod::control::ask(&self.control)
    }

    /// Process id of the application; none in a pod that only waits.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.containers.first().map(Process::id)
    }
}

/// The cluster. `apply` and `delete` are kubectl's, and all that follows from them.
#[derive(Debug)]
pub struct Cluster {
    agent: Option<Agent>,
    pub(super) others: Vec<Member>,
    pods: BTreeMap<Key, ClusterPod>,
    pub(super) link: Option<Link>,
    /// The API server.
    pub server: ApiServer,
    /// The node; of several, the first, which the API server is on.
    pub node: Node,
}

impl Cluster {
    /// A cluster with one node, no agent and no custom resources.
    ///
    /// # Errors
    /// When not root, or the API server does not come up.
    pub fn new() -> Result<Self> {
        let node = Node::new("node-a")?;
        let server = ApiServer::start(&node)?;
        let cluster = Self { agent: None, others: Vec::new(), pods: BTreeMap::new(), link: None, server, node };
        cluster.register(&cluster.node)?;
        Ok(cluster)
    }

    pub(super) fn register(&self, node: &Node) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()}});
        self.server.call("POST", "/api/v1/nodes", Some(&object)).map(drop)
    }

    /// Applies the definitions of weft's chart, and waits until what they define is served.
    ///
    /// # Errors
    /// When one is refused.
    pub fn install_crds(&self) -> Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/weft/crds");
        command::output(self.server.kubectl().args(["apply", "--server-side", "-f"]).arg(&dir))?;
        self.server.wait_established()
    }

    /// Applies the definitions of the kinds of Gateway API, and waits until what they define is served.
    ///
    /// # Errors
    /// When one is refused.
    pub fn install_gateway_crds(&self) -> Result<()> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("published/gateway-crds.yaml");
        command::output(self.server.kubectl().args(["apply", "--server-side", "-f"]).arg(&file))?;
        self.server.wait_established()
    }

    /// Starts an agent that reads from the API server, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_agent(&mut self, options: AgentOptions) -> Result<&Agent> {
        let kubeconfig = self.kubeconfig();
        Ok(self.agent.insert(Agent::start_from(&self.node, Source::Kubeconfig(&kubeconfig), options)?))
    }

    /// The kubeconfig of the agent.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.server.kubeconfig(server::AGENT)
    }

    /// The agent.
    ///
    /// # Errors
    /// When none runs.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// Takes the agent out, to kill it or replace it.
    ///
    /// # Errors
    /// When none runs.
    pub fn take_agent(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent runs")
    }

    /// Puts an agent in.
    pub fn set_agent(&mut self, agent: Agent) {
        self.agent = Some(agent);
    }

    /// `kubectl apply`, and everything that the cluster makes of it.
    ///
    /// # Errors
    /// When an object is refused, or a pod does not come up.
    pub fn apply(&mut self, yaml: &str) -> Result<()> {
        self.server.apply(yaml)?;
        self.sync()
    }

    /// `kubectl delete`, and everything that the cluster makes of it.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn delete(&mut self, yaml: &str) -> Result<()> {
        self.server.delete(yaml)?;
        self.sync()
    }

    /// A pod that runs.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<&ClusterPod> {
        let key = (namespace.to_owned(), name.to_owned());
        self.pods.get(&key).with_context(|| format!("no pod {namespace}/{name} runs; there are {:?}", self.pods.keys()))
    }

    /// All pods that run.
    pub fn pods(&self) -> impl Iterator<Item = &ClusterPod> {
        self.pods.values()
    }

    /// Waits until every pod of a namespace is captured by the agent of its node.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_captured(&self, namespace: &str) -> Result<()> {
        for ((_, name), running) in self.pods.iter().filter(|((of, _), _)| of == namespace) {
            self.agent_on(running.pod.node().name())?.wait_captured(namespace, name)?;
        }
        Ok(())
    }

    /// Lets controllers, scheduler, kubelet, kube-proxy and DNS do what there is to do.
    ///
    /// # Errors
    /// When the API server refuses something, or a pod does not come up.
    pub fn sync(&mut self) -> Result<()> {
        for _ in 0..SYNC_ROUNDS {
            let deployed = self.sync_deployments()?;
            let ran = self.sync_pods()?;
            if !deployed && !ran {
                break;
            }
        }
        self.sync_services()
    }

    /// Whether something was changed.
    fn sync_deployments(&mut self) -> Result<bool> {
        let deployments = self.server.list("/apis/apps/v1/deployments")?;
        let mut present: BTreeMap<Key, Value> = self
            .server
            .list("/api/v1/pods")?
            .into_iter()
            .filter(|pod| controllers::owner(pod).is_some())
            .map(|pod| (key(&pod), pod))
            .collect();
        let mut changed = false;
        for deployment in &deployments {
            let (namespace, name) = key(deployment);
            let wanted = controllers::pods_of(deployment, self.node.name());
            let mut ready = 0;
            for pod in &wanted {
                match present.remove(&key(pod)) {
                    Some(stored) => ready += u64::from(kube_proxy::is_ready(&stored)),
                    None => {
                        self.server.call("POST", &format!("/api/v1/namespaces/{namespace}/pods"), Some(pod))?;
                        changed = true;
                    }
                }
            }
            if deployment.pointer("/status/readyReplicas").and_then(Value::as_u64).unwrap_or(0) != ready {
                let status = json!({"status": {"replicas": wanted.len(), "readyReplicas": ready,
                    "availableReplicas": ready, "updatedReplicas": wanted.len(),
                    "observedGeneration": deployment["metadata"]["generation"]}});
                let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status");
                self.server.call("PATCH", &path, Some(&status))?;
                changed = true;
            }
        }
        // Scaled down, or their Deployment has gone.
        for (namespace, name) in present.keys() {
            self.server.call("DELETE", &format!("/api/v1/namespaces/{namespace}/pods/{name}"), None)?;
            changed = true;
        }
        Ok(changed)
    }

    /// The scheduler's and the kubelet's part. Whether something was changed.
    fn sync_pods(&mut self) -> Result<bool> {
        let mut changed = false;
        let mut listed: BTreeMap<Key, Value> =
            self.server.list("/api/v1/pods")?.into_iter().map(|pod| (key(&pod), pod)).collect();
        for (key, pod) in &mut listed {
            if text(pod, "/spec/nodeName").is_empty() {
                *pod = self.bind(key)?;
            }
        }
        let is_ours = |pod: &&Value| self.nodes().any(|node| node.name() == text(pod, "/spec/nodeName"));
        let (mine, uids): (Vec<_>, BTreeMap<_, _>) = (
            listed.values().filter(is_ours).collect(),
            listed.iter().map(|(key, pod)| (key.clone(), text(pod, "/metadata/uid").to_owned())).collect(),
        );
        let pods_before = self.pods.len();
        self.pods.retain(|key, running| uids.get(key).is_some_and(|uid| uid == running.pod.uid()));
        changed |= self.pods.len() != pods_before;
        for pod in mine {
            if self.pods.contains_key(&key(pod)) {
                continue;
            }
            let running = self.run(pod).with_context(|| format!("cannot run pod {:?}", key(pod)))?;
            self.set_ready(&running.pod, true)?;
            self.pods.insert(key(pod), running);
            changed = true;
        }
        Ok(changed)
    }

    fn bind(&self, (namespace, name): &Key) -> Result<Value> {
        let pods = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.node.name()}});
        if self.server.request("POST", &format!("{pods}/binding"), Some(&binding))?.code == 404 {
            // The project's own server has no such subresource, and lets the field be set.
            let patch = json!({"spec": {"nodeName": self.node.name()}});
            return self.server.call("PATCH", &pods, Some(&patch));
        }
        self.server.call("GET", &pods, None)
    }

    /// Makes a pod's sandbox and starts what is in its containers.
    fn run(&self, object: &Value) -> Result<ClusterPod> {
        let (namespace, name) = key(object);
        let mut spec = PodSpec::new(&namespace, &name);
        spec.host_network = object.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false);
        let node = self.node_named(text(object, "/spec/nodeName"))?;
        let pod = node.pod_of(spec, text(object, "/metadata/uid"))?;
        // As in a cluster: what holds the namespace while containers come and go.
        let mut sleep = pod.command("sleep");
        sleep.arg("infinity");
        let pause = pod.spawn(sleep)?;
        let control = self.node.state_dir().join(format!("{namespace}.{name}.sock"));
        let mut containers = Vec::new();
        for container in object.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten() {
            containers.extend(self.start_container(&pod, container, &control)?);
        }
        Ok(ClusterPod { containers, control, _pause: pause, pod })
    }

    fn start_container(&self, pod: &Pod, container: &Value, control: &Path) -> Result<Option<Process>> {
        let image = text(container, "/image");
        let mut command = pod.testpod()?;
        match image.split(':').next().unwrap_or_default() {
            // Agents and authorities are started by tests, as what they need them to be.
            PAUSE_IMAGE | AGENT_IMAGE => return Ok(None),
            TESTPOD_IMAGE => command.args(["serve", "--name", pod.name(), "--control"]).arg(control),
            CONFORMANCE_IMAGE => command.arg("conformance").arg("--hosts").arg(self.hosts_file()),
            _ => bail!("the harness has no image {image:?}"),
        };
        command.args(container["args"].as_array().into_iter().flatten().filter_map(Value::as_str));
        for variable in container["env"].as_array().into_iter().flatten() {
            command.env(text(variable, "/name"), text(variable, "/value"));
        }
        let process = pod.spawn(command)?;
        process.wait_line("that it is ready", limits::PROCESS_READY_TIMEOUT, |line| {
            (line == testpod::READY).then_some(())
        })?;
        Ok(Some(process))
    }

    /// Writes a pod's status, as the kubelet does after a readiness probe. Endpoints follow with the next [`sync`](Self::sync).
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn set_ready(&self, pod: &Pod, ready: bool) -> Result<()> {
        let word = if ready { "True" } else { "False" };
        let ips: Vec<_> = pod.ips().iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {
            "phase": "Running", "hostIP": pod.node().ips().0, "podIP": pod.ipv4(), "podIPs": ips,
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Initialized", "status": "True"},
                {"type": "ContainersReady", "status": word}, {"type": "Ready", "status": word}]}});
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.kube_namespace(), pod.name());
        self.server.call("PATCH", &path, Some(&status)).map(drop)
    }

    /// EndpointSlices, kube-proxy's rules and DNS.
    fn sync_services(&self) -> Result<()> {
        let services = self.server.list("/api/v1/services")?;
        let pods = self.server.list("/api/v1/pods")?;
        let stored = self.server.list("/apis/discovery.k8s.io/v1/endpointslices")?;
        let mut stored: BTreeMap<Key, Value> =
            stored.into_iter().filter(controllers::is_ours).map(|slice| (key(&slice), slice)).collect();
        for (key, slice) in controllers::slices(&services, &pods) {
            let path = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", key.0);
            match stored.remove(&key) {
                None => drop(self.server.call("POST", &path, Some(&slice))?),
                Some(old) if controllers::is_current(&old, &slice) => {}
                Some(_) => drop(self.server.call("PUT", &format!("{path}/{}", key.1), Some(&slice))?),
            }
        }
        for (namespace, name) in stored.keys() {
            let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}");
            self.server.call("DELETE", &path, None)?;
        }
        let rules = kube_proxy::ruleset(&services, &pods)?;
        self.nodes().try_for_each(|node| node.nft(&rules))?;
        self.write_hosts(&services, &pods)
    }

    /// What a cluster's DNS knows, for applications that take `--hosts`: lines of address and name.
    fn write_hosts(&self, services: &[Value], pods: &[Value]) -> Result<()> {
        let mut hosts = String::new();
        for service in services {
            let (namespace, name) = key(service);
            let mut addresses = vec![text(service, "/spec/clusterIP").to_owned()];
            if addresses[0] == "None" {
                let slices = controllers::slices(std::slice::from_ref(service), pods);
                let endpoints = slices.values().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
                let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
                addresses = ready.map(|endpoint| text(endpoint, "/addresses/0").to_owned()).collect();
            }
            for address in addresses.iter().filter(|address| !address.is_empty()) {
                writeln!(hosts, "{address} {name}.{namespace}.svc.cluster.local")?;
            }
        }
        let file = self.hosts_file();
        let staged = file.with_extension("new");
        fs::write(&staged, hosts)?;
        fs::rename(&staged, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Names of Services and their addresses.
    #[must_use]
    pub fn hosts_file(&self) -> PathBuf {
        self.node.state_dir().join("hosts")
    }

    /// Address of a Service, as the API server gave it.
    ///
    /// # Errors
    /// When there is none of that name, or it has none.
    pub fn service_ip(&self, namespace: &str, name: &str) -> Result<std::net::IpAddr> {
        let service = self.server.call("GET", &format!("/api/v1/namespaces/{namespace}/services/{name}"), None)?;
        text(&service, "/spec/clusterIP").parse().with_context(|| format!("{namespace}/{name} has no address"))
    }
}

fn key(object: &Value) -> Key {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}
