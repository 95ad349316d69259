//! The pods, the manifests and the agent of the demo.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;
use weft_integration::{
    Agent, AgentOptions, Cluster, Manifests, Node, Pod, PodSpec,
    agent::{self, Source},
    kube::cluster::{PAUSE_IMAGE, TESTPOD_IMAGE},
    objects::cluster_ips,
    pod::Server,
};

use crate::sh;

/// Kubernetes namespace of the demo.
pub(crate) const NAMESPACE: &str = "shop";
/// What the client asks for.
pub(crate) const HOST: &str = "web.shop.svc.cluster.local";
/// The port that pods serve.
const POD_PORT: &str = "8080";
/// Numbers of the Services' addresses.
const SERVICES: [(&str, u8); 3] = [("web", 1), ("web_v1", 11), ("web_v2", 12)];

/// Services with their shares in percent.
type Shares = Vec<(String, f64)>;

/// A server pod.
struct WebPod {
    version: &'static str,
    name: String,
    /// In a cluster it belongs to the kubelet. The server is dropped before its pod.
    _running: Option<(Server, Pod)>,
}

/// Everything that runs.
pub(crate) struct Stage {
    agent: Option<Agent>,
    web: Vec<WebPod>,
    /// None in a cluster.
    client: Option<Pod>,
    /// What was written or applied. The agent follows the directory unless there is a cluster.
    manifests: Manifests,
    cluster: Option<Cluster>,
    node: Node,
}

impl Stage {
    /// Makes the pods and writes the manifests, or applies them to a cluster; no agent yet.
    pub(crate) fn build(bin_dir: &Path, kube: bool) -> Result<Self> {
        agent::set_binary_dir(bin_dir);
        let cluster = kube.then(Cluster::new).transpose()?;
        let node = match &cluster {
            Some(cluster) => {
                cluster.install_crds()?;
                cluster.node.clone()
            }
            None => Node::new("laptop")?,
        };
        let manifests = Manifests::new(&node)?;
        let mut stage = Self { agent: None, web: Vec::new(), client: None, manifests, cluster, node };
        stage.fail_mode("open")?;
        stage.client = stage.add_pod("client", "client", "none", PAUSE_IMAGE, |_| Ok(()))?.map(|(pod, ())| pod);
        let mut vars = BTreeMap::new();
        for (name, number) in SERVICES {
            let [ipv4, ipv6] = cluster_ips(number);
            vars.insert(format!("{name}_ipv4"), ipv4.to_string());
            vars.insert(format!("{name}_ipv6"), ipv6.to_string());
        }
        stage.write("services.yaml", "services.yaml", &vars)?;
        stage.scale(3, 3)?;
        Ok(stage)
    }

    /// The client's pod.
    pub(crate) fn client(&self) -> Result<&Pod> {
        match (&self.client, &self.cluster) {
            (Some(client), _) => Ok(client),
            (None, Some(cluster)) => Ok(&cluster.pod(NAMESPACE, "client")?.pod),
            (None, None) => bail!("no client"),
        }
    }

    /// Where the client finds the Service.
    pub(crate) fn web_address() -> SocketAddr {
        SocketAddr::from((cluster_ips(SERVICES[0].1)[0], 80))
    }

    /// Starts the agent, and returns how many pods it has captured.
    pub(crate) fn start_agent(&mut self) -> Result<usize> {
        let options = AgentOptions { log_on_drop: false, ..AgentOptions::default() };
        let agent = self.agent.insert(match &self.cluster {
            Some(cluster) => Agent::start_from(&self.node, Source::Kubeconfig(&cluster.kubeconfig()), options)?,
            None => Agent::start_with(&self.node, &self.manifests, options)?,
        });
        let pods_total = self.web.len() + 1;
        agent.wait_status("all pods to be captured", |status| {
            (status.captured_pods() == pods_total).then_some(pods_total)
        })
    }

