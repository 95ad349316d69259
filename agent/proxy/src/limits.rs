//! Named maxima and timeouts of the data path, with their units and where they come from. What can be reached has a metric:
//! `weft_limit_reached_total{limit}`. Those that an operator or a test may want otherwise are fields of
//! [`ProxyConfig`](crate::config::ProxyConfig) and only their defaults are here.

use std::time::Duration;

/// Most worker threads unless asked otherwise: the data path of one node rarely needs more (linkerd2-proxy and ztunnel take 1 and 2).
pub const WORKERS_DEFAULT_MAX: usize = 4;
/// Most worker threads that can be asked for; each has a descriptor for every listener.
pub const WORKERS_MAX: usize = 64;
/// Commands that may wait for one worker: pods that come and go. A worker that is this far behind hangs.
pub const COMMANDS_MAX: usize = 4096;
/// How often a worker shows that it lives, flushes its metrics and sweeps: a tenth of the age at which capture takes the agent for hung (5 s).
pub const TICK: Duration = Duration::from_millis(500);
/// How long to wait for workers to empty their accept queues and let go of their listeners.
pub const STOP_ACCEPTING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `Drop` waits for worker threads to end.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker that ends waits for its connections to be reset.
pub const SHUTDOWN_CUT: Duration = Duration::from_millis(200);

/// Downstream connections of one worker; above it the worker leaves connections in the accept queue.
pub const DOWNSTREAM_CONNECTIONS_MAX: usize = 16_384;
/// How long accepting pauses when the process has no file descriptors or memory left.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long the connections of a pod that is captured no more may finish.
pub const POD_REMOVAL_GRACE: Duration = Duration::from_secs(5);

/// How long to wait for a client's first byte where the protocol is not declared: a server that speaks first costs its client this once.
pub const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes that detection looks at: the longest method of the IANA registry, a space and one more, with leading line ends.
pub const DETECT_BYTES_MAX: usize = 32;

/// How long a request's head may take from its first byte on (hyper's default; Envoy: none, nginx: 60 s).
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may keep an idle connection (Envoy `idle_timeout`: 1 h). Shorter would surprise pools that trust their server's.
pub const DOWNSTREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a client that has shut down its sending side may wait for the answer. TCP does not tell a half-closed connection from
/// one whose client is gone: shorter breaks `printf .. | nc`, longer keeps abandoned requests running.
pub const HALF_CLOSED_GRACE: Duration = Duration::from_secs(10);
/// Largest head of a request or response, in bytes; also bounds hyper's read and write buffers (linkerd2-proxy, nginx: 32 to 64 KiB).
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header fields of a request or response (hyper's built-in maximum, which needs no allocation).
pub const HEADERS_MAX: usize = 100;
/// How long a request body waits for `100 Continue` before it is sent anyway (RFC 9110 10.1.1; curl: 1 s).
pub const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a closing connection is read for, so that the answer is not lost to a reset (nginx `lingering_timeout`: 5 s).
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How much a closing connection is read for, bytes.
pub const LINGER_BYTES_MAX: usize = 1 << 20;

/// Bytes of one direction of an opaque connection that wait in user space.
pub const COPY_BUFFER_BYTES: usize = 16 * 1024;
/// Reads of one direction before other connections get their turn.
pub const COPY_TURN_READS: usize = 16;
/// Idle time before TCP keepalive probes, on both sides: a peer that vanished frees its connection, which nothing else does.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between those probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Probes without an answer before the connection counts as dead.
pub const KEEPALIVE_PROBES: u32 = 4;

/// How long one connect may take, with its wait for a free slot (Envoy `connect_timeout`: 5 s).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Endpoints that are tried for one request or connection before it fails; nothing was sent to those that did not answer.
pub const CONNECT_TRIES_MAX: usize = 3;
/// Connects under way at one time in one worker.
pub const DIALS_MAX: usize = 512;

/// How long an unused upstream connection is kept: less than the shortest common server default (Node.js, Apache, uvicorn: 5 s), so
/// that the pool is the one that closes.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Unused upstream connections that are kept for one pod and endpoint, in one worker.
pub const POOL_IDLE_PER_KEY_MAX: usize = 64;
/// Pooled connections that may turn out closed for one request before a new one is dialled.
pub const POOL_STALE_MAX: usize = 3;

/// How long a worker remembers its progress through a split or its place in an endpoint set without using it.
pub const BALANCE_STATE_IDLE: Duration = Duration::from_secs(600);
/// Label sets of one pod in one worker; more share one set whose destination is `overflow`.
pub const METRIC_CELLS_PER_POD_MAX: usize = 1024;
/// Metric cells that one connection remembers.
pub const METRIC_CELLS_PER_CONNECTION_MAX: usize = 16;
/// Most rows of one `flows` answer.
pub const FLOW_ROWS_MAX: usize = 10_000;
/// How long `flows` waits for a worker.
pub const FLOWS_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest time between two log lines of the same warning in one worker.
pub const WARN_INTERVAL: Duration = Duration::from_secs(10);
