//! What weft's eBPF programs and its agent share: map keys, map values, and the numbers both sides must agree on.
//!
//! Rules: `#[repr(C)]`, fixed-size integers, explicit padding, byte order in the name. Addresses are always 16 bytes,
//! IPv4 as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2), so that one key type serves both families. Pinned maps of
//! another [`ABI_VERSION`] live in another directory and are never reinterpreted.
#![no_std]

pub mod limits;
pub mod ports;

/// Bumped on every change of a type or of a map's meaning; part of the pin directory's name.
pub const ABI_VERSION: u32 = 3;

/// The only transport that is captured so far (IANA protocol number, RFC 9293).
pub const IPPROTO_TCP: u8 = 6;

/// Datagrams are let through or not, and never redirected (IANA protocol number, RFC 768).
pub const IPPROTO_UDP: u8 = 17;

/// The mark on the agent's transparent sockets inside a pod's namespace. It only selects a route there; it is never authority.
pub const TRANSPARENT_MARK: u32 = 0x77_65_66_74;

/// The input interface that the agent names in its own socket look-ups (sock_diag): no interface has this index, and the pods'
/// programs neither steer nor count such a look-up.
pub const DIAG_IFINDEX: u32 = 0x77_65_66_74;

/// The routing table that [`TRANSPARENT_MARK`] selects inside a pod's namespace.
pub const TRANSPARENT_TABLE: u32 = 0x7765;

/// Preference of the rule that selects [`TRANSPARENT_TABLE`].
pub const TRANSPARENT_RULE_PREF: u32 = 0x7765;

/// The netns cookie under which flows of the node's own (host namespace) sockets are recorded in `NODE_FLOWS`.
/// Real cookies start at 1 and count up, so this one is never a pod's.
pub const NODE_NETNS: u64 = 0;

/// Set in a `POD_STATS` key that is the cgroup id of a host-network pod, so that it cannot equal a netns cookie.
pub const STATS_CGROUP_BIT: u64 = 1 << 63;

/// An IPv4 or IPv6 address in network byte order; IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Addr {
    /// The four 32-bit words of the address, each in network byte order.
    pub words_be: [u32; 4],
}

impl Addr {
    /// The IPv4-mapped form of an IPv4 address that is given as one network-order word.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word_be: u32) -> Self {
        Self { words_be: [0, 0, 0xffff_u32.to_be(), word_be] }
    }

    /// Whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words_be[0] == 0 && self.words_be[1] == 0 && self.words_be[2] == 0xffff_u32.to_be()
    }
}

/// A TCP connection as its accepting side sees it, inside one network namespace: key of `CAPTURED`, `BYPASS` and `NODE_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FlowKey {
    /// Cookie of the namespace in which the connection is accepted.
    pub netns_cookie: u64,
    /// The accepting side's address.
    pub local: Addr,
    /// The connecting side's address.
    pub remote: Addr,
    /// The accepting side's port, host byte order.
    pub local_port: u16,
    /// The connecting side's port, host byte order.
    pub remote_port: u16,
    /// Always zero.
    pub pad: u32,
}

/// What a captured socket asked for, before its destination was rewritten: value of `CAPTURED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OriginalDst {
    /// The destination's address.
    pub addr: Addr,
    /// Cookie of the socket that asked. The entry is deleted only while it still holds this cookie.
    pub socket_cookie: u64,
    /// Id of the pod's cgroup for a host-network pod, else zero.
    pub cgroup_id: u64,
    /// The destination's port, host byte order.
    pub port: u16,
    /// 1 once the asking socket was closed in good order. Its connection may still wait in the accept queue with data in it, so
    /// the entry stays until it is accepted or swept.
    pub closed: u16,
    /// Always zero.
    pub pad: [u16; 2],
}

/// Owner of a `BYPASS` or `NODE_FLOWS` entry: the cookie of the socket for which it was written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FlowOwner {
    /// Cookie of the socket. The entry is deleted only while it still holds this cookie.
    pub socket_cookie: u64,
}

/// One captured pod: value of `PODS` (key: netns cookie) and of `HOST_PODS` (key: cgroup id).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PodConfig {
    /// The pod's IPv4 address in its mapped form; all zero if it has none.
    pub ipv4: Addr,
    /// The pod's IPv6 address; all zero if it has none.
    pub ipv6: Addr,
    /// Cookie of the pod's network namespace, which also keys its listeners.
    pub netns_cookie: u64,
    /// Bits of [`pod_flags`].
    pub flags: u32,
    /// What the namespace's sysctls were before weft set them, as bits of [`sysctl_was`]; restored on release.
    pub sysctl_was: u32,
    /// Ports of [`ports::RESERVED`] that were reserved before weft came; release leaves them so.
    pub reserved_was: [PortRange; 4],
    /// Connections that were established when capture began: neither side of them passes the agent.
    pub connections_before: u32,
    /// Always zero.
    pub pad: u32,
}

