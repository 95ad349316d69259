//! The boundary to capture: where accepted connections were going, and sockets to dial with. Capture implements both traits over
//! BPF maps and network namespaces; tests implement them over plain loopback sockets.

use std::{any::Any, fmt, io, net::SocketAddr, sync::Arc};

use weft_policy::names::{ServiceAccountKey, WorkloadId};

/// A pod of this node whose connections are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// UID.
    pub id: WorkloadId,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// What it belongs to: its Deployment, for instance.
    pub owner: Arc<str>,
    /// Service account: who it is to those that it asks.
    pub account: ServiceAccountKey,
    /// Cookie of its network namespace: tells capture which one, without a lookup.
    pub netns_cookie: u64,
}

/// The listening sockets inside one pod's namespace.
#[derive(Debug)]
pub struct PodListeners {
    /// The pod.
    pub pod: Arc<LocalPod>,
    /// For connections that the pod makes, one for each address family.
    pub outbound: Vec<std::net::TcpListener>,
    /// For connections made to the pod, one for each address family.
    pub inbound: Vec<std::net::TcpListener>,
}

/// What an accepted outbound connection was meant for.
#[derive(Clone, Debug)]
pub struct CapturedFlow {
    /// The destination that the application asked for.
    pub original_dst: SocketAddr,
    /// The pod that asked: the listener's, or another one that shares its namespace.
    pub source: Arc<LocalPod>,
}

/// Tells where accepted outbound connections were going.
pub trait FlowSource: Send + Sync + 'static {
    /// What a connection accepted from an outbound listener of `pod` was meant for, and forgets it. `None` if it was never
    /// captured (somebody dialled the listener itself): such a connection is reset.
    fn take(&self, pod: &Arc<LocalPod>, local: SocketAddr, peer: SocketAddr) -> Option<CapturedFlow>;
}

/// A connection that the proxy wants to make.
#[derive(Clone, Copy, Debug)]
pub enum Dial<'a> {
    /// From a pod to an endpoint: leaves by the pod's own interface, with its own address.
    Outbound {
        /// The pod that the connection is for.
        source: &'a LocalPod,
        /// The endpoint.
        to: SocketAddr,
        /// The pod behind the endpoint, if known. If it is captured on this node, its inbound hook lets this connection through,
        /// because the proxy has taken the inbound step already.
        to_workload: Option<&'a WorkloadId>,
        /// Whether mutual TLS between nodes is spoken on it: then it leaves from the pod's own address and a port of the block that tells
        /// the other node's agent to wait for a ClientHello, and no inbound hook lets it through to an application.
        tls: bool,
    },
    /// To an application inside `pod`, with the address of the real client.
    Inbound {
        /// The pod whose application is dialled.
        pod: &'a LocalPod,
        /// The client as the accepted connection showed it.
        client: SocketAddr,
        /// The address and port that the client asked for.
        to: SocketAddr,
    },
}

/// A socket for one dial: non-blocking, in the right namespace, tagged as the agent's, bound where needed, not connected yet.
pub struct DialSocket {
    /// The socket.
    pub socket: socket2::Socket,
    /// Whatever must live as long as the connection (a leased source port); dropped with it.
    pub lease: Lease,
}

impl fmt::Debug for DialSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialSocket").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Held while a connection lives; what is inside gives its resource back when dropped.
#[derive(Default)]
pub struct Lease(pub Option<Box<dyn Any + Send>>);

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Lease(held)" } else { "Lease(none)" })
    }
}

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The pod is not captured any more.
    #[error("pod {0} is not captured")]
    PodGone(WorkloadId),
    /// All source ports of the block (transparent dials have one, mutual TLS has another) are in use from this client to this port.
    #[error("no source port left in the reserved block from {client} to {to} (limit {limit})")]
    PortsExhausted {
        /// Client address.
        client: std::net::IpAddr,
        /// Application address and port.
        to: SocketAddr,
        /// Size of the block, ports.
        limit: usize,
    },
    /// The pod has no address to dial from that can reach this one.
    #[error("pod {pod} has no address of the family and scope of {to}")]
    NoAddress {
        /// The pod that the connection is for.
        pod: WorkloadId,
        /// Where it was to go.
        to: SocketAddr,
    },
    /// The bypass entry could not be written, so the connection would come back to the agent.
    #[error("the kernel refused to record the connection as the agent's own (bypass map full)")]
    BypassFull,
    /// The kernel refused.
    #[error("cannot {action}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    /// Whether the same dial may succeed later or elsewhere.
    #[must_use]
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::PodGone(_))
    }

    /// Stable word for metrics and `weft-reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PodGone(_) => "pod_gone",
            Self::PortsExhausted { .. } => "ports_exhausted",
            Self::NoAddress { .. } => "no_address",
            Self::BypassFull => "bypass_full",
            Self::Kernel { .. } => "socket_error",
        }
    }
}

/// Makes sockets in pods' namespaces.
pub trait SocketFactory: Send + Sync + 'static {
    /// A socket for a dial; synchronous, a few system calls.
    ///
    /// # Errors
    /// When the pod is gone, a limit is met, or the kernel refuses.
    fn socket(&self, dial: &Dial<'_>) -> Result<DialSocket, SocketError>;

    /// To be called once `connect` was started on the socket, before anything is sent: checks that the kernel recorded it as the
    /// agent's own, where that matters. On an error the caller drops the socket.
    ///
    /// # Errors
    /// When the record is missing.
    fn started(&self, socket: &DialSocket, dial: &Dial<'_>) -> Result<(), SocketError>;

    /// Whether a workload is captured on this node, so that a dial to it carries out the inbound step in this process.
    fn is_captured(&self, workload: &WorkloadId) -> bool;

    /// Whether a workload was captured on this node until a moment ago, and lives on without weft: what was accepted for it may finish.
    fn is_leaving(&self, _workload: &WorkloadId) -> bool {
        false
    }

    /// Whether a peer's port is of the block that mutual TLS between nodes is dialled from. Only a hint: anybody can bind such a port.
    fn is_tls_port(&self, port: u16) -> bool;
}
