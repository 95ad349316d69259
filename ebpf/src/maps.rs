//! Maps that both objects use. Each is pinned under its name, so that the cgroup programs and every pod's look-up program share it.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, SockHash},
};
use weft_abi::{
    Addr, FlowKey, FlowOwner, ListenerKey, OriginalDst, PodConfig, PodStats, Settings, UdpGrant, UdpPort, counter,
    limits,
};

/// See `weft_abi::map_name::SETTINGS`.
#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// See `weft_abi::map_name::PODS`.
#[map]
pub static PODS: HashMap<u64, PodConfig> = HashMap::pinned(limits::PODS_MAX, 0);

/// See `weft_abi::map_name::LISTENERS`.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::pinned(limits::LISTENERS_MAX, 0);

// The maps of flows are sized for the worst node; not preallocated, they take memory only as flows come.

/// See `weft_abi::map_name::CAPTURED`.
#[map]
pub static CAPTURED: HashMap<FlowKey, OriginalDst> = HashMap::pinned(limits::CAPTURED_MAX, BPF_F_NO_PREALLOC);

/// See `weft_abi::map_name::BYPASS`.
#[map]
pub static BYPASS: HashMap<FlowKey, FlowOwner> = HashMap::pinned(limits::BYPASS_MAX, BPF_F_NO_PREALLOC);

/// See `weft_abi::map_name::NODE_FLOWS`.
#[map]
pub static NODE_FLOWS: HashMap<FlowKey, FlowOwner> = HashMap::pinned(limits::NODE_FLOWS_MAX, BPF_F_NO_PREALLOC);

/// See `weft_abi::map_name::LOCAL_ADDRS`.
#[map]
pub static LOCAL_ADDRS: HashMap<Addr, u64> = HashMap::pinned(limits::LOCAL_ADDRS_MAX, 0);

/// See `weft_abi::map_name::UDP_PORTS`.
#[map]
pub static UDP_PORTS: HashMap<UdpPort, u32> = HashMap::pinned(limits::UDP_PORTS_MAX, BPF_F_NO_PREALLOC);

/// See `weft_abi::map_name::UDP_GRANTS`.
#[map]
pub static UDP_GRANTS: HashMap<UdpGrant, u32> = HashMap::pinned(limits::UDP_GRANTS_MAX, BPF_F_NO_PREALLOC);

/// See `weft_abi::map_name::POD_STATS`. Twice the pods: namespaces and host-network cgroups.
#[map]
pub static POD_STATS: PerCpuHashMap<u64, PodStats> = PerCpuHashMap::pinned(2 * limits::PODS_MAX, 0);

/// See `weft_abi::map_name::COUNTERS`.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(counter::COUNT, 0);