/// A range of ports, host byte order, both ends included; all zero stands for none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Bits of [`PodConfig::flags`].
pub mod pod_flags {
    /// New outbound connections are captured.
    pub const OUTBOUND: u32 = 1;
    /// New inbound connections are captured.
    pub const INBOUND: u32 = 1 << 1;
    /// With the agent gone: refuse, instead of going direct.
    pub const FAIL_CLOSED: u32 = 1 << 2;
    /// Shares the host's network namespace: outbound only, found by its cgroup.
    pub const HOST_NETWORK: u32 = 1 << 3;
    /// About to be released: of what is made to it from elsewhere, only what other agents still dial for mutual TLS is captured.
    pub const LEAVING: u32 = 1 << 4;
}

/// Bits of [`PodConfig::sysctl_was`]: the sysctl was already 1.
pub mod sysctl_was {
    /// `net.ipv4.tcp_fwmark_accept`.
    pub const TCP_FWMARK_ACCEPT: u32 = 1;
    /// `net.ipv4.fwmark_reflect`.
    pub const FWMARK_REFLECT_V4: u32 = 1 << 1;
    /// `net.ipv6.fwmark_reflect`.
    pub const FWMARK_REFLECT_V6: u32 = 1 << 2;
}

/// A destination that the agent knows: key of `DESTINATIONS`. Looked up with the port, then with port 0 (any port).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DestKey {
    /// The destination's address.
    pub addr: Addr,
    /// Port in host byte order; 0 stands for every port of the address.
    pub port: u16,
    /// IANA protocol number; only [`IPPROTO_TCP`] so far.
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
}

// `Addr` needs an order for `DestKey`'s, which only exists so that user space can keep sorted tables.
impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Addr {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        let host = |addr: &Self| addr.words_be.map(u32::from_be);
        host(self).cmp(&host(other))
    }
}

/// What happens to a connection to a destination: value of `DESTINATIONS`, one of [`verdict`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DestVerdict {
    /// One of [`verdict`].
    pub verdict: u32,
    /// Always zero.
    pub pad: u32,
}

/// Values of [`DestVerdict::verdict`]. A destination that is not in the map is [`PASS`](verdict::PASS).
pub mod verdict {
    /// Not touched.
    pub const PASS: u32 = 0;
    /// Redirected to the agent's outbound listener.
    pub const PROXY: u32 = 1;
    /// Refused at once: connect fails with ECONNREFUSED.
    pub const DENY: u32 = 2;
    /// Reserved: the program picks the endpoint itself.
    pub const BALANCE: u32 = 3;
}

/// A UDP port of a captured pod that policy guards: key of `UDP_PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct UdpPort {
    /// Cookie of the pod's network namespace.
    pub destination: u64,
    /// The port, host byte order.
    pub port: u16,
    /// Always zero.
    pub pad: [u16; 3],
}

/// A pod that may send to a guarded UDP port: key of `UDP_GRANTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct UdpGrant {
    /// As in [`UdpPort`].
    pub destination: u64,
    /// Cookie of the sending pod's network namespace.
    pub source: u64,
    /// As in [`UdpPort`].
    pub port: u16,
    /// Always zero.
    pub pad: [u16; 3],
}

/// Key of `LISTENERS` (a sockhash of the agent's listening sockets).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ListenerKey {
    /// Cookie of the namespace in which the listener lives.
    pub netns_cookie: u64,
    /// One of [`direction`].
    pub direction: u32,
    /// 4 or 6.
    pub ip_version: u32,
}

/// Values of [`ListenerKey::direction`].
pub mod direction {
    /// Connections that the pod makes.
    pub const OUTBOUND: u32 = 0;
    /// Connections made to the pod.
    pub const INBOUND: u32 = 1;
}

/// What weft keeps with a socket (SK_STORAGE): it lives and dies with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SocketState {
    /// One of [`socket_kind`].
    pub kind: u32,
    /// Which map holds [`key`](Self::key): one of [`derived`].
    pub derived: u32,
    /// For [`socket_kind::AGENT`]: cookie of the destination's namespace if that is a captured pod of this node, else zero.
    pub bypass_netns: u64,
    /// For [`socket_kind::CAPTURED`]: id of the pod's cgroup for a host-network pod, else zero.
    pub cgroup_id: u64,
    /// For [`socket_kind::CAPTURED`]: the destination that the application asked for.
    pub original: Addr,
    /// Port of [`original`](Self::original), host byte order.
    pub original_port: u16,
    /// Always zero.
    pub pad: [u16; 3],
    /// The entry that was written for this socket's present connection.
    pub key: FlowKey,
}

