//! Named maxima of what is read.

use std::time::Duration;

/// Most pods of one NodeWorkloads object: a watch carries whole objects, and each change of one pod costs every agent this many.
pub const NODE_SHARD_PODS_MAX: usize = 16;
/// Shards of one node are numbered below this. Ten times as many pods as a large node has (kubelet's default is 110).
pub const NODE_SHARDS_MAX: u16 = 128;
/// Most addresses of one pod. Kubernetes gives one of each family.
pub const POD_IPS_MAX: usize = 8;
/// Longest UID of a pod, in bytes. Those that Kubernetes makes have 36; a directory's may be `namespace/name`.
pub const UID_BYTES_MAX: usize = 320;
/// Most targets of one object that is attached to others (Gateway API: 16).
pub const TARGETS_MAX: usize = 16;
/// Most keys that a balancer hashes by: each is looked for until one is found.
pub const HASH_KEYS_MAX: usize = 8;
/// Longest slow start.
pub const SLOW_START_MAX: Duration = Duration::from_secs(3600);
/// Longest delay of a fault, and most that it may vary: whoever wants a request to hang asks for a reset.
pub const FAULT_DELAY_MAX: Duration = Duration::from_secs(3600);
/// Most service accounts of one FaultInjection.
pub const FAULT_SOURCES_MAX: usize = 64;
/// How deep Lists may hold Lists.
pub const LIST_DEPTH_MAX: usize = 4;
/// Characters of a text that a message repeats: an object may have a megabyte in one field.
pub const QUOTED_CHARS_MAX: usize = 256;
/// Longest name of an object, in bytes (RFC 1123 subdomain, as the API server has it).
pub const NAME_BYTES_MAX: usize = 253;
/// Longest name of a namespace, a Service or a port, in bytes (RFC 1123 label).
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest path of a field in what is said of an object, in bytes: names of headers and of unknown fields are part of it.
pub const FIELD_BYTES_MAX: usize = 256;
/// Longest message about one field, in bytes; it may quote the field.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// Longest message about one object, in bytes. A condition of a Kubernetes object may hold 32768.
pub const OBJECT_MESSAGE_BYTES_MAX: usize = 4096;
/// Most parents of one route (the CRD's own limit).
pub const GATEWAY_PARENTS_MAX: usize = 32;
/// Most rules of one route (the CRD's own limit).
pub const GATEWAY_RULES_MAX: usize = 16;
/// Most matches of one rule (the CRD's own limit).
pub const GATEWAY_MATCHES_MAX: usize = 64;
/// Most headers or query parameters of one match (the CRD's own limit).
pub const GATEWAY_FIELDS_MAX: usize = 16;
/// Most filters of one rule or backend (the CRD's own limit).
pub const GATEWAY_FILTERS_MAX: usize = 16;
/// Most backends of one rule (the CRD's own limit).
pub const GATEWAY_BACKENDS_MAX: usize = 16;
/// Largest weight of one backend (the CRD's own limit).
pub const GATEWAY_WEIGHT_MAX: u64 = 1_000_000;
/// Longest path of a match or a filter, in characters (the CRD's own limit).
pub const GATEWAY_PATH_CHARS_MAX: usize = 1024;
/// Most entries on either side of a ReferenceGrant (the CRD's own limit).
pub const GATEWAY_GRANT_ENTRIES_MAX: usize = 16;
/// Most codes of one retry: every one that there is.
pub const GATEWAY_RETRY_CODES_MAX: usize = 200;
/// Tries after the first one where a retry does not say how many. The specification leaves it open.
pub const RETRY_ATTEMPTS_DEFAULT: u32 = 2;
/// Most tries after the first one: what is over it is cut, with a finding. The backends of a rule that asks for more are down for good.
pub const RETRY_ATTEMPTS_MAX: u32 = 100;
/// Shortest pause before the first retry where a rule does not say. The specification leaves it open; this is what Envoy has.
pub const RETRY_BACKOFF_DEFAULT: std::time::Duration = std::time::Duration::from_millis(25);
