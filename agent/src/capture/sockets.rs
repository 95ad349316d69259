//! What the proxy gets from capture: sockets in pods' namespaces, and where accepted connections were going.
//!
//! Shared by all workers. Looking a pod up takes no lock; the kernel does the rest.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use weft_abi::{FlowKey, OriginalDst, SocketState, TRANSPARENT_MARK, derived, ports, socket_kind};
use weft_policy::names::WorkloadId;
use weft_proxy::socket::{CapturedFlow, Dial, DialSocket, FlowSource, Lease, LocalPod, SocketError, SocketFactory};

use super::{
    bpf::Map,
    convert,
    diag::{Diag, Tags},
    limits::SOURCE_PORT_TRIES_MAX,
    netns::Netns,
    transparent::{Endpoints, PortLease, PortLeases},
};

/// A captured pod, as the data path needs it.
#[derive(Debug)]
pub(crate) struct PodSockets {
    pub(crate) pod: Arc<LocalPod>,
    pub(crate) netns: Netns,
    /// Its addresses, the first of each family being the one that mutual TLS is dialled from.
    pub(crate) ips: Box<[IpAddr]>,
    /// Whether connections made to it are captured, so that the agent's own must be let through.
    pub(crate) inbound: bool,
    /// Its cgroup, if it shares the host's namespace; else zero.
    pub(crate) cgroup_id: u64,
    /// Asks its namespace about sockets; one question at a time.
    pub(crate) diag: Mutex<Diag>,
}

#[derive(Clone, Debug, Default)]
struct Pods {
    by_id: HashMap<WorkloadId, Arc<PodSockets>>,
    by_cgroup: HashMap<u64, Arc<LocalPod>>,
    /// Not captured any more; what runs through the agent may finish.
    leaving: HashMap<WorkloadId, Arc<PodSockets>>,
}

/// Makes sockets, and tells where accepted connections were going.
#[derive(Debug)]
pub struct CaptureSockets {
    pods: ArcSwap<Pods>,
    captured: Map<FlowKey, OriginalDst>,
    storage: Map<i32, SocketState>,
    /// Listeners, and what they accept.
    accepted: Map<i32, u32>,
    /// Of source ports for transparent connections to applications.
    transparent: PortLeases,
    /// Of source ports for mutual TLS to other nodes.
    tls: PortLeases,
}

impl CaptureSockets {
    pub(crate) fn new(
        captured: Map<FlowKey, OriginalDst>,
        storage: Map<i32, SocketState>,
        accepted: Map<i32, u32>,
    ) -> Self {
        Self {
            pods: ArcSwap::default(),
            captured,
            storage,
            accepted,
            transparent: PortLeases::new(ports::TRANSPARENT_FIRST..=ports::TRANSPARENT_LAST),
            tls: PortLeases::new(ports::TLS_DIAL_FIRST..=ports::TLS_DIAL_LAST),
        }
    }