/// Values of [`SocketState::kind`].
pub mod socket_kind {
    /// Not weft's business, any more or yet.
    pub const NONE: u32 = 0;
    /// An application's socket whose present connection was redirected.
    pub const CAPTURED: u32 = 1;
    /// The agent's own socket, tagged from user space by its fd.
    pub const AGENT: u32 = 2;
    /// A socket of a host-network pod that is not redirected: host namespace, but not the node's own.
    pub const HOST_POD: u32 = 3;
}

/// Values of [`SocketState::derived`].
pub mod derived {
    /// No entry.
    pub const NONE: u32 = 0;
    /// An entry of `CAPTURED`.
    pub const CAPTURED: u32 = 1;
    /// An entry of `BYPASS`.
    pub const BYPASS: u32 = 2;
    /// An entry of `NODE_FLOWS`.
    pub const NODE_FLOW: u32 = 3;
    /// There was an entry; it was deleted when the connection ended.
    pub const ENDED: u32 = 4;
}

/// What happened at one pod's hooks: value of the per-CPU map `POD_STATS` (key: netns cookie, or cgroup id with [`STATS_CGROUP_BIT`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct PodStats {
    /// Outbound connections redirected to the agent.
    pub outbound_captured: u64,
    /// Outbound connections that went direct because the agent was gone (fail mode `open`).
    pub outbound_direct: u64,
    /// Outbound connections refused because the agent was gone (fail mode `closed`).
    pub outbound_refused: u64,
    /// Outbound connections refused by a `deny` verdict.
    pub outbound_denied: u64,
    // What is counted inbound are look-ups: one for each connection, and now and then one more for a segment whose connection is gone.
    /// Inbound connections handed to the agent.
    pub inbound_captured: u64,
    /// Inbound connections that reached the application because the agent was gone (fail mode `open`).
    pub inbound_direct: u64,
    /// Inbound connections reset because the agent was gone: all in fail mode `closed`, and in either mode those from a port of the block
    /// that agents dial mutual TLS from.
    pub inbound_refused: u64,
    /// Inbound connections from the node itself (probes), not touched.
    pub inbound_node: u64,
    /// Datagrams, and connects of UDP sockets, that were refused because the pod they were for does not take them from this one.
    pub outbound_udp_denied: u64,
    /// Datagrams to a guarded port that were dropped.
    pub inbound_udp_denied: u64,
}

/// Slots of the per-CPU array `COUNTERS`: events that must never happen, or that show a limit was met.
pub mod counter {
    /// An entry of `CAPTURED` could not be written; the connection was refused.
    pub const CAPTURED_FULL: u32 = 0;
    /// An entry of `BYPASS` could not be written; the agent must fail that dial.
    pub const BYPASS_FULL: u32 = 1;
    /// An entry of `NODE_FLOWS` could not be written; the probe is treated as ordinary inbound traffic.
    pub const NODE_FLOWS_FULL: u32 = 2;
    /// Socket storage could not be had; the connection was refused, or, for one of the node's own, treated as ordinary traffic.
    pub const STORAGE_FULL: u32 = 3;
    /// A redirected connection found no listener in its namespace and was reset.
    pub const REDIRECT_LOST: u32 = 4;
    /// A connection to a proxied destination was refused, because the pod has no address of that family to redirect to.
    pub const NO_ADDRESS: u32 = 5;
    /// Entries written to `BYPASS`.
    pub const BYPASS_ADDED: u32 = 6;
    /// Entries deleted from `BYPASS`: what is left of the difference is how full it is.
    pub const BYPASS_REMOVED: u32 = 7;
    /// Entries written to `NODE_FLOWS`.
    pub const NODE_FLOWS_ADDED: u32 = 8;
    /// Entries deleted from `NODE_FLOWS`.
    pub const NODE_FLOWS_REMOVED: u32 = 9;
    /// A connection of another node's agent came to a pod that was released meanwhile, and was reset.
    pub const TLS_TO_RELEASED: u32 = 10;
    /// How many slots there are.
    pub const COUNT: u32 = 11;
}

