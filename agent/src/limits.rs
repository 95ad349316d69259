//! Named maxima of the agent itself. What meets one is refused or delayed, and says so.

use std::time::Duration;

/// Largest manifest file that is read, bytes. An API server refuses objects above 1.5 MiB (etcd's default request limit); a file holds several.
pub const MANIFEST_FILE_BYTES_MAX: u64 = 16 << 20;
/// Most manifest files in one directory.
pub const MANIFEST_FILES_MAX: usize = 10_000;
/// Most documents in one manifest file.
pub const MANIFEST_DOCUMENTS_MAX: usize = 50_000;
/// A burst of file events is over when nothing came for this long.
pub const MANIFEST_QUIET: Duration = Duration::from_millis(10);
/// A burst of file events is acted on after this long at the latest.
pub const MANIFEST_QUIET_CAP: Duration = Duration::from_millis(50);
/// The directory is read again this often even without an event, because inotify may drop some (inotify(7), "IN_Q_OVERFLOW").
pub const MANIFEST_RESCAN: Duration = Duration::from_secs(30);
/// Batches of object events that may wait for the reconciler.
pub const RECONCILE_QUEUE_MAX: usize = 64;
/// How often a pod that could not be captured is tried again.
pub const POD_RETRY: Duration = Duration::from_secs(2);
/// How often the namespaces of captured pods are compared with what is at their paths now. A sandbox that was made anew goes uncaptured
/// for so long; one stat(2) for each pod.
pub const SANDBOX_LOOK: Duration = Duration::from_millis(500);
/// How often the heartbeat is written; a fifth of the age at which programs take the agent for gone.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// Open files that the agent asks for: 500,000 connections, and the kernel's default ceiling for one process (proc(5), "nr_open").
pub const FILES_MAX: u64 = 1 << 20;
/// How often entries of connections that their application closed before they were accepted are looked for.
pub const SWEEP_PERIOD: Duration = Duration::from_secs(30);
/// How long the new agent waits for the old one to hand its listeners over before it starts without them.
pub const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a new agent tries the metrics port that the old one is about to let go of.
pub const METRICS_PORT_RETRY: Duration = Duration::from_millis(20);
/// Largest request body on the admin socket, bytes.
pub const ADMIN_BODY_BYTES_MAX: usize = 4096;
/// Connections served at one time on the admin socket, and on the metrics port.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// How long a client of the admin socket or metrics port may take for its request head.
pub const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the CLI waits for the agent's answer.
pub const ADMIN_CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most live connections that `weft flows` lists.
pub const FLOW_ROWS_MAX: usize = 10_000;
