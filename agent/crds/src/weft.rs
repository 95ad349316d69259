//! weft's own kinds, weft.dev.

pub mod backend_policy;
pub(crate) mod duration;
pub mod fault_injection;
pub mod node_workloads;
pub mod target;
