//! What capture itself limits. The sizes of the maps, which the programs must know too, are in `weft_abi::limits`.

use std::time::Duration;

/// Connections that one listener holds until they are accepted. The kernel caps it at `net.core.somaxconn`, 4096 by default since 5.4.
pub const LISTENER_BACKLOG: i32 = 4096;

/// Source ports that are tried for one dial from a reserved block before it fails: all of these were found busy in the kernel, and the next
/// ones, used longer ago, are looked at by the next dial. Two look-ups of some microseconds each.
pub const SOURCE_PORT_TRIES_MAX: usize = 256;

/// How long a released pod still resets what other agents dial for mutual TLS. Whoever can reach the API server has learned by then that
/// the pod takes none: a watch is begun anew after 290 s at the latest (kube-runtime, `watcher::Config`).
pub const TLS_REFUSED_AFTER_RELEASE: Duration = Duration::from_secs(300);

/// Released pods that still reset what other agents dial for mutual TLS; when there are more, the one released first stops. 16 kB of
/// kernel memory each.
pub const RELEASED_MAX: usize = weft_abi::limits::PODS_MAX as usize;

/// Values that [`super::Keep`] holds: one for each service account of a node's pods, of which there are 500 at most, and a few more.
pub const KEEP_ENTRIES_MAX: u32 = 512;

/// Bytes of one kept value: a chain of three P-256 certificates and a key are some 3 KiB.
pub const KEEP_VALUE_BYTES_MAX: usize = 8192;

/// Bytes of a kept value's name: the longest key that the kernel takes (`MAX_BPF_STACK`). A service account's is at most 253 + 63 + 1.
pub const KEEP_NAME_BYTES_MAX: usize = 512;

/// How often a kept value is read again that another process is just writing.
pub const KEEP_READS_MAX: usize = 8;

/// Parts of the table of leased ports, each under a lock of its own, so that workers seldom meet.
pub const LEASE_SHARDS: usize = 16;

/// Bytes of one answer of the kernel's over netlink. Dumps come in messages of at most 32 KiB (NLMSG_GOODSIZE of a large dump).
pub const NETLINK_BUFFER_BYTES: usize = 64 * 1024;

/// How long the kernel may take to answer over netlink. It answers while it is asked; this only bounds a defect.
pub const NETLINK_TIMEOUT: Duration = Duration::from_secs(5);

/// Cgroups that are asked for connect programs of others, or for this very process; a node has a few hundred.
pub const CGROUPS_SCANNED_MAX: usize = 4096;

/// Connect programs that one cgroup is asked for (BPF_CGROUP_MAX_PROGS in the kernel).
pub const CGROUP_PROGRAMS_MAX: usize = 64;

/// How deep below the cgroup root the pods' cgroup is looked for: `kubelet.slice/kubelet-kubepods.slice` is the deepest in use.
pub const PODS_CGROUP_DEPTH_MAX: usize = 2;

/// Listening sockets in one message of a hand-over. The kernel takes at most 253 (SCM_MAX_FD).
pub const HANDOVER_BATCH_MAX: usize = 64;

/// Listening sockets in one hand-over.
pub const HANDOVER_SOCKETS_MAX: usize = weft_abi::limits::LISTENERS_MAX as usize;

/// Bytes of one message of a hand-over: a batch of entries with UIDs of 36 characters needs some 10 KiB.
pub const HANDOVER_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// How long the other agent may take for its next message in a hand-over. Between its listeners and its `done` the new agent adopts
/// every pod, at some milliseconds each.
pub const HANDOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections of one pod that weft does not carry and that one look holds against policy; the others have to wait for the next look, half
/// a second later. Some 200 bytes each.
pub const OLDER_LOOKED_AT_MAX: usize = 16_384;
