//! Capture against the running kernel: two pods of their own (network namespaces on a bridge), programs attached to a cgroup of their
//! own, pins in a directory of their own. Needs root; without it, or without the BPF objects, the tests say so and pass,
//! unless `WEFT_CAPTURE_MUST_RUN` is set: then they fail.
#![allow(clippy::expect_used, clippy::print_stderr, reason = "test code")]

#[path = "capture/again.rs"]
mod again;
#[path = "capture/agent.rs"]
mod agent;
#[path = "capture/bound.rs"]
mod bound;
#[path = "capture/fail_modes.rs"]
mod fail_modes;
#[path = "capture/host_network.rs"]
mod host_network;
#[path = "capture/inbound.rs"]
mod inbound;
#[path = "capture/keep.rs"]
mod keep;
#[path = "capture/lifecycle.rs"]
mod lifecycle;
#[path = "capture/load.rs"]
mod load;
#[path = "capture/older.rs"]
mod older;
#[path = "capture/outbound.rs"]
mod outbound;
#[path = "capture/raw.rs"]
#[allow(unsafe_code, reason = "some ways to make a connection have no safe wrapper")]
mod raw;
#[path = "capture/refusals.rs"]
mod refusals;
#[path = "capture/rewriter.rs"]
mod rewriter;
#[path = "capture/sockets.rs"]
mod sockets;
#[path = "capture/tls.rs"]
mod tls;
#[path = "capture/udp.rs"]
mod udp;
#[path = "capture/verifier.rs"]
mod verifier;
#[path = "capture/world.rs"]
mod world;
