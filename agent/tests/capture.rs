//! Capture against the running kernel: two pods of their own (network namespaces on a bridge), programs attached to a cgroup of their
//! own, pins in a directory of their own. Needs root; without it, or without the BPF objects, the tests say so and pass.
#![allow(clippy::expect_used, clippy::print_stderr, reason = "test code")]

#[path = "capture/agent.rs"]
mod agent;
#[path = "capture/fail_modes.rs"]
mod fail_modes;
#[path = "capture/host_network.rs"]
mod host_network;
#[path = "capture/inbound.rs"]
mod inbound;
#[path = "capture/lifecycle.rs"]
mod lifecycle;
#[path = "capture/load.rs"]
mod load;
#[path = "capture/outbound.rs"]
mod outbound;
#[path = "capture/refusals.rs"]
mod refusals;
#[path = "capture/world.rs"]
mod world;
