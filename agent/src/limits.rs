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
/// When the namespace of a pod that was taken out of the mesh becomes as it was: what was carried through it has ended
/// ([`weft_proxy::limits::POD_REMOVAL_GRACE`], and what an accept queue takes to empty).
pub const POD_LEAVES_IN: Duration = Duration::from_secs(6);
/// How often the namespaces of captured pods are compared with what is at their paths now. A sandbox that was made anew goes uncaptured
/// for so long; one stat(2) for each pod.
pub const SANDBOX_LOOK: Duration = Duration::from_millis(500);
/// Lines of the access log about older connections of one pod that one look writes; the others are counted.
pub const OLDER_LINES_MAX: usize = 16;
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
/// How often an agent that has handed over looks whether its successor is still there.
pub const SUCCESSOR_LOOK: Duration = Duration::from_secs(1);
/// How long there may be no successor before an agent that has handed over ends, to be started again. Longer than a container's
/// restart takes, shorter than the first step of the kubelet's back-off (10 s).
pub const SUCCESSOR_GONE_AFTER: Duration = Duration::from_secs(8);
/// Largest request body on the admin socket, bytes.
pub const ADMIN_BODY_BYTES_MAX: usize = 4096;
/// Largest question to `weft explain` on the admin socket, bytes: a request with all its headers.
pub const ADMIN_QUESTION_BYTES_MAX: usize = 256 << 10;
/// Connections served at one time on the admin socket, and on the metrics port.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// How long a client of the admin socket or metrics port may take for its request head.
pub const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the CLI waits for the agent's answer.
pub const ADMIN_CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most live connections that `weft flows` lists.
pub const FLOW_ROWS_MAX: usize = 10_000;
/// Objects in one page of a list from the API server: bounds what is held of it at one time.
pub const KUBE_PAGE_OBJECTS: u32 = 250;
/// How long the API server may take to answer a request, or the next page of a list; its own limit is 60 s (kube-apiserver, `--request-timeout`).
pub const KUBE_REQUEST_TIMEOUT: Duration = Duration::from_secs(65);
/// How long a connection to the API server may take to be made.
pub const KUBE_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection to the API server may be without a sign of life, seconds (client-go: 30 s until an HTTP/2 ping, and 15 s for its answer).
pub const KUBE_LOST_AFTER_S: u64 = 45;
/// The shortest that it can be set to: a busy API server takes its time.
pub const KUBE_LOST_AFTER_S_MIN: u64 = 3;
/// The longest that it can be set to.
pub const KUBE_LOST_AFTER_S_MAX: u64 = 60;
/// Into so many parts that time is divided: the kernel asks after each, HTTP/2 before the last.
pub const KUBE_SIGNS_ASKED_FOR: u32 = 3;
/// How long a watch lasts before the API server ends it, seconds (client-go's reflector: 5 to 10 minutes).
pub const KUBE_WATCH_S: u32 = 290;
/// How long a watch may be silent. An API server sends a bookmark about every minute (apiserver cacher, `defaultBookmarkFrequency`), so
/// one that sends none for so long has stopped working, even if its kernel still answers.
pub const KUBE_WATCH_SILENCE: Duration = Duration::from_secs(150);
/// A watch that lived for so long has worked, whatever ended it.
pub const KUBE_WATCH_WORKED: Duration = Duration::from_secs(5);
/// First pause after a failed request to the API server; doubled by each further failure.
pub const KUBE_BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause after a failed request to the API server.
pub const KUBE_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How often the API server is asked for kinds that it did not serve.
pub const KUBE_DISCOVER_ABSENT: Duration = Duration::from_secs(5);
/// How often it is asked whether a kind has a better version now.
pub const KUBE_DISCOVER_SERVED: Duration = Duration::from_secs(60);
/// How long a kind that was served must be missing before its objects count as gone. Until then they stay in force: an API server that
/// starts may not know of its kinds yet.
pub const KUBE_KIND_GONE: Duration = Duration::from_secs(30);
/// Batches from the watches that wait to be merged.
pub const KUBE_QUEUE_MAX: usize = 256;
/// A burst of changes from the API server is over when nothing came for this long.
pub const KUBE_QUIET: Duration = Duration::from_millis(5);
/// A burst of changes from the API server is acted on after this long at the latest.
pub const KUBE_QUIET_CAP: Duration = Duration::from_millis(50);
/// Longest answer of the API server that is read at one time, bytes. A page that is longer is asked for in halves; one object has at most
/// 1.5 MiB in etcd, and somewhat more as JSON.
pub const KUBE_PAGE_BYTES_MAX: usize = 32 << 20;
/// Longest event of a watch, bytes.
pub const KUBE_EVENT_BYTES_MAX: usize = 8 << 20;
/// Longest refusal of the API server that is read, bytes.
pub const KUBE_ERROR_BYTES_MAX: usize = 64 << 10;
/// How deep below a root the cgroup of a pod is looked for, and its processes below that: `kubelet.slice/kubelet-kubepods.slice/…-burstable.slice/…-pod….slice`
/// is the deepest that kind makes.
pub const POD_CGROUP_DEPTH_MAX: usize = 6;
/// Most cgroups that one search visits. A node has at most some hundred pods of some containers each.
pub const CGROUPS_WALKED_MAX: usize = 20_000;
/// Most processes of a pod whose network namespaces are compared.
pub const POD_PROCESSES_LOOKED_AT: usize = 64;
/// Most problems that `weft lint` tells of one object; more of them mostly follow from the first.
pub const LINT_PROBLEMS_PER_OBJECT_MAX: usize = 32;
/// How long the Lease of the writer of status holds, seconds (client-go's leader election: 15).
pub const LEASE_DURATION_S: u64 = 15;
/// The longest that somebody else's Lease is respected, seconds.
pub const LEASE_DURATION_MAX_S: u64 = 300;
/// How long this agent counts on a Lease that it took or renewed: less than others wait for.
pub const LEASE_HELD: Duration = Duration::from_secs(10);
/// How often the Lease is looked at, and renewed.
pub const LEASE_RENEW: Duration = Duration::from_secs(3);
/// How often objects are looked at whose status may have to be written.
pub const STATUS_ROUND: Duration = Duration::from_millis(500);
/// Most statuses that one round writes: 20 a second, each with at most one Event.
pub const STATUS_WRITES_PER_ROUND: usize = 10;
/// Pause after a status that could not be written.
pub const STATUS_PAUSE: Duration = Duration::from_secs(2);
/// How long a status that was written may take to come back on the watch before it is written again.
pub const STATUS_ECHO: Duration = Duration::from_secs(10);
/// Destinations that lost their last TrafficTarget and wait to be told of. Beyond that the oldest is only in the log, and counts as a status
/// that could not be written.
pub const WIDENINGS_MAX: usize = 256;
/// How long that may wait: longer than the Lease takes to find another holder, who tells it then.
pub const WIDENING_TOLD_WITHIN: Duration = Duration::from_secs(60);
/// Longest part of an Event's name that is the object's; both are at most 253 bytes (RFC 1123), and a UID and a generation follow.
pub const EVENT_NAME_BYTES_MAX: usize = 190;
/// Longest message of a condition, bytes; Kubernetes allows 32,768 (metav1.Condition).
pub const STATUS_MESSAGE_BYTES_MAX: usize = 1024;
/// Longest text of an Event, bytes (k8s.io/api/events/v1, `note`: 1 kB).
pub const EVENT_NOTE_BYTES_MAX: usize = 1000;
/// How often what should be published of this node's pods is compared with what is: each NodeWorkloads object is written at most this often,
/// unless something must be taken back at once.
pub const PUBLISH_ROUND: Duration = Duration::from_millis(500);
/// How often the API server is asked what is really there of this node's NodeWorkloads.
pub const PUBLISH_LOOK: Duration = Duration::from_secs(60);
/// How long a pod that is taken out of the mesh stays captured until other nodes are told, at most.
pub const PUBLISH_WITHDRAW_MAX: Duration = Duration::from_secs(2);
/// How long an agent that starts leaves a pod published for which it has no certificate yet: as long as the authority may take to sign one.
pub const PUBLISH_CERTIFICATES_BY: Duration = Duration::from_secs(15);
/// How long an agent waits for the other nodes to hear that pods are not published any more, after that is written and before it lets go of
/// them: many times what a watch takes.
pub const PUBLISH_SEEN: Duration = Duration::from_millis(500);
/// How long the CNI plugin waits for capture, and so holds a pod's start up, at most. The kubelet gives a sandbox four minutes.
pub const CNI_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pause before the plugin asks again whose connection was closed without an answer, as in a hand-over.
pub const CNI_ASK_AGAIN: Duration = Duration::from_millis(20);
/// Longest network configuration that is read, with the result of the plugins before, bytes. Usual ones have two thousand.
pub const CNI_CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Longest message between plugin and agent, bytes.
pub const CNI_MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Most addresses of one sandbox that are told to the agent; Kubernetes knows one of each family.
pub const CNI_ADDRESSES_MAX: usize = 64;
/// After a failed accept on the CNI plugin's socket, when descriptors have run out: it would fail again at once.
pub const CNI_ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Plugins that may wait at one time: the kubelet starts a node's pods side by side, and a node has at most some hundred.
pub const CNI_CONNECTIONS_MAX: usize = 256;
/// Sandboxes that were announced and whose pods have no address in their status yet.
pub const CNI_SANDBOXES_MAX: usize = 512;
/// How long a sandbox is remembered whose pod nobody has seen.
pub const CNI_SANDBOX_KEEP: Duration = Duration::from_secs(60);
/// How often the node's network configuration is looked at even without an event.
pub const CNI_LOOK: Duration = Duration::from_secs(30);
/// The least time between two changes of the node's network configuration: somebody else may insist on theirs.
pub const CNI_CHANGE_PAUSE: Duration = Duration::from_secs(1);
/// Most files of the directory of network configurations that are looked at.
pub const CNI_CONFIG_FILES_MAX: usize = 1000;
/// How long an agent that is told to stop asks whether it is for good.
pub const UNINSTALL_ASK_MAX: Duration = Duration::from_secs(5);
/// How often `weft-agent uninstall` looks whether all agents have ended.
pub const UNINSTALL_LOOK: Duration = Duration::from_secs(1);
/// Calls to the authority at one time (Istio's ztunnel: 8); each has up to [`weft_identity::limits::BATCH_MAX`] certificates.
pub const IDENTITY_CALLS_MAX: usize = 8;
/// First pause after a certificate could not be had; doubled by each further failure (Istio's agents: 0.5 s up to 150 s).
pub const IDENTITY_BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest pause after a certificate could not be had.
pub const IDENTITY_BACKOFF_MAX: Duration = Duration::from_secs(150);
/// By how much of itself a pause is spread to either side, so that agents do not come all at once after an outage.
pub const IDENTITY_BACKOFF_JITTER: f64 = 0.2;
/// By how much of half a life renewals are spread to either side.
pub const IDENTITY_JITTER: f64 = 0.1;
/// How long certificates are asked for again over, when the authority wants all of them anew.
pub const IDENTITY_REISSUE_SPREAD: Duration = Duration::from_secs(2);
/// How long a certificate is kept that no pod uses: a Deployment that rolls needs it again.
pub const IDENTITY_IDLE: Duration = Duration::from_secs(60);
/// How often the wall clock is compared with the steady one.
pub const IDENTITY_CLOCK_LOOK: Duration = Duration::from_secs(30);
/// By how much they may differ before the wall clock counts as set; time daemons step by less or slew.
pub const IDENTITY_CLOCK_JUMP: Duration = Duration::from_secs(5);
/// How long a connection to the authority may take to be made, with its handshake.
pub const AUTHORITY_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the authority may take for an answer. Its own signers may be elsewhere.
pub const AUTHORITY_CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a silent connection to the authority is asked for a sign of life, and how long that may take.
pub const AUTHORITY_PING: Duration = Duration::from_secs(15);
/// Longest pause before the authority is asked again for the roots.
pub const AUTHORITY_WATCH_BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Largest answer of the authority, bytes: a whole batch with chains as long as they may be.
pub const AUTHORITY_ANSWER_MAX: usize = weft_identity::limits::BATCH_MAX * (weft_identity::limits::CHAIN_MAX + 1024);
/// Largest token file, bytes; Kubernetes' tokens have about one KiB.
pub const TOKEN_BYTES_MAX: u64 = 16 << 10;
/// Longest sentence of the authority that is shown, bytes.
pub const AUTHORITY_WORDS_MAX: usize = 300;
/// Different reasons of failures that metrics tell apart; the authority's words are not ours to count.
pub const IDENTITY_REASONS_MAX: usize = 48;
/// How long a pod may take to prove that it takes mutual TLS: it is on this node, and a handshake takes a millisecond.
pub const PROVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How soon a pod that did not is tried again.
pub const PROVE_AGAIN: Duration = Duration::from_secs(1);
