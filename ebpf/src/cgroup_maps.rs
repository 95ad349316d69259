//! Maps that only the cgroup programs use.

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::HashMap,
};
use weft_abi::{DestKey, DestVerdict, PodConfig, SocketState, limits};

/// See `weft_abi::map_name::HOST_PODS`.
#[map]
pub static HOST_PODS: HashMap<u64, PodConfig> = HashMap::pinned(limits::PODS_MAX, 0);

/// See `weft_abi::map_name::DESTINATIONS`.
#[map]
pub static DESTINATIONS: HashMap<DestKey, DestVerdict> = HashMap::pinned(limits::DESTINATIONS_MAX, BPF_F_NO_PREALLOC);

/// See `weft_abi::map_name::SOCKETS`. A BTF map, which has no pinning of its own: the loader gives it its path.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// The definition of a socket storage whose values the kernel gives on to connections that a listener accepts. As `SkStorage`, which
/// has no flags to choose.
#[repr(C)]
pub struct InheritedStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: only a description for the loader; the pointers are null and nobody follows them.
unsafe impl<T> Sync for InheritedStorage<T> {}

/// See `weft_abi::map_name::ACCEPTED`. Only user space uses it; it is here because the loader can give a type to it.
#[btf_map]
pub static ACCEPTED: InheritedStorage<u32> = InheritedStorage {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};
