//! A node: a network namespace of its own that pods are connected to and that routes between them, as Calico or the `ptp` plugin do.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail};

use crate::{
    command, limits,
    manifests::Manifests,
    namespace::Namespace,
    pod::{Pod, PodSpec, in_cgroup},
    slot::{self, Slot},
};

/// Addresses of a node that is the only one: what probes come from.
pub const NODE_IPV4: Ipv4Addr = node_ipv4(0);
/// As [`NODE_IPV4`].
pub const NODE_IPV6: Ipv6Addr = node_ipv6(0);
/// Every pod's next hop: link-local, the same on each veth.
const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

const fn node_ipv4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 255, number + 1)
}

const fn node_ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0xffff, 0, 0, 0, number as u16 + 1)
}

/// A node without an agent. Everything of it goes when the last of its pods and itself are dropped.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // Dropped in this order: the namespace first, then all else that carries the number.
    namespace: Namespace,
    name: String,
    /// Which of its cluster's nodes it is, from 0: part of all its addresses.
    number: u8,
    cgroup: PathBuf,
    pods: AtomicU32,
    slot: Slot,
}

impl Node {
    /// Makes a node called `name` (as in `spec.nodeName`).
    ///
    /// # Errors
    /// When not root, or when the kernel refuses.
    pub fn new(name: &str) -> Result<Self> {
        Self::numbered(name, 0)
    }

    /// Makes a node that shares a cluster with others, which have other numbers (at most [`limits::NODES_MAX`] of them).
    /// [`Link`](crate::link::Link) connects them.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn numbered(name: &str, number: u8) -> Result<Self> {
        if number >= limits::NODES_MAX {
            bail!("a cluster of the harness has at most {} nodes", limits::NODES_MAX);
        }
        let (node_ipv4, node_ipv6) = (node_ipv4(number), node_ipv6(number));
        let slot = Slot::take()?;
        let cgroup = slot.cgroup()?;
        for child in ["agent", "node", "kubepods"] {
            let dir = cgroup.join(child);
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let namespace = Namespace::create(&format!("{}node", slot.prefix()))?;
        // A node has a default route: packets to a Service without endpoints get as far as the rules that reject them.
        namespace.ip(&format!(
            "link set lo up\naddr add {node_ipv4}/32 dev lo\naddr add {node_ipv6}/128 dev lo nodad\n\
             route add default dev lo src {node_ipv4}\nroute add default dev lo src {node_ipv6}\n"
        ))?;
        command::output(namespace.command("sysctl").args([
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            // Load tests leave more closed connections than the kernel's table holds for two minutes.
            "net.netfilter.nf_conntrack_tcp_timeout_time_wait=5",
            "net.netfilter.nf_conntrack_tcp_timeout_close=2",
        ]))?;
        let inner = Inner { namespace, name: name.to_owned(), number, cgroup, pods: AtomicU32::new(0), slot };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Which of its cluster's nodes it is, from 0.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.inner.number
    }

    /// Its own addresses.
    #[must_use]
    pub fn ips(&self) -> (Ipv4Addr, Ipv6Addr) {
        (node_ipv4(self.inner.number), node_ipv6(self.inner.number))
    }

    /// The addresses of all its pods, as CIDR.
    #[must_use]
    pub fn pod_ranges(&self) -> [String; 2] {
        let number = self.inner.number;
        [format!("10.77.{number}.0/24"), format!("fd77:0:0:{number:x}::/64")]
    }

