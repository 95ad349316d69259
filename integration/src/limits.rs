//! How long the harness waits, and how much it makes.

use std::time::Duration;

/// Nodes of all test processes together on one machine.
pub const SLOTS_MAX: u32 = 64;
/// Pods of one node: they share a /24.
pub const PODS_MAX: u32 = 200;
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
