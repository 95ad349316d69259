//! Sizes of the maps, in entries, and the clocks that both sides share. Each has a metric that shows how full it is.

/// Pods of one node that can be captured. Kubernetes supports 110 pods a node by default and large ones run 500.
pub const PODS_MAX: u32 = 1024;
/// Addresses of captured pods: two families each.
pub const LOCAL_ADDRS_MAX: u32 = 2 * PODS_MAX;
/// Destinations (service addresses times ports, pod addresses). 10,000 Services of a few ports and 100,000 endpoints fit.
pub const DESTINATIONS_MAX: u32 = 262_144;
/// UDP ports of captured pods that policy guards: 32 for each pod.
pub const UDP_PORTS_MAX: u32 = 32 * PODS_MAX;
/// Pods of this node that may send to guarded UDP ports of others, counted for each port: each of 110 pods to 20 ports of each other.
pub const UDP_GRANTS_MAX: u32 = 262_144;
/// Redirected connections that the agent has not accepted yet; also those that wait in accept queues during a hand-over.
pub const CAPTURED_MAX: u32 = 65_536;
/// Connections of the agent to pods of this node that are open at one time.
pub const BYPASS_MAX: u32 = 262_144;
/// Connections of the node itself (probes) to captured pods that are open at one time.
pub const NODE_FLOWS_MAX: u32 = 16_384;
/// Listeners: two directions, two families.
pub const LISTENERS_MAX: u32 = 4 * PODS_MAX;
/// How deep below the cgroup root a host-network pod's cgroup is searched for.
pub const CGROUP_DEPTH_MAX: u32 = 8;
/// Age at which the agent's heartbeat counts as missing: nanoseconds.
pub const HEARTBEAT_MAX_AGE_NS: u64 = 5_000_000_000;
/// Redirect ports that are tried for a socket whose own port is shared with other connections, before it goes to one that it has already
/// and the kernel refuses. With 100 destinations from one port a second try is needed for every tenth, a third for every hundredth.
pub const REDIRECT_TRIES_MAX: u16 = 8;
