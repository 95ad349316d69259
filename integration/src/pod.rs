//! A pod: a network namespace, a cgroup, and the processes in them.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    limits, manifests,
    namespace::{self, Namespace},
    node::Node,
    process::Process,
    slot, testpod,
};

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Service account.
    pub account: String,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
    /// Named container ports.
    pub ports: Vec<(String, u16)>,
}

impl PodSpec {
    /// A pod without labels, with the namespace's default service account.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            account: "default".to_owned(),
            host_network: false,
            ports: Vec::new(),
        }
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With a service account.
    #[must_use]
    pub fn account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.account);
        self
    }

    /// With a named container port.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.to_owned(), port));
        self
    }

    /// In the node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }
}

/// A pod on a node.
#[derive(Debug)]
pub struct Pod {
    // Dropped in this order: processes are killed before their namespace goes.
    cgroup: Cgroup,
    namespace: Option<Namespace>,
    node: Node,
    spec: PodSpec,
    /// What its link and its addresses are numbered by; see [`Node::pod_in_place_of`].
    link: u32,
    uid: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

#[derive(Debug)]
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = slot::remove_cgroup(&self.0) {
            slot::complain(&format!("cannot end a pod's processes: {error:#}"));
        }
    }
}

impl Pod {
    pub(crate) fn new(
        node: Node,
        spec: PodSpec,
        (uid, link): (String, u32),
        namespace: Option<Namespace>,
        (ipv4, ipv6): (Ipv4Addr, Ipv6Addr),
        cgroup: PathBuf,
    ) -> Self {
        Self { cgroup: Cgroup(cgroup), namespace, node, spec, link, uid, ipv4, ipv6 }
    }

    pub(crate) fn uid_of(number: u32) -> String {
        format!("00000000-0000-4000-8000-{number:012}")
    }

    pub(crate) fn link(&self) -> u32 {
        self.link
    }

    /// Kills the pod's processes and deletes its network namespace, and gives it a new one with the same name and addresses: what a
    /// container runtime does when a sandbox has died. The object stays as it was.
    ///
    /// # Errors
    /// When the pod is in the node's namespace, or the kernel refuses.
    pub fn recreate_sandbox(&mut self) -> Result<()> {
        slot::end_processes(&self.cgroup.0)?;
        let name = self.namespace.take().context("a host-network pod has no sandbox")?.name().to_owned();
        self.node.disconnect(self.link)?;
        let namespace = Namespace::create(&name)?;
        self.node.connect(&namespace, self.link, (self.ipv4, self.ipv6))?;
        self.namespace = Some(namespace);
        Ok(())
    }

    /// The node that it is on.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Kubernetes namespace.
    #[must_use]
    pub fn kube_namespace(&self) -> &str {
        &self.spec.namespace
    }

    /// UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    /// Both addresses, IPv4 first.
    #[must_use]
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// The file that stands for the pod's network namespace.
    #[must_use]
    pub fn netns_path(&self) -> PathBuf {
        self.namespace.as_ref().unwrap_or_else(|| self.node.namespace()).path()
    }

    /// The pod's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup.0
    }

    /// A command in the pod: in its cgroup and its network namespace. Arguments that are added go to `program`.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        in_cgroup(&self.cgroup.0, &self.netns_path(), program)
    }

    /// A command of the test application in the pod.
    ///
    /// # Errors
    /// When its binary cannot be found.
    pub fn testpod(&self) -> Result<Command> {
        Ok(self.command(&testpod::binary()?.to_string_lossy()))
    }

    /// Starts a process in the pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::start(command, &self.node.state_dir().join(format!("{}.log", self.spec.name)))
    }

    /// Starts the test application as a server and waits until its ports are open.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn serve(&self, args: &[&str]) -> Result<Server> {
        let control = self.node.state_dir().join(format!("{}.sock", self.spec.name));
        let mut command = self.testpod()?;
        command.arg("serve").args(["--name", &self.spec.name, "--control"]).arg(&control).args(args);
        let process = self.spawn(command)?;
        process.wait_line("that it is ready", limits::PROCESS_READY_TIMEOUT, |line| {
            (line == testpod::READY).then_some(())
        })?;
        Ok(Server { process, control })
    }

    /// Runs `action` on a thread inside the pod's network namespace, but outside of its cgroup: the kernel takes such sockets for
    /// sockets that no pod made.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `action` fails.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        namespace::run_in(&self.netns_path(), action)
    }

    /// A process in the pod's network namespace, but outside of its cgroup.
    #[must_use]
    pub fn stranger(&self, program: &str) -> Command {
        in_cgroup(&self.node.cgroup().join("node"), &self.netns_path(), program)
    }

    /// The pod as a Kubernetes object.
    #[must_use]
    pub fn object(&self, ready: bool) -> Value {
        let ports: Vec<_> =
            self.spec.ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port})).collect();
        let status = if ready { "True" } else { "False" };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": self.spec.namespace,
                "name": self.spec.name,
                "uid": self.uid,
                "labels": self.spec.labels,
                "annotations": {
                    manifests::NETNS_ANNOTATION: self.netns_path(),
                    manifests::CGROUP_ANNOTATION: self.cgroup.0,
                },
            },
            "spec": {
                "nodeName": self.node.name(),
                "serviceAccountName": self.spec.account,
                "hostNetwork": self.spec.host_network,
                "containers": [{"name": "app", "image": "weft-testpod", "ports": ports}],
            },
            "status": {
                "phase": "Running",
                "podIP": self.ipv4,
                "podIPs": [{"ip": self.ipv4}, {"ip": self.ipv6}],
                "conditions": [{"type": "Ready", "status": status}],
            },
        })
    }
}

/// The test application, serving.
#[derive(Debug)]
pub struct Server {
    process: Process,
    control: PathBuf,
}

impl Server {
    /// What it has seen so far; asked over a Unix socket, so nothing is added to what the network saw.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn stats(&self) -> Result<testpod::ServerStats> {
        testpod::control::ask(&self.control)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        fs::remove_file(&self.control).ok();
    }
}

/// A command that joins the namespace `netns` and `cgroup` before `program` starts, under the same process id. In this order: what is in a
/// pod's cgroup is in its namespace too.
pub(crate) fn in_cgroup(cgroup: &Path, netns: &Path, program: &str) -> Command {
    const JOIN: &str = "echo $$ > \"$0\" && exec \"$@\"";
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).args(["--", "bash", "-c", JOIN]);
    command.arg(cgroup.join("cgroup.procs")).arg(program);
    command
}
