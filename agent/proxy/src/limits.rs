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

/// How long a client that has sent the beginning of what may be HTTP or TLS may take for the bytes that tell, where the protocol is
/// not declared. They come in one segment unless somebody types them; whoever does waits this long once.
pub const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes that detection looks at: the preface of HTTP/2, or the longest method of the IANA registry, a space and one more,
/// with leading line ends.
pub const DETECT_BYTES_MAX: usize = 32;
/// How long a client's first bytes are waited for before the server is dialled, on a port where clients spoke HTTP so far. A client
/// of HTTP sends with its connect, so far longer than a busy node delays that, and shorter than a person or a handshake notices:
/// where what was learnt is wrong, a server that speaks first is heard this much later, once.
pub const LEARNT_WAIT: Duration = Duration::from_millis(30);
/// How long a client whose destination cannot be reached may take to show that it speaks HTTP, and get an answer that says why. Any
/// other is reset when it has spoken, or after this.
pub const REFUSAL_WAIT: Duration = Duration::from_secs(1);
/// Connections in a row that must have spoken HTTP before a port is taken for one where the client speaks first: fewer, and one odd
/// client would delay those of a server that speaks first.
pub const LEARNT_STREAK_MIN: u32 = 3;
/// Ports whose protocol one worker remembers; those beyond are dialled at once every time.
pub const LEARNT_PORTS_MAX: usize = 4096;
/// How long it remembers a port that nobody connects to.
pub const LEARNT_IDLE: Duration = Duration::from_secs(3600);

/// Longest record of TLS, in bytes without its header (RFC 8446 5.1).
pub const TLS_RECORD_BYTES_MAX: usize = 1 << 14;
/// Longest `ClientHello` that is read for its server name, in bytes; RFC 8446 allows 16 MiB, browsers send 2 KiB.
pub const HELLO_BYTES_MAX: usize = 16 << 10;
/// Most bytes of ALPN names that are kept of one `ClientHello`; those beyond are left out.
pub const HELLO_ALPN_BYTES_MAX: usize = 256;

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
/// Longest path and query of a request, bytes. Servers take less: nginx and Apache 8 KiB, Node.js 16 KiB with all fields.
pub const TARGET_BYTES_MAX: usize = 16 * 1024;
/// How long a request body waits for `100 Continue` before it is sent anyway (RFC 9110 10.1.1; curl: 1 s).
pub const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a closing connection is read for, so that the answer is not lost to a reset (nginx `lingering_timeout`: 5 s).
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How much a closing connection is read for, bytes.
pub const LINGER_BYTES_MAX: usize = 1 << 20;