    /// Kills the agent as a crash would.
    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    /// Lets a new agent take over.
    pub(crate) fn hand_over(&mut self) -> Result<()> {
        let old = self.agent.take().context("no agent runs")?;
        self.agent = Some(match &self.cluster {
            Some(cluster) => old.hand_over_from(Source::Kubeconfig(&cluster.kubeconfig()))?,
            None => old.hand_over(&self.manifests)?,
        });
        Ok(())
    }

    /// A directory for files.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.node.state_dir()
    }

    /// The agent.
    pub(crate) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// Whether an agent answers.
    pub(crate) fn is_alive(&self) -> Result<bool> {
        Ok(self.agent()?.status().is_ok())
    }

    /// Sets what happens while the agent is gone.
    pub(crate) fn fail_mode(&mut self, mode: &str) -> Result<()> {
        let vars = BTreeMap::from([("fail_mode".to_owned(), mode.to_owned())]);
        self.write("namespace.yaml", "namespace.yaml", &vars)?;
        let Some(agent) = &self.agent else { return Ok(()) };
        agent.wait_status(&format!("fail mode {mode}"), |status| {
            status.pods.iter().all(|pod| pod.fail_mode == mode).then_some(())
        })
    }

    /// One split for everybody.
    pub(crate) fn split(&mut self, v1_weight: u32, v2_weight: u32) -> Result<()> {
        if self.manifests.dir().join("testers.yaml").exists() {
            self.remove("testers.yaml")?;
        }
        self.write_split(v1_weight, v2_weight)?;
        self.wait_applied()
    }

    /// One split for testers and one for everybody else.
    pub(crate) fn split_testers(&mut self) -> Result<()> {
        self.write("testers.yaml", "testers.yaml", &BTreeMap::new())?;
        self.write_split(1, 0)?;
        self.wait_applied()
    }

    /// Writes the split and does not wait.
    pub(crate) fn write_split(&mut self, v1_weight: u32, v2_weight: u32) -> Result<()> {
        let vars = [("v1_weight", v1_weight), ("v2_weight", v2_weight)]
            .map(|(key, value)| (key.to_owned(), value.to_string()));
        self.write("split.yaml", "split.yaml", &BTreeMap::from(vars))
    }

    /// Changes the weights of the split that there is, and does not wait. In a cluster by one request: kubectl takes longer to start than the
    /// change to its effect.
    pub(crate) fn change_split(&mut self, v1_weight: u32, v2_weight: u32) -> Result<()> {
        let Some(cluster) = &self.cluster else { return self.write_split(v1_weight, v2_weight) };
        let backends = [("web-v1", v1_weight), ("web-v2", v2_weight)];
        let backends = backends.map(|(service, weight)| json!({"service": service, "weight": weight}));
        let path = format!("/apis/split.smi-spec.io/v1alpha4/namespaces/{NAMESPACE}/trafficsplits/web");
        cluster.server.call("PATCH", &path, Some(&json!({"spec": {"backends": backends}}))).map(drop)
    }

    /// Has so many pods of each version.
    pub(crate) fn scale(&mut self, v1: usize, v2: usize) -> Result<()> {
        for (version, wanted) in [("v1", v1), ("v2", v2)] {
            for number in 1.. {
                let name = format!("{version}-{number}");
                let present = self.web.iter().position(|pod| pod.name == name);
                match present {
                    None if number <= wanted => self.add(version, &name)?,
                    Some(index) if number > wanted => {
                        // As in a cluster: gone from the API first, then from the node.
                        self.remove(&format!("pod-{name}.yaml"))?;
                        let gone = self.web.remove(index);
                        self.sync()?;
                        self.wait_applied()?;
                        drop(gone);
                    }
                    None => break,
                    Some(_) => {}
                }
            }
        }
        self.sync()?;
        self.wait_applied()
    }

    /// What follows from objects in a cluster, or in its place.
    fn sync(&mut self) -> Result<()> {
        match &mut self.cluster {
            Some(cluster) => cluster.sync(),
            None => self.node.sync_kube_proxy(&self.manifests),
        }
    }

    fn add(&mut self, version: &'static str, name: &str) -> Result<()> {
        let running = self.add_pod("web", name, version, TESTPOD_IMAGE, |pod| pod.serve(&["--http", POD_PORT]))?;
        let running = running.map(|(pod, server)| (server, pod));
        self.web.push(WebPod { version, name: name.to_owned(), _running: running });
        Ok(())
    }

    /// Adds a pod. A cluster makes it itself, from its object; else it is made first, and what `start` starts in it.
    fn add_pod<T>(
        &mut self,
        app: &str,
        name: &str,
        version: &str,
        image: &str,
        start: impl FnOnce(&Pod) -> Result<T>,
    ) -> Result<Option<(Pod, T)>> {
        let file = format!("pod-{name}.yaml");
        if self.cluster.is_some() {
            let vars = [("name", name), ("app", app), ("version", version), ("image", image)];
            let vars = vars.map(|(key, value)| (key.to_owned(), value.to_owned()));
            self.write("kube-pod.yaml", &file, &vars.into())?;
            self.sync()?;
            return Ok(None);
        }
        let spec = PodSpec::new(NAMESPACE, name).label("app", app).label("version", version);
        let pod = self.node.pod(spec)?;
        let started = start(&pod)?;
        let vars = self.pod_vars(&pod, app, version);
        self.write("pod.yaml", &file, &vars)?;
        Ok(Some((pod, started)))
    }

    /// Takes away what was written under that name.
    fn remove(&mut self, file: &str) -> Result<()> {
        if let Some(cluster) = &self.cluster {
            let path = self.manifests.dir().join(file);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            cluster.server.delete(&text)?;
        }
        self.manifests.remove_file(file)
    }

    /// Waits until the agent shows exactly the pods that there are and the policy that was written.
    fn wait_applied(&self) -> Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        let pods_total = self.web.len() + 1;
        agent.wait_status("the change to be applied", |status| {
            (status.pods.len() == pods_total && status.captured_pods() == pods_total).then_some(())
        })?;
        agent.wait_endpoints(NAMESPACE, "web", self.web.len())?;
        let splits = self.splits()?;
        let splits: Vec<_> = splits
            .iter()
            .map(|(name, shares)| {
                (name.as_str(), shares.iter().map(|(service, share)| (service.as_str(), *share)).collect())
            })
            .collect::<Vec<(_, Vec<_>)>>();
        let splits: Vec<_> = splits.iter().map(|(name, shares)| (*name, shares.as_slice())).collect();
        agent.wait_shares(NAMESPACE, "web", &splits)
    }

    /// The splits as written: name, and each backend's share in percent.
    fn splits(&self) -> Result<Vec<(String, Shares)>> {
        #[derive(Deserialize)]
        struct Split {
            metadata: Metadata,
            spec: Spec,
        }
        #[derive(Deserialize)]
        struct Metadata {
            name: String,
        }
        #[derive(Deserialize)]
        struct Spec {
            backends: Vec<Backend>,
        }
        #[derive(Deserialize)]
        struct Backend {
            service: String,
            weight: u32,
        }
        let mut splits = Vec::new();
        for object in self.manifests.of_kind("TrafficSplit") {
            let Split { metadata, spec } = Split::deserialize(object).context("in a TrafficSplit of the demo")?;
            let total: u32 = spec.backends.iter().map(|backend| backend.weight).sum();
            let share = |weight: u32| f64::from(weight) * 100.0 / f64::from(total.max(1));
            let shares = spec.backends.into_iter().map(|backend| (backend.service, share(backend.weight))).collect();
            splits.push((metadata.name, shares));
        }
        Ok(splits)
    }

    fn pod_vars(&self, pod: &Pod, app: &str, version: &str) -> BTreeMap<String, String> {
        let vars = [
            ("name", pod.name().to_owned()),
            ("uid", pod.uid().to_owned()),
            ("app", app.to_owned()),
            ("version", version.to_owned()),
            ("netns", pod.netns_path().display().to_string()),
            ("cgroup", pod.cgroup().display().to_string()),
            ("node", self.node.name().to_owned()),
            ("ipv4", pod.ipv4().to_string()),
            ("ipv6", pod.ipv6().to_string()),
        ];
        vars.map(|(key, value)| (key.to_owned(), value)).into()
    }

    /// Writes a manifest from its template.
    fn write(&mut self, template: &str, file: &str, vars: &BTreeMap<String, String>) -> Result<()> {
        let path = sh::root().join("integration/demo").join(template);
        let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for (key, value) in vars {
            text = text.replace(&format!("${{{key}}}"), value);
        }
        if let Some((_, rest)) = text.split_once("${") {
            bail!("{}: nothing to put in place of ${{{}", path.display(), rest.lines().next().unwrap_or_default());
        }
        if let Some(cluster) = &self.cluster {
            cluster.server.apply(&text)?;
        }
        self.manifests.put_yaml(file, &text)
    }

    /// What a user can try now.
    pub(crate) fn instructions(&self) -> Result<String> {
        let weft = sh::target_dir().join("debug/weft");
        let run_dir = agent::run_dir(&self.node);
        let weft = format!("{} --run-dir {}", weft.display(), run_dir.display());
        let pod = self.client()?;
        let client = format!("nsenter --net={}", pod.netns_path().display());
        let join = format!("sh -c 'echo $$ > {}/cgroup.procs; exec {client} bash'", pod.cgroup().display());
        let node = self.node.namespace().path();
        let policy = self.policy_instructions();
        let versions: Vec<_> = self.web.iter().map(|pod| format!("{} ({})", pod.name, pod.version)).collect();
        Ok(format!(
            "   The pods are {pods}, and a client.\n\n   \
             A shell in the client pod:\n     {join}\n   \
             and in it:\n     curl http://{HOST}/ --resolve {HOST}:80:{ip}\n     \
             curl 'http://{HOST}/?[1-100]' -s --resolve {HOST}:80:{ip} | sort | uniq -c\n     \
             curl http://{HOST}/who --resolve {HOST}:80:{ip} --cookie usertype=tester\n\n   \
             What the agent sees:\n     {weft} status\n     {weft} services\n     {weft} routes\n     {weft} flows\n     \
             nsenter --net={node} curl -s http://127.0.0.1:15020/metrics\n\n   \
             {policy}\n",
            pods = versions.join(", "),
            ip = Self::web_address().ip(),
            node = node.display(),
        ))
    }

    fn policy_instructions(&self) -> String {
        let templates = sh::root().join("integration/demo");
        let templates = templates.display();
        let pid = self.agent.as_ref().map_or(0, Agent::pid);
        if let Some(cluster) = &self.cluster {
            let node = self.node.namespace().path();
            let kubectl = cluster.server.kubectl();
            // The last arguments are kubectl and its kubeconfig; the rest goes to the node's namespace and cgroup.
            let arguments: Vec<_> = kubectl.get_args().map(|argument| argument.to_string_lossy()).collect();
            let kubectl = arguments[arguments.len().saturating_sub(3)..].join(" ");
            return format!(
                "The policy is in the API server:\n     kubectl() {{ nsenter --net={node} {kubectl} \"$@\"; }}\n     \
                 kubectl edit -n shop trafficsplit web\n     kubectl apply -f {templates}/testers.yaml\n     \
                 kubectl label ns shop --overwrite weft.dev/fail-mode=closed      # then kill -9 {pid}",
                node = node.display(),
            );
        }
        let manifests = self.manifests.dir().display();
        format!(
            "The policy is a file; save it and ask again:\n     $EDITOR {manifests}/split.yaml\n     \
             cp {templates}/testers.yaml {manifests}/\n     \
             $EDITOR {manifests}/namespace.yaml      # the fail mode; then kill -9 {pid}"
        )
    }
}