    /// The node's own network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.inner.namespace
    }

    /// The cgroup that holds the agent, the node's own processes and all pods.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// What the names of this node's namespaces begin with.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.inner.slot.prefix()
    }

    /// A directory for logs and sockets.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.inner.slot.state_dir()
    }

    /// The agent's directory in bpffs.
    #[must_use]
    pub fn bpf_dir(&self) -> PathBuf {
        self.inner.slot.bpf_dir()
    }

    /// A command of the node itself (a kubelet, for instance): in its namespace, in no pod's cgroup.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        in_cgroup(&self.inner.cgroup.join("node"), &self.inner.namespace.path(), program)
    }

    /// A command in the agent's place.
    #[must_use]
    pub(crate) fn agent_command(&self, program: &Path) -> Command {
        in_cgroup(&self.inner.cgroup.join("agent"), &self.inner.namespace.path(), &program.to_string_lossy())
    }

    /// Loads nft rules into the node's namespace.
    ///
    /// # Errors
    /// When nft does not accept them.
    pub fn nft(&self, script: &str) -> Result<()> {
        command::input(self.namespace().command("nft").args(["-f", "-"]), script).map(drop)
    }

    /// Adds a pod: a namespace of its own with one address of each family, and a cgroup.
    ///
    /// # Errors
    /// When there are too many, or the kernel refuses.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let number = self.next_pod()?;
        let netns = format!("{}{}", self.prefix(), spec.name);
        self.pod_at(spec, Pod::uid_of(number), &netns, number)
    }

    /// Adds a pod that an API server has given a UID. Its name is its own only in its Kubernetes namespace.
    ///
    /// # Errors
    /// As [`pod`](Self::pod).
    pub fn pod_of(&self, spec: PodSpec, uid: &str) -> Result<Pod> {
        let number = self.next_pod()?;
        let netns = format!("{}{}.{}", self.prefix(), spec.namespace, spec.name);
        self.pod_at(spec, uid.to_owned(), &netns, number)
    }

    fn next_pod(&self) -> Result<u32> {
        let number = self.inner.pods.fetch_add(1, Ordering::Relaxed) + 1;
        if number > limits::PODS_MAX {
            bail!("a node of the harness has at most {} pods", limits::PODS_MAX);
        }
        Ok(number)
    }

    /// Adds another pod with the addresses of `pod`, which goes first: processes, namespace and link. Its name may be the same.
    ///
    /// # Errors
    /// As [`pod`](Self::pod).
    pub fn pod_in_place_of(&self, pod: Pod, spec: PodSpec) -> Result<Pod> {
        let link = pod.link();
        drop(pod);
        self.disconnect(link)?;
        let number = self.inner.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let netns = format!("{}{}", self.prefix(), spec.name);
        self.pod_at(spec, Pod::uid_of(number), &netns, link)
    }

    fn pod_at(&self, spec: PodSpec, uid: String, netns: &str, link: u32) -> Result<Pod> {
        let host_part = u8::try_from(link).context("pod number")?;
        let cgroup = self.inner.cgroup.join("kubepods").join(format!("pod{uid}"));
        std::fs::create_dir_all(&cgroup).with_context(|| format!("cannot create {}", cgroup.display()))?;
        if spec.host_network {
            return Ok(Pod::new(self.clone(), spec, (uid, link), None, self.ips(), cgroup));
        }
        let number = self.inner.number;
        let addresses = (
            Ipv4Addr::new(10, 77, number, host_part),
            Ipv6Addr::new(0xfd77, 0, 0, u16::from(number), 0, 0, 0, u16::from(host_part)),
        );
        let namespace = Namespace::create(netns)?;
        self.connect(&namespace, link, addresses)?;
        Ok(Pod::new(self.clone(), spec, (uid, link), Some(namespace), addresses, cgroup))
    }

    /// Takes a pod's link away, as the network plugin does when a sandbox ends: somebody may still hold its namespace.
    pub(crate) fn disconnect(&self, link: u32) -> Result<()> {
        self.namespace().ip(&format!("link del pod{link}\n"))
    }

    /// Connects a pod's namespace by a veth pair, and routes its addresses there.
    pub(crate) fn connect(&self, pod: &Namespace, number: u32, (ipv4, ipv6): (Ipv4Addr, Ipv6Addr)) -> Result<()> {
        let device = format!("pod{number}");
        // Nobody else is on the link. An address that is still being tried comes into force later, as a change that nobody made.
        command::output(pod.command("sysctl").args(["-qw", "net.ipv6.conf.default.accept_dad=0"]))?;
        let mut node_side = String::new();
        writeln!(node_side, "link add {device} type veth peer name eth0 netns {}", pod.name())?;
        writeln!(node_side, "addr add {GATEWAY_IPV4}/32 dev {device}")?;
        writeln!(node_side, "addr add {GATEWAY_IPV6}/64 dev {device} nodad")?;
        writeln!(node_side, "link set {device} up")?;
        self.namespace().ip(&node_side)?;
        let mut pod_side = String::from("link set lo up\n");
        writeln!(pod_side, "addr add {ipv4}/32 dev eth0")?;
        writeln!(pod_side, "addr add {ipv6}/128 dev eth0 nodad")?;
        writeln!(pod_side, "link set eth0 up")?;
        writeln!(pod_side, "route add {GATEWAY_IPV4} dev eth0 scope link")?;
        writeln!(pod_side, "route add default via {GATEWAY_IPV4} dev eth0 src {ipv4}")?;
        writeln!(pod_side, "route add default via {GATEWAY_IPV6} dev eth0 src {ipv6}")?;
        pod.ip(&pod_side)?;
        // Both ends are up now, so the link has a carrier and takes routes. `src` is the address that the node's own connections have.
        let (node_ipv4, node_ipv6) = self.ips();
        self.namespace().ip(&format!(
            "route add {ipv4} dev {device} src {node_ipv4}\nroute add {ipv6} dev {device} src {node_ipv6}\n"
        ))
    }

    /// Lets nft do what kube-proxy would for the Services in `manifests`.
    ///
    /// # Errors
    /// When a Service cannot be understood, or nft refuses.
    pub fn sync_kube_proxy(&self, manifests: &Manifests) -> Result<()> {
        self.nft(&crate::kube_proxy::ruleset(manifests.of_kind("Service"), manifests.of_kind("Pod"))?)
    }

    /// Drops all packets from one address to another where they cross the node, as a NetworkPolicy would.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn drop_packets(&self, from: IpAddr, to: IpAddr) -> Result<()> {
        let family = if from.is_ipv4() { "ip" } else { "ip6" };
        self.nft(&format!(
            "table {family} network-policy {{\n chain forwarded {{\n  type filter hook forward priority filter;\n  \
             {family} saddr {from} {family} daddr {to} counter drop\n }}\n}}\n"
        ))
    }
}

/// Says what a leftover is: used by tests that look at the machine after a cleanup.
///
/// # Errors
/// When there is no cgroup2 file system.
pub fn cgroup2() -> Result<PathBuf> {
    slot::cgroup2()
}