/// Streams that a client may have open on one HTTP/2 connection (RFC 9113 6.5.2 recommends no fewer than 100; nginx 128, Envoy 1,024).
/// gRPC clients wait, or open another connection, above it.
pub const H2_STREAMS_MAX: u32 = 100;
/// Bytes of one stream that may be under way to us unread: the protocol's default, about 1 Gbit/s at a round trip of 0.5 ms.
pub const H2_STREAM_WINDOW_BYTES: u32 = 65_535;
/// The same for a client's connection as a whole, so the most that its request bodies hold in memory. Larger than one stream's: if both
/// are equal, one stream that nobody reads stops all others.
pub const H2_WINDOW_BYTES: u32 = 1 << 20;
/// The same for a connection to an endpoint. Requests of many clients share it, so no number of them that stop reading may use it up:
/// as much as all its streams together.
pub const H2_UPSTREAM_WINDOW_BYTES: u32 = H2_STREAM_WINDOW_BYTES * H2_UPSTREAM_STREAMS_MAX as u32;
/// Largest frame that is taken, bytes: the protocol's default and least (RFC 9113 4.2), so that streams take turns.
pub const H2_FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of one stream that wait to be sent.
pub const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Table of header fields that the other side may refer to, bytes, on each connection (RFC 7541 4.2; the protocol's default).
pub const H2_HEADER_TABLE_BYTES: u32 = 4096;
/// Streams that hyper resets for a client's mistakes before it ends the connection (CVE-2025-8671; hyper's default is 1,024).
pub const H2_ERROR_RESETS_MAX: usize = 128;
/// Streams that a client resets before hyper has seen them (CVE-2023-44487; h2's default).
pub const H2_PENDING_RESETS_MAX: usize = 20;
/// Frames of a client that make work and carry nothing: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM, empty DATA and
/// CONTINUATION, unknown types. So many may come at once (Envoy ends a connection after 500 early resets; nginx after 1 MiB).
pub const H2_OVERHEAD_FRAMES_MAX: u32 = 1000;
/// How many more of them may come each second: more than pings, cancelled calls and windows of a client that works take.
pub const H2_OVERHEAD_FRAMES_PER_SECOND: u32 = 100;
/// And for each frame with data that it is sent, and each answer that it takes: the windows of the stream and of the connection.
pub const H2_OVERHEAD_FRAMES_EARNED: u32 = 2;
/// How long an answer waits for a client that lets nothing through (Envoy `stream_idle_timeout`: 5 min; nginx `send_timeout`: 1 min).
/// A client may have its reasons, but the endpoint's side waits, too.
pub const H2_STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Requests at one time on one HTTP/2 connection to an endpoint; fewer if the endpoint says so.
pub const H2_UPSTREAM_STREAMS_MAX: usize = 100;
/// HTTP/2 connections of one pod to one endpoint, in one worker; with all of them full, requests wait as long as a connect may take.
pub const H2_CONNECTIONS_PER_KEY_MAX: usize = 64;
/// How long an HTTP/2 connection to an endpoint is kept without requests (nginx `keepalive_timeout`: 1 min). HTTP/2 has a word for the
/// end of a connection, so the endpoint's own patience is no danger.
pub const H2_POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long what was sent to an endpoint over HTTP/2 may stay unacknowledged by its kernel (TCP_USER_TIMEOUT): more than a few lost
/// segments, less than people wait.
pub const H2_UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's body that are kept for another try where a server has not looked at the request: one frame.
pub const H2_REPLAY_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a request's body that are kept where its rule asks for retries: a request with more is not tried again once that much was
/// read (Envoy `per_request_buffer_limit_bytes`: 1 MiB and more; linkerd2-proxy: 64 KiB).
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// Longest pause before a retry, without jitter.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Retries of one worker to one backend, in percent of the requests whose rules ask for any (linkerd2-proxy, Envoy, Finagle: 20).
pub const RETRY_BUDGET_PERCENT: u32 = 20;
/// And so many more each second (linkerd2-proxy, Finagle: 10).
pub const RETRY_BUDGET_PER_SECOND: u32 = 10;
/// Seconds over which both are counted (linkerd2-proxy, Finagle: 10).
pub const RETRY_BUDGET_SECONDS: u64 = 10;
/// How long a request whose rule asks for retries waits for an endpoint while its backend has none, within its own time: longer than a
/// pod takes from one ready replica to the next, shorter than people wait.
pub const ENDPOINT_WAIT: Duration = Duration::from_secs(5);
/// How often it looks.
pub const ENDPOINT_LOOK: Duration = Duration::from_millis(10);
/// Copies of requests that one worker has under way; no others are made meanwhile.
pub const MIRRORS_MAX: usize = 256;
/// Bytes of a request's body of which a copy is made: a request with more has none.
pub const MIRROR_BYTES_MAX: usize = 64 * 1024;
/// How long a copy may take, with its response (nginx `proxy_read_timeout`: 60 s; a copy that hangs takes the place of others).
pub const MIRROR_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of a response that nobody wants, and that is read so that its connection can be used again.
pub const DISCARD_BYTES_MAX: usize = 1 << 20;
/// How long such a response may take.
pub const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

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

/// How long a handshake of mutual TLS may take, on either side: far more than a round trip and two signatures, and as long as a connect.
/// After it the connection is closed, so that clients which say nothing hold no room (nginx `client_header_timeout`: 60 s; ztunnel: 10 s).
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes that clients have under way in one worker; those beyond are closed.
pub const TLS_HANDSHAKES_MAX: usize = 1024;
/// How long a connection waits for its service account's certificate: an authority answers within tens of milliseconds, and a connect may
/// take as long.
pub const CREDENTIAL_WAIT: Duration = Duration::from_secs(5);

/// How long an unused upstream connection is kept: less than the shortest common server default (Node.js, Apache, uvicorn: 5 s), so
/// that the pool is the one that closes.
pub const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Unused upstream connections that are kept for one pod and endpoint, in one worker (Envoy: 1,024 connections in all). A client with
/// more connections than this closes and dials with every request, and fills its pod's ports with TIME_WAIT: past half of them each
/// connect searches all the others. What is unused is closed after [`POOL_IDLE_TIMEOUT`] anyway.
pub const POOL_IDLE_PER_KEY_MAX: usize = 1024;
/// Pooled connections that may turn out closed for one request before a new one is dialled.
pub const POOL_STALE_MAX: usize = 3;

/// Points of one endpoint on a hash ring: shares then differ by about a twelfth (ketama: 160).
pub const RING_POINTS_EACH: usize = 160;
/// Points of all endpoints of one ring, 1.5 MiB: each of very many endpoints has fewer.
pub const RING_POINTS_MAX: usize = 100_000;
/// How long the latency that was seen of an endpoint counts until a third of it is left (Finagle, linkerd2-proxy: 10 s).
pub const EWMA_DECAY: Duration = Duration::from_secs(10);
/// How long a worker remembers its progress through a split or its place in an endpoint set without using it.
pub const BALANCE_STATE_IDLE: Duration = Duration::from_secs(600);
/// Label sets of one pod in one worker; more share one set whose destination is `overflow`.
pub const METRIC_CELLS_PER_POD_MAX: usize = 1024;
/// Metric cells that one connection remembers.
pub const METRIC_CELLS_PER_CONNECTION_MAX: usize = 16;
/// Shortest time between two lines of the access log about the same destination and the same kind of basis, in one worker: enough to
/// find out why, too few to be made a flood of.
pub const ACCESS_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Most of a request's path that the access log shows, bytes.
pub const ACCESS_LOG_PATH_BYTES_MAX: usize = 256;
/// Most of a request's method that it shows, bytes: the longest of the IANA registry has 17.
pub const ACCESS_LOG_METHOD_BYTES_MAX: usize = 32;
/// How long after its arrival a connection that has not said a word on a port of HTTP is kept in a drain: its client has connected in
/// order to ask, and a reset in that moment would be a lost request. Far more than a round trip in a cluster takes.
pub const NEW_CONNECTION_GRACE: Duration = Duration::from_millis(250);
/// Most rows of one `flows` answer.
pub const FLOW_ROWS_MAX: usize = 10_000;
/// How long `flows` and `learnt` wait for a worker.
pub const FLOWS_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest time between two log lines of the same warning in one worker.
pub const WARN_INTERVAL: Duration = Duration::from_secs(10);
