//! How much is measured, and for how long. What a reader of the figures must know is repeated in docs/benchmarks.md.

use std::time::Duration;

/// Connections of the load generator. Research on proxies' per-request costs commonly uses 50 to 100; 64 keeps every proxy's pool small.
pub const CONNECTIONS: usize = 64;
/// Bytes of a response's body.
pub const BODY_BYTES: usize = 1024;
/// Requests a second of the row that stands for everyday load: far from what any of them can do on one core.
pub const STEADY_RATE: u32 = 2_000;
/// Share of requests for the first backend, percent; the rest goes to the second.
pub const FIRST_SHARE_PERCENT: u32 = 90;
/// How far a measured share may be from the split, percentage points. Random choice of 10,000 requests strays by 0.3 (one sigma).
pub const SHARE_TOLERANCE_PERCENT: f64 = 3.0;
/// The core that the proxy has for itself.
pub const PROXY_CORE: usize = 0;
/// The core of the load generator, the backends and the bench itself.
pub const LOAD_CORE: usize = 1;
/// Numbers of idle client connections with which memory is measured.
pub const HELD_CONNECTIONS: [usize; 2] = [1_000, 5_000];
/// Connections that are being opened at one time when many are held.
pub const CONNECTING_MAX: usize = 64;
/// Requests of the run that counts system calls.
pub const COUNTED_REQUESTS: u64 = 20_000;
/// How long answers are waited for after a run's last request was due.
pub const STRAGGLER_TIMEOUT: Duration = Duration::from_secs(5);
/// From the start of a proxy until it listens. Envoy takes a second on a busy machine.
pub const PROXY_READY_TIMEOUT: Duration = Duration::from_secs(20);
/// For opening all held connections.
pub const HOLD_TIMEOUT: Duration = Duration::from_secs(60);
/// What a run may take longer than it is meant to before it counts as hung.
pub const RUN_GRACE: Duration = Duration::from_secs(30);
/// Between two heartbeats that stand in for an agent's: far below the age at which the programs take it for hung.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_millis(500);
/// Bytes read at one time by the load generator, the responder and the epoll proxies.
pub const READ_BYTES: usize = 16 * 1024;
/// Head and body of one message at most, in all of them. They only ever carry each other's.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Events taken from the kernel at one time.
pub const EVENTS_MAX: usize = 256;
/// Connections that wait to be accepted.
pub const BACKLOG: i32 = 4_096;
/// Latencies are recorded up to this many microseconds: a minute.
pub const LATENCY_US_MAX: u64 = 60_000_000;
/// Significant digits of recorded latencies.
pub const LATENCY_DIGITS: u8 = 3;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Interleaved rounds: every row once, then every row again.
    pub rounds: usize,
    /// Before each measured window, so that pools and caches are warm.
    pub warm_up: Duration,
    /// Measured window at saturation.
    pub saturated: Duration,
    /// Measured window at [`STEADY_RATE`].
    pub steady: Duration,
}

impl Effort {
    /// What the published figures are made with.
    pub const FULL: Self = Self {
        rounds: 7,
        warm_up: Duration::from_millis(700),
        saturated: Duration::from_secs(3),
        steady: Duration::from_secs(4),
    };
    /// Enough to see a change of a tenth.
    pub const QUICK: Self = Self {
        rounds: 3,
        warm_up: Duration::from_millis(300),
        saturated: Duration::from_secs(1),
        steady: Duration::from_millis(1_500),
    };
}