    /// How the agent's own sockets are known to whoever lists a namespace's.
    pub(crate) fn tags(&self) -> Tags<'_> {
        Tags { sockets: self.storage.as_fd(), accepted: self.accepted.as_fd() }
    }

    /// Marks a listener, and with it all that it accepts from now on, as the agent's own.
    pub(crate) fn tag_listener(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.accepted.set(&socket.as_raw_fd(), &1)
    }

    /// From now on the pod's sockets can be had.
    pub(crate) fn insert(&self, pod: &Arc<PodSockets>) {
        self.pods.rcu(|pods| {
            let mut pods = Pods::clone(pods);
            if pod.cgroup_id != 0 {
                pods.by_cgroup.insert(pod.cgroup_id, Arc::clone(&pod.pod));
            }
            pods.leaving.remove(&pod.pod.id);
            pods.by_id.insert(pod.pod.id.clone(), Arc::clone(pod));
            pods
        });
    }

    /// The pod is not captured any more, and its sockets can be had until [`forget`](Self::forget).
    pub(crate) fn let_go(&self, id: &WorkloadId) {
        self.pods.rcu(|pods| {
            let mut pods = Pods::clone(pods);
            if let Some(leaving) = pods.by_id.remove(id) {
                pods.leaving.insert(id.clone(), leaving);
            }
            pods
        });
    }

    /// From now on the sockets of a pod that was let go of cannot be had.
    pub(crate) fn forget(&self, id: &WorkloadId) {
        self.pods.rcu(|pods| {
            let mut pods = Pods::clone(pods);
            pods.leaving.remove(id);
            pods
        });
    }

    /// From now on they cannot; those that are out stay.
    pub(crate) fn remove(&self, id: &WorkloadId) {
        self.pods.rcu(|pods| {
            let mut pods = Pods::clone(pods);
            if let Some(gone) = pods.by_id.remove(id) {
                pods.by_cgroup.remove(&gone.cgroup_id);
            }
            pods
        });
    }

    pub(crate) fn pod(&self, id: &WorkloadId) -> Option<Arc<PodSockets>> {
        self.pods.load().by_id.get(id).cloned()
    }

    /// The pod with this id, if it is still in the namespace that the caller knows.
    fn present(&self, pod: &LocalPod) -> Result<Arc<PodSockets>, SocketError> {
        let pods = self.pods.load();
        let found = pods.by_id.get(&pod.id).or_else(|| pods.leaving.get(&pod.id)).cloned();
        found
            .filter(|found| found.pod.netns_cookie == pod.netns_cookie)
            .ok_or_else(|| SocketError::PodGone(pod.id.clone()))
    }

    /// Marks a socket as the agent's own, in the kernel and beyond the reach of any pod.
    fn tag(&self, socket: BorrowedFd<'_>, bypass_netns: u64) -> Result<(), SocketError> {
        let state = SocketState { kind: socket_kind::AGENT, bypass_netns, ..SocketState::default() };
        self.storage.set(&socket.as_raw_fd(), &state).map_err(kernel("tag a socket as the agent's own"))
    }

    fn outbound(&self, source: &PodSockets, to: SocketAddr, bypass_netns: u64) -> Result<DialSocket, SocketError> {
        let socket = source
            .netns
            .enter(|| stream(to))
            .and_then(|made| made)
            .map_err(kernel("open a socket in the pod's network namespace"))?;
        self.tag(socket.as_fd(), bypass_netns)?;
        Ok(DialSocket { socket, lease: Lease(None) })
    }

    /// A socket for mutual TLS. Nothing lets it through to an application: it must meet an agent.
    fn tls(&self, source: &PodSockets, to: SocketAddr) -> Result<DialSocket, SocketError> {
        let to = canonical(to);
        let no_address = || SocketError::NoAddress { pod: source.pod.id.clone(), to };
        let own = own_address(&source.ips, to.ip()).ok_or_else(no_address)?;
        let socket = source
            .netns
            .enter(|| {
                let socket = stream(to)?;
                // One port serves several destinations at a time, and follows its own TIME_WAIT.
                socket.set_reuse_address(true)?;
                Ok(socket)
            })
            .and_then(|made| made)
            .map_err(kernel("open a socket in the pod's network namespace"))?;
        let endpoints = Endpoints { netns_cookie: source.pod.netns_cookie, client: own, to };
        let lease = bind(&self.tls, &socket, endpoints, SocketAddr::new(own, 0), |from| {
            source.diag.lock().unwrap_or_else(PoisonError::into_inner).holds(from, to)
        })?;
        self.tag(socket.as_fd(), 0)?;
        Ok(DialSocket { socket, lease: Lease(Some(Box::new(lease))) })
    }

    /// A socket of the node itself that comes to a pod as another node's agent does: from a port of the block, and not as the node's own.
    ///
    /// # Errors
    /// When no port of the block is free here, or the kernel refuses.
    pub fn probe(&self, to: SocketAddr) -> io::Result<Socket> {
        let socket = stream(to)?;
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Nobody keeps the node's own ports of the block free; one of a few that are tried will be.
        let bound = (0..SOURCE_PORT_TRIES_MAX).any(|_| {
            let port = fastrand::u16(ports::TLS_DIAL_FIRST..=ports::TLS_DIAL_LAST);
            socket.bind(&SocketAddr::new(any, port).into()).is_ok()
        });
        if !bound {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.tag(socket.as_fd(), 0).map_err(io::Error::other)?;
        Ok(socket)
    }

    fn inbound(&self, pod: &PodSockets, client: SocketAddr, to: SocketAddr) -> Result<DialSocket, SocketError> {
        let (client, to) = (canonical(client), canonical(to));
        // An answer to a link-local address leaves by the link that the address is of, whatever the routing rules say: a transparent
        // socket would never get it. The application sees the pod itself as its client then.
        if matches!(client.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            return self.outbound(pod, to, pod.pod.netns_cookie);
        }
        let socket = pod
            .netns
            .enter(|| transparent(to))
            .and_then(|made| made)
            .map_err(kernel("open a transparent socket in the pod's network namespace"))?;
        let endpoints = Endpoints { netns_cookie: pod.pod.netns_cookie, client: client.ip(), to };
        let lease = bind(&self.transparent, &socket, endpoints, client, |from| {
            pod.diag.lock().unwrap_or_else(PoisonError::into_inner).is_taken(from, to)
        })?;
        self.tag(socket.as_fd(), pod.pod.netns_cookie)?;
        Ok(DialSocket { socket, lease: Lease(Some(Box::new(lease))) })
    }
}

