//! How long the harness waits, and how much it makes.

use std::time::Duration;

/// Nodes of all test processes together on one machine.
pub const SLOTS_MAX: u32 = 64;
/// Pods of one node: they share a /24.
pub const PODS_MAX: u32 = 200;
/// Nodes of one cluster: each has a /24 of the /16 of all pods, of which some are taken for other things.
pub const NODES_MAX: u8 = 100;
/// Bytes of packets that one recording of a link holds; what comes then is an error.
pub const RECORDING_BYTES_MAX: usize = 256 << 20;
/// Bytes of packets that may wait to be recorded: a link's traffic of a second.
pub const RECORDING_QUEUE_BYTES: usize = 64 << 20;
/// How often a condition is looked at again.
pub const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// From start of an agent until it is ready: loading the programs takes about a second with debug assertions on a busy machine.
pub const AGENT_READY_TIMEOUT: Duration = Duration::from_secs(30);
/// From a change of a manifest until the status shows it.
pub const APPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Until a test pod's process has opened its ports.
pub const PROCESS_READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Until killed processes have left their cgroup.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// From SIGTERM until an agent without connections has gone.
pub const AGENT_STOP_TIMEOUT: Duration = Duration::from_secs(40);
/// One request of the harness itself to an agent's HTTP endpoint.
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// Open files of the harness and all that it starts: 10,000 connections need twice as many in the agent, and Kubernetes'
/// container runtimes give far more.
pub const OPEN_FILES: u64 = 200_000;
/// Lines of an agent's log that are printed when a test fails.
pub const LOG_TAIL_LINES: usize = 80;
/// From start of an API server until it is ready: a second, more on a busy machine.
pub const API_SERVER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an API server may take to end before it is killed.
pub const API_SERVER_GRACE: Duration = Duration::from_secs(3);
/// One request to the API server; lists of 100,000 objects are among them.
pub const API_TIMEOUT: Duration = Duration::from_secs(60);
/// From start of an authority until it can sign: a Lease, two keys, and three looks of a second; more on a busy machine.
pub const AUTHORITY_READY_TIMEOUT: Duration = Duration::from_secs(60);
