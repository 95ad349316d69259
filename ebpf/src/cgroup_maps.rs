//! Maps that only the cgroup programs use.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::HashMap,
};
use weft_abi::{Addr, DestKey, DestVerdict, PodConfig, SocketState, limits};

/// See `weft_abi::map_name::HOST_PODS`.
#[map]
pub static HOST_PODS: HashMap<u64, PodConfig> = HashMap::pinned(limits::PODS_MAX, 0);

/// See `weft_abi::map_name::LOCAL_ADDRS`.
#[map]
pub static LOCAL_ADDRS: HashMap<Addr, u64> = HashMap::pinned(limits::LOCAL_ADDRS_MAX, 0);

/// See `weft_abi::map_name::DESTINATIONS`.
#[map]
pub static DESTINATIONS: HashMap<DestKey, DestVerdict> = HashMap::pinned(limits::DESTINATIONS_MAX, BPF_F_NO_PREALLOC);

/// See `weft_abi::map_name::SOCKETS`. A BTF map, which has no pinning of its own: the loader gives it its path.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();