impl SocketFactory for CaptureSockets {
    fn socket(&self, dial: &Dial<'_>) -> Result<DialSocket, SocketError> {
        match *dial {
            Dial::Outbound { source, to, tls: true, .. } => self.tls(&*self.present(source)?, to),
            Dial::Outbound { source, to, to_workload, tls: false } => {
                let source = self.present(source)?;
                let bypass = to_workload.and_then(|id| self.pod(id)).filter(|pod| pod.inbound);
                self.outbound(&source, to, bypass.map_or(0, |pod| pod.pod.netns_cookie))
            }
            Dial::Inbound { pod, client, to } => self.inbound(&*self.present(pod)?, client, to),
        }
    }

    fn started(&self, socket: &DialSocket, _dial: &Dial<'_>) -> Result<(), SocketError> {
        let state =
            self.storage.get(&socket.socket.as_raw_fd()).map_err(kernel("read a socket's tag"))?.unwrap_or_default();
        let recorded = state.derived == derived::BYPASS || state.derived == derived::ENDED;
        if state.kind != socket_kind::AGENT || (state.bypass_netns != 0 && !recorded) {
            return Err(SocketError::BypassFull);
        }
        Ok(())
    }

    fn is_captured(&self, workload: &WorkloadId) -> bool {
        self.pods.load().by_id.get(workload).is_some_and(|pod| pod.inbound)
    }

    fn is_leaving(&self, workload: &WorkloadId) -> bool {
        self.pods.load().leaving.contains_key(workload)
    }

    fn is_tls_port(&self, port: u16) -> bool {
        (ports::TLS_DIAL_FIRST..=ports::TLS_DIAL_LAST).contains(&port)
    }
}

impl FlowSource for CaptureSockets {
    fn take(&self, pod: &Arc<LocalPod>, local: SocketAddr, peer: SocketAddr) -> Option<CapturedFlow> {
        // A failing look-up is as good as none: without an original destination the connection can only be reset.
        let original = self.captured.take(&convert::flow_key(pod.netns_cookie, local, peer)).ok().flatten()?;
        let source = match original.cgroup_id {
            0 => Arc::clone(pod),
            cgroup_id => self.pods.load().by_cgroup.get(&cgroup_id).cloned()?,
        };
        Some(CapturedFlow { original_dst: SocketAddr::new(convert::ip(&original.addr), original.port), source })
    }
}

/// Binds a socket to an address and a port of the block that nobody uses; never the port that `from` has. `is_taken` asks the
/// kernel about one. Binding works from any namespace: the socket stays where it was made.
fn bind(
    leases: &PortLeases,
    socket: &Socket,
    endpoints: Endpoints,
    mut from: SocketAddr,
    is_taken: impl Fn(SocketAddr) -> io::Result<bool>,
) -> Result<PortLease, SocketError> {
    let exhausted =
        || SocketError::PortsExhausted { client: endpoints.client, to: endpoints.to, limit: leases.limit() };
    let except = from.port();
    // Leases of ports that turned out to be busy are kept until the end, so that none is tried twice.
    let mut busy = Vec::new();
    while busy.len() < SOURCE_PORT_TRIES_MAX {
        let lease = leases.lease(endpoints, except).ok_or_else(exhausted)?;
        from.set_port(lease.port());
        if is_taken(from).map_err(kernel("ask the pod's network namespace for a connection"))? {
            busy.push(lease);
            continue;
        }
        match socket.bind(&from.into()) {
            Ok(()) => return Ok(lease),
            // The application itself holds that port without SO_REUSEADDR, or listens on it.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => busy.push(lease),
            Err(source) => {
                return Err(SocketError::Kernel { action: "bind a socket to a port of the reserved block", source });
            }
        }
    }
    Err(exhausted())
}

/// The pod's first address of the family of `to`. A link-local address is of one link, and no other node is on a pod's.
fn own_address(ips: &[IpAddr], to: IpAddr) -> Option<IpAddr> {
    let link_local = matches!(to, IpAddr::V6(ip) if ip.is_unicast_link_local());
    ips.iter().map(IpAddr::to_canonical).find(|ip| !link_local && ip.is_ipv4() == to.is_ipv4())
}

/// A plain TCP socket of the family of `to`, in the namespace that the thread is in.
fn stream(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

/// One that may bind to the address of somebody else, whose answers are routed back by their mark.
fn transparent(to: SocketAddr) -> io::Result<Socket> {
    let socket = stream(to)?;
    if to.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_mark(TRANSPARENT_MARK)?;
    // One port serves several application ports at a time.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// IPv4 as IPv4: the pod's IPv4 socket cannot speak to a mapped address. The scope of a link-local address stays.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

fn kernel(action: &'static str) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Kernel { action, source }
}