/// The one slot of `SETTINGS`, written by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Settings {
    /// When the agent last showed that all its workers run: CLOCK_MONOTONIC, nanoseconds (`bpf_ktime_get_ns`).
    pub heartbeat_ns: u64,
    /// Age at which the heartbeat counts as missing, nanoseconds.
    pub heartbeat_max_age_ns: u64,
    /// Cookie of the host's network namespace.
    pub host_netns_cookie: u64,
    /// Must equal [`ABI_VERSION`].
    pub abi_version: u32,
    /// Bits of [`settings_flags`].
    pub flags: u32,
}

/// Bits of [`Settings::flags`].
pub mod settings_flags {
    /// The connect programs are attached to the cgroup that holds all pods and nothing else, so that every socket of the host's
    /// namespace that they see is a host-network pod's, captured or not.
    pub const ONLY_PODS: u32 = 1;
    /// `HOST_PODS` is not empty: the cgroups of host-namespace sockets are worth a look.
    pub const HOST_PODS: u32 = 1 << 1;
}

/// Names of the maps; each is pinned under its name.
pub mod map_name {
    /// Array, one [`Settings`](crate::Settings).
    pub const SETTINGS: &str = "SETTINGS";
    /// Hash, netns cookie (u64) to [`PodConfig`](crate::PodConfig).
    pub const PODS: &str = "PODS";
    /// Hash, cgroup id (u64) to [`PodConfig`](crate::PodConfig): host-network pods.
    pub const HOST_PODS: &str = "HOST_PODS";
    /// Hash, [`Addr`](crate::Addr) to netns cookie: this node's captured pods. For TCP a filter for node traffic, never authority; who sends a
    /// datagram is known by nothing else.
    pub const LOCAL_ADDRS: &str = "LOCAL_ADDRS";
    /// Hash, [`DestKey`](crate::DestKey) to [`DestVerdict`](crate::DestVerdict).
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// Hash, [`FlowKey`](crate::FlowKey) to [`OriginalDst`](crate::OriginalDst).
    pub const CAPTURED: &str = "CAPTURED";
    /// Hash, [`FlowKey`](crate::FlowKey) to [`FlowOwner`](crate::FlowOwner).
    pub const BYPASS: &str = "BYPASS";
    /// Hash, [`FlowKey`](crate::FlowKey) (netns cookie [`NODE_NETNS`](crate::NODE_NETNS)) to [`FlowOwner`](crate::FlowOwner).
    pub const NODE_FLOWS: &str = "NODE_FLOWS";
    /// Sockhash, [`ListenerKey`](crate::ListenerKey) to a listening socket.
    pub const LISTENERS: &str = "LISTENERS";
    /// Socket storage, [`SocketState`](crate::SocketState).
    pub const SOCKETS: &str = "SOCKETS";
    /// Socket storage, u32: 1 with the agent's listeners, and inherited by every connection that they accept. It tells the agent's
    /// own connections from the application's, for whoever lists a namespace's sockets; no program reads it.
    pub const ACCEPTED: &str = "ACCEPTED";
    /// Hash, [`UdpPort`](crate::UdpPort) to u32: there if policy guards the port.
    pub const UDP_PORTS: &str = "UDP_PORTS";
    /// Hash, [`UdpGrant`](crate::UdpGrant) to u32: there if the pod may send to the guarded port.
    pub const UDP_GRANTS: &str = "UDP_GRANTS";
    /// Per-CPU hash, netns cookie (u64) to [`PodStats`](crate::PodStats).
    pub const POD_STATS: &str = "POD_STATS";
    /// Per-CPU array of u64, slots of [`counter`](crate::counter).
    pub const COUNTERS: &str = "COUNTERS";
}

const _: () = {
    assert!(size_of::<FlowKey>() == 48);
    assert!(size_of::<OriginalDst>() == 40);
    assert!(size_of::<PodConfig>() == 72);
    assert!(size_of::<DestKey>() == 20);
    assert!(size_of::<ListenerKey>() == 16);
    assert!(size_of::<SocketState>() == 96);
    assert!(size_of::<PodStats>() == 80);
    assert!(size_of::<UdpPort>() == 16);
    assert!(size_of::<UdpGrant>() == 24);
    assert!(size_of::<Settings>() == 32);
};

#[cfg(feature = "user")]
#[allow(unsafe_code)]
mod user {
    // SAFETY: every type is `bytemuck::Pod`: no padding, no pointers, valid for any bit pattern.
    unsafe impl aya::Pod for super::Addr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::OriginalDst {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowOwner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PodConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PortRange {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DestKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DestVerdict {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UdpPort {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UdpGrant {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SocketState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PodStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
}
