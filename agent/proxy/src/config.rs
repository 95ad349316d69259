//! What can be set about the data path. Every default is a constant of [`limits`](crate::limits).

use std::time::Duration;

use crate::limits;

/// Settings of the data path.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Worker threads; `None`: one for each core, at most [`limits::WORKERS_DEFAULT_MAX`].
    pub workers: Option<usize>,
    /// See [`limits::DOWNSTREAM_CONNECTIONS_MAX`].
    pub downstream_connections_max: usize,
    /// See [`limits::DIALS_MAX`].
    pub dials_max: usize,
    /// See [`limits::POOL_IDLE_PER_KEY_MAX`].
    pub pool_idle_per_key_max: usize,
    /// See [`limits::POOL_IDLE_TIMEOUT`].
    pub pool_idle_timeout: Duration,
    /// See [`limits::H2_POOL_IDLE_TIMEOUT`].
    pub h2_pool_idle_timeout: Duration,
    /// See [`limits::H2_STALL_TIMEOUT`].
    pub h2_stall_timeout: Duration,
    /// See [`limits::DETECT_TIMEOUT`].
    pub detect_timeout: Duration,
    /// See [`limits::LEARNT_WAIT`].
    pub learnt_wait: Duration,
    /// See [`limits::REFUSAL_WAIT`].
    pub refusal_wait: Duration,
    /// See [`limits::LEARNT_PORTS_MAX`].
    pub learnt_ports_max: usize,
    /// See [`limits::HEADER_READ_TIMEOUT`].
    pub header_read_timeout: Duration,
    /// See [`limits::DOWNSTREAM_IDLE_TIMEOUT`].
    pub downstream_idle_timeout: Duration,
    /// See [`limits::HALF_CLOSED_GRACE`].
    pub half_closed_grace: Duration,
    /// See [`limits::CONTINUE_TIMEOUT`].
    pub continue_timeout: Duration,
    /// See [`limits::TLS_HANDSHAKE_TIMEOUT`].
    pub tls_handshake_timeout: Duration,
    /// See [`limits::CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// See [`limits::ENDPOINT_WAIT`].
    pub endpoint_wait: Duration,
    /// See [`limits::POD_REMOVAL_GRACE`].
    pub pod_removal_grace: Duration,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            workers: None,
            downstream_connections_max: limits::DOWNSTREAM_CONNECTIONS_MAX,
            dials_max: limits::DIALS_MAX,
            pool_idle_per_key_max: limits::POOL_IDLE_PER_KEY_MAX,
            pool_idle_timeout: limits::POOL_IDLE_TIMEOUT,
            h2_pool_idle_timeout: limits::H2_POOL_IDLE_TIMEOUT,
            h2_stall_timeout: limits::H2_STALL_TIMEOUT,
            detect_timeout: limits::DETECT_TIMEOUT,
            learnt_wait: limits::LEARNT_WAIT,
            refusal_wait: limits::REFUSAL_WAIT,
            learnt_ports_max: limits::LEARNT_PORTS_MAX,
            header_read_timeout: limits::HEADER_READ_TIMEOUT,
            downstream_idle_timeout: limits::DOWNSTREAM_IDLE_TIMEOUT,
            half_closed_grace: limits::HALF_CLOSED_GRACE,
            continue_timeout: limits::CONTINUE_TIMEOUT,
            tls_handshake_timeout: limits::TLS_HANDSHAKE_TIMEOUT,
            connect_timeout: limits::CONNECT_TIMEOUT,
            endpoint_wait: limits::ENDPOINT_WAIT,
            pod_removal_grace: limits::POD_REMOVAL_GRACE,
        }
    }
}

impl ProxyConfig {
    /// How many worker threads that makes on this machine.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        self.workers.unwrap_or_else(|| cores().min(limits::WORKERS_DEFAULT_MAX)).clamp(1, limits::WORKERS_MAX)
    }
}
