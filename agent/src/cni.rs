//! The chained CNI plugin `weft-cni`, and the agent's side of it: a pod's connections are captured before its first process starts.
//!
//! The container runtime runs the plugin when a pod's network is ready and nothing runs in it yet (CNI specification 1.1.0, "ADD"). The plugin
//! gives the agent the network namespace, and waits, at most [`CNI_WAIT_MAX`](crate::limits::CNI_WAIT_MAX), until it is captured. No pod's
//! creation depends on it: without an agent, or without an answer, the pod starts, and is captured as it would be without the plugin.

pub mod ask;
pub mod conflist;
pub mod install;
pub mod metrics;
pub mod plugin;
pub mod protocol;
pub mod sandboxes;
pub mod server;
